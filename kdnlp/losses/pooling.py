"""One embedding per example, and what the losses on embeddings share."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from transformers import PretrainedConfig

from kdnlp.losses.base import ENCODED_TASKS, DistillationLoss, Layers, Outputs
from kdnlp.losses.block_choice import choose_layer
from kdnlp.losses.vectors import full_precision

Pooling = Literal["first", "last", "mean"]


def pool(hidden_states: torch.Tensor, mask: torch.Tensor | None, pooling: Pooling) -> torch.Tensor:
    """The first, the last or the mean of an example's attended positions.

    Args:
        hidden_states: shape (batch, length, width).
        mask: the attention mask, shape (batch, length); `None` counts all tokens. Padding may
            stand on either side.
        pooling: `"first"`, `"last"` or `"mean"`.

    Returns:
        Shape (batch, width). An example without attended positions gives its first or last one,
        or zeros.

    Raises:
        ValueError: if the shapes do not fit.
    """
    batch, length, _ = hidden_states.shape
    if mask is None:
        mask = hidden_states.new_ones(batch, length)
    if mask.shape != (batch, length):
        raise ValueError(
            f"The attention mask must have the shape {(batch, length)} of the hidden states' "
            f"positions, got {tuple(mask.shape)}. Padding would count as text."
        )
    mask = mask != 0
    if pooling == "mean":
        total = torch.where(mask[..., None], hidden_states, torch.zeros_like(hidden_states)).sum(1)
        return total / mask.sum(1, keepdim=True).clamp_min(1)
    # The first of several maxima is the one that argmax gives.
    if pooling == "first":
        position = mask.long().argmax(1)
    else:
        position = length - 1 - mask.long().flip(1).argmax(1)
    return hidden_states[torch.arange(batch, device=position.device), position]


class EmbeddingLoss(DistillationLoss):
    """A comparison of the two models' embeddings of a batch of examples.

    Reads `hidden_states`, shape (batch, length, width), of one layer of each model, and pools
    their positions to one embedding per example; of multiple choice, per choice. The output of the
    last block is taken before any final normalisation. A subclass implements `compare`.

    Args:
        pooling: `"first"`, the first attended token, which is [CLS] in BERT-like encoders;
            `"last"`; or `"mean"`. `None` is the first, and for causal language models the last.
            Name it for a classifier on a decoder, whose first token sees nothing but itself.
        student_layer: 0 for the embeddings, or a block from 1 on; `None` is the last block.
        teacher_layer: the same, of the teacher.

    Raises:
        ValueError: for another pooling, or, before training, for a layer that a model does not
            have, a task with two stacks, or the first token of a causal language model.
    """

    needs = frozenset({"hidden_states"})
    tasks = ENCODED_TASKS
    unit = "rows"

    def __init__(
        self,
        pooling: Pooling | None = None,
        student_layer: int | None = None,
        teacher_layer: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in (None, *get_args(Pooling)):
            raise ValueError(
                f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}. It says "
                "which positions make an example's embedding."
            )
        self.pooling = pooling
        self.student_layer, self.teacher_layer = student_layer, teacher_layer
        self.chosen_layers: tuple[int, int] | None = None

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Choose the layers; see the class for what is refused."""
        super().prepare(student, teacher, task)
        assert teacher is not None
        if self.pooling == "first" and task == "causal_lm":
            raise ValueError(
                f"{type(self).__name__} got pooling='first' for a causal language model, whose "
                "first token sees nothing but itself: examples that start alike would all have "
                "one embedding. Use pooling='last' or 'mean'."
            )
        self.chosen_layers = (
            choose_layer(student, self.student_layer, "student_layer", lowest=0),
            choose_layer(teacher, self.teacher_layer, "teacher_layer", lowest=0),
        )

    def layers(self) -> dict[str, Layers]:
        """The one layer of each model that is pooled."""
        assert self.chosen_layers is not None, "prepare chooses the layers"
        student, teacher = self.chosen_layers
        return {"hidden_states": ([student], [teacher])}

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        assert self.chosen_layers is not None, "prepare chooses the layers"
        pooling = self.pooling or ("last" if self.task == "causal_lm" else "first")
        states = (
            outputs["hidden_states"][layer]
            for outputs, layer in zip((student, teacher), self.chosen_layers, strict=True)
        )
        ours, theirs = (pool(x, batch.get("attention_mask"), pooling) for x in states)
        with torch.autocast(ours.device.type, enabled=False):
            return self.compare(full_precision(ours), full_precision(theirs))

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The loss of two tensors of embeddings, (batch, width) each, a scalar."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The pooling and the two layers."""
        return {
            "pooling": self.pooling,
            "student_layer": self.student_layer,
            "teacher_layer": self.teacher_layer,
        }
