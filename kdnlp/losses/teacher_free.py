"""Teacher-free distillation: a virtual teacher that is right by construction (Yuan et al. 2020)."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from kdnlp.losses.base import (
    CHOICE_TASKS,
    DistillationLoss,
    Outputs,
    check_temperature,
    masked_mean,
)
from kdnlp.losses.class_labels import read_labels
from kdnlp.losses.logits import kl_terms


def virtual_teacher_kl(
    logits: torch.Tensor,
    labels: torch.Tensor,
    correct_probability: float = 0.99,
    temperature: float = 20.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`T^2 * KL(p_T || softmax(z / T))`, `p` = `a` for the true class, else `(1 - a) / (K - 1)`.

    `p_T` is `p^(1 / T)`, normalised: what a softmax at temperature `T` makes of logits whose
    softmax is `p`. Mean over the items that count.

    Args:
        logits: shape (*items, labels), `K` labels, at least 2.
        labels: the true class, shape (*items); anything negative where an item does not count.
        correct_probability: `a`, above `1 / K` and below 1.
        temperature: `T`, above 0.
        mask: which items count, shape (*items); `None` counts all.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: if there is one label or a setting is out of range.
    """
    check_temperature(temperature)
    _check_probability(correct_probability, logits.size(-1))
    right = math.log(correct_probability)
    wrong = math.log1p(-correct_probability) - math.log(logits.size(-1) - 1)
    true = labels.clamp_min(0)[..., None]
    teacher = torch.full_like(logits, wrong).scatter(-1, true, right)
    divergence = kl_terms(
        (teacher / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
    )
    return masked_mean(divergence.sum(-1), mask) * temperature**2


class TeacherFreeLoss(DistillationLoss):
    """Soft targets of a virtual teacher, by `virtual_teacher_kl`; it needs no real one.

    Reads `logits`, shape (*items, labels), and `labels`. It regularises beside the task's loss.
    The factor `T^2` keeps its gradient's size at any temperature, as for soft targets; the paper
    has none and tunes the weight, so the paper's weight is this one's times `T^2`. Question
    answering is refused: its classes are positions, and the virtual teacher would give some of its
    probability to padding.

    Args:
        correct_probability: the virtual teacher's probability of the true class, below 1 and above
            that of a guess; the paper asks for 0.9 or more.
        temperature: softens both distributions, above 0; the paper takes 20 or more. It is the
            loss's own: the run's does not change it.

    Source: Yuan, Tay, Li, Wang, Feng 2020, "Revisiting Knowledge Distillation via Label Smoothing
    Regularization", CVPR, arXiv 1909.11723, Tf-KD_reg.
    """

    needs_teacher = False
    tasks = CHOICE_TASKS - {"question_answering"}
    unit = "items"
    citation = """@inproceedings{yuan2020revisiting,
  title={Revisiting Knowledge Distillation via Label Smoothing Regularization},
  author={Yuan, Li and Tay, Francis E. H. and Li, Guilin and Wang, Tao and Feng, Jiashi},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2020}
}"""

    def __init__(self, correct_probability: float = 0.99, temperature: float = 20.0) -> None:
        super().__init__()
        check_temperature(temperature)
        _check_probability(correct_probability)
        self.correct_probability = correct_probability
        self.fixed_temperature = temperature

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        labels, mask = read_labels(batch, type(self).__name__)
        return virtual_teacher_kl(
            student["logits"], labels, self.correct_probability, self.fixed_temperature, mask
        )

    def config(self) -> dict[str, Any]:
        """The probability of the true class and the temperature."""
        return {
            "correct_probability": self.correct_probability,
            "temperature": self.fixed_temperature,
        }


def _check_probability(probability: float, labels: int | None = None) -> None:
    if labels is not None and labels < 2:
        raise ValueError(
            f"Expected at least 2 labels, got {labels}. A softmax over one logit is always 1, so "
            "the loss would be constant and teach nothing."
        )
    guess = 0.0 if labels is None else 1 / labels
    if not guess < probability < 1:
        raise ValueError(
            f"correct_probability must lie between {guess:g}, that of a guess, and 1, got "
            f"{probability}. A lower one teaches a wrong class, and at 1 softening does nothing. "
            "The paper asks for 0.9 or more."
        )
