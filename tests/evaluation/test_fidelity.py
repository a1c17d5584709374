"""The models of a report are compared on the rows that both answered, or it says why not."""

import numpy as np
import pytest
from answers_of import TWO, kept, tasks

from kdnlp.evaluation import fidelity
from kdnlp.evaluation.fidelity import WITHOUT_PREDICTIONS, compare_answers
from kdnlp.evaluation.kept import Evaluation

TASKS = tasks()


def evaluated(*seeds, task=TWO, names=("teacher", "student", "baseline"), **options):
    return {
        name: Evaluation({"v": {"score": 0.5}}, {"v": kept(task, seed, **options)})
        for name, seed in zip(names, seeds, strict=False)
    }


def test_every_model_is_tested_against_the_original_and_the_baseline():
    result = compare_answers(evaluated(1, 2, 3), TWO.metrics)
    pairs = [(test.model, test.against) for test in result.tests]
    assert pairs == [("student", "baseline"), ("student", "teacher"), ("baseline", "teacher")]
    assert set(result.predictions) == {"teacher", "student", "baseline"}
    assert result.behaviour["teacher"]["v"].keys() == {"rows", "calibration_error"}
    assert "agreement" in result.behaviour["student"]["v"]
    assert list(result.classes["student"]["v"]) == ["no", "yes"]


def test_a_missing_baseline_is_named():
    result = compare_answers(evaluated(1, 2), TWO.metrics)
    assert [(t.model, t.against) for t in result.tests] == [("student", "teacher")]
    assert "no baseline" in result.absent["test against a baseline"]


def test_a_model_alone_is_compared_with_nothing_and_misses_nothing():
    result = compare_answers(evaluated(1), TWO.metrics)
    assert result.tests == ()
    assert set(result.absent) == {"correlation", "mean_difference"}


def test_plain_metrics_have_no_behaviour_and_say_so():
    metrics = {**evaluated(1), "student": {"v": {"score": 0.5}}}
    result = compare_answers(metrics, TWO.metrics)
    assert result.absent == {"behaviour": WITHOUT_PREDICTIONS}
    assert (result.behaviour, result.tests, result.predictions) == ({}, (), {})


def test_a_model_that_answered_other_rows_is_not_compared():
    metrics = evaluated(1, 2, 3)
    metrics["student"].predictions["v"] = kept(TWO, 2, labels_seed=9)
    result = compare_answers(metrics, TWO.metrics)
    assert "agreement" not in result.behaviour["student"]["v"]
    assert "agreement" in result.behaviour["baseline"]["v"]
    assert result.absent["comparison"].startswith("student did not answer the rows of the teacher")
    assert [(t.model, t.against) for t in result.tests] == [("baseline", "teacher")]


def test_predictions_beyond_the_limit_are_compared_but_not_kept(monkeypatch):
    monkeypatch.setattr(fidelity, "LIMIT_MB", 0.0001)
    result = compare_answers(evaluated(1, 2, rows=100), TWO.metrics)
    assert result.predictions == {}
    assert result.tests
    assert "is the limit" in result.absent["kept predictions"]


def test_metrics_that_cannot_be_resampled_leave_the_rest():
    task = TASKS["regression"]
    result = compare_answers(evaluated(1, 2, task=task), ("pearson", "accuracy"))
    assert result.tests == ()
    assert "cannot be resampled" in result.absent["tests"]
    assert np.isfinite(result.behaviour["student"]["v"]["correlation"])


@pytest.mark.parametrize("name", TASKS)
def test_every_kind_is_compared(name):
    task = TASKS[name]
    result = compare_answers(evaluated(1, 2, 3, task=task), task.metrics)
    assert len(result.tests) == 3
    assert len(result.behaviour["student"]["v"]) > 1
