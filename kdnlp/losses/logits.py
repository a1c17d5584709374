"""Soft targets: the student matches the teacher's output distribution (Hinton et al. 2015)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from kdnlp.losses.base import (
    ALL_TASKS,
    DistillationLoss,
    Outputs,
    check_class_logits,
    check_logits,
    check_temperature,
    masked_mean,
)
from kdnlp.models.heads import SEQUENCE_TASKS

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


def soft_target_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, mean over items.

    The factor `T^2` keeps the gradient's size when the temperature changes (Hinton et al. 2015,
    section 2). A label to which the teacher gives no probability adds nothing, even where both
    logits are minus infinity.

    Args:
        student_logits: shape (..., labels), at least two labels: a softmax over one is constant.
        teacher_logits: the same shape.
        temperature: above 0; higher gives more weight to the unlikely labels.
        mask: which items count, the shape without labels; `None` counts all.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: if the shapes differ, there is one label, or the temperature is not positive.
    """
    check_class_logits(student_logits, teacher_logits, temperature)
    student_log_probs = F.log_softmax(student_logits / temperature, dim=-1)
    teacher_log_probs = F.log_softmax(teacher_logits / temperature, dim=-1)
    divergence = kl_terms(teacher_log_probs, student_log_probs).sum(-1)
    return masked_mean(divergence, mask) * temperature**2


def soft_target_sigmoid_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """`T^2 * KL` of the Bernoulli distributions of every label, mean over items and labels.

    The form for multi-label tasks, where each label is a yes-or-no question of its own. The mean
    over labels puts it on the scale of `BCEWithLogitsLoss`, the task loss beside it.

    Args:
        student_logits: shape (..., labels).
        teacher_logits: the same shape.
        temperature: above 0.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.
    """
    check_logits(student_logits, teacher_logits, temperature)
    student, teacher = student_logits / temperature, teacher_logits / temperature
    divergence = kl_terms(F.logsigmoid(teacher), F.logsigmoid(student))
    divergence = divergence + kl_terms(F.logsigmoid(-teacher), F.logsigmoid(-student))
    return divergence.mean() * temperature**2


class LogitsLoss(DistillationLoss):
    """Soft targets: softmax, sigmoid or squared error, as the task asks.

    Reads `logits`, shape (*items, labels). Tasks that choose a class use `soft_target_kl`,
    multi-label ones `soft_target_sigmoid_kl`; for regression it is the mean squared error to the
    teacher's prediction, without a temperature. It misleads where the teacher is confidently wrong.

    Args:
        temperature: a fixed temperature; `None` takes the run's, which may follow a schedule.
        problem_type: `None` reads the student's configuration, and failing that the shape of the
            logits and the type of the labels, as the models themselves do.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531.
    """

    tasks = ALL_TASKS
    reads_probabilities = True
    citation = """@article{hinton2015distilling,
  title={Distilling the Knowledge in a Neural Network},
  author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal={arXiv preprint arXiv:1503.02531},
  year={2015}
}"""

    def __init__(
        self, temperature: float | None = None, problem_type: ProblemType | None = None
    ) -> None:
        super().__init__()
        if temperature is not None:
            check_temperature(temperature)
        self.fixed_temperature = temperature
        self.problem_type = problem_type
        self.prepared_type: ProblemType | None = None

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Take the problem type from the student's configuration, where it is set."""
        super().prepare(student, teacher, task)
        own = task in SEQUENCE_TASKS
        self.prepared_type = student.problem_type if own else "single_label_classification"

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        temperature = self.fixed_temperature or self.temperature
        known = self.problem_type or self.prepared_type
        problem_type = known or _infer_problem_type(student["logits"], batch)
        if problem_type == "regression":
            check_logits(student["logits"], teacher["logits"], temperature)
            return F.mse_loss(student["logits"], teacher["logits"])
        if problem_type == "multi_label_classification":
            return soft_target_sigmoid_kl(student["logits"], teacher["logits"], temperature)
        mask = batch.get("item_mask")
        return soft_target_kl(student["logits"], teacher["logits"], temperature, mask)

    def config(self) -> dict[str, Any]:
        """The fixed temperature, if any, and the problem type."""
        problem_type = self.problem_type or self.prepared_type
        return {"temperature": self.fixed_temperature, "problem_type": problem_type}


def _infer_problem_type(logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> ProblemType:
    if logits.size(-1) == 1:
        return "regression"
    labels = batch.get("labels")
    if labels is not None and labels.is_floating_point():
        return "multi_label_classification"
    return "single_label_classification"


def kl_terms(teacher_log_probs: torch.Tensor, student_log_probs: torch.Tensor) -> torch.Tensor:
    """`p * (log p - log q)` per outcome, 0 where `p` is 0."""
    teacher_probs = teacher_log_probs.exp()
    terms = teacher_probs * (teacher_log_probs - student_log_probs)
    return torch.where(teacher_probs > 0, terms, torch.zeros_like(terms))
