"""A profile for people: tables for the terminal and for markdown, and bars of where time goes."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from kdnlp.evaluation.promises import digits, disagreement_text
from kdnlp.evaluation.tables import markdown_table
from kdnlp.files import replace_text, written_whole
from kdnlp.profiling.latency import LatencyRow
from kdnlp.profiling.parts import OVERHEAD, PART_NAMES, PARTS
from kdnlp.profiling.profile import PROFILE_JSON, ModelProfile, Profile, ProfileCell
from kdnlp.profiling.runtimes import RuntimeRow
from kdnlp.profiling.speedup import CONFIDENCE, Speedup

PROFILE_MARKDOWN, PROFILE_PLOT = "profile.md", "profile.png"

_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#937860", "#c44e52")


@dataclass(frozen=True)
class Section:
    """One table of a profile.

    Attributes:
        title: what it tells.
        header: names of the columns.
        rows: cells of text.
        note: how to read it.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def profile_sections(profile: Profile) -> list[Section]:
    """The tables of a profile, in the order in which they are read."""
    sections = [_models(profile), _costs(profile), _parts(profile)]
    return [*sections, _runtimes(profile.runtimes)] if profile.runtimes else sections


def section_table(section: Section) -> Table:
    """A section as a table for the terminal."""
    table = Table(title=section.title, caption=section.note)
    for number, column in enumerate(section.header):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for cells in section.rows:
        table.add_row(*cells)
    return table


def disagreement_lines(profile: Profile) -> list[str]:
    """A sentence for every speed-up that is not what the FLOPs promise, or one that says so."""
    lines = [
        f"{name}, {cell.latency.words}: {disagreement_text(cell.agreement)}"
        for name, cell in profile.disagreements
        if cell.agreement is not None
    ]
    compared = [c.agreement for m in profile.models for c in m.cells if c.agreement is not None]
    if lines or not compared:
        return lines
    return [
        f"FLOPs and measured speed-up agree to within {compared[0].max_difference:.0%} everywhere."
    ]


def profile_setting_line(profile: Profile) -> str:
    """What the profile was measured on, in a sentence."""
    setting = profile.setting
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    return (
        f"Measured on {setting.device}, {setting.processor}, {threads}, {setting.dtype}, "
        f"{setting.attention} attention; {versions}. Inputs without padding; the models take turns."
    )


def profile_markdown(profile: Profile) -> str:
    """The profile as a markdown document."""
    lines = ["# What the models cost", ""]
    for section in profile_sections(profile):
        lines += [f"## {section.title}", "", *markdown_table(section.header, section.rows), ""]
        lines += [section.note, ""]
        if section.title == _COSTS and (found := disagreement_lines(profile)):
            lines += [*(f"- {line}" for line in found), ""]
    return "\n".join([*lines, profile_setting_line(profile), ""])


def save_profile(profile: Profile, folder: str | os.PathLike[str]) -> None:
    """Write `profile.png`, `profile.md` and `profile.json` into `folder`.

    Each file appears under its name once it is whole, the JSON last.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with written_whole(target / PROFILE_PLOT) as plot:
        plot_profile(profile, plot)
    replace_text(target / PROFILE_MARKDOWN, profile_markdown(profile))
    text = json.dumps(profile.to_dict(), indent=2, allow_nan=False)
    replace_text(target / PROFILE_JSON, f"{text}\n")


def plot_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Draw a bar a model of its milliseconds by part, a panel a batch size and length; a PNG file.

    A black mark stands where the FLOPs promise that the bar ends.
    """
    from matplotlib.figure import Figure

    shapes = [(c.latency.sequence_length, c.latency.batch_size) for c in profile.reference.cells]
    rows, columns = len({s[0] for s in shapes}), len({s[1] for s in shapes})
    height = 1.3 + 0.45 * len(profile.models)
    figure = Figure(
        figsize=(1.5 + 4.2 * columns, 0.7 + height * rows), dpi=150, layout="constrained"
    )
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for position, panel in enumerate(panels):
        _draw_cell(panel, profile, position)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize="small")
    figure.savefig(path, format="png")


def _draw_cell(panel: Any, profile: Profile, position: int) -> None:
    names = [model.name for model in profile.models]
    cells = [model.cells[position] for model in profile.models]
    left = [0.0] * len(cells)
    for part, colour in zip(PART_NAMES, _COLOURS, strict=True):
        widths = [cell.time.parts[part] for cell in cells]
        panel.barh(range(len(cells)), widths, left=left, color=colour, label=PART_NAMES[part])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    base = cells[0]
    promised = [
        base.latency.p50_ms * cell.flops_per_example / base.flops_per_example for cell in cells
    ]
    panel.plot(promised, range(len(cells)), "k|", markersize=16, label="promised by FLOPs")
    panel.set_yticks(range(len(cells)), names)
    panel.set_ylim(len(cells) - 0.5, -0.5)
    panel.set_title(base.latency.words, fontsize="medium")
    panel.set_xlabel("ms a pass")


_MODELS, _COSTS, _PARTS, _RUNTIMES = "Size", "FLOPs and latency", "Where time goes", "Runtimes"
_PARAMETERS = ("embeddings", "encoder (blocks)", "head", "other")
_CELL = ("batch x tokens", "model")
_COMPARED = ("fewer FLOPs", "faster")
_TIMES = ("p50 / p90 / p99, ms", "examples/s")


def _models(profile: Profile) -> Section:
    def row(model: ModelProfile) -> tuple[str, ...]:
        p = model.parameters
        counts = (_millions(n) for n in (p.total, p.embeddings, p.blocks, p.head, p.other))
        disk = "-" if model.disk_size_mb is None else f"{model.disk_size_mb:.1f}"
        size = f"{model.size_mb:.1f}"
        return (model.name, model.architecture, str(model.num_layers), *counts, size, disk)

    return Section(
        title=_MODELS,
        header=("model", "class", "blocks", "parameters", *_PARAMETERS, "MB", "MB on disk"),
        rows=[row(model) for model in profile.models],
        note="Parameters in millions, tied ones once; weights in MB of 10^6 bytes.",
    )


def _costs(profile: Profile) -> Section:
    def cells(cell: ProfileCell) -> tuple[str, ...]:
        agreement = cell.agreement
        return (
            f"{digits(cell.flops_per_example / 1e9)} ({digits(cell.macs_per_example / 1e9)})",
            *_times(cell.latency),
            digits(cell.flops_per_second / 1e9),
            digits(cell.memory.total_mb),
            "" if agreement is None else f"{agreement.flops_ratio:.2f}x",
            _faster(cell.speedup, agreement is not None and agreement.disagrees),
        )

    return Section(
        title=_COSTS,
        header=(*_CELL, "GFLOPs (GMACs)", *_TIMES, "GFLOP/s", "peak, MB", *_COMPARED),
        rows=_by_cell(profile, cells),
        note=(
            "FLOPs and multiply-adds of one example; GFLOP/s is what is achieved at the median. "
            "With under 100 passes p99 is little but the slowest. Peak: weights and activations. "
            f"Faster: median over rounds of the time of {profile.reference.name} over the model's, "
            f"with its interval of {CONFIDENCE:.0%} where it says no other; ! where the FLOPs "
            "promise something else."
        ),
    )


def _times(latency: LatencyRow) -> tuple[str, str]:
    ms = (latency.p50_ms, latency.p90_ms, latency.p99_ms)
    shown = ("-" if value is None else digits(value) for value in ms)
    return " / ".join(shown), digits(latency.examples_per_second)


def _faster(speedup: Speedup | None, disagrees: bool = False) -> str:
    if speedup is None:
        return ""
    sure = "" if speedup.confidence == CONFIDENCE else f", {speedup.confidence:.0%}"
    interval = f"({speedup.low:.2f} to {speedup.high:.2f}{sure})"
    return f"{speedup.ratio:.2f}x {interval}{' !' if disagrees else ''}"


def _parts(profile: Profile) -> Section:
    def cells(cell: ProfileCell) -> tuple[str, ...]:
        parts, total = cell.time.parts, cell.latency.p50_ms
        flops, all_flops = cell.flops, cell.flops_per_example
        shares = [
            f"{digits(parts[part])} ({parts[part] / total:.0%}; {flops[part] / all_flops:.0%})"
            for part in PARTS
        ]
        launching = f"{digits(parts[OVERHEAD])} ({parts[OVERHEAD] / total:.0%})"
        return (*shares, launching, f"{cell.time.profiler_slowdown:.1f}x")

    return Section(
        title=_PARTS,
        header=(*_CELL, *PART_NAMES.values(), "profiled"),
        rows=_by_cell(profile, cells),
        note=(
            "Milliseconds of the median pass, in brackets the share of the time, and of the FLOPs. "
            "Launch overhead: what operations cost whatever their size, and Python between them. "
            "Profiled: how much slower the pass was under torch's profiler, which gives the shares."
        ),
    )


def _runtimes(rows: tuple[RuntimeRow, ...]) -> Section:
    def cells(row: RuntimeRow) -> tuple[str, ...]:
        if row.latency is None:
            return ("-", row.model, row.runtime, "-", "-", "-", row.missing or "")
        difference = "" if row.max_difference is None else f"{row.max_difference:.1e}"
        where = (_shape(row.latency), row.model, row.runtime)
        return (*where, *_times(row.latency), _faster(row.speedup), difference)

    return Section(
        title=_RUNTIMES,
        header=(*_CELL, "runtime", *_TIMES, "faster", "largest difference"),
        rows=[cells(row) for row in rows],
        note="Faster, and by how much the outputs differ: against the model's first runtime.",
    )


def _by_cell(
    profile: Profile, cells: Callable[[ProfileCell], tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Rows with the models of one batch size and length below each other."""
    return [
        (_shape(cell.latency), model.name, *cells(cell))
        for position in range(len(profile.reference.cells))
        for model in profile.models
        for cell in (model.cells[position],)
    ]


def _shape(latency: LatencyRow) -> str:
    return f"{latency.batch_size} x {latency.sequence_length}"


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f}" if number >= 10_000 else f"{number / 1e6:.4f}"
