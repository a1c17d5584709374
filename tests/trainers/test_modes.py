"""Every trainer in every mode: it trains, and goes on from a checkpoint bit for bit; or refuses."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from modes import MODES, TRAINERS, what_runs_where
from settings import TRAINER_ROWS, build_trainer, tiny_dataset

TABLE = Path(__file__).parents[2] / "docs" / "what-runs-where.md"


def marks(mode):
    return [pytest.mark.slow] * mode.slow + [pytest.mark.gpu] * mode.needs_gpu


RUN_HERE = {name: mode for name, mode in MODES.items() if not mode.shown_by}
CELLS = [
    pytest.param(mode, row, id=f"{name}-{row}", marks=marks(mode))
    for name, mode in RUN_HERE.items()
    for row in TRAINERS.values()
    if row not in mode.refused
]
REFUSED = [
    pytest.param(name, row, id=f"{name}-{row}")
    for name, mode in RUN_HERE.items()
    for row in mode.refused
]


def build(row, folder, mode=None, **more):
    settings = {} if mode is None else mode.own.get(row, mode.settings)
    options = {}
    if mode is not None and mode.streams:
        options["train_dataset"] = tiny_dataset(padded=True).to_iterable_dataset()
    if mode is not None and mode.needs_gpu:
        settings = {**settings, "use_cpu": not torch.cuda.is_available()}
    torch.manual_seed(11)
    return build_trainer(
        TRAINER_ROWS[row],
        folder,
        trainer_options={"train_dataset": tiny_dataset(padded=True), **options},
        **{"max_steps": 4, **settings, **more},
    )


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}


@pytest.mark.parametrize(("mode", "row"), CELLS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inside the compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # at which it looks
def test_a_run_in_a_mode_learns_what_the_plain_run_does_and_resumes_bit_equal(mode, row, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 2}
    whole = build(row, tmp_path / "whole", mode, **saves)
    before = weights(whole)
    whole.train()
    after = weights(whole)
    assert any(not tensor.equal(before[name]) for name, tensor in after.items())
    resumed = build(row, tmp_path / "again", mode, **saves)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(tensor.equal(after[name]) for name, tensor in weights(resumed).items())
    if mode.close is not None:
        plain = build(row, tmp_path / "plain")
        plain.train()
        first, expected = (t.state.log_history[0]["loss"] for t in (whole, plain))
        assert first == pytest.approx(expected, rel=mode.close)


def test_half_precision_is_really_used(tmp_path):
    trainer = build("theseus", tmp_path, MODES["bf16"])
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"


@pytest.mark.parametrize("row", TRAINERS.values())
def test_a_half_precision_that_would_silently_be_float32_is_refused(row, tmp_path):
    with pytest.raises(ValueError, match=r"fp16 was asked for on cpu.*Use bf16=True"):
        build(row, tmp_path, MODES["fp16"])


@pytest.mark.parametrize(("name", "row"), REFUSED)
def test_a_mode_that_would_train_wrongly_is_refused_before_a_step(name, row, tmp_path):
    with pytest.raises((ValueError, TypeError), match=MODES[name].refused[row][0]):
        build(row, tmp_path, MODES[name]).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_modes_that_are_shown_elsewhere_are_run_there(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "distributed"), *sys.path])
    launched = importlib.import_module("run_rows")
    rows = set(TRAINERS.values())
    assert rows <= set(launched.UNLIKE_ROWS)  # DDP
    assert rows <= set(launched.SHARDED)  # FSDP2
    assert rows <= set(TRAINER_ROWS)  # resume, and ZeRO refused


def test_the_table_says_what_the_tests_run():
    assert what_runs_where() in TABLE.read_text(encoding="utf-8")
