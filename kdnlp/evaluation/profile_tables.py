"""The tables of a profile: few columns each, so that a terminal of 80 shows every number whole."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from kdnlp.evaluation.promises import digits
from kdnlp.evaluation.speed import PERCENTILES_NOTE, shown_percentiles, speedup_text
from kdnlp.profiling.latency import LatencyRow
from kdnlp.profiling.parts import OVERHEAD, PART_NAMES
from kdnlp.profiling.profile import ModelProfile, Profile, ProfileCell
from kdnlp.profiling.runtimes import RuntimeRow
from kdnlp.profiling.speedup import CONFIDENCE

COSTS = "FLOPs and latency"
"""The title of the table that a speed-up and the ratio of FLOPs stand in."""

_CELL = ("batch x tokens", "model")


@dataclass(frozen=True)
class Section:
    """One table of a profile.

    Attributes:
        title: what it tells.
        header: names of the columns.
        rows: cells of text.
        note: how to read it.
        texts: how many of the first columns hold words, and are aligned to the left.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str
    texts: int = 2


def profile_sections(profile: Profile) -> list[Section]:
    """The tables of a profile, in the order in which they are read."""
    sections = [_sizes(profile), _parameters(profile), _costs(profile), _spread(profile)]
    sections.append(_parts(profile))
    if profile.runtimes:
        sections += [_runtimes(profile.runtimes), _runtime_spread(profile.runtimes)]
    return sections


def _sizes(profile: Profile) -> Section:
    def row(model: ModelProfile) -> tuple[str, ...]:
        disk = "-" if model.disk_size_mb is None else f"{model.disk_size_mb:.1f}"
        blocks, size = str(model.num_layers), f"{model.size_mb:.1f}"
        return (model.name, model.architecture, blocks, size, disk)

    return Section(
        title="Size",
        header=("model", "class", "blocks", "MB", "MB on disk"),
        rows=[row(model) for model in profile.models],
        note="Weights in MB of 10^6 bytes.",
    )


def _parameters(profile: Profile) -> Section:
    def row(model: ModelProfile) -> tuple[str, ...]:
        p = model.parameters
        counts = (p.total, p.embeddings, p.blocks, p.head, p.other)
        return (model.name, *(_millions(number) for number in counts))

    return Section(
        title="Parameters, millions",
        header=("model", "all", "embeddings", "encoder (blocks)", "head", "other"),
        rows=[row(model) for model in profile.models],
        note="Tied ones are counted once.",
        texts=1,
    )


def _costs(profile: Profile) -> Section:
    def cells(cell: ProfileCell) -> tuple[str, ...]:
        agreement = cell.agreement
        return (
            f"{digits(cell.flops_per_example / 1e9)} ({digits(cell.macs_per_example / 1e9)})",
            digits(cell.latency.p50_ms),
            "" if agreement is None else f"{agreement.flops_ratio:.2f}x",
            speedup_text(cell.speedup, agreement),
        )

    return Section(
        title=COSTS,
        header=(*_CELL, "GFLOPs (GMACs)", "p50, ms", "fewer FLOPs", "faster"),
        rows=_by_cell(profile, cells),
        note=(
            "FLOPs and multiply-adds of one example; the median time of a batch. Faster: median "
            f"over rounds of the time of {profile.reference.name} over the model's, with its "
            f"interval of {CONFIDENCE:.0%} where it says no other; ! where the FLOPs promise "
            "something else, ? where it is too noisy to tell."
        ),
    )


def _spread(profile: Profile) -> Section:
    def cells(cell: ProfileCell) -> tuple[str, ...]:
        per_second = digits(cell.flops_per_second / 1e9)
        return (*_spread_of(cell.latency), per_second, digits(cell.memory.total_mb))

    return Section(
        title="Spread, throughput and memory",
        header=(*_CELL, "p90, ms", "p99, ms", "examples/s", "GFLOP/s", "peak, MB"),
        rows=_by_cell(profile, cells),
        note=(
            f"{PERCENTILES_NOTE} Throughput and GFLOP/s are what is achieved at the median. Peak: "
            "weights and activations of one pass."
        ),
    )


def _parts(profile: Profile) -> Section:
    def cell_rows(position: int) -> list[tuple[str, ...]]:
        cells = [model.cells[position] for model in profile.models]
        shape = _shape(cells[0].latency)
        rows = [
            (shape, name, *(_part(cell, part) for cell in cells))
            for part, name in PART_NAMES.items()
        ]
        slowdowns = (f"{cell.time.profiler_slowdown:.1f}x" for cell in cells)
        return [*rows, (shape, "profiled", *slowdowns)]

    positions = range(len(profile.reference.cells))
    return Section(
        title="Where time goes, ms",
        header=("batch x tokens", "part", *(model.name for model in profile.models)),
        rows=[row for position in positions for row in cell_rows(position)],
        note=(
            "Of the median pass; in brackets the share of the time, and of the FLOPs. "
            "Launch overhead: what operations cost whatever their size, and Python between them. "
            "Profiled: how much slower the pass was under torch's profiler, which gives the shares."
        ),
    )


def _part(cell: ProfileCell, part: str) -> str:
    ms = cell.time.parts[part]
    time = f"{ms / cell.latency.p50_ms:.0%}"
    if part == OVERHEAD:
        return f"{digits(ms)} ({time})"
    return f"{digits(ms)} ({time}; {cell.flops[part] / cell.flops_per_example:.0%})"


def _runtimes(rows: tuple[RuntimeRow, ...]) -> Section:
    missing = "".join(f" No {r.runtime} of {r.model}: {r.missing}." for r in rows if r.missing)
    return Section(
        title="Runtimes",
        header=(*_CELL, "runtime", "p50, ms", "faster", "differs by"),
        rows=[
            (
                *(_shape(row.latency), row.model, row.runtime, digits(row.latency.p50_ms)),
                *(speedup_text(row.speedup), _difference(row)),
            )
            for row in rows
            if row.latency is not None
        ],
        note="Faster, and by how much the outputs differ at most: against the model's first "
        f"runtime.{missing}",
        texts=3,
    )


def _runtime_spread(rows: tuple[RuntimeRow, ...]) -> Section:
    return Section(
        title="Runtimes: spread and throughput",
        header=(*_CELL, "runtime", "p90, ms", "p99, ms", "examples/s"),
        rows=[
            (_shape(row.latency), row.model, row.runtime, *_spread_of(row.latency))
            for row in rows
            if row.latency is not None
        ],
        note=f"{PERCENTILES_NOTE} Throughput is that at the median.",
        texts=3,
    )


def _difference(row: RuntimeRow) -> str:
    if row.max_difference is None:
        return ""
    return "no number" if math.isnan(row.max_difference) else f"{row.max_difference:.1e}"


def _spread_of(latency: LatencyRow) -> tuple[str, str, str]:
    high = ("-" if ms is None else digits(ms) for ms in shown_percentiles(latency))
    return (*high, digits(latency.examples_per_second))  # type: ignore[return-value]


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
