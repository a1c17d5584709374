"""Batches of like lengths are the default, and change nothing that must stay equal."""

import pytest
import torch
from settings import NO_DROPOUT, TrainerRow, build_trainer, pad_rows, tiny_dataset, tiny_model

from kdnlp.data.length_grouping import LengthGroupedSampler
from kdnlp.models.student import build_student

ROW = TrainerRow("CompressionTrainer", padded=True)
ROWS = tiny_dataset(padded=True)
TRIMMED = ROWS.map(
    lambda row: {name: row[name][: sum(row["attention_mask"])] for name in row if name != "labels"}
)


def finetune(folder, resume=None, dropout=0.1, rows=TRIMMED, **settings):
    torch.manual_seed(0)
    rates = dict.fromkeys(NO_DROPOUT, dropout)
    student = build_student(tiny_model("bert", 4, **rates), 2)
    trainer = build_trainer(
        ROW,
        folder,
        model=student,
        trainer_options={"train_dataset": rows, "data_collator": pad_rows},
        max_steps=12,
        **settings,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_rows_of_like_lengths_are_the_default(tmp_path):
    trainer = finetune(tmp_path)
    assert isinstance(trainer._get_train_sampler(), LengthGroupedSampler)


@pytest.mark.parametrize("step", [4, 8, 10])
def test_a_run_resumed_in_any_epoch_sees_the_rows_that_it_would_have_seen(step, tmp_path):
    whole = finetune(tmp_path / "whole", save_strategy="steps", save_steps=2)
    resumed = finetune(tmp_path / "resumed", str(tmp_path / "whole" / f"checkpoint-{step}"))
    ours, theirs = whole.student.state_dict(), resumed.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_accumulation_takes_the_same_rows_in_a_step(tmp_path):
    one = finetune(tmp_path / "one", dropout=0.0)
    two = finetune(
        tmp_path / "two",
        dropout=0.0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_rows_of_unknown_length_are_drawn_at_random(tmp_path):
    trainer = finetune(tmp_path, rows=[dict(row) for row in TRIMMED])
    assert isinstance(trainer._get_train_sampler(), torch.utils.data.RandomSampler)
