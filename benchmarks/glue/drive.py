"""Run the cells that are missing, several at a time; killed and started again, it goes on."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from benchmarks.glue.grid import TEACHER, Cell, Grid
from benchmarks.glue.results import Results, wanted
from benchmarks.glue.train import Place, run_cell, teacher_folder, weights_sha256

logger = logging.getLogger(__name__)

_CELLS_A_PROCESS = 8
"""After that many, a worker is replaced by a fresh one, with the memory that it had."""


def run_grid(grid: Grid, results: Results, place: Place, jobs: int) -> dict[Cell, BaseException]:
    """Run what the plan asks for and `results` does not hold.

    Args:
        grid: tasks, methods and plan.
        results: where results go and are looked for.
        place: data, folders and device.
        jobs: cells that run at a time, each in a process of its own.

    Returns:
        The cells that failed, with their errors; all others have run.
    """
    failed: dict[Cell, BaseException] = {}
    running: dict[Future[None], Cell] = {}
    place = replace(place, threads=max(1, torch.get_num_threads() // jobs))
    context = multiprocessing.get_context("spawn")
    with (
        _alone(place.work),
        ProcessPoolExecutor(
            jobs, context, _end_with_parent, max_tasks_per_child=_CELLS_A_PROCESS
        ) as pool,
    ):
        while True:
            for cell in _ready(grid, results, place, {*failed, *running.values()}):
                if len(running) < jobs:
                    teachers = _teachers(grid, results, cell)
                    running[pool.submit(_work, cell, place, teachers, results)] = cell
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                error = future.exception()
                if error is None:
                    _tell(cell, grid, results)
                else:
                    failed[cell] = error
                    logger.error("%s failed: %s", cell.path, error)


def _ready(grid: Grid, results: Results, place: Place, not_these: set[Cell]) -> Iterator[Cell]:
    """The cells that can be run now, in the plan's order.

    A chosen teacher whose weights are not there, as after a clone, is trained again first.
    """
    for cell in wanted(grid, results):
        if cell in not_these or results.get(cell) is not None:
            continue
        if cell.method == TEACHER:
            yield cell
            continue
        lacking = [t for t in _teachers(grid, results, cell) if not _trained(t, results, place)]
        if not lacking:
            yield cell
        for teacher in lacking:
            if teacher not in not_these:
                not_these.add(teacher)
                yield teacher


def _trained(teacher: Cell, results: Results, place: Place) -> bool:
    folder = teacher_folder(place, teacher)
    result = results.get(teacher)
    assert result is not None
    if not (folder / "model.safetensors").is_file():
        return False
    return weights_sha256(folder) == result["teacher"]["sha256"]


def _teachers(grid: Grid, results: Results, cell: Cell) -> list[Cell]:
    """The chosen teacher of a student, and the others where it learns from all of them."""
    if cell.method == TEACHER:
        return []
    tried = grid.teachers(cell.task)
    chosen = results.chosen(tried)
    assert chosen is not None
    others = [teacher for teacher in tried if teacher != chosen]
    return [chosen, *others] if cell.settings.get("ensemble") else [chosen]


def _end_with_parent() -> None:
    """End this worker when the driver is killed: it would wait for work that nobody gives."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(cell: Cell, place: Place, teachers: list[Cell], results: Results) -> None:
    before = results.get(cell)
    result = run_cell(cell, place, teachers)
    if before is None:
        results.put(cell, result)
    elif result["teacher"]["sha256"] != before["teacher"]["sha256"]:
        raise ValueError(
            f"The teacher {cell.path} came out with other weights ({result['teacher']['sha256']}) "
            f"than the results' ({before['teacher']['sha256']}): another machine, or other "
            "versions. Students of the two cannot be compared. Give --results another folder, and "
            "the whole grid runs there."
        )


def _tell(cell: Cell, grid: Grid, results: Results) -> None:
    known = wanted(grid, results)
    done = [c for c in known if results.get(c) is not None]
    result = results.get(cell)
    assert result is not None
    logger.info(
        "%s: hold-out %.2f, validation %.2f, %.0f s (%d of %d cells known to be needed)",
        cell.path,
        100 * result["holdout"]["score"],
        100 * result["validation"]["score"],
        result["seconds"],
        len(done),
        len(known),
    )


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Let no other run use the folder of teachers and caches.

    Raises:
        ValueError: if another one does.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / ".lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout as error:
        raise ValueError(
            f"Another run of the grid uses {work}: both would train the same cells. Wait for it, "
            "or give --work and --results other folders."
        ) from error
