"""NaN, infinity and labels out of range stop a run before it saves them, and say where they are."""

import math

import datasets
import pytest
import torch
from settings import (
    NO_DROPOUT,
    TRAINER_ROWS,
    TrainerRow,
    build_trainer,
    tiny_dataset,
    tiny_model,
)
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from kdnlp.losses import LogitsLoss

BOTH = pytest.mark.parametrize("name", ["distillation", "theseus-logits"])
WAITS = pytest.mark.parametrize("waits", [False, True], ids=["cpu", "as on a GPU"])


class BreakingLoss(LogitsLoss):
    """A loss that is no number from its fifth batch on."""

    calls = 0

    def forward(self, student, teacher, batch):
        self.calls += 1
        value = super().forward(student, teacher, batch)
        return value * math.nan if self.calls > 4 else value


class SteepLoss(LogitsLoss):
    """A loss that is 0 with an infinite slope."""

    def forward(self, student, teacher, batch):
        zero = student["logits"].sum() * 0
        return (zero * zero).sqrt()


class Break(TrainerCallback):
    """Lets the teacher answer NaN for some rows of a batch, from step 3 on."""

    def __init__(self, rows):
        self.rows = rows

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.trainer.partner.register_forward_hook(self.spoil)

    def spoil(self, module, given, outputs):
        outputs.logits[self.rows] = math.inf


def build(name, folder, waits=False, options=None, losses=None, **overrides):
    row = TRAINER_ROWS[name]
    if losses is not None:
        row = TrainerRow(row.trainer, losses=losses)
    callbacks = (options or {}).get("callbacks", [])
    trainer = build_trainer(
        row, folder, trainer_options=options, save_strategy="steps", save_steps=2, **overrides
    )
    for callback in callbacks:
        callback.trainer = trainer
    trainer.finite.reads_steps = not waits
    return trainer


def assert_resumable(trainer, name, folder):
    """The run's last checkpoint is whole, finite, and a new trainer goes on from it."""
    last = get_last_checkpoint(str(folder))
    assert int(last.rpartition("-")[2]) <= 4
    again = build(name, folder)
    again.train(resume_from_checkpoint=last)
    assert again.state.global_step == 6
    assert all(tensor.isfinite().all() for tensor in again.student.state_dict().values())


@BOTH
@WAITS
def test_a_teacher_that_answers_infinity_is_named_with_its_rows(name, waits, tmp_path):
    trainer = build(name, tmp_path, waits, {"callbacks": [Break([1, 3])]}, logging_steps=50)
    words = (
        r"Optimizer step 4, micro-batch 1 on process 0, rows 1, 3 of it: expected finite teacher "
        r"logits, got NaN or infinity"
    )
    with pytest.raises(FloatingPointError, match=words):
        trainer.train()
    # A GPU is asked before the checkpoint of step 4, a CPU at once.
    assert trainer.state.global_step == (4 if waits else 3)
    assert get_last_checkpoint(str(tmp_path)).endswith("checkpoint-2")
    assert_resumable(trainer, name, tmp_path)


@BOTH
@WAITS
def test_a_loss_that_is_no_number_is_named(name, waits, tmp_path):
    losses = lambda: {"fine": LogitsLoss(), "sick": BreakingLoss()}  # noqa: E731
    trainer = build(name, tmp_path, waits, losses=losses, logging_steps=50)
    words = r"Optimizer step 5, .*rows 0, 1, 2, 3 of it: expected the loss 'sick' to be finite"
    with pytest.raises(FloatingPointError, match=words):
        trainer.train()
    assert get_last_checkpoint(str(tmp_path)).endswith("checkpoint-4")
    assert trainer.state.global_step == (6 if waits else 4)


@BOTH
@WAITS
def test_a_gradient_that_is_no_number_is_named(name, waits, tmp_path):
    losses = lambda: {"steep": SteepLoss()}  # noqa: E731
    trainer = build(name, tmp_path, waits, losses=losses)
    with pytest.raises(FloatingPointError, match=r"Optimizer step 1: expected finite gradient"):
        trainer.train()
    assert not list(tmp_path.rglob("*.safetensors"))
    finite = all(tensor.isfinite().all() for tensor in trainer.student.state_dict().values())
    assert finite == (not waits)


def test_what_an_overflow_does_to_the_gradient_under_a_scaler_is_no_fault(tmp_path):
    trainer = build("distillation", tmp_path)
    trainer.accelerator.scaler = object()
    trainer.finite.watch_gradient(torch.tensor(math.inf))
    trainer.accelerator.scaler = None
    with pytest.raises(FloatingPointError, match="gradient"):
        trainer.finite.watch_gradient(torch.tensor(math.inf))


def test_nothing_is_evaluated_or_saved_at_the_end_after_a_number_that_is_none(tmp_path):
    losses = lambda: {"sick": BreakingLoss()}  # noqa: E731
    for folder, overrides in (
        ("evaluated", {"eval_strategy": "steps", "eval_steps": 5}),
        ("ended", {}),
        ("logged", {"logging_steps": 5}),
    ):
        options = {"logging_steps": 50, "save_strategy": "no", "max_steps": 5, **overrides}
        row = TrainerRow("DistillationTrainer", losses=losses)
        trainer = build_trainer(row, tmp_path / folder, **options)
        trainer.finite.reads_steps = False
        with pytest.raises(FloatingPointError, match="Optimizer step 5"):
            trainer.train()
        assert not trainer.state.log_history


def test_a_cached_teacher_s_rows_are_named_by_their_numbers_in_the_dataset(tmp_path):
    trainer = build("distillation-cached", tmp_path)
    seen = []
    original = trainer.finite.watch_losses

    def watch(losses, logits, teacher, numbers):
        seen.extend(numbers.tolist())
        teacher = teacher.clone()
        teacher[2] = math.nan
        original(losses, logits, teacher, numbers)

    trainer.finite.watch_losses = watch
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert f"rows 2 of it (rows {seen[2]} of the dataset)" in str(error.value)


def stream(labels):
    rows = tiny_dataset(len(labels)).remove_columns("labels").add_column("labels", labels)
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


@BOTH
@WAITS
def test_a_stream_s_label_without_an_output_stops_the_run_and_not_the_device(name, waits, tmp_path):
    labels = [0, 1] * 16
    labels[17] = 2
    options = {"train_dataset": stream(labels)}
    trainer = build(name, tmp_path, waits, options, gradient_accumulation_steps=2, logging_steps=50)
    words = r"Optimizer step 3, micro-batch 1 on process 0, rows 1 of it: expected labels"
    with pytest.raises(ValueError, match=words):
        trainer.train()
    assert get_last_checkpoint(str(tmp_path)).endswith("checkpoint-2")


def test_a_run_after_one_that_failed_starts_with_a_clean_record(tmp_path):
    trainer = build("distillation", tmp_path, losses=lambda: {"sick": BreakingLoss()}, max_steps=5)
    trainer.finite.reads_steps = False
    with pytest.raises(FloatingPointError):
        trainer.train()
    trainer.losses["sick"].calls = -10
    trainer.student.load_state_dict(tiny_model("bert", 2, **NO_DROPOUT).state_dict())
    trainer.optimizer = None
    trainer.train()
    assert trainer.state.global_step == 5
