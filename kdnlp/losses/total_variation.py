"""Total variation distance between the two distributions (Wen et al. 2023)."""

import torch

from kdnlp.losses.base import check_class_logits, masked_mean
from kdnlp.losses.class_logits import ClassLogitsLoss


def total_variation(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`sum |softmax(teacher / T) - softmax(student / T)| / 2`, mean over items.

    Args:
        student_logits: shape (..., labels), at least two labels.
        teacher_logits: the same shape.
        temperature: above 0.
        mask: which items count, the shape without labels; `None` counts all.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: if the shapes differ, there is one label, or the temperature is not positive.
    """
    check_class_logits(student_logits, teacher_logits, temperature)
    student = (student_logits / temperature).softmax(-1)
    teacher = (teacher_logits / temperature).softmax(-1)
    return masked_mean((teacher - student).abs().sum(-1), mask) / 2


class TotalVariationLoss(ClassLogitsLoss):
    """Soft targets by `total_variation`: symmetric, and at most 1 for an item.

    Its gradient does not shrink as the two come close, and is zero where the student is certain.
    There is no factor T^2: the distance is bounded at any temperature.

    Source: Wen, Li, Du, Mou 2023, "f-Divergence Minimization for Sequence-Level Knowledge
    Distillation", ACL, arXiv 2307.15190.
    """

    citation = """@inproceedings{wen2023fdivergence,
  title={f-Divergence Minimization for Sequence-Level Knowledge Distillation},
  author={Wen, Yuqiao and Li, Zichao and Du, Wenyu and Mou, Lili},
  booktitle={Annual Meeting of the Association for Computational Linguistics},
  year={2023}
}"""

    def compare(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        temperature: float,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Total variation distance of the two distributions."""
        return total_variation(student, teacher, temperature, mask)
