"""Training arguments: flat, serialisable, checked before anything is loaded or trained."""

from kdnlp.arguments.common import CompressionTrainingArguments
from kdnlp.arguments.distillation import DistillationTrainingArguments
from kdnlp.arguments.theseus import TheseusTrainingArguments

__all__ = [
    "CompressionTrainingArguments",
    "DistillationTrainingArguments",
    "TheseusTrainingArguments",
]
