"""What every distillation loss is."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import ModelOutput


class DistillationLoss(nn.Module):
    """A scalar that says how far the student's outputs are from the teacher's.

    A subclass is one file: a pure function of tensors, and a class that stores its settings and
    calls it. Parameters of its own (a projection between widths, say) train with the student and
    are left out of the exported model.

    Attributes:
        needs: the fields of the models' outputs that `forward` reads: `"logits"`,
            `"hidden_states"`, `"attentions"`. The trainer asks both models for the union.
        citation: BibTeX of the source, for the model card.
        temperature: set by the trainer before every step from the run's temperature schedule;
            a loss that has no temperature ignores it.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    citation: ClassVar[str] = ""
    temperature: float = 1.0

    def prepare(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Look at both models once, before training.

        Raises:
            ValueError: if the loss cannot teach this student from this teacher.
        """

    def forward(
        self, student: ModelOutput, teacher: ModelOutput, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch.

        Args:
            student: the student's outputs, with gradients.
            teacher: the teacher's outputs, without.
            batch: the student's inputs and labels.

        Returns:
            A scalar: the mean over the batch's valid items.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The settings that rebuild this loss, as plain values for the card and the log."""
        return {}


def require_classes(config: PretrainedConfig, loss: str) -> None:
    """Raise `ValueError` if the student's task is not the choice of one class.

    For losses that compare distributions over classes: one logit has no distribution, and the
    labels of a multi-label task have one each.
    """
    problem = config.problem_type or ("regression" if config.num_labels == 1 else None)
    if problem not in (None, "single_label_classification"):
        raise ValueError(
            f"{loss} compares probabilities of classes that exclude each other, got a task of the "
            f"kind {problem!r}. A softmax over its logits would teach nothing or the wrong thing; "
            "use LogitsLoss, which knows every kind."
        )


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
