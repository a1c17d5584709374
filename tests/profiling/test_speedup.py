import numpy as np
import pytest

from kdnlp.profiling.speedup import MIN_ROUNDS, Speedup, measure_speedup


def planted(ratio, rounds, rng, drift=None):
    """Times of two models, the first `ratio` times slower, with noise that only slows down."""
    machine = np.ones(rounds) if drift is None else drift

    def noise():
        return np.exp(np.abs(rng.normal(0, 0.05, rounds))) * np.where(
            rng.random(rounds) < 0.05, 1.5, 1.0
        )

    return ratio * noise() * machine, noise() * machine


def coverage(ratio, rounds, drift=lambda rng, rounds: None, runs=150):
    rng = np.random.default_rng(0)
    hits, widths = 0, []
    for _ in range(runs):
        found = measure_speedup(*planted(ratio, rounds, rng, drift(rng, rounds)))
        hits += found.low <= ratio <= found.high
        widths.append(found.high - found.low)
    return hits / runs, float(np.median(widths)) / ratio


# 150 runs of a true 95% show less than 89% once in a thousand times.
@pytest.mark.parametrize(("ratio", "rounds"), [(2.0, 30), (4.0, 12), (0.5, MIN_ROUNDS)])
def test_the_interval_holds_a_planted_ratio_as_often_as_it_says(ratio, rounds):
    share, width = coverage(ratio, rounds)
    assert share >= 0.89
    assert width < 0.35


def halved(rng, rounds):
    """A machine that becomes 1.6 times slower half way."""
    return np.where(np.arange(rounds) < rounds // 2 + rng.integers(-5, 6), 1.0, 1.6)


def wandering(rng, rounds):
    return np.exp(np.cumsum(rng.normal(0, 0.05, rounds)))


@pytest.mark.parametrize("drift", [halved, wandering])
def test_drift_of_the_machine_cancels(drift):
    steady, drifting = coverage(2.0, 30), coverage(2.0, 30, drift)
    assert drifting[0] >= 0.88
    assert drifting[1] < 1.2 * steady[1]  # A ratio of medians would be several times as wide.


@pytest.mark.parametrize("rounds", [3, 5])
def test_with_few_rounds_the_range_says_how_little_it_knows(rounds):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        before, after = planted(3.0, rounds, rng)
        found = measure_speedup(before, after)
        assert found.low == min(before / after)
        assert found.high == max(before / after)
        hits += found.low <= 3.0 <= found.high
    assert found.confidence == 1 - 2 ** (1 - rounds)
    assert hits / 2000 == pytest.approx(found.confidence, abs=0.03)


def test_the_ratio_is_the_median_over_rounds():
    # The ratio of the medians is 4 to 3.
    assert measure_speedup([4.0, 9.0, 2.0], [2.0, 3.0, 4.0]) == Speedup(2.0, 0.5, 3.0, 0.75, 3)


def test_without_noise_the_interval_is_the_ratio():
    found = measure_speedup([3.0] * 8, [1.5] * 8)
    assert (found.low, found.ratio, found.high) == (2.0, 2.0, 2.0)
    assert (found.confidence, found.rounds) == (0.95, 8)


def test_the_same_times_give_the_same_interval():
    times = planted(2.0, 20, np.random.default_rng(3))
    assert measure_speedup(*times) == measure_speedup(*times)
    assert measure_speedup(*times, confidence=0.5).high < measure_speedup(*times).high


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([1.0, 2.0], [1.0], r"one time a round .* got \(2,\) and \(1,\)"),
        ([], [], "one time a round"),
        ([1.0, 0.0], [1.0, 1.0], "above 0"),
        ([1.0, float("nan")], [1.0, 1.0], "above 0"),
    ],
)
def test_times_that_are_no_rounds_are_refused(before, after, message):
    with pytest.raises(ValueError, match=message):
        measure_speedup(before, after)
