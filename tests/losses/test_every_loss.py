"""What holds for every loss of the table, on the real outputs of two models."""

import inspect

import pytest
import torch
from settings import LOSS_ROWS, NO_DROPOUT, tiny_batch, tiny_model

from kdnlp.losses import LOSSES, DistillationLoss
from kdnlp.models.heads import TASK_KINDS, UNITS, as_items
from kdnlp.trainers.intermediate import IntermediateOutputs

TASK = "single_label_classification"


def run(loss, student, teacher, batch):
    """The loss of one batch, as the trainer computes it."""
    loss.prepare(student.config, teacher.config if loss.needs_teacher else None, TASK)
    watched = IntermediateOutputs([loss], student, teacher if loss.needs_teacher else None)
    try:
        outputs, layers = watched.of_student(lambda: student(**batch))
        theirs = {}
        if loss.needs_teacher:
            with torch.no_grad():
                answers, kept = watched.of_teacher(lambda: teacher(**batch))
            theirs, _ = as_items({**answers, **kept}, batch, TASK)
        ours, batch = as_items({**outputs, **layers}, batch, TASK)
        return loss(ours, theirs, batch)
    finally:
        watched.remove()


def models(width=16, heads=2):
    teacher = tiny_model("bert", 4, seed=1, **NO_DROPOUT)
    shape = {"hidden_size": width, "num_attention_heads": heads}
    return tiny_model("bert", 2, seed=2, **NO_DROPOUT, **shape), teacher


def padded_batch():
    batch = tiny_batch(4)
    batch["attention_mask"][0, 5:] = 0
    batch["attention_mask"][1, 2:] = 0
    return batch


def test_every_loss_is_driven_by_the_suite():
    assert set(LOSS_ROWS) == set(LOSSES)
    for name, row in LOSS_ROWS.items():
        assert type(row.build()) is LOSSES[name]


@pytest.mark.parametrize("name", LOSSES)
def test_a_card_can_cite_every_loss(name):
    citation = LOSSES[name].citation
    assert citation.startswith("@")
    assert citation.count("{") == citation.count("}") > 0
    missing = [field for field in ("title", "author", "year") if f"{field}={{" not in citation]
    assert not missing, f"{LOSSES[name].__name__}.citation lacks {missing}"


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_says_what_it_is_for(name):
    loss = LOSS_ROWS[name].build()
    assert loss.tasks <= set(TASK_KINDS)
    assert loss.tasks
    assert loss.unit in UNITS


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_one_finite_number_that_teaches_the_student(name):
    student, teacher = models()
    value = run(LOSS_ROWS[name].build(), student, teacher, padded_batch())
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    assert value > 0
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 1e-6
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_what_stands_in_the_padding_changes_nothing(name):
    values = []
    for token in (7, 31):
        student, teacher = models()
        torch.manual_seed(0)
        batch = padded_batch()
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, token)
        values.append(run(LOSS_ROWS[name].build(), student, teacher, batch))
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_of_another_width_learns_or_is_told_why_not(name):
    student, teacher = models(width=24, heads=3)
    loss = LOSS_ROWS[name].build()
    if LOSS_ROWS[name].same_heads:
        with pytest.raises(ValueError, match=r"heads.*RelationLoss"):
            run(loss, student, teacher, padded_batch())
        return
    value = run(loss, student, teacher, padded_batch())
    value.backward()
    assert torch.isfinite(value)
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_one_token_a_row_has_a_finite_loss_and_finite_gradients(name):
    student, teacher = models()
    batch = tiny_batch(3, length=1)
    value = run(LOSS_ROWS[name].build(), student, teacher, batch)
    value.backward()
    assert torch.isfinite(value)
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("task", TASK_KINDS)
def test_a_task_for_which_it_makes_no_sense_is_refused_before_training(name, task):
    student, teacher = models()
    loss = LOSS_ROWS[name].build()
    partner = teacher.config if loss.needs_teacher else None
    if task in loss.tasks:
        loss.prepare(student.config, partner, task)
        assert loss.task == task
    else:
        with pytest.raises(
            ValueError, match=rf"{type(loss).__name__} teaches .*got a task.*{task}"
        ):
            loss.prepare(student.config, partner, task)


@pytest.mark.parametrize("name", LOSSES)
def test_the_settings_rebuild_every_loss(name):
    loss = LOSS_ROWS[name].build()
    assert LOSSES[name](**loss.config()).config() == loss.config()
    arguments = set(inspect.signature(LOSSES[name].__init__).parameters) - {
        "self",
        "args",
        "kwargs",
    }
    assert arguments == set(loss.config()), "config() must have every argument of __init__"


@pytest.mark.parametrize("name", LOSSES)
def test_the_tasks_of_a_loss_are_a_decision(name):
    """The default, all of them, would let a softmax train on labels that exclude nothing."""
    decided = [c for c in LOSSES[name].__mro__[:-1] if c is not DistillationLoss]
    assert any("tasks" in vars(c) for c in decided), f"set {LOSSES[name].__name__}.tasks"
