"""Distillation losses, one idea a file; `LOSSES` maps the name on the command line to the class."""

from kdnlp.losses.base import DistillationLoss
from kdnlp.losses.correlation import CorrelationLoss, correlation_distance
from kdnlp.losses.decoupled import DecoupledLoss, decoupled_kl
from kdnlp.losses.jensen_shannon import JensenShannonLoss, jensen_shannon
from kdnlp.losses.logits import LogitsLoss, soft_target_kl, soft_target_sigmoid_kl
from kdnlp.losses.reverse_kl import ReverseKLLoss, reverse_kl
from kdnlp.losses.total_variation import TotalVariationLoss, total_variation

LOSSES: dict[str, type[DistillationLoss]] = {
    "logits": LogitsLoss,
    "reverse_kl": ReverseKLLoss,
    "jensen_shannon": JensenShannonLoss,
    "total_variation": TotalVariationLoss,
    "decoupled": DecoupledLoss,
    "correlation": CorrelationLoss,
}

__all__ = [
    "LOSSES",
    "CorrelationLoss",
    "DecoupledLoss",
    "DistillationLoss",
    "JensenShannonLoss",
    "LogitsLoss",
    "ReverseKLLoss",
    "TotalVariationLoss",
    "correlation_distance",
    "decoupled_kl",
    "jensen_shannon",
    "reverse_kl",
    "soft_target_kl",
    "soft_target_sigmoid_kl",
    "total_variation",
]
