"""What a compression cost and gained: the models side by side, measured in one place."""

import copy
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdnlp.data.task import Task
from kdnlp.evaluation.fidelity import Fidelity, compare_answers
from kdnlp.evaluation.json_text import json_text, not_a_number
from kdnlp.evaluation.kept import (
    PREDICTIONS_FILE,
    Predictions,
    load_predictions,
    save_predictions,
)
from kdnlp.evaluation.module_times import ModuleTimes, measure_module_times
from kdnlp.evaluation.significance import PairedTest
from kdnlp.files import replace_text
from kdnlp.models.layers import count_blocks
from kdnlp.profiling.agreement import Agreement, compare_with_flops
from kdnlp.profiling.flops import flops_per_example
from kdnlp.profiling.latency import LatencyRow, LatencySetting, describe_setting, measure_latency
from kdnlp.profiling.size import count_parameters, weights_size_mb

REPORT_JSON, REPORT_MARKDOWN, REPORT_HTML = "report.json", "report.md", "report.html"
HISTORY_JSON = "history.json"

Metrics = Mapping[str, Mapping[str, float]]
"""Values by split and metric, as `kdnlp.evaluation.metrics.compute` returns them."""


@dataclass(frozen=True)
class ModelAccount:
    """One model of a report.

    Attributes:
        name: its part in the run, such as `predecessor`, `successor` or `baseline`.
        metrics: values by split and metric, `score` among them, as fractions and not percent.
        num_layers: its transformer blocks.
        parameters: all of them, tied ones once.
        parameters_without_embeddings: those outside the `nn.Embedding` tables.
        size_mb: its weights as saved, in MB of 10^6 bytes, without the file's header.
        flops: floating-point operations per example of the report's length, 2 per multiply-add.
        latency: a row per batch size.
        behaviour: by split, figures beside the scores, as fractions or in nats: see
            `kdnlp.evaluation.behaviour.describe_behaviour`.
        classes: by split and class, `accuracy` as a fraction, and the `rows` it is of.
    """

    name: str
    metrics: dict[str, dict[str, float]]
    num_layers: int
    parameters: int
    parameters_without_embeddings: int
    size_mb: float
    flops: int
    latency: tuple[LatencyRow, ...]
    behaviour: dict[str, dict[str, float]] = field(default_factory=dict)
    classes: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The mean of the splits' scores: GLUE's convention for MNLI's two."""
        return float(np.mean([values["score"] for values in self.metrics.values()]))


@dataclass(frozen=True)
class CompressionReport:
    """Models side by side: quality, size, arithmetic and latency, with the ratios between them.

    Attributes:
        task: the task's name.
        metric_names: the task's metrics; `score` is their mean.
        models: the first one is the original, with which the others are compared.
        setting: the circumstances of the latencies; `sequence_length` holds for the FLOPs too.
        run: how the models came about: method, arguments, seed, steps, versions.
        tests: whether scores differ by more than chance, of every model against the original and
            against the baseline.
        absent: by name, why a figure is not in the report.
        module_ms: by model, the milliseconds that each part of it takes at the first batch size,
            where that was measured.
        more_module_ms: the same by batch size, for those others at which a speed-up is not what the
            FLOPs promise.
        history: what the run logged, an entry a time, each with its `step`; in `history.json`.
        predictions: by model and split, what the scores were computed from; in
            `_predictions.safetensors`, which does not go to the Hub.

    Example:
        ```python
        report = CompressionReport.measure(
            {"predecessor": predecessor, "successor": successor}, metrics, GLUE_TASKS["mrpc"]
        )
        report.save("out")
        ```
    """

    task: str
    metric_names: tuple[str, ...]
    models: tuple[ModelAccount, ...]
    setting: LatencySetting
    run: dict[str, Any] = field(default_factory=dict)
    tests: tuple[PairedTest, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)
    module_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    more_module_ms: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    predictions: dict[str, dict[str, Predictions]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def measure(
        cls,
        models: Mapping[str, PreTrainedModel],
        metrics: Mapping[str, Metrics],
        task: Task,
        sequence_length: int | None = None,
        batch_sizes: Sequence[int] = (1, 32),
        max_seconds: float | None = 60.0,
        run: Mapping[str, Any] | None = None,
        stack: str | None = None,
        device: torch.device | str | None = None,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> "CompressionReport":
        """Profile the models side by side and join that with their metrics.

        Args:
            models: by name, the original first. They are left as they were; of several floating
                point types, all but quantized ones are measured in float32, size and speed.
            metrics: by name, what each scored on every split. Of what `evaluate_model` returns,
                predictions are compared too; plain values have none.
            task: the task that they solve.
            sequence_length: tokens per example for FLOPs and latency; the default is the task's.
            batch_sizes: batch sizes of the latencies.
            max_seconds: what measuring the latencies may take, roughly.
            run: what else the report should say, as plain values. By `method` and `seed` among
                them `kdnlp report` tells several runs apart.
            stack: `"encoder"` or `"decoder"`, for models that have both.
            device: where the latencies are measured; `None` is where the first model lies.
            history: what the trainer logged, `trainer.state.log_history`.

        Raises:
            ValueError: if a model has no metrics, or the sequence is longer than a model allows.
        """
        missing = sorted(set(models) - set(metrics))
        if missing or not models:
            raise ValueError(
                f"Expected metrics for every model of the report ({', '.join(models)}), got none "
                f"for {', '.join(missing)}. A model without a score has no retention. Evaluate it, "
                "or leave it out."
            )
        length = sequence_length or task.max_length
        fidelity = compare_answers({name: metrics[name] for name in models}, task.metrics)
        models = _of_one_type(models)
        rows = measure_latency(models, batch_sizes, length, device=device, max_seconds=max_seconds)
        module_ms, no_times = measure_module_times(models, rows, length, device, max_seconds)
        report = cls(
            task=task.name,
            metric_names=task.metrics,
            models=tuple(
                _account(name, model, metrics[name], rows, length, stack, fidelity)
                for name, model in models.items()
            ),
            setting=describe_setting(models, length, device),
            run=dict(run or {}),
            tests=fidelity.tests,
            absent={**fidelity.absent, **no_times},
            module_ms=module_ms,
            history=tuple(_finite(entry) for entry in history),
            predictions=fidelity.predictions,
        )
        at = partial(measure_module_times, sequence_length=length, device=device)
        return replace(report, more_module_ms=_explained(report, models, rows, at))

    @property
    def original(self) -> ModelAccount:
        """The model that the others are compared with."""
        return self.models[0]

    def __getitem__(self, name: str) -> ModelAccount:
        return {model.name: model for model in self.models}[name]

    def retention(self, name: str) -> float | None:
        """Percent of the original's score that a model keeps; `None` where that score is not > 0.

        Xu et al. 2020 report the mean over tasks of this ratio.
        """
        if self.original.score <= 0:
            return None
        return 100 * self[name].score / self.original.score

    def ratios(self, name: str) -> dict[str, float]:
        """How many times less than the original a model takes: 2.0 means half.

        Keys: `parameters`, `parameters_without_embeddings`, `size_mb`, `flops`, and
        `latency_batch_<n>` for the speed-up at every batch size: the median over rounds of the two
        times' ratio, or the ratio of the medians where no rounds were kept.
        """
        before, after = self.original, self[name]
        costs = ("parameters", "parameters_without_embeddings", "size_mb", "flops")
        ratios = {cost: _ratio(getattr(before, cost), getattr(after, cost)) for cost in costs}
        for first, second in zip(before.latency, after.latency, strict=True):
            ratios[f"latency_batch_{first.batch_size}"] = (
                _ratio(first.p50_ms, second.p50_ms)
                if second.speedup is None
                else second.speedup.ratio
            )
        return ratios

    def agreements(self) -> list[tuple[str, LatencyRow, Agreement]]:
        """The measured speed-ups beside the ratios of FLOPs: model, where, and how they agree.

        Without those that were not measured round by round, and of models without FLOPs.
        """
        found = []
        for position, first in enumerate(self.original.latency):
            at = str(first.batch_size)
            times = self.module_ms if position == 0 else self.more_module_ms.get(at, {})
            before = times.get(self.original.name, {})
            for model in self.models[1:]:
                row, ratio = model.latency[position], self.ratios(model.name)["flops"]
                if row.speedup is not None and 0 < ratio < math.inf:
                    own = times.get(model.name, {})
                    parts = (before, own) if own else ({}, {})
                    found.append((model.name, row, compare_with_flops(ratio, row.speedup, *parts)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything but history and predictions as plain values; `from_dict` reads it back."""
        compared = {
            model.name: {"retention_percent": self.retention(model.name), **self.ratios(model.name)}
            for model in self.models[1:]
        }
        values = asdict(replace(self, history=(), predictions={}))
        del values["history"], values["predictions"]
        return {**values, "compared": compared}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CompressionReport":
        """The report that `to_dict` described; what an earlier version left out is empty."""
        return cls(
            task=values["task"],
            metric_names=tuple(values["metric_names"]),
            models=tuple(_account_from(model) for model in values["models"]),
            setting=LatencySetting(**values["setting"]),
            run=dict(values["run"]),
            tests=tuple(_test_from(test) for test in values.get("tests", ())),
            absent=dict(values.get("absent", {})),
            module_ms=not_a_number(values.get("module_ms", {})),
            more_module_ms=not_a_number(values.get("more_module_ms", {})),
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the report into `folder`, for people, for programs, and to be drawn again.

        `report.md` and `report.html`, with the plots as PNG and SVG; `report.json`, `history.json`
        and the predictions. Each file appears under its name once it is whole, `report.json` last;
        those of an earlier report for which there is nothing now are removed. In the JSON a number
        that is not finite is `null`.
        """
        from kdnlp.evaluation.html import report_html
        from kdnlp.evaluation.plots import save_plots
        from kdnlp.evaluation.tables import report_markdown

        # What cannot be written must fail before the first file of an earlier report is replaced.
        text, history, markdown = json_text(self.to_dict()), self.history, report_markdown(self)
        entries = json_text(history)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        save_plots(self, target)
        replace_text(target / REPORT_MARKDOWN, markdown)
        replace_text(target / REPORT_HTML, report_html(self, target))
        if history:
            replace_text(target / HISTORY_JSON, entries)
        else:
            (target / HISTORY_JSON).unlink(missing_ok=True)
        if self.predictions:
            save_predictions(self.predictions, target / PREDICTIONS_FILE)
        else:
            (target / PREDICTIONS_FILE).unlink(missing_ok=True)
        replace_text(target / REPORT_JSON, text)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "CompressionReport":
        """Read the `report.json` in `folder`, with history and predictions where they are kept.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is not a report, or what lies beside it is damaged.
        """
        path = Path(folder, REPORT_JSON)
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected {REPORT_JSON} in {os.fspath(folder)}, found none. It is written at the "
                "end of `kdnlp theseus`, `distill`, `finetune` and `demo`; name their output_dir."
            )
        history, predictions = path.with_name(HISTORY_JSON), path.with_name(PREDICTIONS_FILE)
        try:
            report = cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
            entries = json.loads(history.read_text(encoding="utf-8")) if history.is_file() else ()
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} does not hold a compression report: {error!r}. It may have been written "
                "by another version; run the command again."
            ) from error
        kept = load_predictions(predictions) if predictions.is_file() else {}
        return replace(report, history=tuple(entries), predictions=kept)


def _account(
    name: str,
    model: PreTrainedModel,
    metrics: Metrics,
    rows: Sequence[LatencyRow],
    sequence_length: int,
    stack: str | None,
    fidelity: Fidelity,
) -> ModelAccount:
    parameters = count_parameters(model)
    return ModelAccount(
        name=name,
        metrics={split: dict(values) for split, values in metrics.items()},
        num_layers=count_blocks(model, stack),
        parameters=parameters.total,
        parameters_without_embeddings=parameters.without_embeddings,
        size_mb=weights_size_mb(model),
        flops=flops_per_example(model, sequence_length).flops,
        latency=tuple(row for row in rows if row.model == name),
        behaviour=fidelity.behaviour.get(name, {}),
        classes=fidelity.classes.get(name, {}),
    )


def _of_one_type(models: Mapping[str, PreTrainedModel]) -> dict[str, PreTrainedModel]:
    """The models, or copies of them in float32 where their types would make the difference.

    A quantized model stays what it is, for that is its difference.
    """
    if len({model.dtype for model in models.values()}) == 1:
        return dict(models)
    return {
        name: model
        if model.dtype == torch.float32 or getattr(model, "is_quantized", False)
        else copy.deepcopy(model).float()
        for name, model in models.items()
    }


def _explained(
    report: CompressionReport,
    models: Mapping[str, PreTrainedModel],
    rows: Sequence[LatencyRow],
    measure: Callable[..., tuple[ModuleTimes, dict[str, str]]],
) -> dict[str, ModuleTimes]:
    """The time of each part where a speed-up is not what the FLOPs promise and none is measured."""
    more: dict[str, ModuleTimes] = {}
    missing = [
        (n, r.batch_size) for n, r, a in report.agreements() if a.disagrees and not a.eaten_by
    ]
    for size in dict.fromkeys(size for _, size in missing) if report.module_ms else ():
        own = [report.original.name, *(name for name, at in missing if at == size)]
        there = [row for row in rows if row.batch_size == size]
        more[str(size)], _ = measure({name: models[name] for name in own}, there)
    return more


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A logged entry without what is no number: JSON has none, and no plot could show it."""
    return {
        name: value
        for name, value in entry.items()
        if not isinstance(value, float) or math.isfinite(value)
    }


def _account_from(values: Mapping[str, Any]) -> ModelAccount:
    measured = ("metrics", "behaviour", "classes")
    numbers = {name: not_a_number(values[name]) for name in measured if name in values}
    latency = tuple(LatencyRow.from_dict(row) for row in values["latency"])
    return ModelAccount(**{**values, **numbers, "latency": latency})


def _test_from(values: Mapping[str, Any]) -> PairedTest:
    # Of McNemar's numbers `None` says that there are none.
    measured = ("difference", "low", "high", "p_bootstrap")
    return PairedTest(**{**values, **{name: not_a_number(values[name]) for name in measured}})


def _ratio(before: float, after: float) -> float:
    return before / after if after else math.inf
