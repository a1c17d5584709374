"""Compress a fine-tuned transformer by module replacement or distillation.

Names are imported when they are first used: `import kdnlp` alone loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "CompressionTrainingArguments": "arguments",
    "DistillationTrainingArguments": "arguments",
    "TheseusTrainingArguments": "arguments",
    "SCHEDULES": "schedules",
    "build_schedule": "schedules",
    "augment_tokens": "data.augmentation",
    "TeacherInputsCollator": "data.collation",
    "add_teacher_inputs": "data.collation",
    "GLUE_TASKS": "data.glue",
    "load_glue": "data.glue",
    "load_glue_test": "data.glue_unlabelled",
    "KINDS": "data.preparation",
    "build_collator": "data.preparation",
    "check_dataset": "data.preparation",
    "prepare": "data.preparation",
    "SYNTHETIC_TASKS": "data.synthetic",
    "generate": "data.synthetic",
    "infer_task": "data.tables",
    "read_tables": "data.tables",
    "Task": "data.task",
    "replace_words": "data.word_replacement",
    "TeacherEnsemble": "models.ensemble",
    "find_layers": "models.layers",
    "build_student": "models.student",
    "load_ensemble": "models.pretrained",
    "load_finetuned": "models.pretrained",
    "load_for_finetuning": "models.pretrained",
    "in_model_order": "models.pretrained",
    "attach": "models.theseus",
    "detach": "models.theseus",
    "Unpadded": "models.unpadded",
    "cache_teacher": "models.cache",
    "CachedCollator": "models.cache",
    "TeacherCache": "models.cache",
    "fingerprint_model": "models.cache",
    "with_row_numbers": "models.cache",
    "LOSSES": "losses",
    "AttentionLoss": "losses",
    "AttentionScoresLoss": "losses",
    "ContrastLoss": "losses",
    "CorrelationLoss": "losses",
    "DecoupledLoss": "losses",
    "DistillationLoss": "losses",
    "HiddenCosineLoss": "losses",
    "HiddenLoss": "losses",
    "JensenShannonLoss": "losses",
    "LabelSmoothingLoss": "losses",
    "LogitsCosineLoss": "losses",
    "LogitsLoss": "losses",
    "LogitsMSELoss": "losses",
    "MiniLMLoss": "losses",
    "PatientLoss": "losses",
    "RelationLoss": "losses",
    "RelationalAngleLoss": "losses",
    "RelationalDistanceLoss": "losses",
    "ReverseKLLoss": "losses",
    "SimilarityLoss": "losses",
    "TeacherFreeLoss": "losses",
    "TotalVariationLoss": "losses",
    "CompressionTrainer": "trainers.base",
    "DistillationTrainer": "trainers.distillation",
    "Preempted": "trainers.preemption",
    "TheseusTrainer": "trainers.theseus",
    "compare_runtimes": "profiling.runtimes",
    "profile_model": "profiling.profile",
    "profile_models": "profiling.profile",
    "ExportMismatch": "compression.gate",
    "ExportSettings": "compression.settings",
    "OnnxModel": "models.onnx_graph",
    "export_model": "compression.export",
    "export_onnx": "models.onnx_graph",
    "find_answers": "evaluation.answers",
    "build_compute_metrics": "evaluation.metrics",
    "evaluate_model": "evaluation.evaluate",
    "describe_run": "evaluation.run",
    "CompressionReport": "evaluation.report",
    "build_card": "hub.card",
    "publish_results": "hub.publish",
    "check_submission": "hub.submission",
    "write_submission": "hub.submission",
    "check_card": "uploads.card_check",
    "publishable_files": "uploads.publishable",
    "parse_arguments": "cli.parsing",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from kdnlp.arguments import (
        CompressionTrainingArguments,
        DistillationTrainingArguments,
        TheseusTrainingArguments,
    )
    from kdnlp.cli.parsing import parse_arguments
    from kdnlp.compression.export import export_model
    from kdnlp.compression.gate import ExportMismatch
    from kdnlp.compression.settings import ExportSettings
    from kdnlp.data.augmentation import augment_tokens
    from kdnlp.data.collation import TeacherInputsCollator, add_teacher_inputs
    from kdnlp.data.glue import GLUE_TASKS, load_glue
    from kdnlp.data.glue_unlabelled import load_glue_test
    from kdnlp.data.preparation import KINDS, build_collator, check_dataset, prepare
    from kdnlp.data.synthetic import SYNTHETIC_TASKS, generate
    from kdnlp.data.tables import infer_task, read_tables
    from kdnlp.data.task import Task
    from kdnlp.data.word_replacement import replace_words
    from kdnlp.evaluation.answers import find_answers
    from kdnlp.evaluation.evaluate import evaluate_model
    from kdnlp.evaluation.metrics import build_compute_metrics
    from kdnlp.evaluation.report import CompressionReport
    from kdnlp.evaluation.run import describe_run
    from kdnlp.hub.card import build_card
    from kdnlp.hub.publish import publish_results
    from kdnlp.hub.submission import check_submission, write_submission
    from kdnlp.losses import (
        LOSSES,
        AttentionLoss,
        AttentionScoresLoss,
        ContrastLoss,
        CorrelationLoss,
        DecoupledLoss,
        DistillationLoss,
        HiddenCosineLoss,
        HiddenLoss,
        JensenShannonLoss,
        LabelSmoothingLoss,
        LogitsCosineLoss,
        LogitsLoss,
        LogitsMSELoss,
        MiniLMLoss,
        PatientLoss,
        RelationalAngleLoss,
        RelationalDistanceLoss,
        RelationLoss,
        ReverseKLLoss,
        SimilarityLoss,
        TeacherFreeLoss,
        TotalVariationLoss,
    )
    from kdnlp.models.cache import (
        CachedCollator,
        TeacherCache,
        cache_teacher,
        fingerprint_model,
        with_row_numbers,
    )
    from kdnlp.models.ensemble import TeacherEnsemble
    from kdnlp.models.layers import find_layers
    from kdnlp.models.onnx_graph import OnnxModel, export_onnx
    from kdnlp.models.pretrained import (
        in_model_order,
        load_ensemble,
        load_finetuned,
        load_for_finetuning,
    )
    from kdnlp.models.student import build_student
    from kdnlp.models.theseus import attach, detach
    from kdnlp.models.unpadded import Unpadded
    from kdnlp.profiling.profile import profile_model, profile_models
    from kdnlp.profiling.runtimes import compare_runtimes
    from kdnlp.schedules import SCHEDULES, build_schedule
    from kdnlp.trainers.base import CompressionTrainer
    from kdnlp.trainers.distillation import DistillationTrainer
    from kdnlp.trainers.preemption import Preempted
    from kdnlp.trainers.theseus import TheseusTrainer
    from kdnlp.uploads.card_check import check_card
    from kdnlp.uploads.publishable import publishable_files


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdnlp' has no attribute {name!r}")
    return getattr(import_module(f"kdnlp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
