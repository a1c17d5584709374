"""Two gloo processes through `accelerate launch` train exactly what one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from settings import LOSS_ROWS, SENSIBLE_CELLS, TRAINER_ROWS, build_cell, build_trainer

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).parent / "run_rows.py"


def launch(*arguments, processes=2):
    """Run a command under `accelerate launch` on this machine's CPUs.

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


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(str(SCRIPT), str(folder), "4")
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", TRAINER_ROWS)
def test_two_processes_of_4_follow_one_process_of_8(name, two_processes, tmp_path):
    if TRAINER_ROWS[name].of_the_batch:
        pytest.skip("the loss relates the items of a batch to each other")
    torch.manual_seed(11)
    one = build_trainer(
        TRAINER_ROWS[name],
        tmp_path,
        per_device_train_batch_size=8,
        eval_strategy="steps",
        eval_steps=3,
    )
    one.train()
    for key in ("loss", "grad_norm", "loss_task", "eval_loss", "replacing_rate"):
        expected = [entry[key] for entry in one.state.log_history if key in entry]
        got = [entry[key] for entry in two_processes[name]["history"] if key in entry]
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize("name", TRAINER_ROWS)
def test_the_ranks_hold_the_same_weights_at_the_end(name, two_processes):
    first, second = two_processes[name]["checksums"]
    assert first == second
    assert two_processes[name]["ddp"] == "DistributedDataParallel"


@pytest.mark.parametrize(("loss", "task"), SENSIBLE_CELLS)
def test_every_loss_on_every_task_is_the_same_on_two_processes(loss, task, two_processes, tmp_path):
    got = two_processes[f"{loss}-{task}"]
    first, second = got["checksums"]
    assert first == second
    if LOSS_ROWS[loss].of_the_batch:
        return
    torch.manual_seed(11)
    one = build_cell(loss, task, tmp_path, per_device_train_batch_size=8)
    one.train()
    for key in ("loss", "grad_norm", "loss_task", "loss_loss"):
        expected = [entry[key] for entry in one.state.log_history if key in entry]
        assert len(expected) == 3
        values = [entry[key] for entry in got["history"] if key in entry]
        assert values == pytest.approx(expected, rel=1e-3, abs=1e-6), key


def test_blocks_that_no_loss_reaches_do_not_stop_two_processes(two_processes):
    first, second = two_processes["unlabelled"]["checksums"]
    assert first == second
