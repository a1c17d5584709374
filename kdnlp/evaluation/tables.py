"""A report as text: a table for the terminal, and a page of markdown."""

import re
from collections.abc import Sequence

from rich.table import Table

from kdnlp.evaluation.one_answer import one_answer_lines
from kdnlp.evaluation.promises import promise_lines
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.rows import absent_lines, class_note, class_rows, rows_of


def report_rows(report: CompressionReport) -> list[tuple[str, ...]]:
    """The report as rows of text: a label, then a cell per model, in the report's order.

    A ratio in brackets says how many times less than the original a model takes.
    """
    return [(row.label, *row.cells) for row in rows_of(report)]


def how_measured(report: CompressionReport) -> list[tuple[str, str]]:
    """For every row of the report, how its figures were measured."""
    return [(row.label, row.how) for row in rows_of(report)]


def how_table(report: CompressionReport) -> list[str]:
    """The same as lines of a markdown table."""
    return _table(("figure", "how"), [":--", ":--"], how_measured(report))


def report_table(report: CompressionReport) -> Table:
    """The report as a table for the terminal."""
    table = Table(
        title=f"{report.task}: what it cost and gained", caption=" ".join(lines_below(report))
    )
    table.add_column("")
    for model in report.models:
        table.add_column(model.name, justify="right")
    for label, *cells in report_rows(report):
        table.add_row(label, *cells)
    return table


def report_markdown(report: CompressionReport) -> str:
    """The report as markdown: figures, classes, plots, and how each figure was measured."""
    from kdnlp.evaluation.plots import drawable

    names = [model.name for model in report.models]
    lines = [f"# {report.task}: what it cost and gained", ""]
    lines += [*markdown_table(("", *names), report_rows(report)), ""]
    for line in lines_below(report):
        lines += [line, ""]
    lines += [*class_tables(report), "## Plots", ""]
    for name, title in drawable(report).items():
        lines += [f"![{title}]({name}.png)", ""]
    lines += ["## How each figure was measured", ""]
    lines += [*how_table(report), ""]
    lines += [f"- {line}" for line in absent_lines(report)]
    return "\n".join(lines).rstrip() + "\n"


def class_tables(report: CompressionReport, heading: str = "##") -> list[str]:
    """Lines of markdown with the accuracy of every class, a table a split; none without classes."""
    lines, names = [], [model.name for model in report.models]
    for split in report.original.classes:
        rows = [(escaped(label), *cells) for label, *cells in class_rows(report, split)]
        if rows:
            lines += [f"{heading} Accuracy per class, %, {split}", ""]
            lines += [*markdown_table(("class", "rows", *names), rows), ""]
            lines += [class_note(report, split), ""]
    return lines


def escaped(text: str) -> str:
    r"""A text of somebody else's, such as a class name, that markdown shows as it is.

    >>> print(escaped("**"), escaped("not_entailment"))
    \*\* not_entailment
    """
    return re.sub(r"[\\`*<]", r"\\\g<0>", text)


def markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a markdown table whose columns, but for the first, are aligned to the right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return _table(header, rule, rows)


def lines_below(report: CompressionReport) -> list[str]:
    """What stands below the table: how it was measured, and what its figures hide.

    Models that give one answer only, and where FLOPs and latency disagree.
    """
    return [setting_line(report), *one_answer_lines(report), *promise_lines(report)]


def setting_line(report: CompressionReport) -> str:
    """How the numbers were measured, in a few sentences."""
    setting = report.setting
    repeats = min(row.repeats for model in report.models for row in model.latency)
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    several = len(report.models) > 1
    times = f"In brackets: how many times less than the {report.original.name}. " if several else ""
    turns = ", the models taking turns" if several else ""
    return (
        f"{times}FLOPs (2 per multiply-add) and latency at {setting.sequence_length} tokens "
        f"without padding; latency over at least {repeats} passes after warm-up{turns}, on "
        f"{setting.device}, {threads}, {setting.dtype}, {setting.attention} "
        f"attention, torch {setting.torch}, transformers {setting.transformers}."
    )


def _table(header: tuple[str, ...], rule: list[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (header, rule, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in escaped]
