"""What the losses on the probabilities of exclusive classes share."""

from collections.abc import Mapping
from typing import Any

import torch

from kdnlp.losses.base import (
    CHOICE_TASKS,
    DistillationLoss,
    Outputs,
    check_temperature,
)


class ClassLogitsLoss(DistillationLoss):
    """A comparison of two distributions over classes that exclude each other.

    Reads `logits`, shape (*items, labels). A subclass implements `compare`, item by item.

    Args:
        temperature: a fixed temperature; `None` takes the run's, which may follow a schedule.

    Raises:
        ValueError: if the temperature is not positive, or, before training, if the task is a
            regression or multi-label.
    """

    tasks = CHOICE_TASKS
    reads_probabilities = True

    def __init__(self, temperature: float | None = None) -> None:
        super().__init__()
        if temperature is not None:
            check_temperature(temperature)
        self.fixed_temperature = temperature

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        temperature = self.fixed_temperature or self.temperature
        mask = batch.get("item_mask")
        return self.compare(student["logits"], teacher["logits"], temperature, mask)

    def compare(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        temperature: float,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss of two tensors of logits, a scalar: the mean over items under the mask."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The fixed temperature, if any."""
        return {"temperature": self.fixed_temperature}
