"""The one description of a task that loading, training, metrics and reports share."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

TaskKind = Literal[
    "single_label_classification",
    "multi_label_classification",
    "regression",
    "token_classification",
    "question_answering",
]
_WITHOUT_CLASSES = ("regression", "question_answering")


@dataclass(frozen=True)
class Task:
    """What is predicted from which columns, and how that is measured.

    Attributes:
        name: what the command line, the report and the card call it.
        text_columns: one column for a single text, two for a pair. For token classification one
            column with lists of words; for question answering the question, then the context.
        label_names: class names in the order of their ids; `None` for regression and question
            answering.
        metrics: names in `kdnlp.evaluation.metrics.KIND_METRICS`; the first one leads the report.
        label_column: the column that holds class ids, class names, or a real-valued target; for
            multi-label lists of classes, for token classification lists of tags, for question
            answering SQuAD's `answers`. Several columns, in the order of `label_names`, are the
            zeros and ones of a multi-label task.
        train_split: the split that is trained on.
        eval_splits: the labelled splits that are evaluated; the first one selects checkpoints.
        max_length: default length in tokens at which inputs are cut, or contexts windowed.
        positive_class: the id of the class that a two-class F1 is of.
        dataset: the Hub id of the dataset whose configuration `name` is; `None` for other data.
        kind: what the labels are. `None` at construction means classes that exclude each other
            where there are `label_names`, else a regression.
        label_all_subwords: token classification: train on every part of a word, not only its first.
        stride: question answering: tokens that two windows of one context share; `None` is a third
            of the window's length, as 128 of 384 on SQuAD.
        max_answer_length: question answering: the most tokens that an answer may have.

    Raises:
        ValueError: if the kind is unknown, or `label_names` and `label_column` do not fit it.
    """

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    label_column: str | tuple[str, ...] = "label"
    train_split: str = "train"
    eval_splits: tuple[str, ...] = ("validation",)
    max_length: int = 128
    positive_class: int = 1
    dataset: str | None = None
    kind: TaskKind = None  # type: ignore[assignment]
    label_all_subwords: bool = False
    stride: int | None = None
    max_answer_length: int = 30

    def __post_init__(self) -> None:
        """Fill in the kind, and refuse labels that do not fit it."""
        if vars(self)["kind"] is None:
            kind = "regression" if self.label_names is None else "single_label_classification"
            object.__setattr__(self, "kind", kind)
        if self.kind not in get_args(TaskKind):
            raise ValueError(
                f"Task {self.name!r}: expected a kind out of {', '.join(get_args(TaskKind))}, got "
                f"{self.kind!r}. It decides on the loss and the metrics. Correct its name."
            )
        if (self.label_names is None) != (self.kind in _WITHOUT_CLASSES):
            raise ValueError(
                f"Task {self.name!r}: a {self.kind} task has "
                f"{'no' if self.label_names else 'named'} classes, got label_names="
                f"{self.label_names}. The labels would be read as something else. Change one."
            )
        if not isinstance(self.label_column, str):
            self._check_label_columns()

    def _check_label_columns(self) -> None:
        names = self.label_names or ()
        if self.kind != "multi_label_classification" or len(names) != len(self.label_column):
            raise ValueError(
                f"Task {self.name!r}: several label columns are one each for the classes of a "
                f"multi-label task, got {len(self.label_column)} of them for the {len(names)} "
                f"classes of a {self.kind} task. Name one column, or one for every class."
            )

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The column or columns of `label_column`."""
        return (self.label_column,) if isinstance(self.label_column, str) else self.label_column

    @property
    def num_labels(self) -> int:
        """The logits of a model for this task: 1 for regression, start and end for answers."""
        if self.kind == "question_answering":
            return 2
        return 1 if self.label_names is None else len(self.label_names)

    def with_label_order(self, label_names: tuple[str, ...]) -> "Task":
        """The same task with its classes numbered otherwise; F1 stays that of the same class.

        Raises:
            ValueError: if `label_names` is no permutation of the task's.
        """
        if self.label_names is None or sorted(label_names) != sorted(self.label_names):
            raise ValueError(
                f"Task {self.name!r} has the classes {self.label_names}, got {label_names}. Only "
                "their order can change."
            )
        columns = self.label_column
        if not isinstance(columns, str):
            columns = tuple(columns[self.label_names.index(name)] for name in label_names)
        positive = self.positive_class
        if len(label_names) == 2:
            positive = label_names.index(self.label_names[self.positive_class])
        return replace(self, label_names=label_names, label_column=columns, positive_class=positive)
