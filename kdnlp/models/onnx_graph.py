"""A model as an ONNX graph, for any batch size and length, and that graph as a function."""

import copy
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from kdnlp.data.inputs import MODEL_INPUTS
from kdnlp.models.heads import SEQUENCE_TASKS, task_kind

DEFAULT_OPSET = 18
"""The set of operators that torch's exporter writes by itself, and the lowest that it can."""

ONNX_FILE = "model.onnx"
"""The name by which optimum finds the graph in a folder."""

EXPORTABLE = (*SEQUENCE_TASKS, "token_classification", "question_answering", "masked_lm")
"""The kinds of task whose graphs take token ids alone and give logits alone."""

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""What writes and runs a graph."""

_ONE_FILE_BYTES = 1_900_000_000  # a file of ONNX may hold 2 GiB


def require_onnx() -> None:
    """Raise `ImportError` unless the packages of the extra `onnx` are there."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX needs {', '.join(ONNX_PACKAGES)}, got no {', '.join(missing)}. No graph can be "
            "written or run without them. Install them: pip install 'kdnlp[onnx]'."
        )


def export_onnx(
    model: PreTrainedModel,
    path: str | os.PathLike[str],
    opset: int = DEFAULT_OPSET,
    inputs: Sequence[str] | None = None,
) -> Path:
    """Write a model as an ONNX graph in float32 whose batch size and length are free.

    The file says nothing of where it was made: what the exporter notes at each operation, down to
    the lines of code on this machine, is left out.

    Args:
        model: has a head out of `EXPORTABLE`; nothing about it is changed.
        path: the file. Weights of more than ONNX's 2 GB go to a file beside it.
        opset: the version of ONNX's set of operators, from `DEFAULT_OPSET` on.
        inputs: what the graph reads, as the tokenizer calls it, in int64 of shape (batch, length);
            `None` is `input_ids`, `attention_mask`, and `token_type_ids` where the model tells
            them apart. It gives `logits`, or `start_logits` and `end_logits`.

    Returns:
        The path.

    Raises:
        ImportError: if the packages of the extra `onnx` are missing.
        ValueError: if the model has no such head, or torch cannot trace it for all lengths.
    """
    require_onnx()
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    check_exportable(model)
    if opset < DEFAULT_OPSET:
        raise ValueError(
            f"opset must be at least {DEFAULT_OPSET}, got {opset}. torch's exporter has no older "
            f"operators and would write {DEFAULT_OPSET} all the same. Leave it out."
        )
    function = _Logits(model, list(inputs or _default_inputs(model)))
    program = _trace(function, _example(model, function.inputs), opset)
    written = program.model.opset_imports.get("")
    if written != opset:
        raise ValueError(
            f"opset {opset} cannot be written: the graph of {type(model).__name__} came out in "
            f"{written}. A runtime that was chosen by its opset might not read it. Choose "
            f"{DEFAULT_OPSET}, which every graph has."
        )
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    ClearMetadataAndDocStringPass()(program.model)
    program.save(path, external_data=size > _ONE_FILE_BYTES)
    return Path(path)


def quantize_onnx(source: Path, target: Path) -> None:
    """Give a float32 graph int8 weights; activations are quantized call by call (dynamically).

    Matrix products and embeddings are quantized, each column of a weight by a scale of its own.
    Weights take 7 of the 8 bits: on processors without VNNI a sum of full products overflows,
    and whoever runs the graph may have another processor than the one it was checked on.

    Args:
        source: what `export_onnx` wrote.
        target: the file to write.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    size = sum(path.stat().st_size for path in source.parent.glob(f"{source.name}*"))
    with _quiet():
        quantize_dynamic(
            os.fspath(source),
            os.fspath(target),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=size > _ONE_FILE_BYTES,
        )


def check_exportable(model: PreTrainedModel) -> None:
    """Raise `ValueError` if a graph of token ids and logits cannot stand for the model."""
    kind, name = task_kind(model), type(model).__name__
    forward = inspect.signature(model.forward).parameters
    reason = None
    if kind not in EXPORTABLE:
        reason = f"it is a model for {kind}, which reads or keeps more than that between calls"
    elif "decoder_input_ids" in forward:
        reason = "its decoder reads a second text, which it makes of the first outside of a graph"
    elif model.base_model is model:
        reason = "this one has no head"
    if reason is not None:
        raise ValueError(
            f"{name} cannot be exported: expected a model from token ids to logits, and {reason}. "
            f"Export a model for one of {', '.join(EXPORTABLE)}."
        )


class OnnxModel:
    """A graph that `export_onnx` wrote, run by ONNX Runtime on the CPU.

    Args:
        path: the file.
        threads: of one operation; `None` leaves it to the runtime.

    Raises:
        ImportError: if the packages of the extra `onnx` are missing.
        ValueError: if ONNX Runtime cannot run the file.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except onnx_errors() as error:
            raise ValueError(
                f"Expected a graph that ONNX Runtime can run, got {os.fspath(path)}: {error}. "
                "Export the model again, or move the file away."
            ) from error
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Logits by name, for what the tokenizer made, each of shape (batch, length)."""
        missing = [name for name in self.inputs if name not in batch]
        if missing:
            raise ValueError(
                f"The graph reads {', '.join(self.inputs)}, got {', '.join(batch)}. Without "
                f"{', '.join(missing)} there is nothing to compute. Tokenise with the tokenizer "
                "that lies beside the graph."
            )
        feed = {name: np.asarray(batch[name], np.int64) for name in self.inputs}
        return dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))


def onnx_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for graphs and inputs; its errors have no class in common."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf


def logits_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What the model's outputs call its logits."""
    if task_kind(model) == "question_answering":
        return ("start_logits", "end_logits")
    return ("logits",)


class _Logits(nn.Module):
    """A copy of a model as a function of tensors in a row, in float32, on the CPU, in eval mode."""

    def __init__(self, model: PreTrainedModel, inputs: list[str]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu().eval()
        self.model.config.use_cache = False  # else the graph would give keys and values too
        self.inputs, self.outputs = inputs, logits_names(model)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, values, strict=True)), return_dict=True)
        return tuple(found[name] for name in self.outputs)


def _trace(function: _Logits, example: tuple[torch.Tensor, ...], opset: int) -> Any:
    axes = {0: "batch", 1: "length"}
    try:
        with _quiet(), torch.no_grad():
            return torch.onnx.export(
                function,
                example,
                dynamo=True,
                dynamic_shapes={"values": tuple(axes for _ in example)},
                input_names=function.inputs,
                output_names=list(function.outputs),
                opset_version=opset,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ValueError(
            f"{type(function.model).__name__} cannot be exported: torch's exporter finds no one "
            f"graph for every batch size and length ({error.__cause__ or error}). A graph for one "
            "length would be wrong for others. Export it as safetensors."
        ) from error


def _default_inputs(model: PreTrainedModel) -> list[str]:
    accepted = inspect.signature(model.forward).parameters
    several_types = (getattr(model.config, "type_vocab_size", 0) or 0) > 1
    return [n for n in MODEL_INPUTS if n in accepted and (n != "token_type_ids" or several_types)]


def _example(model: PreTrainedModel, inputs: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Three rows of eleven tokens, one of them padded: no size is 1, which would be kept fixed."""
    ids = torch.arange(33).reshape(3, 11) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids[mask == 0] = model.config.pad_token_id or 0
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(values[name] for name in inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporter and quantizer say of themselves: deprecations, advice, packages.

    The quantizer gives its advice to the root logger.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", None)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
