"""The one description of a task that loading, training, metrics and reports share."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Task:
    """A sequence-classification or regression task.

    Attributes:
        name: what the command line, the report and the card call it.
        text_columns: one column for a single text, two for a pair.
        label_names: class names in the order of their ids; `None` for regression.
        metrics: names in `kdnlp.evaluation.metrics.METRICS`; the first one leads the report.
        label_column: the column that holds class ids, class names, or a real-valued target.
        train_split: the split that is trained on.
        eval_splits: the labelled splits that are evaluated; the first one selects checkpoints.
        max_length: default length in tokens at which inputs are cut.
        positive_class: the id of the class that a two-class F1 is of.
        dataset: the Hub id of the dataset whose configuration `name` is; `None` for other data.
    """

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    label_column: str = "label"
    train_split: str = "train"
    eval_splits: tuple[str, ...] = ("validation",)
    max_length: int = 128
    positive_class: int = 1
    dataset: str | None = None

    @property
    def kind(self) -> Literal["classification", "regression"]:
        """`"regression"` where the label is a real number, else `"classification"`."""
        return "regression" if self.label_names is None else "classification"

    @property
    def num_labels(self) -> int:
        """The number of logits a model for this task has: 1 for regression."""
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
        if len(label_names) != 2:
            return replace(self, label_names=label_names)
        positive = label_names.index(self.label_names[self.positive_class])
        return replace(self, label_names=label_names, positive_class=positive)
