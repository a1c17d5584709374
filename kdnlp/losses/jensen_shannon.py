"""Generalised Jensen-Shannon divergence: between forward and reverse KL (Agarwal et al. 2024)."""

import math
from typing import Any

import torch

from kdnlp.losses.base import check_class_logits, masked_mean
from kdnlp.losses.class_logits import ClassLogitsLoss
from kdnlp.losses.logits import kl_terms


def jensen_shannon(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`T^2 * (beta * KL(p || m) + (1 - beta) * KL(q || m))`, `m = beta * p + (1 - beta) * q`.

    `p` is the teacher's distribution, `q` the student's; mean over items. Bounded by `T^2 * log 2`.
    Near `beta` 0 it behaves like forward KL times `beta`, near 1 like reverse
    KL times `1 - beta`.

    Args:
        student_logits: shape (..., labels), at least two labels.
        teacher_logits: the same shape.
        beta: the teacher's share of the mixture, in (0, 1).
        temperature: above 0.
        mask: which items count, the shape without labels; `None` counts all.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: if the shapes differ, there is one label, or a setting is out of range.
    """
    check_class_logits(student_logits, teacher_logits, temperature)
    _check_beta(beta)
    student = (student_logits / temperature).log_softmax(-1)
    teacher = (teacher_logits / temperature).log_softmax(-1)
    # The mixture in log space: a probability that underflows in one is still there in the other.
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    divergence = beta * kl_terms(teacher, mixture) + (1 - beta) * kl_terms(student, mixture)
    return masked_mean(divergence.sum(-1), mask) * temperature**2


class JensenShannonLoss(ClassLogitsLoss):
    """Soft targets both ways by `jensen_shannon`: bounded, so that no single error dominates.

    It misleads early in training: where the student gives what the teacher expects next to no
    probability, its gradient is small too.

    Args:
        beta: the teacher's share of the mixture, in (0, 1); 0.5 is symmetric.
        temperature: a fixed temperature; `None` takes the run's.

    Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models", ICLR,
    arXiv 2306.13649, eq. 1.
    """

    citation = """@inproceedings{agarwal2024onpolicy,
  title={On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes},
  author={Agarwal, Rishabh and Vieillard, Nino and Zhou, Yongchao and Stanczyk, Piotr and
    Ramos, Sabela and Geist, Matthieu and Bachem, Olivier},
  booktitle={International Conference on Learning Representations},
  year={2024}
}"""

    def __init__(self, beta: float = 0.5, temperature: float | None = None) -> None:
        super().__init__(temperature)
        _check_beta(beta)
        self.beta = beta

    def compare(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        temperature: float,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Jensen-Shannon divergence of the two distributions."""
        return jensen_shannon(student, teacher, self.beta, temperature, mask)

    def config(self) -> dict[str, Any]:
        """The mixture's share and the fixed temperature."""
        return {"beta": self.beta, **super().config()}


def _check_beta(beta: float) -> None:
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta must lie in (0, 1), got {beta}. At 0 and 1 the divergence is 0 for any student, "
            "and would teach nothing; use LogitsLoss or ReverseKLLoss for the two limits."
        )
