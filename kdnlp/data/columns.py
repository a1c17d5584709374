"""The columns of rows of any kind, and a dataset's numbers, however it was put together."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset
from torch.utils.data import IterableDataset as TorchStream

# In a shuffled dataset every row is a chunk, and more of them at a time take longer per row.
_ROWS = 1000


def column_names(rows: Any) -> list[str]:
    """The names of the columns of a dataset, a list, a torch dataset or a stream.

    Rows that do not say are asked for the first of them. Nothing is known of a stream that has one
    iterator, itself or another: a row that is looked at would not come again.
    """
    named = getattr(rows, "column_names", None)
    if named:
        return list(named)
    if isinstance(rows, IterableDataset | TorchStream):
        again = iter(rows)
        first = None if again is rows or again is iter(rows) else next(again, None)
    else:
        first = rows[0] if rows is not None and len(rows) else None
    return list(first) if isinstance(first, Mapping) else []


def number_columns(dataset: Dataset) -> list[str]:
    """The columns of numbers or of (nested) lists of them, which a model can read."""
    return [field.name for field in dataset.features.arrow_schema if _is_numeric(field.type)]


def column_parts(dataset: Dataset, column: str) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """A column in parts of some rows, lists taken apart.

    Args:
        dataset: any; rows come in its order.
        column: one of `number_columns`.

    Yields:
        The lengths of the lists, int64, an array per depth with the outermost first, none for a
        column of plain numbers; and all numbers, int64 or float64. A missing number is NaN, or the
        smallest int64.
    """
    for table in dataset.select_columns([column]).with_format("arrow").iter(_ROWS):
        values = _plain(table[column].combine_chunks())
        lengths = []
        while _is_list(values.type):
            lengths.append(_to_numpy(values.value_lengths(), pa.int64()))
            values = _plain(values.flatten())
        is_float = pa.types.is_floating(values.type)
        yield lengths, _to_numpy(values, pa.float64() if is_float else pa.int64())


def _to_numpy(array: pa.Array, kind: pa.DataType) -> np.ndarray:
    null = float("nan") if pa.types.is_floating(kind) else np.iinfo(np.int64).min
    filled = array.cast(kind).fill_null(pa.scalar(null, kind))
    return np.ascontiguousarray(filled.to_numpy(zero_copy_only=False))


def _is_numeric(kind: pa.DataType) -> bool:
    kind = getattr(kind, "storage_type", kind)
    while _is_list(kind):
        kind = kind.value_type
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _plain(array: pa.Array) -> pa.Array:
    """The lists under a type of datasets' own, such as `Array2D`."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array
