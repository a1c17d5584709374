"""Similarity-preserving distillation: which examples excite a model alike (Tung & Mori 2019)."""

import torch

from kdnlp.losses.pooling import EmbeddingLoss
from kdnlp.losses.vectors import check_rows, unit_vectors


def similarity_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """`|G_S - G_T|_F^2 / batch^2`, where `G` is `A A^T` with every row divided by its L2 norm.

    Args:
        student: embeddings `A`, shape (batch, student width).
        teacher: shape (batch, teacher width).

    Returns:
        A scalar, at least 0; 0 for one example, whose similarity to itself is 1 in any model.

    Raises:
        ValueError: if these are not two embeddings of one batch.
    """
    check_rows(student, teacher)
    if student.size(0) < 2:
        return student.sum() * 0.0
    return (_similarities(student) - _similarities(teacher)).square().mean()


class SimilarityLoss(EmbeddingLoss):
    """Match the similarities between a batch's examples, by `similarity_distance`.

    Reads `hidden_states`. Widths may differ, without a projection. The paper takes a layer's whole
    activation map as an example's vector; here it is the pooled embedding, because padding and
    texts of different lengths have no common map. It relates the rows of a batch to each other:
    it needs two or more, and gradient accumulation does not make the batch larger for it. It is
    at most 4 / batch, and so small beside a cross-entropy: give it a large weight.

    Args:
        pooling: `"first"`, `"last"`, `"mean"` or `None`; see `EmbeddingLoss`.
        student_layer: 0 for the embeddings, or a block from 1 on; `None` is the last block.
        teacher_layer: the same, of the teacher.

    Source: Tung, Mori 2019, "Similarity-Preserving Knowledge Distillation", ICCV,
    arXiv 1907.09682, eq. 1 to 4.
    """

    citation = """@inproceedings{tung2019similarity,
  title={Similarity-Preserving Knowledge Distillation},
  author={Tung, Frederick and Mori, Greg},
  booktitle={IEEE/CVF International Conference on Computer Vision},
  year={2019}
}"""

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The distance of the two similarity matrices."""
        return similarity_distance(student, teacher)


def _similarities(rows: torch.Tensor) -> torch.Tensor:
    return unit_vectors(rows @ rows.T)
