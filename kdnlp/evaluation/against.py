"""Whether the models of several runs differ by more than chance, over seeds and over rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdnlp.evaluation.comparison import ComparisonRow, Member
from kdnlp.evaluation.fidelity import BASELINE
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.significance import (
    RESAMPLES,
    SEED,
    Answers,
    can_resample,
    interval,
    paired_seeds,
    resampled_scores,
)

Bounds = tuple[float, float, float]
"""The lower and the upper end of a 95% interval, as fractions, and a two-sided p-value."""

_Pair = tuple[int | None, Member, Member]
"""The seed, and the models whose scores are compared."""


@dataclass(frozen=True)
class ComparisonTest:
    """One model's scores against another's, run by run.

    Attributes:
        task: the task's name.
        model: whose scores are meant, as the comparison calls it.
        against: whose scores are taken from them.
        seeds: the seed of each pair; `None` where the runs tell none.
        differences: score minus score of each pair, as a fraction.
        over_seeds: Student's paired t-test; `None` with fewer than two seeds, or no spread.
        over_rows: the paired bootstrap over rows of the mean difference; `None` where not all of
            the predictions are there, or they are of other rows.
    """

    task: str
    model: str
    against: str
    seeds: tuple[int | None, ...]
    differences: tuple[float, ...]
    over_seeds: Bounds | None
    over_rows: Bounds | None


def judge(
    rows: Sequence[ComparisonRow], against: str | None = None, resamples: int = RESAMPLES
) -> list[ComparisonTest]:
    """Test every model that a run made against one that had the same budget.

    Args:
        rows: what `kdnlp.evaluation.comparison.compare` returned.
        against: the name in the comparison of what all others are tested against, seed by seed.
            A name without its blocks, where several depths have it, means for each row the one of
            its own depth, or its own original; a row that has neither is not tested. An original
            goes with every run that started from it, and with all runs of others where it is one
            model. `None` is the baseline of the same run; of runs without one the first model that
            a run made, seed by seed.
        resamples: draws of rows.

    Returns:
        A test for each model that has a partner.

    Raises:
        ValueError: if no row has the name.
    """
    names = list(dict.fromkeys(row.model for row in rows))
    if against is not None and against not in {*names, *(row.common_name for row in rows)}:
        raise ValueError(
            f"Expected --against to be one of {'; '.join(names)}, got {against!r}. Nothing would "
            "be tested. Write a model's name as the table does."
        )
    tests = []
    for row in rows:
        reference, pairs = _partners(row, rows, against)
        if pairs:
            tests.append(_test(row, reference, pairs, resamples))
    return tests


def _partners(
    row: ComparisonRow, rows: Sequence[ComparisonRow], against: str | None
) -> tuple[str, list[_Pair]]:
    """What a row is tested against, and the pairs of them."""
    if against is not None:
        reference = _named(row, rows, against)
    elif _made_by(row, BASELINE) or row.is_original:
        return "", []
    else:
        own = [(_seed(m), m, (m[0], BASELINE)) for m in row.members if _holds(m[0], BASELINE)]
        if own:
            return _called(own[0][2], rows), own
        reference = _first_made(row, rows)
    if reference is None or reference is row:
        return "", []
    return reference.model, _pairs(row, reference)


def _pairs(row: ComparisonRow, reference: ComparisonRow) -> list[_Pair]:
    """A pair for each run of the one that has more of them: an original has none of its own."""
    if _runs(row) >= _runs(reference):
        found = [(m, _partner(m, reference)) for m in row.members]
        return [(_seed(m), m, other) for m, other in found if other is not None]
    return [(seed, other, m) for seed, m, other in _pairs(reference, row)]


def _runs(row: ComparisonRow) -> tuple[bool, int]:
    return not row.is_original, len(row.members)


def _partner(member: Member, row: ComparisonRow) -> Member | None:
    """A row's model to pair with another's: its own original, the only one, or that of its seed."""
    if row.is_original:
        own = _own_original(member, row)
        if own is not None or len(row.members) == 1:
            return own or row.members[0]
    seed = _seed(member)
    # Two that tell no seed need not have the same.
    same = (m for m in row.holders if seed is not None and _seed(m) == seed)
    return next(same, None)


def _seed(member: Member) -> int | None:
    seed: int | None = member[0].run.get("seed")
    return seed


def _named(row: ComparisonRow, rows: Sequence[ComparisonRow], name: str) -> ComparisonRow | None:
    """The row of a name; of several that have it but for their blocks, the one that fits a row."""
    same_task = [r for r in rows if r.task == row.task]
    exact = [r for r in same_task if r.model == name]
    fitting = [r for r in same_task if r.common_name == name and _fits(row, r)]
    return next(iter([*exact, *fitting]), None)


def _fits(row: ComparisonRow, reference: ComparisonRow) -> bool:
    if reference.is_original:
        return _own_original(row.members[0], reference) is not None
    return reference.num_layers == row.num_layers


def _first_made(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> ComparisonRow | None:
    made = [r for r in rows if not r.is_original and not _made_by(r, BASELINE)]
    return next((r for r in made if r.task == row.task), None)


def _called(member: Member, rows: Sequence[ComparisonRow]) -> str:
    """What the comparison calls a model of a report."""
    report, name = member
    held = (r.model for r in rows if any(m[0] is report and m[1] == name for m in r.holders))
    return next(held, name)


def _own_original(member: Member, originals: ComparisonRow) -> Member | None:
    """What a model was made from, if it is of that row."""
    return next((m for m in originals.holders if m[0] is member[0]), None)


def _made_by(row: ComparisonRow, name: str) -> bool:
    return all(own == name for _, own in row.members)


def _holds(report: CompressionReport, name: str) -> bool:
    return any(model.name == name for model in report.models)


def _test(row: ComparisonRow, reference: str, pairs: list[_Pair], resamples: int) -> ComparisonTest:
    seeds, ours, theirs = zip(*pairs, strict=True)
    differences = tuple(
        a[name].score - b[other].score for (a, name), (b, other) in zip(ours, theirs, strict=True)
    )
    return ComparisonTest(
        task=row.task,
        model=row.model,
        against=reference,
        seeds=seeds,
        differences=differences,
        over_seeds=paired_seeds(differences),
        over_rows=_over_rows(pairs, resamples),
    )


def _over_rows(pairs: list[_Pair], resamples: int) -> Bounds | None:
    """The interval of the mean difference over pairs, the rows drawn alike for all of them."""
    models: dict[str, Answers] = {}
    for number, (_, ours, theirs) in enumerate(pairs):
        for side, (report, name) in (("ours", ours), ("theirs", theirs)):
            models[f"{number} {side}"] = report.predictions.get(name, {})
    first, metrics = models["0 ours"], pairs[0][1][0].metric_names
    alike = all(_same_rows(first, other) for other in models.values())
    if not first or not alike or not can_resample(next(iter(first.values())), metrics):
        return None
    scores = resampled_scores(models, metrics, resamples, SEED)
    gains = [scores[f"{n} ours"] - scores[f"{n} theirs"] for n in range(len(pairs))]
    return interval(np.mean(gains, axis=0))


def _same_rows(first: Answers, other: Answers) -> bool:
    return first.keys() == other.keys() and all(
        own.same_rows(other[split]) for split, own in first.items()
    )
