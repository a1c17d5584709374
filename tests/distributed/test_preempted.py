"""A signal to one process stops all of them after the same step; a refusal reaches them all.

Where one stopped and another went on, that would wait for the first for ever.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdnlp.checkpoints import find_damage

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
SCRIPT = Path(__file__).parent / "run_preempted.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """How the processes of each run ended, the folder of all runs, and what they said."""
    folder = tmp_path_factory.mktemp("preempted")
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1]), folder, done.stderr[-20000:]


def test_a_folder_in_use_is_refused_on_every_process(runs):
    assert runs[0]["refused"] == [3, 3]


def test_a_signal_to_one_process_stops_both_with_one_whole_checkpoint(runs):
    ends, folder, said = runs
    assert (ends["told"], ends["both"]) == ([143, 143], [143, 143]), said
    (checkpoint,) = [name for name in ends["left"] if name.startswith("checkpoint-")]
    assert checkpoint == "checkpoint-4"
    assert not [name for name in ends["left"] if "partial" in name]
    assert (folder / "told" / checkpoint / "rng_state_1.pth").is_file()
    assert find_damage(folder / "told" / checkpoint) == ""


def test_the_two_go_on_and_end_with_the_bytes_of_an_undisturbed_run(runs):
    ends, folder, said = runs
    assert (ends["whole"], ends["resumed"]) == ([0, 0], [0, 0]), said
    ours, theirs = (folder / name / "model.safetensors" for name in ("told", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
