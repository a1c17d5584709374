"""The user's own data: a table on disk becomes a dataset and a task."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset

from kdnlp.data.task import Task

# "NA", "null" and "None" are words in a text, and a lone quote in a TSV file opens no field: with
# pandas' defaults the first become missing values and the second swallows the lines that follow.
_CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV_OPTIONS),
    ".tsv": ("csv", {**_CSV_OPTIONS, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}


def read_tables(
    train_file: str | os.PathLike[str],
    validation_file: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> DatasetDict:
    """Read a training table and a validation table, or split one in two.

    CSV and TSV files need a header line. Only empty cells count as missing: words like "NA" stay
    words. TSV fields are read as they stand, without quoting.

    Args:
        train_file: a .csv, .tsv, .json, .jsonl or .parquet file.
        validation_file: the same; `None` takes a random part of the training rows.
        validation_fraction: the share of rows, in (0, 1), that is held out without a
            `validation_file`. Rows are drawn one by one: where near-duplicates or rows of one
            author must not stand on both sides, split beforehand.
        seed: of the random split; the same seed gives the same rows.

    Returns:
        `train` and `validation`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a format is unknown, or the split would leave a side empty.
    """
    train = _read_table(Path(train_file))
    if validation_file is not None:
        return DatasetDict(train=train, validation=_read_table(Path(validation_file)))
    held_out = round(len(train) * validation_fraction)
    if not 0.0 < validation_fraction < 1.0 or not 0 < held_out < len(train):
        raise ValueError(
            f"Expected a validation_fraction in (0, 1) that leaves rows on both sides, got "
            f"{validation_fraction} of the {len(train)} rows in {train_file}. There would be "
            "nothing to train on or nothing to measure. Change it, or give a validation_file."
        )
    parts = train.train_test_split(test_size=held_out, seed=seed)
    return DatasetDict(train=parts["train"], validation=parts["test"])


def infer_task(
    dataset: DatasetDict,
    text_columns: Sequence[str],
    label_column: str = "label",
    name: str = "own-data",
    label_names: Sequence[str] | None = None,
) -> Task:
    """Describe the task that the training split poses.

    A floating-point label column is a regression; class names, class ids and booleans are a
    classification. Class names come from `label_names`, else from the column: a `ClassLabel`'s
    own, sorted distinct strings, or the ids 0..n-1 themselves. Only the training split is looked
    at, so that a misspelt class in the validation split is an error and no class of its own.

    Args:
        dataset: must hold a `train` split.
        text_columns: one column for a single text, two for a pair.
        label_column: the column to predict.
        name: what reports call the task.
        label_names: class names in the order of their ids, where the column has none.

    Returns:
        A task with accuracy as its leading metric (and F1 for two classes), or Pearson and
        Spearman correlation for a regression.

    Raises:
        ValueError: if the split or a column is missing, labels are null, class ids have gaps, there
            is one class only, or numbers are stored as text.
    """
    rows = _train_rows(dataset, [*text_columns, label_column])
    if not 1 <= len(text_columns) <= 2:
        raise ValueError(
            f"Expected one text column or two, got {list(text_columns)}. A tokenizer takes a text "
            "or a pair, and would drop the rest. Join columns beforehand."
        )
    names = _infer_label_names(rows, label_column, label_names)
    metrics: tuple[str, ...] = ("pearson", "spearmanr")
    if names is not None:
        metrics = ("accuracy", "f1") if len(names) == 2 else ("accuracy",)
    return Task(name, tuple(text_columns), names, metrics, label_column=label_column)


def _read_table(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(
            f"No file {path}. Check the path; folders and patterns are not read."
        )
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"Expected a file ending in {', '.join(_FORMATS)}, got {path.name!r}. The ending says "
            "how it is read. Convert or rename it."
        )
    loader, options = _FORMATS[path.suffix.lower()]
    # One call per file: several files in one call must agree on every column, used or not.
    return load_dataset(loader, data_files={"train": str(path)}, split="train", **options)


def _train_rows(dataset: DatasetDict, columns: list[str]) -> Dataset:
    if "train" not in dataset:
        raise ValueError(
            f"Expected a split 'train', got {list(dataset)}. The classes are read from it. Rename "
            "the split that holds the training rows."
        )
    rows = dataset["train"]
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"Expected columns {columns}, got {rows.column_names}; {missing} missing. Name the "
            "columns as the file does, and check that a CSV or TSV file has its header line."
        )
    return rows


def _infer_label_names(
    rows: Dataset, column: str, label_names: Sequence[str] | None
) -> tuple[str, ...] | None:
    feature, values = rows.features[column], _distinct(rows, column)
    stored = str(getattr(feature, "dtype", feature))
    if stored.startswith("float"):
        if label_names is None:
            return None
        raise ValueError(
            f"Column {column!r}: expected class ids or names for label_names {list(label_names)}, "
            f"got {stored}. Real numbers make a regression. Cast the column to int64, or leave "
            "label_names out."
        )
    if label_names is None:
        label_names = (
            feature.names if isinstance(feature, ClassLabel) else _class_names(values, column)
        )
    return _check_label_names(tuple(label_names), column)


def _distinct(rows: Dataset, column: str) -> list[Any]:
    """The values that occur in the column, of which none is missing."""
    if not isinstance(rows.features[column], (Value, ClassLabel)):
        raise ValueError(
            f"Column {column!r}: expected numbers, class names or booleans, got "
            f"{rows.features[column]}. There is no loss for it here. Choose another label_column."
        )
    # Dataset.unique writes a flattened copy of a split that was selected or shuffled.
    labels = rows.select_columns([column]).with_format("arrow")[:][column]
    if labels.null_count:
        raise ValueError(
            f"Split 'train', column {column!r}, row {labels.to_pylist().index(None)}: expected a "
            "label, got None. In a CSV file an empty cell also turns class ids into real numbers, "
            "and the classification into a regression. Drop or label the row."
        )
    return labels.unique().to_pylist()


def _class_names(values: list[Any], column: str) -> list[str]:
    if all(isinstance(value, bool) for value in values):
        return ["false", "true"]
    if all(isinstance(value, int) for value in values):
        if sorted(values) == list(range(len(values))):
            return [str(value) for value in sorted(values)]
        raise ValueError(
            f"Column {column!r}: expected class ids 0..{len(values) - 1} without gaps, got "
            f"{sorted(values)[:20]}. The loss takes ids as positions among the logits. Renumber "
            "them, write them as words, give label_names for every id, or write them as real "
            "numbers (1.0) for a regression."
        )
    if all(isinstance(value, str) for value in values):
        if sum(map(_is_real_number, values)) * 2 > len(values):
            raise ValueError(
                f"Column {column!r}: expected class names, got numbers stored as text, such as "
                f"{next(filter(_is_real_number, values))!r}. Every number would become a class. "
                "Cast the column to float64, and correct the cells that are no numbers."
            )
        return sorted(values)
    raise ValueError(
        f"Column {column!r}: expected numbers, class names or booleans, got "
        f"{type(values[0]).__name__}. There is no loss for it here. Choose another label_column."
    )


def _is_real_number(text: str) -> bool:
    """Whether `text` is a number but no class id.

    >>> _is_real_number("0.5"), _is_real_number("3"), _is_real_number("spam")
    (True, False, False)
    """
    try:
        float(text)
    except ValueError:
        return False
    return not text.strip().lstrip("+-").isdigit()


def _check_label_names(names: tuple[str, ...], column: str) -> tuple[str, ...]:
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"Column {column!r}: expected at least two different classes, got {list(names)}. A "
            "model of one class learns nothing, and equal names cannot be told apart. Check the "
            "label column or label_names."
        )
    return names
