"""Correlation instead of equality: the teacher's ranking within and across items (DIST)."""

from typing import Any

import torch

from kdnlp.losses.base import CHOICE_TASKS, check_class_logits, masked_mean
from kdnlp.losses.class_logits import ClassLogitsLoss
from kdnlp.losses.vectors import full_precision, unit_vectors

_LEAST = 1e-8


def pearson_distance(
    student: torch.Tensor, teacher: torch.Tensor, dim: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`1 - Pearson correlation` along `dim`.

    A row that is constant, or varies by rounding or by less than 1e-8, counts as 1 and gets no
    gradient: its direction would be chance.

    Args:
        student: any shape.
        teacher: the same shape.
        dim: the dimension that is correlated, of at least 2 entries.
        mask: which entries along `dim` count, of a shape that broadcasts; `None` counts all.

    Returns:
        The distances in [0, 2], in the shape without `dim`, in float32 or the wider type given.
    """
    student, teacher = full_precision(student), full_precision(teacher)
    weights = torch.ones_like(student) if mask is None else mask.to(student).expand_as(student)
    ours, theirs, weights = (x.movedim(dim, -1) for x in (student, teacher, weights))
    return 1 - (_standardised(ours, weights) * _standardised(theirs, weights)).sum(-1)


def _standardised(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Rows of mean 0 and length 1; of zeros, where they vary by rounding alone."""
    counted = values * weights
    mean = counted.sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=1)
    centred = (values - mean) * weights
    rounding = 8 * torch.finfo(values.dtype).eps * counted.detach().norm(dim=-1, keepdim=True)
    varies = centred.detach().norm(dim=-1, keepdim=True) > rounding.clamp(min=_LEAST)
    return unit_vectors(torch.where(varies, centred, torch.zeros_like(centred)))


def correlation_distance(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`T^2 * (beta * distance over labels, per item + gamma * distance over items, per label)`.

    Args:
        student_logits: shape (*items, labels), at least two labels.
        teacher_logits: the same shape.
        beta: weight of the relation between the labels of an item.
        gamma: weight of the relation between the items for a label; 0 in effect for one item.
        temperature: above 0.
        mask: which items count, the shape without labels; `None` counts all.

    Returns:
        A scalar, at least 0.

    Raises:
        ValueError: if the shapes differ, there is one label, or the temperature is not positive.
    """
    check_class_logits(student_logits, teacher_logits, temperature)
    student = (student_logits / temperature).softmax(-1)
    teacher = (teacher_logits / temperature).softmax(-1)
    distance = beta * masked_mean(pearson_distance(student, teacher, dim=-1), mask)
    student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    if student.size(0) > 1:
        items = None if mask is None else mask.flatten()[:, None]
        distance = distance + gamma * pearson_distance(student, teacher, 0, items).mean()
    return distance * temperature**2


class CorrelationLoss(ClassLogitsLoss):
    """Match the teacher up to scale and shift, for teachers much stronger than the student.

    Reads `logits`, shape (*items, labels). The relation across items is of the batch: it needs more
    than one item, and gradient accumulation does not make the batch larger for it. With two labels
    the relation between labels only says which one is preferred.

    Args:
        beta: weight of the relation between the labels of an item.
        gamma: weight of the relation between the items for a label.
        temperature: a fixed temperature; `None` takes the run's.

    Source: Huang, You, Wang, Qian, Xu 2022, "Knowledge Distillation from A Stronger Teacher",
    NeurIPS, arXiv 2205.10536, eq. 8 to 10.
    """

    citation = """@inproceedings{huang2022stronger,
  title={Knowledge Distillation from A Stronger Teacher},
  author={Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}"""
    tasks = CHOICE_TASKS - {"question_answering"}  # whose labels are other positions in each text
    reads_probabilities = False  # it correlates over all labels, the unlikely ones too

    def __init__(
        self, beta: float = 1.0, gamma: float = 1.0, temperature: float | None = None
    ) -> None:
        super().__init__(temperature)
        if beta < 0 or gamma < 0 or beta + gamma == 0:
            raise ValueError(
                f"beta and gamma must be at least 0 and not both 0, got {beta} and {gamma}. A "
                "negative weight would teach the opposite of the teacher's order."
            )
        self.beta, self.gamma = beta, gamma

    def compare(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        temperature: float,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Correlation distance of the two distributions."""
        return correlation_distance(student, teacher, self.beta, self.gamma, temperature, mask)

    def config(self) -> dict[str, Any]:
        """The two weights and the fixed temperature."""
        return {"beta": self.beta, "gamma": self.gamma, **super().config()}
