"""What cells gave, on disk: one JSON each, and which of them are done and chosen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.glue.grid import Cell, Grid
from benchmarks.glue.train import HOLDOUT
from kdnlp.files import replace_text

RESULTS = Path(__file__).resolve().parent / "results"


class Results:
    """The results of one study, device and precision, in a folder of their own.

    Args:
        folder: holds a JSON a cell, by `Cell.path`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's result; `None` where it has not run.

        Raises:
            ValueError: if what lies there was made with other settings than the grid has now.
        """
        path = self.folder / cell.path
        if not path.is_file():
            return None
        result = read_result(path)
        told = {name: result.get(name) for name in cell.described()}
        own, found = _flat(cell.described()), _flat(told)
        if own != found:
            names = sorted(n for n in {**own, **found} if own.get(n) != found.get(n))
            raise ValueError(
                f"{path} was made with other settings than the grid's now: {', '.join(names)}. It "
                "would be counted as something that it is not. Give the method another name in the "
                "grid, or delete the file."
            )
        return result

    def put(self, cell: Cell, result: dict[str, Any]) -> None:
        """Write a cell's result, whole or not at all."""
        path = self.folder / cell.path
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(result, indent=1, sort_keys=True) + "\n")

    def chosen(self, cells: Sequence[Cell]) -> Cell | None:
        """The cell with the best score on the hold-out; `None` while one has not run.

        Of equals the first, so that the order in the grid decides.
        """
        results = [self.get(cell) for cell in cells]
        if any(result is None for result in results):
            return None
        scores = [result[HOLDOUT]["score"] for result in results if result is not None]
        return cells[scores.index(max(scores))]


def read_result(path: Path) -> dict[str, Any]:
    """What a file of results holds."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _flat(described: dict[str, Any]) -> dict[str, Any]:
    return {**described, **(described["settings"] or {})} | {"settings": None}


def wanted(grid: Grid, results: Results) -> list[Cell]:
    """The cells that are known to be needed, in the plan's order, with those that are done.

    The first seed of a row tries every learning rate; once it has, the other seeds have the one
    that was best on the hold-out.
    """
    cells: list[Cell] = []
    for task, method, blocks, seeds in grid.rows():
        cells += grid.teachers(task)
        if results.chosen(grid.teachers(task)) is None:
            continue
        cells += grid.students(task, method, blocks, seeds[0])
        cells += counting(grid, results, task, method, blocks, seeds)
    return list(dict.fromkeys(cells))


def counting(
    grid: Grid, results: Results, task: str, method: str, blocks: int, seeds: Sequence[int]
) -> list[Cell]:
    """The cells of a row that count, those of the rate that the hold-out chose with the first seed.

    None while a rate has not been tried.
    """
    tried = grid.students(task, method, blocks, seeds[0])
    best = results.chosen(tried)
    if best is None:
        return []
    return [grid.students(task, method, blocks, seed)[tried.index(best)] for seed in seeds]
