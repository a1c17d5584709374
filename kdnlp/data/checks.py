"""Checks that every kind of task shares: splits, columns, texts, the tokenizer and the length."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from kdnlp.data.task import Task

TEXT_TYPES = ("string", "large_string")
BATCH_ROWS = 10_000


def check_split(dataset: DatasetDict, split: str, task: Task) -> None:
    """Raise `ValueError` if the split or one of the task's columns is missing, or it is empty."""
    if split not in dataset:
        raise ValueError(
            f"Task {task.name!r} expects a split {split!r}, got {list(dataset)}. Nothing could be "
            "trained or measured on it. Rename a split, or set the task's train_split and "
            "eval_splits."
        )
    expected = [*task.text_columns, *task.label_columns]
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


def check_text_type(rows: Dataset, split: str, column: str) -> None:
    """Raise `ValueError` if a text column holds anything but strings."""
    feature = rows.features[column]
    if getattr(feature, "dtype", None) not in TEXT_TYPES:
        raise ValueError(
            f"Split {split!r}, column {column!r}, row 0: expected text, got {rows[0][column]!r} "
            f"({feature}). A tokenizer would fail on it, or read a list as words. Cast the column "
            "to string, or name another one in the task's text_columns."
        )


def check_texts(table: Any, split: str, columns: tuple[str, ...], first_row: int) -> None:
    """Raise `ValueError` if a text of an Arrow table is null; its first row is `first_row`."""
    for column in columns:
        if table[column].null_count:
            row = first_row + table[column].to_pylist().index(None)
            raise ValueError(
                f"Split {split!r}, column {column!r}, row {row}: expected text, got None. It would "
                "train on an empty input. Drop the row (Dataset.filter), or write the missing text "
                "as ''."
            )


def arrow_tables(rows: Dataset, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """Some columns as Arrow tables, each with the number of its first row."""
    selected = rows.select_columns(columns).with_format("arrow")
    for number, table in enumerate(selected.iter(batch_size=BATCH_ROWS)):
        yield number * BATCH_ROWS, table


def list_item(feature: Any) -> Any:
    """What the items of a list column are; `None` for a column of anything else."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` if the tokenizer cannot pad."""
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "Expected a tokenizer with a pad token, got one without (GPT-2 and Llama have none). "
            "Batches could not be padded, and the model would read its answer from the wrong "
            "position. Set tokenizer.pad_token = tokenizer.eos_token and "
            "model.config.pad_token_id = tokenizer.pad_token_id."
        )


def check_offsets(tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """Raise `ValueError` if the tokenizer cannot say which characters a token stands for."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{task.kind} needs a fast tokenizer, got {type(tokenizer).__name__}, which is written "
            "in Python. It cannot say which word or characters a token comes from (word_ids, "
            "offsets), so labels could not be placed. Use a model whose tokenizer has a "
            "tokenizer.json."
        )


def resolve_max_length(
    task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> int:
    """The length in tokens to cut at.

    Raises:
        ValueError: if `max_length` leaves no room for text or exceeds the tokenizer's own limit.
    """
    length = min(task.max_length, tokenizer.model_max_length) if max_length is None else max_length
    special = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)
    if not special < length <= tokenizer.model_max_length:
        raise ValueError(
            f"Expected max_length in {special + 1}..{tokenizer.model_max_length} ({special} "
            f"special tokens; the tokenizer's model_max_length), got {length}. Shorter inputs hold "
            "no text; longer ones have no position embedding. Choose a length in that range."
        )
    return length
