"""From a dataset of texts to one that a Trainer can batch: check, tokenise, number the labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from transformers import PreTrainedTokenizerBase

from kdnlp.data.task import Task

MODEL_INPUTS: dict[str, str] = {
    "input_ids": "int32",
    "attention_mask": "int8",
    "token_type_ids": "int8",
}
"""The columns that are kept, with the narrowest type that holds them; collators widen to int64."""

_BATCH_ROWS = 10_000
_TEXT_TYPES = ("string", "large_string")


def prepare(
    dataset: DatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
) -> DatasetDict:
    """Tokenise the task's splits, ready for a Trainer with a padding collator.

    Inputs are cut, never padded: `DataCollatorWithPadding` pads each batch to its own longest
    example. Class names become ids by name, whatever order the dataset keeps them in.

    Args:
        dataset: must hold the task's train and eval splits; other splits are left out.
        task: says which columns are text and label, and what the classes are.
        tokenizer: must have a pad token.
        max_length: the most tokens an example may have, special tokens included. The default is
            the task's, or the tokenizer's own limit where that is lower.

    Returns:
        The train and eval splits with `input_ids`, `attention_mask`, `token_type_ids` (where the
        tokenizer makes them) and `labels`: int64 class ids, or float32 targets for regression.

    Raises:
        ValueError: as `check_dataset`; or if the tokenizer has no pad token, or `max_length` is
            out of range.
    """
    check_dataset(dataset, task)
    _check_tokenizer(tokenizer)
    length = _resolve_max_length(task, tokenizer, max_length)
    columns = {c: t for c, t in MODEL_INPUTS.items() if c in tokenizer.model_input_names}
    label_type = "float32" if task.kind == "regression" else "int64"
    features = Features(
        {c: Sequence(Value(t)) for c, t in columns.items()} | {"labels": Value(label_type)}
    )
    return DatasetDict(
        {
            split: dataset[split].map(
                _encode,
                batched=True,
                remove_columns=dataset[split].column_names,
                features=features,
                fn_kwargs={
                    "tokenizer": tokenizer,
                    "text_columns": task.text_columns,
                    "label_column": task.label_column,
                    "class_ids": _class_ids(dataset[split], task, split),
                    "max_length": length,
                    "columns": list(columns),
                },
                desc=f"Tokenising {task.name} {split}",
            )
            for split in (task.train_split, *task.eval_splits)
        }
    )


def check_dataset(dataset: DatasetDict, task: Task) -> None:
    """Refuse a dataset that would train or measure something else than the task.

    Args:
        dataset: the raw splits. Splits that the task does not name are not looked at.
        task: what they should hold.

    Raises:
        ValueError: if a split or column is missing, a split is empty, a text or label is null, a
            text column holds no strings, a label is no class of the task, or a regression target
            is not a finite number. It names the split and the first offending row.
    """
    for split in (task.train_split, *task.eval_splits):
        _check_columns(dataset, split, task)
        for column in task.text_columns:
            _check_text_type(dataset[split], split, column)
        class_ids = _class_ids(dataset[split], task, split)
        columns = [*task.text_columns, task.label_column]
        rows = dataset[split].select_columns(columns).with_format("arrow")
        for number, table in enumerate(rows.iter(batch_size=_BATCH_ROWS)):
            _check_rows(table, task, split, class_ids, first_row=number * _BATCH_ROWS)


def _encode(
    batch: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    text_columns: tuple[str, ...],
    label_column: str,
    class_ids: Mapping[Any, int] | None,
    max_length: int,
    columns: list[str],
) -> dict[str, list[Any]]:
    encoding = tokenizer(
        *(batch[column] for column in text_columns), truncation=True, max_length=max_length
    )
    labels = batch[label_column]
    return {
        **{column: encoding[column] for column in columns},
        "labels": labels if class_ids is None else [class_ids[label] for label in labels],
    }


def _class_ids(rows: Dataset, task: Task, split: str) -> dict[Any, int] | None:
    """What each raw label value stands for: its class id. `None` for regression."""
    feature = rows.features[task.label_column]
    stored = str(getattr(feature, "dtype", feature))
    if task.label_names is None:
        if isinstance(feature, ClassLabel) or not stored.startswith(("float", "int", "uint")):
            raise _column_error(split, task, feature, "a numeric column (float or integer)")
        return None
    by_name = {name: number for number, name in enumerate(task.label_names)}
    if isinstance(feature, ClassLabel):
        # The dataset's own order may differ from the task's; the names are what both agree on.
        names = enumerate(feature.names)
        return {number: by_name[name] for number, name in names if name in by_name}
    if stored in _TEXT_TYPES:
        return dict(by_name)
    if stored == "bool" and task.num_labels == 2:
        return {False: 0, True: 1}
    if stored.startswith(("int", "uint")):
        return {number: number for number in range(task.num_labels)}
    raise _column_error(split, task, feature, "class ids, class names or (two classes) booleans")


def _column_error(split: str, task: Task, feature: Any, expected: str) -> ValueError:
    return ValueError(
        f"Split {split!r}, column {task.label_column!r}: expected {expected} for the {task.kind} "
        f"task {task.name!r}, got {feature}. The labels would be read as something else. Cast the "
        "column (Dataset.cast_column), or change the task's label_names: None means regression."
    )


def _check_columns(dataset: DatasetDict, split: str, task: Task) -> None:
    if split not in dataset:
        raise ValueError(
            f"Task {task.name!r} expects a split {split!r}, got {list(dataset)}. Nothing could be "
            "trained or measured on it. Rename a split, or set the task's train_split and "
            "eval_splits."
        )
    expected = [*task.text_columns, task.label_column]
    missing = [column for column in expected if column not in dataset[split].column_names]
    if missing:
        raise ValueError(
            f"Split {split!r}: expected columns {expected}, got {dataset[split].column_names}; "
            f"{missing} missing. Other columns would train another task. Rename them "
            "(Dataset.rename_column), or set the task's text_columns and label_column."
        )
    if not len(dataset[split]):
        raise ValueError(
            f"Split {split!r}: expected at least one row, got none. Every metric of it would be "
            "undefined. Check the file or the filter that it came from."
        )


def _check_text_type(rows: Dataset, split: str, column: str) -> None:
    feature = rows.features[column]
    if getattr(feature, "dtype", None) not in _TEXT_TYPES:
        raise ValueError(
            f"Split {split!r}, column {column!r}, row 0: expected text, got {rows[0][column]!r} "
            f"({feature}). A tokenizer would fail on it, or read a list as words. Cast the column "
            "to string, or name another one in the task's text_columns."
        )


def _check_rows(
    table: Any, task: Task, split: str, class_ids: dict[Any, int] | None, first_row: int
) -> None:
    """Check one Arrow table, whose first row is row `first_row` of the split."""
    for column in task.text_columns:
        if table[column].null_count:
            row = first_row + table[column].to_pylist().index(None)
            raise ValueError(
                f"Split {split!r}, column {column!r}, row {row}: expected text, got None. It would "
                "train on an empty input. Drop the row (Dataset.filter), or write the missing text "
                "as ''."
            )
    where, labels = f"Split {split!r}, column {task.label_column!r}", table[task.label_column]
    if class_ids is None:
        _check_targets(labels, where, first_row)
    else:
        _check_classes(labels, where, first_row, task, class_ids)


def _check_targets(labels: Any, where: str, first_row: int) -> None:
    wrong = ~np.isfinite(labels.cast("float64").to_numpy())
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{where}, row {first_row + row}: expected a finite number, got "
            f"{labels[row].as_py()!r}. One such target makes the loss and every weight NaN. "
            "Correct or drop the row."
        )


def _check_classes(
    labels: Any, where: str, first_row: int, task: Task, class_ids: dict[Any, int]
) -> None:
    values = labels.to_pylist()
    row = next((i for i, value in enumerate(values) if value not in class_ids), None)
    if row is not None:
        raise ValueError(
            f"{where}, row {first_row + row}: expected one of {list(class_ids)} (the classes are "
            f"{task.label_names}), got {values[row]!r}. The loss would be wrong or crash, and the "
            "metric would count another class. Correct or drop the row (-1 marks an unlabelled "
            "one), or give the task the label_names that the data uses."
        )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "Expected a tokenizer with a pad token, got one without (GPT-2 and Llama have none). "
            "Batches could not be padded, and the model would read its answer from the wrong "
            "position. Set tokenizer.pad_token = tokenizer.eos_token and "
            "model.config.pad_token_id = tokenizer.pad_token_id."
        )


def _resolve_max_length(
    task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> int:
    length = min(task.max_length, tokenizer.model_max_length) if max_length is None else max_length
    special = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)
    if not special < length <= tokenizer.model_max_length:
        raise ValueError(
            f"Expected max_length in {special + 1}..{tokenizer.model_max_length} ({special} "
            f"special tokens; the tokenizer's model_max_length), got {length}. Shorter inputs hold "
            "no text; longer ones have no position embedding. Choose a length in that range."
        )
    return length
