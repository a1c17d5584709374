"""Training on a teacher's outputs from disk: written once, then read beside every batch."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from torch import nn

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.models.cache import (
    CachedCollator,
    TeacherCache,
    cache_teacher,
    combine,
    fingerprint_model,
    with_row_numbers,
)
from kdnlp.trainers.step import WeightedLossTrainer

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = Path(HF_HOME, "kdnlp", "teacher_outputs")


def use_cache(trainer: WeightedLossTrainer, settled: str = "") -> TeacherCache:
    """Write the partner's outputs for the training rows, or find them, and add them to batches.

    Every process must call this; each writes its share.

    Args:
        trainer: one whose run has begun, so that the layers that its losses read are kept.
        settled: what else decides the outputs, such as the order in which labels are read.
    """
    args = trainer.args
    assert isinstance(args, DistillationTrainingArguments)
    assert trainer.partner is not None
    rows = trainer.train_dataset
    kept = trainer._remove_unused_columns(rows, "training") if _has_columns(rows) else rows
    cache = cache_teacher(
        lambda batch: answers(trainer, batch),
        kept,
        trainer.data_collator,
        args.teacher_cache_dir or DEFAULT_FOLDER,
        teacher_key=combine(fingerprint_model(trainer.partner), _precision(trainer), settled),
        batch_size=args.per_device_eval_batch_size,
        top_k=args.teacher_cache_top_k,
        limit_gb=args.teacher_cache_limit_gb,
        dtype=args.teacher_cache_dtype,
        logits_mask="labels" if trainer.task == "seq2seq_lm" else "attention_mask",
        rank=args.process_index,
        world_size=args.world_size,
        barrier=trainer.accelerator.wait_for_everyone,
        disable_tqdm=bool(args.disable_tqdm),
    )
    logger.info("The teacher's outputs are read from %s.", cache.folder)
    trainer.train_dataset = with_row_numbers(rows)
    trainer._signature_columns = None  # the row's number is one more
    trainer.data_collator = CachedCollator(trainer.data_collator, cache)  # type: ignore[assignment]
    return cache


def answers(trainer: WeightedLossTrainer, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the partner says about a collated batch, as far as the losses read it."""
    outputs = trainer.partner_outputs(trainer._prepare_inputs(dict(batch)))
    fields = set().union(*(loss.needs for loss in trainer.losses.values() if loss.needs_teacher))
    wanted = fields | ({"start_logits", "end_logits"} if "logits" in fields else set())
    return {name: value for name, value in outputs.items() if name in wanted}


def free(model: nn.Module) -> None:
    """Take a model off the accelerator; the caller may still hold it."""
    if getattr(model, "hf_device_map", None) is None:
        nn.Module.to(model, "cpu")


def _has_columns(rows: Any) -> bool:
    return hasattr(rows, "column_names")


def _precision(trainer: WeightedLossTrainer) -> str:
    """Under autocast the same weights give other numbers, and so does another device."""
    return f"{trainer.accelerator.mixed_precision} {trainer.args.device.type}"
