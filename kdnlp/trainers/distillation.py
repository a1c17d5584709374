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
from kdnlp.models.heads import LABELLED_TASKS, SEQUENCE_TASKS, TOKEN_TASKS, task_kind
from kdnlp.trainers.base import CompressionTrainer
from kdnlp.trainers.cached import free, use_cache


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
        """The frozen teacher.

        Raises:
            ValueError: if there is none, or its cached outputs have taken its place.
        """
        if self.partner is None:
            raise ValueError(
                "This trainer has no teacher: it was given none, or reads the outputs that it "
                "cached and has let it go. Keep a reference of your own."
            )
        return self.partner

    def join(self, model: PreTrainedModel) -> None:
        """Check the rows once more, which may have been set since construction."""
        if self.partner is not None:
            self._check_columns(model)
        super().join(model)

    def partner_outputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The teacher's outputs, its logits in the order of the student's labels."""
        outputs = super().partner_outputs(inputs)
        # What was cached is in this order already.
        if self.label_order is not None and self.partner is not None:
            outputs["logits"] = outputs["logits"][..., self.label_order]
        return outputs

    def _use_cache(self) -> None:
        """Read the teacher's outputs from disk from now on, and let the teacher go."""
        if not any(loss.needs_teacher for loss in self.losses.values()):
            return
        self.cache = use_cache(self, settled=str(self.label_order))
        self._note_cached_layers()
        teacher, self.partner = self.teacher, None
        free(teacher)
        if self.intermediate is not None:
            self.intermediate.remove()
        self.teacher_run.stop()
        self.intermediate = self._keep_layers(self.student)

    def _check_model(self, model: PreTrainedModel) -> None:
        super()._check_model(model)
        if self.partner is None:
            return
        self._check_teachers_task()
        if self.task in LABELLED_TASKS:
            self.label_order = align_labels(self.teacher.config, model.config)
        self._check_columns(model)

    def _check_columns(self, model: PreTrainedModel) -> None:
        """Refuse rows from which the teacher would read something else than it was trained on."""
        columns = self.train_columns()
        if f"{TEACHER_PREFIX}input_ids" in columns:
            self._check_positions()
        else:
            check_vocabulary(self.teacher.config, model.config)
            check_inputs(self.teacher, model, columns)

    def _check_teachers_task(self) -> None:
        """Refuse a teacher whose answers are of another kind than the student's."""
        theirs = task_kind(self.teacher) if isinstance(self.teacher, PreTrainedModel) else self.task
        said = getattr(self.teacher.config, "problem_type", None)
        if theirs != self.task and (said or theirs not in SEQUENCE_TASKS):
            raise ValueError(
                f"Teacher and student must answer one kind of task, got a teacher for {theirs} and "
                f"a student for {self.task}. Its logits would be read as something else. Use a "
                "teacher of the student's kind, or correct problem_type in the configuration that "
                "is wrong."
            )

    def _check_positions(self) -> None:
        """Refuse to compare positions where the teacher reads other tokens than the student."""
        layered = [name for name, loss in self.losses.items() if loss.needs - {"logits"}]
        if layered or self.task in (*TOKEN_TASKS, "question_answering"):
            what = f"the losses {', '.join(layered)} read" if layered else f"{self.task} predicts"
            raise ValueError(
                f"The data has {TEACHER_PREFIX}input_ids of the teacher's own, and {what} one "
                "value a position. Its positions are other places in the text than the student's. "
                "Use losses on logits and a task with one answer an example, or a teacher with the "
                "student's tokenizer and texts."
            )
