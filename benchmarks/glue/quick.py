"""One row of the table again, from the pretrained encoder on, in minutes."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

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
        0 if the score lies where one more seed of the row would, by Student's t, and on the table's
        kind of device the answers are those of the same seed, more than of any other; else 1.

    Raises:
        ValueError: if there is no such row, it has no spread, or encoder or data are others.
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
    _check_same(fresh.get(teacher), table.get(teacher))
    cells = counting(grid, table, task, method, BLOCKS, list(row.scores))
    same = _same_answers(cells, fresh, table)
    # Another kind of device draws other dropout and replacements: it is another seed there.
    draws = place.device == table.folder.name.partition("-")[0]
    return 0 if _within(new, row) and (same or not draws) else 1


def _check_same(new: dict[str, Any] | None, known: dict[str, Any] | None) -> None:
    """Raise `ValueError` if the teachers were made from other weights, or of other rows."""
    assert new is not None
    assert known is not None
    other = [what for what in ("encoder", "rows") if new[what] != known[what]]
    if other:
        raise ValueError(
            f"Expected the table's {' and '.join(other)}, got other ones: the digests are "
            f"{', '.join(new[what] for what in other)} and in the table "
            f"{', '.join(known[what] for what in other)}. The score says nothing of the row. Give "
            "--model and --data_dir what the README names."
        )


def _same_answers(cells: Sequence[Cell], fresh: Results, table: Results) -> bool:
    """Whether the first cell answers as it does in the table, more than other seeds do there."""
    told = [fresh.get(cells[0]), *map(table.get, cells)]
    new, *known = [np.array(result["predicted"].split()) for result in told if result]
    alike = [100 * float(np.mean(one == other)) for one, other in combinations(known, 2)]
    own = 100 * float(np.mean(new == known[0]))
    print(
        f"Of the validation rows, {own:.1f}% are answered as that seed does in the table; its "
        f"seeds agree with each other on {min(alike):.1f} to {max(alike):.1f}%."
    )
    return own == 100 or own > max(alike)


def _within(new: Row, row: Row) -> bool:
    low, high = expected(list(row.scores.values()))
    within = low <= new.mean <= high
    print(
        f"{row.task}, {row.method}, {row.blocks} blocks: {new.mean:.1f} now, "
        f"{row.mean:.1f} ± {row.deviation:.1f} over {len(row.scores)} seeds in the table: "
        f"{'within' if within else 'NOT within'} [{low:.1f}, {high:.1f}], where 95 of 100 further "
        f"seeds would lie; teacher {100 * new.teacher_score:.1f} now, "
        f"{100 * row.teacher_score:.1f} there."
    )
    return within


def expected(scores: Sequence[float]) -> tuple[float, float]:
    """The interval, in percent, in which one more seed's score lies with a chance of `LEVEL`."""
    values, count = 100 * np.array(scores), len(scores)
    spread = values.std(ddof=1) * np.sqrt(1 + 1 / count)
    low, high = stats.t.interval(LEVEL, count - 1, values.mean(), spread)
    return float(low), float(high)
