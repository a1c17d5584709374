"""How many parameters a model has, and how many megabytes its weights take."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

BYTES_PER_MB = 1_000_000


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, tied ones counted once.

    Attributes:
        total: all parameters, trainable or not.
        embeddings: the part that lies in `nn.Embedding` tables: tokens, positions, segments,
            relative position biases. An output layer tied to one of them belongs to it.
    """

    total: int
    embeddings: int

    @property
    def without_embeddings(self) -> int:
        """What compressing the layers can shrink; the number that papers often quote."""
        return self.total - self.embeddings


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters.

    Args:
        model: any module; nothing is run.

    Returns:
        The counts. Buffers are not parameters and are left out. Weights that quantization packed
        away from `parameters()` are invisible here; use the size in MB for such a model.
    """
    tables = {
        id(module.weight): module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    }
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCount(total=total, embeddings=sum(tables.values()))


def weights_size_mb(model: nn.Module) -> float:
    """Size of a model's weights in memory, in MB of 10^6 bytes, each in its own dtype.

    Counts what a checkpoint would hold, which is parameters and persistent buffers, and tied
    tensors once. The saved file is larger by its header, some tens of kB.
    """
    tensors = {
        id(tensor): tensor
        for tensor in model.state_dict(keep_vars=True).values()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(map(num_bytes, tensors.values())) / BYTES_PER_MB


def num_bytes(tensor: torch.Tensor) -> int:
    """What a tensor takes in memory; of a quantized one, its integers and their scales."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    parts, _ = flatten()
    return sum(num_bytes(getattr(tensor, part)) for part in parts)


def disk_size_mb(folder: str | os.PathLike[str]) -> float:
    """Size of a saved model's weights on disk, in MB of 10^6 bytes.

    Args:
        folder: where `save_pretrained` wrote the model, in one `model.safetensors` or in shards.
            What transformers would load is counted: no shards of another save, no tokenizer or
            optimizer, and no checkpoints in folders below.

    Raises:
        FileNotFoundError: if the folder holds no such file.
    """
    files = _weight_files(Path(folder))
    if not files:
        raise FileNotFoundError(
            f"Expected model.safetensors, or its shards, in {os.fspath(folder)}, found neither. "
            "A size of 0 MB would make the compression look boundless. Save the model there first "
            "with model.save_pretrained(folder)."
        )
    return sum(file.stat().st_size for file in files) / BYTES_PER_MB


def _weight_files(folder: Path) -> list[Path]:
    """What `from_pretrained` reads of a folder: the one file, or the shards of its index."""
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(shards))]
