"""What the losses share that compare layers of the student with layers of the teacher."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PretrainedConfig

from kdnlp.losses.base import ENCODED_TASKS, DistillationLoss, Layers, Outputs
from kdnlp.losses.layer_map import LayerMap, resolve_layer_map


class MappedLoss(DistillationLoss):
    """A sum over mapped layers of a comparison; a subclass implements `compare`.

    Args:
        layer_map: see `kdnlp.losses.layer_map.resolve_layer_map`.

    Raises:
        ValueError: before training, if the layers do not exist or the model has two stacks.
    """

    tasks = ENCODED_TASKS
    unit = "tokens"
    field: ClassVar[str] = "hidden_states"
    needs = frozenset({"hidden_states"})

    def __init__(self, layer_map: LayerMap = "uniform") -> None:
        super().__init__()
        self.layer_map = layer_map
        self.mapped: dict[int, int] = {}
        self.slot_ends: list[int] | None = None  # set by TheseusTrainer, whose cut decides

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Find the layers in both models."""
        super().prepare(student, teacher, task)
        assert teacher is not None
        first = 0 if self.field == "hidden_states" else 1
        counts = student.num_hidden_layers, teacher.num_hidden_layers
        self.mapped = resolve_layer_map(self.layer_map, *counts, first, self.slot_ends)

    def layers(self) -> dict[str, Layers]:
        """The mapped layers of the field."""
        return {self.field: (list(self.mapped), list(self.mapped.values()))}

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        mask = batch.get("attention_mask")
        return torch.stack(
            [
                self.compare(student[self.field][ours], teacher[self.field][theirs], mask, ours)
                for ours, theirs in self.mapped.items()
            ]
        ).sum()

    def compare(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        mask: torch.Tensor | None,
        layer: int,
    ) -> torch.Tensor:
        """The loss of one layer, a scalar: the mean over what `unit` says."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The layer map."""
        layers = self.layer_map
        return {"layer_map": layers if isinstance(layers, str) else dict(layers)}


class Projection(nn.Linear):
    """A linear map between widths; one between equal widths starts as the identity."""

    def reset_parameters(self) -> None:
        """Start afresh."""
        super().reset_parameters()
        if self.in_features == self.out_features:
            nn.init.eye_(self.weight)


class ProjectedLoss(MappedLoss):
    """A comparison of hidden states, through a learned linear map where the widths differ.

    Args:
        layer_map: see `kdnlp.losses.layer_map.resolve_layer_map`.
        projection: `True` learns a map for equal widths too, as TinyBERT does; `None` only where
            they differ. A map between equal widths starts as the identity.
    """

    def __init__(self, layer_map: LayerMap = "uniform", projection: bool | None = None) -> None:
        super().__init__(layer_map)
        self.projection = projection
        self.projections = nn.ModuleDict()

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Find the layers in both models, and make the projections between their widths."""
        super().prepare(student, teacher, task)
        assert teacher is not None
        widths = student.hidden_size, teacher.hidden_size
        if self.projection is False and widths[0] != widths[1]:
            raise ValueError(
                f"projection=False needs one width, got {widths[0]} of the student and {widths[1]} "
                "of the teacher. Their hidden states cannot be compared number by number; leave "
                "projection out to learn a map between them."
            )
        project = self.projection or widths[0] != widths[1]
        names = [str(layer) for layer in self.mapped] if project else []
        # One that no layer uses would be a parameter without a gradient.
        for name in set(self.projections) - set(names):
            del self.projections[name]
        for name in names:
            self._add_projection(name, *widths)

    def project(self, student: torch.Tensor, layer: int) -> torch.Tensor:
        """The student's hidden states of a layer in the teacher's width."""
        name = str(layer)
        return self.projections[name](student) if name in self.projections else student

    def config(self) -> dict[str, Any]:
        """The layer map and whether equal widths are projected too."""
        return {**super().config(), "projection": self.projection}

    def _add_projection(self, name: str, ours: int, theirs: int) -> None:
        known = dict(self.projections).get(name)
        # A loss that is used again goes on with what it has learned.
        if known is None or (known.in_features, known.out_features) != (ours, theirs):
            self.projections[name] = Projection(ours, theirs)
