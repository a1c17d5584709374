"""Distillation: a student learns the task and its teacher's answers (Hinton et al. 2015)."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.losses import DistillationLoss, LogitsLoss
from kdnlp.models.alignment import (
    TEACHER_PREFIX,
    align_labels,
    check_inputs,
    check_vocabulary,
)
from kdnlp.models.heads import LABELLED_TASKS
from kdnlp.trainers.base import CompressionTrainer


class DistillationTrainer(CompressionTrainer):
    """Train a student on the labels and on a frozen teacher's outputs.

    Example:
        ```python
        student = build_student(teacher, num_layers=6)
        trainer = DistillationTrainer(student, teacher, args, train_dataset=train)
        trainer.train()
        ```

    Args:
        model: the student; leave it out with `model_init`.
        teacher: the fine-tuned model, in eval mode throughout. Its labels are matched by name: a
            permutation is undone, anything else is refused. `None` if no loss needs one.
        args: the training arguments.
        losses: losses by name beside `task`; default `{"logits": LogitsLoss()}`.
        **kwargs: everything else that `Trainer` takes.

    Raises:
        ValueError: if teacher and student have other labels, vocabularies or inputs.
    """

    args: DistillationTrainingArguments
    arguments_class = DistillationTrainingArguments
    method = "distillation"
    citation = LogitsLoss.citation

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        teacher: PreTrainedModel | None = None,
        args: DistillationTrainingArguments | None = None,
        losses: Mapping[str, DistillationLoss] | None = None,
        **kwargs: Any,
    ) -> None:
        losses = {"logits": LogitsLoss()} if losses is None else losses
        if teacher is None and (
            not losses or any(getattr(loss, "needs_teacher", True) for loss in losses.values())
        ):
            raise TypeError(
                "DistillationTrainer needs a teacher: DistillationTrainer(student, teacher, args, "
                "...). Only losses such as TeacherFreeLoss do without."
            )
        self.label_order: list[int] | None = None
        super().__init__(model, args, partner=teacher, losses=losses, **kwargs)

    @property
    def teacher(self) -> PreTrainedModel:
        """The frozen teacher."""
        assert self.partner is not None
        return self.partner

    def partner_outputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The teacher's outputs, its logits in the order of the student's labels."""
        outputs = super().partner_outputs(inputs)
        if self.label_order is not None:
            outputs["logits"] = outputs["logits"][..., self.label_order]
        return outputs

    def _check_model(self, model: PreTrainedModel) -> None:
        super()._check_model(model)
        if self.partner is None:
            return
        if self.task in LABELLED_TASKS:
            self.label_order = align_labels(self.teacher.config, model.config)
        columns = getattr(self.train_dataset, "column_names", None) or []
        if f"{TEACHER_PREFIX}input_ids" not in columns:
            check_vocabulary(self.teacher.config, model.config)
            check_inputs(self.teacher, model, columns)
