"""A real process that is killed and started again ends with the same bytes as one that was not."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "run_killed.py"
ROWS = (
    "distillation",
    "distillation-parameters",
    "theseus",
    "theseus-unfreeze",
    "theseus-logits",
)
ROW = pytest.mark.parametrize("name", ROWS)


def start(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments), *ROWS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, status):
    """Wait for the script; the process of every row must have ended with `status`."""
    output, errors = process.communicate(timeout=280)
    ends = [line for line in output.splitlines() if " ended with " in line]
    assert ends == [f"{name} ended with {status}" for name in ROWS], errors[-5000:]


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of runs that went through, and one of runs that were killed and started again."""
    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    undisturbed = start(whole)
    finish(start(killed, "--kill"), -signal.SIGKILL)
    for name in ROWS:
        assert checkpoints(killed / name) == ["checkpoint-2", "checkpoint-4"]
        assert not (killed / name / "model.safetensors").exists()
    finish(start(killed), 0)
    finish(undisturbed, 0)
    return whole, killed


@ROW
def test_a_run_killed_by_the_system_ends_with_the_same_bytes(name, folders):
    whole, killed = (folder / name / "model.safetensors" for folder in folders)
    assert whole.read_bytes() == killed.read_bytes()
    first, last = (load_file(whole.parent / f"checkpoint-{i}" / whole.name) for i in (2, 8))
    assert any(not first[key].equal(last[key]) for key in first)


@ROW
def test_its_last_checkpoint_is_the_same_too_with_the_parameters_of_losses(name, folders):
    paths = [folder / name / "checkpoint-8" / "model.safetensors" for folder in folders]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    has_parameters = any(key.startswith("distillation_losses.") for key in load_file(paths[0]))
    assert has_parameters == (name == "distillation-parameters")
    assert checkpoints(paths[0].parent.parent) == checkpoints(paths[1].parent.parent)
