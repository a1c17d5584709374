"""The most memory that tensors hold at once while a model runs forward."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from transformers import PreTrainedModel

from kdnlp.profiling.placed import synchronize
from kdnlp.profiling.quiet_profiler import quiet_profile
from kdnlp.profiling.size import BYTES_PER_MB, num_bytes

_CPU = 0
"""What the profiler calls the device type of main memory."""


@dataclass(frozen=True)
class PeakMemory:
    """Memory of one forward pass, in MB of 10^6 bytes.

    Counted are tensors, as torch's allocator hands them out; not the interpreter, the libraries and
    their scratch space, nor what the allocator keeps for later. So CPU and GPU mean the same.

    Attributes:
        weights_mb: parameters and buffers, each in its own dtype, tied ones once.
        activations_mb: the most that was allocated at once in the pass beyond those and the inputs.
        source: how it was measured: `torch profiler, allocations` or `max_memory_allocated`.
    """

    weights_mb: float
    activations_mb: float
    source: str

    @property
    def total_mb(self) -> float:
        """What the device must hold for the model to run."""
        return self.weights_mb + self.activations_mb


def measure_peak_memory(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> PeakMemory:
    """Run a model once, and measure the peak of its memory.

    Args:
        model: in eval mode, on the device of `inputs`: a CPU or a CUDA device.
        inputs: keyword arguments of its forward.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    weights = sum(map(num_bytes, tensors.values()))
    on_gpu = model.device.type == "cuda"
    with torch.inference_mode():
        peak = _peak_on_gpu(model, inputs) if on_gpu else _peak_on_cpu(model, inputs)
    return PeakMemory(
        weights_mb=weights / BYTES_PER_MB,
        activations_mb=peak / BYTES_PER_MB,
        source="max_memory_allocated" if on_gpu else "torch profiler, allocations",
    )


def _peak_on_gpu(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> int:
    model(**inputs)  # cuBLAS keeps a workspace from its first call on
    synchronize(model.device)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    model(**inputs)
    synchronize(model.device)
    return torch.cuda.max_memory_allocated(model.device) - before


def _peak_on_cpu(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> int:
    with quiet_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(**inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        return peak_of_trace(json.loads(path.read_text(encoding="utf-8")))


def peak_of_trace(trace: Mapping[str, Any]) -> int:
    """The largest sum of bytes allocated and not yet freed, over the events of a profiler's trace.

    What is freed without having been allocated in the trace counts as nothing.
    """
    changes = [
        (event["ts"], event["args"])
        for event in trace["traceEvents"]
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == _CPU
    ]
    sizes: dict[int, int] = {}
    held = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held -= sizes.pop(change["Addr"], 0)
        if change["Bytes"] > 0:
            held += change["Bytes"]
            sizes[change["Addr"]] = change["Bytes"]
            peak = max(peak, held)
    return peak
