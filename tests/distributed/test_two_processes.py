"""Gloo processes through `accelerate launch` train exactly what one process trains."""

import pytest
import torch
from run_rows import UNLIKE_ROWS
from settings import FEW_CELLS, LOSS_ROWS, SENSIBLE_CELLS, TRAINER_ROWS, build_cell, few_of

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


ROWS = pytest.mark.parametrize(("name", "part"), few_of(TRAINER_ROWS, UNLIKE_ROWS))


@ROWS
def test_two_processes_of_4_follow_one_process_of_8(name, part, launched, follows_one_process):
    follows_one_process(name, launched(part)[1][name]["history"])


@ROWS
def test_the_ranks_hold_the_same_weights_at_the_end(name, part, launched):
    got = launched(part)[1][name]
    first, second = got["checksums"]
    assert first == second
    assert got["ddp"] == "DistributedDataParallel"


@pytest.mark.slow
@pytest.mark.parametrize("name", UNLIKE_ROWS)
def test_four_processes_of_2_follow_one_process_of_8(name, launched, follows_one_process):
    got = launched("rows", processes=4)[1][name]
    assert got["checksums"] == [got["checksums"][0]] * 4
    follows_one_process(name, got["history"])


@pytest.mark.parametrize(("cell", "part"), few_of(SENSIBLE_CELLS, FEW_CELLS))
def test_a_loss_on_a_task_is_the_same_on_two_processes(
    cell, part, launched, tmp_path, same_history
):
    loss, task = cell
    got = launched(part)[1][f"{loss}-{task}"]
    first, second = got["checksums"]
    assert first == second
    if LOSS_ROWS[loss].of_the_batch:
        return
    torch.manual_seed(11)
    one = build_cell(loss, task, tmp_path, per_device_train_batch_size=8)
    one.train()
    assert sum("loss_loss" in entry for entry in one.state.log_history) == 3
    keys = ("loss", "grad_norm", "loss_task", "loss_loss")
    same_history(got["history"], one.state.log_history, keys)


def test_blocks_that_no_loss_reaches_do_not_stop_two_processes(launched):
    first, second = launched("few")[1]["unlabelled"]["checksums"]
    assert first == second


def test_fsdp_on_cpus_is_refused_and_not_silently_ddp(launched):
    said = launched("few")[1]["fsdp"]
    assert "FSDP was asked for" in said
    assert "2 process(es) on cpu" in said
