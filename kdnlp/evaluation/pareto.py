"""Which models of a report are worth having: none is better and cheaper at once."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from kdnlp.evaluation.report import CompressionReport, ModelAccount
from kdnlp.evaluation.tables import markdown_table
from kdnlp.files import replace_text

PARETO_MARKDOWN, PARETO_PLOT = "pareto.md", "pareto.png"

HEADER = ("model", "blocks", "score, %", "latency, ms", "size, MB", "GFLOPs", "worth having")


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """The positions that no other beats, cheapest first.

    One beats another if it scores at least as much for at most the cost, and is not its equal in
    both.

    >>> pareto_front([4.0, 1.0, 2.0, 3.0], [0.9, 0.5, 0.8, 0.7])
    [1, 2, 0]
    """

    def beaten(own: int) -> bool:
        return any(
            costs[i] <= costs[own]
            and scores[i] >= scores[own]
            and (costs[i], scores[i]) != (costs[own], scores[own])
            for i in range(len(costs))
        )

    return sorted((i for i in range(len(costs)) if not beaten(i)), key=lambda i: costs[i])


def cost_axes(report: CompressionReport) -> dict[str, Callable[[ModelAccount], float]]:
    """What a model costs, by the label of its axis: latency a batch size, size, and FLOPs."""
    axes: dict[str, Callable[[ModelAccount], float]] = {
        f"median latency, ms, batch {row.batch_size}": (
            lambda model, at=position: model.latency[at].p50_ms  # type: ignore[misc]
        )
        for position, row in enumerate(report.original.latency)
    }
    axes["size, MB"] = lambda model: model.size_mb
    axes["GFLOPs / example"] = lambda model: model.flops / 1e9
    return axes


def pareto_rows(report: CompressionReport) -> list[tuple[str, ...]]:
    """Cells of text in the order of `HEADER`; the latency is that of the first batch size."""
    scores = [model.score for model in report.models]
    fronts = {
        label: pareto_front([cost(model) for model in report.models], scores)
        for label, cost in cost_axes(report).items()
    }
    rows: list[tuple[str, ...]] = []
    for position, model in enumerate(report.models):
        kept = [label.partition(",")[0] for label, front in fronts.items() if position in front]
        worth = "by all" if len(kept) == len(fronts) else ", ".join(dict.fromkeys(kept)) or "no"
        rows.append(
            (
                model.name,
                str(model.num_layers),
                f"{100 * model.score:.1f}",
                f"{model.latency[0].p50_ms:.1f}",
                f"{model.size_mb:.1f}",
                f"{model.flops / 1e9:.2f}",
                worth,
            )
        )
    return rows


def save_pareto(report: CompressionReport, folder: str | os.PathLike[str]) -> None:
    """Write `pareto.md`, `pareto.png` and `pareto.svg` into `folder`, each whole or not at all."""
    from kdnlp.evaluation.plots import draw_scores, save_figure

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    names, scores = zip(*((m.name, 100 * m.score) for m in report.models), strict=True)
    costs = {name: [cost(m) for m in report.models] for name, cost in cost_axes(report).items()}
    label = f"{' and '.join(report.metric_names)}, %"
    title = f"{report.task}, {report.setting.sequence_length} tokens, {report.setting.device}"
    save_figure(lambda: draw_scores(costs, scores, names, label, title=title), target, "pareto")
    lines = [f"# {report.task}: which model to take", ""]
    lines += [*markdown_table(HEADER, pareto_rows(report)), ""]
    lines += [
        "A model is worth having by a cost if no other scores at least as much for at most that "
        f"cost. Latency at batch size {report.original.latency[0].batch_size}.",
        "",
    ]
    replace_text(target / PARETO_MARKDOWN, "\n".join(lines))
