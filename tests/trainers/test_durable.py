"""What a run that is stopped, refused or out of disk leaves behind: whole things, and no more."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from settings import NO_DROPOUT, TRAINER_ROWS, build_trainer, tiny_dataset, tiny_model
from transformers import TrainerCallback

from kdnlp.checkpoints import find_damage, list_checkpoints
from kdnlp.trainers.output_dir import output_dir_held
from kdnlp.trainers.preemption import Preempted

FINETUNING = TRAINER_ROWS["finetuning"]
SAVED = {"save_strategy": "steps", "save_steps": 2}


class Tell(TrainerCallback):
    """Sends this process SIGTERM in the middle of a step, as a batch system does."""

    def __init__(self, step):
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def build(folder, row=FINETUNING, callbacks=(), train_dataset=None, **overrides):
    torch.manual_seed(11)
    dropout = tiny_model("bert", 4)
    settings = {"max_steps": 6, "gradient_accumulation_steps": 2, **overrides}
    options = {"callbacks": list(callbacks)}
    if train_dataset is not None:
        options["train_dataset"] = train_dataset
    return build_trainer(row, folder, dropout, trainer_options=options, **settings)


def steps(folder):
    return [int(path.name.rpartition("-")[2]) for path in list_checkpoints(folder)]


def evaluations(trainer):
    return [(e["step"], e["epoch"]) for e in trainer.state.log_history if "eval_loss" in e]


def same_weights(first, second):
    ours, theirs = first.student.state_dict(), second.student.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# SIGTERM.


@pytest.mark.parametrize("name", ["distillation", "theseus"])
@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_a_run_that_is_told_to_stop_ends_its_step_saves_and_goes_on_bit_equal(
    name, strategy, tmp_path
):
    row, settings = TRAINER_ROWS[name], {**SAVED, "save_strategy": strategy}
    undisturbed = build(tmp_path / "whole", row, **settings)
    undisturbed.train()
    before = signal.getsignal(signal.SIGTERM)
    told = build(tmp_path / "told", row, [Tell(2)], **settings)
    with pytest.raises(Preempted) as stopped:
        told.train()
    assert stopped.value.code == 143
    assert stopped.value.checkpoint == str(tmp_path / "told" / "checkpoint-3")
    assert steps(tmp_path / "told") == ([3] if strategy == "no" else [3, 2])
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = build(tmp_path / "told", row, **settings)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 6
    assert same_weights(resumed, undisturbed)


def test_what_ends_an_epoch_happens_before_a_run_stops_there(tmp_path):
    """Four steps an epoch: no resumed run would evaluate after the fourth again."""
    each = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    undisturbed = build(tmp_path / "whole", **each)
    undisturbed.train()
    with pytest.raises(Preempted):
        build(tmp_path / "told", callbacks=[Tell(3)], **each).train()
    resumed = build(tmp_path / "told", **each)
    resumed.train(resume_from_checkpoint="last")
    losses = [
        [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
        for trainer in (undisturbed, resumed)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    assert same_weights(resumed, undisturbed)
    assert resumed.state.best_model_checkpoint.startswith(str(tmp_path / "told" / "checkpoint-"))


def test_a_run_whose_checkpoints_hold_the_model_only_still_goes_on_after_a_stop(tmp_path):
    with pytest.raises(Preempted) as stopped:
        build(tmp_path, callbacks=[Tell(2)], save_only_model=True, **SAVED).train()
    assert find_damage(Path(stopped.value.checkpoint)) == ""
    assert "save_only_model" in find_damage(tmp_path / "checkpoint-2")


def test_a_run_outside_the_main_thread_leaves_signals_alone(tmp_path):
    handlers = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            handlers.append(signal.getsignal(signal.SIGTERM))

    trainer = build(tmp_path, callbacks=[Look()], max_steps=1)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


# Checkpoints.


def test_the_best_checkpoint_is_known_by_the_place_where_it_is(tmp_path):
    each = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = build(tmp_path, save_total_limit=1, **each, **SAVED)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path
    assert best.name == f"checkpoint-{trainer.state.best_global_step}"
    assert best.is_dir()
    assert not (tmp_path / "_partial").exists()
    ours = trainer.student.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in load_file(best / "model.safetensors").items())


def test_last_whole_goes_on_before_a_damaged_checkpoint_and_sets_it_aside(tmp_path):
    undisturbed = build(tmp_path, **SAVED)
    undisturbed.train()
    for step in (4, 6):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"checkpoint-6, .*optimizer.pt.*checkpoint-2"):
        build(tmp_path, **SAVED).train(resume_from_checkpoint=True)
    resumed = build(tmp_path, **SAVED)
    resumed.train(resume_from_checkpoint="last_whole")
    assert same_weights(resumed, undisturbed)
    assert steps(tmp_path) == [6, 4, 2]
    assert not any(map(find_damage, list_checkpoints(tmp_path)))
    assert (tmp_path / "_damaged-checkpoint-6" / "optimizer.pt").read_bytes() == b"half"


@pytest.mark.parametrize("name", ["distillation", "theseus"])
@pytest.mark.parametrize(
    ("accumulation", "strategy", "saved"),
    [(1, "steps", (3, 5, 7)), (2, "steps", (1, 2, 3)), (1, "epoch", (5,)), (2, "epoch", (2, 4))],
)
def test_a_run_over_several_passes_of_a_stream_goes_on_bit_equal(
    name, accumulation, strategy, saved, tmp_path
):
    # Five batches a pass: of two micro-batches a step the last one is left out.
    stream = tiny_dataset(20).to_iterable_dataset().shuffle(seed=3, buffer_size=20)
    settings = {"max_steps": 8, "save_strategy": strategy, "save_steps": 1}
    settings |= {"eval_strategy": "epoch", "gradient_accumulation_steps": accumulation}
    whole = build(tmp_path / "whole", TRAINER_ROWS[name], train_dataset=stream, **settings)
    whole.train()
    for step in saved:
        resumed = build(tmp_path / str(step), TRAINER_ROWS[name], train_dataset=stream, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert same_weights(resumed, whole)
        assert evaluations(resumed) == evaluations(whole)  # each pass ends once


def test_a_stream_is_resumed_in_its_pass_when_more_steps_are_asked_for_twice(tmp_path):
    stream = tiny_dataset(20).to_iterable_dataset().shuffle(seed=3, buffer_size=20)
    settings = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 1}
    settings |= {"train_dataset": stream, "lr_scheduler_type": "constant"}
    build(tmp_path, max_steps=6, **settings).train()
    for total in (9, 12):
        resumed = build(tmp_path, max_steps=total, **settings)
        resumed.train(resume_from_checkpoint="last")
    whole = build(tmp_path / "whole", max_steps=12, **settings)
    whole.train()
    assert same_weights(resumed, whole)


def test_a_resumed_run_says_what_was_set_up_otherwise(tmp_path, caplog):
    build(tmp_path, max_steps=2, **SAVED).train()
    with caplog.at_level("WARNING", "kdnlp"):
        build(tmp_path, max_steps=3, **SAVED).train(resume_from_checkpoint="last")
        assert "was set up otherwise" not in caplog.text
        changed = {"seed": 4, "per_device_train_batch_size": 2}
        again = build(tmp_path, max_steps=4, **changed, **SAVED)
        again.train(resume_from_checkpoint="last")
    assert "seed (was 3, is 4)" in caplog.text
    assert "per_device_train_batch_size (was 4, is 2)" in caplog.text


# The folder.


def test_a_folder_in_which_another_process_trains_is_refused_and_free_when_that_ends(tmp_path):
    with open(tmp_path / "_run.lock", "w") as other:
        other.write("process 7 on a node")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        trainer = build(tmp_path, max_steps=1)
        with pytest.raises(ValueError, match="in use by process 7 on a node"):
            trainer.train()
    trainer.train()
    assert not (tmp_path / "_run.lock").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, mounted):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"):
        build(tmp_path / "file" / "run").train()
    folder = mounted("ro")
    for path in (folder, folder / "run"):
        with pytest.raises(OSError, match=r"cannot be written \(.*[Rr]ead-only"):
            build(path).train()


def test_a_disk_that_cannot_take_the_model_is_refused_before_the_first_step(mounted):
    with pytest.raises(OSError, match="All training would be lost at its end"):
        build(mounted("size=16k")).train()


def test_a_disk_that_fills_up_leaves_the_checkpoints_before_and_nothing_half_written(mounted):
    folder = mounted("size=64m")
    trainer = build(folder, **SAVED)

    class Fill(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                (folder / "ballast").write_bytes(bytes(shutil.disk_usage(folder).free - 100_000))

    trainer.add_callback(Fill())
    with pytest.raises(OSError, match=r"checkpoint-4 could not be written .*before are whole"):
        trainer.train()
    assert find_damage(folder / "checkpoint-2") == ""
    assert {path.name for path in folder.iterdir()} == {"ballast", "checkpoint-2"}
    (folder / "ballast").unlink()
    resumed = build(folder, **SAVED)
    resumed.train(resume_from_checkpoint="last")
    assert steps(folder) == [6, 4, 2]


def test_a_run_holds_its_folder_while_it_trains_and_within_a_command_that_does(tmp_path):
    held = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            with open(tmp_path / "run" / "_run.lock") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(lock.read())

    with output_dir_held(str(tmp_path / "run")):
        build(tmp_path / "run", callbacks=[Look()], max_steps=1).train()
        assert held == [f"process {os.getpid()} on {socket.gethostname()}"]
        assert (tmp_path / "run" / "_run.lock").exists()
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer whose folder holds the model of two shards that an earlier run left."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = build(folder, max_steps=1)
    trainer.train()
    tiny_model("bert", 2, seed=5, **NO_DROPOUT).save_pretrained(folder, max_shard_size="30KB")
    return trainer


def test_a_model_that_cannot_be_written_leaves_the_one_before_whole(trained, monkeypatch):
    folder = Path(trained.args.output_dir)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.trainer.torch.save", full)
    with pytest.raises(OSError, match=r"could not be written .*No space left"):
        trained.save_model()
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert not (folder / "_partial").exists()


def test_an_error_that_is_not_the_disk_s_does_not_blame_it(trained, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("transformers.trainer.torch.save", fail)
    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        trained.save_model()


def test_the_shards_of_an_earlier_model_do_not_outlive_it(trained):
    """Where the new model had the shards, transformers would load the one file of the old."""
    folder = Path(trained.args.output_dir)
    assert len(list(folder.glob("model-*"))) > 1
    trained.save_model()
    weights = [path.name for path in folder.glob("model*")]
    assert weights == ["model.safetensors"]


def test_the_report_of_other_weights_does_not_outlive_them(trained):
    folder = Path(trained.args.output_dir)
    trained.save_model()
    own = {"README.md": "mine", "report.json": "{}", "report.md": "", "report.png": "", "notes": ""}
    for name, text in own.items():
        (folder / name).write_text(text)
    trained.save_model()  # the same weights: it is still theirs
    assert own.keys() <= {path.name for path in folder.iterdir()}
    tiny_model("bert", 2, seed=6).save_pretrained(folder)
    trained.save_model()
    assert own.keys() & {path.name for path in folder.iterdir()} == {"notes"}
    (folder / "report.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"half")
    trained.save_model()  # what was damaged is replaced
    assert not (folder / "report.json").exists()
    (folder / "README.md").write_text("of a folder without a report")
    tiny_model("bert", 2, seed=6).save_pretrained(folder)
    trained.save_model()
    assert (folder / "README.md").exists()


class TellAtTheEnd(TrainerCallback):
    """The signal of a batch system during the evaluation that ends a run."""

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_does_not_lose_the_run(tmp_path):
    settings = {"eval_strategy": "epoch", "max_steps": 4}
    told = build(tmp_path, callbacks=[TellAtTheEnd()], **settings)
    with pytest.raises(Preempted):
        told.train()
    assert steps(tmp_path) == [4]
    resumed = build(tmp_path, **settings)
    resumed.train(resume_from_checkpoint="last")
    assert same_weights(told, resumed)


def test_theseus_that_saves_the_best_alone_is_stopped_on_its_ramp(tmp_path):
    row = TRAINER_ROWS["theseus"]
    best = {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "steps"}
    with pytest.raises(Preempted):
        build(tmp_path, row, [Tell(1)], eval_steps=1, **best).train()
    assert steps(tmp_path) == [2]


class Refuse(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        raise ValueError("another setting")


def test_overwriting_is_not_forgotten_after_a_start_that_was_refused(tmp_path):
    build(tmp_path, **SAVED).train()
    refuse = Refuse()
    trainer = build(tmp_path, callbacks=[refuse], overwrite_output_dir=True, max_steps=4, **SAVED)
    with pytest.raises(ValueError, match="another setting"):
        trainer.train()
    assert steps(tmp_path) == [6, 4, 2]
    trainer.remove_callback(refuse)
    trainer.train()
    assert steps(tmp_path) == [4, 2]
