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
