"""Similarities and contrasts within a batch equal their formulas, and keep to their limits."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import ortho_group
from settings import tiny_model
from transformers.utils import ModelOutput

from kdnlp.losses.contrast import ContrastLoss, info_nce
from kdnlp.losses.similarity import similarity_distance


def random_rows(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def similarities(rows):
    gram = rows.numpy() @ rows.numpy().T
    return gram / np.linalg.norm(gram, axis=1, keepdims=True)


def cosines(student, teacher):
    a, b = (
        x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (student, teacher)
    )
    return a @ b.T


def test_similarity_distance_equals_its_formula_across_widths():
    student, teacher = random_rows(6, 3), random_rows(6, 5, seed=1)
    expected = np.linalg.norm(similarities(student) - similarities(teacher), "fro") ** 2 / 6**2
    assert similarity_distance(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_similarity_does_not_see_scale_or_direction():
    teacher = random_rows(5, 4)
    student = 3.0 * teacher @ torch.tensor(ortho_group.rvs(4, random_state=0))
    assert similarity_distance(student, teacher).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_info_nce_equals_its_formula(temperature):
    student, teacher = random_rows(6, 4), random_rows(6, 4, seed=1)
    expected = -np.diag(log_softmax(cosines(student, teacher) / temperature, axis=1)).mean()
    assert info_nce(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-10)


def test_info_nce_takes_the_teachers_of_other_examples_as_the_others():
    """With the sides swapped the student's rows would be the others, and the value another."""
    student, teacher = random_rows(6, 4), random_rows(6, 4, seed=1)
    swapped = info_nce(teacher, student).item()
    assert info_nce(student, teacher).item() != pytest.approx(swapped, rel=1e-3)


def test_a_student_that_tells_nothing_apart_loses_the_logarithm_of_the_batch():
    same = torch.ones(8, 4)
    assert info_nce(same, random_rows(8, 4).float()).item() > np.log(8)
    assert info_nce(same, same).item() == pytest.approx(np.log(8), rel=1e-6)


@pytest.mark.parametrize("loss", [similarity_distance, info_nce])
def test_gradients_are_those_of_finite_differences(loss):
    student, teacher = random_rows(5, 3).requires_grad_(), random_rows(5, 3, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@pytest.mark.parametrize("loss", [similarity_distance, info_nce])
def test_one_example_gives_0_with_a_gradient_of_0(loss):
    student = random_rows(1, 3).float().requires_grad_()
    value = loss(student, random_rows(1, 3, seed=1).float())
    value.backward()
    assert value.item() == 0.0
    assert not student.grad.any()


@pytest.mark.parametrize("loss", [similarity_distance, info_nce])
@pytest.mark.parametrize("zero", [1, 4])
def test_embeddings_of_zeros_give_a_finite_gradient_that_no_rounding_inflates(loss, zero):
    student = random_rows(4, 3).float()
    student[:zero] = 0.0
    student.requires_grad_()
    value = loss(student, random_rows(4, 3, seed=1).float())
    value.backward()
    assert torch.isfinite(value)
    assert student.grad.abs().max() < 100


@pytest.mark.parametrize("loss", [similarity_distance, info_nce])
def test_embeddings_of_other_batches_are_refused(loss):
    with pytest.raises(ValueError, match=r"shapes \(batch, width\) of one batch"):
        loss(random_rows(4, 3), random_rows(3, 3))


def test_info_nce_of_other_widths_names_the_loss_that_projects():
    with pytest.raises(ValueError, match=r"one width, got 3 and 5.*ContrastLoss"):
        info_nce(random_rows(4, 3), random_rows(4, 5))


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("inf")])
def test_a_contrast_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(ValueError, match="contrast_temperature must be finite and above 0"):
        ContrastLoss(temperature)
    with pytest.raises(ValueError, match="contrast_temperature must be finite and above 0"):
        info_nce(random_rows(4, 3), random_rows(4, 3), temperature)


def contrast(student_width, teacher_width=16):
    models = [tiny_model("bert", 2, hidden_size=width) for width in (student_width, teacher_width)]
    loss = ContrastLoss(contrast_temperature=0.2)
    loss.prepare(models[0].config, models[1].config, "regression")
    return loss.double()


def test_equal_widths_need_no_projection():
    loss = contrast(16)
    assert not list(loss.parameters())
    student, teacher = random_rows(4, 3, 16), random_rows(4, 3, 16, seed=1)
    outputs = (ModelOutput(hidden_states={2: x}) for x in (student, teacher))
    expected = info_nce(student[:, 0], teacher[:, 0], 0.2)
    assert torch.equal(loss(*outputs, {}), expected)


def test_other_widths_are_projected_by_a_layer_that_learns():
    loss = contrast(8)
    assert {n: tuple(p.shape) for n, p in loss.named_parameters()} == {
        "projection.weight": (16, 8),
        "projection.bias": (16,),
    }
    student, teacher = random_rows(4, 3, 8), random_rows(4, 3, 16, seed=1)
    outputs = (ModelOutput(hidden_states={2: x}) for x in (student, teacher))
    value = loss(*outputs, {})
    weight, bias = loss.projection.weight, loss.projection.bias
    expected = info_nce(student[:, 0] @ weight.T + bias, teacher[:, 0], 0.2)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    value.backward()
    assert all(p.grad.any() for p in loss.parameters())


def test_a_projection_that_has_learned_is_kept_when_the_loss_is_used_again():
    loss = contrast(8)
    learned = loss.projection
    configs = [tiny_model("bert", 2, hidden_size=width).config for width in (8, 16, 24)]
    loss.prepare(*configs[:2], "regression")
    assert loss.projection is learned
    loss.prepare(*configs[::2], "regression")
    assert loss.projection.weight.shape == (24, 8)
    loss.prepare(configs[1], configs[1], "regression")
    assert loss.projection is None


def test_the_temperature_of_the_contrast_is_not_the_runs():
    loss = contrast(16)
    loss.temperature = 9.0
    assert loss.config()["contrast_temperature"] == 0.2
    rows = random_rows(4, 16), random_rows(4, 16, seed=1)
    assert torch.equal(loss.compare(*rows), info_nce(*rows, 0.2))
