"""The tables as markdown, and where they stand: between marks in the READMEs."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.glue.grid import BASELINE, NAMES, TEACHER, Grid
from benchmarks.glue.rows import Difference, Row, find
from kdnlp.evaluation.rows import p_value
from kdnlp.evaluation.tables import markdown_table
from kdnlp.files import replace_text

PUBLISHED = Path(__file__).parent / "published.yaml"
MISSING = "-"


@dataclass(frozen=True)
class Summary:
    """The rows of a table of one number of blocks: methods by tasks.

    Means are over those of the grid's averaged tasks that the baseline has been run on. A method
    that lacks one of them, or has one seed where the baseline has several, has none: the first seed
    is also what chooses the learning rate.
    """

    rows: Sequence[Row]
    grid: Grid
    blocks: int

    @property
    def tasks(self) -> list[str]:
        """The tasks with a result at this number of blocks."""
        found = {row.task for row in self.rows if row.blocks == self.blocks}
        return [task for task in self.grid.tasks if task in found]

    @property
    def averaged(self) -> list[str]:
        """The tasks that means are over."""
        return [t for t in self.grid.averaged if find(self.rows, t, BASELINE, self.blocks)]

    @property
    def methods(self) -> list[str]:
        """The methods with a result at this number of blocks, ablations aside, in their order."""
        found = {row.method for row in self.rows if row.blocks == self.blocks}
        specs = self.grid.methods.items()
        return [method for method, spec in specs if method in found and "ablation" not in spec]

    def markdown(self) -> list[str]:
        """Methods by tasks, what was kept, and what was gained over the baseline."""
        names = tuple(NAMES[task] for task in self.tasks)
        header = ("score, %", *names, "kept, %", "over baseline", "the same on the hold-out")
        teachers = [find(self.rows, task, TEACHER, 0) for task in self.tasks]
        lines = [("teacher, 6 blocks", *map(_score, teachers), "100.0", "", "")]
        for method in self.methods:
            own = [find(self.rows, task, method, self.blocks) for task in self.tasks]
            scores = [_score(row) + self._mark(row) for row in own]
            kept = self._mean(method, lambda row: row.kept)
            over = [self.over(method, split) for split in ("scores", "holdout")]
            shown = (MISSING if kept is None else f"{kept:.1f}", *map(_signed, over))
            lines.append((self.grid.methods[method]["title"], *scores, *shown))
        means = ", ".join(NAMES[task] for task in self.averaged)
        note = f"Means over {means}. `=`: within one standard deviation of the baseline, or below."
        return [*markdown_table(header, lines), "", note + self._other_baselines()]

    def kept(self, method: str) -> float | None:
        """The mean over tasks of the percent that was kept; `None` where a task is missing."""
        return self._mean(method, lambda row: row.kept)

    def over(self, method: str, split: str = "scores") -> float | None:
        """The mean over tasks of the points above the baseline, seed by seed; likewise."""
        against = self.grid.against(method)
        if against == method:
            return None
        return self._mean(method, lambda row: self._over(row, against, split))

    def _other_baselines(self) -> str:
        """What the note says of the methods that are compared with another row."""
        title = {method: spec["title"] for method, spec in self.grid.methods.items()}
        against = {method: self.grid.against(method) for method in self.methods}
        pairs = [(m, other) for m, other in against.items() if other not in (BASELINE, m)]
        return "".join(f" The baseline of *{title[m]}* is *{title[o]}*." for m, o in pairs)

    def _over(self, row: Row, against: str, split: str) -> float | None:
        base = find(self.rows, row.task, against, self.blocks)
        return row.over(base, split).mean if base else None

    def _mark(self, row: Row | None) -> str:
        """What says that a score is not above its baseline by more than the larger deviation."""
        if row is None or self.grid.against(row.method) == row.method:
            return ""
        base = find(self.rows, row.task, self.grid.against(row.method), self.blocks)
        if base is None or row.deviation is None or base.deviation is None:
            return ""
        return "" if row.mean - base.mean > max(row.deviation, base.deviation) else " ="

    def _has_seeds(self, row: Row) -> bool:
        base = find(self.rows, row.task, BASELINE, self.blocks)
        return row.deviation is not None or base is None or base.deviation is None

    def _mean(self, method: str, value: Callable[[Row], float | None]) -> float | None:
        rows = [find(self.rows, task, method, self.blocks) for task in self.averaged]
        values = [value(row) if row and self._has_seeds(row) else None for row in rows]
        known = [v for v in values if v is not None]
        return float(np.mean(known)) if known and len(known) == len(values) else None


def detail(rows: Sequence[Row], grid: Grid, task: str, blocks: int) -> list[str]:
    """One task at one number of blocks: what was chosen, spread, and the test against baseline."""
    header = ("method", "rate", "steps", "hold-out", "validation", "runs", "kept, %")
    lines = []
    for method in (TEACHER, *grid.methods):
        row = find(rows, task, method, 0 if method == TEACHER else blocks)
        if row is None:
            continue
        title = "teacher" if method == TEACHER else grid.methods[method]["title"]
        held = 100 * np.mean(list(row.holdout.values()))
        cells = (f"{row.learning_rate:g}", str(row.steps), f"{held:.1f}", _score(row))
        kept = f"{row.kept:.1f}"
        over = _compared(rows, grid, row)
        lines.append((title, *cells, str(len(row.scores)), kept, over))
    return markdown_table((*header, "minus baseline"), lines)


def _compared(rows: Sequence[Row], grid: Grid, row: Row) -> str:
    against = BASELINE if row.method == TEACHER else grid.against(row.method)
    base = find(rows, row.task, against, row.blocks)
    return "" if base is None or base is row else _difference(row.over(base))


def published(tasks: Sequence[str]) -> list[str]:
    """What others published, on other models."""
    lines = []
    for part in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")):
        rows = [
            (row["model"], *(f"{row[task]:.1f}" if task in row else MISSING for task in tasks))
            for row in part["rows"]
        ]
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
