"""Whether a model became faster by as much as its FLOPs say, and what ate the difference if not.

Few FLOPs and a slow model go together where memory or launching is the limit; EfficientNet's
depthwise convolutions are the well-known case (Tan and Le 2021, "EfficientNetV2", ICML).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kdnlp.profiling.speedup import Speedup

MAX_DISAGREEMENT = 0.2
"""The share of the FLOPs ratio by which a speed-up may miss it, before that is reported."""


@dataclass(frozen=True)
class Agreement:
    """The ratio of FLOPs beside the measured speed-up, both against the same reference.

    Attributes:
        flops_ratio: how many times fewer FLOPs the model takes.
        speedup: how many times faster it is.
        difference: `speedup / flops_ratio - 1`; -0.3: 30% of what the FLOPs promise is missing.
        max_difference: the share that was allowed.
        disagrees: whether the difference is larger than that in all of the speed-up's interval, so
            that noise raises no alarm.
        excess_ms: milliseconds by part beyond the reference's over `flops_ratio`. They sum to the
            whole gap, and are below 0 where a part is faster than the FLOPs say.
        eaten_by: the part with most of the gap; `None` where no part was measured.
    """

    flops_ratio: float
    speedup: float
    difference: float
    max_difference: float
    disagrees: bool
    excess_ms: dict[str, float]
    eaten_by: str | None

    @property
    def gap_ms(self) -> float:
        """Milliseconds between the model's time and what the FLOPs promise; below 0 if faster."""
        return sum(self.excess_ms.values())


def compare_with_flops(
    flops_ratio: float,
    speedup: Speedup,
    reference_ms: Mapping[str, float],
    model_ms: Mapping[str, float],
    max_difference: float = MAX_DISAGREEMENT,
) -> Agreement:
    """Compare what the FLOPs promise with what was measured.

    Args:
        flops_ratio: FLOPs of the reference over those of the model; above 0.
        speedup: of the model over the reference.
        reference_ms: the reference's milliseconds by part, as `ModuleTime.parts`; may be empty.
        model_ms: those of the model, by the same parts.
        max_difference: the share by which the speed-up may miss the ratio; at least 0.

    Raises:
        ValueError: if a number is out of range.
    """
    check_max_difference(max_difference)
    if not flops_ratio > 0:
        raise ValueError(
            f"Expected a ratio of FLOPs above 0, got {flops_ratio}. No speed-up can agree with it."
        )
    difference = speedup.ratio / flops_ratio - 1
    excess = {part: model_ms[part] - reference_ms[part] / flops_ratio for part in reference_ms}
    slower = sum(excess.values()) > 0
    return Agreement(
        flops_ratio=flops_ratio,
        speedup=speedup.ratio,
        difference=difference,
        max_difference=max_difference,
        disagrees=_certain_difference(flops_ratio, speedup) > max_difference,
        excess_ms=excess,
        eaten_by=(max if slower else min)(excess, key=lambda part: excess[part], default=None),
    )


def is_too_noisy(agreement: Agreement, speedup: Speedup) -> bool:
    """Whether a speed-up may be as far from the ratio of FLOPs as is reported, or may not."""
    ends = (abs(end / agreement.flops_ratio - 1) for end in (speedup.low, speedup.high))
    return not agreement.disagrees and max(ends) > agreement.max_difference


def check_max_difference(max_difference: float) -> None:
    """Raise `ValueError` if a share of disagreement is not one."""
    if not max_difference >= 0:
        raise ValueError(
            f"Expected a share of disagreement of at least 0, got {max_difference}. A negative one "
            "would report every model. 0.2 allows a speed-up of 1.6 to 2.4 where the FLOPs halve."
        )


def _certain_difference(flops_ratio: float, speedup: Speedup) -> float:
    """The share by which the end of the interval next to the ratio misses it; 0 inside."""
    nearest = min(max(flops_ratio, speedup.low), speedup.high)
    return abs(nearest / flops_ratio - 1)
