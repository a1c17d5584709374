"""Top-k logits: the kept labels have the teacher's probability, and the rest its mass."""

import numpy as np
import pytest
import torch
from cache_cases import PaddingCollator, ragged_dataset, write_cache
from scipy.special import log_softmax, logsumexp, softmax

from kdnlp.models.cache import TEACHER_OUTPUTS, CachedCollator
from kdnlp.models.cache.numbers import dense_logits, top_k_logits
from kdnlp.models.cache.rows import with_row_numbers

LABELS = 300
CLOSE = {"rtol": 0, "atol": 1e-5}
SHAPES = pytest.mark.parametrize("shape", [(4,), (2, 3)])


def random_logits(shape, labels=LABELS, seed=0, scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, (*shape, labels)).astype(np.float32)


@SHAPES
@pytest.mark.parametrize("top_k", [1, 5, LABELS - 1])
def test_what_is_kept_is_the_largest_and_the_mass_of_the_others(shape, top_k):
    logits = random_logits(shape)
    kept, indices = top_k_logits(torch.from_numpy(logits), top_k)
    order = np.argsort(-logits, axis=-1)
    assert np.array_equal(indices, order[..., :top_k])
    expected = np.take_along_axis(logits, order, -1)
    assert np.array_equal(kept[..., :-1], expected[..., :top_k])
    others = logsumexp(expected[..., top_k:].astype(float), axis=-1)
    assert kept[..., -1].numpy() == pytest.approx(others, rel=1e-6)


@SHAPES
@pytest.mark.parametrize("top_k", [1, 5, LABELS - 1])
def test_kept_labels_have_their_exact_probability_and_the_others_an_even_one(shape, top_k):
    logits = random_logits(shape)
    dense = dense_logits(*top_k_logits(torch.from_numpy(logits), top_k), LABELS)
    got = log_softmax(dense.double().numpy(), axis=-1)
    expected = log_softmax(logits.astype(float), axis=-1)
    order = np.argsort(-logits, axis=-1)
    top, others = (np.take_along_axis(got, part, -1) for part in np.split(order, [top_k], axis=-1))
    assert top == pytest.approx(np.take_along_axis(expected, order[..., :top_k], -1), abs=1e-5)
    assert np.ptp(others, axis=-1) == pytest.approx(0)
    mass = 1 - np.exp(top).sum(-1)
    assert np.exp(others).sum(-1) == pytest.approx(mass, abs=1e-9)


def test_above_temperature_1_the_kept_labels_have_less_than_theirs_as_documented():
    logits = random_logits((8,))
    dense = dense_logits(*top_k_logits(torch.from_numpy(logits), 5), LABELS).double().numpy()
    order = np.argsort(-logits, axis=-1)[:, :5]
    for temperature, sign in ((0.5, 1), (2.0, -1), (4.0, -1)):
        got, expected = (
            np.take_along_axis(softmax(x / temperature, axis=-1), order, -1).sum(-1)
            for x in (dense, logits.astype(float))
        )
        assert (sign * (got - expected) > 0).all()


def test_labels_that_a_model_rules_out_stay_ruled_out_and_give_no_nan():
    logits = torch.tensor([[2.0, 1.0, -torch.inf, -torch.inf], [0.0, -torch.inf, 3.0, 1.0]])
    dense = dense_logits(*top_k_logits(logits, 2), 4)
    assert torch.equal(dense[0], logits[0])
    exact = softmax([0.0, -np.inf, 3.0, 1.0])
    assert softmax(dense[1].numpy()) == pytest.approx([exact[0] / 2, exact[0] / 2, *exact[2:]])


def test_no_gradient_is_needed_and_ties_are_one_label_each():
    kept, indices = top_k_logits(torch.zeros(1, 6), 3)
    assert len(set(indices[0].tolist())) == 3
    assert torch.allclose(dense_logits(kept, indices, 6), torch.zeros(1, 6), atol=1e-6)


def vocabulary_teacher(labels):
    """Logits of every token that depend on its id alone."""
    table = torch.from_numpy(random_logits((40,), labels))
    return lambda batch: {"logits": table[batch["input_ids"]]}


@pytest.mark.parametrize(
    ("labels", "index"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_indices_take_the_narrowest_type_that_holds_every_label(labels, index, tmp_path):
    teacher, dataset = vocabulary_teacher(labels), ragged_dataset(3)
    cache = write_cache(teacher, tmp_path, dataset, top_k=4)
    stored = np.load(cache.folder / "logits_indices.npy")
    assert stored.dtype == index
    tokens = sum(map(len, dataset["input_ids"]))
    assert cache.nbytes == tokens * (5 * 4 + 4 * stored.itemsize) + 3 * 4
    batch = PaddingCollator()(list(dataset))
    live = teacher(batch)["logits"].double()
    mask = batch["attention_mask"].bool()
    top = live.topk(4).indices
    got = cache.read(range(3), batch)["logits"].double().log_softmax(-1).gather(-1, top)
    torch.testing.assert_close(got[mask], live.log_softmax(-1).gather(-1, top)[mask], **CLOSE)


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_carry_the_kept_logits_and_spread_to_what_reading_gives(side, tmp_path):
    teacher, collator = vocabulary_teacher(LABELS), PaddingCollator(side)
    cache = write_cache(teacher, tmp_path, collator=collator, top_k=3, dtype="bfloat16")
    features = list(with_row_numbers(ragged_dataset()))[4:9]
    batch = CachedCollator(collator, cache)(features)
    outputs = batch[TEACHER_OUTPUTS]
    assert outputs["logits"].shape == (*batch["input_ids"].shape, 4)
    dense = cache.dense(outputs)
    assert dense.keys() == {"logits"}
    assert torch.equal(dense["logits"], cache.read(range(4, 9), batch)["logits"])
    assert dense["logits"].shape == (*batch["input_ids"].shape, LABELS)
    padding = ~batch["attention_mask"].bool()
    assert padding.any()
    assert (dense["logits"][padding] == 0).all()
    torch.testing.assert_close(
        dense["logits"].max(-1).values[~padding],
        teacher(batch)["logits"].max(-1).values[~padding],
        rtol=2**-8,
        atol=0,
    )


def test_top_k_is_of_a_classifier_too_and_leaves_other_fields_whole(tmp_path):
    def teacher(batch):
        ids = batch["input_ids"].float()
        logits = torch.stack([ids.sum(1) * (-1) ** i / (i + 5) for i in range(6)], dim=1)
        return {"logits": logits, "hidden_states": {1: ids[:, :, None]}}

    cache = write_cache(teacher, tmp_path, top_k=2)
    batch = PaddingCollator()(list(ragged_dataset()))
    outputs = cache.read(range(30), batch)
    top = teacher(batch)["logits"].topk(2)
    assert torch.equal(outputs["logits"].gather(1, top.indices), top.values)
    assert torch.equal(outputs["hidden_states"][1][..., 0], batch["input_ids"].float())
