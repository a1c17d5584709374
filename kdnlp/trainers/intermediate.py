"""The layers that losses read: kept from both models' forward passes while a run lasts."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kdnlp.losses import DistillationLoss
from kdnlp.models.capture import (
    ATTENTION_FIELDS,
    RECORDED_ATTENTION,
    Capture,
    combine_layers,
    show_attention,
)

_HALF = (torch.float16, torch.bfloat16)


class IntermediateOutputs:
    """Runs student and teacher so that their outputs hold the layers that the losses read.

    Where a loss reads attention, both models run with an attention function that shows it until
    `remove` puts their own back.

    Args:
        losses: whose `layers` are kept, and no others.
        student: the model that trains.
        teacher: its frozen partner; `None` without one.
        stack: `"encoder"` or `"decoder"`, for models that have both.
        cached: whether the teacher's layers come from disk, so that it has none to watch.

    Raises:
        ValueError: if a loss reads layers that a model does not have or show.
    """

    def __init__(
        self,
        losses: Iterable[DistillationLoss],
        student: PreTrainedModel,
        teacher: nn.Module | None,
        stack: str | None = None,
        cached: bool = False,
    ) -> None:
        losses = list(losses)
        taught = [loss for loss in losses if loss.needs_teacher and not cached]
        self._attention: list[tuple[PreTrainedModel, str]] = []
        self._student, self._teacher = Capture(student, {}), Capture(student, {})
        try:
            self._watch(losses, taught, student, teacher, stack)
        except BaseException:
            self.remove()
            raise

    def _watch(
        self,
        losses: list[DistillationLoss],
        taught: list[DistillationLoss],
        student: PreTrainedModel,
        teacher: nn.Module | None,
        stack: str | None,
    ) -> None:
        self._student = Capture(student, layers_read(losses, 0), stack)
        wanted = layers_read(taught, 1)
        if wanted and not isinstance(teacher, PreTrainedModel):
            raise ValueError(
                f"The losses read {', '.join(sorted(wanted))} of the teacher, and "
                f"{type(teacher).__name__} has no layers to read. Use losses on logits alone, or a "
                "single transformers model as the teacher."
            )
        self._teacher = Capture(teacher, wanted, stack)  # type: ignore[arg-type]
        if ATTENTION_FIELDS & {field for loss in losses for field in loss.needs}:
            self._show_attention(student)
            if isinstance(teacher, PreTrainedModel):
                self._show_attention(teacher)

    def of_student(self, call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """What `call` returns, and the student's layers that it ran through."""
        with self._student as kept:
            return call(), _in_float32(kept)

    def of_teacher(self, call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """What `call` returns, and the teacher's layers that it ran through."""
        with self._teacher as kept:
            return call(), _in_float32(kept)

    def remove(self) -> None:
        """Leave both models as they were."""
        self._student.remove()
        self._teacher.remove()
        for model, own in self._attention:
            model.set_attn_implementation(own)
        self._attention = []

    def _show_attention(self, model: PreTrainedModel) -> None:
        if model.config._attn_implementation != RECORDED_ATTENTION:
            self._attention.append((model, show_attention(model)))


def layers_read(losses: list[DistillationLoss], side: int) -> dict[str, set[int] | None]:
    """By field, the layers that the losses read on the student's side (0) or the teacher's (1)."""
    wishes = []
    for loss in losses:
        layers = loss.layers()
        fields = loss.needs - {"logits"}
        wishes.append({f: layers[f][side] if f in layers else None for f in fields})
    return combine_layers(wishes)


def _in_float32(kept: dict[str, Any]) -> dict[str, dict[int, torch.Tensor]]:
    for tensors in kept.values():
        for layer, tensor in tensors.items():
            tensors[layer] = tensor.float() if tensor.dtype in _HALF else tensor
    return kept
