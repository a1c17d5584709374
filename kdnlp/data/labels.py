"""What a column of labels means to a task: a class, several classes, or a real number."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import ClassLabel

from kdnlp.data.checks import TEXT_TYPES, list_item
from kdnlp.data.task import Task

ClassIds = dict[Any, int]
"""What each raw label stands for: its class id."""

LISTS_OF_CLASSES = ("multi_label_classification", "token_classification")


def class_ids(feature: Any, task: Task, split: str) -> ClassIds | None:
    """The class ids of the raw labels in a column, or of the items in a column of lists.

    Class names are matched by name, whatever order the dataset keeps them in.

    Returns:
        `None` where the labels are no classes but real numbers.

    Raises:
        ValueError: if the column's type is not one that the task can read.
    """
    lists = task.kind in LISTS_OF_CLASSES
    item = list_item(feature) if lists else feature
    stored = str(getattr(item, "dtype", item))
    if task.label_names is None:
        if isinstance(feature, ClassLabel) or not stored.startswith(("float", "int", "uint")):
            raise _column_error(split, task, feature, "a numeric column (float or integer)")
        return None
    by_name = {name: number for number, name in enumerate(task.label_names)}
    if isinstance(item, ClassLabel):
        # The dataset's own order may differ from the task's; the names are what both agree on.
        names = enumerate(item.names)
        return {number: by_name[name] for number, name in names if name in by_name}
    # In a file all of whose lists are empty, nothing says what their items are.
    if stored in TEXT_TYPES or (lists and stored == "null"):
        return dict(by_name)
    if stored == "bool" and task.num_labels == 2 and not lists:
        return {False: 0, True: 1}
    if stored.startswith(("int", "uint")):
        return {number: number for number in range(task.num_labels)}
    expected = "lists of class ids or class names"
    if not lists:
        expected = "class ids, class names or (two classes) booleans"
    raise _column_error(split, task, feature, expected)


def _column_error(split: str, task: Task, feature: Any, expected: str) -> ValueError:
    return ValueError(
        f"Split {split!r}, column {task.label_column!r}: expected {expected} for the {task.kind} "
        f"task {task.name!r}, got {feature}. The labels would be read as something else. Cast the "
        "column (Dataset.cast_column), or change the task's label_names (None means regression) "
        "or kind."
    )


def check_targets(labels: Any, where: str, first_row: int) -> None:
    """Raise `ValueError` if a target of an Arrow column is no finite number."""
    wrong = ~np.isfinite(labels.cast("float64").to_numpy())
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{where}, row {first_row + row}: expected a finite number, got "
            f"{labels[row].as_py()!r}. One such target makes the loss and every weight NaN. "
            "Correct or drop the row."
        )


def check_classes(labels: Any, where: str, first_row: int, task: Task, ids: ClassIds) -> None:
    """Raise `ValueError` if a label of an Arrow column is no class of the task."""
    values = labels.to_pylist()
    row = next((i for i, value in enumerate(values) if value not in ids), None)
    if row is not None:
        raise unknown_class(f"{where}, row {first_row + row}", values[row], task, ids)


def check_class_lists(labels: Any, where: str, first_row: int, task: Task, ids: ClassIds) -> None:
    """Raise `ValueError` if an item of an Arrow column of lists is not a set of classes."""
    for row, values in enumerate(labels.to_pylist()):
        place = f"{where}, row {first_row + row}"
        if values is None:
            raise ValueError(
                f"{place}: expected a list of classes, got None. It may mean no label or that "
                "nobody looked. Write [] for a row without labels, or drop the row."
            )
        unknown = [value for value in values if value not in ids]
        if unknown:
            raise unknown_class(place, unknown[0], task, ids)
        if len(set(values)) < len(values):
            raise ValueError(
                f"{place}: expected each class once, got {values[:20]}. Read as class ids, a row "
                "of zeros and ones would name the classes 0 and 1 again and again. List the ids or "
                "names of the classes, or make a column of zeros and ones for each class."
            )


def check_no_one_hot_lists(labels: Iterable[Any], where: str, task: Task) -> None:
    """Raise `ValueError` if a whole split's lists of class ids look like zeros and ones.

    Of more than two classes these have a number twice, which `check_class_lists` refuses. Of two
    there is a [1, 0], and nothing but [1, 0] and [0, 1].

    Args:
        labels: Arrow columns of lists that passed `check_class_lists`.
        where: the split and the column.
        task: says how many classes there are.
    """
    if task.num_labels != 2:
        return
    lists = {tuple(values) for part in labels for values in part.to_pylist()}
    if (1, 0) in lists and lists <= {(0, 1), (1, 0)}:
        raise ValueError(
            f"{where}: expected a row without some class, got [1, 0] or [0, 1] in every row. Zeros "
            "and ones of two classes are read as the ids of both, and every target would be 1. "
            "Write a row's one class as its id or name; write several as lists of names, or as a "
            "column of zeros and ones for each class."
        )


def check_zeros_and_ones(labels: Any, where: str, first_row: int) -> None:
    """Raise `ValueError` if an Arrow column of one class holds anything but 0 and 1."""
    values = labels.to_pylist()
    row = next((i for i, value in enumerate(values) if value not in (0, 1)), None)
    if row is not None:
        raise ValueError(
            f"{where}, row {first_row + row}: expected 0 or 1, whether the row has that class, got "
            f"{values[row]!r}. Other values would be targets that no probability reaches. Correct "
            "or drop the row, or name the columns of the classes only."
        )


def unknown_class(place: str, value: Any, task: Task, ids: ClassIds) -> ValueError:
    """The error for a label that is no class of the task."""
    return ValueError(
        f"{place}: expected one of {list(ids)} (the classes are "
        f"{task.label_names}), got {value!r}. The loss would be wrong or crash, and the "
        "metric would count another class. Correct or drop the row (-1 marks an unlabelled "
        "one), or give the task the label_names that the data uses."
    )
