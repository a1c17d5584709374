"""A model of transformers whose weights are int8."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdnlp.loading import load_model


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
    without VNNI, where this costs a tenth or two; memory and file shrink alike, the linear maps to
    a quarter. Embeddings stay as they are.
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
