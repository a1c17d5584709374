"""A model as an ONNX graph in ONNX Runtime, called as the model would be."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdnlp.profiling.forward import example_inputs
from kdnlp.profiling.placed import sharing_copy

EXAMPLE_BATCH, EXAMPLE_LENGTH = 2, 16
"""What the graph is traced on; an axis of size 1 would be taken for a constant."""

_TOKEN_TYPES = "token_type_ids"


class OnnxSession:
    """A graph that is called with torch tensors by name, as the model would be.

    It runs on the CPU with as many threads as torch. Inputs that the graph does not read are left
    out; token types that it reads and is not given are 0, as the models have it.

    Args:
        path: the `.onnx` file; its weights may lie beside it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [node.name for node in self._session.get_inputs()]

    def __call__(self, **inputs: torch.Tensor) -> Sequence[np.ndarray]:
        """All outputs of the graph, in its order.

        Raises:
            RuntimeError: if the graph reads what is not there.
        """
        given = {_TOKEN_TYPES: torch.zeros_like(inputs["input_ids"]), **inputs}
        absent = sorted(set(self._inputs) - set(given))
        if absent:
            raise RuntimeError(f"the graph reads {', '.join(absent)}, which the model is not given")
        feed = {name: given[name].numpy() for name in self._inputs}
        outputs: Sequence[np.ndarray] = self._session.run(None, feed)
        return outputs


def export_graph(model: PreTrainedModel, path: Path) -> None:
    """Write a model's forward pass as an ONNX graph, for any batch size and length.

    Args:
        model: on the CPU, in eval mode and float32.
        path: the file to write.

    Raises:
        RuntimeError: if torch cannot trace the model, or cannot express what it does in ONNX.
    """
    inputs = example_inputs(model, EXAMPLE_BATCH, EXAMPLE_LENGTH)
    any_size = torch.export.Dim.DYNAMIC
    without_cache = sharing_copy(model)
    without_cache.config.use_cache = False
    with _quietly():
        torch.onnx.export(
            without_cache,
            (),
            str(path),
            kwargs=inputs,
            input_names=list(inputs),
            dynamic_shapes={name: {0: any_size, 1: any_size} for name in inputs},
            dynamo=True,
            verbose=False,
        )


def quantize_graph(path: Path, target: Path) -> None:
    """Write a graph with its matrices in int8, and activations quantized as they come.

    Each column has a scale of its own. Weights take 7 of the 8 bits: on processors without VNNI
    instructions a sum of whole products would overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly():
        quantize_dynamic(
            path, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch and ONNX Runtime say about themselves on the way."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", None)]
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
