"""A cached teacher says what the live one would, of the same row, whatever became of the order."""

import pickle

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cache_cases import (
    PaddingCollator,
    Teacher,
    flattened,
    ragged_dataset,
    token_sums,
    write_cache,
)
from settings import tiny_model
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from kdnlp.losses import soft_target_kl
from kdnlp.models.cache import TEACHER_OUTPUTS, CachedCollator
from kdnlp.models.cache.rows import ROW_COLUMN, with_row_numbers

SIDES = pytest.mark.parametrize("side", ["right", "left"])
# Another batch has other padding, and matrix products of another shape: float32 sums, reordered.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def rows_of(dataset, rows):
    return [dataset[int(row)] for row in rows]


def without_padding(name, tensor, mask):
    """A copy with zeros where a token is padding, by broadcasting alone."""
    mask = mask.float()
    if name == "logits" and tensor.dim() == 2:
        return tensor
    if name in ("attentions", "scores"):
        return tensor * mask[:, None, :, None] * mask[:, None, None, :]
    return tensor * mask[:, :, None]


def assert_live(outputs, live, mask):
    """Every field and layer of the live outputs, and nothing else; zeros where padding is."""
    got = {(name, layer): tensor for name, layer, tensor in flattened(outputs)}
    expected = {(name, layer): tensor for name, layer, tensor in flattened(live)}
    assert got.keys() == expected.keys()
    for (name, layer), tensor in expected.items():
        torch.testing.assert_close(
            got[name, layer], without_padding(name, tensor.detach(), mask), **CLOSE
        )


@SIDES
def test_every_field_reads_back_as_the_live_teacher_gives_it(side, tmp_path):
    teacher, dataset, collator = Teacher(), ragged_dataset(), PaddingCollator(side)
    cache = write_cache(teacher, tmp_path, collator=collator, batch_size=7)
    cached = CachedCollator(collator, cache)
    numbered = with_row_numbers(dataset)
    rng = np.random.default_rng(1)
    for size in (1, 4, 30):
        batch = cached(rows_of(numbered, rng.permutation(30)[:size]))
        outputs = batch.pop(TEACHER_OUTPUTS)
        assert_live(outputs, teacher(batch), batch["attention_mask"])


def test_one_cache_serves_padding_on_both_sides(tmp_path):
    teacher, numbered = Teacher(), with_row_numbers(ragged_dataset())
    cache = write_cache(teacher, tmp_path)
    batch = CachedCollator(PaddingCollator("left"), cache)(rows_of(numbered, [3, 9, 4]))
    assert not batch["attention_mask"][:, 0].all()
    assert_live(batch[TEACHER_OUTPUTS], teacher(batch), batch["attention_mask"])


def test_tokens_masked_out_in_the_middle_of_a_row_stay_out(tmp_path):
    masks = [[1, 0, 1, 1], [1, 1, 0], [0, 1, 1, 1, 0]]
    ids = [list(range(5, 5 + len(mask))) for mask in masks]
    columns = {"input_ids": ids, "attention_mask": masks, "labels": [0, 1, 0]}
    dataset = datasets.Dataset.from_dict(columns)
    cache = write_cache(token_sums, tmp_path, dataset)
    batch = PaddingCollator()(list(dataset))
    assert_live(cache.read([0, 1, 2], batch), token_sums(batch), batch["attention_mask"])


def test_a_teacher_with_its_own_token_ids_is_stored_by_its_own_lengths(tmp_path):
    ids = [[5, 6, 7], [8, 9]]
    theirs = [[11], [12, 13, 14, 15]]
    columns = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    columns |= {"teacher_input_ids": theirs, "labels": [0, 1]}
    columns |= {"teacher_attention_mask": [[1] * len(row) for row in theirs]}
    dataset = datasets.Dataset.from_dict(columns)

    def collator(features):
        names = ("input_ids", "attention_mask")
        own = [{name: row[f"teacher_{name}"] for name in names} | {"labels": 0} for row in features]
        padded = PaddingCollator("left")(own)
        return PaddingCollator()(features) | {f"teacher_{name}": padded[name] for name in names}

    def predict(batch):
        return {"hidden_states": {1: batch["teacher_input_ids"][:, :, None].float()}}

    cache = write_cache(predict, tmp_path, dataset, collator=collator)
    batch = collator(list(dataset)[::-1])
    expected = batch["teacher_input_ids"][:, :, None].float()
    assert expected.shape == (2, 4, 1)
    assert torch.equal(cache.read([1, 0], batch)["hidden_states"][1], expected)


def test_choices_of_a_row_are_stored_one_after_the_other(tmp_path):
    ids = [[[5, 6, 7], [8]], [[9, 10], [11, 12]], [[13], [14, 15, 16]]]
    masks = [[[1] * len(choice) for choice in row] for row in ids]
    columns = {"input_ids": ids, "attention_mask": masks, "labels": [0, 1, 1]}
    dataset = datasets.Dataset.from_dict(columns)

    def collator(features):
        flat = [
            {"input_ids": i, "attention_mask": m, "labels": 0}
            for row in features
            for i, m in zip(row["input_ids"], row["attention_mask"], strict=True)
        ]
        batch = PaddingCollator()(flat)
        names = ("input_ids", "attention_mask")
        return {name: batch[name].unflatten(0, (-1, 2)) for name in names}

    def predict(batch):
        ids = batch["input_ids"].float()
        return {"logits": ids.sum(2), "hidden_states": {1: ids.flatten(0, 1)[:, :, None]}}

    cache = write_cache(predict, tmp_path, dataset, collator=collator)
    batch = collator([dataset[2], dataset[1]])
    outputs, live = cache.read([2, 1], batch), predict(batch)
    assert torch.equal(outputs["logits"], live["logits"])
    assert torch.equal(outputs["hidden_states"][1], live["hidden_states"][1])
    attentions = {"attentions": {1: torch.zeros(6, 2, 3, 3)}}
    with pytest.raises(ValueError, match=r"attentions\.1 .* unknown which rows and tokens"):
        write_cache(lambda batch: attentions, tmp_path, dataset.select([0, 2]), collator=collator)


def test_the_batch_size_of_writing_changes_nothing_but_rounding(tmp_path):
    caches = [write_cache(Teacher(), tmp_path / str(n), batch_size=n) for n in (1, 7, 30)]
    assert len({cache.folder.name for cache in caches}) == 1
    batch = PaddingCollator()(list(ragged_dataset()))
    first, *others = [list(flattened(cache.read(range(30), batch))) for cache in caches]
    for other in others:
        for (name, layer, tensor), (*key, again) in zip(first, other, strict=True):
            assert [name, layer] == key
            torch.testing.assert_close(tensor, again, **CLOSE)


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """A cache of an exact teacher, and its numbered rows."""
    folder = tmp_path_factory.mktemp("sums")
    return write_cache(token_sums, folder), with_row_numbers(ragged_dataset())


def assert_own_rows(batch):
    """Each row has its own outputs: the exact teacher's, of the ids beside it."""
    live = token_sums(batch)
    mask = batch["attention_mask"]
    assert torch.equal(batch[TEACHER_OUTPUTS]["logits"], live["logits"])
    hidden = live["hidden_states"][1] * mask[:, :, None]
    assert torch.equal(batch[TEACHER_OUTPUTS]["hidden_states"][1], hidden)


ORDERS = {
    "shuffled": lambda rows: rows.shuffle(seed=3),
    "selected": lambda rows: rows.select([7, 2, 29, 2]),
    "sharded": lambda rows: rows.shard(3, 1),
    "shuffled shard": lambda rows: rows.shuffle(seed=1).shard(2, 0).flatten_indices(),
    "filtered": lambda rows: rows.filter(lambda row: row["labels"] == 1),
    "split": lambda rows: rows.train_test_split(0.3, seed=0)["test"],
    "doubled": lambda rows: datasets.concatenate_datasets([rows, rows.shuffle(seed=5)]),
    "in torch's format": lambda rows: rows.with_format("torch").shuffle(seed=2),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_rows_keep_their_own_outputs_in_any_order(order, sums):
    cache, numbered = sums
    rows = order(numbered)
    loader = DataLoader(rows, batch_size=4, collate_fn=CachedCollator(PaddingCollator(), cache))
    batches = list(loader)
    assert sum(len(batch["labels"]) for batch in batches) == len(rows)
    for batch in batches:
        assert_own_rows(batch)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_that_stay_and_batches_by_length_give_rows_their_own_outputs(sums):
    cache, numbered = sums
    collator = pickle.loads(pickle.dumps(CachedCollator(PaddingCollator(), cache)))
    loader = DataLoader(
        numbered,
        batch_size=4,
        sampler=LengthGroupedSampler(4, numbered, generator=torch.Generator().manual_seed(0)),
        collate_fn=collator,
        num_workers=2,
        persistent_workers=True,
    )
    for _ in range(2):
        batches = list(loader)
        assert sum(len(batch["labels"]) for batch in batches) == 30
        for batch in batches:
            assert_own_rows(batch)


def test_a_pickled_cache_carries_its_path_and_not_its_rows(sums):
    cache, _ = sums
    assert len(pickle.dumps(cache)) < 300 < cache.nbytes


def test_the_collator_leaves_rows_without_a_number_and_the_rows_themselves_alone(sums):
    cache, numbered = sums
    collator = CachedCollator(PaddingCollator(), cache)
    assert TEACHER_OUTPUTS not in collator(rows_of(ragged_dataset(), [1, 2]))
    features = rows_of(numbered, [1, 2])
    collator(features)
    assert [feature[ROW_COLUMN] for feature in features] == [1, 2]


def train(batches, teacher_logits):
    """The losses of a student's few steps."""
    student = tiny_model("bert", 1, seed=5).train()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    losses = []
    for batch in batches:
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
        logits = student(**inputs).logits
        loss = F.cross_entropy(logits, batch["labels"])
        loss = loss + soft_target_kl(logits, teacher_logits(batch), temperature=2.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_cached_and_live_training_have_the_same_losses(tmp_path):
    teacher, collator = Teacher(), PaddingCollator()
    cache = write_cache(teacher.logits, tmp_path, collator=collator)
    loader = DataLoader(
        with_row_numbers(ragged_dataset()),
        batch_size=5,
        collate_fn=CachedCollator(collator, cache),
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
    )
    batches = [batch for _ in range(2) for batch in loader]
    live = train(batches, lambda batch: teacher(batch)["logits"].detach())
    cached = train(batches, lambda batch: batch[TEACHER_OUTPUTS]["logits"])
    assert len(live) == 12
    # Rounding of the logits, 1e-7, carried through twelve steps.
    assert cached == pytest.approx(live, rel=1e-4)
    shifted = train(batches, lambda batch: batch[TEACHER_OUTPUTS]["logits"].roll(1, 0))
    assert shifted != pytest.approx(live, rel=1e-2)


def test_rows_of_another_dataset_are_refused_when_they_are_read(sums):
    cache, _ = sums
    collator = CachedCollator(PaddingCollator(), cache)
    other = with_row_numbers(ragged_dataset(31, seed=1))
    with pytest.raises(ValueError, match=r"Row \d+ has \d tokens in the batch .* \d where"):
        collator(rows_of(other, range(8)))
    for row in (30, -1):
        with pytest.raises(ValueError, match="rows from 0 to 29"):
            cache.read([row], PaddingCollator()(rows_of(ragged_dataset(), [0])))
