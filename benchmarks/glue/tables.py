"""The tables as markdown, and where they stand: between marks in the READMEs."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.glue.grid import BASELINE, NAMES, TEACHER, Grid
from benchmarks.glue.rows import Difference, Row, Share, find
from kdnlp.evaluation.rows import p_value
from kdnlp.evaluation.tables import markdown_table
from kdnlp.files import replace_text

PUBLISHED = Path(__file__).parent / "published.yaml"
MISSING = "-"

_MARKS = (
    "Gains are over the seeds that both rows have. Marks are of validation: `=`, within one "
    "standard deviation of the baseline, the larger of the two; `<`, below it by more; none, above "
    "it by more, or one seed."
)


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
        means = ("kept, %", "over baseline", "kept, hold-out", "over, hold-out")
        header = ("score, %", *names, *means)
        teachers = [find(self.rows, task, TEACHER, 0) for task in self.tasks]
        lines = [("teacher, all blocks", *map(_score, teachers), "100.0", "", "100.0", "")]
        lines += self._one_answer()
        for method in self.methods:
            own = [find(self.rows, task, method, self.blocks) for task in self.tasks]
            scores = [_score(row) + self._mark(row) for row in own]
            shown = [
                text
                for split in ("scores", "holdout")
                for text in (_score(self.kept(method, split)), _gain(self.over(method, split)))
            ]
            lines.append((self.grid.methods[method]["title"], *scores, *shown))
        over_tasks = ", ".join(NAMES[task] for task in self.averaged)
        note = f"Means over {over_tasks}. {_MARKS}"
        return [*markdown_table(header, lines), "", note + self._other_baselines()]

    def kept(self, method: str, split: str = "scores") -> Share | None:
        """The mean over tasks of what was kept; `None` where a task is missing."""
        rows = self._complete(method)
        shares = [share for row in rows if (share := row.kept(split)) is not None]
        return Share.mean_of(shares) if shares and len(shares) == len(rows) else None

    def over(self, method: str, split: str = "scores") -> Difference | None:
        """The points above the baseline, seed by seed, the mean over tasks; likewise."""
        against = self.grid.against(method)
        rows = self._complete(method)
        bases = [find(self.rows, task, against, self.blocks) for task in self.averaged]
        if against == method or not rows or None in bases:
            return None
        pairs = zip(rows, bases, strict=True)
        return Difference.mean_of([row.over(base, split) for row, base in pairs if base])

    def _one_answer(self) -> list[tuple[str, ...]]:
        """The line of the score that needs no model: the same answer to every row."""
        known = [self.grid.tasks[task].get("one_answer") for task in self.tasks]
        if None in known:
            return []
        teachers = [find(self.rows, task, TEACHER, 0) for task in self.averaged]
        whole = {t.task: t.teacher_score for t in teachers if t and t.teacher_score > 0}
        of = [self.grid.tasks[task]["one_answer"] / score for task, score in whole.items()]
        scores = [f"{score:.1f}" for score in known]
        mean = f"{np.mean(of):.1f}" if len(of) == len(teachers) else MISSING
        return [("one answer for all rows", *scores, mean, "", "", "")]

    def _other_baselines(self) -> str:
        """What the note says of the methods that are compared with another row."""
        title = {method: spec["title"] for method, spec in self.grid.methods.items()}
        against = {method: self.grid.against(method) for method in self.methods}
        pairs = [(m, other) for m, other in against.items() if other not in (BASELINE, m)]
        return "".join(f" The baseline of *{title[m]}* is *{title[o]}*." for m, o in pairs)

    def _mark(self, row: Row | None) -> str:
        """What says that a score is not above its baseline by more than the larger deviation."""
        if row is None or self.grid.against(row.method) == row.method:
            return ""
        base = find(self.rows, row.task, self.grid.against(row.method), self.blocks)
        if base is None or row.deviation is None or base.deviation is None:
            return ""
        spread, gain = max(row.deviation, base.deviation), row.mean - base.mean
        return "" if gain > spread else " =" if gain >= -spread else " <"

    def _has_seeds(self, row: Row) -> bool:
        base = find(self.rows, row.task, BASELINE, self.blocks)
        return row.deviation is not None or base is None or base.deviation is None

    def _complete(self, method: str) -> list[Row]:
        """The method's rows of the averaged tasks; none where one is missing or has one seed."""
        rows = [find(self.rows, task, method, self.blocks) for task in self.averaged]
        known = [row for row in rows if row and self._has_seeds(row)]
        return known if len(known) == len(rows) else []


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
        share = row.kept()
        kept = MISSING if share is None else f"{share.mean:.1f}"
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


def _score(row: Row | Share | None) -> str:
    if row is None:
        return MISSING
    spread = "" if row.deviation is None else f" ± {row.deviation:.1f}"
    return f"{row.mean:.1f}{spread}"


def _gain(difference: Difference | None) -> str:
    if difference is None or difference.mean is None:
        return MISSING
    spread = "" if difference.deviation is None else f" ± {difference.deviation:.1f}"
    return _signed(difference.mean) + spread


def _signed(points: float) -> str:
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text


def _difference(difference: Difference) -> str:
    if difference.mean is None:
        return MISSING
    text = _signed(difference.mean)
    if difference.interval is not None:
        low, high, p = difference.interval
        text += f" [{_signed(low)}, {_signed(high)}], p {p_value(p)}"
    return text
