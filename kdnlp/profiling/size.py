"""How many parameters a model has, and how many megabytes its weights take."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

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
    return sum(t.numel() * t.element_size() for t in tensors.values()) / BYTES_PER_MB


def disk_size_mb(folder: str | os.PathLike[str]) -> float:
    """Size of a saved model's weights on disk, in MB of 10^6 bytes.

    Args:
        folder: where `save_pretrained` wrote the model, in one `model.safetensors` or in shards.
            Tokenizer, optimizer and checkpoints in folders below are not counted.

    Raises:
        FileNotFoundError: if the folder holds no such file.
    """
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"Expected model.safetensors, or its shards, in {os.fspath(folder)}, found neither. "
            "A size of 0 MB would make the compression look boundless. Save the model there first "
            "with model.save_pretrained(folder)."
        )
    return sum(file.stat().st_size for file in files) / BYTES_PER_MB
