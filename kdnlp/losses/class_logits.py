"""What the losses on the probabilities of exclusive classes share."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from kdnlp.losses.base import DistillationLoss, check_temperature, require_classes


class ClassLogitsLoss(DistillationLoss):
    """A comparison of two distributions over classes that exclude each other.

    Reads `logits`, shape (batch, labels). A subclass implements `compare`.

    Args:
        temperature: a fixed temperature; `None` takes the run's, which may follow a schedule.

    Raises:
        ValueError: if the temperature is not positive, or, before training, if the task is a
            regression or multi-label.
    """

    def __init__(self, temperature: float | None = None) -> None:
        super().__init__()
        if temperature is not None:
            check_temperature(temperature)
        self.fixed_temperature = temperature

    def prepare(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Refuse a task whose labels do not exclude each other."""
        require_classes(student, type(self).__name__)

    def forward(
        self, student: ModelOutput, teacher: ModelOutput, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        temperature = self.fixed_temperature or self.temperature
        return self.compare(student["logits"], teacher["logits"], temperature)

    def compare(
        self, student: torch.Tensor, teacher: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """The loss of two tensors of logits, a scalar."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The fixed temperature, if any."""
        return {"temperature": self.fixed_temperature}
