"""A task that contradicts itself is refused where it is made, not where it would train."""

from dataclasses import replace

import pytest

from kdnlp.data.preparation import KINDS
from kdnlp.data.task import Task, TaskKind
from kdnlp.models.heads import TASK_KINDS

CLASSES = ("a", "b", "c")


def test_the_kind_follows_from_the_labels_unless_it_is_given():
    assert Task("t", ("x",), CLASSES, ("accuracy",)).kind == "single_label_classification"
    assert Task("t", ("x",), None, ("pearson",)).kind == "regression"
    answers = Task("t", ("q", "c"), None, ("f1",), kind="question_answering")
    assert (answers.kind, answers.num_labels) == ("question_answering", 2)


def test_every_kind_is_described_and_known_to_the_trainers():
    assert set(KINDS) == set(TaskKind.__args__) <= set(TASK_KINDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "multi_label"}, "kind out of single_label_classification, .* got 'multi_label'"),
        ({"kind": "regression"}, "regression task has no classes"),
        ({"kind": "question_answering"}, "has no classes"),
        ({"label_names": None, "kind": "token_classification"}, "has named classes"),
        ({"label_column": ("a", "b", "c")}, "multi-label task, got 3 of them"),
        (
            {"label_column": ("a", "b"), "kind": "multi_label_classification"},
            "got 2 of them for the 3 classes",
        ),
    ],
)
def test_labels_that_do_not_fit_the_kind_are_refused(changes, message):
    values = {"label_names": CLASSES, **changes}
    with pytest.raises(ValueError, match=message):
        Task("t", ("x",), metrics=("accuracy",), **values)


def test_another_order_of_the_classes_takes_their_columns_along():
    task = Task(
        "t", ("x",), CLASSES, ("f1_micro",), label_column=("ca", "cb", "cc"),
        kind="multi_label_classification",
    )  # fmt: skip
    assert task.label_columns == ("ca", "cb", "cc")
    other = task.with_label_order(("c", "a", "b"))
    assert (other.label_names, other.label_column) == (("c", "a", "b"), ("cc", "ca", "cb"))
    assert replace(task, label_column="genres").with_label_order(("c", "a", "b")).label_columns == (
        "genres",
    )
