"""Several runs side by side: the mean and spread over seeds of every model, task by task.

Runs are pooled where no setting that they record differs but the seed; those that differ are named.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdnlp.evaluation.fidelity import BASELINE
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.run import BASELINE_RATE, SHARED_ARGUMENTS, hub_source

_MADE_BY_THE_RUN = ("successor", "student", "model")
"""Names that say nothing of the method; the method is added to them."""

_BUDGET = (
    *("optimizer_steps", "precision", "processes", "max_length", "selected_on"),
    *("dataset", "train_rows", "text_columns", "init_layers", "student"),
)
"""What else of a run decides what any training in it gives, that of a baseline too."""

_LEARNED_FROM = ("teacher_dtype", "teachers")
"""What else decides what is learned from an original, and nothing of a baseline."""

Member = tuple[CompressionReport, str]
"""A report, and the name of a model in it."""


@dataclass(frozen=True)
class _Group:
    """Runs of the same settings, and their models of one name."""

    settings: dict[str, Any]
    members: list[Member]


@dataclass(frozen=True)
class ComparisonRow:
    """One model of one task over all runs that hold it.

    Attributes:
        task: the task's name.
        model: its name, with the method for a model that a method made, with its blocks where the
            task has models of several depths by that name, and with the settings that differ
            where several groups of runs would have one name.
        common_name: the same without the blocks, which rows of other depths share.
        num_layers: its transformer blocks.
        seeds: the seed of each run; `None` where it tells none.
        scores: its score in each run, as a fraction.
        retention: percent of the original's score in each run; `None` for an original.
        flops_ratio: how many times fewer FLOPs than the original.
        speedups: by batch size, how many times faster than the original in each run.
        agreement: share of rows answered as the original does, the mean over splits, in each run;
            `None` for an original, and where a run does not tell it.
        calibration_error: expected calibration error, likewise.
        members: the reports that hold it, in the order of `seeds`, and its name in each.
        holders: the same of every report that holds it, those too in which it counts no second
            time.
    """

    task: str
    model: str
    common_name: str
    num_layers: int
    seeds: tuple[int | None, ...]
    scores: tuple[float, ...]
    retention: tuple[float, ...] | None
    flops_ratio: float
    speedups: dict[str, tuple[float, ...]]
    agreement: tuple[float, ...] | None = None
    calibration_error: tuple[float, ...] | None = None
    members: tuple[Member, ...] = field(default=(), compare=False, repr=False)
    holders: tuple[Member, ...] = field(default=(), compare=False, repr=False)

    @property
    def is_original(self) -> bool:
        """Whether it is what its runs compressed."""
        return all(is_original(report, name) for report, name in self.members)


def compare(reports: Sequence[CompressionReport]) -> list[ComparisonRow]:
    """Group the models of several reports by task, part, number of blocks and settings.

    A model that several reports hold with the same score and seed, as the baseline of two methods,
    counts once; so does an original, whatever the seed of what came from it. Baselines of one seed
    that scored otherwise, as on hardware that does not repeat itself, stay with their own runs.

    Raises:
        ValueError: if two models that a run made have the same settings and seed, and not the same
            score: a spread over them would be none over seeds.
    """
    rows: dict[tuple[str, str, int], dict[str, _Group]] = {}
    for report in reports:
        for model in report.models:
            key = (report.task, _label(report, model.name), model.num_layers)
            _add(rows.setdefault(key, {}), _settings(report, model.name), (report, model.name))
    for key, same in rows.items():
        rows[key] = _told_apart(same)
    depths = Counter((task, label) for task, label, _ in rows)
    return [
        _row(key, group.members, depths[key[:2]] > 1, _differing(group, list(same.values())))
        for key, same in rows.items()
        for group in same.values()
    ]


def _add(groups: dict[str, _Group], settings: dict[str, Any], member: Member) -> None:
    which = json.dumps(settings, sort_keys=True)
    groups.setdefault(which, _Group(settings, [])).members.append(member)


def _told_apart(groups: dict[str, _Group]) -> dict[str, _Group]:
    """The groups, those baselines apart which the settings that they read do not tell apart."""
    for more in (_label_beside, _settings_beside):
        apart: dict[str, _Group] = {}
        for group in groups.values():
            again = _repeated(group) is not None
            for report, name in group.members:
                beside = more(report) if again and name == BASELINE else {}
                _add(apart, {**group.settings, **beside}, (report, name))
        groups = apart
    for group in groups.values():
        _check_seeds(group)
    return groups


def _label_beside(report: CompressionReport) -> dict[str, Any]:
    """What the run of a baseline made beside it."""
    made = _made(report)
    return {"beside": _label(report, made[0])} if made else {}


def _settings_beside(report: CompressionReport) -> dict[str, Any]:
    """How it was made."""
    return {n: v for made in _made(report) for n, v in _settings(report, made).items()}


def _made(report: CompressionReport) -> list[str]:
    return [model.name for model in report.models if model.name in _MADE_BY_THE_RUN]


def _repeated(group: _Group) -> list[Member] | None:
    """Two members of one seed that are not one model; an original has no seed here."""
    seen: dict[Any, Member] = {}
    for report, name in group.members:
        first, _ = seen.setdefault(report.run.get("seed"), (report, name))
        alike = _identity(first, name) == _identity(report, name)
        if not is_original(report, name) and not alike:
            return [(first, name), (report, name)]
    return None


def _check_seeds(group: _Group) -> None:
    repeated = _repeated(group)
    if repeated is None:
        return
    (first, name), (second, _) = repeated
    seed = first.run.get("seed")
    facts = "seed" if "method" in first.run else "method and seed"
    fix = (
        f"Measure them with run={{...}} that says {facts}, which is how runs are told apart."
        if seed is None
        else "Leave one of the two out; where they are of two originals, give each run a seed of "
        "its own."
    )
    raise ValueError(
        f"Expected runs that differ in their seed or in a setting, got two of {first.task} with "
        f"{'no seed' if seed is None else f'seed {seed}'} whose {name} scored "
        f"{100 * first[name].score:.1f}% and {100 * second[name].score:.1f}%, and nothing that "
        f"their reports record tells them apart. Their mean would be called one over seeds. {fix}"
    )


def _label(report: CompressionReport, name: str) -> str:
    """The model's name, with what made it: method, losses that are not its default, teachers."""
    if name not in _MADE_BY_THE_RUN:
        return name
    run = report.run
    losses = list(run.get("losses", {}))
    method = run.get("method")
    usual = ["logits"] if method == "distillation" else []
    shown = "" if losses in ([], usual) else f": {', '.join(losses)}"
    teachers = ", several teachers" if "ensemble_metrics" in run else ""
    return f"{name} ({method}{shown}{teachers})" if method else name


def _settings(report: CompressionReport, name: str) -> dict[str, Any]:
    """What decides how a model of a report came about, but for the seed.

    Of an original a report tells only where it comes from. A baseline learned from the labels
    alone.
    """
    run, arguments = report.run, report.run.get("arguments", {})
    settings = _origin(report)
    if is_original(report, name):
        return settings
    settings["parameters"] = report[name].parameters
    own = SHARED_ARGUMENTS if name == BASELINE else tuple(arguments)
    rate = arguments.get(BASELINE_RATE)
    if name == BASELINE and rate is not None:
        arguments = {**arguments, "learning_rate": rate}
    own = tuple(argument for argument in own if argument != BASELINE_RATE)
    settings |= {n: arguments[n] for n in own if n != "seed" and arguments.get(n) is not None}
    settings |= {n: run[n] for n in _BUDGET if run.get(n) is not None}
    if name != BASELINE:
        settings |= {n: run[n] for n in _LEARNED_FROM if run.get(n) is not None}
        settings |= {f"loss {n}": config for n, config in run.get("losses", {}).items()}
    return settings


def _origin(report: CompressionReport) -> dict[str, Any]:
    """Which original, in what a predecessor of each seed, in a folder of its own, has in common."""
    source = hub_source(report.run)
    return {
        **({} if source is None else {"base_model": source}),
        "original_blocks": report.original.num_layers,
        "original_parameters": report.original.parameters,
    }


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
    key: tuple[str, str, int], members: list[Member], tells_blocks: bool, differing: str
) -> ComparisonRow:
    task, label, num_layers = key
    blocks = f", {num_layers} block{'' if num_layers == 1 else 's'}" if tells_blocks else ""
    name = members[0][1]
    runs = {_identity(report, name): report for report, _ in members}
    kept = [r.retention(name) for r in runs.values() if r.original.name != name]
    first = next(iter(runs.values()))
    return ComparisonRow(
        task=task,
        model=label + blocks + differing,
        common_name=label + differing,
        num_layers=num_layers,
        seeds=tuple(r.run.get("seed") for r in runs.values()),
        scores=tuple(r[name].score for r in runs.values()),
        retention=tuple(k for k in kept if k is not None) or None,
        flops_ratio=first.ratios(name)["flops"],
        speedups=_speedups([r.ratios(name) for r in runs.values()]),
        agreement=_figure("agreement", runs.values(), name),
        calibration_error=_figure("calibration_error", runs.values(), name),
        members=tuple((r, name) for r in runs.values()),
        holders=tuple(members),
    )


def _figure(
    figure: str, reports: Iterable[CompressionReport], name: str
) -> tuple[float, ...] | None:
    """The mean over splits in each run; `None` where not every run tells it."""
    values = [[own.get(figure) for own in r[name].behaviour.values()] for r in reports]
    if not all(own and None not in own for own in values):
        return None
    return tuple(float(np.mean(own)) for own in values)  # type: ignore[arg-type]


def _identity(report: CompressionReport, name: str) -> tuple[Any, float | None]:
    """Equal for one model that two reports hold; the seed of a run is not its original's."""
    run, score = report.run, report[name].score
    which = run.get("base_model") if is_original(report, name) else run.get("seed")
    # NaN equals nothing, not even itself.
    return which, None if math.isnan(score) else score


def _speedups(ratios: list[dict[str, float]]) -> dict[str, tuple[float, ...]]:
    prefix = "latency_batch_"
    sizes = [key for key in ratios[0] if key.startswith(prefix)]
    return {key.removeprefix(prefix): tuple(r[key] for r in ratios if key in r) for key in sizes}
