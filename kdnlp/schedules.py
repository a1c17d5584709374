"""Values that change over a run, as pure functions of its progress.

A schedule holds no state and counts no steps: progress is `global_step / max_steps`, so a resumed
run, another process and a plot all see the same value.
"""

import math
from collections.abc import Callable
from functools import partial

Schedule = Callable[[float], float]
"""Maps progress in [0, 1] to a value."""

NUM_STAIRS = 4


def constant(progress: float, start: float, end: float) -> float:
    """`start` throughout; `end` is not used.

    >>> constant(0.5, 0.3, 1.0)
    0.3
    """
    return start


def linear(progress: float, start: float, end: float) -> float:
    """`start + (end - start) * progress`: the curriculum of Xu et al. 2020, eq. 6.

    >>> linear(0.5, 0.0, 1.0)
    0.5
    """
    return _between(start, end, progress)


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine wave: slow near both ends, fastest in the middle.

    >>> round(cosine(0.25, 0.0, 1.0), 4)
    0.1464
    """
    return _between(start, end, (1 - math.cos(math.pi * progress)) / 2)


def step(progress: float, start: float, end: float) -> float:
    """Four stairs of equal height and width; `end` is reached at progress 1.

    >>> [step(p, 0.0, 1.0) for p in (0.2, 0.3, 0.99, 1.0)]
    [0.0, 0.25, 0.75, 1.0]
    """
    return _between(start, end, math.floor(NUM_STAIRS * progress) / NUM_STAIRS)


def anti(progress: float, start: float, end: float) -> float:
    """`end - linear(...)`: with `end=1`, the anti-curriculum of Xu et al. 2020, section 5.3.

    >>> [round(anti(p, 0.3, 1.0), 2) for p in (0.0, 1.0)]
    [0.7, 0.0]
    """
    return end - linear(progress, start, end)


def _between(start: float, end: float, share: float) -> float:
    """The point a share of the way from `start` to `end`, which rounding takes no further.

    Without that, a temperature that falls to a small one would be 0 at the end.
    """
    if share >= 1.0:
        return end
    low, high = sorted((start, end))
    return min(max(start + (end - start) * share, low), high)


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "step": step,
    "anti": anti,
}


def build_schedule(name: str, start: float, end: float, fraction: float = 1.0) -> Schedule:
    """The schedule called `name`, from `start` to `end` over the first `fraction` of the run.

    Args:
        name: a key of `SCHEDULES`.
        start: the value at progress 0.
        end: the value from progress `fraction` on, whatever the schedule did until then.
        fraction: the share of the run, in (0, 1], that the schedule takes. At 1 the schedule's own
            last value stands, so a `constant` one never reaches `end`.

    Returns:
        A function of progress in [0, 1].

    Raises:
        ValueError: if `name` is unknown or `fraction` is out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(
            f"Unknown schedule {name!r}. Choose one of {', '.join(SCHEDULES)}, or add a function "
            "to kdnlp/schedules.py."
        )
    if not 0.0 < fraction <= 1.0:
        raise ValueError(
            f"A schedule's fraction of the run must lie in (0, 1], got {fraction}. Outside it the "
            "value would jump at once or never arrive."
        )
    return partial(_value, SCHEDULES[name], start, end, fraction)


def _value(
    curve: Callable[[float, float, float], float],
    start: float,
    end: float,
    fraction: float,
    progress: float,
) -> float:
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"Progress must lie in [0, 1], got {progress}.")
    if progress >= fraction and fraction < 1.0:
        return end
    return curve(progress / fraction, start, end)
