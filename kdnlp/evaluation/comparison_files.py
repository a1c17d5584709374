"""A comparison of runs for people and programs: the terminal, markdown, JSON, a page, plots."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from kdnlp.evaluation.against import Bounds, ComparisonTest
from kdnlp.evaluation.comparison import ComparisonRow
from kdnlp.evaluation.html import PageTable, page_html, read_plots
from kdnlp.evaluation.json_text import json_text
from kdnlp.evaluation.pareto import overlap, pareto_front, same_build
from kdnlp.evaluation.plots import draw_scores, save_figure
from kdnlp.evaluation.rows import MISSING, p_value
from kdnlp.evaluation.significance import RESAMPLES, SEED
from kdnlp.evaluation.speed import mark
from kdnlp.evaluation.tables import markdown_table
from kdnlp.files import replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADER = (
    *("task", "model", "blocks", "score, %", "kept, %", "agrees, %", "ECE, %"),
    *("FLOPs", "speed-up", "runs"),
)

TEST_HEADER = (
    *("task", "model", "against", "seeds", "difference, points"),
    *("over seeds [95%], p", "over rows [95%], p"),
)

_SCORES = ("model", "blocks", "score, %", "kept, %", "agrees, %", "runs")
_COSTS = ("model", "FLOPs", "speed-up", "ECE, %")
"""What a terminal shows beside each other."""

CAPTION = (
    "Score: the mean of the task's metrics, measured once a run. Kept: percent of the original's "
    "score, run by run. Agrees: percent of rows answered as the original does. ECE: expected "
    "calibration error, 15 bins. Mean and standard deviation over the runs. FLOPs and speed-up: "
    "how many times less than the original, each run's own, the speed-up by latency at each batch "
    "size. A mark stands where all runs agree on it: ! is not what the FLOPs promise, ? too noisy "
    "to tell."
)

TEST_CAPTION = (
    "Difference: score minus score of the same seed, mean and standard deviation. Over seeds: "
    "Student's paired t-test of the seeds' differences, which tells whether another seed would "
    "show it; few seeds show only what is large and steady. Over rows: the paired bootstrap of the "
    f"mean difference, {RESAMPLES} draws of the evaluated rows, alike for all models, seed {SEED}, "
    "which tells whether other rows would show it. p-values are two-sided and not corrected for "
    f"the number of tests. {MISSING}: a single seed, seeds without a spread, or predictions that "
    "were not kept or are of other rows."
)

TITLE = "Runs compared"


def comparison_rows(rows: Sequence[ComparisonRow]) -> list[tuple[str, ...]]:
    """Cells of text in the order of `HEADER`."""
    return [
        (
            row.task,
            row.model,
            str(row.num_layers),
            _spread(row.scores, 100),
            _spread(row.retention),
            _spread(row.agreement, 100),
            _spread(row.calibration_error, 100),
            f"{row.flops_ratio:.2f}x",
            " / ".join(_speedup(n) + _mark(row, size) for size, n in row.speedups.items()),
            str(len(row.scores)),
        )
        for row in rows
    ]


def comparison_test_rows(tests: Sequence[ComparisonTest]) -> list[tuple[str, ...]]:
    """Cells of text in the order of `TEST_HEADER`."""
    return [
        (
            test.task,
            test.model,
            test.against,
            ", ".join(MISSING if seed is None else str(seed) for seed in test.seeds),
            _spread(test.differences, 100, "+.1f"),
            _bounds(test.over_seeds),
            _bounds(test.over_rows),
        )
        for test in tests
    ]


def comparison_tables(
    rows: Sequence[ComparisonRow], tests: Sequence[ComparisonTest] = ()
) -> list[Table]:
    """The comparison as tables for a terminal, which has room for few columns: three a task."""
    tables: list[Table] = []
    for task in dict.fromkeys(row.task for row in rows):
        cells = comparison_rows([row for row in rows if row.task == task])
        tables.append(_terminal(f"{task}: {TITLE.lower()}", HEADER, cells, _SCORES))
        tables.append(_terminal(f"{task}: costs and calibration", HEADER, cells, _COSTS))
        tried = comparison_test_rows([test for test in tests if test.task == task])
        if tried:
            tables.append(_terminal(f"{task}: by chance?", TEST_HEADER, tried, TEST_HEADER[1:]))
    tables[-1].caption = f"{CAPTION} {TEST_CAPTION}" if tests else CAPTION
    return tables


def save_comparison(
    rows: Sequence[ComparisonRow],
    folder: str | os.PathLike[str],
    tests: Sequence[ComparisonTest] = (),
) -> None:
    """Write `comparison.md`, `.json`, `.html`, `.png` and `.svg` into `folder`, each whole.

    In the JSON a number that is not finite is `null`. Of several tasks there is a plot each,
    `comparison-<task>.png` and `.svg`, with a number where two would have one name.
    """
    text = json_text([_plain(row, tests) for row in rows])
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    titles: dict[str, str] = {}
    names = _plot_names(rows)
    for task, own in _by_task(rows).items():
        name = names[task]
        titles[name] = f"{task}: score against latency, mean and standard deviation of runs"
        save_figure(lambda own=own: _draw(own), target, name)  # type: ignore[misc]
    tables = [PageTable("", HEADER, comparison_rows(rows), note=CAPTION, texts=2)]
    if tests:
        cells = comparison_test_rows(tests)
        tables.append(PageTable("By chance?", TEST_HEADER, cells, note=TEST_CAPTION, texts=3))
    replace_text(target / "comparison.md", _markdown(tables, titles))
    replace_text(target / "comparison.html", _page(rows, tests, titles, target))
    replace_text(target / "comparison.json", text)


def _page(
    rows: Sequence[ComparisonRow],
    tests: Sequence[ComparisonTest],
    titles: dict[str, str],
    folder: Path,
) -> str:
    """A section a task, with its own table and plot: a column of one task's name is room lost."""
    tables: list[PageTable] = []
    caption, test_caption = CAPTION, TEST_CAPTION
    names = _plot_names(rows)
    for task, own in _by_task(rows).items():
        cells = [row[1:] for row in comparison_rows(own)]
        plots = read_plots({names[task]: titles[names[task]]}, folder)
        tables.append(PageTable(task, HEADER[1:], cells, note=caption, plots=plots))
        caption = ""  # once is enough
        tried = [test for test in tests if test.task == task]
        if tried:
            cells = [row[1:] for row in comparison_test_rows(tried)]
            title = f"{task}: by chance?"
            tables.append(PageTable(title, TEST_HEADER[1:], cells, note=test_caption, texts=2))
            test_caption = ""
    return page_html(TITLE, tables, ())


def _plain(row: ComparisonRow, tests: Sequence[ComparisonTest]) -> dict[str, Any]:
    """A row and its test as plain values."""
    values = asdict(replace(row, members=(), holders=()))
    del values["members"], values["holders"]
    own = [asdict(t) for t in tests if (t.task, t.model) == (row.task, row.model)]
    return {**values, "tests": own}


def _markdown(tables: Sequence[PageTable], titles: dict[str, str]) -> str:
    lines = [f"# {TITLE}", ""]
    for table in tables:
        lines += [f"## {table.title}", ""] if table.title else []
        lines += [*markdown_table(tuple(table.header), [tuple(row) for row in table.rows]), ""]
        lines += [table.note, ""]
    for name, title in titles.items():
        lines += [f"![{title}]({name}.png)", ""]
    return "\n".join(lines)


def _by_task(rows: Sequence[ComparisonRow]) -> dict[str, list[ComparisonRow]]:
    tasks = dict.fromkeys(row.task for row in rows)
    return {task: [row for row in rows if row.task == task] for task in tasks}


def _plot_names(rows: Sequence[ComparisonRow]) -> dict[str, str]:
    """The file name, without its ending, of each task's plot."""
    tasks = list(_by_task(rows))
    if len(tasks) == 1:
        return {tasks[0]: "comparison"}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for task in tasks:
        plain = name = f"comparison-{re.sub(r'[^A-Za-z0-9_.-]+', '-', task)}"
        number = 1
        while name.lower() in taken:  # a file system may not tell A from a
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.lower())
        names[task] = name
    return names


def _draw(rows: Sequence[ComparisonRow]) -> "Figure":
    # Relative: of runs on different machines no milliseconds can be compared.
    sizes = [size for size in rows[0].speedups if all(size in row.speedups for row in rows)]
    scores = [100 * float(np.mean(row.scores)) for row in rows]
    costs, fronts, ranges = {}, {}, {}
    for size in sizes:
        axis = f"median latency, % of the original's, batch {size}"
        costs[axis] = [100 / float(np.mean(row.speedups[size])) for row in rows]
        fronts[axis] = pareto_front(costs[axis], scores, partial(_same_latency, rows, size))
        ranges[axis] = [_latency_range(row, size) for row in rows]
    costs = costs or {"FLOPs, % of the original's": [100 / row.flops_ratio for row in rows]}
    errors = [_deviation(row.scores, 100) for row in rows]
    names = [row.model for row in rows]
    return draw_scores(costs, scores, names, "score, %", errors, rows[0].task, fronts, ranges)


def _same_latency(rows: Sequence[ComparisonRow], size: str, first: int, second: int) -> bool:
    """Whether runs do not tell two speed-ups apart, or both are of models of one build."""
    accounts = [report[name] for i in (first, second) for report, name in rows[i].members[:1]]
    if len(accounts) == 2 and same_build(*accounts):
        return True
    return overlap(*(_speedup_range(rows[i], size) for i in (first, second)))


def _latency_range(row: ComparisonRow, size: str) -> tuple[float, float] | None:
    """The same in percent of the original's latency; `None` where noise may be all of it."""
    low, high = _speedup_range(row, size)
    return (100 / high, 100 / low) if low > 0 else None


def _speedup_range(row: ComparisonRow, size: str) -> tuple[float, float]:
    """A standard deviation over the runs to both sides, or the interval of the only one."""
    ratios = row.speedups[size]
    middle, spread = float(np.mean(ratios)), _deviation(ratios, 1)
    for report, name in row.members if len(ratios) == 1 else ():
        for latency in report[name].latency:
            if str(latency.batch_size) == size and latency.speedup is not None:
                return latency.speedup.low, latency.speedup.high
    return middle - spread, middle + spread


def _terminal(
    title: str, header: tuple[str, ...], rows: list[tuple[str, ...]], shown: Sequence[str]
) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for name in shown:
        table.add_column(name, overflow="fold")
    for cells in rows:
        table.add_row(*(cells[header.index(name)] for name in shown))
    return table


def _deviation(values: Sequence[float], factor: float) -> float:
    return factor * float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _spread(values: Sequence[float] | None, factor: float = 1, form: str = ".1f") -> str:
    if values is None:
        return MISSING
    mean = format(factor * float(np.mean(values)), form)
    return f"{mean} ± {_deviation(values, factor):.1f}" if len(values) > 1 else mean


def _speedup(ratios: Sequence[float]) -> str:
    """The mean over runs, with its standard deviation.

    >>> _speedup((1.9, 2.1)), _speedup((2.0,))
    ('2.00x ± 0.14', '2.00x')
    """
    spread = f" ± {_deviation(ratios, 1):.2f}" if len(ratios) > 1 else ""
    return f"{float(np.mean(ratios)):.2f}x{spread}"


def _mark(row: ComparisonRow, size: str) -> str:
    """The mark behind a speed-up on which all runs of the row agree."""
    marks = set()
    for report, name in row.members:
        found = [
            mark(agreement, latency.speedup)
            for model, latency, agreement in report.agreements()
            if (model, str(latency.batch_size)) == (name, size)
        ]
        marks.add(found[0] if found else "")
    return marks.pop() if len(marks) == 1 else ""


def _bounds(bounds: Bounds | None) -> str:
    if bounds is None:
        return MISSING
    low, high, p = bounds
    return f"[{100 * low:+.1f}, {100 * high:+.1f}], {p_value(p)}"
