"""The losses on labels equal their formulas in numpy, and leave out what has no label."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, rel_entr, softmax
from settings import tiny_model
from transformers.utils import ModelOutput

from kdnlp.losses.answers import answer_cross_entropy
from kdnlp.losses.label_smoothing import LabelSmoothingLoss, smoothed_cross_entropy
from kdnlp.losses.teacher_free import TeacherFreeLoss, virtual_teacher_kl

LABEL_LOSSES = [LabelSmoothingLoss, TeacherFreeLoss]
FUNCTIONS = [smoothed_cross_entropy, virtual_teacher_kl]
# Items of token classification: (batch, length), some of them without a label.
LABELS = torch.tensor([[0, 2, -100, 1], [-100, 3, 1, -100]])
MASK = LABELS >= 0


def random_logits(shape=(2, 4, 4), seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(scale=2, size=shape))


def labelled(logits):
    """Logits and label of every item that counts."""
    return list(zip(logits[MASK].numpy(), LABELS[MASK].tolist(), strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_cross_entropy_equals_its_formula_over_labelled_items(smoothing):
    logits, expected = random_logits(), []
    for row, label in labelled(logits):
        target = np.full(4, smoothing / 4)
        target[label] += 1 - smoothing
        expected.append(-target @ log_softmax(row))
    got = smoothed_cross_entropy(logits, LABELS, smoothing, MASK).item()
    assert got == pytest.approx(np.mean(expected), rel=1e-10)


def test_smoothed_cross_entropy_is_the_one_that_torch_trains_with():
    logits = random_logits()
    expected = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), label_smoothing=0.1)
    got = LabelSmoothingLoss(0.1)(ModelOutput(logits=logits), None, {"labels": LABELS})
    assert got.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("correct", [0.5, 0.99])
def test_virtual_teacher_kl_equals_its_formula_over_labelled_items(correct, temperature):
    logits, expected = random_logits(), []
    for row, label in labelled(logits):
        virtual = np.full(4, (1 - correct) / 3)
        virtual[label] = correct
        soft = virtual ** (1 / temperature)
        divergence = rel_entr(soft / soft.sum(), softmax(row / temperature)).sum()
        expected.append(divergence * temperature**2)
    got = virtual_teacher_kl(logits, LABELS, correct, temperature, MASK).item()
    assert got == pytest.approx(np.mean(expected), rel=1e-8)


def test_answers_cost_their_surprise_over_starts_and_ends_that_count():
    logits, labels = random_logits((3, 2, 5)), torch.tensor([[0, 2], [4, 4], [1, 3]])
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    surprise = [
        -log_softmax(row)[label]
        for row, label in zip(logits[mask].numpy(), labels[mask], strict=True)
    ]
    got = answer_cross_entropy(logits, labels, mask).item()
    assert got == pytest.approx(np.mean(surprise), rel=1e-6)


def test_answers_of_which_none_counts_cost_0_with_a_gradient_of_0():
    logits = random_logits((3, 2, 5)).requires_grad_()
    none = torch.zeros(3, 2, dtype=torch.long)
    value = answer_cross_entropy(logits, none, none.bool())
    value.backward()
    assert value.item() == 0.0
    assert not logits.grad.any()


def test_a_student_as_sure_as_the_virtual_teacher_has_nothing_to_learn():
    logits = torch.tensor([[0.02, 0.94, 0.04 / 2, 0.02]], dtype=torch.double).log()
    got = virtual_teacher_kl(logits, torch.tensor([1]), correct_probability=0.94)
    assert got.item() == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_those_of_finite_differences(function):
    logits = random_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: function(z, LABELS, mask=MASK), (logits,))


@pytest.mark.parametrize("build", LABEL_LOSSES)
@pytest.mark.parametrize("given", [True, False])
def test_items_without_a_label_change_neither_the_value_nor_the_gradient(build, given):
    batch = {"labels": LABELS, **({"item_mask": MASK} if given else {})}
    results = []
    for seed, scale in ((7, 0.0), (8, 1e3)):
        filling = random_logits(seed=seed) * scale
        logits = torch.where(MASK[..., None], random_logits(), filling).requires_grad_()
        value = build()(ModelOutput(logits=logits), None, batch)
        value.backward()
        assert not logits.grad[~MASK].any()
        results.append((value.detach(), logits.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("build", LABEL_LOSSES)
def test_the_item_mask_leaves_out_labelled_items_too(build):
    logits, mask = random_logits(), MASK.clone()
    mask[1] = False
    batch = {"labels": LABELS, "item_mask": mask}
    expected = build()(ModelOutput(logits=logits[:1]), None, {"labels": LABELS[:1]})
    assert build()(ModelOutput(logits=logits), None, batch).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("build", LABEL_LOSSES)
def test_a_batch_without_any_label_gives_0_with_a_gradient_of_0(build):
    logits = random_logits().requires_grad_()
    value = build()(ModelOutput(logits=logits), None, {"labels": torch.full_like(LABELS, -100)})
    value.backward()
    assert value.item() == 0.0
    assert not logits.grad.any()


@pytest.mark.parametrize("build", LABEL_LOSSES)
def test_data_without_labels_is_refused(build):
    with pytest.raises(ValueError, match=rf"{build.__name__} needs the labels.*LogitsLoss"):
        build()(ModelOutput(logits=random_logits()), None, {})


@pytest.mark.parametrize("build", LABEL_LOSSES)
@pytest.mark.parametrize("task", ["question_answering", "multi_label_classification", "regression"])
def test_a_task_whose_labels_are_not_classes_is_refused_before_training(build, task):
    config = tiny_model("bert", 1).config
    with pytest.raises(ValueError, match=task):
        build().prepare(config, None, task)
    build().prepare(config, None, "token_classification")
    assert not build.needs_teacher


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_hides_the_labels_or_pushes_away_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"smoothing must lie in \[0, 1\)"):
        LabelSmoothingLoss(smoothing)


@pytest.mark.parametrize("correct", [0.0, 1.0, -1.0, float("nan")])
def test_a_virtual_teacher_that_cannot_be_softened_is_refused(correct):
    with pytest.raises(ValueError, match="correct_probability must lie between 0,"):
        TeacherFreeLoss(correct)


def test_a_virtual_teacher_that_is_wrong_is_refused_once_the_classes_are_known():
    with pytest.raises(ValueError, match=r"must lie between 0.25, .*got 0.25"):
        virtual_teacher_kl(random_logits(), LABELS, correct_probability=0.25)
    with pytest.raises(ValueError, match="at least 2 labels, got 1"):
        virtual_teacher_kl(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="temperature must be finite and above 0"):
        TeacherFreeLoss(temperature=0.0)


def test_the_temperature_of_the_virtual_teacher_is_not_the_runs():
    loss = TeacherFreeLoss(temperature=5.0)
    loss.temperature = 1.0
    got = loss(ModelOutput(logits=random_logits()), None, {"labels": LABELS})
    assert torch.equal(got, virtual_teacher_kl(random_logits(), LABELS, 0.99, 5.0, MASK))


@pytest.mark.parametrize(
    "loss", [LabelSmoothingLoss(0.3), TeacherFreeLoss(0.9, 40.0), TeacherFreeLoss()]
)
def test_the_settings_rebuild_the_loss(loss):
    assert type(loss)(**loss.config()).config() == loss.config()
    assert loss.config()
