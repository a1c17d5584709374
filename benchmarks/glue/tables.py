"""The tables as markdown, and where they stand: between marks in the READMEs."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.glue.grid import TEACHER, Grid
from benchmarks.glue.rows import BASELINE, Difference, Row, find
from kdnlp.evaluation.rows import p_value
from kdnlp.evaluation.tables import markdown_table
from kdnlp.files import replace_text

PUBLISHED = Path(__file__).parent / "published.yaml"
MISSING = "-"
NAMES = {"rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B", "cola": "CoLA", "sst2": "SST-2"}


@dataclass(frozen=True)
class Summary:
    """The rows of a table of one number of blocks: methods by tasks."""

    rows: Sequence[Row]
    grid: Grid
    blocks: int

    @property
    def tasks(self) -> list[str]:
        """The tasks that have a teacher."""
        return [task for task in self.grid.tasks if find(self.rows, task, TEACHER, 0)]

    @property
    def methods(self) -> list[str]:
        """The methods with a result at this number of blocks, ablations aside, in their order."""
        return [
            method
            for method, spec in self.grid.methods.items()
            if "ablation" not in spec
            and any(find(self.rows, task, method, self.blocks) for task in self.tasks)
        ]

    def markdown(self) -> list[str]:
        """Methods by tasks: mean and deviation over seeds, and the mean share that was kept."""
        header = ("score, %", *(NAMES[task] for task in self.tasks), "kept, %", "over baseline")
        teachers = [find(self.rows, task, TEACHER, 0) for task in self.tasks]
        lines = [("teacher, 6 blocks", *(_score(row) for row in teachers), "100.0", "")]
        for method in self.methods:
            own = [find(self.rows, task, method, self.blocks) for task in self.tasks]
            title = self.grid.methods[method]["title"]
            kept, over = self.kept(method), self.over_baseline(method)
            shown = MISSING if kept is None else f"{kept:.1f}", _signed(over)
            lines.append((title, *map(_score, own), *shown))
        return markdown_table(header, lines)

    def kept(self, method: str) -> float | None:
        """The mean over tasks of the percent that was kept; `None` where a task is missing."""
        rows = [find(self.rows, task, method, self.blocks) for task in self.tasks]
        known = [row.kept for row in rows if row is not None]
        return float(np.mean(known)) if len(known) == len(rows) else None

    def over_baseline(self, method: str) -> float | None:
        """The mean over tasks of the points above the baseline, of shared seeds; likewise."""
        over = []
        for task in self.tasks:
            row = find(self.rows, task, method, self.blocks)
            base = find(self.rows, task, BASELINE, self.blocks)
            over.append(row.over(base).mean if row and base else None)
        known = [points for points in over if points is not None]
        return float(np.mean(known)) if method != BASELINE and len(known) == len(over) else None


def detail(rows: Sequence[Row], grid: Grid, task: str, blocks: int) -> list[str]:
    """One task at one number of blocks: what was chosen, spread, and the test against baseline."""
    base = find(rows, task, BASELINE, blocks)
    header = ("method", "rate", "steps", "hold-out", "validation", "runs", "kept, %")
    lines = []
    for method in (TEACHER, *grid.methods):
        row = find(rows, task, method, 0 if method == TEACHER else blocks)
        if row is None:
            continue
        title = "teacher" if method == TEACHER else grid.methods[method]["title"]
        held = 100 * np.mean(list(row.holdout.values()))
        over = "" if base is None or method in (TEACHER, BASELINE) else _difference(row.over(base))
        cells = (f"{row.learning_rate:.0e}", str(row.steps), f"{held:.1f}", _score(row))
        lines.append((title, *cells, str(len(row.scores)), f"{row.kept:.1f}", over))
    return markdown_table((*header, "minus baseline"), lines)


def published(tasks: Sequence[str]) -> list[str]:
    """What others published, on other models."""
    lines = []
    for part in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")):
        rows = [(row["model"], *(f"{row[task]:.1f}" for task in tasks)) for row in part["rows"]]
        lines += [f"{part['source'][0].upper()}{part['source'][1:]}:", ""]
        lines += [*markdown_table(("published", *(NAMES[task] for task in tasks)), rows), ""]
    return lines


def insert(path: Path, name: str, lines: Iterable[str]) -> None:
    """Put lines between a file's two marks of that name."""
    text = path.read_text(encoding="utf-8")
    replace_text(path, replaced(text, name, lines))


def replaced(text: str, name: str, lines: Iterable[str]) -> str:
    """The text with other lines between its two marks of that name.

    Raises:
        ValueError: if the marks are not there once each.
    """
    begin, end = f"<!-- results: {name} -->", f"<!-- end of results: {name} -->"
    found = re.findall(f"{begin}.*?{end}", text, flags=re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"Expected one part from {begin} to {end}, got {len(found)}.")
    body = "\n".join(lines).strip("\n")
    return text.replace(found[0], f"{begin}\n{body}\n{end}")


def _score(row: Row | None) -> str:
    if row is None:
        return MISSING
    spread = "" if row.deviation is None else f" ± {row.deviation:.1f}"
    return f"{row.mean:.1f}{spread}"


def _signed(points: float | None) -> str:
    return MISSING if points is None else f"{points:+.1f}"


def _difference(difference: Difference) -> str:
    if difference.mean is None:
        return MISSING
    text = f"{difference.mean:+.1f}"
    if difference.interval is not None:
        low, high, p = difference.interval
        text += f" [{low:+.1f}, {high:+.1f}], p {p_value(p)}"
    return text
