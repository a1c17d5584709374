"""Relations of queries, keys and values equal their formulas in numpy, whatever the padding."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from scipy.special import rel_entr, softmax
from scipy.stats import ortho_group
from settings import tiny_model
from transformers.utils import ModelOutput

from kdnlp.losses.minilm import PLAIN_ATTENTION, MiniLMLoss
from kdnlp.losses.relation import RelationLoss, relation_kl, self_relation

# Padding on the right, on the left, and none.
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
FIELDS = ("queries", "keys", "values")


def random_vectors(width, seed=0, batch=3, length=5):
    generator = np.random.default_rng(seed)
    return torch.tensor(generator.normal(size=(batch, length, width)))


def heads_of(vectors, heads):
    """Shape (heads, length, size) of one example."""
    return np.stack(np.split(vectors.detach().numpy(), heads, axis=-1))


def relation_by_hand(student, teacher, heads, mask=None):
    """Example by example, head by head, query by query, over the attended keys alone."""
    terms = []
    for row in range(student[0].size(0)):
        kept = np.flatnonzero(mask[row]) if mask is not None else range(student[0].size(1))
        a, b = (heads_of(v[row], heads)[:, kept] for v in student)
        c, d = (heads_of(v[row], heads)[:, kept] for v in teacher)
        for head in range(heads):
            q = softmax(a[head] @ b[head].T / math.sqrt(a.shape[-1]), axis=-1)
            p = softmax(c[head] @ d[head].T / math.sqrt(c.shape[-1]), axis=-1)
            terms.append(rel_entr(p, q).sum(-1) / heads)
    counted = len(np.concatenate(terms)) // heads
    return np.concatenate(terms).sum() / counted


def self_by_hand(student, teacher, heads, mask=None):
    return relation_by_hand((student, student), (teacher, teacher), heads, mask)


def outputs(widths, seed=0, layer=1):
    """Queries, keys and values of one block, as the trainer gives them: by the block's number."""
    return ModelOutput(
        {f: {layer: random_vectors(w, seed + i)} for i, (f, w) in enumerate(widths.items())}
    )


@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("mask", [None, MASK])
def test_self_relation_equals_its_formula_across_widths(heads, mask):
    student, teacher = random_vectors(12), random_vectors(18, seed=1)
    got = self_relation(student, teacher, heads, mask).item()
    expected = self_by_hand(student, teacher, heads, mask)
    assert got == pytest.approx(expected, rel=1e-10)
    assert got > 1e-2


@pytest.mark.parametrize("mask", [None, MASK])
def test_relation_between_two_kinds_of_vector_equals_its_formula(mask):
    student = random_vectors(12), random_vectors(12, seed=2)
    teacher = random_vectors(6, seed=3), random_vectors(6, seed=4)
    got = relation_kl(student, teacher, 3, mask).item()
    assert got == pytest.approx(relation_by_hand(student, teacher, 3, mask), rel=1e-10)


def test_single_precision_is_close_to_the_formula():
    student, teacher = random_vectors(12), random_vectors(18, seed=1)
    got = self_relation(student.float(), teacher.float(), 6, MASK).item()
    assert got == pytest.approx(self_by_hand(student, teacher, 6, MASK), rel=1e-5)


def test_turning_the_vectors_of_a_head_changes_no_relation():
    teacher = random_vectors(12)
    turns = [ortho_group.rvs(4, random_state=seed) for seed in range(3)]
    student = teacher @ torch.tensor(block_diag(*turns))
    assert self_relation(student, teacher, 3, MASK).item() == pytest.approx(0.0, abs=1e-12)
    assert self_relation(student, teacher, 4, MASK).item() > 1e-3  # across heads it does


def test_gradients_are_those_of_finite_differences():
    student, teacher = random_vectors(4).requires_grad_(), random_vectors(6, seed=1)
    assert torch.autograd.gradcheck(lambda s: self_relation(s, teacher, 2, MASK), (student,))
    keys = random_vectors(4, seed=2).requires_grad_()
    target = teacher, random_vectors(6, seed=3)
    assert torch.autograd.gradcheck(
        lambda q, k: relation_kl((q, k), target, 2, MASK), (student, keys)
    )


def test_what_stands_in_the_padding_changes_neither_the_value_nor_the_gradient():
    results = []
    for seed, scale in ((7, 0.0), (8, 1e4)):
        filling = random_vectors(12, seed) * scale
        student = torch.where(MASK[..., None] > 0, random_vectors(12), filling).requires_grad_()
        other = torch.where(MASK[..., None] > 0, random_vectors(6, 1), filling[..., :6])
        value = self_relation(student, other, 2, MASK)
        value.backward()
        assert not student.grad[MASK == 0].any()
        results.append((value.detach(), student.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_an_example_of_padding_alone_adds_nothing_and_no_nan():
    student, teacher = random_vectors(4).requires_grad_(), random_vectors(4, seed=1)
    mask = MASK.clone()
    mask[2] = 0
    value = self_relation(student, teacher, 2, mask)
    value.backward()
    assert value.item() == pytest.approx(self_by_hand(student[:2], teacher[:2], 2, mask[:2]))
    assert torch.isfinite(student.grad).all()
    assert self_relation(student, teacher, 2, mask * 0).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_rounds_the_divergence_away(dtype):
    vectors = [random_vectors(12, seed).to(dtype) for seed in (0, 1)]
    exact = self_relation(*(v.double() for v in vectors), 2, MASK).item()
    assert self_relation(*vectors, 2, MASK).item() == pytest.approx(exact, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert self_relation(*vectors, 2, MASK).item() == pytest.approx(exact, rel=1e-5)


def test_heads_that_do_not_divide_a_width_and_unlike_positions_are_refused():
    with pytest.raises(ValueError, match=r"must divide .*\[12, 18\], got 4"):
        self_relation(random_vectors(12), random_vectors(18), 4)
    with pytest.raises(ValueError, match=r"one \(batch, length\)"):
        self_relation(random_vectors(12), random_vectors(12, length=4), 2)
    with pytest.raises(ValueError, match=r"one \(batch, length\)"):
        self_relation(random_vectors(12), random_vectors(12), 2, MASK[:, :4])


def prepared(loss, student=None, teacher=None, task="single_label_classification"):
    """Prepared for a student of 2 blocks and 2 heads, a teacher of 4 and 4."""
    small = student or tiny_model("bert", 2).config
    loss.prepare(small, teacher or tiny_model("bert", 4, num_attention_heads=4).config, task)
    return loss


def test_the_loss_is_the_sum_over_the_kinds_each_with_heads_that_fit():
    """The teacher has 4 heads; keys and values of grouped queries may have room for fewer."""
    loss = prepared(RelationLoss())
    student = outputs({"queries": 8, "keys": 6, "values": 5}, layer=2)
    teacher = outputs({"queries": 12, "keys": 9, "values": 7}, seed=10, layer=4)
    expected = sum(
        self_by_hand(student[field][2], teacher[field][4], heads, MASK)
        for field, heads in zip(FIELDS, (4, 3, 1), strict=True)
    )
    got = loss(student, teacher, {"attention_mask": MASK}).item()
    assert got == pytest.approx(expected, rel=1e-10)


def test_chosen_kinds_heads_and_layers_are_the_ones_that_are_read():
    loss = prepared(RelationLoss(["value"], 4, student_layer=1, teacher_layer=3))
    assert loss.needs == {"values"}
    assert loss.layers() == {"values": ([1], [3])}
    student, teacher = outputs({"values": 12}), outputs({"values": 20}, seed=1, layer=3)
    expected = self_by_hand(student["values"][1], teacher["values"][3], 4)
    assert loss(student, teacher, {}).item() == pytest.approx(expected, rel=1e-10)


def test_heads_that_do_not_divide_the_width_are_refused_before_training():
    with pytest.raises(ValueError, match=r"relation_heads must divide the width 16 .* got 3"):
        prepared(RelationLoss(relation_heads=3))


def test_by_default_the_last_blocks_are_read():
    loss = prepared(RelationLoss())
    assert loss.needs == set(FIELDS)
    assert loss.layers() == {field: ([2], [4]) for field in FIELDS}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student_layer": 3}, r"student_layer must lie between 1 and 2.*got 3"),
        ({"student_layer": 0}, "student_layer must lie between 1 and 2.*got 0"),
        ({"teacher_layer": -1}, "teacher_layer must lie between 1 and 4.*got -1"),
    ],
)
@pytest.mark.parametrize("loss", [RelationLoss, MiniLMLoss])
def test_a_layer_that_is_not_there_is_refused_before_training(loss, settings, message):
    with pytest.raises(ValueError, match=message):
        prepared(loss(**settings))


def test_a_task_with_two_stacks_or_a_causal_mask_for_minilm_is_refused_before_training():
    for loss in (RelationLoss(), MiniLMLoss()):
        with pytest.raises(ValueError, match="seq2seq_lm"):
            prepared(loss, task="seq2seq_lm")
    with pytest.raises(ValueError, match="causal_lm"):
        prepared(MiniLMLoss(), task="causal_lm")


@pytest.mark.parametrize("relations", [(), ("query", "query"), ("query-key",), "output"])
def test_relations_that_are_unknown_or_weigh_double_are_refused(relations):
    with pytest.raises(ValueError, match="relations must be some of query, key, value"):
        RelationLoss(relations)


def test_no_heads_are_refused():
    with pytest.raises(ValueError, match="relation_heads must be at least 1"):
        RelationLoss(relation_heads=0)


@pytest.mark.parametrize(
    "loss",
    [RelationLoss(), RelationLoss(("key", "value"), 3, 1, 2), MiniLMLoss(), MiniLMLoss(1, 3)],
)
def test_the_settings_rebuild_the_loss(loss):
    again = type(loss)(**loss.config())
    assert again.config() == loss.config()
    assert again.needs == loss.needs
    assert again.relations == loss.relations


def states_of(model, batch, last):
    """Queries, keys and values of the last block as its projections give them, and attentions."""
    seen = {}
    names = {"query": "queries", "key": "keys", "value": "values"}
    names |= {f"{name[0]}_lin": field for name, field in names.items()}
    for path, module in model.named_modules():
        field = names.get(path.rsplit(".", 1)[-1])
        if field:  # the last block's come last
            module.register_forward_hook(lambda m, i, out, f=field: seen.update({f: {last: out}}))
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions[-1]
    return ModelOutput(seen), attentions.numpy()


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert"])
def test_minilm_compares_the_attention_that_the_models_have(name):
    models = [
        tiny_model(name, depth, seed, attn_implementation="eager").double()
        for depth, seed in ((2, 0), (3, 1))
    ]
    batch = {"input_ids": torch.randint(5, 40, (3, 5)), "attention_mask": MASK}
    (student, q), (teacher, p) = (
        states_of(m, batch, last) for m, last in zip(models, (2, 3), strict=True)
    )
    divergence = rel_entr(p, q).sum(-1).mean(1)  # (batch, length), mean over heads
    expected = (divergence * MASK.numpy()).sum() / MASK.sum().item()
    assert expected > 1e-4
    expected += self_by_hand(student["values"][2], teacher["values"][3], 2, MASK)
    loss = prepared(MiniLMLoss(), models[0].config, models[1].config)
    assert loss.layers() == {field: ([2], [3]) for field in sorted(FIELDS)}
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["modernbert", "llama", "deberta-v2", "mpnet", "t5-encoder"])
def test_minilm_refuses_models_whose_attention_is_more_than_queries_and_keys(name):
    config, plain = tiny_model(name, 2).config, tiny_model("bert", 2).config
    for student, teacher in ((config, config), (plain, config), (config, plain)):
        with pytest.raises(ValueError, match=rf"{config.model_type!r}.*use RelationLoss"):
            prepared(MiniLMLoss(), student, teacher)
        prepared(RelationLoss(), student, teacher)


def test_minilm_refuses_causal_models():
    assert "gpt2" not in PLAIN_ATTENTION
    decoder = tiny_model("bert", 2, is_decoder=True).config
    with pytest.raises(ValueError, match="'bert' with is_decoder"):
        prepared(MiniLMLoss(), decoder, decoder)


def test_minilm_refuses_other_numbers_of_heads():
    with pytest.raises(ValueError, match=r"got 2 of the student and 4.*RelationLoss"):
        prepared(MiniLMLoss())
