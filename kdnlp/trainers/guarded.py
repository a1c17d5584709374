"""A trainer that stops, with the reason, before what is not finite or does not fit is learned."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from kdnlp.arguments import CompressionTrainingArguments
from kdnlp.losses import DistillationLoss
from kdnlp.models.cache import ROW_COLUMN
from kdnlp.models.label_range import num_classes, sound_labels
from kdnlp.models.positions import check_positions
from kdnlp.trainers.finite import LABELS, FiniteGuard
from kdnlp.trainers.memory import explained_memory, undone_if_too_large

TASK = "task"
"""The name of the loss on the labels."""


class GuardedTrainer(Trainer):
    """A `Trainer` that never evaluates or saves a model after NaN, infinity or wrong labels.

    Attributes:
        losses: the losses by name, beside the one on the labels.
        task: the model's kind of task.
        finite: what notes NaN and infinity, and stops the run.
        position_limits: the most tokens that a batch may have, by column.
        batch_shape: the shapes of the last batch, by column.
    """

    args: CompressionTrainingArguments
    losses: dict[str, DistillationLoss]
    task: str
    finite: FiniteGuard
    position_limits: Mapping[str, int] = MappingProxyType({})
    batch_shape: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    _num_classes: int | None = None
    _evaluates_badly: torch.Tensor | bool = False
    _recorded: dict[str, tuple[torch.Tensor | float, int]]

    @property
    def student(self) -> PreTrainedModel:
        """The model that is trained and saved, without any wrapper."""
        return cast(PreTrainedModel, self.model)

    def with_sound_labels(self, batch: dict[str, Any], micro_batch: int) -> dict[str, Any]:
        """The batch; labels that no output stands for are noted, and do not count in it.

        They would stop a GPU for good, before it could be asked what has happened. Texts that are
        too long do so as well, and can be told by their shape.
        """
        where = f"Optimizer step {self.state.global_step + 1}, micro-batch {micro_batch + 1}"
        check_positions(batch, self.position_limits, where)
        sound, bad = sound_labels(batch, self.task, self._num_classes)
        if bad is not None:
            self.finite.watch({LABELS: bad}, micro_batch, batch.get(ROW_COLUMN))
        return sound

    def create_accelerator_and_postprocess(self) -> None:
        """Guard the run from the moment on that it knows its device."""
        super().create_accelerator_and_postprocess()
        self.finite = FiniteGuard(self.accelerator, [TASK, *self.losses])

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Forget what another run has noted, or this one with batches that were too large."""
        self.finite.begin_run()
        self._num_classes = num_classes(self.student, self.task)
        return super()._init_training_state(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train, or leave everything as before an attempt with batches that were too large."""
        with explained_memory(self), undone_if_too_large(self):
            return super()._inner_training_loop(*args, **kwargs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.finite.watch_gradient(norm)
        return norm

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.finite.check()
        return super()._evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.finite.check()
        super()._save_checkpoint(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.finite.check()
        return super()._finalize_training(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Leave batches without a label out of the mean loss, and show any other NaN in it."""
        hides, self.args.logging_nan_inf_filter = self.args.logging_nan_inf_filter, True
        self._evaluates_badly = torch.zeros((), dtype=torch.bool, device=self.args.device)
        try:
            output = super().evaluation_loop(*args, **kwargs)
        finally:
            self.args.logging_nan_inf_filter = hides
        bad = self.accelerator.reduce(self._evaluates_badly.float(), reduction="sum").item() > 0
        name = f"{kwargs.get('metric_key_prefix', args[4] if len(args) > 4 else 'eval')}_loss"
        if bad and not hides and output.metrics and name in output.metrics:
            output.metrics[name] = math.nan
        return output
