"""The rows that a cache is of: their numbers, which follow them everywhere, and their lengths."""

from collections.abc import Callable

import numpy as np
from datasets import Dataset

from kdnlp.data.columns import column_parts, number_columns
from kdnlp.models.alignment import TEACHER_PREFIX
from kdnlp.models.cache.fields import LABELS, TOKENS
from kdnlp.models.heads import IGNORED_LABEL

ROW_COLUMN = f"{TEACHER_PREFIX}row"
"""The column that says which row of the cache a row of the dataset is."""


def with_row_numbers(dataset: Dataset) -> Dataset:
    """The dataset with a column `ROW_COLUMN` that counts its rows from 0.

    The numbers stay with the rows when the dataset is shuffled, filtered or sharded afterwards,
    whoever does it.

    Raises:
        TypeError: if it is no `datasets.Dataset`.
        ValueError: if its rows have numbers already.
    """
    check_dataset(dataset)
    if ROW_COLUMN in dataset.column_names:
        raise ValueError(
            f"The dataset has a column {ROW_COLUMN!r} already. Other numbers would give its rows "
            "the outputs of others. Keep it, if its cache is used; else dataset.remove_columns."
        )
    return dataset.add_column(ROW_COLUMN, np.arange(len(dataset)))


def without_row_numbers(dataset: Dataset) -> Dataset:
    """The dataset without `ROW_COLUMN`, which must count its rows from 0 if it is there."""
    if ROW_COLUMN not in dataset.column_names:
        return dataset
    numbers = dataset.with_format("numpy", columns=[ROW_COLUMN])[:][ROW_COLUMN]
    if not np.array_equal(numbers, np.arange(len(dataset))):
        raise ValueError(
            f"Expected {ROW_COLUMN!r} to count the rows from 0, got other numbers: the dataset was "
            "shuffled or filtered since. Its rows would be stored in other rows' places. Write the "
            "cache of the dataset as with_row_numbers returned it, or number it anew: "
            f"dataset.remove_columns({ROW_COLUMN!r})."
        )
    return dataset.remove_columns(ROW_COLUMN)


def check_dataset(dataset: Dataset) -> None:
    """Raise unless it is a `datasets.Dataset` with rows."""
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"Expected a tokenised datasets.Dataset, got {type(dataset).__name__}. A cache is by "
            "row, and needs rows that can be counted, hashed and read in any order."
        )
    if not len(dataset):
        raise ValueError("Expected at least one row, got none: there is nothing to cache.")


def token_counts(dataset: Dataset, kinds: set[str]) -> dict[str, np.ndarray]:
    """How many tokens of each row count, by kind of mask: int32, shape (rows,).

    Args:
        dataset: tokenised rows. Without a mask among the columns, all of a row's ids count.
        kinds: of `TOKENS` and `LABELS`.

    Raises:
        ValueError: if a kind cannot be told from the columns.
    """
    names = number_columns(dataset)
    own = TEACHER_PREFIX if f"{TEACHER_PREFIX}input_ids" in names else ""
    counts = {}
    if f"{own}attention_mask" in names:
        counts[TOKENS] = _count(dataset, f"{own}attention_mask", lambda values: values != 0)
    elif f"{own}input_ids" in names:
        counts[TOKENS] = _count(dataset, f"{own}input_ids", np.ones_like)
    if LABELS in kinds and LABELS in names:
        counts[LABELS] = _count(dataset, LABELS, lambda values: values != IGNORED_LABEL)
    if kinds - set(counts):
        raise ValueError(
            f"Expected columns that say which tokens count ({', '.join(sorted(kinds))}, or "
            f"input_ids), got {names}. Where a row's outputs start would be unknown. Cache a "
            "tokenised dataset."
        )
    return counts


def _count(
    dataset: Dataset, column: str, counted: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Of every row's list, however deep, how many numbers are counted."""
    counts = []
    for lengths, values in column_parts(dataset, column):
        if not lengths:
            raise ValueError(
                f"Expected a list of numbers per row in the column {column!r}, got plain numbers. "
                "One number is not the mask of several tokens."
            )
        bounds = np.arange(len(lengths[0]) + 1)
        for inner in (*lengths, counted(values)):
            bounds = np.concatenate([[0], np.cumsum(inner, dtype=np.int64)])[bounds]
        counts.append(np.diff(bounds))
    return np.concatenate(counts).astype(np.int32)
