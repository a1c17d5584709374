"""Squared error and cosine distance of logits equal their formulas over the items that count."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from settings import tiny_model
from transformers.utils import ModelOutput

from kdnlp.losses.logits import soft_target_kl
from kdnlp.losses.logits_cosine import LogitsCosineLoss, logits_cosine
from kdnlp.losses.logits_mse import LogitsMSELoss, logits_mse

MASK = torch.tensor([[True, False, True], [False, False, True]])
DISTANCES = [logits_mse, logits_cosine]
LOSSES = [LogitsMSELoss, LogitsCosineLoss]


def random_logits(shape=(2, 3, 4), seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(scale=2, size=shape))


def items(logits, mask):
    kept = logits if mask is None else logits[mask]
    return kept.reshape(-1, logits.size(-1)).numpy()


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_distances_equal_their_formulas_over_the_items_that_count(mask):
    student, teacher = random_logits(), random_logits(seed=1)
    ours, theirs = items(student, mask), items(teacher, mask)
    squared = np.mean((ours - theirs) ** 2)
    assert logits_mse(student, teacher, mask).item() == pytest.approx(squared, rel=1e-10)
    angle = np.mean([cosine(a, b) for a, b in zip(ours, theirs, strict=True)])
    assert logits_cosine(student, teacher, mask).item() == pytest.approx(angle, rel=1e-10)


@pytest.mark.parametrize("shape", [(5, 1), (5, 3)])
def test_squared_error_of_regression_and_of_many_labels_is_the_mean_over_both(shape):
    student, teacher = random_logits(shape), random_logits(shape, seed=1)
    outputs = (ModelOutput(logits=x) for x in (student, teacher))
    expected = ((student - teacher) ** 2).mean().item()
    assert LogitsMSELoss()(*outputs, {}).item() == pytest.approx(expected, rel=1e-12)


def test_squared_error_is_the_limit_of_soft_targets_for_centred_logits():
    """Hinton et al. 2015, section 2.1: the loss is `|z - v|^2 / 2 labels` at a high temperature."""
    student, teacher = (random_logits(seed=seed) for seed in (0, 1))
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (student, teacher))
    limit = soft_target_kl(student, teacher, temperature=1e4).item()
    assert logits_mse(student, teacher).item() / 2 == pytest.approx(limit, rel=1e-3)


def test_cosine_sees_the_direction_and_not_the_size():
    logits = random_logits()
    assert logits_cosine(3.0 * logits, logits).item() == pytest.approx(0.0, abs=1e-12)
    assert logits_cosine(-logits, logits).item() == pytest.approx(2.0)


def test_logits_of_zeros_have_no_direction_and_no_nan_gradient():
    student = torch.zeros(2, 3, 4, requires_grad=True)
    value = logits_cosine(student, random_logits().float())
    value.backward()
    assert value.item() == pytest.approx(1.0)
    assert not student.grad.any()


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_are_those_of_finite_differences(distance):
    student, teacher = random_logits().requires_grad_(), random_logits(seed=1)
    assert torch.autograd.gradcheck(lambda s: distance(s, teacher, MASK), (student,))


@pytest.mark.parametrize("build", LOSSES)
def test_items_that_do_not_count_change_neither_the_value_nor_the_gradient(build):
    results = []
    for seed, scale in ((7, 0.0), (8, 1e6)):
        filling = random_logits(seed=seed) * scale
        student = torch.where(MASK[..., None], random_logits(), filling).requires_grad_()
        teacher = torch.where(MASK[..., None], random_logits(seed=1), -filling)
        outputs = ModelOutput(logits=student), ModelOutput(logits=teacher)
        value = build()(*outputs, {"item_mask": MASK})
        value.backward()
        assert not student.grad[~MASK].any()
        results.append((value.detach(), student.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("distance", DISTANCES)
def test_no_item_that_counts_gives_0_with_a_gradient_of_0(distance):
    student = random_logits().requires_grad_()
    value = distance(student, random_logits(seed=1), torch.zeros_like(MASK))
    value.backward()
    assert value.item() == 0.0
    assert not student.grad.any()


@pytest.mark.parametrize("distance", DISTANCES)
def test_other_shapes_are_refused_instead_of_broadcast(distance):
    with pytest.raises(ValueError, match="one shape"):
        distance(random_logits((4, 3)), random_logits((4, 1)))


def test_cosine_of_one_label_which_is_only_a_sign_is_refused():
    with pytest.raises(ValueError, match="at least 2 labels"):
        logits_cosine(random_logits((4, 1)), random_logits((4, 1)))


@pytest.mark.parametrize(
    ("build", "refused"),
    [
        (LogitsMSELoss, {"question_answering"}),
        (LogitsCosineLoss, {"question_answering", "regression"}),
    ],
)
def test_tasks_whose_logits_have_no_such_distance_are_refused_before_training(build, refused):
    config = tiny_model("bert", 1).config
    for task in refused:
        with pytest.raises(ValueError, match=task):
            build().prepare(config, config, task)
    for task in ("multi_label_classification", "causal_lm", "multiple_choice"):
        build().prepare(config, config, task)


@pytest.mark.parametrize("build", LOSSES)
def test_there_is_nothing_to_set(build):
    assert build(**build().config()).config() == {}
