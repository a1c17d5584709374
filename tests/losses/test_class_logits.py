"""Losses on class probabilities equal their formulas in numpy, and keep to their limits."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import pearsonr
from settings import tiny_model
from transformers.utils import ModelOutput

from kdnlp.losses import (
    LOSSES,
    CorrelationLoss,
    DecoupledLoss,
    JensenShannonLoss,
    correlation_distance,
    decoupled_kl,
    jensen_shannon,
    reverse_kl,
    soft_target_kl,
    total_variation,
)
from kdnlp.losses.class_logits import ClassLogitsLoss
from kdnlp.losses.correlation import pearson_distance

CLASS_LOSSES = {name: c for name, c in LOSSES.items() if issubclass(c, ClassLogitsLoss)}
TEMPERATURES = [0.5, 1.0, 4.0]
LABELS = [0, 2, 1, 2, 0, 1]


def random_logits(shape=(6, 3), seed=0):
    generator = np.random.default_rng(seed)
    return tuple(torch.tensor(generator.normal(scale=2, size=shape)) for _ in range(2))


def distributions(student, teacher, temperature):
    return tuple(softmax(x.numpy() / temperature, axis=-1) for x in (student, teacher))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [(6, 3), (1, 2), (2, 4, 5)])
def test_reverse_kl_equals_its_formula(shape, temperature):
    student, teacher = random_logits(shape)
    q, p = distributions(student, teacher, temperature)
    expected = rel_entr(q, p).sum(-1).mean() * temperature**2
    assert reverse_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_reverse_kl_is_forward_kl_the_other_way_round():
    student, teacher = random_logits()
    assert torch.equal(reverse_kl(student, teacher, 2.0), soft_target_kl(teacher, student, 2.0))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jensen_shannon_equals_its_formula(beta, temperature):
    student, teacher = random_logits()
    q, p = distributions(student, teacher, temperature)
    m = beta * p + (1 - beta) * q
    expected = (beta * rel_entr(p, m) + (1 - beta) * rel_entr(q, m)).sum(-1).mean()
    got = jensen_shannon(student, teacher, beta, temperature).item()
    assert got == pytest.approx(expected * temperature**2, rel=1e-9)


def test_jensen_shannon_stays_bounded_where_kl_is_not():
    student = torch.tensor([[500.0, -500.0]], requires_grad=True)
    value = jensen_shannon(student, torch.tensor([[-500.0, 500.0]]))
    value.backward()
    assert value.item() == pytest.approx(np.log(2), rel=1e-6)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("beta", "limit"), [(1e-4, soft_target_kl), (1 - 1e-4, reverse_kl)])
def test_the_ends_of_jensen_shannon_are_the_two_kl(beta, limit):
    student, teacher = random_logits()
    scaled = jensen_shannon(student, teacher, beta) / min(beta, 1 - beta)
    assert scaled.item() == pytest.approx(limit(student, teacher).item(), rel=1e-2)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_total_variation_equals_its_formula_and_is_at_most_1(temperature):
    student, teacher = random_logits()
    q, p = distributions(student, teacher, temperature)
    expected = np.abs(p - q).sum(-1).mean() / 2
    got = total_variation(student, teacher, temperature).item()
    assert got == pytest.approx(expected, rel=1e-9)
    opposite = torch.tensor([[99.0, -99.0]])
    assert total_variation(opposite, -opposite).item() == pytest.approx(1.0)


def decoupled_by_hand(student, teacher, alpha, beta, temperature):
    total = 0.0
    for s, t, label in zip(student.numpy(), teacher.numpy(), LABELS, strict=True):
        q, p = softmax(s / temperature), softmax(t / temperature)
        rest = [i for i in range(len(s)) if i != label]
        target = rel_entr([p[label], p[rest].sum()], [q[label], q[rest].sum()]).sum()
        others = rel_entr(softmax(t[rest] / temperature), softmax(s[rest] / temperature)).sum()
        total += alpha * target + beta * others
    return total / len(LABELS) * temperature**2


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 2.0), (0.0, 1.0), (3.0, 0.0)])
def test_decoupled_kl_equals_its_formula(alpha, beta, temperature):
    student, teacher = random_logits()
    expected = decoupled_by_hand(student, teacher, alpha, beta, temperature)
    got = decoupled_kl(student, teacher, torch.tensor(LABELS), alpha, beta, temperature).item()
    assert got == pytest.approx(expected, rel=1e-9)


def test_decoupled_with_the_teachers_own_weight_is_forward_kl():
    """Zhao et al. 2022, eq. 6: KL = target term + (1 - p(true)) * other term, item by item."""
    student, teacher = random_logits((1, 4))
    label = torch.tensor([2])
    weight = 1 - softmax(teacher.numpy(), axis=-1)[0, 2]
    got = decoupled_kl(student, teacher, label, alpha=1.0, beta=weight)
    assert got.item() == pytest.approx(soft_target_kl(student, teacher).item(), rel=1e-9)


def test_decoupled_of_two_classes_is_forward_kl_whatever_beta():
    student, teacher = random_logits((6, 2))
    labels = torch.tensor([0, 1, 1, 0, 0, 1])
    got = decoupled_kl(student, teacher, labels, alpha=1.0, beta=8.0)
    assert got.item() == pytest.approx(soft_target_kl(student, teacher).item(), rel=1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (2.0, 0.0), (0.0, 0.5)])
def test_correlation_equals_scipys_pearson(beta, gamma, temperature):
    student, teacher = random_logits((6, 4))
    q, p = distributions(student, teacher, temperature)
    items = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(q, p, strict=True)])
    labels = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(q.T, p.T, strict=True)])
    expected = (beta * items + gamma * labels) * temperature**2
    got = correlation_distance(student, teacher, beta, gamma, temperature).item()
    assert got == pytest.approx(expected, rel=1e-7)


def test_correlation_of_one_item_has_no_relation_across_items():
    student, teacher = random_logits((1, 4))
    one = correlation_distance(student, teacher, beta=1.0, gamma=5.0)
    assert torch.equal(one, correlation_distance(student, teacher, beta=1.0, gamma=0.0))


def test_a_constant_distribution_correlates_with_nothing_and_is_not_nan():
    for labels in (2, 3, 4, 7):
        student = torch.full((3, labels), 0.3, requires_grad=True)
        value = correlation_distance(student, random_logits((3, labels))[1].float())
        value.backward()
        assert value.item() == pytest.approx(2.0)
        assert student.grad.abs().max() == 0  # its direction would be that of rounding


@pytest.mark.parametrize("items", range(3, 12))
def test_what_varies_by_rounding_alone_counts_as_constant(items):
    one = torch.tensor([0.7, 0.1, 0.2]).softmax(-1)
    student = one.repeat(items, 1).requires_grad_()  # whose mean is not always what each of them is
    value = pearson_distance(student, random_logits((items, 3))[1].float(), dim=0)
    value.sum().backward()
    assert value.tolist() == [1, 1, 1]
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("gap", [5, 20, 32, 51, 60, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_label_that_is_out_of_the_question_is_no_cause_of_nan(gap, dtype):
    student = torch.tensor([[4, 3, -gap], [3, 4, -gap - 0.2], [4, 2, -gap]], dtype=dtype)
    student.requires_grad_()
    value = correlation_distance(student, random_logits((3, 3))[1].to(dtype))
    value.backward()
    assert 0 <= value.item() <= 4
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_a_student_like_its_teacher_has_nothing_to_learn(name):
    logits = random_logits()[0].requires_grad_()
    outputs = (ModelOutput(logits=logits), ModelOutput(logits=logits.detach().clone()))
    loss = CLASS_LOSSES[name]()(*outputs, {"labels": torch.tensor(LABELS)})
    assert loss.item() == pytest.approx(0.0, abs=1e-9)
    if name != "total_variation":  # whose gradient does not shrink
        loss.backward()
        assert logits.grad.abs().max() < 1e-7


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    student, teacher = random_logits(seed=3)
    loss, batch = CLASS_LOSSES[name](temperature=1.5), {"labels": torch.tensor(LABELS)}

    def value(logits):
        return loss(ModelOutput(logits=logits), ModelOutput(logits=teacher), batch)

    assert torch.autograd.gradcheck(value, (student.requires_grad_(),))


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_a_task_without_exclusive_classes_is_refused_before_training(name, problem):
    config = tiny_model("bert", 1, problem_type=problem).config
    with pytest.raises(ValueError, match=rf"{CLASS_LOSSES[name].__name__}.*{problem}"):
        CLASS_LOSSES[name]().prepare(config, config, problem)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_one_label_other_shapes_and_bad_temperatures_are_refused(name):
    loss, labels = CLASS_LOSSES[name], {"labels": torch.zeros(4, dtype=torch.long)}
    for student, teacher in (((4, 1), (4, 1)), ((4, 3), (4, 1)), ((4, 3), (2, 3))):
        outputs = [ModelOutput(logits=torch.zeros(shape)) for shape in (student, teacher)]
        with pytest.raises(ValueError, match=r"one shape|at least 2 labels"):
            loss()(*outputs, labels)
    with pytest.raises(ValueError, match="above 0"):
        loss(temperature=-1.0)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, 2.0])
def test_a_mixture_that_teaches_nothing_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta must lie in \(0, 1\)"):
        JensenShannonLoss(beta=beta)


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (1.0, -1.0), (0.0, 0.0)])
@pytest.mark.parametrize("loss", [DecoupledLoss, CorrelationLoss])
def test_weights_that_push_away_or_vanish_are_refused(loss, weights):
    with pytest.raises(ValueError, match="at least 0 and not both 0"):
        loss(*weights)


def test_decoupled_without_labels_names_the_loss_that_needs_none():
    outputs = [ModelOutput(logits=x) for x in random_logits()]
    with pytest.raises(ValueError, match=r"needs the labels.*LogitsLoss"):
        DecoupledLoss()(*outputs, {})


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_the_settings_rebuild_the_loss(name):
    loss = CLASS_LOSSES[name](temperature=3.0)
    again = CLASS_LOSSES[name](**loss.config())
    assert again.config() == loss.config()
    assert loss.config()["temperature"] == 3.0


def test_an_impossible_class_adds_nothing_and_no_nan():
    student = torch.tensor([[1.0, 0.0, -torch.inf]])
    teacher = torch.tensor([[0.5, 0.2, -torch.inf]])
    q, p = log_softmax([1.0, 0.0]), log_softmax([0.5, 0.2])
    expected = (np.exp(q) * (q - p)).sum()
    assert reverse_kl(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(jensen_shannon(student, teacher))
