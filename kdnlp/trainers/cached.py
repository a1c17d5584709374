"""Training on a teacher's outputs from disk: written once, then read beside every batch."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from torch import nn

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.models.cache import (
    ROW_COLUMN,
    CachedCollator,
    TeacherCache,
    cache_teacher,
    combine,
    fingerprint_model,
    with_row_numbers,
)
from kdnlp.models.cache.rows import check_dataset, without_row_numbers
from kdnlp.trainers.step import WeightedLossTrainer

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = Path(HF_HOME, "kdnlp", "teacher_outputs")

_SEVERAL_ANSWERS = ("multi_label_classification", "regression")
"""Tasks whose logits are no distribution over the labels."""


def use_cache(trainer: WeightedLossTrainer, settled: str = "") -> TeacherCache:
    """Write the partner's outputs for the training rows, or find them, and add them to batches.

    Every process must call this; each writes its share.

    Args:
        trainer: one whose run has begun, so that the layers that its losses read are kept.
        settled: what else decides the outputs, such as the order in which labels are read.

    Raises:
        TypeError: if the training rows are no `datasets.Dataset`.
        ValueError: if top-k logits are asked for where every logit is read, the rows have numbers
            that do not count from 0, or `cache_teacher` refuses.
    """
    args = trainer.args
    assert isinstance(args, DistillationTrainingArguments)
    assert trainer.partner is not None
    _check_top_k(trainer, args.teacher_cache_top_k)
    rows: Any = trainer.train_dataset
    check_dataset(rows)
    trainer._signature_columns = None  # may be those of an earlier dataset
    kept = trainer._remove_unused_columns(without_row_numbers(rows), "training")
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
    cache.dataset = rows if ROW_COLUMN in rows.column_names else with_row_numbers(rows)
    trainer.train_dataset = cache.dataset
    trainer._signature_columns = None  # the row's number is one more
    trainer.data_collator = CachedCollator(trainer.data_collator, cache)  # type: ignore[assignment]
    return cache


def check_rows(trainer: WeightedLossTrainer) -> None:
    """Raise `ValueError` if the rows are no longer those whose outputs were cached.

    Without a cache any rows will do.
    """
    if trainer.cache is not None and trainer.train_dataset is not trainer.cache.dataset:
        raise ValueError(
            "Expected the train_dataset that the teacher's outputs were cached for, got another "
            "one. Its rows would learn other rows' answers, or none. Make a new trainer, with the "
            "teacher, for other rows."
        )


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


def _check_top_k(trainer: WeightedLossTrainer, top_k: int | None) -> None:
    """Refuse to cut logits that are read otherwise than as one distribution over the labels."""
    taught = {n: x for n, x in trainer.losses.items() if x.needs_teacher and "logits" in x.needs}
    whole = [
        f"{name} ({type(loss).__name__})"
        for name, loss in taught.items()
        if not loss.reads_probabilities
    ]
    if taught and trainer.task in _SEVERAL_ANSWERS:
        whole = [f"the task {trainer.task}"]
    if top_k is not None and whole:
        raise ValueError(
            f"teacher_cache_top_k={top_k} keeps the largest logits and makes up the others, whose "
            "probability it spreads evenly: expected losses that read the probabilities of one "
            f"class an item, got {', '.join(whole)}. Made-up logits would be taught as the "
            "teacher's. Leave teacher_cache_top_k unset to cache all logits; "
            'teacher_cache_dtype="bfloat16" halves them.'
        )


def _precision(trainer: WeightedLossTrainer) -> str:
    """Under autocast the same weights give other numbers, and so do other devices and kernels."""
    unpadded = " unpadded" if trainer.args.unpadded else ""
    run = f"{trainer.accelerator.mixed_precision} {trainer.args.device.type}{unpadded}"
    return run + trainer.teacher_run.key()
