"""Distillation losses, one idea a file; `LOSSES` maps the name on the command line to the class."""

from kdnlp.losses.base import DistillationLoss
from kdnlp.losses.logits import LogitsLoss, soft_target_kl, soft_target_sigmoid_kl

LOSSES: dict[str, type[DistillationLoss]] = {
    "logits": LogitsLoss,
}

__all__ = [
    "LOSSES",
    "DistillationLoss",
    "LogitsLoss",
    "soft_target_kl",
    "soft_target_sigmoid_kl",
]
