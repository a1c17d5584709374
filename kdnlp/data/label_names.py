"""The classes that a column of labels holds, for tasks that are described by their data."""

import re
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Value

from kdnlp.data.checks import list_item
from kdnlp.data.labels import LISTS_OF_CLASSES
from kdnlp.data.task import TaskKind

ENTITY_TAG = re.compile(r"O|[BIES]-.+")


def are_entity_tags(names: Sequence[str]) -> bool:
    """Whether tags mark where entities begin and go on.

    >>> are_entity_tags(["O", "B-PER", "I-PER"]), are_entity_tags(["NOUN", "VERB"])
    (True, False)
    """
    return all(ENTITY_TAG.fullmatch(name) for name in names) and any("-" in name for name in names)


def infer_label_names(
    rows: Dataset, column: str, label_names: Sequence[str] | None, kind: TaskKind
) -> tuple[str, ...] | None:
    """Class names in the order of their ids; `None` for regression and question answering.

    Args:
        rows: the training rows.
        column: holds class names, class ids or booleans, or lists of the first two.
        label_names: the names, where the column has none.
        kind: what the types of the columns say.

    Raises:
        ValueError: if the column's values are no classes, some are missing, or there is only one.
    """
    if kind == "question_answering":
        return None
    feature = rows.features[column]
    item = list_item(feature) if kind in LISTS_OF_CLASSES else feature
    values = _distinct(rows, column, item)
    if kind == "regression":
        if label_names is None:
            return None
        raise ValueError(
            f"Column {column!r}: expected class ids or names for label_names {list(label_names)}, "
            f"got {feature.dtype}. Real numbers make a regression. Cast the column to int64, or "
            "leave label_names out."
        )
    if label_names is None:
        label_names = item.names if isinstance(item, ClassLabel) else _class_names(values, column)
    return check_label_names(tuple(label_names), column)


def check_label_names(names: tuple[str, ...], column: str) -> tuple[str, ...]:
    """The names; raise `ValueError` unless they are at least two, all different."""
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"Column {column!r}: expected at least two different classes, got {list(names)}. A "
            "model of one class learns nothing, and equal names cannot be told apart. Check the "
            "label column or label_names."
        )
    return names


def _distinct(rows: Dataset, column: str, item: Any) -> list[Any]:
    """The values that occur in the column or in its lists, of which none is missing."""
    if not isinstance(item, (Value, ClassLabel)):
        raise ValueError(
            f"Column {column!r}: expected numbers, class names, booleans, or lists of classes, got "
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
    if list_item(rows.features[column]) is not None:
        labels = _flatten(labels, column)
    return labels.unique().to_pylist()


def _flatten(lists: Any, column: str) -> Any:
    labels = lists.combine_chunks().flatten()
    if labels.null_count:
        row = next(i for i, values in enumerate(lists.to_pylist()) if None in values)
        raise ValueError(
            f"Split 'train', column {column!r}, row {row}: expected class names or ids in each "
            "list, got None. Nothing says which class is meant. Correct or drop the row."
        )
    return labels


def _class_names(values: list[Any], column: str) -> list[str]:
    if values and all(isinstance(value, bool) for value in values):
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
        f"Column {column!r}: expected class names, class ids or booleans (or a real number a row), "
        f"got {type(values[0]).__name__}. There is no loss for it here. Choose another "
        "label_column."
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
