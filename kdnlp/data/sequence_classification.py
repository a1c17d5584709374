"""One answer for a whole text or pair: a class, several classes, or a real number."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Features, Sequence, Value
from transformers import PreTrainedTokenizerBase

from kdnlp.data.checks import arrow_tables, check_text_type, check_texts
from kdnlp.data.inputs import input_columns, input_features
from kdnlp.data.labels import (
    ClassIds,
    check_class_lists,
    check_classes,
    check_no_one_hot_lists,
    check_targets,
    check_zeros_and_ones,
    class_ids,
)
from kdnlp.data.task import Task

_LABEL_TYPES = {
    "single_label_classification": Value("int64"),
    # Sigmoid cross-entropy takes real-valued targets.
    "multi_label_classification": Sequence(Value("float32")),
    # Integer targets would select cross-entropy in models that infer their loss.
    "regression": Value("float32"),
}


def check_texts_and_labels(rows: Dataset, split: str, task: Task) -> None:
    """Raise `ValueError`, naming the first offending row, unless all rows suit the task."""
    for column in task.text_columns:
        check_text_type(rows, split, column)
    ids = _class_ids(rows, split, task)
    for first_row, table in arrow_tables(rows, [*task.text_columns, *task.label_columns]):
        check_texts(table, split, task.text_columns, first_row)
        for column in task.label_columns:
            where = f"Split {split!r}, column {column!r}"
            _check_labels(table[column], where, first_row, task, ids)
    if task.kind == "multi_label_classification" and 0 in (ids or {}):  # ids, no names
        (column,) = task.label_columns
        lists = (table[column] for _, table in arrow_tables(rows, [column]))
        check_no_one_hot_lists(lists, f"Split {split!r}, column {column!r}", task)


def encode_texts(
    rows: Dataset, split: str, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Tokens and labels of checked rows.

    Returns:
        `input_ids` and what goes with them, and `labels`: an int64 class id; a float32 vector of
        `num_labels` zeros and ones for multi-label; a float32 target for regression.
    """
    columns = input_columns(tokenizer)
    return rows.map(
        _encode,
        batched=True,
        remove_columns=rows.column_names,
        features=Features({**input_features(columns), "labels": _LABEL_TYPES[task.kind]}),
        fn_kwargs={
            "tokenizer": tokenizer,
            "task": task,
            "ids": _class_ids(rows, split, task),
            "max_length": max_length,
            "columns": columns,
        },
        desc=f"Tokenising {task.name} {split}",
    )


def encode_unlabelled(
    rows: Dataset, split: str, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Tokens of rows without labels, as of a test split.

    Returns:
        `input_ids` and what goes with them, cut at `max_length`, in the order of the rows.

    Raises:
        ValueError: if a text column holds anything but strings, or a text is null.
    """
    for column in task.text_columns:
        check_text_type(rows, split, column)
    for first_row, table in arrow_tables(rows, [*task.text_columns]):
        check_texts(table, split, task.text_columns, first_row)
    columns = input_columns(tokenizer)
    return rows.map(
        _tokenise,
        batched=True,
        remove_columns=rows.column_names,
        features=Features(dict(input_features(columns))),
        fn_kwargs={
            "tokenizer": tokenizer,
            "task": task,
            "max_length": max_length,
            "columns": columns,
        },
        desc=f"Tokenising {task.name} {split}",
    )


def _tokenise(
    batch: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    max_length: int,
    columns: list[str],
) -> dict[str, list[Any]]:
    texts = (batch[column] for column in task.text_columns)
    encoding = tokenizer(*texts, truncation=True, max_length=max_length)
    return {column: encoding[column] for column in columns}


def _encode(
    batch: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    ids: ClassIds | None,
    max_length: int,
    columns: list[str],
) -> dict[str, list[Any]]:
    labels = _labels([batch[column] for column in task.label_columns], task, ids)
    return {**_tokenise(batch, tokenizer, task, max_length, columns), "labels": labels}


def _labels(raw: list[list[Any]], task: Task, ids: ClassIds | None) -> list[Any]:
    if task.kind == "regression":
        return raw[0]
    if task.kind == "single_label_classification":
        assert ids is not None
        return [ids[label] for label in raw[0]]
    if ids is None:
        return [[float(value) for value in row] for row in zip(*raw, strict=True)]
    rows = [{ids[label] for label in labels} for labels in raw[0]]
    return [[float(number in row) for number in range(task.num_labels)] for row in rows]


def _class_ids(rows: Dataset, split: str, task: Task) -> ClassIds | None:
    """`None` where the labels are real numbers, or a column of zeros and ones for each class."""
    if isinstance(task.label_column, str):
        return class_ids(rows.features[task.label_column], task, split)
    return None


def _check_labels(
    labels: Any, where: str, first_row: int, task: Task, ids: ClassIds | None
) -> None:
    if task.kind == "regression":
        check_targets(labels, where, first_row)
    elif ids is None:
        check_zeros_and_ones(labels, where, first_row)
    elif task.kind == "multi_label_classification":
        check_class_lists(labels, where, first_row, task, ids)
    else:
        check_classes(labels, where, first_row, task, ids)
