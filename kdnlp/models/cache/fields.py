"""Teacher outputs as arrays of rows: which axes are tokens, what is stored of them, and how."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdnlp.models.alignment import split_inputs
from kdnlp.models.cache.numbers import STORED_TYPES, index_type, top_k_logits
from kdnlp.models.heads import IGNORED_LABEL

TOKEN_AXES: dict[str, tuple[int, ...]] = {
    "logits": (1,),
    "start_logits": (1,),
    "end_logits": (1,),
    "hidden_states": (1,),
    "queries": (1,),
    "keys": (1,),
    "values": (1,),
    "attentions": (2, 3),
    "scores": (2, 3),
}
"""The axes of a field that count tokens. Logits of two dimensions, (batch, labels), have none."""

TOKENS, LABELS = "attention_mask", "labels"
"""What a field's tokens are: those that the teacher attends to, or those with a label."""

INDICES = "logits_indices"


@dataclass(frozen=True)
class Field:
    """One stored array, of one tensor of the teacher's outputs.

    Attributes:
        name: the field, with its layer after a dot: `logits`, `hidden_states.3`.
        axes: how many of its axes count tokens: 0, 1, or 2 for attentions.
        mask: which tokens those are, `TOKENS` or `LABELS`.
        shape: what is left of the tensor's shape without the batch and the tokens.
        dtype: of the numbers, a name in `STORED_TYPES`.
    """

    name: str
    axes: int
    mask: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def token_axes(self) -> tuple[int, ...]:
        """Where the axes are in the tensor."""
        return TOKEN_AXES["logits" if self.name == INDICES else base_name(self.name)][: self.axes]

    @property
    def unit_bytes(self) -> int:
        """Bytes per row, token, or two tokens of one row."""
        return math.prod(self.shape) * np.dtype(STORED_TYPES[self.dtype]).itemsize


def split_outputs(outputs: Mapping[str, Any], top_k: int | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of a teacher's outputs by the name of its stored array.

    Args:
        outputs: tensors for logits, and for the other fields mappings from layer to tensor.
        top_k: keep so many logits; see `top_k_logits`.

    Raises:
        ValueError: for an unknown field, or layers without numbers.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in outputs.items():
        is_logits = name.endswith("logits")
        if name not in TOKEN_AXES or isinstance(value, torch.Tensor) != is_logits:
            raise ValueError(
                f"Expected logits as tensors and {', '.join(_layered())} as mappings from layer to "
                f"tensor, got {name!r}: {type(value).__name__}. It would be unknown which axes "
                "are tokens, or which layer is which."
            )
        parts = {name: value} if is_logits else {f"{name}.{i}": x for i, x in value.items()}
        tensors.update(parts)
    if top_k is not None and "logits" in tensors:
        tensors["logits"], tensors[INDICES] = top_k_logits(tensors["logits"], top_k)
    return tensors


def join_outputs(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The outputs that `split_outputs` took apart."""
    outputs: dict[str, Any] = {}
    for name, tensor in tensors.items():
        base, _, layer = name.partition(".")
        if layer:
            outputs.setdefault(base, {})[int(layer)] = tensor
        else:
            outputs[base] = tensor
    return outputs


def base_name(name: str) -> str:
    """The field of a stored array, without its layer."""
    return name.partition(".")[0]


def describe(
    tensors: Mapping[str, torch.Tensor], labels: int, dtype: str, logits_mask: str
) -> tuple[Field, ...]:
    """How each tensor will be stored.

    Args:
        tensors: of a probe batch, by the name of its array.
        labels: how many there are, for the type of their indices.
        dtype: of the numbers.
        logits_mask: which tokens the logits are of.

    Raises:
        ValueError: for a tensor of other dimensions than its field has.
    """
    fields = []
    for name, tensor in tensors.items():
        base = "logits" if name == INDICES else base_name(name)
        axes = () if base == "logits" and tensor.dim() == 2 else TOKEN_AXES[base]
        if tensor.dim() <= max(axes, default=1) or (base == "logits" and tensor.dim() > 3):
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}; expected (batch, labels) or (batch, "
                "length, labels) for logits, (batch, length, width) for one layer of the other "
                "fields and (batch, heads, length, length) for attentions. Other axes would be "
                "taken for tokens."
            )
        shape = tuple(n for i, n in enumerate(tensor.shape) if i and i not in axes)
        mask = logits_mask if base == "logits" else TOKENS
        stored = dtype if name != INDICES else index_type(labels)
        fields.append(Field(name, len(axes), mask, shape, stored))
    return tuple(fields)


def batch_masks(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Which tokens of a batch count, by kind of mask: booleans, shape (batch, length).

    Those are the teacher's, where it has inputs of its own. With several choices a row the shape
    is (batch, choices, length).
    """
    ours, theirs = split_inputs(batch)
    inputs = theirs if "input_ids" in theirs else {**ours, **theirs}
    attended = inputs.get("attention_mask")
    if attended is None:
        attended = torch.ones_like(inputs["input_ids"])
    masks = {TOKENS: attended.bool()}
    if "labels" in ours:
        masks[LABELS] = ours["labels"] != IGNORED_LABEL
    return masks


def pack(tensor: torch.Tensor, field: Field, masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A batch without its padding, row after row: shape (units, *field.shape).

    Raises:
        ValueError: if the tensor's rows or tokens are not those of the mask.
    """
    mask = masks[field.mask]
    rows = len(mask) if not field.axes else mask.shape[:-1].numel()
    lengths = {tensor.size(axis) for axis in field.token_axes}
    # Of a row's choices the tokens follow each other; every two of them do not.
    dimensions = {0: (1, 2, 3), 1: (2, 3), 2: (2,)}[field.axes]
    if tensor.size(0) != rows or lengths - {mask.size(-1)} or mask.dim() not in dimensions:
        raise ValueError(
            f"{field.name} has the shape {tuple(tensor.shape)}, and the batch's {field.mask} "
            f"{tuple(mask.shape)}. It would be unknown which rows and tokens (axes "
            f"{field.token_axes}) the outputs are of. Cache the outputs of a model that gives one "
            f"a row or token; for the logits of a decoder pass logits_mask={LABELS!r}."
        )
    if not field.axes:
        return tensor
    moved = tensor.movedim(field.token_axes, tuple(range(1, field.axes + 1)))
    return moved[_counted(mask, field).to(tensor.device)]


def unpack(
    flat: np.ndarray, field: Field, masks: Mapping[str, torch.Tensor], labels: int = 0
) -> torch.Tensor:
    """The batch that `pack` took the padding out of, with zeros in its place.

    Args:
        flat: float32, or indices as integers; shape (units, *field.shape).
        field: what it is of.
        masks: of the batch.
        labels: of top-k logits: padding gets a rest that is all zeros in the dense form.
    """
    if not field.axes:
        return torch.from_numpy(flat)
    counted = _counted(masks[field.mask], field).numpy()
    batch = np.zeros((*counted.shape, *field.shape), flat.dtype)
    if labels and field.name == "logits":
        batch[..., -1] = math.log(labels - field.shape[-1] + 1)
    batch[counted] = flat
    return torch.from_numpy(np.moveaxis(batch, range(1, field.axes + 1), field.token_axes))


def _counted(mask: torch.Tensor, field: Field) -> torch.Tensor:
    """What is stored: of the tokens for one axis, of every two tokens of a row for two."""
    mask = mask.flatten(0, -2)
    return mask if field.axes == 1 else mask[:, :, None] & mask[:, None, :]


def _layered() -> list[str]:
    return [name for name in TOKEN_AXES if not name.endswith("logits")]
