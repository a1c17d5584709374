"""How long a forward pass takes, for several models side by side."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from kdnlp.profiling.forward import example_inputs
from kdnlp.profiling.placed import device_name, placed
from kdnlp.profiling.rounds import check_rounds, time_rounds
from kdnlp.profiling.speedup import Speedup, measure_speedup


@dataclass(frozen=True)
class LatencyRow:
    """The time that one model takes for a batch.

    A percentile lies between the two passes next to it, in proportion; with few repeats the high
    ones say little but what the slowest pass took.

    Attributes:
        model: its name.
        batch_size: examples in the batch.
        sequence_length: tokens per example, none of them padding.
        p50_ms: median time of a forward pass in milliseconds.
        examples_per_second: throughput at the median.
        repeats: timed forward passes.
        p90_ms: 90th percentile, in milliseconds; `None` in reports from before it was kept, which
            have a 95th instead.
        p99_ms: 99th percentile, in milliseconds; likewise.
        speedup: over the first of the models that took turns; `None` for itself, where one was
            measured alone, and in reports from before it was kept.
    """

    model: str
    batch_size: int
    sequence_length: int
    p50_ms: float
    examples_per_second: float
    repeats: int
    p90_ms: float | None = None
    p99_ms: float | None = None
    speedup: Speedup | None = None

    @property
    def words(self) -> str:
        """Batch size and length, for a sentence."""
        return f"batch {self.batch_size}, {self.sequence_length} tokens"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LatencyRow":
        """The row that `asdict` described; what an earlier version left out is `None`."""
        kept = {name: value for name, value in values.items() if name != "p95_ms"}
        speedup = kept.get("speedup")
        return cls(**{**kept, "speedup": None if speedup is None else Speedup(**speedup)})


@dataclass(frozen=True)
class LatencySetting:
    """The circumstances without which a latency means nothing.

    Attributes:
        device: hardware name, such as `NVIDIA H200` or the processor's architecture.
        dtype: of the weights and the arithmetic.
        threads: CPU threads that torch used for one operation.
        sequence_length: tokens per example.
        attention: attention implementation by model, or the one that all of them share.
        torch: version.
        transformers: version.
    """

    device: str
    dtype: str
    threads: int
    sequence_length: int
    attention: str
    torch: str
    transformers: str


def measure_latency(
    models: Mapping[str, PreTrainedModel],
    batch_sizes: Sequence[int] = (1, 32),
    sequence_length: int = 128,
    num_warmup: int = 3,
    num_repeats: int = 30,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    max_seconds: float | None = None,
) -> list[LatencyRow]:
    """Time forward passes of several models on the same full batches, the models taking turns.

    Args:
        models: what to compare, by name. They are left as they were: device, dtype and mode.
        batch_sizes: examples per batch, measured one after the other.
        sequence_length: tokens per example.
        num_warmup: rounds before the clock counts; at least 1.
        num_repeats: timed rounds per batch size; at least `MIN_REPEATS`.
        device: where to run; `None` is where the first model lies.
        dtype: of the weights; `None` is each model's own. Another one is measured on a copy.
        max_seconds: a budget for the whole call, shared evenly by the batch sizes. When a share is
            spent no further round starts, except the one warm-up round and the `MIN_REPEATS`
            timed ones that a batch size always gets.

    Returns:
        A row per batch size and model, in that order, with the speed-up over the first model.

    Raises:
        ValueError: if there is nothing to measure, a number is too small, the sequence exceeds a
            model's positions, or a model is spread over several devices.
    """
    check_rounds(models, batch_sizes, num_warmup, num_repeats)
    target = target_device(models, device)
    # A deadline per batch size, so that a slow large batch cannot use up a small one's share.
    seconds = None if max_seconds is None else max_seconds / len(batch_sizes)
    rows: list[LatencyRow] = []
    with ExitStack() as stack:
        there = {
            name: stack.enter_context(placed(model, target, dtype))
            for name, model in models.items()
        }
        stack.enter_context(torch.inference_mode())  # under which quantized weights do not move
        for size in batch_sizes:
            inputs = {
                name: example_inputs(model, size, sequence_length) for name, model in there.items()
            }
            times = time_rounds(there, inputs, target, num_warmup, num_repeats, seconds)
            rows += _rows_of_turns(times, size, sequence_length)
    return rows


def _rows_of_turns(
    times: Mapping[str, Sequence[float]], batch_size: int, sequence_length: int
) -> list[LatencyRow]:
    """A row for each model, all but the first of them with its speed-up over the first."""
    first, *others = (latency_row(n, batch_size, sequence_length, ms) for n, ms in times.items())
    return [
        first,
        *(
            replace(row, speedup=measure_speedup(times[first.model], times[row.model]))
            for row in others
        ),
    ]


def latency_row(
    name: str, batch_size: int, sequence_length: int, milliseconds: Sequence[float]
) -> LatencyRow:
    """Summarise the times of a model's passes, at least one, in milliseconds."""
    p50, p90, p99 = (float(q) for q in np.percentile(milliseconds, (50, 90, 99)))
    return LatencyRow(
        model=name,
        batch_size=batch_size,
        sequence_length=sequence_length,
        p50_ms=p50,
        examples_per_second=batch_size / p50 * 1000,
        repeats=len(milliseconds),
        p90_ms=p90,
        p99_ms=p99,
    )


def describe_setting(
    models: Mapping[str, PreTrainedModel],
    sequence_length: int = 128,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LatencySetting:
    """The circumstances in which `measure_latency` with these arguments measures."""
    return LatencySetting(
        device=device_name(target_device(models, device)),
        dtype=shared_dtype(models, dtype),
        threads=torch.get_num_threads(),
        sequence_length=sequence_length,
        attention=shared_attention(models),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def target_device(
    models: Mapping[str, PreTrainedModel], device: torch.device | str | None
) -> torch.device:
    """Where to measure: `device`, or where the first model lies."""
    return torch.device(device) if device is not None else next(iter(models.values())).device


def shared_dtype(models: Mapping[str, PreTrainedModel], dtype: torch.dtype | None) -> str:
    """The dtype that is measured, such as `float32`, or each model's where they differ."""
    names = {name: str(dtype or model.dtype) for name, model in models.items()}
    return _shared(names).replace("torch.", "")


def shared_attention(models: Mapping[str, PreTrainedModel]) -> str:
    """The attention implementation, or each model's where they differ."""
    return _shared({name: str(m.config._attn_implementation) for name, m in models.items()})


def _shared(values: Mapping[str, str]) -> str:
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{name}: {value}" for name, value in values.items())
