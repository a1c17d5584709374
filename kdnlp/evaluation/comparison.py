"""Several runs side by side: the mean and spread over seeds of every model, task by task.

Runs are pooled where they differ in nothing but the seed; settings that differ are named.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdnlp.evaluation.fidelity import BASELINE
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.run import SHARED_ARGUMENTS

_MADE_BY_THE_RUN = ("successor", "student", "model")
"""Names that say nothing of the method; the method is added to them."""

_BUDGET = ("optimizer_steps", "precision", "max_length")
"""What else of a run decides what any training in it gives."""


@dataclass(frozen=True)
class ComparisonRow:
    """One model of one task over all runs that hold it.

    Attributes:
        task: the task's name.
        model: its name, with the method for a model that a method made, and with the settings that
            differ where several groups of runs would have one name.
        num_layers: its transformer blocks.
        seeds: the seed of each run.
        scores: its score in each run, as a fraction.
        retention: percent of the original's score in each run; `None` for an original.
        flops_ratio: how many times fewer FLOPs than the original.
        speedups: by batch size, the mean over runs of the original's median latency over its own.
        agreement: share of rows answered as the original does, the mean over splits, in each run;
            `None` for an original, and where a run does not tell it.
        calibration_error: expected calibration error, likewise.
        members: the reports that hold it, in the order of `seeds`, and its name in each.
    """

    task: str
    model: str
    num_layers: int
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    retention: tuple[float, ...] | None
    flops_ratio: float
    speedups: dict[str, float]
    agreement: tuple[float, ...] | None = None
    calibration_error: tuple[float, ...] | None = None
    members: tuple[tuple[CompressionReport, str], ...] = field(
        default=(), compare=False, repr=False
    )

    @property
    def is_original(self) -> bool:
        """Whether it is what its runs compressed."""
        return all(is_original(report, name) for report, name in self.members)


def compare(reports: Sequence[CompressionReport]) -> list[ComparisonRow]:
    """Group the models of several reports by task, part, number of blocks and settings.

    A model that several reports hold with the same score and seed, as the baseline of two methods,
    counts once; so does an original, whatever the seed of what came from it.
    """
    rows: dict[tuple[str, str, int], dict[str, _Group]] = {}
    for report in reports:
        for model in report.models:
            key = (report.task, _label(report, model.name), model.num_layers)
            settings = _settings(report, model.name)
            same = rows.setdefault(key, {})
            group = same.setdefault(json.dumps(settings, sort_keys=True), _Group(settings, []))
            group.members.append((report, model.name))
    return [
        _row(key, group.members, _differing(group, list(same.values())))
        for key, same in rows.items()
        for group in same.values()
    ]


def _label(report: CompressionReport, name: str) -> str:
    """The model's name, with what made it: method, losses that are not its default, teachers."""
    if name not in _MADE_BY_THE_RUN:
        return name
    run = report.run
    losses = list(run.get("losses", {}))
    usual = ["logits"] if run["method"] == "distillation" else []
    shown = "" if losses in ([], usual) else f": {', '.join(losses)}"
    teachers = ", several teachers" if "ensemble_metrics" in run else ""
    return f"{name} ({run['method']}{shown}{teachers})"


@dataclass(frozen=True)
class _Group:
    """Runs that differ in nothing but the seed, and their models of one name."""

    settings: dict[str, Any]
    members: list[tuple[CompressionReport, str]]


def _settings(report: CompressionReport, name: str) -> dict[str, Any]:
    """What decides how a model of a report came about, but for the seed.

    A report does not tell it of an original. A baseline learned from the labels alone.
    """
    run, arguments = report.run, report.run.get("arguments", {})
    if is_original(report, name):
        return {}
    own = SHARED_ARGUMENTS if name == BASELINE else tuple(arguments)
    settings = {n: arguments[n] for n in own if n in arguments and n != "seed"}
    settings |= {n: run[n] for n in _BUDGET if n in run}
    if name != BASELINE:
        settings |= {f"loss {n}": config for n, config in run.get("losses", {}).items()}
    return settings


def is_original(report: CompressionReport, name: str) -> bool:
    """Whether a model is what the run compressed, and not what it made."""
    return name == report.original.name and name not in _MADE_BY_THE_RUN


def _differing(group: _Group, others: list[_Group]) -> str:
    """The settings of a group that another one of its name has otherwise, as text."""
    names = list(dict.fromkeys(name for other in others for name in other.settings))
    own = {
        name: group.settings.get(name)
        for name in names
        if any(other.settings.get(name) != group.settings.get(name) for other in others)
    }
    return "".join(f"; {name}={value}" for name, value in own.items())


def _row(
    key: tuple[str, str, int], members: list[tuple[CompressionReport, str]], differing: str
) -> ComparisonRow:
    task, label, num_layers = key
    name = members[0][1]
    runs = {_identity(report, name): report for report, _ in members}
    kept = [r.retention(name) for r in runs.values() if r.original.name != name]
    first = next(iter(runs.values()))
    return ComparisonRow(
        task=task,
        model=label + differing,
        num_layers=num_layers,
        seeds=tuple(r.run["seed"] for r in runs.values()),
        scores=tuple(r[name].score for r in runs.values()),
        retention=tuple(k for k in kept if k is not None) or None,
        flops_ratio=first.ratios(name)["flops"],
        speedups=_mean_speedups([r.ratios(name) for r in runs.values()]),
        agreement=_figure("agreement", runs.values(), name),
        calibration_error=_figure("calibration_error", runs.values(), name),
        members=tuple((r, name) for r in runs.values()),
    )


def _figure(
    figure: str, reports: Iterable[CompressionReport], name: str
) -> tuple[float, ...] | None:
    """The mean over splits in each run; `None` where not every run tells it."""
    values = [[own.get(figure) for own in r[name].behaviour.values()] for r in reports]
    if not all(own and None not in own for own in values):
        return None
    return tuple(float(np.mean(own)) for own in values)  # type: ignore[arg-type]


def _identity(report: CompressionReport, name: str) -> tuple[Any, float]:
    """Equal for one model that two reports hold; the seed of a run is not its original's."""
    run = report.run
    which = run.get("base_model") if is_original(report, name) else run["seed"]
    return which, report[name].score


def _mean_speedups(ratios: list[dict[str, float]]) -> dict[str, float]:
    prefix = "latency_batch_"
    sizes = [key for key in ratios[0] if key.startswith(prefix)]
    return {
        key.removeprefix(prefix): float(np.mean([r[key] for r in ratios if key in r]))
        for key in sizes
    }
