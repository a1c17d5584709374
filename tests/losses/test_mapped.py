"""Losses on hidden states and attention equal their formulas in numpy, padding left out."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.special import rel_entr
from settings import tiny_model

from kdnlp.losses import (
    AttentionLoss,
    AttentionScoresLoss,
    HiddenCosineLoss,
    HiddenLoss,
    PatientLoss,
    attention_kl,
    attention_mse,
    hidden_cosine,
    hidden_mse,
    normalised_distance,
)
from kdnlp.losses.layer_map import resolve_layer_map

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]])
VALID = [(row, at) for row in range(3) for at in range(5) if MASK[row, at]]
TASK = "single_label_classification"


def states(width=4, seed=0):
    generator = np.random.default_rng(seed)
    return tuple(torch.tensor(generator.normal(size=(3, 5, width))) for _ in range(2))


def scores(seed=0, heads=2):
    generator = np.random.default_rng(seed)
    return tuple(torch.tensor(generator.normal(size=(3, heads, 5, 5))) for _ in range(2))


def probabilities(seed=0):
    """Attention as models return it: nothing on padding, whatever the padding itself attends to."""
    keys = MASK[:, None, None, :].bool()
    return tuple(s.masked_fill(~keys, -torch.inf).softmax(-1) for s in scores(seed))


def test_hidden_mse_equals_its_formula():
    student, teacher = states()
    errors = [((student[i, t] - teacher[i, t]).numpy() ** 2).mean() for i, t in VALID]
    assert hidden_mse(student, teacher, MASK).item() == pytest.approx(np.mean(errors), rel=1e-9)


def test_hidden_cosine_equals_scipys():
    student, teacher = states()
    distances = [cosine(student[i, t].numpy(), teacher[i, t].numpy()) for i, t in VALID]
    got = hidden_cosine(student, teacher, MASK).item()
    assert got == pytest.approx(np.mean(distances), rel=1e-9)


def test_attention_mse_counts_attended_keys_of_attending_tokens_alone():
    student, teacher = (x.numpy() for x in scores())
    errors = []
    for row, query in VALID:
        keys = [key for at_row, key in VALID if at_row == row]
        difference = student[row, :, query][:, keys] - teacher[row, :, query][:, keys]
        errors.append((difference**2).mean())
    got = attention_mse(*scores(), MASK).item()
    assert got == pytest.approx(np.mean(errors), rel=1e-9)


def test_attention_kl_equals_its_formula():
    student, teacher = (x.numpy() for x in probabilities())
    divergences = [rel_entr(teacher[i, :, t], student[i, :, t]).sum(-1).mean() for i, t in VALID]
    got = attention_kl(*probabilities(), MASK).item()
    assert got == pytest.approx(np.mean(divergences), rel=1e-9)


@pytest.mark.parametrize("compare", [hidden_mse, hidden_cosine])
def test_without_a_mask_every_token_counts(compare):
    student, teacher = states()
    assert compare(student, teacher).item() == pytest.approx(
        compare(student, teacher, torch.ones(3, 5)).item(), rel=1e-12
    )
    assert attention_mse(*scores()).item() == pytest.approx(
        attention_mse(*scores(), torch.ones(3, 5)).item(), rel=1e-12
    )


COMPARISONS = {
    "hidden_mse": (hidden_mse, states),
    "hidden_cosine": (hidden_cosine, states),
    "attention_mse": (attention_mse, scores),
    "attention_kl": (attention_kl, lambda: tuple(s.softmax(-1) for s in scores())),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_gradients_are_those_of_finite_differences(name):
    compare, inputs = COMPARISONS[name]
    student, teacher = inputs()
    student = student.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: compare(x, teacher, MASK), (student,))


@pytest.mark.parametrize("name", COMPARISONS)
def test_padding_has_no_gradient(name):
    compare, inputs = COMPARISONS[name]
    student, teacher = inputs()
    student = student.detach().requires_grad_()
    compare(student, teacher, MASK).backward()
    rows = student.grad if student.dim() == 3 else student.grad.sum(1)
    assert rows[MASK == 0].abs().max() == 0
    assert rows[MASK == 1].abs().max() > 0


def test_attention_without_a_probability_stays_finite():
    student = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    value = attention_kl(student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


# The classes.


def configs(width=16, heads=2, layers=(2, 4)):
    shape = {"hidden_size": width, "num_attention_heads": heads}
    return tiny_model("bert", layers[0], **shape).config, tiny_model("bert", layers[1]).config


def outputs(field, layers, make, seed=0):
    student, teacher = {}, {}
    for number, (ours, theirs) in enumerate(layers.items()):
        student[ours], teacher[theirs] = make(seed=seed + number)
    return {field: student}, {field: teacher}


@pytest.mark.parametrize(
    ("loss", "make", "compare", "first"),
    [
        (HiddenLoss(), lambda seed: states(16, seed), hidden_mse, 0),
        (HiddenCosineLoss(), lambda seed: states(16, seed), hidden_cosine, 0),
        (AttentionScoresLoss(), scores, attention_mse, 1),
        (AttentionLoss(), lambda seed: probabilities(seed), attention_kl, 1),
        (AttentionLoss(distance="mse"), lambda seed: probabilities(seed), attention_mse, 1),
    ],
    ids=["hidden", "cosine", "scores", "kl", "mse"],
)
def test_a_loss_is_the_sum_over_its_mapped_layers(loss, make, compare, first):
    loss.prepare(*configs(), TASK)
    mapped = {0: 0, 1: 2, 2: 4} if first == 0 else {1: 2, 2: 4}
    assert loss.layers() == {loss.field: (list(mapped), list(mapped.values()))}
    student, teacher = outputs(loss.field, mapped, make)
    expected = sum(
        compare(student[loss.field][ours], teacher[loss.field][theirs], MASK).item()
        for ours, theirs in mapped.items()
    )
    got = loss(student, teacher, {"attention_mask": MASK}).item()
    assert got == pytest.approx(expected, rel=1e-9)


def test_a_projection_is_made_for_other_widths_and_only_then():
    same, other = HiddenLoss(), HiddenLoss()
    same.prepare(*configs(), TASK)
    other.prepare(*configs(24, 3), TASK)
    assert not list(same.parameters())
    shapes = {name: tuple(p.shape) for name, p in other.named_parameters() if "weight" in name}
    assert shapes == {f"projections.{layer}.weight": (16, 24) for layer in (0, 1, 2)}


def test_a_projection_of_equal_widths_starts_as_the_identity():
    plain, projected = HiddenLoss(), HiddenLoss(projection=True)
    for loss in (plain, projected):
        loss.prepare(*configs(), TASK)
    torch.nn.init.zeros_(projected.projections["1"].bias)
    inputs = outputs("hidden_states", {0: 0, 1: 2, 2: 4}, lambda seed: states(16, seed))
    x = inputs[0]["hidden_states"][1].float()
    assert torch.equal(projected.project(x, 1), plain.project(x, 1))
    assert len(list(projected.parameters())) == 6


def test_a_loss_that_is_used_again_keeps_what_its_projection_has_learned():
    loss = HiddenLoss()
    loss.prepare(*configs(24, 3), TASK)
    learned = loss.projections["1"].weight.detach().clone()
    loss.prepare(*configs(24, 3), TASK)
    assert torch.equal(loss.projections["1"].weight, learned)
    loss.prepare(*configs(8, 2), TASK)
    assert loss.projections["1"].weight.shape == (16, 8)


def test_other_widths_without_a_projection_are_refused():
    with pytest.raises(ValueError, match=r"one width, got 24 of the student and 16"):
        HiddenLoss(projection=False).prepare(*configs(24, 3), TASK)


@pytest.mark.parametrize("loss", [AttentionLoss, AttentionScoresLoss])
def test_other_numbers_of_heads_are_refused_and_the_loss_that_takes_them_named(loss):
    with pytest.raises(ValueError, match=r"got 4 of the student and 2 .*RelationLoss"):
        loss().prepare(*configs(16, 4), TASK)


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match='distance must be "kl" or "mse"'):
        AttentionLoss(distance="cosine")


def test_the_dynamic_map_takes_the_closest_layer_for_each_of_the_teachers():
    loss = HiddenLoss("dynamic")
    loss.prepare(*configs(layers=(3, 6)), TASK)
    assert loss.layers() == {"hidden_states": ([1, 2, 3], [2, 4, 6])}
    student = {i: states(16, seed=i)[0] for i in (1, 2, 3)}
    teacher = {j: states(16, seed=10 + j)[0] for j in (2, 4, 6)}
    teacher[2] = student[3] + 0.01  # far from its own place
    expected = 0.0
    for theirs in teacher.values():
        expected += min(((s - theirs)[MASK == 1] ** 2).mean().item() for s in student.values())
    inputs = {"hidden_states": student}, {"hidden_states": teacher}
    got = loss(*inputs, {"attention_mask": MASK}).item()
    assert got == pytest.approx(expected, rel=1e-9)
    assert expected < sum(hidden_mse(student[i], teacher[2 * i], MASK).item() for i in (1, 2, 3))
    assert HiddenLoss(**loss.config()).dynamic


def test_the_dynamic_map_shares_one_projection():
    loss = HiddenLoss("dynamic")
    loss.prepare(*configs(24, 3), TASK)
    assert [tuple(p.shape) for p in loss.parameters()] == [(16, 24), (16,)]
    loss.prepare(*configs(24, 3), TASK)
    assert len(list(loss.parameters())) == 2


# Layer maps.


@pytest.mark.parametrize(
    ("name", "student", "teacher", "first", "expected"),
    [
        ("uniform", 3, 6, 0, {0: 0, 1: 2, 2: 4, 3: 6}),
        ("uniform", 4, 12, 1, {1: 3, 2: 6, 3: 9, 4: 12}),
        ("uniform", 5, 12, 1, {1: 2, 2: 5, 3: 7, 4: 10, 5: 12}),
        ("skip", 6, 12, 0, {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}),
        ("last", 6, 12, 0, {1: 7, 2: 8, 3: 9, 4: 10, 5: 11}),
        ({"1": 3, "0": 0}, 2, 4, 0, {1: 3, 0: 0}),
    ],
)
def test_a_layer_map_is_the_papers(name, student, teacher, first, expected):
    assert resolve_layer_map(name, student, teacher, first) == expected


@pytest.mark.parametrize(
    ("layer_map", "message"),
    [
        ("alternate", r"must be one of uniform, skip, last"),
        ({3: 1}, r"layers 1\.\.2 of the student.*got \{3: 1\}"),
        ({1: 5}, r"layers 1\.\.4 of the teacher.*got \{1: 5\}"),
        ({0: 0}, r"got \{0: 0\}"),
        ({}, r"got no layer at all"),
    ],
)
def test_a_map_to_layers_that_do_not_exist_is_refused(layer_map, message):
    with pytest.raises(ValueError, match=message):
        resolve_layer_map(layer_map, 2, 4)


@pytest.mark.parametrize("name", ["skip", "last"])
def test_a_student_of_one_block_is_told_which_map_to_use(name):
    with pytest.raises(ValueError, match=r"layer_map=\{1: 4\}"):
        resolve_layer_map(name, 1, 4)


def test_patient_distance_equals_its_formula_on_the_first_attended_token():
    loss = PatientLoss({1: 2, 2: 4})
    loss.prepare(*configs(), TASK)
    student, teacher = outputs("hidden_states", {1: 2, 2: 4}, lambda seed: states(16, seed))
    expected = 0.0
    for ours, theirs in ((1, 2), (2, 4)):
        distances = []
        for row, first in ((0, 0), (1, 0), (2, 2)):
            s = student["hidden_states"][ours][row, first].numpy()
            t = teacher["hidden_states"][theirs][row, first].numpy()
            distances.append(((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2).sum())
        expected += np.mean(distances)
    got = loss(student, teacher, {"attention_mask": MASK}).item()
    assert got == pytest.approx(expected, rel=1e-9)


def test_patient_distance_has_the_gradient_of_finite_differences():
    student, teacher = states()
    student = student[:, 0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: normalised_distance(x, teacher[:, 0]), (student,))
