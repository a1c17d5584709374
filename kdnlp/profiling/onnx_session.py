"""A model as an ONNX graph in ONNX Runtime, called as the model would be."""

import os
from collections.abc import Sequence

import numpy as np
import torch

_TOKEN_TYPES = "token_type_ids"


class OnnxSession:
    """A graph that is called with torch tensors by name, as the model would be.

    It runs on the CPU with as many threads as torch. Inputs that the graph does not read are left
    out; token types that it reads and is not given are 0, as the models have it.

    Args:
        path: the `.onnx` file; its weights may lie beside it.

    Raises:
        ValueError: if the file is no graph that ONNX Runtime can run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except _onnx_errors() as error:
            raise ValueError(
                f"Expected a graph that ONNX Runtime can run, got {os.fspath(path)}: {error}. "
                "Export the model again, or move the file away."
            ) from error
        self._inputs = [node.name for node in self._session.get_inputs()]

    def __call__(self, **inputs: torch.Tensor) -> Sequence[np.ndarray]:
        """All outputs of the graph, in its order.

        Raises:
            RuntimeError: if the graph reads what is not there, or takes no input of this shape.
        """
        given = {_TOKEN_TYPES: torch.zeros_like(inputs["input_ids"]), **inputs}
        absent = sorted(set(self._inputs) - set(given))
        if absent:
            raise RuntimeError(f"the graph reads {', '.join(absent)}, which the model is not given")
        feed = {name: given[name].numpy() for name in self._inputs}
        try:
            outputs: Sequence[np.ndarray] = self._session.run(None, feed)
        except _onnx_errors() as error:
            raise RuntimeError(f"the graph takes no such input: {error}") from error
        return outputs


def _onnx_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for graphs and inputs; its errors have no class in common."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf
