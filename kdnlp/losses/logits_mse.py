"""Squared error between logits: soft targets without a temperature (Kim et al. 2021)."""

from collections.abc import Mapping

import torch

from kdnlp.losses.base import ALL_TASKS, DistillationLoss, Outputs, check_logits, masked_mean


def logits_mse(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`|z_S - z_T|^2 / labels`, mean over the items that count.

    Args:
        student_logits: shape (*items, labels), finite.
        teacher_logits: the same shape.
        mask: which items count, shape (*items); `None` counts all.

    Returns:
        A scalar, at least 0, in squared units of the logits.

    Raises:
        ValueError: if the shapes differ.
    """
    check_logits(student_logits, teacher_logits)
    return masked_mean((student_logits - teacher_logits).square().mean(-1), mask)


class LogitsMSELoss(DistillationLoss):
    """Match the logits themselves, by `logits_mse`.

    Reads `logits`, shape (*items, labels). The limit of soft targets at a high temperature, but
    that it also matches the mean of an item's logits, which no probability depends on. For a
    regression it is the squared error to the teacher's prediction. Question answering is refused:
    its logits are positions, those of padding at a fixed low value.

    Source: Kim, Oh, Kim, Cho, Yun 2021, "Comparing Kullback-Leibler Divergence and Mean Squared
    Error Loss in Knowledge Distillation", IJCAI, arXiv 2105.08919.
    """

    tasks = ALL_TASKS - {"question_answering"}
    unit = "items"
    citation = """@inproceedings{kim2021comparing,
  title={Comparing {Kullback-Leibler} Divergence and Mean Squared Error Loss in Knowledge
    Distillation},
  author={Kim, Taehyeon and Oh, Jaehoon and Kim, Nak Yil and Cho, Sangwook and Yun, Se-Young},
  booktitle={International Joint Conference on Artificial Intelligence},
  year={2021}
}"""

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        return logits_mse(student["logits"], teacher["logits"], batch.get("item_mask"))
