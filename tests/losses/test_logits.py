import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax
from transformers import BertConfig
from transformers.utils import ModelOutput

from kdnlp.losses import DistillationLoss, LogitsLoss, soft_target_kl
from kdnlp.losses.logits import soft_target_sigmoid_kl

INF = float("inf")
SHAPES = [(1, 2), (4, 3), (5, 2), (2, 7, 3), (2, 3, 4, 5)]
TEMPERATURES = [0.5, 1.0, 2.0, 10.0]
BOTH = [soft_target_kl, soft_target_sigmoid_kl]
CLOSE = {"atol": 1e-12, "rtol": 1e-9}


def random_logits(shape, seed=0, dtype=torch.float64):
    generator = np.random.default_rng(seed)
    student, teacher = (generator.normal(scale=3, size=shape) for _ in range(2))
    return torch.tensor(student, dtype=dtype, requires_grad=True), torch.tensor(teacher).to(dtype)


def arrays(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


def reference_kl(student, teacher, temperature):
    s, t = arrays(student, teacher)
    p, q = softmax(t / temperature, axis=-1), softmax(s / temperature, axis=-1)
    return temperature**2 * rel_entr(p, q).sum(-1).mean()


def reference_sigmoid_kl(student, teacher, temperature):
    s, t = (logits / temperature for logits in arrays(student, teacher))
    return temperature**2 * (rel_entr(expit(t), expit(s)) + rel_entr(expit(-t), expit(-s))).mean()


def gradient(loss, student, teacher, temperature):
    return torch.autograd.grad(loss(student, teacher, temperature), student)[0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_kl_points_the_right_way_and_averages_items_only(shape, temperature):
    student, teacher = random_logits(shape)
    expected = reference_kl(student, teacher, temperature)
    assert soft_target_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9)
    assert reference_kl(teacher, student, temperature) != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 1)])
def test_sigmoid_kl_sums_both_outcomes_and_averages_items_and_labels(shape, temperature):
    student, teacher = random_logits(shape)
    expected = reference_sigmoid_kl(student, teacher, temperature)
    loss = soft_target_sigmoid_kl(student, teacher, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_one_label_against_its_absence_is_the_softmax_of_two():
    student, teacher = random_logits((6, 1))
    pairs = [torch.cat([logits, torch.zeros_like(logits)], -1) for logits in (student, teacher)]
    two = soft_target_kl(*pairs, 2.0)
    assert soft_target_sigmoid_kl(student, teacher, 2.0).item() == pytest.approx(two.item())


@pytest.mark.parametrize(
    ("loss", "reference"),
    [(soft_target_kl, reference_kl), (soft_target_sigmoid_kl, reference_sigmoid_kl)],
)
def test_single_precision_keeps_its_digits_far_from_zero(loss, reference):
    student, teacher = random_logits((64, 5), dtype=torch.float32)
    student, teacher = student.detach() * 10, teacher * 10
    value = loss(student, teacher, 4.0).item()
    assert value == pytest.approx(reference(student, teacher, 4.0), rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_softmax_gradient_is_the_papers(shape, temperature):
    student, teacher = random_logits(shape)
    s, t = arrays(student, teacher)
    q, p = (softmax(logits / temperature, axis=-1) for logits in (s, t))
    expected = temperature * (q - p) / np.prod(shape[:-1])
    got = gradient(soft_target_kl, student, teacher, temperature)
    np.testing.assert_allclose(got.numpy(), expected, **CLOSE)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_sigmoid_gradient_is_its_closed_form(temperature):
    student, teacher = random_logits((4, 3))
    s, t = arrays(student, teacher)
    expected = temperature * (expit(s / temperature) - expit(t / temperature)) / (4 * 3)
    got = gradient(soft_target_sigmoid_kl, student, teacher, temperature)
    np.testing.assert_allclose(got.numpy(), expected, **CLOSE)


# Hinton et al. 2015, eq. 4: hot soft targets match logits, each centred, at any temperature.
@pytest.mark.parametrize("temperature", [100.0, 1000.0])
def test_the_gradient_of_a_hot_softmax_does_not_shrink_with_the_temperature(temperature):
    student, teacher = random_logits((4, 3))
    s, t = (logits - logits.mean(-1, keepdims=True) for logits in arrays(student, teacher))
    got = gradient(soft_target_kl, student, teacher, temperature)
    np.testing.assert_allclose(got.numpy(), (s - t) / 3 / 4, rtol=0, atol=20 / temperature)
    norms = [gradient(soft_target_kl, student, teacher, T).norm() for T in (20, temperature)]
    assert norms[1] / norms[0] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("temperature", [100.0, 1000.0])
def test_the_gradient_of_a_hot_sigmoid_does_not_shrink_with_the_temperature(temperature):
    student, teacher = random_logits((4, 3))
    s, t = arrays(student, teacher)
    got = gradient(soft_target_sigmoid_kl, student, teacher, temperature)
    np.testing.assert_allclose(got.numpy(), (s - t) / 4 / 12, rtol=0, atol=1 / temperature)


@pytest.mark.parametrize("loss", BOTH)
def test_a_student_that_agrees_has_nothing_to_learn(loss):
    student, _ = random_logits((4, 3))
    value = loss(student, student.detach().clone(), 2.0)
    value.backward()
    assert value.item() == 0.0
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-15, rtol=0)


def test_the_softmax_ignores_an_offset_and_the_sigmoid_does_not():
    student, _ = random_logits((4, 3))
    shifted = (student + 5.0).detach()
    assert soft_target_kl(student, shifted, 2.0).item() == pytest.approx(0.0, abs=1e-12)
    assert soft_target_sigmoid_kl(student, shifted, 2.0).item() > 0.1


@pytest.mark.parametrize("loss", BOTH)
def test_no_gradient_flows_into_a_teacher_that_was_run_without_one(loss):
    student, teacher = random_logits((4, 3))
    value = loss(student, teacher, 2.0)
    assert value.shape == ()
    value.backward()
    assert teacher.grad is None


def test_a_label_that_both_mask_counts_as_absent_and_gives_no_nan():
    student, teacher = random_logits((4, 3))
    masked = [torch.cat([x, torch.full((4, 1), -INF)], -1) for x in (student.detach(), teacher)]
    masked[0].requires_grad_()
    value = soft_target_kl(*masked, 2.0)
    value.backward()
    assert value.item() == pytest.approx(reference_kl(student, teacher, 2.0))
    expected = gradient(soft_target_kl, student, teacher, 2.0)
    torch.testing.assert_close(masked[0].grad[:, :3], expected)
    assert torch.equal(masked[0].grad[:, 3], torch.zeros(4))


@pytest.mark.parametrize("low", [-INF, -1e5])
def test_a_label_without_teacher_probability_adds_nothing_but_is_pushed_down(low):
    student, teacher = random_logits((4, 3))
    teacher[:, 0] = low
    expected = reference_kl(student, teacher, 2.0)
    assert soft_target_kl(student, teacher, 2.0).item() == pytest.approx(expected)
    got = gradient(soft_target_kl, student, teacher, 2.0)
    q = softmax(student.detach().numpy() / 2, axis=-1)
    np.testing.assert_allclose(got[:, 0].numpy(), 2 * q[:, 0] / 4, **CLOSE)


@pytest.mark.parametrize("sign", [1, -1])
def test_certain_yes_or_no_questions_give_no_nan(sign):
    student, teacher = random_logits((4, 3))
    certain = [student.detach().clone(), teacher]
    for logits in certain:
        logits[:, 0] = sign * INF
    certain[0].requires_grad_()
    value = soft_target_sigmoid_kl(*certain, 2.0)
    value.backward()
    rest = reference_sigmoid_kl(student[:, 1:], teacher[:, 1:], 2.0)
    assert value.item() == pytest.approx(rest * 2 / 3)
    assert torch.equal(certain[0].grad[:, 0], torch.zeros(4))
    assert torch.isfinite(certain[0].grad).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_teacher_certain_of_a_label_alone_is_followed(sign):
    student, teacher = random_logits((4, 3))
    teacher[:, 1] = sign * INF
    expected = reference_sigmoid_kl(student, teacher, 2.0)
    assert soft_target_sigmoid_kl(student, teacher, 2.0).item() == pytest.approx(expected)
    assert torch.isfinite(gradient(soft_target_sigmoid_kl, student, teacher, 2.0)).all()


@pytest.mark.parametrize("loss", BOTH)
def test_a_student_that_rules_out_what_the_teacher_believes_is_infinitely_far(loss):
    student, teacher = random_logits((4, 3))
    ruled_out = student.detach().clone()
    ruled_out[0, 0] = -INF
    assert loss(ruled_out, teacher, 2.0).item() == INF


def test_one_label_is_refused_since_its_softmax_is_constant():
    with pytest.raises(ValueError, match="at least 2 labels, got 1"):
        soft_target_kl(*random_logits((4, 1)))


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4, 3), (1, 3)), ((4, 3), (4, 1, 3))])
def test_shapes_that_would_broadcast_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_teaches_the_opposite_or_nothing_is_refused(temperature):
    for loss in BOTH:
        with pytest.raises(ValueError, match="above 0, got"):
            loss(*random_logits((4, 3)), temperature)
    with pytest.raises(ValueError, match="above 0, got"):
        LogitsLoss(temperature=temperature)


# LogitsLoss: which of the three forms it takes.

CONFIGURED = {
    "single_label_classification": lambda s, t: reference_kl(s, t, 2.0),
    "multi_label_classification": lambda s, t: reference_sigmoid_kl(s, t, 2.0),
    "regression": lambda s, t: np.square(np.subtract(*arrays(s, t))).mean(),
}


def loss_of(loss, student, teacher, labels=None, temperature=2.0):
    loss.temperature = temperature
    batch = {} if labels is None else {"labels": labels}
    return loss(ModelOutput(logits=student), ModelOutput(logits=teacher), batch).item()


@pytest.mark.parametrize("problem_type", CONFIGURED)
def test_the_form_follows_the_students_configuration(problem_type):
    student, teacher = random_logits((4, 3))
    loss = LogitsLoss()
    loss.prepare(
        BertConfig(problem_type=problem_type), BertConfig(problem_type="regression"), problem_type
    )
    expected = CONFIGURED[problem_type](student, teacher)
    for labels in (None, torch.zeros(4, dtype=torch.long), torch.zeros(4, 3)):
        assert loss_of(loss, student, teacher, labels) == pytest.approx(expected)
    assert loss.config() == {"temperature": None, "problem_type": problem_type}


@pytest.mark.parametrize("problem_type", CONFIGURED)
def test_the_users_form_wins_over_the_configuration(problem_type):
    student, teacher = random_logits((4, 3))
    loss = LogitsLoss(problem_type=problem_type)
    for other in CONFIGURED:
        loss.prepare(BertConfig(problem_type=other), BertConfig(), other)
    expected = CONFIGURED[problem_type](student, teacher)
    assert loss_of(loss, student, teacher) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("problem_type", "width", "labels"),
    [
        ("single_label_classification", 3, torch.zeros(4, dtype=torch.long)),
        ("single_label_classification", 2, None),
        ("multi_label_classification", 3, torch.zeros(4, 3)),
        ("regression", 1, torch.zeros(4)),
        ("regression", 1, torch.zeros(4, dtype=torch.long)),
        ("regression", 1, None),
    ],
)
def test_without_a_configured_form_shapes_and_label_type_decide(problem_type, width, labels):
    student, teacher = random_logits((4, width))
    loss = LogitsLoss()
    loss.prepare(BertConfig(), BertConfig(), "single_label_classification")
    expected = CONFIGURED[problem_type](student, teacher)
    assert loss_of(loss, student, teacher, labels) == pytest.approx(expected)
    assert loss.config() == {"temperature": None, "problem_type": None}


def test_tags_of_tokens_are_not_taken_for_several_labels_of_one_text():
    student, teacher = random_logits((2, 5, 3))
    expected = reference_kl(student, teacher, 2.0)
    tags = torch.zeros(2, 5, dtype=torch.long)
    assert loss_of(LogitsLoss(), student, teacher, tags) == pytest.approx(expected)


def test_the_form_taken_for_one_batch_does_not_stick_to_the_next():
    loss, (student, teacher) = LogitsLoss(), random_logits((4, 3))
    multi = loss_of(loss, student, teacher, torch.zeros(4, 3))
    single = loss_of(loss, student, teacher, torch.zeros(4, dtype=torch.long))
    assert multi != single == pytest.approx(reference_kl(student, teacher, 2.0))


def test_regression_is_not_rescaled_by_the_temperature():
    student, teacher = random_logits((4, 1))
    for fixed, run in [(None, 1.0), (None, 7.0), (9.0, 1.0)]:
        value = loss_of(LogitsLoss(fixed), student, teacher, None, run)
        assert value == pytest.approx(CONFIGURED["regression"](student, teacher))


@pytest.mark.parametrize("form", ["single_label_classification", "multi_label_classification"])
def test_a_fixed_temperature_wins_over_the_runs(form):
    student, teacher = random_logits((4, 3))
    reference = reference_kl if form.startswith("single") else reference_sigmoid_kl
    fixed, following = LogitsLoss(3.0, form), LogitsLoss(problem_type=form)
    for run in (1.0, 5.0):
        expected = reference(student, teacher, 3.0)
        assert loss_of(fixed, student, teacher, None, run) == pytest.approx(expected)
        expected = reference(student, teacher, run)
        assert loss_of(following, student, teacher, None, run) == pytest.approx(expected)
    assert fixed.config() == {"temperature": 3.0, "problem_type": form}


def test_a_loss_rebuilds_from_its_configuration():
    student, teacher = random_logits((4, 3))
    loss = LogitsLoss(3.0, "multi_label_classification")
    rebuilt = LogitsLoss(**loss.config())
    assert loss_of(rebuilt, student, teacher) == loss_of(loss, student, teacher)


def test_the_base_class_cannot_be_trained_on_by_mistake():
    with pytest.raises(NotImplementedError):
        DistillationLoss()(ModelOutput(), ModelOutput(), {})
