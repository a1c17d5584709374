"""What every distillation loss is."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PretrainedConfig

from kdnlp.models.heads import TASK_KINDS, UNITS

ALL_TASKS = frozenset(TASK_KINDS)
CHOICE_TASKS = ALL_TASKS - {"multi_label_classification", "regression"}
"""Tasks that choose one class an item: a softmax over the logits is a distribution."""
ENCODED_TASKS = ALL_TASKS - {"seq2seq_lm"}
"""Tasks of models with one stack of blocks, where "layer 3" is unambiguous."""

FIELDS = ("logits", "hidden_states", "attentions", "scores", "queries", "keys", "values")

Outputs = Mapping[str, Any]
Layers = tuple[Sequence[int], Sequence[int]]


class DistillationLoss(nn.Module):
    """A scalar that says how far the student's outputs are from the teacher's.

    A subclass is one file: a pure function of tensors, and a class that stores its settings and
    calls it. Parameters of its own (a projection between widths, say) train with the student and
    are left out of the exported model; it makes them in `prepare` at the latest.

    Attributes:
        needs: the fields of the models' outputs that `forward` reads, out of `FIELDS`.
        needs_teacher: `False` for a loss that reads the student and the labels alone.
        reads_probabilities: whether what it reads of the teacher's logits is their softmax, so that
            the largest ones and the mass of the others are enough.
        tasks: the kinds of task for which it makes sense, out of `TASK_KINDS`.
        unit: what it is a mean over, out of `UNITS`: examples (`"rows"`), predictions that count
            (`"items"`), or attended positions (`"tokens"`). The trainer weighs by it, so that the
            mean is that of the whole optimizer step.
        citation: BibTeX of the source, for the model card.
        temperature: set by the trainer before every step from the run's temperature schedule;
            a loss that has no temperature ignores it.
    """

    needs: frozenset[str] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = True
    reads_probabilities: ClassVar[bool] = False
    tasks: ClassVar[frozenset[str]] = ALL_TASKS
    unit: ClassVar[str] = UNITS[1]
    citation: ClassVar[str] = ""
    temperature: float = 1.0
    task: str = TASK_KINDS[0]

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Look at both models once, before training.

        Args:
            student: the student's configuration.
            teacher: the teacher's; `None` without one.
            task: the kind of task, out of `TASK_KINDS`.

        Raises:
            ValueError: if the loss cannot teach this student from this teacher.
        """
        if task not in self.tasks:
            raise ValueError(
                f"{type(self).__name__} teaches {', '.join(sorted(self.tasks))}, got a task of the "
                f"kind {task!r}. What it compares would mean nothing there; LogitsLoss knows every "
                "kind."
            )
        self.task = task

    def layers(self) -> dict[str, Layers]:
        """The student's and the teacher's layers that are read, by field of `needs` but logits.

        Layer i of the hidden states is the output of block i, counted from 1, and 0 the
        embeddings; layer i of any other field belongs to block i. The trainer keeps only what is
        asked for. A field that is left out is kept whole.
        """
        return {}

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch.

        Args:
            student: the student's outputs, with gradients. `logits` has the shape
                (*items, labels), see `kdnlp.models.heads.as_items`. Any other field is indexed by
                layer: `hidden_states`, `queries`, `keys` and `values` (batch, length, width), the
                last three before any rotary embedding; `attentions` (batch, heads, length,
                length), rows that sum to 1, before dropout; `scores` what these are the softmax
                of, before the mask.
            teacher: the teacher's, without gradients.
            batch: the student's inputs and labels. `item_mask`, where it is there, has the shape
                of the items and says which count; `attention_mask` is (batch, length).

        Returns:
            A scalar: the mean over the batch's valid items.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The settings that rebuild this loss, as plain values for the card and the log."""
        return {}


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of `values` where `mask` is true; 0 where it is nowhere true.

    Args:
        values: any shape; finite under a false mask too.
        mask: the same shape, boolean or 0 and 1; `None` counts all.
    """
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def check_class_logits(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> None:
    """Raise `ValueError` unless both are logits of one shape (..., labels), two labels or more."""
    check_logits(student, teacher, temperature)
    if student.size(-1) < 2:
        raise ValueError(
            "Expected at least 2 labels, got 1. A softmax over one logit is always 1, so the loss "
            "would be constant and teach nothing; use mean squared error for regression."
        )


def check_logits(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> None:
    """Raise `ValueError` unless both are logits of one shape and the temperature is in range."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student and teacher logits must have one shape (..., labels), got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}. Broadcasting would compare "
            "different items or labels; align the models' labels first."
        )
    check_temperature(temperature)


def check_temperature(temperature: float) -> None:
    """Raise `ValueError` unless the temperature is above 0 and finite."""
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature must be finite and above 0, got {temperature}. Logits are divided by it: "
            "zero gives infinities and a negative one teaches the opposite of the teacher. Values "
            "from 1 to 10 are usual."
        )
