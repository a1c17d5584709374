"""Distillation losses, one idea a file; `LOSSES` maps the name on the command line to the class."""

from kdnlp.losses.attention import (
    AttentionLoss,
    AttentionScoresLoss,
    attention_kl,
    attention_mse,
)
from kdnlp.losses.base import DistillationLoss
from kdnlp.losses.contrast import ContrastLoss, info_nce
from kdnlp.losses.correlation import CorrelationLoss, correlation_distance
from kdnlp.losses.decoupled import DecoupledLoss, decoupled_kl
from kdnlp.losses.hidden import HiddenLoss, hidden_mse
from kdnlp.losses.hidden_cosine import HiddenCosineLoss, hidden_cosine
from kdnlp.losses.jensen_shannon import JensenShannonLoss, jensen_shannon
from kdnlp.losses.label_smoothing import LabelSmoothingLoss, smoothed_cross_entropy
from kdnlp.losses.logits import LogitsLoss, soft_target_kl, soft_target_sigmoid_kl
from kdnlp.losses.logits_cosine import LogitsCosineLoss, logits_cosine
from kdnlp.losses.logits_mse import LogitsMSELoss, logits_mse
from kdnlp.losses.minilm import MiniLMLoss
from kdnlp.losses.patient import PatientLoss, normalised_distance
from kdnlp.losses.relation import RelationLoss, relation_kl, self_relation
from kdnlp.losses.relational import (
    RelationalAngleLoss,
    RelationalDistanceLoss,
    relational_angle,
    relational_distance,
)
from kdnlp.losses.reverse_kl import ReverseKLLoss, reverse_kl
from kdnlp.losses.similarity import SimilarityLoss, similarity_distance
from kdnlp.losses.teacher_free import TeacherFreeLoss, virtual_teacher_kl
from kdnlp.losses.total_variation import TotalVariationLoss, total_variation

LOSSES: dict[str, type[DistillationLoss]] = {
    "logits": LogitsLoss,
    "reverse_kl": ReverseKLLoss,
    "jensen_shannon": JensenShannonLoss,
    "total_variation": TotalVariationLoss,
    "decoupled": DecoupledLoss,
    "correlation": CorrelationLoss,
    "logits_mse": LogitsMSELoss,
    "logits_cosine": LogitsCosineLoss,
    "label_smoothing": LabelSmoothingLoss,
    "teacher_free": TeacherFreeLoss,
    "hidden": HiddenLoss,
    "hidden_cosine": HiddenCosineLoss,
    "patient": PatientLoss,
    "attention": AttentionLoss,
    "attention_scores": AttentionScoresLoss,
    "relation": RelationLoss,
    "minilm": MiniLMLoss,
    "relational_distance": RelationalDistanceLoss,
    "relational_angle": RelationalAngleLoss,
    "similarity": SimilarityLoss,
    "contrast": ContrastLoss,
}

__all__ = [
    "LOSSES",
    "AttentionLoss",
    "AttentionScoresLoss",
    "ContrastLoss",
    "CorrelationLoss",
    "DecoupledLoss",
    "DistillationLoss",
    "HiddenCosineLoss",
    "HiddenLoss",
    "JensenShannonLoss",
    "LabelSmoothingLoss",
    "LogitsCosineLoss",
    "LogitsLoss",
    "LogitsMSELoss",
    "MiniLMLoss",
    "PatientLoss",
    "RelationLoss",
    "RelationalAngleLoss",
    "RelationalDistanceLoss",
    "ReverseKLLoss",
    "SimilarityLoss",
    "TeacherFreeLoss",
    "TotalVariationLoss",
    "attention_kl",
    "attention_mse",
    "correlation_distance",
    "decoupled_kl",
    "hidden_cosine",
    "hidden_mse",
    "info_nce",
    "jensen_shannon",
    "logits_cosine",
    "logits_mse",
    "normalised_distance",
    "relation_kl",
    "relational_angle",
    "relational_distance",
    "reverse_kl",
    "self_relation",
    "similarity_distance",
    "smoothed_cross_entropy",
    "soft_target_kl",
    "soft_target_sigmoid_kl",
    "total_variation",
    "virtual_teacher_kl",
]
