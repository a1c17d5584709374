"""The plots of the grid: what was kept at which speed, and how the replacing rate matters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.glue.grid import BASELINE, NAMES, TEACHER, Grid
from benchmarks.glue.rows import Row
from benchmarks.glue.tables import Summary
from kdnlp.evaluation.palette import COLOURS, MARKERS
from kdnlp.evaluation.plots import WIDTH, draw_scores, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH_SIZE = 32
RATE_BLOCKS = 3
HALF = "theseus-constant"
"""The method that is the point 0.5 of the rates."""


def save_all(rows: Sequence[Row], grid: Grid, latency: dict[str, Any] | None, folder: Path) -> None:
    """Write every plot for which there are results, as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    if latency is not None and (kept := kept_of(rows, grid, latency)):
        save_figure(lambda: _draw_kept(kept, latency), folder, "kept")
    if rates := _rates(rows, grid):
        save_figure(lambda: _draw_rates(rates), folder, "rates")


def kept_of(
    rows: Sequence[Row], grid: Grid, latency: dict[str, Any]
) -> dict[tuple[str, int], float]:
    """By method and blocks the mean share that was kept, over the tasks that all depths have.

    The teacher, then at each depth the baseline and what gained most over it on the hold-out;
    nothing where no depth has a mean and a latency.
    """
    whole, *depths = sorted(map(int, latency["depths"]), reverse=True)
    depths = [d for d in depths if Summary(rows, grid, d).averaged]
    tasks = [t for t in grid.averaged if all(t in Summary(rows, grid, d).averaged for d in depths)]
    grid, kept = replace(grid, averaged=tasks), {(TEACHER, whole): 100.0}
    for blocks in depths:
        summary = Summary(rows, grid, blocks)
        over = {m: summary.over(m, "holdout") for m in summary.methods}
        gains = {m: d.mean for m, d in over.items() if d is not None and d.mean is not None}
        best = max(gains, key=gains.__getitem__, default=None)
        for method in (BASELINE, best):
            share = None if method is None else summary.kept(method)
            if method is not None and share is not None:
                kept[method, blocks] = share.mean
    return kept if len(kept) > 1 else {}


def _draw_kept(kept: dict[tuple[str, int], float], latency: dict[str, Any]) -> "Figure":
    times = {
        int(depth): 100 / next(c["speedup"] for c in cells if c["batch_size"] == BATCH_SIZE)
        for depth, cells in latency["depths"].items()
    }
    names = [f"{method}, {blocks} blocks" for method, blocks in kept]
    axis = f"median latency, % of the teacher's, batch {BATCH_SIZE}, {latency['length']} tokens"
    costs = {axis: [times[blocks] for _, blocks in kept]}
    return draw_scores(costs, list(kept.values()), names, "score kept, %", title="GLUE")


def _rates(rows: Sequence[Row], grid: Grid) -> dict[str, dict[float, Row]]:
    """By task, at `RATE_BLOCKS`, the rows that differ in a constant replacing rate alone."""
    rates: dict[str, dict[float, Row]] = {}
    for row in rows:
        spec = grid.methods.get(row.method, {})
        alike = row.method == HALF or spec.get("ablation") == "rate"
        if alike and row.blocks == RATE_BLOCKS:
            rates.setdefault(row.task, {})[spec["arguments"]["initial_replacing_rate"]] = row
    return {task: by_rate for task, by_rate in rates.items() if len(by_rate) > 1}


def _draw_rates(rates: dict[str, dict[float, Row]]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    panel = figure.subplots()
    for number, (task, by_rate) in enumerate(rates.items()):
        points = sorted(by_rate)
        panel.errorbar(
            points,
            [by_rate[rate].mean for rate in points],
            np.array([by_rate[rate].deviation or 0.0 for rate in points]),
            marker=MARKERS[number],
            color=COLOURS[number],
            capsize=3,
            label=NAMES[task],
        )
    panel.set_xlabel("constant replacing rate in the first stage")
    panel.set_ylabel("score, %")
    panel.legend()
    return figure
