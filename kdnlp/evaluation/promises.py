"""What the FLOPs promise beside what was measured, in sentences."""

from kdnlp.evaluation.report import CompressionReport
from kdnlp.profiling.agreement import MAX_DISAGREEMENT, Agreement, is_too_noisy
from kdnlp.profiling.latency import LatencyRow
from kdnlp.profiling.parts import PART_NAMES


def promise_lines(report: CompressionReport) -> list[str]:
    """Where the FLOPs and the measured speed-ups of a report disagree, and which part is to blame.

    Without a disagreement one sentence says so, and which speed-ups are too noisy to tell. None
    where no speed-up was measured round by round, as in reports of an earlier version.
    """
    compared = report.agreements()
    lines = [
        f"FLOPs and latency disagree: {name}, {row.words}: {disagreement_text(found)}"
        f"{_unmeasured(report, found)}"
        for name, row, found in compared
        if found.disagrees
    ]
    if not compared:
        return []
    noisy = [
        (name, row)
        for name, row, found in compared
        if row.speedup is not None and is_too_noisy(found, row.speedup)
    ]
    if not lines:
        lines = [
            f"No measured speed-up is surely further than {MAX_DISAGREEMENT:.0%} from what the "
            "FLOPs promise."
        ]
    if noisy:
        lines.append(f"Too noisy to tell whether it is that far: {_listed(noisy)}.")
    return lines


def disagreement_text(agreement: Agreement) -> str:
    """By how much a speed-up misses what the FLOPs promise, and which part eats the difference."""
    missed = "misses" if agreement.difference < 0 else "exceeds"
    text = (
        f"{agreement.flops_ratio:.2f}x fewer FLOPs, {agreement.speedup:.2f}x faster; it {missed} "
        f"what they promise by {abs(agreement.difference):.0%} (allowed "
        f"{agreement.max_difference:.0%})."
    )
    if agreement.eaten_by is None:
        return text
    eaten = agreement.excess_ms[agreement.eaten_by]
    more = "more" if agreement.difference < 0 else "less"
    return (
        f"{text} Most of it is {PART_NAMES[agreement.eaten_by]}, which takes "
        f"{digits(abs(eaten))} ms {more} than promised, of the {digits(abs(agreement.gap_ms))} ms "
        f"that the whole pass takes {more}."
    )


def digits(value: float) -> str:
    """Three digits that matter, without an exponent.

    >>> digits(1234.5), digits(2.5), digits(0.01234)
    ('1234', '2.50', '0.0123')
    """
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _unmeasured(report: CompressionReport, agreement: Agreement) -> str:
    if agreement.eaten_by is not None:
        return ""
    reason = report.absent.get("module times", "the time of each part was not measured")
    return f" Which part eats the difference is not known: {reason}."


def _listed(found: list[tuple[str, LatencyRow]]) -> str:
    return "; ".join(f"{name}, {row.words}" for name, row in found)
