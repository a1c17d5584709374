"""Where the time of a forward pass goes: embeddings, attention, feed-forward, rest, overhead.

Measured by torch's profiler with a named range around every module of `find_parts`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function
from transformers import PreTrainedModel

from kdnlp.profiling.parts import OTHER, OVERHEAD, PARTS, find_parts
from kdnlp.profiling.placed import synchronize
from kdnlp.profiling.quiet_profiler import quiet_profile

PASSES = 5

_MAX_MS = 3000
_RANGE = "kdnlp::"
_PASS, _SMALLEST = f"{_RANGE}pass", f"{_RANGE}smallest"


@dataclass(frozen=True)
class ModuleTime:
    """Milliseconds of one forward pass by part of the model; the five sum to the median latency.

    On a GPU the parts are the time of their kernels, and overhead is when it had none to run.

    On a CPU the parts are the time in their operations, beyond what an operation costs on a single
    number. That cost, of every operation, and the time between operations, which is Python's, are
    overhead. The profiler slows a pass of many small operations down, so the shares are its own,
    and the scale is that of the pass without it.

    Attributes:
        embeddings: tables and what is around them, such as their norm.
        attention: with its projections, and the residual sum and norm where they are inside.
        feed_forward: likewise.
        other: norms, residual sums and masks outside of these; pooler and head.
        overhead: launching operations, and what lies between them.
        profiler_slowdown: time of a pass under the profiler, by the median latency.
    """

    embeddings: float
    attention: float
    feed_forward: float
    other: float
    overhead: float
    profiler_slowdown: float

    @property
    def parts(self) -> dict[str, float]:
        """Milliseconds by part."""
        values = asdict(self)
        del values["profiler_slowdown"]
        return values


def measure_module_time(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    p50_ms: float,
    num_passes: int = PASSES,
) -> ModuleTime:
    """Split the time of a forward pass by part of the model.

    Args:
        model: in eval mode, on the device of `inputs`.
        inputs: keyword arguments of its forward.
        p50_ms: median latency of such a pass, without the profiler, in milliseconds.
        num_passes: profiled passes at most, after one that is not; medians are taken over them.
            A slow model gets fewer, but one.

    Raises:
        ValueError: as `find_layers`, if the model has no stack of blocks.
    """
    on_device = model.device.type != "cpu"
    activities = [ProfilerActivity.CPU]
    if on_device:
        activities.append(getattr(ProfilerActivity, model.device.type.upper()))
    with ranges(find_parts(model)), torch.inference_mode():
        model(**inputs)
        synchronize(model.device)
        with quiet_profile(activities=activities) as profiler:
            if not on_device:
                _run_smallest()
            for _ in range(max(1, min(num_passes, int(_MAX_MS / p50_ms)))):
                with record_function(_PASS):
                    model(**inputs)
                    synchronize(model.device)
    events = list(profiler.events() or ())
    passes = [event for event in events if event.name == _PASS and event.cpu_children]
    launch = 0.0 if on_device else _launch_cost(events)
    parts = _sum_by_part([_pieces(event, launch, on_device) for event in passes])
    profiled = float(np.median([event.cpu_time_total for event in passes])) / 1000
    return _scaled(parts, p50_ms, profiled, on_device)


@contextmanager
def ranges(parts: Iterable[tuple[nn.Module, str]]) -> Iterator[None]:
    """Name the forward pass of every module by its part, for torch's profiler."""
    open_ranges: list[record_function] = []

    def enter(name: str) -> None:
        named = record_function(name)
        named.__enter__()
        open_ranges.append(named)

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for module, part in parts:
        name = f"{_RANGE}{part}"
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run_smallest() -> None:
    """Run the smallest operation there is, for what launching one costs under the profiler."""
    number = torch.zeros(1)
    for _ in range(50):
        with record_function(_SMALLEST):
            torch.neg(number)


def _launch_cost(events: list[Any]) -> float:
    """Microseconds that an operation takes on a single number."""
    smallest = [c.cpu_time_total for e in events if e.name == _SMALLEST for c in e.cpu_children]
    return float(np.median(smallest))


def _pieces(event: Any, launch: float, on_device: bool) -> list[tuple[str, float]]:
    """A profiled pass in pieces of a part and its microseconds; on a GPU without the overhead."""
    pieces: list[tuple[str, float]] = []
    todo = [(event, OTHER)]
    while todo:
        outer, part = todo.pop()
        if not on_device:
            pieces.append((OVERHEAD, outer.self_cpu_time_total))
        for child in outer.cpu_children:
            if child.name.startswith(_RANGE):
                todo.append((child, child.name.removeprefix(_RANGE)))
            elif on_device:
                pieces.append((part, child.device_time_total))
            else:
                launching = min(child.cpu_time_total, launch * _operations(child))
                pieces.append((OVERHEAD, launching))
                pieces.append((part, child.cpu_time_total - launching))
    return pieces


def _sum_by_part(passes: list[list[tuple[str, float]]]) -> dict[str, float]:
    """Microseconds by part: the sum of the pieces, of each its median over the passes.

    What disturbs a pass hits one operation, and another one in the next pass. A pass that took
    another way than the first is left out.
    """
    order = [part for part, _ in passes[0]]
    alike = [[us for _, us in one] for one in passes if [part for part, _ in one] == order]
    sums = dict.fromkeys((*PARTS, OVERHEAD), 0.0)
    for part, us in zip(order, np.median(alike, axis=0), strict=True):
        sums[part] += float(us)
    return sums


def _operations(event: Any) -> int:
    """The operations that one consists of, itself included: each is launched."""
    return 1 + sum(_operations(child) for child in event.cpu_children)


def _scaled(
    parts: dict[str, float], p50_ms: float, profiled_ms: float, on_device: bool
) -> ModuleTime:
    slowdown = profiled_ms / p50_ms
    if on_device:
        busy = {part: us / 1000 for part, us in parts.items()}
        # Kernels of two streams, or of a pass faster than the profiled ones, may sum to more.
        scale = min(1.0, p50_ms / max(sum(busy.values()), 1e-9))
        scaled = {part: ms * scale for part, ms in busy.items()}
        scaled[OVERHEAD] = p50_ms - sum(scaled.values())
    else:
        total = sum(parts.values())
        scaled = {part: p50_ms * us / total for part, us in parts.items()}
    return ModuleTime(**scaled, profiler_slowdown=slowdown)
