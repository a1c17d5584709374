"""Batches of like lengths hold little padding, and a resumed run finds the order again."""

import numpy as np
import pytest
from datasets import Dataset

from kdnlp.data.length_grouping import POOL, LengthGroupedSampler, row_lengths


def order(lengths, step_size, seed=0, epoch=0):
    sampler = LengthGroupedSampler(np.asarray(lengths), step_size, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 8 * POOL + 3, 16 * POOL])
def test_every_row_comes_once_an_epoch(rows):
    lengths = np.random.default_rng(0).integers(1, 99, rows)
    assert sorted(order(lengths, 8)) == list(range(rows))


def test_the_order_is_that_of_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 99, 100)
    assert order(lengths, 8, 1, 2) == order(lengths, 8, 1, 2)
    assert order(lengths, 8, 1, 2) != order(lengths, 8, 1, 3)
    assert order(lengths, 8, 1, 2) != order(lengths, 8, 2, 2)


def test_of_glues_lengths_more_than_nine_tenths_of_the_tokens_are_real():
    lengths = np.random.default_rng(0).lognormal(3.1, 0.57, 32 * 200).clip(4, 128).astype(int)
    batches = lengths[order(lengths, 32)].reshape(-1, 32)
    assert lengths.sum() / (32 * batches.max(1)).sum() > 0.9


def test_steps_come_in_random_order_the_longest_first():
    lengths = np.random.default_rng(0).permutation(8 * POOL)
    longest = lengths[order(lengths, 8)].reshape(-1, 8).max(1)
    assert longest[0] == len(lengths) - 1
    assert abs(np.corrcoef(np.arange(1, POOL), longest[1:])[0, 1]) < 0.5


def test_equal_lengths_are_plain_random_rows():
    rows = order(np.full(64, 5), 8)
    assert rows != sorted(rows)


def test_lengths_are_those_of_the_longest_list_and_survive_a_shuffle():
    rows = Dataset.from_dict(
        {
            "input_ids": [[1, 2], [3], [4, 5, 6]],
            "choices": [[[1], [1, 2, 3]], [[1, 2]], [[], [7]]],
            "labels": [0, 1, 0],
            "text": ["a", "b", "c"],
        }
    )
    assert row_lengths(rows).tolist() == [2, 1, 3]
    assert row_lengths(rows, "choices").tolist() == [3, 2, 1]
    assert row_lengths(rows.select([2, 0])).tolist() == [3, 2]


def test_where_lengths_are_not_known_there_are_none():
    rows = Dataset.from_dict({"labels": [0, 1], "text": ["a", "b"]})
    assert row_lengths(rows) is None
    assert row_lengths(rows, "labels") is None
    assert row_lengths([{"input_ids": [1, 2]}]) is None


def test_a_column_that_counts_the_tokens_is_believed():
    rows = Dataset.from_dict({"input_ids": [[1], [1, 2]], "n_tokens": [7, 3]})
    assert row_lengths(rows, counted="n_tokens").tolist() == [7, 3]
    assert row_lengths(rows, counted="length").tolist() == [1, 2]
