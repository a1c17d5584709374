"""Reverse KL: the student keeps to what the teacher finds likely (Gu et al. 2024)."""

import torch

from kdnlp.losses.base import check_class_logits, masked_mean
from kdnlp.losses.class_logits import ClassLogitsLoss
from kdnlp.losses.logits import kl_terms


def reverse_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`T^2 * KL(softmax(student / T) || softmax(teacher / T))`, mean over items.

    Args:
        student_logits: shape (..., labels), at least two labels.
        teacher_logits: the same shape.
        temperature: above 0.
        mask: which items count, the shape without labels; `None` counts all.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: if the shapes differ, there is one label, or the temperature is not positive.
    """
    check_class_logits(student_logits, teacher_logits, temperature)
    student = (student_logits / temperature).log_softmax(-1)
    teacher = (teacher_logits / temperature).log_softmax(-1)
    return masked_mean(kl_terms(student, teacher).sum(-1), mask) * temperature**2


class ReverseKLLoss(ClassLogitsLoss):
    """Soft targets in reverse by `reverse_kl`: settles on one mode of the teacher, not on all.

    It misleads early in training: where the student is far off, its gradient is small.

    Source: Gu, Dong, Wei, Huang 2024, "MiniLLM", ICLR, arXiv 2306.08543.
    """

    citation = """@inproceedings{gu2024minillm,
  title={{MiniLLM}: Knowledge Distillation of Large Language Models},
  author={Gu, Yuxian and Dong, Li and Wei, Furu and Huang, Minlie},
  booktitle={International Conference on Learning Representations},
  year={2024}
}"""

    def compare(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        temperature: float,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Reverse KL of the two distributions."""
        return reverse_kl(student, teacher, temperature, mask)
