"""From results to rows: which cells count, their mean and spread, and tests of differences."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.glue.grid import TEACHER, Cell, Grid
from benchmarks.glue.results import Results, counting
from kdnlp.evaluation.significance import paired_seeds


@dataclass(frozen=True)
class Row:
    """A method on a task, at one number of blocks, over its seeds.

    Attributes:
        task: a GLUE task.
        method: its name in the grid, or `TEACHER`.
        blocks: of the trained model; 0 for the teacher, which keeps all.
        learning_rate: the one that the hold-out chose, with the first seed.
        scores: by seed, the score on the validation split: the mean of the task's metrics, in
            [-1, 1].
        holdout: by seed, the same on the hold-out.
        steps: optimizer steps of one cell.
        teacher_score: on the validation split.
        teacher_holdout: on the hold-out.
    """

    task: str
    method: str
    blocks: int
    learning_rate: float
    scores: dict[int, float]
    holdout: dict[int, float]
    steps: int
    teacher_score: float
    teacher_holdout: float

    @property
    def mean(self) -> float:
        """The mean over seeds, in percent."""
        return 100 * float(np.mean(list(self.scores.values())))

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds, in percent; `None` for one seed."""
        return _deviation([100 * score for score in self.scores.values()])

    def kept(self, split: str = "scores") -> "Share | None":
        """What of the teacher's score is kept, on `scores` or `holdout`; `None` of one of 0."""
        whole = self.teacher_score if split == "scores" else self.teacher_holdout
        if whole <= 0:
            return None
        return Share({seed: 100 * own / whole for seed, own in getattr(self, split).items()})

    def over(self, other: "Row", split: str = "scores") -> "Difference":
        """This row's scores minus another's, seed by seed, where both have one.

        Args:
            other: of the same task.
            split: `scores` for the validation split, or `holdout`.
        """
        own, theirs = getattr(self, split), getattr(other, split)
        seeds = sorted(set(own) & set(theirs))
        return Difference({seed: 100 * (own[seed] - theirs[seed]) for seed in seeds})


@dataclass(frozen=True)
class Share:
    """What rows keep of their teachers' scores.

    Attributes:
        each: by seed, in percent.
        of_all: the mean where that is not of these seeds alone.
    """

    each: dict[int, float]
    of_all: float | None = None

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(list(self.each.values()))) if self.of_all is None else self.of_all

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; `None` for fewer than two."""
        return _deviation(list(self.each.values()))

    @classmethod
    def mean_of(cls, shares: Sequence["Share"]) -> "Share":
        """The mean over several; its spread is that of the seeds that all have."""
        return cls(_mean_by_seed(shares), float(np.mean([share.mean for share in shares])))


@dataclass(frozen=True)
class Difference:
    """What one row has more than another.

    Attributes:
        each: by seed, in points; of the seeds that both have.
    """

    each: dict[int, float]

    @property
    def mean(self) -> float | None:
        """The mean over seeds; `None` where there is none."""
        return float(np.mean(list(self.each.values()))) if self.each else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; `None` for fewer than two."""
        return _deviation(list(self.each.values()))

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """The mean's 95% interval and its p-value, by Student's t; `None` for fewer than two."""
        return paired_seeds(list(self.each.values()))

    @classmethod
    def mean_of(cls, differences: Sequence["Difference"]) -> "Difference":
        """The mean over several, of the seeds that all have."""
        return cls(_mean_by_seed(differences))


def read_rows(grid: Grid, results: Results) -> list[Row]:
    """Every row of the plan that has results, in the plan's order, the teachers first.

    Raises:
        ValueError: if the encoders of two teachers, or teacher or rows of a task's cells, differ.
    """
    rows: dict[tuple[str, int, str], Row] = {}
    encoders: dict[str, str] = {}
    for task in grid.tasks:
        teacher = results.chosen(grid.teachers(task))
        if teacher is None:
            continue
        told = results.get(teacher)
        assert told is not None
        encoders[task] = told["encoder"]
        rows[task, 0, TEACHER] = _row([(teacher, told)], told)
        for _, method, blocks, seeds in [r for r in grid.rows() if r[0] == task]:
            cells = [
                (cell, result)
                for cell in counting(grid, results, task, method, blocks, seeds)
                if (result := results.get(cell)) is not None
            ]
            _check_alike(told, cells)
            known = rows.get((task, blocks, method))
            if cells and (known is None or len(cells) > len(known.scores)):
                rows[task, blocks, method] = _row(cells, told)
    if len(set(encoders.values())) > 1:
        raise ValueError(
            f"The teachers were made of several encoders, {encoders}. The tasks' mean would be of "
            "none of them. Delete the results of one, and run the grid again."
        )
    return list(rows.values())


def read_latency(results: Results) -> dict[str, Any] | None:
    """What `latency.py` measured for this setting; `None` where it has not run."""
    path = results.folder / "latency.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def find(rows: Iterable[Row], task: str, method: str, blocks: int) -> Row | None:
    """A row by its names; `None` where it has no results."""
    for row in rows:
        if (row.task, row.method, row.blocks) == (task, method, blocks):
            return row
    return None


def _mean_by_seed(several: Sequence[Share] | Sequence[Difference]) -> dict[int, float]:
    """The mean over several, of the seeds that all have."""
    seeds = set.intersection(*(set(one.each) for one in several))
    return {seed: float(np.mean([one.each[seed] for one in several])) for seed in sorted(seeds)}


def _deviation(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _row(cells: list[tuple[Cell, dict[str, Any]]], teacher: dict[str, Any]) -> Row:
    first, told = cells[0]
    return Row(
        first.task,
        first.method,
        first.blocks,
        first.learning_rate,
        {cell.seed: told["validation"]["score"] for cell, told in cells},
        {cell.seed: told["holdout"]["score"] for cell, told in cells},
        told["optimizer_steps"],
        teacher["validation"]["score"],
        teacher["holdout"]["score"],
    )


def _check_alike(teacher: dict[str, Any], cells: list[tuple[Cell, dict[str, Any]]]) -> None:
    """Refuse students that cannot be compared.

    Raises:
        ValueError: if they had another teacher than the one that is chosen now, or other rows.
    """
    for cell, told in cells:
        pairs = {"teacher": (told["teachers"][0], teacher["teachers"][0])}
        pairs["rows"] = told["rows"], teacher["rows"]
        for what, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise ValueError(
                    f"{cell.path} had the {what} {theirs}, the task's teacher {ours}. The two "
                    "cannot be compared: delete the file, and run the grid again."
                )
