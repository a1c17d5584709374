import pytest

from kdnlp.profiling.agreement import compare_with_flops
from kdnlp.profiling.speedup import Speedup

BEFORE = {
    "embeddings": 10.0,
    "attention": 40.0,
    "feed_forward": 60.0,
    "other": 4.0,
    "overhead": 6.0,
}


def measured(ratio, spread=0.0):
    return Speedup(ratio, ratio - spread, ratio + spread, 0.95, 30)


def times(**changes):
    return {**{part: ms / 2 for part, ms in BEFORE.items()}, **changes}


def test_half_of_everything_is_what_half_the_flops_promise():
    found = compare_with_flops(2.0, measured(2.0), BEFORE, times())
    assert (found.difference, found.disagrees) == (0.0, False)
    assert set(found.excess_ms.values()) == {0.0}


@pytest.mark.parametrize("part", BEFORE)
def test_the_part_that_did_not_shrink_eats_the_difference(part):
    after = times(**{part: BEFORE[part] / 2 + 50})
    speedup = 120 / sum(after.values())
    found = compare_with_flops(2.0, measured(speedup), BEFORE, after)
    assert found.disagrees
    assert found.eaten_by == part
    assert found.difference == pytest.approx(speedup / 2 - 1)
    assert found.excess_ms[part] == pytest.approx(50)
    assert found.gap_ms == pytest.approx(sum(after.values()) - 120 / 2)


def test_a_model_faster_than_its_flops_is_reported_with_the_part_that_saves():
    after = times(feed_forward=5.0, overhead=4.0)
    found = compare_with_flops(2.0, measured(120 / sum(after.values())), BEFORE, after)
    assert found.disagrees
    assert found.difference > 0
    assert found.gap_ms < 0
    assert found.eaten_by == "feed_forward"


@pytest.mark.parametrize(
    ("ratio", "spread", "allowed", "disagrees"),
    [
        (1.70, 0.0, 0.2, False),
        (1.59, 0.0, 0.2, True),
        (1.59, 0.02, 0.2, False),  # 1.61 is inside the interval, and allowed
        (2.41, 0.0, 0.2, True),
        (2.41, 0.02, 0.2, False),
        (1.90, 0.0, 0.0, True),
        (1.90, 0.11, 0.0, False),
        (0.40, 0.1, 0.5, True),
    ],
)
def test_only_what_noise_does_not_explain_raises_the_flag(ratio, spread, allowed, disagrees):
    found = compare_with_flops(2.0, measured(ratio, spread), BEFORE, times(), allowed)
    assert found.disagrees == disagrees
    assert found.max_difference == allowed


@pytest.mark.parametrize(
    ("flops_ratio", "allowed", "message"),
    [
        (0.0, 0.2, "ratio of FLOPs above 0"),
        (float("nan"), 0.2, "ratio of FLOPs above 0"),
        (2.0, -0.1, "at least 0, got -0.1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(flops_ratio, allowed, message):
    with pytest.raises(ValueError, match=message):
        compare_with_flops(flops_ratio, measured(2.0), BEFORE, times(), allowed)
