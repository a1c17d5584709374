"""A metric of weighted rows is the metric itself of rows that occur that often."""

import numpy as np
import pytest
from answers_of import answers_of, tasks

from kdnlp.evaluation.metrics import KIND_METRICS, compute
from kdnlp.evaluation.significance import can_resample
from kdnlp.evaluation.weighted_metrics import WEIGHTED, weighted_metric

TASKS = tasks()


def repeated(rows, weights):
    """Each row as often as its weight says."""
    copies = [row for row, weight in zip(rows, weights, strict=True) for _ in range(int(weight))]
    return np.array(copies) if isinstance(rows, np.ndarray) else copies


@pytest.mark.parametrize("name", TASKS)
def test_weights_mean_what_repeated_rows_mean(name):
    task = TASKS[name]
    own, predictions, references = answers_of(task, seed=1)
    rng = np.random.default_rng(2)
    weights = np.concatenate([np.ones((1, 12)), rng.multinomial(12, [1 / 12] * 12, size=20)])
    expected = [
        compute(task, repeated(predictions, drawn), repeated(references, drawn))
        for drawn in weights
    ]
    assert len({values["score"] for values in expected}) > 5  # or it would show nothing
    for metric in task.metrics:
        values = weighted_metric(metric, own)(weights)
        assert values == pytest.approx([e[metric] for e in expected], abs=1e-9), metric


@pytest.mark.parametrize("kind", KIND_METRICS)
def test_every_metric_that_fits_a_kind_can_be_resampled(kind):
    missing = set(KIND_METRICS[kind]) - set(WEIGHTED[kind])
    expected = {"accuracy", "f1", "matthews_correlation"} if kind == "regression" else set()
    assert missing == expected


def test_a_metric_that_cannot_be_resampled_is_known_beforehand():
    own, *_ = answers_of(TASKS["regression"], seed=1)
    assert can_resample(own, ["pearson"])
    assert not can_resample(own, ["pearson", "accuracy"])


@pytest.mark.parametrize("metric", ["pearson", "spearmanr", "matthews_correlation"])
def test_a_draw_of_one_row_alone_has_no_correlation(metric):
    own, *_ = answers_of(TASKS["two"], seed=1)
    weights = np.zeros((1, 12))
    weights[0, 3] = 12
    assert weighted_metric(metric, own)(weights).tolist() == [0.0]
