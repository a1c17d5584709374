"""Metrics of multi-label tasks: predictions and labels are rows of zeros and ones, one a class."""

from typing import Any

from datasets import Sequence, Value
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics

from kdnlp.evaluation.task_metric import TaskMetric

_ZEROS_AND_ONES = (Sequence(Value("int64")), Sequence(Value("int64")))


class MicroF1(TaskMetric):
    """F1 of all yes-or-no decisions together, in [0, 1]; frequent classes weigh most.

    0 where nothing was predicted or nothing is true.
    """

    key = "f1_micro"
    types = _ZEROS_AND_ONES
    description_text = "F1 over all decisions of all classes together."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Micro-averaged F1 of two arrays of zeros and ones, shape `(examples, labels)`."""
        return _f1(predictions, references, "micro")


class MacroF1(TaskMetric):
    """The plain mean of the F1 of every class, in [0, 1]; rare classes weigh as much as others.

    A class that is never true and never predicted counts as 0, as scikit-learn has it: give every
    class an example, or the best possible value is below 1.
    """

    key = "f1_macro"
    types = _ZEROS_AND_ONES
    description_text = "The mean over classes of the F1 of each."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Macro-averaged F1 of two arrays of zeros and ones, shape `(examples, labels)`."""
        return _f1(predictions, references, "macro")


class SubsetAccuracy(TaskMetric):
    """The share of rows whose every class is right, in [0, 1]."""

    key = "subset_accuracy"
    types = _ZEROS_AND_ONES
    description_text = "The share of examples all of whose labels are right."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Accuracy of whole rows of zeros and ones, shape `(examples, labels)`."""
        return float(sklearn_metrics.accuracy_score(references, predictions))


def _f1(predictions: ArrayLike, references: ArrayLike, average: str) -> float:
    return float(
        sklearn_metrics.f1_score(references, predictions, average=average, zero_division=0)
    )
