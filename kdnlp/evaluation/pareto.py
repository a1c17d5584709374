"""Which models of a report are worth having: none is better and cheaper at once."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kdnlp.evaluation.report import CompressionReport, ModelAccount
from kdnlp.evaluation.tables import markdown_table
from kdnlp.files import replace_text

PARETO_MARKDOWN, PARETO_PLOT = "pareto.md", "pareto.png"

HEADER = ("model", "blocks", "score, %", "latency, ms", "size, MB", "GFLOPs", "worth having")


def pareto_front(
    costs: Sequence[float],
    scores: Sequence[float],
    same_cost: Callable[[int, int], bool] = lambda first, second: False,
) -> list[int]:
    """The positions that no other beats, cheapest first.

    One beats another if it scores at least as much for at most the cost, and is not its equal in
    both.

    Args:
        costs: of each model.
        scores: in the same order.
        same_cost: whether the costs at two positions are one, though their numbers differ.

    >>> pareto_front([4.0, 1.0, 2.0, 3.0], [0.9, 0.5, 0.8, 0.7])
    [1, 2, 0]
    """

    def beats(first: int, second: int) -> bool:
        same = costs[first] == costs[second] or same_cost(first, second)
        cheaper = costs[first] < costs[second] and not same
        better = scores[first] > scores[second]
        return (cheaper or same) and (better or (cheaper and scores[first] == scores[second]))

    every = range(len(costs))
    front = (own for own in every if not any(beats(i, own) for i in every if i != own))
    return sorted(front, key=lambda i: costs[i])


def fronts_of(report: CompressionReport) -> dict[str, list[int]]:
    """The positions of the models that no other beats, by the axes of `cost_axes`.

    Two latencies are one where the measurement does not tell them apart, and where the models take
    as many FLOPs, parameters and bytes as each other.
    """
    models = report.models
    scores = [model.score for model in models]
    fronts = {}
    for position, (label, cost) in enumerate(cost_axes(report).items()):
        same = (
            partial(_same_latency, models, position)
            if position < len(report.original.latency)
            else lambda first, second: False
        )
        fronts[label] = pareto_front([cost(model) for model in models], scores, same)
    return fronts


def latency_ranges(report: CompressionReport) -> dict[str, list[tuple[float, float] | None]]:
    """By axis, the original's median latency over the interval of each model's speed-up."""
    labels = list(cost_axes(report))
    return {
        labels[position]: [
            None if own is None else (before.p50_ms / own.high, before.p50_ms / own.low)
            for own in (model.latency[position].speedup for model in report.models)
        ]
        for position, before in enumerate(report.original.latency)
    }


def same_build(first: ModelAccount, second: ModelAccount) -> bool:
    """Whether two models take as many FLOPs, parameters and bytes as each other."""
    costs = ((m.flops, m.parameters, m.size_mb) for m in (first, second))
    return len(set(costs)) == 1


def overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether two intervals have a number in common."""
    return max(first[0], second[0]) <= min(first[1], second[1])


def _same_latency(models: Sequence[ModelAccount], position: int, first: int, second: int) -> bool:
    if same_build(models[first], models[second]):
        return True
    rows = [models[i].latency[position] for i in (first, second)]
    # The original is what the speed-ups are over; without rounds there is no noise to know of.
    if any(row.speedup is None for row, i in zip(rows, (first, second), strict=True) if i > 0):
        return False
    low_high = [(1.0, 1.0) if s is None else (s.low, s.high) for s in (r.speedup for r in rows)]
    return overlap(*low_high)


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
    fronts = fronts_of(report)
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
    fronts, ranges = fronts_of(report), latency_ranges(report)
    save_figure(
        lambda: draw_scores(costs, scores, names, label, None, title, fronts, ranges),
        target,
        "pareto",
    )
    lines = [f"# {report.task}: which model to take", ""]
    lines += [*markdown_table(HEADER, pareto_rows(report)), ""]
    lines += [
        "A model is worth having by a cost if no other scores at least as much for at most that "
        f"cost. Latency at batch size {report.original.latency[0].batch_size}. Two latencies count "
        "as one where their measured intervals overlap, and where the models take as many FLOPs, "
        "parameters and bytes.",
        "",
    ]
    replace_text(target / PARETO_MARKDOWN, "\n".join(lines))
