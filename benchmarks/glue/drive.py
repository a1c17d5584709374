"""Run the cells that are missing, several at a time; killed and started again, it goes on."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from benchmarks.glue.grid import TEACHER, Cell, Grid
from benchmarks.glue.results import Results, wanted
from benchmarks.glue.rows import read_rows
from benchmarks.glue.train import HOLDOUT, PARTIAL, Place, run_cell, teacher_folder
from kdnlp.weights import SINGLE_FILE, folder_digest

logger = logging.getLogger(__name__)

_CELLS_A_PROCESS = 8
"""After that many, a worker is replaced by a fresh one, with the memory that it had."""

_LOCK = ".lock"


def run_grid(grid: Grid, results: Results, place: Place, jobs: int) -> dict[Cell, BaseException]:
    """Run what the plan asks for and `results` does not hold.

    Args:
        grid: tasks, methods and plan.
        results: where results go and are looked for.
        place: data, folders and device.
        jobs: cells that run at a time, each in a process of its own.

    Returns:
        The cells that failed, with their errors; all others have run.

    Raises:
        ValueError: if another run uses one of the folders, or what lies there cannot be compared.
    """
    run = _Run(grid, results, replace(place, threads=max(1, torch.get_num_threads() // jobs)))
    with alone(place.work, results.folder):
        read_rows(grid, results)  # refuses what no table could be made of, before hours of work
        for left in place.work.glob(f"{PARTIAL}*"):
            shutil.rmtree(left)
        while lost := run.work_through(run.ready, jobs):
            # A worker was killed, and its pool with it: alone, it shows which cell's it was.
            for cell in lost:
                ended = results.get(cell) is not None
                if ended and (cell.method != TEACHER or run.trained(cell)):
                    continue
                if run.work_through(lambda c=cell: [c], 1):  # type: ignore[misc]
                    run.failed[cell] = BrokenProcessPool(f"{cell.path}: its process was killed")
                    logger.error("%s", run.failed[cell])
    return run.failed


@dataclass
class _Run:
    """What a run of the grid knows beside the results."""

    grid: Grid
    results: Results
    place: Place
    failed: dict[Cell, BaseException] = field(default_factory=dict)
    digests: dict[tuple[Path, int], str | None] = field(default_factory=dict)

    def work_through(self, cells: Callable[[], Iterable[Cell]], jobs: int) -> list[Cell]:
        """Run cells until none is left; those that ran when a worker was killed are returned."""
        running: dict[Future[None], Cell] = {}
        begun: set[Cell] = set()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            jobs, context, _end_with_parent, max_tasks_per_child=_CELLS_A_PROCESS
        ) as pool:
            while True:
                for cell in cells():
                    if len(running) == jobs:
                        break
                    if cell not in begun and cell not in self.failed:
                        begun.add(cell)
                        teachers = self.teachers(cell)
                        future = pool.submit(_work, cell, self.place, teachers, self.results)
                        running[future] = cell
                if not running:
                    return []
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    if isinstance(future.exception(), BrokenProcessPool):
                        return list(running.values())
                    self.tell(running.pop(future), future.exception())

    def ready(self) -> Iterator[Cell]:
        """The cells that can be run now, in the plan's order.

        A teacher whose weights are not there, as after a clone, is trained again first.
        """
        for cell in wanted(self.grid, self.results):
            if self.results.get(cell) is not None:
                continue
            lacking = [teacher for teacher in self.teachers(cell) if not self.trained(teacher)]
            yield from lacking or [cell]

    def teachers(self, cell: Cell) -> list[Cell]:
        """The chosen teacher of a student, and the others where it learns from all of them."""
        if cell.method == TEACHER:
            return []
        tried = self.grid.teachers(cell.task)
        chosen = self.results.chosen(tried)
        assert chosen is not None
        others = [teacher for teacher in tried if teacher != chosen]
        return [chosen, *others] if cell.settings.get("ensemble") else [chosen]

    def trained(self, teacher: Cell) -> bool:
        """Whether the weights of a teacher are there, and those that its result tells of."""
        folder, told = teacher_folder(self.place, teacher), self.results.get(teacher)
        assert told is not None
        if not folder.is_dir():
            return False
        key = folder, (folder / SINGLE_FILE).stat().st_mtime_ns
        if key not in self.digests:
            self.digests[key] = folder_digest(folder)
        return self.digests[key] == told["teachers"][0]

    def tell(self, cell: Cell, error: BaseException | None) -> None:
        """Log how a cell ended."""
        if error is not None:
            self.failed[cell] = error
            logger.error("%s failed: %s", cell.path, error)
            return
        known = wanted(self.grid, self.results)
        done = sum(self.results.get(other) is not None for other in known)
        result = self.results.get(cell)
        assert result is not None
        logger.info(
            "%s: hold-out %.2f, validation %.2f, %.0f s (%d of %d cells known to be needed)",
            cell.path,
            100 * result[HOLDOUT]["score"],
            100 * result["validation"]["score"],
            result["seconds"],
            done,
            len(known),
        )


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
    if before is None:
        results.put(cell, run_cell(cell, place, teachers))
        return
    # Sums of floats depend on the number of threads.
    threads = before["machine"].get("threads", place.threads)
    result = run_cell(cell, replace(place, threads=threads), teachers)
    if result["teachers"] != before["teachers"]:
        raise ValueError(
            f"The teacher {cell.path} came out with other weights ({result['teachers'][0]}) than "
            f"the results' ({before['teachers'][0]}): another machine, or other versions. Students "
            "of the two cannot be compared. Give --results another folder, and the whole grid runs "
            "there."
        )


@contextmanager
def alone(*folders: Path) -> Iterator[None]:
    """Let no other run use folders of results, teachers and caches.

    Raises:
        ValueError: if another one does.
    """
    with ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(folder / _LOCK).acquire(timeout=0))
            except Timeout as error:
                raise ValueError(
                    f"Another run of the grid uses {folder}: both would train the same cells. Wait "
                    "for it, or give --work and --results other folders."
                ) from error
        yield
