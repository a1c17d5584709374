"""The plots of a report, as PNG for a model card and as SVG for a page.

All are 7 inches wide with text of 9 to 10 points: at the 700 pixels of a model card a point is
about 1.4 pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdnlp.evaluation.legend import Legend
from kdnlp.evaluation.palette import COLOURS, HATCHES, OTHERS, looks_of
from kdnlp.evaluation.pareto import cost_axes, fronts_of, latency_ranges, pareto_front
from kdnlp.evaluation.report import CompressionReport
from kdnlp.files import written_whole
from kdnlp.profiling.parts import PART_NAMES
from kdnlp.profiling.profile import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT = "none better for its cost"
PROMISED = "promised by the FLOPs"

Range = tuple[float, float] | None
"""The least and the most that a cost may be; `None` where that was not measured."""

WIDTH = 7.0
FORMATS = ("png", "svg")

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.5,
    # A name with dollars in it is no formula.
    "text.parse_math": False,
    # A report that is drawn again is the same file.
    "svg.hashsalt": "kdnlp",
}


def save_plots(report: CompressionReport, folder: Path) -> None:
    """Write every plot for which there is data as PNG and SVG, and remove those of before."""
    shown = drawable(report)
    for name, plot in PLOTS.items():
        if name in shown:
            save_figure(lambda p=plot: p.draw(report), folder, name)  # type: ignore[misc]
        else:
            for suffix in FORMATS:
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def save_figure(draw: Callable[[], "Figure"], folder: Path, name: str) -> None:
    """Draw in our style, and write `name.png` and `name.svg` so that each appears whole."""
    # No pyplot: no window system, no state shared with the caller.
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure = draw()
        for suffix in FORMATS:
            with written_whole(folder / f"{name}.{suffix}") as partial:
                undated = {"Date": None} if suffix == "svg" else None
                figure.savefig(partial, format=suffix, metadata=undated)


def drawable(report: CompressionReport) -> dict[str, str]:
    """The names of the plots for which there is data, and what each shows."""
    return {name: plot.title for name, plot in PLOTS.items() if plot.has_data(report)}


def draw_scores(
    costs: Mapping[str, Sequence[float]],
    scores: Sequence[float],
    names: Sequence[str],
    label: str,
    errors: Sequence[float] | None = None,
    title: str = "",
    fronts: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, Sequence[Range]] | None = None,
) -> "Figure":
    """Scores against costs, a panel for each, with the line that no model is better than.

    The line passes each height once: of models of one score and cost, at the costliest. Of one
    model there is no line.

    Args:
        costs: by the label of the axis, a number for every model, at least 0.
        scores: in percent, in the same order.
        names: the models.
        label: of the axis of the scores.
        errors: half the length of the bar on each score, in percent; `None` draws none.
        title: what was measured, above the plot.
        fronts: by the label of the axis, the positions that the line joins; by default those of
            `pareto_front`.
        ranges: by the label of the axis, how far noise may have moved each cost.
    """
    columns = min(2, len(costs))
    lines = -(-len(costs) // columns)
    fronts = fronts or {axis: pareto_front(values, scores) for axis, values in costs.items()}
    lines_of = {axis: list({scores[i]: i for i in fronts[axis]}.values()) for axis in costs}
    drawn = any(len(line) > 1 for line in lines_of.values())
    legend = Legend([*names, *([FRONT] if drawn else [])])
    looks = looks_of(names)
    figure, panels = _panels(lines, columns, 0.5 + 2.6 * lines + legend.height, sharey=True)
    for panel, (axis, values) in zip(panels.flat, costs.items(), strict=False):
        for position, name in enumerate(names):
            panel.errorbar(
                values[position],
                scores[position],
                errors[position] if errors else None,
                _arms(values[position], (ranges or {}).get(axis), position),
                marker=looks[position].marker,
                capsize=3,
                color=looks[position].colour,
                markersize=8,
                linestyle="none",
                label=name,
            )
        if drawn:
            panel.plot(
                [values[i] for i in lines_of[axis]],
                [scores[i] for i in lines_of[axis]],
                color="0.6",
                linewidth=1.2,
                zorder=1,
                label=FRONT,
            )
        panel.set_xlabel(axis)
        panel.set_xlim(0, 1.1 * max(values) or 1)
        panel.margins(y=0.2)
    for panel in panels.flat[len(costs) :]:
        panel.set_visible(False)
    for row in panels:
        row[0].set_ylabel(label)
    figure.suptitle(title, fontsize=10)
    legend.draw(figure, panels.flat[0])
    return figure


def _arms(value: float, ranges: Sequence[Range] | None, position: int) -> list[list[float]] | None:
    """The lengths of the bar to both sides of a point; `None` where no range is known."""
    bounds = None if ranges is None else ranges[position]
    return bounds and [[max(0.0, value - bounds[0])], [max(0.0, bounds[1] - value)]]


def draw_module_times(module_ms: Mapping[str, Mapping[str, float]], title: str = "") -> "Figure":
    """The time of each model's parts as stacked bars, a bar a model.

    Args:
        module_ms: by model, the milliseconds of its parts by name.
        title: what was measured, above the plot.
    """
    legend = Legend(list(dict.fromkeys(_part_name(p) for own in module_ms.values() for p in own)))
    figure, panels = _panels(1, 1, 1.0 + 0.5 * len(module_ms) + legend.height)
    panel = panels.flat[0]
    _draw_stacks(panel, module_ms)
    panel.invert_yaxis()
    panel.set_title(title)
    legend.draw(figure, panel)
    return figure


def draw_profile(profile: Profile) -> "Figure":
    """The time of each model's parts as stacked bars, a panel for each batch size and length.

    A mark stands where the FLOPs promise that the bar ends.
    """
    cells = profile.reference.cells
    columns = min(3, len({cell.latency.batch_size for cell in cells}))
    lines = -(-len(cells) // columns)
    legend = Legend([*PART_NAMES.values(), PROMISED])
    height = lines * (0.8 + 0.4 * len(profile.models)) + legend.height
    figure, panels = _panels(lines, columns, height, sharey=True)
    for position, (panel, base) in enumerate(zip(panels.flat, cells, strict=False)):
        own = {model.name: model.cells[position] for model in profile.models}
        _draw_stacks(panel, {name: cell.time.parts for name, cell in own.items()}, room=0.25)
        each = base.latency.p50_ms / base.flops_per_example
        promised = [each * cell.flops_per_example for cell in own.values()]
        panel.plot(promised, list(own), "k|", markersize=14, markeredgewidth=2, label=PROMISED)
        panel.set_xlim(0, max(panel.get_xlim()[1], 1.05 * max(promised)))
        panel.set_title(base.latency.words, fontsize=9.5)
    panels.flat[0].invert_yaxis()  # of all: they share it
    for panel in panels.flat[len(cells) :]:
        panel.set_visible(False)
    legend.draw(figure, panels.flat[0])
    return figure


def _draw_stacks(
    panel: "Axes", module_ms: Mapping[str, Mapping[str, float]], room: float = 0.12
) -> None:
    """Bars of milliseconds by part, with their ends written in the room beyond the longest."""
    parts = list(dict.fromkeys(part for own in module_ms.values() for part in own))
    ends = np.zeros(len(module_ms))
    known = list(PART_NAMES)
    for number, part in enumerate(parts):
        # A part looks alike in every plot, whatever others there are.
        position = known.index(part) if part in known else len(known) + number
        values = np.array([own.get(part, 0.0) for own in module_ms.values()])
        panel.barh(
            list(module_ms),
            values,
            left=ends,
            height=0.6,
            label=_part_name(part),
            color=COLOURS[position % len(COLOURS)],
            hatch=HATCHES[position % len(HATCHES)],
            edgecolor="white",
        )
        ends = ends + values
    for row, end in enumerate(ends):
        text = f"{end:.1f}" if end < 100 else f"{end:.0f}"
        panel.annotate(text, (end, row), (4, 0), textcoords="offset points", va="center")
    panel.set_xlim(0, (1 + room) * max(ends) or 1)
    panel.set_xlabel("time of a forward pass, ms")
    panel.grid(axis="y", visible=False)


def _part_name(part: str) -> str:
    return PART_NAMES.get(part, part.replace("_", "-"))


def _draw_report(report: CompressionReport) -> "Figure":
    scores = [100 * model.score for model in report.models]
    latencies = [name for name in cost_axes(report) if "latency" in name]
    costs = {name: [cost_axes(report)[name](m) for m in report.models] for name in latencies}
    metrics = " and ".join(report.metric_names)
    label = f"{metrics}, %" if len(report.metric_names) == 1 else f"mean of {metrics}, %"
    setting = report.setting
    title = f"{report.task}: {setting.sequence_length} tokens, {setting.device}, {setting.dtype}"
    names = [model.name for model in report.models]
    fronts, ranges = fronts_of(report), latency_ranges(report)
    return draw_scores(costs, scores, names, label, None, title, fronts, ranges)


def _look_of_score(report: CompressionReport) -> dict[str, Any]:
    """The look of the model that was trained, which stands behind the original."""
    look = looks_of([model.name for model in report.models][:2])[-1]
    return {"color": look.colour, "marker": look.marker, "linestyle": ":"}


_SHARES: dict[str, tuple[str, Callable[[CompressionReport], dict[str, Any]]]] = {
    # Straight between the steps that were logged: the rate changes at every step.
    "replacing rate": ("replacing_rate", lambda _: {"color": OTHERS[3].colour}),
    "blocks replaced, mean since the last log": (
        "replaced_fraction",
        lambda _: {
            "color": OTHERS[0].colour,
            "marker": OTHERS[0].marker,
            "markersize": 3.5,
            "linestyle": "--",
            "linewidth": 0.8,
        },
    ),
    "score on the eval split": ("eval_score", _look_of_score),
}
"""The curves in percent: what was logged under which name, and how it is drawn."""


def _draw_training(report: CompressionReport) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    shares = {
        name: points for name, (field, _) in _SHARES.items() if (points := _logged(report, field))
    }
    two = bool(shares)
    figure, panels = _panels(2 if two else 1, 1, 4.6 if two else 3.2, sharex=True)
    top, bottom = panels.flat[0], panels.flat[-1]
    losses = {name: _logged(report, name) for name in _loss_names(report)}
    for position, (name, points) in enumerate(losses.items()):
        look = OTHERS[(position - 1) % len(OTHERS)]  # the sum is black
        top.plot(
            *zip(*points, strict=True),
            marker=look.marker,
            markersize=3.5,
            markevery=max(1, len(points) // 20),
            linewidth=1.2,
            color=look.colour,
            label="weighted sum" if name == "loss" else name.replace("loss_", "part: "),
        )
    values = [value for points in losses.values() for _, value in points]
    if min(values) > 0 and max(values) > 30 * min(values):
        top.set_yscale("log")
    top.set_ylabel("loss, mean since the last log")
    for name, points in shares.items():
        bottom.plot(*_percent(points), label=name, **_SHARES[name][1](report))
    if two:
        bottom.set_ylabel("%")
        bottom.margins(y=0.15)
        bottom.legend(loc="best")
    if len(losses) > 1:
        top.legend(loc="best")
    bottom.set_xlabel("optimizer step")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.suptitle(f"{report.task}: the training run, seed {report.run.get('seed')}", fontsize=10)
    return figure


def _draw_module_times(report: CompressionReport) -> "Figure":
    setting, batch = report.setting, report.original.latency[0].batch_size
    title = f"{report.task}: batch {batch}, {setting.sequence_length} tokens, {setting.device}"
    return draw_module_times(report.module_ms, title)


def _loss_names(report: CompressionReport) -> list[str]:
    names = {name for entry in report.history for name in entry if name.startswith("loss_")}
    # Of one part, weighted by 1, the sum is the part.
    return ["loss", *sorted(names)] if len(names) > 1 else ["loss"]


def _logged(report: CompressionReport, name: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[name]) for entry in report.history if name in entry]


def _percent(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [100 * value for _, value in points]


def _panels(lines: int, columns: int, height: float, **options: Any) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=200, layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False, **options)


@dataclass(frozen=True)
class Plot:
    """A plot of a report: what it shows, for which reports there is data, and how it is drawn."""

    title: str
    has_data: Callable[[CompressionReport], bool]
    draw: Callable[[CompressionReport], "Figure"]


PLOTS = {
    "report": Plot(
        "Score against median latency with its interval, and the Pareto front",
        lambda report: True,
        _draw_report,
    ),
    "training": Plot(
        "Losses, replacing rate and evaluation scores over the run",
        lambda report: len(_logged(report, "loss")) > 1,
        _draw_training,
    ),
    "module_time": Plot(
        "Where a forward pass spends its time: torch's profiler, scaled to the median latency",
        lambda report: bool(report.module_ms),
        _draw_module_times,
    ),
}
"""By the name of the files, in the order of the page."""
