"""Hints: the student's hidden states equal the teacher's (Romero et al. 2015, Jiao et al. 2020)."""

from typing import Any

import torch
from transformers import PretrainedConfig

from kdnlp.losses.base import Layers, Outputs, masked_mean
from kdnlp.losses.citations import TINYBERT
from kdnlp.losses.layer_map import LayerMap
from kdnlp.losses.mapped import ProjectedLoss


def hidden_mse(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`mean over tokens of mean over dimensions of (student - teacher)^2`.

    Args:
        student: hidden states, shape (batch, length, width).
        teacher: the same shape.
        mask: the attention mask, shape (batch, length); `None` counts all tokens.

    Returns:
        A scalar, at least 0.
    """
    return masked_mean((student - teacher).square().mean(-1), mask)


class HiddenLoss(ProjectedLoss):
    """Equal hidden states by `hidden_mse`, summed over mapped layers, through a map between widths.

    Reads `hidden_states`, the embeddings among them where the map says 0. FitNets' hints are one
    layer in the middle, such as `layer_map={2: 4}`; TinyBERT's are `"uniform"` with
    `projection=True`. It misleads where the teacher's states have a few dimensions of large size,
    as many encoders do: these take most of the error.

    Args:
        layer_map: see `kdnlp.losses.layer_map.resolve_layer_map`; or `"dynamic"`, in which each of
            the teacher's layers of the uniform map is matched, batch by batch, with the layer of
            the student that is closest (Xia et al. 2022), through one map that all share. That
            choice is of the micro-batch, so that accumulation may change it.
        projection: `True` learns a map for equal widths too; `None` only where they differ.

    Source: Romero et al. 2015, "FitNets", ICLR, arXiv 1412.6550, eq. 3; Jiao et al. 2020,
    "TinyBERT", EMNLP Findings, arXiv 1909.10351, eq. 8 and 9; Xia, Zhong, Chen 2022, "Structured
    Pruning Learns Compact and Accurate Models", ACL, arXiv 2204.00408, section 3.2.
    """

    citation = TINYBERT

    def __init__(self, layer_map: LayerMap = "uniform", projection: bool | None = None) -> None:
        self.dynamic = layer_map == "dynamic"
        super().__init__("uniform" if self.dynamic else layer_map, projection)

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Find the layers, and make one shared projection where layers are matched as they run."""
        if self.dynamic and "shared" in self.projections:
            self.projections = torch.nn.ModuleDict({"1": self.projections["shared"]})
        super().prepare(student, teacher, task)
        if self.dynamic and self.projections:
            self.projections = torch.nn.ModuleDict({"shared": self.projections["1"]})

    def project(self, student: torch.Tensor, layer: int) -> torch.Tensor:
        """The student's hidden states of a layer in the teacher's width."""
        shared = "shared" in self.projections
        return self.projections["shared"](student) if shared else super().project(student, layer)

    def layers(self) -> dict[str, Layers]:
        """The mapped layers; all blocks of the student where they are matched as they run."""
        ours, theirs = super().layers()[self.field]
        if not self.dynamic:
            return {self.field: (ours, theirs)}
        return {self.field: (ours[1:], theirs[1:])}

    def forward(self, student: Outputs, teacher: Outputs, batch: Any) -> torch.Tensor:
        """The loss of one batch; see the class."""
        if not self.dynamic:
            return super().forward(student, teacher, batch)
        ours, theirs = self.layers()[self.field]
        projected = [self.project(student[self.field][i], i) for i in ours]
        mask = batch.get("attention_mask")
        distances = [
            torch.stack([hidden_mse(states, teacher[self.field][j], mask) for states in projected])
            for j in theirs
        ]
        return torch.stack([row.min() for row in distances]).sum()

    def compare(
        self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, layer: int
    ) -> torch.Tensor:
        """Squared error of one layer."""
        return hidden_mse(self.project(student, layer), teacher, mask)

    def config(self) -> dict[str, Any]:
        """The layer map and whether equal widths are projected too."""
        return {**super().config(), **({"layer_map": "dynamic"} if self.dynamic else {})}
