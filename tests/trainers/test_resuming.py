"""What a checkpoint brings along is never run, and the file that tries is named."""

import os
import pickle
import shutil

import pytest
import torch
from settings import TRAINER_ROWS, build_trainer

RESUME_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "optimizer.bin")


class Touch:
    """A pickle of it makes a file where it is read without care."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    row = TRAINER_ROWS["distillation"]
    build_trainer(row, folder, max_steps=2, save_strategy="steps", save_steps=1).train()
    return folder


@pytest.fixture
def checkpoint(trained, tmp_path):
    return shutil.copytree(trained / "checkpoint-1", tmp_path / "checkpoint-1")


def resume(checkpoint):
    trainer = build_trainer(TRAINER_ROWS["distillation"], checkpoint.parent, max_steps=2)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def test_a_checkpoint_of_our_own_is_resumed(checkpoint):
    assert resume(checkpoint).state.global_step == 2


@pytest.mark.parametrize("name", RESUME_FILES)
def test_a_planted_pickle_is_not_run_and_its_file_is_named(name, checkpoint, tmp_path):
    torch.save({"state": Touch(tmp_path / "ran")}, checkpoint / name)
    with pytest.raises(ValueError, match=r"calls posix\.mkdir") as error:
        resume(checkpoint)
    assert str(checkpoint / name) in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_torch_itself_would_not_have_run_it(name, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("kdnlp.trainers.durable.check_resume_files", lambda _: None)
    torch.save({"state": Touch(tmp_path / "ran")}, checkpoint / name)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        resume(checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut off", "raw pickle"], ids=["empty", "cut off", "raw pickle"]
)
def test_a_file_that_torch_did_not_write_is_refused_by_name(content, checkpoint, tmp_path):
    if content == "raw pickle":
        content = pickle.dumps(Touch(tmp_path / "ran"))
    (checkpoint / "scheduler.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"scheduler\.pt is cut off or damaged"):
        resume(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_weights_in_a_pickle_are_no_weights(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"weight": Touch(tmp_path / "ran")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        resume(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_the_pickled_arguments_are_never_read(checkpoint, tmp_path):
    torch.save(Touch(tmp_path / "ran"), checkpoint / "training_args.bin")
    assert resume(checkpoint).state.global_step == 2
    assert not (tmp_path / "ran").exists()
