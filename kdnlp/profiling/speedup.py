"""How many times faster one model is than another, with an interval, over rounds of turns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

CONFIDENCE = 0.95
MIN_ROUNDS = 6
"""With fewer, even the range from the least to the largest holds the median less often than 95%."""

_RESAMPLES = 2000


@dataclass(frozen=True)
class Speedup:
    """How many times less time a model takes than the reference: 2.0 means half.

    Attributes:
        ratio: the median over rounds of the reference's time over the model's. It is no ratio of
            medians: what slows both passes of a round down leaves it alone.
        low: lower end of its confidence interval, by bootstrap over the rounds; with fewer than
            `MIN_ROUNDS` the least ratio of a round.
        high: upper end; likewise.
        confidence: share of such intervals that hold the true ratio, rounds being independent. The
            range of `n` rounds does so in `1 - 2 ** (1 - n)` of all cases.
        rounds: how many there were.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    rounds: int


def measure_speedup(
    reference: Sequence[float],
    model: Sequence[float],
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Speedup:
    """Compare the times of two models, round by round.

    The interval is the percentile bootstrap's (Efron and Tibshirani 1993, An Introduction to the
    Bootstrap, chapter 13): rounds are drawn again with replacement, the two times of a round
    staying together. It speaks of this run on this machine; another process lays its memory out
    otherwise, and may differ by a little more.

    Args:
        reference: times of the reference, one a round, each above 0.
        model: times of the model in the same rounds and unit.
        confidence: of the interval, in (0, 1).
        seed: of the resampling.

    Raises:
        ValueError: if the rounds are not the same, there are none, or a time is not above 0.
    """
    before, after = np.asarray(reference, float), np.asarray(model, float)
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ValueError(
            "Expected one time a round for the reference and for the model, got "
            f"{before.shape} and {after.shape}. Times of different rounds are of different "
            "minutes of the machine, and their ratio would hold its drift."
        )
    if not (min(before.min(), after.min()) > 0):
        raise ValueError(
            "Expected times above 0, got one that is not. Every pass takes time; check the clock."
        )
    ratios = before / after
    rounds, middle = len(ratios), float(np.median(ratios))
    if rounds < MIN_ROUNDS:
        reached = 1 - 2.0 ** (1 - rounds)
        return Speedup(middle, float(ratios.min()), float(ratios.max()), reached, rounds)
    return Speedup(middle, *_interval(ratios, confidence, seed), confidence, rounds)


def _interval(ratios: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    found = bootstrap(
        (ratios,),
        np.median,
        n_resamples=_RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
