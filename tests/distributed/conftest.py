"""Starting several processes on this machine's CPUs, and what they must agree on with one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from settings import TRAINER_ROWS, build_trainer

SCRIPT = Path(__file__).parent / "run_rows.py"


def start(*arguments, processes=2):
    """Run a command under `accelerate launch`, and wait for it.

    `--cpu --num_processes 2` would start one process: accelerate leaves several CPU processes to
    MPI. `--multi_gpu` starts them through torchrun, and the variable keeps them on the CPU.
    """
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
        "--num_cpu_threads_per_process=1", f"--num_processes={processes}", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


@pytest.fixture(scope="session")
def launch():
    return start


@pytest.fixture(scope="session")
def launched(tmp_path_factory):
    """The folder and the results of a part of `run_rows.py`, which is run once."""
    runs = {}

    def results_of(part, processes=2):
        if (part, processes) not in runs:
            folder = tmp_path_factory.mktemp(part)
            start(str(SCRIPT), str(folder), part, processes=processes)
            runs[part, processes] = folder, json.loads((folder / "results.json").read_text())
        return runs[part, processes]

    return results_of


@pytest.fixture
def follows_one_process(tmp_path):
    """A check that processes which share 8 rows a step were where one process of 8 is."""

    def check(name, history):
        if TRAINER_ROWS[name].of_the_batch:
            pytest.skip("the loss relates the items of a batch to each other")
        torch.manual_seed(11)
        settings = {"eval_strategy": "steps", "eval_steps": 3}
        one = build_trainer(TRAINER_ROWS[name], tmp_path, per_device_train_batch_size=8, **settings)
        one.train()
        keys = ("loss", "grad_norm", "loss_task", "eval_loss", "replacing_rate")
        assert_same(history, one.state.log_history, keys)

    return check


@pytest.fixture(scope="session")
def same_history():
    return assert_same


def assert_same(history, expected, keys):
    """Two logs hold the same values; a value that neither holds is passed over."""
    for key in keys:
        got = [entry[key] for entry in history if key in entry]
        wanted = [entry[key] for entry in expected if key in entry]
        assert got == pytest.approx(wanted, rel=1e-3, abs=1e-6), key
