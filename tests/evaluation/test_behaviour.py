"""Agreement, divergence and calibration are those of their definitions, or are not there."""

from dataclasses import replace

import numpy as np
import pytest
from answers_of import TWO, kept, tasks
from scipy.special import expit, rel_entr, softmax
from scipy.stats import pearsonr

from kdnlp.evaluation.behaviour import (
    absent_figures,
    class_accuracy,
    describe_behaviour,
    expected_calibration_error,
)
from kdnlp.evaluation.kept import Predictions

TASKS = tasks()


def of_logits(logits, labels, kind="single_label_classification", names=("a", "b")):
    arrays = {"logits": np.array(logits, np.float32), "labels": np.array(labels)}
    return Predictions(kind, names, 1, arrays)


def ece_by_definition(confidence, right, bins=15):
    """Bin by bin, as the paper has it."""
    error = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_the_calibration_error_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.01, 1, 500)
    right = rng.uniform(size=500) < confidence**2
    expected = ece_by_definition(confidence, right)
    assert expected > 0.05
    assert expected_calibration_error(confidence, right) == pytest.approx(expected)


def test_a_model_that_answers_all_rows_alike_is_told_by_its_answers():
    collapsed = of_logits([[0, 2], [1, 3], [0, 1]], [0, 1, 1])
    assert describe_behaviour(collapsed, None)["one_answer"] == 1.0
    assert "one_answer" not in describe_behaviour(of_logits([[0, 2], [3, 1]], [1, 1]), None)
    several = {"kind": "multi_label_classification", "labels": [[0, 1], [1, 1]]}
    assert "one_answer" in describe_behaviour(of_logits([[-1, 2], [-3, 1]], **several), None)
    assert "one_answer" not in describe_behaviour(of_logits([[-1, 2], [3, 1]], **several), None)


def test_the_calibration_error_at_its_ends():
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1.0
    assert expected_calibration_error([0.0], [False]) == 0.0
    # A bin's upper end is its own: both rows are in the first of two bins.
    assert expected_calibration_error([0.5, 0.3], [True, False], bins=2) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("confidence", "right"),
    [([], []), ([0.5], [True, False]), ([1.2], [True]), ([float("nan")], [True])],
)
def test_what_is_no_confidence_is_refused(confidence, right):
    with pytest.raises(ValueError, match="Expected confidence"):
        expected_calibration_error(confidence, right)


def test_figures_of_classes_are_those_of_numpy():
    own, original = (kept(TASKS["three"], seed, rows=200) for seed in (1, 2))
    figures = describe_behaviour(own, original)
    ours, theirs = (softmax(p.arrays["logits"].astype(float), axis=1) for p in (own, original))
    same = ours.argmax(1) == theirs.argmax(1)
    assert 0.3 < same.mean() < 0.9
    confidence, right = ours.max(1), ours.argmax(1) == own.labels
    assert figures == {
        "rows": 200,
        "agreement": pytest.approx(same.mean()),
        "kl_divergence": pytest.approx(rel_entr(theirs, ours).sum(1).mean()),
        "calibration_error": pytest.approx(ece_by_definition(confidence, right)),
    }


def test_several_labels_agree_as_a_whole_and_diverge_label_by_label():
    own, original = (kept(TASKS["multi_label_classification"], seed, 100) for seed in (1, 2))
    figures = describe_behaviour(own, original)
    ours, theirs = (expit(p.arrays["logits"].astype(float)) for p in (own, original))
    divergence = (rel_entr(theirs, ours) + rel_entr(1 - theirs, 1 - ours)).mean()
    confidence = np.maximum(ours, 1 - ours).ravel()
    right = ((ours > 0.5) == own.labels).ravel()
    assert figures == {
        "rows": 100,
        "agreement": pytest.approx(((ours > 0.5) == (theirs > 0.5)).all(1).mean()),
        "kl_divergence": pytest.approx(divergence),
        "calibration_error": pytest.approx(ece_by_definition(confidence, right)),
    }


def test_numbers_correlate_and_differ():
    own, original = (kept(TASKS["regression"], seed, 100) for seed in (1, 2))
    ours, theirs = (p.arrays["logits"][:, 0].astype(float) for p in (own, original))
    assert describe_behaviour(own, original) == {
        "rows": 100,
        "correlation": pytest.approx(pearsonr(ours, theirs)[0]),
        "mean_difference": pytest.approx(np.abs(ours - theirs).mean()),
    }


def test_answers_agree_where_their_words_do():
    task = TASKS["question_answering"]
    own, original = kept(task, 1, 200), kept(task, 2, 200)
    figures = describe_behaviour(own, original)
    assert list(figures) == ["rows", "agreement"]
    assert 0.1 < figures["agreement"] < 0.6
    assert describe_behaviour(own, own)["agreement"] == 1.0


def test_tags_count_one_by_one():
    own, original = (kept(TASKS["token_classification"], seed) for seed in (1, 2))
    figures = describe_behaviour(own, original)
    ours, theirs = (p.arrays["logits"].argmax(1) for p in (own, original))
    assert figures["rows"] == len(own.labels) > 12
    assert figures["agreement"] == pytest.approx((ours == theirs).mean())
    assert set(figures) == {"rows", "agreement", "kl_divergence", "calibration_error"}


@pytest.mark.parametrize("name", TASKS)
def test_a_model_behaves_exactly_like_itself(name):
    own = kept(TASKS[name], 1)
    figures = describe_behaviour(own, own)
    perfect = {"agreement": 1.0, "kl_divergence": 0.0, "correlation": 1.0, "mean_difference": 0.0}
    shared = perfect.keys() & figures.keys()
    assert {k: figures[k] for k in shared} == pytest.approx({k: perfect[k] for k in shared})
    assert figures.get("kl_divergence", 0.0) >= 0.0


@pytest.mark.parametrize("name", TASKS)
def test_what_is_not_measured_is_said_to_be_absent(name):
    own = kept(TASKS[name], 1)
    measured = {*describe_behaviour(own, own), *(["class_accuracy"] if class_accuracy(own) else [])}
    every = {"rows", "agreement", "kl_divergence", "calibration_error", "class_accuracy"}
    every |= {"correlation", "mean_difference"}
    assert measured | set(absent_figures(own.kind)) == every
    assert not measured & set(absent_figures(own.kind))


def test_without_an_original_nothing_is_compared():
    assert set(describe_behaviour(kept(TWO, 1), None)) == {"rows", "calibration_error"}


def test_a_class_is_judged_by_its_own_rows():
    own = of_logits([[2, 0], [0, 2], [0, 2], [0, 1]], [0, 0, 1, 1])
    assert class_accuracy(own) == {
        "a": {"accuracy": 0.5, "rows": 2},
        "b": {"accuracy": 1.0, "rows": 2},
    }
    assert list(class_accuracy(of_logits([[2, 0]], [0]))) == ["a"]  # b has no rows


def test_a_label_among_several_is_a_question_to_every_row():
    own = of_logits(
        [[1, -1], [1, 1], [-1, -1]], [[1, 0], [0, 1], [0, 1]], "multi_label_classification"
    )
    assert class_accuracy(own) == {
        "a": {"accuracy": pytest.approx(2 / 3), "rows": 3},
        "b": {"accuracy": pytest.approx(2 / 3), "rows": 3},
    }


def test_an_infinite_logit_leaves_a_number():
    own = of_logits([[0.0, -np.inf], [1, 0]], [0, 1])
    figures = describe_behaviour(own, replace(own))
    assert figures["kl_divergence"] == 0.0
    assert np.isfinite(list(figures.values())).all()
