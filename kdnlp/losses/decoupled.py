"""Decoupled distillation: the true class, and the other classes among themselves (DKD)."""

from collections.abc import Mapping
from typing import Any

import torch

from kdnlp.losses.base import Outputs, check_class_logits, masked_mean
from kdnlp.losses.class_labels import read_labels
from kdnlp.losses.class_logits import ClassLogitsLoss
from kdnlp.losses.logits import kl_terms


def decoupled_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`T^2 * (alpha * KL over {true, other} + beta * KL over the other classes)`, mean over items.

    Soft targets weigh the second term by `1 - p(true)` of the teacher, which suppresses it exactly
    where the teacher is sure; here its weight is free.

    Args:
        student_logits: shape (*items, labels), at least two labels. With two, the second term is 0.
        teacher_logits: the same shape.
        labels: the true class of every item, shape (*items).
        alpha: weight of the target-class term, at least 0.
        beta: weight of the other-classes term, at least 0.
        temperature: above 0.
        mask: which items count, shape (*items); `None` counts all.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: if the shapes differ, there is one label, or the temperature is not positive.
    """
    check_class_logits(student_logits, teacher_logits, temperature)
    true = labels[..., None] == torch.arange(student_logits.size(-1), device=labels.device)
    student, teacher = student_logits / temperature, teacher_logits / temperature
    target = kl_terms(_binary(teacher, true), _binary(student, true)).sum(-1)
    other = kl_terms(_others(teacher, true), _others(student, true)).sum(-1)
    return masked_mean(alpha * target + beta * other, mask) * temperature**2


class DecoupledLoss(ClassLogitsLoss):
    """Soft targets by `decoupled_kl`, with the weight of the wrong classes set free.

    Reads `logits`, shape (*items, labels), and `labels`. For two classes it is soft targets times
    `alpha`: there is nothing to tell apart among the others.

    Args:
        alpha: weight of the target-class term, at least 0.
        beta: weight of the other-classes term, at least 0; the paper uses 2 to 8 for many classes.
        temperature: a fixed temperature; `None` takes the run's.

    Source: Zhao, Cui, Song, Qiu, Liang 2022, "Decoupled Knowledge Distillation", CVPR, eq. 7.
    """

    citation = """@inproceedings{zhao2022decoupled,
  title={Decoupled Knowledge Distillation},
  author={Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2022}
}"""

    def __init__(
        self, alpha: float = 1.0, beta: float = 2.0, temperature: float | None = None
    ) -> None:
        super().__init__(temperature)
        if alpha < 0 or beta < 0 or alpha + beta == 0:
            raise ValueError(
                f"alpha and beta must be at least 0 and not both 0, got {alpha} and {beta}. A "
                "negative weight would push the student away from its teacher."
            )
        self.alpha, self.beta = alpha, beta

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        labels, mask = read_labels(batch, type(self).__name__)
        return decoupled_kl(
            student["logits"],
            teacher["logits"],
            labels,
            self.alpha,
            self.beta,
            self.fixed_temperature or self.temperature,
            mask,
        )

    def config(self) -> dict[str, Any]:
        """The two weights and the fixed temperature."""
        return {"alpha": self.alpha, "beta": self.beta, **super().config()}


def _binary(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Log probabilities of the true class and of all others together, shape (*items, 2)."""
    log_probs = logits.log_softmax(-1)
    of_true = log_probs.masked_fill(~true, 0.0).sum(-1)
    return torch.stack([of_true, _without(log_probs, true).logsumexp(-1)], dim=-1)


def _others(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Log probabilities among the other classes, shape (*items, labels); the true one has none."""
    return _without(logits, true).log_softmax(-1)


def _without(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    # Not minus infinity: the difference of two would be NaN, and so would its gradient.
    return logits.masked_fill(true, torch.finfo(logits.dtype).min / 4)
