"""One row of the table again, from the pretrained encoder on, in minutes."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy import stats

from benchmarks.glue.drive import alone, run_grid
from benchmarks.glue.grid import Cell, Grid
from benchmarks.glue.results import Results, counting
from benchmarks.glue.rows import Row, find, read_rows
from benchmarks.glue.train import Place

BLOCKS = 3

ROWS = {"cola": "theseus", "mrpc": "theseus-then-kd"}
"""The method of the row that is run again, by task: first the one with the shortest texts."""

LEVEL = 0.95


def run_quick(task: str, grid: Grid, table: Results, place: Place) -> int:
    """Train a row's teacher and its first seed anew, and compare the score with the row.

    Args:
        task: one of `ROWS`.
        grid: the table's.
        table: the results that hold the row.
        place: data, folders and device of the new training, which may be others than the row's.

    Returns:
        0 if the score lies where one more seed of the row would, by Student's t, else 1.

    Raises:
        ValueError: if there is no such row, or it has no spread.
    """
    method = ROWS[task]
    row = find(read_rows(grid, table), task, method, BLOCKS)
    teacher = table.chosen(grid.teachers(task))
    if row is None or teacher is None or row.deviation is None:
        raise ValueError(
            f"{table.folder} holds no {task} row of {method} with a spread: there is nothing to "
            f"compare a new run with. Run the grid first, in the setting {table.folder.name}."
        )
    seed = next(iter(row.scores))  # the one that chose the learning rate
    small = replace(
        grid,
        teacher={**grid.teacher, "learning_rates": [teacher.learning_rate]},
        student={"learning_rates": [row.learning_rate]},
        plan=[{"tasks": [task], "methods": [method], "blocks": [BLOCKS], "seeds": [seed]}],
    )
    again = replace(place, work=place.work / "quick")
    fresh, started = Results(again.work / "results"), time.perf_counter()
    with alone(place.work):
        if again.work.exists():
            shutil.rmtree(again.work)
        if run_grid(small, fresh, again, jobs=1):  # one waits for the other: both have all threads
            return 1
    new = find(read_rows(small, fresh), task, method, BLOCKS)
    assert new is not None
    print(
        f"{time.perf_counter() - started:.0f} s, the teacher's training among them, in "
        f"{place.setting}; the table's row is {table.folder.name}."
    )
    _tell_answers(counting(grid, table, task, method, BLOCKS, list(row.scores)), fresh, table)
    return _compare(new, row)


def _tell_answers(cells: Sequence[Cell], fresh: Results, table: Results) -> None:
    """Say how alike the answers of the first cell are to the table's, and those to each other."""
    told = [fresh.get(cells[0]), *map(table.get, cells)]
    new, *known = [np.array(result["predicted"].split()) for result in told if result]
    alike = [100 * float(np.mean(one == other)) for one, other in combinations(known, 2)]
    print(
        f"Of the validation rows, {100 * np.mean(new == known[0]):.1f}% are answered as that seed "
        f"does in the table; its seeds agree with each other on {min(alike):.1f} to "
        f"{max(alike):.1f}%."
    )


def _compare(new: Row, row: Row) -> int:
    low, high = expected(list(row.scores.values()))
    within = low <= new.mean <= high
    print(
        f"{row.task}, {row.method}, {row.blocks} blocks: {new.mean:.1f} now, "
        f"{row.mean:.1f} ± {row.deviation:.1f} over {len(row.scores)} seeds in the table: "
        f"{'within' if within else 'NOT within'} [{low:.1f}, {high:.1f}], where 95 of 100 further "
        f"seeds would lie; teacher {100 * new.teacher_score:.1f} now, "
        f"{100 * row.teacher_score:.1f} there."
    )
    return 0 if within else 1


def expected(scores: Sequence[float]) -> tuple[float, float]:
    """The interval, in percent, in which one more seed's score lies with a chance of `LEVEL`."""
    values, count = 100 * np.array(scores), len(scores)
    spread = values.std(ddof=1) * np.sqrt(1 + 1 / count)
    low, high = stats.t.interval(LEVEL, count - 1, values.mean(), spread)
    return float(low), float(high)
