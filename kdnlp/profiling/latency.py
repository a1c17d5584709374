"""How long a forward pass takes, for several models side by side."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from kdnlp.models.modes import evaluating
from kdnlp.profiling.forward import example_inputs

MIN_REPEATS = 3


@dataclass(frozen=True)
class LatencyRow:
    """The time that one model takes for a batch.

    Attributes:
        model: its name.
        batch_size: examples in the batch.
        sequence_length: tokens per example, none of them padding.
        p50_ms: median time of a forward pass in milliseconds.
        p95_ms: 95th percentile, in milliseconds; with under 20 repeats, little but the largest.
        examples_per_second: throughput at the median.
        repeats: timed forward passes.
    """

    model: str
    batch_size: int
    sequence_length: int
    p50_ms: float
    p95_ms: float
    examples_per_second: float
    repeats: int


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
    """Time forward passes of several models on the same full batches.

    The models take turns, one pass each, and the order moves on by one with every round: when the
    machine slows down or speeds up, it does so for all of them, and the ratios stay.

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
        A row per batch size and model, in that order.

    Raises:
        ValueError: if there is nothing to measure, a number is too small, the sequence exceeds a
            model's positions, or a model is spread over several devices.
    """
    _check_request(models, batch_sizes, num_warmup, num_repeats)
    target = torch.device(device) if device is not None else next(iter(models.values())).device
    # A deadline per batch size, so that a slow large batch cannot use up a small one's share.
    seconds = None if max_seconds is None else max_seconds / len(batch_sizes)
    rows: list[LatencyRow] = []
    with ExitStack() as stack, torch.inference_mode():
        placed = {
            name: stack.enter_context(_placed(model, target, dtype))
            for name, model in models.items()
        }
        for size in batch_sizes:
            inputs = {
                name: example_inputs(model, size, sequence_length) for name, model in placed.items()
            }
            times = _time_rounds(placed, inputs, target, num_warmup, num_repeats, seconds)
            rows += [_row(name, size, sequence_length, ms) for name, ms in times.items()]
    return rows


def describe_setting(
    models: Mapping[str, PreTrainedModel],
    sequence_length: int = 128,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LatencySetting:
    """The circumstances in which `measure_latency` with these arguments measures."""
    target = torch.device(device) if device is not None else next(iter(models.values())).device
    dtypes = {name: str(dtype or model.dtype) for name, model in models.items()}
    attention = {name: str(m.config._attn_implementation) for name, m in models.items()}
    return LatencySetting(
        device=_device_name(target),
        dtype=_shared(dtypes).replace("torch.", ""),
        threads=torch.get_num_threads(),
        sequence_length=sequence_length,
        attention=_shared(attention),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def _time_rounds(
    models: Mapping[str, PreTrainedModel],
    inputs: Mapping[str, dict[str, torch.Tensor]],
    device: torch.device,
    num_warmup: int,
    num_repeats: int,
    max_seconds: float | None,
) -> dict[str, list[float]]:
    """Milliseconds by model; the first `num_warmup` rounds are dropped."""
    deadline = None if max_seconds is None else time.perf_counter() + max_seconds
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(num_warmup + num_repeats):
        late = deadline is not None and time.perf_counter() > deadline
        warming = number < num_warmup
        if late and warming and number >= 1:
            continue
        if late and not warming and len(times[names[0]]) >= MIN_REPEATS:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = _time_once(models[name], inputs[name], device)
            if not warming:
                times[name].append(elapsed)
    return times


def _time_once(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], device: torch.device
) -> float:
    _synchronize(device)
    start = time.perf_counter()
    model(**inputs)
    _synchronize(device)
    return (time.perf_counter() - start) * 1000


def _row(name: str, batch_size: int, sequence_length: int, ms: list[float]) -> LatencyRow:
    p50, p95 = (float(np.percentile(ms, q)) for q in (50, 95))
    return LatencyRow(name, batch_size, sequence_length, p50, p95, batch_size / p50 * 1000, len(ms))


@contextmanager
def _placed(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None
) -> Iterator[PreTrainedModel]:
    """The model on `device`, in eval mode, and back again afterwards."""
    _check_one_device(model)
    home = model.device
    with evaluating(model):
        if dtype is not None and dtype != model.dtype:
            # Casting back would not restore the bits that a narrower dtype drops.
            yield nn.Module.to(copy.deepcopy(model), device=device, dtype=dtype)
            return
        try:
            yield nn.Module.to(model, device)
        finally:
            nn.Module.to(model, home)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return device.type


def _shared(values: Mapping[str, str]) -> str:
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _check_one_device(model: PreTrainedModel) -> None:
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise ValueError(
            f"Expected a model on one device, got {type(model).__name__} on "
            f"{', '.join(devices)}. Moving it to be timed would undo the split, and its latency "
            "would be mostly transfer. Load it without device_map."
        )


def _check_request(
    models: Mapping[str, PreTrainedModel],
    batch_sizes: Sequence[int],
    num_warmup: int,
    num_repeats: int,
) -> None:
    if not models or not batch_sizes:
        raise ValueError(
            f"Expected at least one model and one batch size, got {len(models)} and "
            f"{list(batch_sizes)}. There is nothing to measure."
        )
    if num_warmup < 1 or num_repeats < MIN_REPEATS:
        raise ValueError(
            f"Expected num_warmup of at least 1 and num_repeats of at least {MIN_REPEATS}, got "
            f"{num_warmup} and {num_repeats}. A first pass pays for allocation, and a median of "
            "fewer is no median: both would pass for the model's latency."
        )
