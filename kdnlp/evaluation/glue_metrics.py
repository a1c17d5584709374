"""GLUE's metrics: accuracy, F1 and the correlations."""

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Value
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import metrics as sklearn_metrics

from kdnlp.evaluation.task_metric import TaskMetric


class Accuracy(TaskMetric):
    """The share of predictions that are right, in [0, 1]."""

    key = "accuracy"
    description_text = "The share of predictions that equal their reference."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Accuracy of two arrays of class ids, in [0, 1]."""
        return float(sklearn_metrics.accuracy_score(references, predictions))


class F1(TaskMetric):
    """Harmonic mean of precision and recall, in [0, 1]: binary on class 1, or macro.

    With more than two classes this is the plain mean of the F1 of every class that occurs in the
    predictions or the references ("macro"), which is not comparable with a binary F1. Where
    precision or recall is 0/0 (class 1 never predicted, say) F1 is 0.
    """

    key = "f1"
    description_text = "F1 of class 1 for two classes; the mean over classes (macro) for more."

    @staticmethod
    def score(
        predictions: ArrayLike,
        references: ArrayLike,
        average: str | None = None,
        pos_label: int = 1,
        **kwargs: Any,
    ) -> float:
        """F1 of two arrays of class ids, in [0, 1].

        Args:
            predictions: class ids, shape `(examples,)`.
            references: class ids, shape `(examples,)`.
            average: `"binary"` or `"macro"`. `None` means binary where only the ids 0 and 1 occur,
                so pass it for a task of three classes or more.
            pos_label: the class that a binary F1 is of.
            **kwargs: ignored.
        """
        if average is None:
            highest = max(np.max(predictions), np.max(references))
            average = "binary" if highest <= 1 else "macro"
        return float(
            sklearn_metrics.f1_score(
                references, predictions, average=average, pos_label=pos_label, zero_division=0
            )
        )


class MatthewsCorrelation(TaskMetric):
    """Matthews correlation coefficient, in [-1, 1]; 0 is chance (Matthews 1975)."""

    key = "matthews_correlation"
    description_text = "Matthews correlation of predicted and true class ids."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Matthews correlation of two arrays of class ids; 0 where either is constant."""
        if _is_constant(predictions) or _is_constant(references):
            return 0.0
        return float(sklearn_metrics.matthews_corrcoef(references, predictions))


class Pearson(TaskMetric):
    """Pearson's linear correlation, in [-1, 1].

    Constant predictions carry no information about the target, and the correlation is 0/0. It
    counts as 0.0, as chance does: NaN would win or lose every comparison of checkpoints by the
    order in which they are compared.
    """

    key = "pearson"
    types = (Value("float64"), Value("float64"))
    description_text = "Pearson correlation; 0 where predictions or references are constant."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Pearson correlation of two real arrays; 0 where either is constant."""
        return _correlation(stats.pearsonr, predictions, references)


class Spearmanr(TaskMetric):
    """Spearman's rank correlation, in [-1, 1]; ties share their mean rank.

    Constant predictions count as 0.0, for the reason given at `Pearson`.
    """

    key = "spearmanr"
    types = (Value("float64"), Value("float64"))
    description_text = "Spearman rank correlation; 0 where predictions or references are constant."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Spearman correlation of two real arrays; 0 where either is constant."""
        return _correlation(stats.spearmanr, predictions, references)


def _correlation(
    function: Callable[..., Any], predictions: ArrayLike, references: ArrayLike
) -> float:
    if _is_constant(predictions) or _is_constant(references):
        return 0.0
    # In float32 the sums of a long, nearly constant array lose the digits that the result needs.
    x, y = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    return float(function(x, y)[0])


def _is_constant(values: ArrayLike) -> bool:
    array = np.asarray(values)
    return bool((array == array[0]).all())
