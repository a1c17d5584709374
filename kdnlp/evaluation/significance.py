"""Whether two models differ by more than the rows, or the seeds, that they happened to be given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from kdnlp.evaluation.kept import Predictions
from kdnlp.evaluation.weighted_metrics import WEIGHTED, WeightedMetric, weighted_metric

RESAMPLES = 2000
SEED = 0
CONFIDENCE = 0.95

_CELLS_AT_ONCE = 4_000_000
"""Weights that lie in memory at a time, 8 bytes each."""

Answers = Mapping[str, Predictions]
"""One model's predictions by split."""


@dataclass(frozen=True)
class PairedTest:
    """One model's score against another's, on the same rows.

    Attributes:
        model: whose score is meant.
        against: whose score is taken from it.
        difference: score minus score, as a fraction; a score is the mean over metrics and splits.
        low: the lower end of the 95% interval of the difference, by resampling rows.
        high: its upper end.
        p_bootstrap: the two-sided p-value of that resampling.
        only_model: rows that `model` alone got right; `None` where a row is not right or wrong.
        only_against: rows that `against` alone got right.
        p_mcnemar: the two-sided p-value of McNemar's exact test of those two numbers.
        rows: texts, sentences or questions that were resampled.
        resamples: how many times.
        seed: of the resampling.
    """

    model: str
    against: str
    difference: float
    low: float
    high: float
    p_bootstrap: float
    only_model: int | None
    only_against: int | None
    p_mcnemar: float | None
    rows: int
    resamples: int
    seed: int


def paired_tests(
    models: Mapping[str, Answers],
    metric_names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[PairedTest]:
    """Test the scores of pairs of models on the rows that both answered.

    The bootstrap draws rows with replacement, the same for all models (Efron and Tibshirani 1993,
    chapter 13, the percentile interval; for language tasks Koehn 2004). It tells how far another
    sample of rows would have moved the difference, and nothing of other seeds.

    Args:
        models: by name, the predictions by split; all on the same rows.
        metric_names: the task's metrics, whose mean is the score.
        pairs: names of a model and of what it is tested against.
        resamples: at least 1.
        seed: of the draws.
    """
    scores = resampled_scores(models, metric_names, resamples, seed)
    whole = {name: score_of(splits, metric_names) for name, splits in models.items()}
    return [
        PairedTest(
            model,
            against,
            whole[model] - whole[against],
            *interval(scores[model] - scores[against]),
            *_mcnemar_of(models[model], models[against]),
            rows=sum(_units(answers) for answers in models[model].values()),
            resamples=resamples,
            seed=seed,
        )
        for model, against in pairs
    ]


def can_resample(predictions: Predictions, metric_names: Sequence[str]) -> bool:
    """Whether every metric has a form that rows can be drawn for."""
    return all(name in WEIGHTED[predictions.kind] for name in metric_names)


def score_of(splits: Answers, metric_names: Sequence[str]) -> float:
    """The mean over splits and metrics, from kept predictions."""
    values = [
        weighted_metric(name, answers)(np.ones((1, _units(answers))))
        for answers in splits.values()
        for name in metric_names
    ]
    return float(np.mean(values))


def resampled_scores(
    models: Mapping[str, Answers],
    metric_names: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, NDArray[np.float64]]:
    """The score of each model on each of the draws, which are the same for all models.

    Args:
        models: by name, the predictions by split, all on the same rows.
        metric_names: the task's metrics.
        resamples: draws.
        seed: of the draws.

    Returns:
        By name, shape `(resamples,)`: the mean over metrics, and over splits.
    """
    splits = list(next(iter(models.values())))
    rng = np.random.default_rng(seed)
    totals = {name: np.zeros(resamples) for name in models}
    for split in splits:
        metrics: dict[str, list[WeightedMetric]] = {
            name: [weighted_metric(metric, answers[split]) for metric in metric_names]
            for name, answers in models.items()
        }
        units = _units(next(iter(models.values()))[split])
        for draws, weights in _draw(rng, units, resamples):
            for name, own in metrics.items():
                values = [metric(weights) for metric in own]
                totals[name][draws] += np.mean(values, axis=0) / len(splits)
    return totals


def interval(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """The percentile interval of resampled differences, and their two-sided p-value.

    The p-value is twice the smaller share of draws at or beyond 0 on one side, at most 1; one is
    added to both counts, for no finite number of draws shows that it is 0.
    """
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(differences, [tail, 100 - tail])
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    p = 2 * (min(below, above) + 1) / (len(differences) + 1)
    return float(low), float(high), float(min(1.0, p))


def mcnemar(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """McNemar's exact test: are the rows that one alone got right as many as the other's?

    The rows on which the two differ are tosses of a fair coin if neither is better (McNemar 1947).

    Args:
        first: whether each row was right, shape `(rows,)`.
        second: the same rows by the other model.

    Returns:
        The rows that the first alone got right, those that the second alone did, and the two-sided
        p-value; 1 where there are neither.
    """
    ours, theirs = np.asarray(first, bool), np.asarray(second, bool)
    only_first, only_second = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    tosses = only_first + only_second
    p = stats.binomtest(only_first, tosses, 0.5).pvalue if tosses else 1.0
    return only_first, only_second, float(p)


def paired_seeds(differences: Sequence[float]) -> tuple[float, float, float] | None:
    """The 95% interval of the mean difference over seeds, and its p-value, by Student's t.

    Args:
        differences: score minus score of two models of one seed, a number per seed.

    Returns:
        Lower end, upper end and two-sided p-value; `None` for fewer than two seeds, or where all
        differences are equal, which leaves no spread to judge by. With three seeds only a large
        and steady difference can be told from chance.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2 or np.ptp(values) < 1e-12:  # what rounding leaves is no spread
        return None
    result = stats.ttest_1samp(values, 0.0)
    bounds = result.confidence_interval(CONFIDENCE)
    return float(bounds.low), float(bounds.high), float(result.pvalue)


def right_rows(predictions: Predictions) -> NDArray[np.bool_] | None:
    """Whether each row is right; `None` where a row is more or less right, or not independent."""
    if predictions.kind == "question_answering":
        return predictions.arrays["exact_match"] == 1
    if predictions.kind not in ("single_label_classification", "multi_label_classification"):
        return None
    right = predictions.predicted == predictions.labels
    return right.all(axis=1) if right.ndim == 2 else right


def _mcnemar_of(first: Answers, second: Answers) -> tuple[int | None, int | None, float | None]:
    pairs = [(right_rows(first[split]), right_rows(second[split])) for split in first]
    if any(ours is None or theirs is None for ours, theirs in pairs):
        return None, None, None
    ours, theirs = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    return mcnemar(ours, theirs)


def _units(predictions: Predictions) -> int:
    return int(predictions.units.max()) + 1


def _draw(
    rng: np.random.Generator, units: int, resamples: int
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """How often each unit was drawn, shape `(draws, units)`, some draws at a time."""
    at_once = max(1, _CELLS_AT_ONCE // units)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        cells = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        weights = np.bincount(cells.ravel(), minlength=count * units)
        yield slice(start, start + count), weights.reshape(count, units).astype(np.float64)
