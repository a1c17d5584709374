"""A damaged checkpoint is never picked up silently: what is wrong with it, and which is whole."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from whole_checkpoint import write_checkpoint

from kdnlp.checkpoints import check_checkpoint, find_checkpoint, find_damage, list_checkpoints


def cut(name, share=0.5):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def flip_inside(name):
    """Change a byte of what is stored, and no byte of how it is stored."""

    def damage(folder):
        stored = torch.ones(8).numpy().tobytes()
        content = (folder / name).read_bytes()
        assert content.count(stored) == 1
        (folder / name).write_bytes(content.replace(stored, stored[:5] + b"\x01" + stored[6:]))

    return damage


def zeros(name):
    """What a machine without power leaves of a file whose name came to the disk before it."""
    return lambda folder: (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def without(name):
    return lambda folder: (folder / name).unlink()


def replaced(name, text):
    return lambda folder: (folder / name).write_text(text)


def in_shards(then):
    """Two shards and their index in place of one file."""

    def damage(folder):
        (folder / "model.safetensors").unlink()
        for i in (1, 2):
            save_file({f"w{i}": torch.ones(8)}, folder / f"model-0000{i}-of-00002.safetensors")
        weights = {f"w{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weights}))
        then(folder)

    return damage


SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
DAMAGES = {
    "weights-cut": (cut("model.safetensors"), "model.safetensors is cut off"),
    "weights-cut-by-a-byte": (cut("model.safetensors", 0.99), "model.safetensors is cut off"),
    "weights-zero": (zeros("model.safetensors"), "model.safetensors is cut off"),
    "weights-empty": (cut("model.safetensors", 0), "model.safetensors is cut off"),
    "weights-missing": (without("model.safetensors"), "model.safetensors is missing"),
    "shard-cut": (in_shards(cut(SECOND)), f"{SECOND} is cut off"),
    "shard-missing": (in_shards(without(SECOND)), f"{SECOND} is missing"),
    "index-cut": (in_shards(cut(INDEX)), f"{INDEX} is no index"),
    "state-cut": (cut("trainer_state.json"), "trainer_state.json is no trainer state"),
    "state-other": (replaced("trainer_state.json", "[]"), "trainer_state.json is no trainer state"),
    "state-missing": (without("trainer_state.json"), "trainer_state.json, which is written last"),
    "optimizer-cut": (cut("optimizer.pt"), "optimizer.pt is cut off"),
    "optimizer-zero": (zeros("optimizer.pt"), "optimizer.pt is cut off"),
    "optimizer-flipped": (flip_inside("optimizer.pt"), "optimizer.pt is damaged .the checksum"),
    "optimizer-missing": (without("optimizer.pt"), "save_only_model=True leaves it out"),
    "scheduler-flipped": (flip_inside("scheduler.pt"), "scheduler.pt is damaged"),
    "scheduler-missing": (without("scheduler.pt"), "scheduler.pt is missing"),
    "random-cut": (cut("rng_state.pth"), "rng_state.pth is cut off"),
    "random-missing": (without("rng_state.pth"), "rng_state.pth is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_its_name_and_the_one_before(name, tmp_path):
    damage, message = DAMAGES[name]
    whole, damaged = (write_checkpoint(tmp_path / f"checkpoint-{i}") for i in (4, 12))
    assert find_checkpoint("last", str(tmp_path)) == str(damaged)
    damage(damaged)
    with pytest.raises(ValueError, match=rf"checkpoint-12, .*: .*{message}.*takes .*checkpoint-4"):
        check_checkpoint(damaged)
    with pytest.raises(ValueError, match="checkpoint-12"):
        find_checkpoint(str(damaged), str(tmp_path))
    assert find_checkpoint("last_whole", str(tmp_path)) == str(whole)
    if name == "state-missing":
        assert find_checkpoint("last", str(tmp_path)) == str(whole)
    else:
        with pytest.raises(ValueError, match="last_whole takes"):
            find_checkpoint("last", str(tmp_path))


def test_a_sharded_checkpoint_and_one_of_several_processes_are_whole(tmp_path):
    in_shards(lambda folder: None)(write_checkpoint(tmp_path / "checkpoint-1", processes=2))
    assert find_damage(tmp_path / "checkpoint-1") == ""
    (tmp_path / "checkpoint-1" / "rng_state_1.pth").unlink()
    assert find_damage(tmp_path / "checkpoint-1") == "rng_state_1.pth is missing"


def test_no_damage_of_an_archive_escapes_as_another_error(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint-1")
    content = (folder / "optimizer.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        at = int(torch.randint(len(content), (1,), generator=generator))
        value = int(torch.randint(256, (1,), generator=generator))
        (folder / "optimizer.pt").write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
        assert isinstance(find_damage(folder), str)


def test_where_none_is_whole_the_error_says_so_and_last_whole_starts_anew(tmp_path):
    cut("optimizer.pt")(write_checkpoint(tmp_path / "checkpoint-3"))
    with pytest.raises(ValueError, match="None before it is whole; start anew"):
        find_checkpoint("last", str(tmp_path))
    assert find_checkpoint("last_whole", str(tmp_path)) is None


def test_a_folder_that_only_looks_like_a_checkpoint_is_none(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-3")
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "checkpoint-best-7")
    (tmp_path / "checkpoint-9").touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3"]


def test_a_named_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        find_checkpoint(str(tmp_path / "checkpoint-3"), str(tmp_path))
