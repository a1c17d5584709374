"""Runs are tested against what had the same budget and the same seed, on the same rows."""

from dataclasses import replace

import numpy as np
import pytest
from answers_of import TWO, kept
from scipy import stats
from test_report import account, small_report

from kdnlp.evaluation.against import judge
from kdnlp.evaluation.comparison import compare
from kdnlp.evaluation.significance import score_of

NAMES = {"theseus": ("predecessor", "successor"), "distillation": ("teacher", "student")}


def run(method, seed, baseline=True, labels_seed=0, keeps=True, task="t", blocks=(4, 2)):
    """A run whose scores are those of its predictions."""
    parts = [*NAMES[method], *(["baseline"] if baseline else [])]
    models, predictions = [], {}
    for number, name in enumerate(parts):
        # One original, whatever the seed of what came from it.
        own = kept(TWO, 1000 * number + (seed if number else 0), 60, labels_seed)
        predictions[name] = {"validation": own}
        score = score_of(predictions[name], TWO.metrics)
        models.append(account(name, score, 10.0 - number, layers=blocks[number > 0]))
    return small_report(
        task=task,
        metric_names=TWO.metrics,
        models=tuple(models),
        run={"method": method, "seed": seed, "base_model": "m"},
        predictions=predictions if keeps else {},
    )


def judged(*runs, **options):
    return {test.model: test for test in judge(compare(runs), resamples=300, **options)}


def test_a_model_is_tested_against_the_baseline_of_its_own_run():
    runs = [run("theseus", seed) for seed in (1, 2, 3)]
    tests = judged(*runs)
    assert list(tests) == ["successor (theseus)"]
    test = tests["successor (theseus)"]
    expected = [r["successor"].score - r["baseline"].score for r in runs]
    assert (test.against, test.seeds) == ("baseline", (1, 2, 3))
    assert test.differences == pytest.approx(expected)
    result = stats.ttest_1samp(expected, 0)
    assert test.over_seeds == pytest.approx((*result.confidence_interval(0.95), result.pvalue))
    low, high, p = test.over_rows
    assert low < np.mean(expected) < high
    assert 0 < p <= 1


def test_rows_tell_less_of_the_mean_of_seeds_than_of_one():
    runs = [run("theseus", seed) for seed in range(1, 9)]
    widths = []
    for some in (runs[:1], runs):
        low, high, _ = judged(*some)["successor (theseus)"].over_rows
        widths.append(high - low)
    assert widths[1] < 0.7 * widths[0]


def test_a_single_seed_has_a_test_over_rows_alone():
    test = judged(run("theseus", 1))["successor (theseus)"]
    assert test.over_seeds is None
    assert test.over_rows is not None


def test_runs_without_a_baseline_are_tested_against_the_first_by_seed():
    runs = [run("distillation", seed, baseline=False) for seed in (1, 2)]
    runs += [run("theseus", seed, baseline=False) for seed in (2, 3)]
    tests = judged(*runs)
    assert list(tests) == ["successor (theseus)"]
    test = tests["successor (theseus)"]
    assert (test.against, test.seeds) == ("student (distillation)", (2,))
    assert test.differences == (runs[2]["successor"].score - runs[1]["student"].score,)


def test_runs_that_share_no_seed_are_not_tested():
    first, second = run("distillation", 1, baseline=False), run("theseus", 2, baseline=False)
    assert judged(first, second) == {}


def test_the_model_to_test_against_can_be_named():
    runs = [run("theseus", 1), run("distillation", 1)]
    tests = judged(*runs, against="student (distillation)")
    assert "successor (theseus)" in tests
    assert "student (distillation)" not in tests
    own = judged(*runs, against="predecessor")
    assert own["successor (theseus)"].differences == (
        runs[0]["successor"].score - runs[0]["predecessor"].score,
    )
    with pytest.raises(ValueError, match="Expected --against to be one of predecessor; successor"):
        judge(compare(runs), against="nobody")


def test_tasks_are_not_tested_against_each_other():
    runs = [run("distillation", 1, baseline=False), run("theseus", 1, False, task="other")]
    assert judged(*runs) == {}


@pytest.mark.parametrize("other", [{"keeps": False}, {"labels_seed": 5}])
def test_without_predictions_of_the_same_rows_only_seeds_are_tested(other):
    runs = [run("theseus", 1), run("theseus", 2, **other)]
    test = judged(*runs)["successor (theseus)"]
    assert test.over_rows is None
    assert test.over_seeds is not None


def test_a_report_of_before_predictions_is_compared_by_its_scores():
    old = [replace(run("theseus", seed, keeps=False), tests=(), absent={}) for seed in (1, 2)]
    rows = compare(old)
    assert [row.agreement for row in rows] == [None] * 3
    assert judge(rows)[0].over_seeds is not None


def test_a_name_that_several_depths_share_means_the_one_of_the_rows_own():
    runs = [run("theseus", seed, blocks=(4, depth)) for depth in (1, 2) for seed in (1, 2)]
    runs.append(run("distillation", 1, baseline=False, blocks=(4, 3)))
    tests = judged(*runs, against="baseline")
    # Neither the original nor the student of three blocks has a baseline of its depth.
    assert {model: test.against for model, test in tests.items()} == {
        "successor (theseus), 1 block": "baseline, 1 block",
        "successor (theseus), 2 blocks": "baseline, 2 blocks",
    }
    assert tests == judged(*runs[:4])
    one = judged(*runs, against="baseline, 1 block")
    assert one["baseline, 2 blocks"].against == "baseline, 1 block"
    assert one["student (distillation)"].seeds == (1,)


def test_a_name_that_originals_of_several_depths_share_means_the_rows_own():
    small, large = run("theseus", 1, False), run("theseus", 2, False, blocks=(6, 3))
    tests = judged(small, large, against="predecessor")
    assert {model: test.against for model, test in tests.items()} == {
        "successor (theseus), 2 blocks": "predecessor, 4 blocks",
        "successor (theseus), 3 blocks": "predecessor, 6 blocks",
    }


def of_base(seed, origin, scores):
    models = (account("teacher", scores[0], 9.0), account("student", scores[1], 4.0, layers=2))
    return small_report(models=models, run={"method": "distillation", "seed": seed, **origin})


def test_what_came_from_another_original_is_tested_against_the_one_that_was_named():
    scores = {"m/a": (0.90, 0.85, 0.86), "m/b": (0.95, 0.92, 0.93)}
    runs = [
        of_base(seed, {"base_model": base, "base_model_on_hub": True}, (own[0], own[seed]))
        for seed in (1, 2)
        for base, own in scores.items()
    ]
    tests = judged(*runs, against="teacher; base_model=m/a")
    assert {model: test.differences for model, test in tests.items()} == {
        "teacher; base_model=m/b": pytest.approx((0.05,)),
        "student (distillation); base_model=m/a": pytest.approx((-0.05, -0.04)),
        "student (distillation); base_model=m/b": pytest.approx((0.02, 0.03)),
    }
    assert tests["student (distillation); base_model=m/b"].seeds == (1, 2)
    back = judged(*runs, against="student (distillation); base_model=m/b")
    assert back["teacher; base_model=m/a"].seeds == (1, 2)
    assert back["teacher; base_model=m/a"].differences == pytest.approx((-0.02, -0.03))


def test_another_original_of_which_each_seed_has_one_is_tested_seed_by_seed():
    scores = {("m/a", 1): (0.90, 0.85), ("m/a", 2): (0.80, 0.75), ("m/b", 2): (0.95, 0.92)}
    runs = [
        of_base(seed, {"base_model": f"{base}-{seed}", "base_model_from": [base]}, own)
        for (base, seed), own in scores.items()
    ]
    tests = judged(*runs, against="teacher; base_model=m/a")
    own, other = (tests[f"student (distillation); base_model={base}"] for base in ("m/a", "m/b"))
    assert (own.seeds, own.differences) == ((1, 2), pytest.approx((-0.05, -0.05)))
    assert (other.seeds, other.differences) == ((2,), pytest.approx((0.12,)))


def test_an_original_is_tested_on_every_seed_of_what_came_from_it():
    runs = [run("theseus", seed) for seed in (1, 2, 3)]
    test = judged(*runs, against="successor (theseus)")["predecessor"]
    back = judged(*runs, against="predecessor")["successor (theseus)"]
    assert test.seeds == back.seeds == (1, 2, 3)
    assert test.differences == tuple(-difference for difference in back.differences)
    assert None not in (test.over_seeds, test.over_rows)
