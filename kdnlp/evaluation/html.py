"""A report as one page that opens without a network: tables and plots are inside the file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from kdnlp.evaluation.plots import drawable
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.rows import absent_lines, class_note, class_rows, rows_of
from kdnlp.evaluation.tables import lines_below

TEMPLATE = Path(__file__).with_name("page_template.html")

MOST_ROOMY = 3
"""A table of more columns is set small."""


@dataclass(frozen=True)
class PagePlot:
    """A plot of a page: what it shows, and the SVG."""

    title: str
    svg: bytes

    @property
    def address(self) -> str:
        """The picture itself as an address, which no browser has to fetch."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclass(frozen=True)
class PageTable:
    """A table of a page.

    Attributes:
        title: above it; may be empty.
        header: the names of its columns, the first of them that of the rows' labels.
        rows: cells of text, in the order of the header.
        hows: how each row was measured, under its label; empty where a note says it for all.
        note: below it.
        texts: how many of the first columns hold words, which are broken into lines.
        plots: below table and note.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    hows: Sequence[str] = ()
    note: str = ""
    texts: int = 1
    plots: Sequence[PagePlot] = ()

    @property
    def is_dense(self) -> bool:
        """Whether it is set small, so that a window of 900 pixels shows all of its columns."""
        return len(self.header) > MOST_ROOMY


def page_html(title: str, tables: Sequence[PageTable], notes: Sequence[str]) -> str:
    """One HTML page without scripts, whose every text is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, tables=tables, notes=notes) + "\n"


def report_html(report: CompressionReport, folder: Path) -> str:
    """The page of a report.

    Args:
        report: what it is of.
        folder: where `kdnlp.evaluation.plots.save_plots` has written the plots.
    """
    names, rows = [model.name for model in report.models], rows_of(report)
    tables = [
        PageTable(
            "",
            ("", *names),
            [(row.label, *row.cells) for row in rows],
            [row.how for row in rows],
            " ".join(lines_below(report)),
            plots=read_plots(drawable(report), folder),
        )
    ]
    tables += [
        PageTable(
            f"Accuracy per class, %, {split}",
            ("class", "rows", *names),
            class_rows(report, split),
            note=class_note(report, split),
        )
        for split in report.original.classes
        if class_rows(report, split)
    ]
    run = _run_rows(report)
    if run:
        tables.append(
            PageTable("The run", ("", ""), run, note="As the trainer recorded it.", texts=2)
        )
    title = f"{report.task}: what it cost and gained"
    return page_html(title, tables, absent_lines(report))


def read_plots(titles: dict[str, str], folder: Path) -> list[PagePlot]:
    """The plots that were written to a folder, by name and what each shows."""
    paths = {folder / f"{name}.svg": title for name, title in titles.items()}
    return [PagePlot(title, path.read_bytes()) for path, title in paths.items() if path.is_file()]


def _run_rows(report: CompressionReport) -> list[tuple[str, str]]:
    """How the models came about; citations and long lists stand in the card."""
    run = report.run
    shown = (
        *("method", "base_model", "command", "optimizer_steps", "epochs"),
        *("precision", "device", "processes", "seed"),
    )
    rows = [(name.replace("_", " "), str(run[name])) for name in shown if name in run]
    rows += [(f"loss {name}", str(config)) for name, config in run.get("losses", {}).items()]
    rows += [(name, str(value)) for name, value in run.get("arguments", {}).items()]
    rows += [(library, version) for library, version in run.get("versions", {}).items()]
    return rows
