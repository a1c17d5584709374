"""A model's cost in one account: parameters, disk, FLOPs, latency, memory, and where time goes."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdnlp.models.layers import count_blocks
from kdnlp.profiling.agreement import (
    MAX_DISAGREEMENT,
    Agreement,
    check_max_difference,
    compare_with_flops,
)
from kdnlp.profiling.flops import flops_by_part
from kdnlp.profiling.forward import example_inputs
from kdnlp.profiling.latency import LatencyRow, latency_row, target_device
from kdnlp.profiling.memory import PeakMemory, measure_peak_memory
from kdnlp.profiling.module_time import ModuleTime, measure_module_time
from kdnlp.profiling.parts import ParameterParts, count_parts
from kdnlp.profiling.placed import placed
from kdnlp.profiling.rounds import Inputs, check_rounds, time_rounds
from kdnlp.profiling.runtimes import RuntimeRow
from kdnlp.profiling.setting import ProfileSetting, describe_profile
from kdnlp.profiling.size import disk_size_mb, weights_size_mb
from kdnlp.profiling.speedup import Speedup, measure_speedup

PROFILE_JSON = "profile.json"

FORMAT = 1
"""Number of the layout of `profile.json`; a file of another one is refused."""


@dataclass(frozen=True)
class ProfileCell:
    """One model at one batch size and length.

    Attributes:
        latency: its time, with percentiles and throughput; says which batch size and length.
        flops: floating-point operations per example by part, 2 per multiply-add.
        memory: the peak of one pass.
        time: where the time goes, by part.
        speedup: over the reference, round by round; `None` for the reference.
        agreement: of the speed-up with the FLOPs; `None` for the reference.
    """

    latency: LatencyRow
    flops: dict[str, int]
    memory: PeakMemory
    time: ModuleTime
    speedup: Speedup | None = None
    agreement: Agreement | None = None

    @property
    def flops_per_example(self) -> int:
        """All of an example's floating-point operations."""
        return sum(self.flops.values())

    @property
    def macs_per_example(self) -> int:
        """Its multiply-adds: half of that."""
        return self.flops_per_example // 2

    @property
    def flops_per_second(self) -> float:
        """Arithmetic that is achieved at the median; low where something else is the limit."""
        return self.flops_per_example * self.latency.examples_per_second


@dataclass(frozen=True)
class ModelProfile:
    """What one model costs.

    Attributes:
        name: what it is called in the comparison.
        architecture: its class.
        num_layers: transformer blocks.
        parameters: by part.
        size_mb: weights as saved, in MB of 10^6 bytes, without the file's header.
        disk_size_mb: the files of weights in its folder; `None` without a folder.
        cells: a cell per length and batch size, in that order.
    """

    name: str
    architecture: str
    num_layers: int
    parameters: ParameterParts
    size_mb: float
    disk_size_mb: float | None
    cells: tuple[ProfileCell, ...]


@dataclass(frozen=True)
class Profile:
    """Models side by side, the first of which is the reference of the others.

    Attributes:
        models: what each costs.
        setting: what that was measured on.
        runtimes: the same models in other runtimes, where that was asked for.
    """

    models: tuple[ModelProfile, ...]
    setting: ProfileSetting
    runtimes: tuple[RuntimeRow, ...] = ()

    @property
    def reference(self) -> ModelProfile:
        """The model that the others are compared with."""
        return self.models[0]

    @property
    def disagreements(self) -> list[tuple[str, ProfileCell]]:
        """Name and cell where the speed-up is not what the FLOPs promise."""
        return [
            (model.name, cell)
            for model in self.models
            for cell in model.cells
            if cell.agreement is not None and cell.agreement.disagrees
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything in it as plain values; `from_dict` reads it back."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Profile":
        """The profile that `to_dict` described.

        Raises:
            ValueError: if it has another format.
        """
        if values.get("format") != FORMAT:
            raise ValueError(
                f"Expected a profile of format {FORMAT}, got {values.get('format')!r}. Its numbers "
                "may mean something else; run `kdnlp profile` again."
            )
        return cls(
            models=tuple(_model_from(model) for model in values["models"]),
            setting=ProfileSetting(**values["setting"]),
            runtimes=tuple(RuntimeRow.from_dict(row) for row in values["runtimes"]),
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Profile":
        """Read the `profile.json` in `folder`.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is not a profile, or one of another format.
        """
        path = Path(folder, PROFILE_JSON)
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected {PROFILE_JSON} in {os.fspath(folder)}, found none. `kdnlp profile MODEL "
                "--output_dir DIR` writes it."
            )
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not hold a profile: {error!r}.") from error


def profile_models(
    models: Mapping[str, PreTrainedModel],
    batch_sizes: Sequence[int] = (1, 8, 32),
    lengths: Sequence[int] = (32, 128),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    num_warmup: int = 3,
    num_repeats: int = 30,
    max_seconds: float | None = 120.0,
    max_disagreement: float = MAX_DISAGREEMENT,
    folders: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Profile:
    """Measure what models cost, side by side.

    The models take turns in every round of timings, so that the machine's drift cancels in the
    speed-ups. Peak memory and time by part are measured after them, in nine more passes a cell and
    model at most.

    Args:
        models: by name, the reference first. They are left as they were.
        batch_sizes: examples per batch.
        lengths: tokens per example, none of them padding; each with every batch size.
        device: where to run; `None` is where the first model lies.
        dtype: of the weights; `None` is each model's own. Another one is measured on a copy.
        num_warmup: rounds a cell before the clock counts; at least 1.
        num_repeats: timed rounds a cell; at least 3, and 6 for an interval of 95%.
        max_seconds: a budget for the rounds, shared evenly by the cells; each gets one round of
            warm-up and three timed ones at least.
        max_disagreement: the share by which a speed-up may miss the ratio of FLOPs.
        folders: where models were saved, by name, for their size on disk.

    Raises:
        ValueError: if there is nothing to measure, a number is out of range, a model is spread over
            several devices, has no stack of blocks, an attention whose FLOPs are not counted, or
            fewer positions than a length.
        FileNotFoundError: if a folder holds no weights.
    """
    check_rounds(models, batch_sizes, num_warmup, num_repeats)
    check_max_difference(max_disagreement)
    if not lengths:
        raise ValueError("Expected at least one length, got none. There is nothing to measure.")
    target = target_device(models, device)
    on_disk = {name: disk_size_mb(folder) for name, folder in (folders or {}).items()}
    flops = {
        length: {name: flops_by_part(model, length) for name, model in models.items()}
        for length in lengths
    }
    seconds = None if max_seconds is None else max_seconds / (len(lengths) * len(batch_sizes))
    cells: dict[str, list[ProfileCell]] = {name: [] for name in models}
    with ExitStack() as stack:
        there = {name: stack.enter_context(placed(m, target, dtype)) for name, m in models.items()}
        stack.enter_context(torch.inference_mode())  # under which quantized weights do not move
        size_mb = {name: weights_size_mb(model) for name, model in there.items()}
        for length in lengths:
            for size in batch_sizes:
                inputs = {name: example_inputs(m, size, length) for name, m in there.items()}
                times = time_rounds(there, inputs, target, num_warmup, num_repeats, seconds)
                measured = {
                    name: _cell(name, model, inputs[name], times[name], flops[length][name])
                    for name, model in there.items()
                }
                compared = _compared(measured, times, max_disagreement)
                for name, cell in compared.items():
                    cells[name].append(cell)
    profiles = (
        _model_profile(name, model, size_mb[name], on_disk.get(name), cells[name])
        for name, model in models.items()
    )
    return Profile(models=tuple(profiles), setting=describe_profile(models, target, dtype))


def profile_model(model: PreTrainedModel, name: str = "model", **options: Any) -> ModelProfile:
    """Measure what one model costs; `options` are those of `profile_models`.

    Example:
        ```python
        profile = profile_model(model, batch_sizes=(1, 32), lengths=(128,))
        profile.cells[0].latency.p99_ms
        profile.cells[0].time.attention  # milliseconds
        ```
    """
    return profile_models({name: model}, **options).reference


def _model_profile(
    name: str,
    model: PreTrainedModel,
    size_mb: float,
    disk_size_mb: float | None,
    cells: Sequence[ProfileCell],
) -> ModelProfile:
    return ModelProfile(
        name=name,
        architecture=type(model).__name__,
        num_layers=count_blocks(model),
        parameters=count_parts(model),
        size_mb=size_mb,
        disk_size_mb=disk_size_mb,
        cells=tuple(cells),
    )


def _cell(
    name: str,
    model: PreTrainedModel,
    inputs: Inputs,
    milliseconds: Sequence[float],
    flops: dict[str, int],
) -> ProfileCell:
    ids = inputs["input_ids"]
    row = latency_row(name, ids.shape[0], ids.shape[-1], milliseconds)
    return ProfileCell(
        latency=row,
        flops=flops,
        memory=measure_peak_memory(model, inputs),
        time=measure_module_time(model, inputs, row.p50_ms),
    )


def _compared(
    cells: Mapping[str, ProfileCell], times: Mapping[str, Sequence[float]], max_disagreement: float
) -> dict[str, ProfileCell]:
    """The cells of one batch size and length, each compared with the first."""
    reference, *others = cells
    base = cells[reference]
    compared = {reference: base}
    for name in others:
        own = cells[name]
        speedup = measure_speedup(times[reference], times[name])
        agreement = compare_with_flops(
            base.flops_per_example / own.flops_per_example,
            speedup,
            base.time.parts,
            own.time.parts,
            max_disagreement,
        )
        compared[name] = replace(own, speedup=speedup, agreement=agreement)
    return compared


def _model_from(values: Mapping[str, Any]) -> ModelProfile:
    parameters = ParameterParts(**values["parameters"])
    cells = tuple(_cell_from(cell) for cell in values["cells"])
    return ModelProfile(**{**values, "parameters": parameters, "cells": cells})


def _cell_from(values: Mapping[str, Any]) -> ProfileCell:
    speedup, agreement = values["speedup"], values["agreement"]
    return ProfileCell(
        latency=LatencyRow.from_dict(values["latency"]),
        flops=dict(values["flops"]),
        memory=PeakMemory(**values["memory"]),
        time=ModuleTime(**values["time"]),
        speedup=None if speedup is None else Speedup(**speedup),
        agreement=None if agreement is None else Agreement(**agreement),
    )
