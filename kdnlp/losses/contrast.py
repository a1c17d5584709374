"""Contrastive distillation: tell the teacher's embedding of an example from those of others."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig

from kdnlp.losses.pooling import EmbeddingLoss, Pooling
from kdnlp.losses.vectors import check_rows, unit_vectors


def info_nce(
    student: torch.Tensor, teacher: torch.Tensor, contrast_temperature: float = 0.1
) -> torch.Tensor:
    """`-log softmax_j(cos(s_i, t_j) / T)` at `j = i`, mean over the examples `i` of the batch.

    Args:
        student: embeddings `s`, shape (batch, width).
        teacher: embeddings `t`, the same shape.
        contrast_temperature: `T`, above 0; the smaller, the more the nearest other examples count.

    Returns:
        A scalar in nats, at least 0; `log batch` for a student that tells nothing apart, and 0 for
        one example, which has no other to be told from.

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.
    """
    check_rows(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            "Student and teacher embeddings must have one width, got "
            f"{student.size(1)} and {teacher.size(1)}. A cosine needs vectors of one space; "
            "ContrastLoss projects the student's."
        )
    _check_contrast_temperature(contrast_temperature)
    cosines = unit_vectors(student) @ unit_vectors(teacher).T
    own = torch.arange(student.size(0), device=student.device)
    return F.cross_entropy(cosines / contrast_temperature, own)


class ContrastLoss(EmbeddingLoss):
    """Bring the student near its teacher's embedding of an example and away from the others'.

    Reads `hidden_states`. Where the widths differ, a linear projection of the student's embedding
    to the teacher's width trains along and is left out of the exported model. The others are the
    rest of the batch, which this relates to each other: it needs two or more, and gradient
    accumulation does not make the batch larger for it. An example that is twice in a batch is
    pushed away from itself. It differs from CRD in its negatives, which are the batch's and not
    those of a memory of the whole data set, and in leaving the teacher's embedding unprojected.

    Args:
        contrast_temperature: divides the cosines, above 0; not the run's temperature.
        pooling: `"first"`, `"last"`, `"mean"` or `None`; see `EmbeddingLoss`.
        student_layer: 0 for the embeddings, or a block from 1 on; `None` is the last block.
        teacher_layer: the same, of the teacher.

    Source: Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation", ICLR,
    arXiv 1910.10699, with the InfoNCE loss of van den Oord, Li, Vinyals 2018, "Representation
    Learning with Contrastive Predictive Coding", arXiv 1807.03748, eq. 4.
    """

    citation = """@inproceedings{tian2020contrastive,
  title={Contrastive Representation Distillation},
  author={Tian, Yonglong and Krishnan, Dilip and Isola, Phillip},
  booktitle={International Conference on Learning Representations},
  year={2020}
}
@article{oord2018representation,
  title={Representation Learning with Contrastive Predictive Coding},
  author={van den Oord, Aaron and Li, Yazhe and Vinyals, Oriol},
  journal={arXiv preprint arXiv:1807.03748},
  year={2018}
}"""

    def __init__(
        self,
        contrast_temperature: float = 0.1,
        pooling: Pooling | None = None,
        student_layer: int | None = None,
        teacher_layer: int | None = None,
    ) -> None:
        super().__init__(pooling, student_layer, teacher_layer)
        _check_contrast_temperature(contrast_temperature)
        self.contrast_temperature = contrast_temperature
        self.projection: nn.Linear | None = None

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Choose the layers, and make the projection where the widths differ."""
        super().prepare(student, teacher, task)
        assert teacher is not None
        widths = student.hidden_size, teacher.hidden_size
        known = self.projection
        if widths[0] == widths[1]:
            self.projection = None
        # A loss that is used again goes on with what it has learned.
        elif known is None or (known.in_features, known.out_features) != widths:
            self.projection = nn.Linear(*widths)

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """InfoNCE of the embeddings, the student's projected where the widths differ."""
        if self.projection is not None:
            student = self.projection(student)
        return info_nce(student, teacher, self.contrast_temperature)

    def config(self) -> dict[str, Any]:
        """The temperature of the contrast, the pooling and the layers."""
        return {"contrast_temperature": self.contrast_temperature, **super().config()}


def _check_contrast_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"contrast_temperature must be finite and above 0, got {temperature}. Cosines are "
            "divided by it: zero gives infinities and a negative one teaches the opposite. Values "
            "from 0.05 to 0.5 are usual."
        )
