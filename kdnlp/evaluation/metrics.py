"""GLUE's metrics, with the `evaluate` interface and without its downloads.

`METRICS` holds one class per metric. Each is an ordinary `evaluate.Metric`; its `score` is a plain
function of two arrays, which `compute` and the Trainer's hook call directly: no Arrow table, no
file, no lock.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction

from kdnlp.data.task import Task

_INPUTS = """
Args:
    predictions: one class id (or one real number, for a correlation) per example.
    references: the labels, in the same order.
"""


class GlueMetric(evaluate.Metric):
    """What the metrics share: `evaluate`'s interface around one function, `score`.

    Predictions and references stay in memory. `evaluate`'s own default writes them to a locked
    file below the user's home, where several runs on one machine wait for each other; it is used
    only with `num_process > 1`, which needs the shared file.

    Args:
        config_name: as in `evaluate.Metric`.
        keep_in_memory: `None` means yes for one process, no for several.
        num_process: the number of processes that add examples to one result.
        **kwargs: the other arguments of `evaluate.Metric`.
    """

    key: ClassVar[str]
    dtype: ClassVar[str] = "int64"
    description_text: ClassVar[str]

    def __init__(
        self,
        config_name: str | None = None,
        keep_in_memory: bool | None = None,
        num_process: int = 1,
        **kwargs: Any,
    ) -> None:
        in_memory = num_process == 1 if keep_in_memory is None else keep_in_memory
        super().__init__(config_name, keep_in_memory=in_memory, num_process=num_process, **kwargs)

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """The metric of `predictions` against `references`, both of shape `(examples,)`."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value(self.dtype), "references": Value(self.dtype)})
        return evaluate.MetricInfo(
            description=self.description_text,
            citation="",
            inputs_description=_INPUTS,
            features=features,
        )

    def _build_data_dir(self) -> str:
        if not self.keep_in_memory:
            return super()._build_data_dir()
        return os.path.join(self._data_dir_root, self.name, self.config_name)

    def _compute(
        self, *, predictions: ArrayLike, references: ArrayLike, **kwargs: Any
    ) -> dict[str, float]:
        return {self.key: self.score(predictions, references, **kwargs)}


class Accuracy(GlueMetric):
    """The share of predictions that are right, in [0, 1]."""

    key = "accuracy"
    description_text = "The share of predictions that equal their reference."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Accuracy of two arrays of class ids, in [0, 1]."""
        return float(sklearn_metrics.accuracy_score(references, predictions))


class F1(GlueMetric):
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


class MatthewsCorrelation(GlueMetric):
    """Matthews correlation coefficient, in [-1, 1]; 0 is chance (Matthews 1975)."""

    key = "matthews_correlation"
    description_text = "Matthews correlation of predicted and true class ids."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Matthews correlation of two arrays of class ids; 0 where either is constant."""
        if _is_constant(predictions) or _is_constant(references):
            return 0.0
        return float(sklearn_metrics.matthews_corrcoef(references, predictions))


class Pearson(GlueMetric):
    """Pearson's linear correlation, in [-1, 1].

    Constant predictions carry no information about the target, and the correlation is 0/0. It
    counts as 0.0, as chance does: NaN would win or lose every comparison of checkpoints by the
    order in which they are compared.
    """

    key = "pearson"
    dtype = "float64"
    description_text = "Pearson correlation; 0 where predictions or references are constant."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Pearson correlation of two real arrays; 0 where either is constant."""
        return _correlation(stats.pearsonr, predictions, references)


class Spearmanr(GlueMetric):
    """Spearman's rank correlation, in [-1, 1]; ties share their mean rank.

    Constant predictions count as 0.0, for the reason given at `Pearson`.
    """

    key = "spearmanr"
    dtype = "float64"
    description_text = "Spearman rank correlation; 0 where predictions or references are constant."

    @staticmethod
    def score(predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> float:
        """Spearman correlation of two real arrays; 0 where either is constant."""
        return _correlation(stats.spearmanr, predictions, references)


METRICS: dict[str, type[GlueMetric]] = {
    metric.key: metric for metric in (Accuracy, F1, MatthewsCorrelation, Pearson, Spearmanr)
}


def compute(task: Task, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Every metric of the task, and `"score"`, their plain mean.

    The mean is GLUE's convention for its tasks with two metrics (Wang et al. 2019, section 3.3);
    for one metric it is that metric.

    Args:
        task: says which metrics, and how many classes.
        predictions: class ids, or real numbers for regression, shape `(examples,)`.
        references: the labels, same shape.

    Returns:
        One entry per metric, in the task's order, then `"score"`.

    Raises:
        ValueError: if a metric is unknown, the shapes differ, there are no examples, a class id is
            out of range or a number is not finite.
    """
    _check_metric_names(task)
    predicted, true = np.asarray(predictions), np.asarray(references)
    _check_values(task, predicted, true)
    # A batch of a three-class task may hold only the ids 0 and 1, and is still no binary F1.
    average = "binary" if task.num_labels == 2 else "macro"
    settings = {"average": average, "pos_label": task.positive_class}
    values = {name: METRICS[name].score(predicted, true, **settings) for name in task.metrics}
    return {**values, "score": float(np.mean(list(values.values())))}


def build_compute_metrics(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """The `compute_metrics` of a `Trainer` for this task.

    Args:
        task: says which metrics, and whether logits are classes or a real number.

    Returns:
        A picklable function from an `EvalPrediction` to what `compute` returns. It reads the
        logits, shape `(examples, num_labels)`, from `predictions` or from its first element where
        a model returns several arrays.

    Raises:
        ValueError: if a metric of the task is unknown.
    """
    _check_metric_names(task)
    return partial(_compute_from_logits, task)


def _compute_from_logits(task: Task, evaluation: EvalPrediction) -> dict[str, float]:
    logits = evaluation.predictions
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    references = evaluation.label_ids
    references = references[0] if isinstance(references, tuple) else references
    return compute(task, _decide(task, logits), references)


def _decide(task: Task, logits: NDArray[Any]) -> NDArray[Any]:
    """Class ids, or real numbers, of shape `(examples,)` from logits."""
    if task.kind == "regression" and logits.ndim == 1:
        return logits
    if logits.ndim != 2 or logits.shape[1] != task.num_labels:
        raise ValueError(
            f"Task {task.name!r} needs logits of shape (examples, {task.num_labels}), got "
            f"{logits.shape}. Another shape would be read as other classes. Build the model with "
            f"num_labels={task.num_labels}."
        )
    if task.kind == "regression":
        return logits[:, 0]
    if np.isnan(logits).any():
        row = int(np.isnan(logits).any(axis=1).argmax())
        raise ValueError(
            f"Task {task.name!r}: expected logits without NaN, got NaN in row {row}. The largest "
            "of NaNs is class 0, so a diverged model would score like a constant one. Lower the "
            "learning rate, or train in bf16 or fp32 instead of fp16."
        )
    return logits.argmax(axis=1)


def _check_metric_names(task: Task) -> None:
    unknown = [name for name in task.metrics if name not in METRICS]
    if unknown or not task.metrics:
        raise ValueError(
            f"Task {task.name!r}: expected at least one metric out of {', '.join(METRICS)}, got "
            f"{task.metrics}. Without one no checkpoint can be chosen. Change the task's metrics, "
            "or add a class to kdnlp/evaluation/metrics.py."
        )


def _check_values(task: Task, predicted: NDArray[Any], true: NDArray[Any]) -> None:
    if predicted.ndim != 1 or predicted.shape != true.shape or not len(true):
        raise ValueError(
            f"Task {task.name!r}: expected predictions and references of one shape (examples,) "
            f"with examples > 0, got {predicted.shape} and {true.shape}. Other shapes would "
            "compare examples with the wrong labels. Pass one prediction per label."
        )
    for what, values in (("prediction", predicted), ("reference", true)):
        wrong = _wrong_values(task, values)
        if wrong.any():
            row = int(wrong.argmax())
            expected = f"ids in 0..{task.num_labels - 1}" if task.label_names else "finite numbers"
            raise ValueError(
                f"Task {task.name!r}: expected {what}s that are {expected}, got {values[row]} in "
                f"row {row}. It would count as an error of the model, or as a class of its own. "
                "Leave unlabelled rows out, and look for divergence if it is a prediction."
            )


def _wrong_values(task: Task, values: NDArray[Any]) -> NDArray[np.bool_]:
    if task.kind == "regression":
        return ~np.isfinite(values)
    return (values < 0) | (values >= task.num_labels) | (values != np.floor(values))


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
