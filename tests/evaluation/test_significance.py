"""Tests between models say what their textbooks say, and the same every time."""

import numpy as np
import pytest
from answers_of import THREE, TWO, kept, tasks
from scipy import stats

from kdnlp.evaluation.kept import Predictions
from kdnlp.evaluation.metrics import compute
from kdnlp.evaluation.significance import (
    interval,
    mcnemar,
    paired_seeds,
    paired_tests,
    resampled_scores,
    right_rows,
    score_of,
)

TASKS = tasks()


def answers(right, labels=None):
    """A two-class model that is right on the given rows."""
    right = np.asarray(right, bool)
    labels = np.zeros(len(right), int) if labels is None else labels
    predicted = np.where(right, labels, 1 - labels)
    arrays = {"logits": np.eye(2)[predicted].astype(np.float32), "labels": labels}
    return {"validation": Predictions("single_label_classification", ("no", "yes"), 1, arrays)}


def test_mcnemar_is_the_two_sided_binomial_test_of_the_rows_that_differ():
    first = np.array([1] * 9 + [0] * 2 + [1] * 30 + [0] * 5, bool)
    second = np.array([0] * 9 + [1] * 2 + [1] * 30 + [0] * 5, bool)
    only_first, only_second, p = mcnemar(first, second)
    assert (only_first, only_second) == (9, 2)
    # 2 * P(X <= 2) for X ~ Binomial(11, 1/2), by hand.
    assert p == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert mcnemar(second, first) == (2, 9, pytest.approx(p))


def test_two_models_that_never_differ_are_not_told_apart():
    same = answers([True, False, True, True])
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)
    (test,) = paired_tests({"a": same, "b": same}, ["accuracy"], [("a", "b")], resamples=50)
    assert (test.difference, test.low, test.high) == (0, 0, 0)
    assert (test.p_bootstrap, test.p_mcnemar) == (1.0, 1.0)


def test_the_bootstrap_has_the_spread_of_a_paired_mean():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(size=400) < 0.8, rng.uniform(size=400) < 0.7
    models = {"a": answers(first), "b": answers(second)}
    (test,) = paired_tests(models, ["accuracy"], [("a", "b")], resamples=4000)
    gains = first.astype(float) - second
    error = gains.std() / np.sqrt(400)
    assert test.difference == pytest.approx(gains.mean())
    assert test.low == pytest.approx(gains.mean() - 1.96 * error, abs=0.1 * error)
    assert test.high == pytest.approx(gains.mean() + 1.96 * error, abs=0.1 * error)
    normal = 2 * stats.norm.sf(abs(gains.mean()) / error)
    assert test.p_bootstrap == pytest.approx(normal, abs=0.02)
    assert (test.rows, test.resamples, test.seed) == (400, 4000, 0)


def test_a_difference_on_the_same_rows_is_surer_than_on_others():
    rng = np.random.default_rng(1)
    first = rng.uniform(size=300) < 0.7
    better = first | (rng.uniform(size=300) < 0.1)  # never worse on a row
    scores = resampled_scores({"a": answers(first), "b": answers(better)}, ["accuracy"], 2000)
    paired, alone = (scores["b"] - scores["a"]).std(), scores["a"].std()
    assert paired < 0.5 * alone


def test_a_clear_difference_is_found_and_a_coin_is_not():
    rng = np.random.default_rng(2)
    coins = rng.uniform(size=(40, 2, 100)) < 0.5
    found = [
        paired_tests({"a": answers(x), "b": answers(y)}, ["accuracy"], [("a", "b")], 500)[0]
        for x, y in coins
    ]
    # Of forty true null hypotheses 5% should be rejected; nine would be one time in ten thousand.
    assert sum(test.p_bootstrap < 0.05 for test in found) < 9
    assert sum(test.p_mcnemar < 0.05 for test in found) < 9
    clear = paired_tests(
        {"a": answers([True] * 100), "b": answers(coins[0, 0])}, ["accuracy"], [("a", "b")], 500
    )
    assert clear[0].p_bootstrap < 0.01
    assert clear[0].p_mcnemar < 0.01


@pytest.mark.parametrize("name", TASKS)
def test_every_kind_has_a_test_of_its_score(name):
    task = TASKS[name]
    models = {n: {"validation": kept(task, seed, 40)} for n, seed in (("a", 1), ("b", 2))}
    (test,) = paired_tests(models, task.metrics, [("a", "b")], resamples=200)
    scores = [score_of(models[n], task.metrics) for n in "ab"]
    assert test.difference == pytest.approx(scores[0] - scores[1])
    assert test.low <= test.difference <= test.high
    assert test.rows == 40  # sentences, not tags
    rows = right_rows(models["a"]["validation"])
    assert (test.p_mcnemar is None) == (rows is None)
    assert (rows is None) == (name in ("regression", "token_classification"))


def test_splits_weigh_alike_whatever_their_size():
    splits = {"small": kept(THREE, 1, 20, 1), "large": kept(THREE, 2, 80, 2)}
    expected = [compute(THREE, p.predicted, p.labels)["score"] for p in splits.values()]
    assert score_of(splits, THREE.metrics) == pytest.approx(np.mean(expected))
    scores = resampled_scores({"a": splits}, THREE.metrics, 1000)["a"]
    assert scores.mean() == pytest.approx(np.mean(expected), abs=0.02)


def test_the_same_seed_gives_the_same_and_the_size_of_the_parts_changes_nothing(monkeypatch):
    models = {n: {"validation": kept(TWO, seed, 30)} for n, seed in (("a", 1), ("b", 2))}
    pairs = [("a", "b")]
    whole = paired_tests(models, TWO.metrics, pairs, resamples=100)
    assert paired_tests(models, TWO.metrics, pairs, resamples=100) == whole
    assert paired_tests(models, TWO.metrics, pairs, resamples=100, seed=1) != whole
    monkeypatch.setattr("kdnlp.evaluation.significance._CELLS_AT_ONCE", 100)
    assert paired_tests(models, TWO.metrics, pairs, resamples=100) == whole


def test_no_number_of_draws_shows_that_a_p_value_is_zero():
    assert interval(np.full(99, 0.3))[2] == pytest.approx(2 / 100)
    assert interval(np.zeros(99))[2] == 1.0


def test_seeds_are_judged_by_a_paired_t_test():
    ours, theirs = np.array([0.81, 0.79, 0.83]), np.array([0.78, 0.77, 0.78])
    low, high, p = paired_seeds(ours - theirs)
    result = stats.ttest_rel(ours, theirs)
    assert p == pytest.approx(result.pvalue)
    assert (low, high) == pytest.approx(tuple(result.confidence_interval(0.95)))


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, 0.1, 0.1]])
def test_seeds_without_a_spread_show_nothing(differences):
    assert paired_seeds(differences) is None
