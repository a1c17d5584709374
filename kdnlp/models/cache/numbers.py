"""How numbers are stored: in 16 bits, or of many labels the largest and the mass of the rest."""

import math

import numpy as np
import torch

STORED_TYPES: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,  # its bits: numpy has no such type
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
}


def encode(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    """Numbers as they are stored.

    Raises:
        ValueError: if a finite number is too large for float16.
    """
    if dtype.startswith("uint"):
        return tensor.cpu().numpy().astype(STORED_TYPES[dtype])
    tensor = tensor.detach().float().cpu()
    if dtype == "float32":
        return np.ascontiguousarray(tensor.numpy())
    stored = tensor.to(getattr(torch, dtype)).contiguous()
    if (stored.isinf() & tensor.isfinite()).any():
        raise ValueError(
            f"A teacher output of {tensor[tensor.isfinite()].abs().max().item():.3g} is beyond "
            f"{dtype} and would be stored as infinite. Use dtype='bfloat16', or None for float32."
        )
    return stored.view(torch.int16).numpy().view(STORED_TYPES[dtype])


def decode(array: np.ndarray, dtype: str) -> np.ndarray:
    """Stored numbers as float32, or indices as int32."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.int32 if dtype.startswith("uint") else np.float32, copy=False)


def top_k_logits(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logits, `logsumexp` of the others behind them, and the labels that they are of.

    Args:
        logits: shape (..., labels).
        top_k: in [1, labels - 1].

    Returns:
        Shapes (..., top_k + 1) and (..., top_k), the largest first.
    """
    values, indices = logits.float().topk(top_k, dim=-1)
    others = logits.float().scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([values, others], dim=-1), indices


def dense_logits(kept: torch.Tensor, indices: torch.Tensor, labels: int) -> torch.Tensor:
    """Logits of every label, the others' mass spread evenly: the inverse of `top_k_logits`.

    Args:
        kept: shape (..., top_k + 1), the last one `logsumexp` of the labels that were left out.
        indices: shape (..., top_k).
        labels: how many there are.

    Returns:
        Shape (..., labels). Its softmax at temperature 1 gives the kept labels their exact
        probability.
    """
    top, others = kept[..., :-1], kept[..., -1:]
    even = others - math.log(labels - top.size(-1))
    return even.expand(*even.shape[:-1], labels).scatter(-1, indices.long(), top)


def index_type(labels: int) -> str:
    """The narrowest type that numbers every label."""
    return next(t for t in ("uint8", "uint16", "uint32") if labels - 1 <= np.iinfo(t).max)
