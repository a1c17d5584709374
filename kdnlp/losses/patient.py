"""Patient distillation: the normalised states of the first token, layer by layer (PKD)."""

import torch

from kdnlp.losses.layer_map import LayerMap
from kdnlp.losses.mapped import ProjectedLoss
from kdnlp.losses.pooling import pool
from kdnlp.losses.vectors import check_rows, unit_vectors


def normalised_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """`|student / |student| - teacher / |teacher||^2`, mean over examples.

    Args:
        student: one state an example, shape (batch, width).
        teacher: the same shape.

    Returns:
        A scalar in [0, 4].
    """
    check_rows(student, teacher)
    difference = unit_vectors(student) - unit_vectors(teacher)
    return difference.square().sum(-1).mean()


class PatientLoss(ProjectedLoss):
    """Normalised first-token states by `normalised_distance`, summed over mapped layers.

    Reads `hidden_states`. The first attended token stands for the example, as `[CLS]` does in
    BERT's kin; for decoders it has seen nothing but itself, and the loss teaches nothing.

    Args:
        layer_map: see `kdnlp.losses.layer_map.resolve_layer_map`; the paper finds `"skip"` best.
        projection: `True` learns a map for equal widths too; `None` only where they differ.

    Source: Sun, Cheng, Gan, Liu 2019, "Patient Knowledge Distillation for BERT Model Compression",
    EMNLP, arXiv 1908.09355, eq. 7.
    """

    unit = "rows"
    tasks = ProjectedLoss.tasks - {"causal_lm"}
    citation = """@inproceedings{sun2019patient,
  title={Patient Knowledge Distillation for {BERT} Model Compression},
  author={Sun, Siqi and Cheng, Yu and Gan, Zhe and Liu, Jingjing},
  booktitle={Proceedings of EMNLP-IJCNLP},
  year={2019}
}"""

    def __init__(self, layer_map: LayerMap = "skip", projection: bool | None = None) -> None:
        super().__init__(layer_map, projection)

    def compare(
        self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, layer: int
    ) -> torch.Tensor:
        """Distance of one layer."""
        ours, theirs = pool(student, mask, "first"), pool(teacher, mask, "first")
        return normalised_distance(self.project(ours, layer), theirs)
