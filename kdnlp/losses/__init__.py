"""Distillation losses, one idea a file; `LOSSES` maps the name on the command line to the class."""

from kdnlp.losses.attention import (
    AttentionLoss,
    AttentionScoresLoss,
    attention_kl,
    attention_mse,
)
from kdnlp.losses.base import DistillationLoss
from kdnlp.losses.correlation import CorrelationLoss, correlation_distance
from kdnlp.losses.decoupled import DecoupledLoss, decoupled_kl
from kdnlp.losses.hidden import HiddenLoss, hidden_mse
from kdnlp.losses.hidden_cosine import HiddenCosineLoss, hidden_cosine
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
    "hidden": HiddenLoss,
    "hidden_cosine": HiddenCosineLoss,
    "attention": AttentionLoss,
    "attention_scores": AttentionScoresLoss,
}

__all__ = [
    "LOSSES",
    "AttentionLoss",
    "AttentionScoresLoss",
    "CorrelationLoss",
    "DecoupledLoss",
    "DistillationLoss",
    "HiddenCosineLoss",
    "HiddenLoss",
    "JensenShannonLoss",
    "LogitsLoss",
    "ReverseKLLoss",
    "TotalVariationLoss",
    "attention_kl",
    "attention_mse",
    "correlation_distance",
    "decoupled_kl",
    "hidden_cosine",
    "hidden_mse",
    "jensen_shannon",
    "reverse_kl",
    "soft_target_kl",
    "soft_target_sigmoid_kl",
    "total_variation",
]
