"""Int8 versions of a model: of its ONNX graph, and of the model of transformers itself."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdnlp.loading import load_model

_BIG_BYTES = 1_900_000_000  # a file of ONNX may hold 2 GiB


def quantize_onnx(source: Path, target: Path) -> None:
    """Give a float32 graph int8 weights; activations are quantized call by call (dynamically).

    Matrix products and embeddings are quantized, each column of a weight by a scale of its own.
    Weights take 7 of the 8 bits: on processors without VNNI a sum of full products overflows,
    and whoever runs the graph may have another processor than the one it was checked on.

    Args:
        source: what `kdnlp.models.onnx_graph.export_onnx` wrote.
        target: the file to write.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    size = sum(path.stat().st_size for path in source.parent.glob(f"{source.name}*"))
    with _without_advice():
        quantize_dynamic(
            os.fspath(source),
            os.fspath(target),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=size > _BIG_BYTES,
        )


def require_torchao() -> None:
    """Raise `ImportError` unless torchao is there."""
    if find_spec("torchao") is None:
        raise ImportError(
            "format=pytorch-int8 needs torchao, which keeps int8 weights in safetensors, got none. "
            "torch's own quantization would leave a pickle. Install it: pip install 'kdnlp[int8]'."
        )


def load_int8(auto_class: Any, folder: Path) -> PreTrainedModel:
    """Load a plain folder with int8 weights in its linear maps, by torchao.

    A weight has a scale for each output and is multiplied in float32. Integer products
    (`Int8DynamicActivationInt8WeightConfig`) are many times slower than float32 on processors
    without VNNI, where this costs next to nothing; memory and file shrink alike.
    """
    require_torchao()
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    model, _ = load_model(
        auto_class, os.fspath(folder), quantization_config=config, dtype=torch.float32
    )
    quantized: PreTrainedModel = model.eval()
    return quantized


@contextmanager
def _without_advice() -> Iterator[None]:
    """Leave out the advice, to the root logger, to process the graph first: the exporter has."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
