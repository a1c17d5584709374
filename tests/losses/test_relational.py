"""Pooling takes the attended positions; distances and angles of a batch equal their formulas."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group
from settings import tiny_model
from transformers.utils import ModelOutput

from kdnlp.losses.contrast import ContrastLoss
from kdnlp.losses.pooling import pool
from kdnlp.losses.relational import (
    RelationalAngleLoss,
    RelationalDistanceLoss,
    relational_angle,
    relational_distance,
)
from kdnlp.losses.similarity import SimilarityLoss

EMBEDDING_LOSSES = [RelationalDistanceLoss, RelationalAngleLoss, SimilarityLoss, ContrastLoss]
RELATIONS = [relational_distance, relational_angle]
# Padding on the right, on the left, on both sides, and none.
MASK = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]])
POSITIONS = [[0, 1, 2], [2, 3], [1, 2], [0, 1, 2, 3]]


def random_rows(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def huber(difference):
    size = np.abs(difference)
    return np.where(size <= 1, size**2 / 2, size - 0.5)


def cosine_at(rows, i, j, k):
    a, b = rows[i] - rows[j], rows[k] - rows[j]
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_pooling_takes_attended_positions_whichever_side_the_padding_is_on(pooling, masked):
    hidden = random_rows(4, 4, 3)
    take = {"first": lambda x: x[0], "last": lambda x: x[-1], "mean": lambda x: x.mean(0)}
    positions = POSITIONS if masked else [range(4)] * 4
    expected = [take[pooling](row[list(kept)]) for row, kept in zip(hidden, positions, strict=True)]
    got = pool(hidden, MASK if masked else None, pooling)
    assert torch.allclose(got, torch.stack(expected), rtol=1e-12)


def test_an_example_of_padding_alone_pools_to_something_finite():
    hidden, mask = random_rows(2, 3, 4), torch.zeros(2, 3)
    assert torch.equal(pool(hidden, mask, "first"), hidden[:, 0])
    assert torch.equal(pool(hidden, mask, "last"), hidden[:, -1])
    assert not pool(hidden, mask, "mean").any()


def test_a_mask_of_other_positions_is_refused():
    with pytest.raises(ValueError, match=r"must have the shape \(4, 4\).*got \(4, 3\)"):
        pool(random_rows(4, 4, 3), MASK[:, :3], "mean")


def test_relational_distance_equals_its_formula_across_widths():
    student, teacher = random_rows(6, 3), random_rows(6, 5, seed=1)
    ours, theirs = pdist(student.numpy()), pdist(teacher.numpy())
    difference = ours / ours.mean() - theirs / theirs.mean()
    assert np.abs(difference).max() > 1  # the linear part of Huber is reached too
    got = relational_distance(student, teacher).item()
    assert got == pytest.approx(huber(difference).mean(), rel=1e-10)


def test_relational_angle_equals_its_formula_across_widths():
    student, teacher = random_rows(6, 3), random_rows(6, 5, seed=1)
    differences = [
        cosine_at(student.numpy(), *triple) - cosine_at(teacher.numpy(), *triple)
        for triple in permutations(range(6), 3)
    ]
    assert np.abs(differences).max() > 1
    got = relational_angle(student, teacher).item()
    assert got == pytest.approx(huber(np.array(differences)).mean(), rel=1e-10)


@pytest.mark.parametrize("relation", RELATIONS)
def test_scale_place_and_direction_of_the_space_do_not_matter(relation):
    teacher = random_rows(5, 4)
    student = 3.0 * teacher @ torch.tensor(ortho_group.rvs(4, random_state=0)) + 7.0
    assert relation(student, teacher).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("relation", RELATIONS)
def test_gradients_are_those_of_finite_differences(relation):
    student, teacher = random_rows(5, 3).requires_grad_(), random_rows(5, 4, seed=1)
    assert torch.autograd.gradcheck(lambda s: relation(s, teacher), (student,))


@pytest.mark.parametrize(
    ("relation", "rows"),
    [(relational_distance, 1), (relational_angle, 1), (relational_angle, 2)],
)
def test_too_few_examples_to_relate_give_0_with_a_gradient_of_0(relation, rows):
    student = random_rows(rows, 3).requires_grad_()
    value = relation(student, random_rows(rows, 4, seed=1))
    value.backward()
    assert value.item() == 0.0
    assert not student.grad.any()


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("equal", [2, 5])
def test_equal_embeddings_give_a_finite_gradient_that_no_rounding_inflates(relation, equal):
    rows = random_rows(5, 3).float()
    rows[:equal] = rows[0]
    student = rows.clone().requires_grad_()
    value = relation(student, random_rows(5, 4, seed=1).float())
    value.backward()
    assert 0 < value.item() < 2
    assert student.grad.abs().max() < 10
    assert relation(rows, rows.clone()).item() == 0.0


@pytest.mark.parametrize("relation", RELATIONS)
def test_embeddings_of_other_batches_are_refused(relation):
    with pytest.raises(ValueError, match=r"shapes \(batch, width\) of one batch"):
        relation(random_rows(4, 3), random_rows(3, 3))
    with pytest.raises(ValueError, match=r"shapes \(batch, width\) of one batch"):
        relation(random_rows(4, 2, 3), random_rows(4, 2, 3))


def prepared(loss, width=16, task="single_label_classification"):
    """Prepared for a student of 2 blocks and a teacher of 4, both of the width."""
    student, teacher = (tiny_model("bert", depth, hidden_size=width).config for depth in (2, 4))
    loss.prepare(student, teacher, task)
    return loss


@pytest.mark.parametrize("build", EMBEDDING_LOSSES)
@pytest.mark.parametrize("pooling", ["first", "last", "mean", None])
def test_the_loss_compares_pooled_states_of_the_chosen_layers(build, pooling):
    loss = prepared(build(pooling=pooling, student_layer=0, teacher_layer=3))
    assert loss.layers() == {"hidden_states": ([0], [3])}
    student, teacher = random_rows(4, 4, 16), random_rows(4, 4, 16, seed=1)
    outputs = ModelOutput(hidden_states={0: student}), ModelOutput(hidden_states={3: teacher})
    expected = loss.compare(*(pool(x, MASK, pooling or "first") for x in (student, teacher)))
    assert expected > 0
    assert torch.equal(loss(*outputs, {"attention_mask": MASK}), expected)


@pytest.mark.parametrize("build", EMBEDDING_LOSSES)
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_what_stands_in_the_padding_changes_neither_the_value_nor_the_gradient(build, pooling):
    loss, results = prepared(build(pooling=pooling)), []
    for seed, scale in ((7, 0.0), (8, 1e6)):
        filling = random_rows(4, 4, 16, seed=seed) * scale
        states = [
            torch.where(MASK[..., None] > 0, random_rows(4, 4, 16, seed=i), filling)
            for i in range(2)
        ]
        student = states[0].requires_grad_()
        outputs = ModelOutput(hidden_states={2: student}), ModelOutput(hidden_states={4: states[1]})
        loss(*outputs, {"attention_mask": MASK}).backward()
        assert not student.grad[MASK == 0].any()
        results.append(student.grad)
    assert results[0].any()
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("build", EMBEDDING_LOSSES)
def test_half_precision_does_not_round_the_relations_away(build):
    loss = prepared(build(), width=64)
    states = [random_rows(8, 1, 64, seed=seed).bfloat16() for seed in (0, 1)]
    exact = loss.compare(*(pool(x.double(), None, "first") for x in states)).item()
    outputs = (ModelOutput(hidden_states={i: x}) for i, x in zip((2, 4), states, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*outputs, {})
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("build", EMBEDDING_LOSSES)
def test_by_default_the_last_blocks_are_read(build):
    assert prepared(build()).layers() == {"hidden_states": ([2], [4])}
    assert build.unit == "rows"


@pytest.mark.parametrize("build", EMBEDDING_LOSSES)
def test_what_would_train_wrongly_is_refused_before_training(build):
    with pytest.raises(ValueError, match=r"student_layer must lie between 0 and 2.*got 3"):
        prepared(build(student_layer=3))
    with pytest.raises(ValueError, match=r"teacher_layer must lie between 0 and 4.*got -1"):
        prepared(build(teacher_layer=-1))
    with pytest.raises(ValueError, match="seq2seq_lm"):
        prepared(build(), task="seq2seq_lm")
    with pytest.raises(ValueError, match="pooling must be one of first, last, mean, got 'cls'"):
        build(pooling="cls")


@pytest.mark.parametrize("build", EMBEDDING_LOSSES)
def test_a_causal_model_is_read_at_the_last_token_and_not_at_the_first_which_sees_nothing(build):
    with pytest.raises(ValueError, match=r"sees nothing but itself.*'last' or 'mean'"):
        prepared(build(pooling="first"), task="causal_lm")
    loss = prepared(build(), task="causal_lm")
    states = [random_rows(4, 4, 16, seed=seed) for seed in (0, 1)]
    outputs = (ModelOutput(hidden_states={i: x}) for i, x in zip((2, 4), states, strict=True))
    expected = loss.compare(*(pool(x, MASK, "last") for x in states))
    assert torch.equal(loss(*outputs, {"attention_mask": MASK}), expected)


@pytest.mark.parametrize("build", EMBEDDING_LOSSES)
def test_the_settings_rebuild_the_loss(build):
    loss = build(pooling="mean", student_layer=1, teacher_layer=2)
    again = build(**loss.config())
    assert again.config() == loss.config()
    assert prepared(again).layers() == {"hidden_states": ([1], [2])}
