"""Cosine distance between logits: their direction without their size."""

from collections.abc import Mapping

import torch

from kdnlp.losses.base import (
    CHOICE_TASKS,
    DistillationLoss,
    Outputs,
    check_class_logits,
    masked_mean,
)
from kdnlp.losses.vectors import unit_vectors


def logits_cosine(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`1 - z_S . z_T / (|z_S| |z_T|)`, mean over the items that count.

    Args:
        student_logits: shape (*items, labels), finite, at least two labels: the cosine of two
            numbers is only the agreement of their signs.
        teacher_logits: the same shape.
        mask: which items count, shape (*items); `None` counts all.

    Returns:
        A scalar in [0, 2]. Logits that are all 0 have no direction: 1, without a gradient.

    Raises:
        ValueError: if the shapes differ or there is one label.
    """
    check_class_logits(student_logits, teacher_logits)
    cosine = (unit_vectors(student_logits) * unit_vectors(teacher_logits)).sum(-1)
    return masked_mean(1 - cosine, mask)


class LogitsCosineLoss(DistillationLoss):
    """Match the direction of the logits, by `logits_cosine`.

    Reads `logits`, shape (*items, labels). It leaves the student as sure of itself as the labels
    make it. It misleads where the logits have a large common part, which no probability depends on
    but which makes all directions alike. Question answering is refused: its logits are positions,
    those of padding at a fixed low value that would drown the others.

    Source: the plain cosine distance, per item, has none of its own. Nearest is Ham, Kim, Lee, Lee,
    Kim 2023, "Cosine Similarity Knowledge Distillation for Individual Class Information Transfer",
    arXiv 2311.14307, who take it of predictions and per class, over the batch.
    """

    tasks = (CHOICE_TASKS | {"multi_label_classification"}) - {"question_answering"}
    unit = "items"
    citation = """@article{ham2023cosine,
  title={Cosine Similarity Knowledge Distillation for Individual Class Information Transfer},
  author={Ham, Gyeongdo and Kim, Seonghak and Lee, Suin and Lee, Jae-Hyeok and Kim, Daeshik},
  journal={arXiv preprint arXiv:2311.14307},
  year={2023}
}"""

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        return logits_cosine(student["logits"], teacher["logits"], batch.get("item_mask"))
