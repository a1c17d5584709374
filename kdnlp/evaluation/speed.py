"""What reports, cards and profiles say of latencies and speed-ups, in the same words."""

from kdnlp.profiling.agreement import Agreement, is_too_noisy
from kdnlp.profiling.latency import LatencyRow
from kdnlp.profiling.speedup import CONFIDENCE, Speedup

MIN_REPEATS = 20
"""With fewer timed passes a high percentile is little but the slowest, and is not shown."""

PERCENTILES_NOTE = (
    f"No high percentile of fewer than {MIN_REPEATS} passes; of under 100, p99 is little but the "
    "slowest."
)

DISAGREES, NOISY = " !", " ?"
"""Marks behind a speed-up that the FLOPs do not promise, and one that may be as far from it."""


def shown_percentiles(row: LatencyRow) -> tuple[float | None, float | None]:
    """The 90th and 99th percentile in milliseconds; `None` where the passes do not tell them."""
    return (row.p90_ms, row.p99_ms) if row.repeats >= MIN_REPEATS else (None, None)


def mark(agreement: Agreement | None, speedup: Speedup | None) -> str:
    """`DISAGREES`, `NOISY`, or nothing where a speed-up is what the FLOPs promise."""
    if agreement is None or speedup is None:
        return ""
    if agreement.disagrees:
        return DISAGREES
    return NOISY if is_too_noisy(agreement, speedup) else ""


def interval_text(speedup: Speedup) -> str:
    """The interval of a speed-up, with how sure it is where that is not the usual.

    >>> interval_text(Speedup(2.0, 1.9, 2.1, 0.95, 30)), interval_text(Speedup(2, 1, 3, 0.75, 3))
    ('1.90 to 2.10', '1.00 to 3.00, 75%')
    """
    sure = "" if speedup.confidence == CONFIDENCE else f", {speedup.confidence:.0%}"
    return f"{speedup.low:.2f} to {speedup.high:.2f}{sure}"


def speedup_text(speedup: Speedup | None, agreement: Agreement | None = None) -> str:
    """A speed-up with its interval, in a table; nothing where there is none."""
    if speedup is None:
        return ""
    return f"{speedup.ratio:.2f}x ({interval_text(speedup)}){mark(agreement, speedup)}"


def speedup_words(row: LatencyRow, ratio: float, agreement: Agreement | None) -> str:
    """A speed-up in a sentence after "the measured speed-up is".

    Args:
        row: of the faster model.
        ratio: the speed-up, which stands alone where none was measured round by round.
        agreement: of it with the FLOPs; where noise hides whether there is any, no number stands.
    """
    at, speedup = f"at batch size {row.batch_size}", row.speedup
    if speedup is None:
        return f"{ratio:.2f}x {at}, as a ratio of medians, which may be noise"
    sure = f"{speedup.confidence:.0%} interval {speedup.low:.2f}x to {speedup.high:.2f}x"
    found = mark(agreement, speedup)
    if found == NOISY:
        return f"too noisy to tell {at} ({sure})"
    unexpected = ", which is not what the FLOPs promise" if found == DISAGREES else ""
    return f"{speedup.ratio:.2f}x {at} ({sure}{unexpected})"
