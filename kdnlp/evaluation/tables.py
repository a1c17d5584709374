"""A report for people: a table for the terminal, one for a model card, and a plot."""

import os
from collections.abc import Callable

from rich.table import Table

from kdnlp.evaluation.report import CompressionReport, ModelAccount

MIN_REPEATS_P95 = 20
"""With fewer timed passes a 95th percentile is little but the largest of them, and is not shown."""

_COSTS: tuple[tuple[str, str, Callable[[ModelAccount], str]], ...] = (
    ("parameters", "parameters", lambda model: _count(model.parameters)),
    (
        "parameters_without_embeddings",
        "outside embeddings",
        lambda model: _count(model.parameters_without_embeddings),
    ),
    ("size_mb", "on disk, MB", lambda model: _megabytes(model.size_mb)),
    ("flops", "GFLOPs / example", lambda model: f"{model.flops / 1e9:.3g}"),
)


def report_rows(report: CompressionReport) -> list[tuple[str, ...]]:
    """The report as rows of text: a label, then a cell per model, in the report's order.

    A ratio in brackets says how many times less than the original a model takes.
    """
    models = report.models
    ratios = {model.name: report.ratios(model.name) for model in models}

    def cells(quantity: str, value: Callable[[ModelAccount], str]) -> tuple[str, ...]:
        return tuple(
            value(model)
            if model is report.original
            else f"{value(model)} ({ratios[model.name][quantity]:.2f}x)"
            for model in models
        )

    rows = _quality_rows(report)
    rows += [(label, *cells(quantity, value)) for quantity, label, value in _COSTS]
    for position, latency in enumerate(report.original.latency):
        size = latency.batch_size
        rows.append(
            (
                f"batch {size}: p50 / p95, ms",
                *cells(f"latency_batch_{size}", lambda m, at=position: _latency(m, at)),  # type: ignore[misc]
            )
        )
    return rows


def report_table(report: CompressionReport) -> Table:
    """The report as a table for the terminal."""
    table = Table(title=f"{report.task}: what it cost and gained", caption=setting_line(report))
    table.add_column("")
    for model in report.models:
        table.add_column(model.name, justify="right")
    for label, *cells in report_rows(report):
        table.add_row(label, *cells)
    return table


def report_markdown(report: CompressionReport) -> str:
    """The report as a markdown section with its table and what it was measured on."""
    names = [model.name for model in report.models]
    lines = [
        f"# {report.task}: what it cost and gained",
        "",
        *markdown_table(("", *names), report_rows(report)),
        "",
        setting_line(report),
        "",
    ]
    return "\n".join(lines)


def markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a markdown table whose columns, but for the first, are aligned to the right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def setting_line(report: CompressionReport) -> str:
    """How the numbers were measured, in a few sentences."""
    setting = report.setting
    repeats = min(row.repeats for model in report.models for row in model.latency)
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    return (
        f"In brackets: how many times less than the {report.original.name}. FLOPs (2 per "
        f"multiply-add) and latency at {setting.sequence_length} tokens without padding; latency "
        f"over at least {repeats} passes after warm-up, the models taking turns, on "
        f"{setting.device}, {threads}, {setting.dtype}, {setting.attention} "
        f"attention, torch {setting.torch}, transformers {setting.transformers}."
    )


def plot_report(report: CompressionReport, path: str | os.PathLike[str]) -> None:
    """Draw the score against the median latency, a panel per batch size, as a PNG file."""
    # A Figure of its own, and not pyplot's: no window system, no state shared with the caller.
    from matplotlib.figure import Figure

    batch_sizes = [row.batch_size for row in report.original.latency]
    figure = Figure(figsize=(4.6 * len(batch_sizes), 3.9), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(batch_sizes), sharey=True, squeeze=False)[0]
    markers = "osD^vPX*"
    for position, (panel, size) in enumerate(zip(panels, batch_sizes, strict=True)):
        for number, model in enumerate(report.models):
            panel.plot(
                model.latency[position].p50_ms,
                100 * model.score,
                markers[number % len(markers)],
                markersize=9,
                label=model.name,
            )
        panel.set_title(f"batch size {size}")
        panel.set_xlabel("median latency, ms")
        panel.set_xlim(left=0, right=1.12 * max(m.latency[position].p50_ms for m in report.models))
        panel.margins(y=0.2)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{' and '.join(report.metric_names)}, %")
    panels[0].legend(loc="best", fontsize="small")
    figure.suptitle(
        f"{report.task}, {report.setting.sequence_length} tokens, {report.setting.device}"
    )
    figure.savefig(path, format="png")


def _quality_rows(report: CompressionReport) -> list[tuple[str, ...]]:
    rows = [("blocks", *(str(model.num_layers) for model in report.models))]
    for split, values in report.original.metrics.items():
        suffix = f" ({split})" if len(report.original.metrics) > 1 else ""
        shown = [name for name in report.metric_names if name in values]
        for name in shown:
            cells = (f"{100 * model.metrics[split][name]:.1f}" for model in report.models)
            rows.append((f"{name}, %{suffix}", *cells))
    if len(report.metric_names) * len(report.original.metrics) > 1:
        rows.append(("score, % (mean)", *(f"{100 * model.score:.1f}" for model in report.models)))
    if len(report.models) > 1:
        rows.append(("score kept, %", *(_percent(report, model) for model in report.models)))
    return rows


def _percent(report: CompressionReport, model: ModelAccount) -> str:
    kept = report.retention(model.name)
    return "-" if kept is None else f"{kept:.1f}"


def _latency(model: ModelAccount, position: int) -> str:
    row = model.latency[position]
    if row.repeats < MIN_REPEATS_P95:
        return f"{row.p50_ms:.1f} / -"
    return f"{row.p50_ms:.1f} / {row.p95_ms:.1f}"


def _megabytes(size: float) -> str:
    return f"{size:.1f}" if size >= 1 else f"{size:.3f}"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f}M" if number >= 1_000_000 else f"{number / 1e3:.0f}k"
