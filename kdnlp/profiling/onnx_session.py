"""A model as an ONNX graph in ONNX Runtime, called as the model would be."""

import os
from collections.abc import Sequence

import numpy as np
import torch

from kdnlp.models.onnx_graph import OnnxModel, onnx_errors

_TOKEN_TYPES = "token_type_ids"


class OnnxSession:
    """A graph that is called with torch tensors by name, as the model would be.

    It runs on the CPU with as many threads as torch. Inputs that the graph does not read are left
    out; token types that it reads and is not given are 0, as the models have it.

    Args:
        path: the `.onnx` file; its weights may lie beside it.

    Raises:
        ValueError: as `OnnxModel`, if the file cannot be run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._graph = OnnxModel(path, threads=torch.get_num_threads())

    def __call__(self, **inputs: torch.Tensor) -> Sequence[np.ndarray]:
        """All outputs of the graph, in its order.

        Raises:
            RuntimeError: if the graph reads what is not there, or takes no input of this shape.
        """
        given = {_TOKEN_TYPES: torch.zeros_like(inputs["input_ids"]), **inputs}
        absent = sorted(set(self._graph.inputs) - set(given))
        if absent:
            raise RuntimeError(f"the graph reads {', '.join(absent)}, which the model is not given")
        try:
            return list(self._graph(given).values())
        except onnx_errors() as error:
            raise RuntimeError(f"the graph takes no such input: {error}") from error
