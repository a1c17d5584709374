"""Every task's metrics, with the `evaluate` interface and without its downloads.

`KIND_METRICS` holds, for each kind of task, one class per metric. Each is an ordinary
`evaluate.Metric`; its `score` is a plain function, which `compute` and the Trainer's hook call
directly: no Arrow table, no file, no lock.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction

from kdnlp.data.label_names import are_entity_tags
from kdnlp.data.task import Task, TaskKind
from kdnlp.evaluation.answer_metrics import AnswerF1, ExactMatch
from kdnlp.evaluation.entity_metrics import EntityF1, EntityPrecision, EntityRecall, TagAccuracy
from kdnlp.evaluation.glue_metrics import F1, Accuracy, MatthewsCorrelation, Pearson, Spearmanr
from kdnlp.evaluation.label_set_metrics import MacroF1, MicroF1, SubsetAccuracy
from kdnlp.evaluation.predictions import as_metrics_take_them, read_outputs
from kdnlp.evaluation.task_metric import TaskMetric


def _by_name(*metrics: type[TaskMetric]) -> dict[str, type[TaskMetric]]:
    return {metric.key: metric for metric in metrics}


METRICS = _by_name(Accuracy, F1, MatthewsCorrelation, Pearson, Spearmanr)
"""GLUE's metrics, for one class or one number per text."""

KIND_METRICS: dict[TaskKind, dict[str, type[TaskMetric]]] = {
    "single_label_classification": METRICS,
    "regression": METRICS,
    "multi_label_classification": _by_name(MicroF1, MacroF1, SubsetAccuracy),
    "token_classification": _by_name(EntityF1, EntityPrecision, EntityRecall, TagAccuracy),
    "question_answering": _by_name(ExactMatch, AnswerF1),
}


def compute(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    """Every metric of the task, and `"score"`, their plain mean.

    The mean is GLUE's convention for its tasks with two metrics (Wang et al. 2019, section 3.3);
    for one metric it is that metric.

    Args:
        task: says which metrics, and how many classes.
        predictions: class ids, or real numbers for regression, shape `(examples,)`; zeros and
            ones, shape `(examples, num_labels)`, for multi-label; tag ids, shape
            `(examples, length)`, for token classification; answers as text.
        references: the labels, same shape, -100 where a tag does not count; for answers the list
            of all that are right for each question.

    Returns:
        One entry per metric, in the task's order, then `"score"`.

    Raises:
        ValueError: if a metric is unknown, the shapes differ, there are no examples, a class id is
            out of range or a number is not finite.
    """
    _check_metric_names(task)
    predicted, true = as_metrics_take_them(task, predictions, references)
    # A batch of a three-class task may hold only the ids 0 and 1, and is still no binary F1.
    average = "binary" if task.num_labels == 2 else "macro"
    settings = {"average": average, "pos_label": task.positive_class}
    metrics = KIND_METRICS[task.kind]
    values = {name: metrics[name].score(predicted, true, **settings) for name in task.metrics}
    return {**values, "score": float(np.mean(list(values.values())))}


def build_compute_metrics(
    task: Task, features: Dataset | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """The `compute_metrics` of a `Trainer` for this task.

    Args:
        task: says which metrics, and what logits mean.
        features: the split that is evaluated, as `prepare` returns it. Question answering needs
            it: the answers stand in its contexts. Other tasks ignore it.

    Returns:
        A picklable function from an `EvalPrediction` to what `compute` returns; see
        `kdnlp.evaluation.predictions.read_outputs` for the shapes.

    Raises:
        ValueError: if a metric of the task is unknown, or `features` are missing.
    """
    _check_metric_names(task)
    if task.kind == "question_answering" and features is None:
        raise ValueError(
            f"Task {task.name!r}: expected the evaluated split beside the task, got none. Logits "
            "are positions, and become answers only with its contexts. Call "
            "build_compute_metrics(task, data['validation'])."
        )
    return partial(_compute_from_logits, task, features)


def _compute_from_logits(
    task: Task, features: Dataset | None, evaluation: EvalPrediction
) -> dict[str, float]:
    return compute(task, *read_outputs(task, evaluation, features))


def _check_metric_names(task: Task) -> None:
    known = KIND_METRICS[task.kind]
    unknown = [name for name in task.metrics if name not in known]
    if unknown or not task.metrics:
        raise ValueError(
            f"Task {task.name!r}: expected at least one metric out of {', '.join(known)}, got "
            f"{task.metrics}. Without one no checkpoint can be chosen. Change the task's metrics, "
            "or add a class to kdnlp/evaluation/metrics.py."
        )
    entities = task.kind == "token_classification" and task.metrics != ("accuracy",)
    if entities and not are_entity_tags(task.label_names or ()):
        raise ValueError(
            f"Task {task.name!r}: entities need tags that begin with B- and I- (or are O), got "
            f"{task.label_names}. Other tags would be read as entities of no meaning. Rename the "
            "tags, or measure metrics=('accuracy',)."
        )
