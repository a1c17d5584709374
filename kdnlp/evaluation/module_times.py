"""Where the models of a report spend a forward pass, if there is time to look."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from kdnlp.profiling.forward import example_inputs
from kdnlp.profiling.latency import LatencyRow
from kdnlp.profiling.module_time import measure_module_time
from kdnlp.profiling.placed import placed

LEAST_SECONDS = 2.0
"""A budget under this is for the latencies alone: starting the profiler takes time too."""

ModuleTimes = dict[str, dict[str, float]]


def measure_module_times(
    models: Mapping[str, PreTrainedModel],
    rows: Sequence[LatencyRow],
    sequence_length: int,
    device: torch.device | str | None = None,
    max_seconds: float | None = None,
) -> tuple[ModuleTimes, dict[str, str]]:
    """Split the median latency of each model, at its first batch size, by part of the model.

    Args:
        models: by name. They are left as they were.
        rows: their latencies.
        sequence_length: tokens per example.
        device: where to run; `None` is where the first model lies.
        max_seconds: the budget of the latencies; `None` is any.

    Returns:
        By model, the milliseconds of its parts; and under `module times` why there are none.
    """
    if max_seconds is not None and max_seconds < LEAST_SECONDS:
        return {}, _absent(
            f"measuring was given {max_seconds:g} s, and they need {LEAST_SECONDS:g}"
        )
    if any(_is_compiled(model) for model in models.values()):
        return {}, _absent("inside compiled blocks nothing says which part an operation is of")
    target = torch.device(device) if device is not None else next(iter(models.values())).device
    times = {}
    for name, model in models.items():
        first = next(row for row in rows if row.model == name)
        with placed(model, target) as here:
            inputs = example_inputs(here, first.batch_size, sequence_length)
            times[name] = measure_module_time(here, inputs, first.p50_ms).parts
    return times, {}


def _absent(reason: str) -> dict[str, str]:
    return {"module times": reason}


def _is_compiled(model: PreTrainedModel) -> bool:
    return any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())
