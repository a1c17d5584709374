"""What the READMEs hold of the results: each part by the name of its marks, or whole."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.glue.grid import NAMES, TEACHER, Grid
from benchmarks.glue.plots import save_all
from benchmarks.glue.results import RESULTS, Results, read_result
from benchmarks.glue.rows import Row, find, read_latency, read_rows
from benchmarks.glue.tables import MISSING, Summary, detail, insert, published
from kdnlp.evaluation.tables import markdown_table
from kdnlp.files import replace_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

MAIN = "methods"
"""The study that the README at the root and the plot of what is kept show, run by default."""

README_BLOCKS = 3


def rebuild(studies: Mapping[str, Grid]) -> None:
    """Write tables and plots anew from the committed results."""
    for path, parts in sections(studies).items():
        for name, lines in parts.items():
            insert(path, name, lines)
    for name, grid in studies.items():
        results = committed(grid)
        latency = read_latency(results) if name == MAIN else None
        save_all(read_rows(grid, results), grid, latency, HERE / "plots")


def write_page(grid: Grid, results: Results) -> Path:
    """Write tables and plots of a study beside its results, which are not the committed ones.

    Args:
        grid: the study.
        results: of any device and precision.

    Returns:
        The page's path.
    """
    rows, latency = read_rows(grid, results), read_latency(results)
    parts = {
        "Results": _summaries(rows, grid),
        "Speed": _speed(latency),
        "Task by task": _by_task(rows, grid),
        "What is missing": _missing(rows, grid),
        "What it ran on": _machines([results]),
    }
    lines = [f"# GLUE: {grid.name}, {results.folder.name}", "", f"Of `{grid.model}`.", ""]
    for title, part in parts.items():
        lines += [f"## {title}", "", *part, ""]
    results.folder.mkdir(parents=True, exist_ok=True)
    save_all(rows, grid, latency, results.folder / "plots")
    page = results.folder / "tables.md"
    replace_text(page, "\n".join(lines))
    return page


def committed(grid: Grid) -> Results:
    """The committed results of a study, of the device and precision that it names."""
    return Results(RESULTS / grid.name / grid.setting)


def sections(studies: Mapping[str, Grid]) -> dict[Path, dict[str, list[str]]]:
    """By file and name of the marks, the lines that belong between them."""
    main = studies[MAIN]
    rows = {name: read_rows(grid, committed(grid)) for name, grid in studies.items()}
    parts = {
        "speed": _speed(read_latency(committed(main))),
        "machines": _machines(map(committed, studies.values())),
        "published": published(list(main.tasks)),
    }
    for name, grid in studies.items():
        parts[f"{name}, summary"] = _summaries(rows[name], grid)
        parts[f"{name}, by task"] = _by_task(rows[name], grid)
        parts[f"{name}, missing"] = _missing(rows[name], grid)
    glue = Summary(rows[MAIN], main, README_BLOCKS).markdown()
    return {HERE / "README.md": parts, ROOT / "README.md": {"glue": glue}}


def _depths(rows: Sequence[Row]) -> list[int]:
    return sorted({row.blocks for row in rows if row.method != TEACHER}, reverse=True)


def _summaries(rows: Sequence[Row], grid: Grid) -> list[str]:
    lines: list[str] = []
    for blocks in _depths(rows):
        if not Summary(rows, grid, blocks).methods:
            continue
        lines += [f"To {blocks} blocks:", ""]
        lines += [*Summary(rows, grid, blocks).markdown(), ""]
    return lines


def _by_task(rows: Sequence[Row], grid: Grid) -> list[str]:
    lines: list[str] = []
    for blocks in _depths(rows):
        for task in grid.tasks:
            if any((row.task, row.blocks) == (task, blocks) for row in rows):
                lines += [f"### {NAMES[task]}, {blocks} blocks", ""]
                lines += [*detail(rows, grid, task, blocks), ""]
    return lines


def _speed(latency: dict[str, Any] | None) -> list[str]:
    if latency is None:
        return ["Not measured yet."]
    lines = []
    for depth, cells in latency["depths"].items():
        for cell in cells:
            speed = f"{cell['speedup']:.2f}x [{cell['low']:.2f}, {cell['high']:.2f}]"
            flops = f"{cell['flops_ratio']:.2f}x"
            milliseconds = f"{cell['median_ms']:.1f}"
            lines.append((depth, str(cell["batch_size"]), milliseconds, speed, flops))
    header = ("blocks", "batch", "median latency, ms", "speed-up [95%]", "FLOPs")
    machine, threads = latency["machine"]["device"], latency["machine"].get("threads", MISSING)
    of = f"{latency['length']} tokens, {latency['dtype']}"
    said = f"{of}, {machine}, {threads} threads, the models in turns."
    return [*markdown_table(header, lines), "", said]


def _machines(studies: Iterable[Results]) -> list[str]:
    """What the cells ran on, with how many of them did."""
    count: dict[tuple[str, ...], int] = {}
    for results in studies:
        for path in sorted(results.folder.rglob("*-seed*.json")):
            told = read_result(path)
            versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
            threads = str(told["machine"].get("threads", MISSING))
            name = f"{results.folder.parent.name}, {results.folder.name}"
            key = (name, told["machine"]["device"], threads, versions)
            count[key] = count.get(key, 0) + 1
    lines = [(*key, str(number)) for key, number in count.items()]
    return markdown_table(("results", "machine", "threads a cell", "versions", "cells"), lines)


def _missing(rows: Sequence[Row], grid: Grid) -> list[str]:
    """By method and depth, the runs that are there out of those that the plan asks for."""
    planned: dict[tuple[int, str], dict[str, int]] = {}
    for task, method, blocks, seeds in grid.rows():
        counts = planned.setdefault((blocks, method), {})
        counts[task] = max(counts.get(task, 0), len(seeds))
    lines = []
    for (blocks, method), counts in planned.items():
        found = {task: find(rows, task, method, blocks) for task in counts}
        done = {task: len(row.scores) if row else 0 for task, row in found.items()}
        if done != counts:
            cells = [f"{done[t]} of {counts[t]}" if t in counts else MISSING for t in grid.tasks]
            lines.append((grid.methods[method]["title"], str(blocks), *cells))
    header = ("runs", "blocks", *(NAMES[task] for task in grid.tasks))
    return markdown_table(header, lines) if lines else ["None of the plan."]
