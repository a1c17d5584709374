"""Relational distillation: the geometry of a batch instead of its points (Park et al. 2019)."""

import torch
import torch.nn.functional as F

from kdnlp.losses.pooling import EmbeddingLoss
from kdnlp.losses.vectors import check_rows, unit_vectors

CITATION = """@inproceedings{park2019relational,
  title={Relational Knowledge Distillation},
  author={Park, Wonpyo and Kim, Dongju and Lu, Yan and Cho, Minsu},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2019}
}"""


def relational_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """`huber(d_S(i, j) / mean d_S - d_T(i, j) / mean d_T)`, mean over two examples `i < j`.

    `d` is the Euclidean distance, its mean that over the batch, so that neither scale nor width
    matters. Huber is `x^2 / 2` up to 1 and `|x| - 1/2` beyond.

    Args:
        student: embeddings, shape (batch, student width).
        teacher: shape (batch, teacher width).

    Returns:
        A scalar, at least 0; 0 for one example.

    Raises:
        ValueError: if these are not two embeddings of one batch.
    """
    check_rows(student, teacher)
    errors = F.huber_loss(_distances(student), _distances(teacher), reduction="none")
    return errors.sum() / max(errors.numel(), 1)


def relational_angle(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """`huber(cos_S(i, j, k) - cos_T(i, j, k))`, mean over three different examples.

    `cos(i, j, k)` is the cosine of the angle at `j` between the directions to `i` and to `k`. Time
    and memory grow with the third power of the batch: 128 examples make 2 million angles.

    Args:
        student: embeddings, shape (batch, student width).
        teacher: shape (batch, teacher width).

    Returns:
        A scalar, at least 0; 0 for fewer than three examples. A direction between two equal
        embeddings counts as at right angles to every other.

    Raises:
        ValueError: if these are not two embeddings of one batch.
    """
    check_rows(student, teacher)
    batch = student.size(0)
    errors = F.huber_loss(_cosines(student), _cosines(teacher), reduction="none")
    # Where j is i or k the cosine is 0 in both; where i is k it says only which points coincide.
    different = 1 - torch.eye(batch, dtype=errors.dtype, device=errors.device)
    return (errors * different).sum() / max(batch * (batch - 1) * (batch - 2), 1)


class RelationalDistanceLoss(EmbeddingLoss):
    """Match the distances between a batch's examples, by `relational_distance`.

    Reads `hidden_states`. Widths may differ, without a projection. It relates the rows of a batch
    to each other: it needs two or more, and gradient accumulation does not make the batch larger
    for it.

    Args:
        pooling: `"first"`, `"last"`, `"mean"` or `None`; see `EmbeddingLoss`.
        student_layer: 0 for the embeddings, or a block from 1 on; `None` is the last block.
        teacher_layer: the same, of the teacher.

    Source: Park, Kim, Lu, Cho 2019, "Relational Knowledge Distillation", CVPR, arXiv 1904.05068,
    section 3.2.1.
    """

    citation = CITATION

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The distance-wise loss of two tensors of embeddings."""
        return relational_distance(student, teacher)


class RelationalAngleLoss(EmbeddingLoss):
    """Match the angles that a batch's examples form, by `relational_angle`.

    Reads `hidden_states`. Widths may differ, without a projection. It relates the rows of a batch
    to each other: it needs three or more, and gradient accumulation does not make the batch larger
    for it. Its time and memory are O(batch^3).

    Args:
        pooling: `"first"`, `"last"`, `"mean"` or `None`; see `EmbeddingLoss`.
        student_layer: 0 for the embeddings, or a block from 1 on; `None` is the last block.
        teacher_layer: the same, of the teacher.

    Source: Park, Kim, Lu, Cho 2019, "Relational Knowledge Distillation", CVPR, arXiv 1904.05068,
    section 3.2.2.
    """

    citation = CITATION

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The angle-wise loss of two tensors of embeddings."""
        return relational_angle(student, teacher)


def _distances(rows: torch.Tensor) -> torch.Tensor:
    """Distances between two rows over their mean, one per i < j; all 0 where no two rows differ."""
    distances = torch.pdist(rows)
    mean = distances.sum() / max(distances.numel(), 1)
    return distances / torch.where(mean > 0, mean, torch.ones_like(mean))


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    """The cosine at j between the directions to i and k, shape (batch j, batch i, batch k)."""
    directions = unit_vectors(rows[None] - rows[:, None])
    return directions @ directions.transpose(1, 2)
