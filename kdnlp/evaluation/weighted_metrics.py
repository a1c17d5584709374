"""Every metric as a function of how often each row counts: what resampling rows needs.

Drawing rows with replacement is giving each a weight, the number of times that it was drawn. Most
metrics are functions of sums over rows, so that thousands of draws are one product of matrices.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kdnlp.data.task import TaskKind
from kdnlp.evaluation.entity_metrics import find_entities
from kdnlp.evaluation.kept import Predictions

Array = NDArray[np.float64]

WeightedMetric = Callable[[Array], Array]
"""From weights, shape `(draws, units)`, at least 0, to the metric of each draw, shape `(draws,)`.

A unit is what rows are drawn as: a text, a sentence with its tags, or a question.
"""

Weighing = Callable[[Predictions], WeightedMetric]


def weighted_metric(name: str, predictions: Predictions) -> WeightedMetric:
    """A metric of some answers; with weights of 1 it is the metric itself.

    Args:
        name: as in `kdnlp.evaluation.metrics.KIND_METRICS`.
        predictions: the answers of one model.

    Raises:
        KeyError: if the metric has no such form for this kind of task.
    """
    return WEIGHTED[predictions.kind][name](predictions)


def _of_sums(rows: Callable[[Predictions], Array], formula: Callable[[Array], Array]) -> Weighing:
    """A metric that is a formula of sums over units.

    Args:
        rows: what each unit adds, shape `(units, values)`.
        formula: from sums, shape `(draws, values)`, to the metric of each draw.
    """

    def of(predictions: Predictions) -> WeightedMetric:
        added = rows(predictions)
        return lambda weights: formula(weights @ added)

    return of


# Classes: hits, predictions and truths of every class, each shape (draws, classes).


def _class_counts(predictions: Predictions) -> Array:
    """Hits, predictions and truths of every class, a row each, shape `(rows, 3 * classes)`."""
    predicted, true = predictions.predicted, predictions.labels
    if predictions.kind == "single_label_classification":
        classes = np.arange(len(predictions.label_names))
        predicted, true = (values[:, None] == classes for values in (predicted, true))
    return np.concatenate([predicted * true, predicted, true], axis=1).astype(np.float64)


def _accuracy(sums: Array) -> Array:
    hits, _, true = np.split(sums, 3, axis=-1)
    return hits.sum(-1) / true.sum(-1)


def _f1(predictions: Predictions) -> WeightedMetric:
    """Binary F1 of two classes; of more, the mean over those that are predicted or true."""
    positive = predictions.positive_class

    def formula(sums: Array) -> Array:
        hits, predicted, true = np.split(sums, 3, axis=-1)
        values, occurs = _ratio(2 * hits, predicted + true), predicted + true > 0
        if hits.shape[-1] == 2:
            return values[..., positive]
        return values.sum(-1) / occurs.sum(-1)

    return _of_sums(_class_counts, formula)(predictions)


def _matthews(sums: Array) -> Array:
    """Matthews correlation of any number of classes (Gorodkin 2004)."""
    hits, predicted, true = np.split(sums, 3, axis=-1)
    total = true.sum(-1)
    covariance = hits.sum(-1) * total - (predicted * true).sum(-1)
    spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (true**2).sum(-1))
    return _ratio(covariance, np.sqrt(np.maximum(spread, 0)))


def _f1_micro(sums: Array) -> Array:
    hits, predicted, true = np.split(sums, 3, axis=-1)
    return _ratio(2 * hits.sum(-1), (predicted + true).sum(-1))


def _f1_macro(sums: Array) -> Array:
    hits, predicted, true = np.split(sums, 3, axis=-1)
    return _ratio(2 * hits, predicted + true).mean(-1)


# Means over rows.


def _column(values: NDArray[np.generic]) -> Array:
    return np.stack([values, np.ones(len(values))], axis=1).astype(np.float64)


def _mean(sums: Array) -> Array:
    return sums[:, 0] / sums[:, 1]


def _whole_rows(predictions: Predictions) -> Array:
    return _column((predictions.predicted == predictions.labels).all(axis=1))


# Tags: entities hit, predicted and true, then right tags and all tags, of every sentence.


def _tag_counts(predictions: Predictions) -> Array:
    names = np.array(predictions.label_names)
    sentence, (ours, theirs) = predictions.units, (predictions.predicted, predictions.labels)
    counts = np.zeros((int(sentence.max()) + 1, 5))
    starts = np.flatnonzero(np.r_[True, np.diff(sentence) > 0])
    for rows in np.split(np.arange(len(sentence)), starts[1:]):
        found, true = (set(find_entities(names[tags[rows]].tolist())) for tags in (ours, theirs))
        right = int((ours[rows] == theirs[rows]).sum())
        counts[sentence[rows[0]]] = (
            *(len(found & true), len(found), len(true)),
            *(right, len(rows)),
        )
    return counts


# Numbers.


def _numbers(predictions: Predictions) -> Array:
    """Prediction and truth, shape `(rows, 2)`."""
    return np.stack([predictions.predicted, predictions.labels], axis=1).astype(np.float64)


def _pearson(predictions: Predictions) -> WeightedMetric:
    pairs = _numbers(predictions)
    x, y = (pairs - pairs.mean(axis=0)).T  # centred, or the sums would lose digits
    products = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)

    def correlation(weights: Array) -> Array:
        total, *sums = (weights @ products).T
        return _correlation(*(value / total for value in sums))

    return correlation


def _spearman(predictions: Predictions) -> WeightedMetric:
    """Pearson's correlation of the ranks among the drawn rows; ties share their mean rank."""
    pairs = _numbers(predictions)

    def correlation(weights: Array) -> Array:
        x, y = (_weighted_ranks(values, weights) for values in pairs.T)
        share = weights / weights.sum(axis=1, keepdims=True)
        x, y = (ranks - (share * ranks).sum(axis=1, keepdims=True) for ranks in (x, y))
        moments = (x, y, x * x, y * y, x * y)
        return _correlation(*((share * values).sum(axis=1) for values in moments))

    return correlation


def _weighted_ranks(values: Array, weights: Array) -> Array:
    """The mean rank of each row's copies among all copies, shape `(draws, rows)`."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
    copies = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = copies.cumsum(axis=1) - copies + (copies + 1) / 2
    return ranks[:, group]


def _correlation(x: Array, y: Array, xx: Array, yy: Array, xy: Array) -> Array:
    """From the means of what is named; 0 where either is constant."""
    variances = (xx - x * x) * (yy - y * y)
    # What rounding leaves of the variance of a constant is none.
    constant = (xx - x * x <= 1e-12 * xx) | (yy - y * y <= 1e-12 * yy)
    return _ratio(xy - x * y, np.where(constant, 0.0, np.sqrt(np.maximum(variances, 0.0))))


def _ratio(above: Array, below: Array) -> Array:
    """The quotient, and 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _part(name: str) -> Weighing:
    """The mean of one of the kept arrays."""
    return _of_sums(lambda predictions: _column(predictions.arrays[name]), _mean)


_CORRELATIONS: dict[str, Weighing] = {"pearson": _pearson, "spearmanr": _spearman}

WEIGHTED: dict[TaskKind, dict[str, Weighing]] = {
    "single_label_classification": {
        "accuracy": _of_sums(_class_counts, _accuracy),
        "f1": _f1,
        "matthews_correlation": _of_sums(_class_counts, _matthews),
        **_CORRELATIONS,
    },
    "multi_label_classification": {
        "f1_micro": _of_sums(_class_counts, _f1_micro),
        "f1_macro": _of_sums(_class_counts, _f1_macro),
        "subset_accuracy": _of_sums(_whole_rows, _mean),
    },
    "regression": _CORRELATIONS,
    "token_classification": {
        "f1": _of_sums(_tag_counts, lambda s: _ratio(2 * s[:, 0], s[:, 1] + s[:, 2])),
        "precision": _of_sums(_tag_counts, lambda s: _ratio(s[:, 0], s[:, 1])),
        "recall": _of_sums(_tag_counts, lambda s: _ratio(s[:, 0], s[:, 2])),
        "accuracy": _of_sums(_tag_counts, lambda s: _ratio(s[:, 3], s[:, 4])),
    },
    "question_answering": {"exact_match": _part("exact_match"), "f1": _part("f1")},
}
"""For every kind of task, the metrics that can be resampled."""
