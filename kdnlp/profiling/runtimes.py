"""One model in several runtimes side by side: eager, SDPA, compiled, ONNX Runtime, also in int8."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdnlp.models.modes import evaluating
from kdnlp.models.onnx_graph import export_onnx, quantize_onnx, require_onnx
from kdnlp.profiling.forward import example_inputs
from kdnlp.profiling.latency import LatencyRow, latency_row
from kdnlp.profiling.onnx_session import OnnxSession
from kdnlp.profiling.placed import sharing_copy
from kdnlp.profiling.rounds import check_rounds, time_rounds
from kdnlp.profiling.speedup import Speedup, measure_speedup

_COMPILERS = ("g++", "clang++", "cl")


class RuntimeMissingError(Exception):
    """A runtime that cannot run the model here, with the reason."""


@dataclass(frozen=True)
class RuntimeRow:
    """One model in one runtime, at one batch size and length.

    Attributes:
        model: its name.
        runtime: one of `RUNTIMES`.
        latency: its time; `None` where the runtime could not run it.
        speedup: over the first runtime that ran, round by round; `None` for that one.
        max_difference: the largest distance of a logit, or of a number of the first output, from
            that of the first runtime that ran; `None` for that one, NaN where a number is not
            finite.
        missing: why it could not run, or `None`.
    """

    model: str
    runtime: str
    latency: LatencyRow | None
    speedup: Speedup | None = None
    max_difference: float | None = None
    missing: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RuntimeRow":
        """The row that `dataclasses.asdict` described."""
        latency, speedup = values["latency"], values["speedup"]
        difference = values["max_difference"]
        if speedup is not None and difference is None:
            difference = math.nan  # which JSON has no word for
        return cls(
            **{
                **values,
                "latency": None if latency is None else LatencyRow.from_dict(latency),
                "speedup": None if speedup is None else Speedup(**speedup),
                "max_difference": difference,
            }
        )


@dataclass(frozen=True)
class _Source:
    """What a runtime is made from.

    Attributes:
        model: on the CPU or a GPU, in eval mode.
        folder: for what is written on the way; gone afterwards.
        graph: an ONNX file of the model, or `None`: then one is written into `folder`.
        one_shape: whether all passes have the same shape.
    """

    model: PreTrainedModel
    folder: Path
    graph: Path | None
    one_shape: bool


_Call = Callable[..., Any]


def compare_runtimes(
    model: PreTrainedModel,
    runtimes: Sequence[str],
    name: str = "model",
    batch_sizes: Sequence[int] = (1, 8, 32),
    lengths: Sequence[int] = (32, 128),
    num_warmup: int = 3,
    num_repeats: int = 30,
    max_seconds: float | None = 120.0,
    graph: str | os.PathLike[str] | None = None,
) -> list[RuntimeRow]:
    """Time one model in several runtimes that take turns, on the model's device.

    Args:
        model: it is left as it was; what needs another attention runs on a copy that shares its
            weights.
        runtimes: names of `RUNTIMES`, the reference first.
        name: what the model is called.
        batch_sizes: examples per batch.
        lengths: tokens per example, none of them padding; each with every batch size.
        num_warmup: rounds a cell before the clock counts; compiling happens in the first.
        num_repeats: timed rounds a cell.
        max_seconds: a budget for the rounds, shared evenly by the cells; exporting, quantizing and
            compiling come on top.
        graph: an ONNX file of the model. Without it one is written to a temporary folder.

    Returns:
        A row per length, batch size and runtime; then one for each runtime that is missing here.

    Raises:
        ValueError: if a runtime is unknown, there is nothing to measure, or a number is too small.
        FileNotFoundError: if there is no `graph` under its path.
    """
    check_runtimes(runtimes)
    check_rounds({name: model}, batch_sizes, num_warmup, num_repeats)
    if graph is not None and not Path(graph).is_file():
        raise FileNotFoundError(f"Expected an ONNX graph, got {os.fspath(graph)}: no such file.")
    cells = [(size, length) for length in lengths for size in batch_sizes]
    seconds = None if max_seconds is None else max_seconds / len(cells)
    rows: list[RuntimeRow] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        evaluating(model),
        torch.inference_mode(),
    ):
        path = None if graph is None else Path(graph)
        source = _Source(model, Path(folder), path, len(cells) == 1)
        calls, missing = _build(runtimes, source)
        for size, length in cells:
            inputs = example_inputs(model, size, length)
            outputs = _first_calls(calls, inputs, missing)
            if calls:
                fed = dict.fromkeys(calls, inputs)
                times = time_rounds(calls, fed, model.device, num_warmup, num_repeats, seconds)
                rows += _rows(name, (size, length), times, outputs)
    return rows + [RuntimeRow(name, r, None, missing=why) for r, why in missing.items()]


def check_runtimes(runtimes: Sequence[str]) -> None:
    """Raise `ValueError` if one is not in `RUNTIMES`, or there is none."""
    unknown = [runtime for runtime in runtimes if runtime not in RUNTIMES]
    if unknown or not runtimes:
        raise ValueError(
            f"Expected runtimes out of {', '.join(RUNTIMES)}, got {', '.join(unknown) or 'none'}."
        )


def _build(runtimes: Sequence[str], source: _Source) -> tuple[dict[str, _Call], dict[str, str]]:
    """What can be called, by runtime, and why others cannot."""
    built = {runtime: _built(runtime, source) for runtime in runtimes}
    calls = {runtime: call for runtime, call in built.items() if not isinstance(call, str)}
    return calls, {runtime: why for runtime, why in built.items() if isinstance(why, str)}


def _built(runtime: str, source: _Source) -> _Call | str:
    try:
        return RUNTIMES[runtime](source)
    except RuntimeMissingError as error:
        return str(error)


def _first_calls(
    calls: dict[str, _Call], inputs: dict[str, torch.Tensor], missing: dict[str, str]
) -> dict[str, np.ndarray]:
    """The first output of every runtime; one that fails is taken out and its reason noted.

    Compiling happens in a first call, and fails there.
    """
    called = {runtime: _called(runtime, call, inputs) for runtime, call in calls.items()}
    for runtime, result in called.items():
        if isinstance(result, str):
            del calls[runtime]
            missing[runtime] = result
    return {runtime: out for runtime, out in called.items() if not isinstance(out, str)}


def _called(runtime: str, call: _Call, inputs: dict[str, torch.Tensor]) -> np.ndarray | str:
    try:
        return _first_output(call(**inputs))
    except RuntimeError as error:
        if runtime in ("eager", "sdpa"):
            raise
        return f"failed: {_first_line(error)}"


def _rows(
    name: str,
    cell: tuple[int, int],
    times: Mapping[str, Sequence[float]],
    outputs: Mapping[str, np.ndarray],
) -> list[RuntimeRow]:
    rows: list[RuntimeRow] = []
    reference = next(iter(times))
    for runtime, milliseconds in times.items():
        compared = runtime != reference
        with np.errstate(invalid="ignore"):  # of two infinities
            distance = float(np.abs(outputs[runtime] - outputs[reference]).max())
        rows.append(
            RuntimeRow(
                model=name,
                runtime=runtime,
                latency=latency_row(name, *cell, milliseconds),
                speedup=measure_speedup(times[reference], milliseconds) if compared else None,
                max_difference=distance if compared else None,
            )
        )
    return rows


def _first_output(outputs: Any) -> np.ndarray:
    """The logits, or what comes first; a sequence of arrays is ONNX Runtime's."""
    first = outputs[0]
    return np.asarray(first.float().cpu() if isinstance(first, torch.Tensor) else first, float)


def _with_attention(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """A copy that shares the weights, with another attention implementation."""
    other = sharing_copy(model)
    try:
        other.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise RuntimeMissingError(_first_line(error)) from error
    if other.config._attn_implementation != attention:
        raise RuntimeMissingError(f"{type(model).__name__} has no {attention} attention")
    return other


def _eager(source: _Source) -> _Call:
    return _with_attention(source.model, "eager")


def _sdpa(source: _Source) -> _Call:
    return _with_attention(source.model, "sdpa")


def _compiled(source: _Source) -> _Call:
    """Torch's compiler over the model as it is: a program for the shape, or one for all shapes."""
    if source.model.device.type == "cpu" and not any(map(shutil.which, _COMPILERS)):
        raise RuntimeMissingError("torch.compile needs a C++ compiler on a CPU, found none")
    if source.model.device.type == "cuda" and find_spec("triton") is None:
        raise RuntimeMissingError("torch.compile needs triton on a GPU; pip install triton")
    # A copy, for the compiler keeps what it made on the module.
    return torch.compile(sharing_copy(source.model), dynamic=not source.one_shape)


def _onnx(source: _Source) -> _Call:
    return OnnxSession(_graph(source))


def _onnx_int8(source: _Source) -> _Call:
    target = source.folder / "int8.onnx"
    quantize_onnx(_graph(source), target)
    return OnnxSession(target)


RUNTIMES: dict[str, Callable[[_Source], _Call]] = {
    "eager": _eager,
    "sdpa": _sdpa,
    "compile": _compiled,
    "onnx": _onnx,
    "onnx-int8": _onnx_int8,
}
"""What makes a model into something to call, by the name of the runtime."""


def _graph(source: _Source) -> Path:
    """The model's ONNX file, written if need be, once."""
    try:
        require_onnx()
    except ImportError as error:
        raise RuntimeMissingError(_first_line(error)) from error
    if source.model.device.type != "cpu":
        raise RuntimeMissingError("ONNX Runtime is compared on a CPU only; pass --device cpu")
    if source.model.dtype != torch.float32:
        raise RuntimeMissingError(f"exported from float32 only, the model is {source.model.dtype}")
    if source.graph is not None:
        return source.graph
    written = source.folder / "model.onnx"
    if not written.is_file():
        try:
            with torch.inference_mode(False), torch.no_grad():
                export_onnx(source.model, written)
        except ValueError as error:
            raise RuntimeMissingError(_first_line(error)) from error
    return written


def _first_line(error: BaseException) -> str:
    """The reason in one line, without what a terminal would colour."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split("\x1b")[0].strip()
