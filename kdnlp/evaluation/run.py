"""How a model came about, as plain values for the report and the card."""

import platform
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import datasets
import torch
import transformers
from transformers import TrainingArguments

import kdnlp
from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.data.task import Task
from kdnlp.loading import has_own_code
from kdnlp.trainers.base import CompressionTrainer

BASELINE_RATE = "baseline_learning_rate"
"""What the baseline reads in the place of `learning_rate`, and no method."""

SHARED_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "optim",
    "seed",
)
"""What every training has, plain fine-tuning too."""

_NOT_TRAINING = ("overwrite_output_dir", "teacher_cache_dir", "teacher_cache_limit_gb")
"""Where and whether files lie, which changes no weight and may name a folder."""


def describe_run(trainer: CompressionTrainer, task: Task, **more: Any) -> dict[str, Any]:
    """What a trained trainer did, on what, and with which versions.

    Args:
        trainer: has trained.
        task: what it trained on.
        **more: further plain values, such as `base_model` or `command`. Runs that differ in
            `init_layers`, `student`, `teachers` or `teacher_dtype` are not pooled as seeds.

    Returns:
        Values that JSON can hold; of itself it names no folder and no token.
    """
    args = trainer.args
    assert trainer.train_dataset is not None
    return {
        "method": trainer.method,
        "dataset": task.dataset,
        "arguments": _arguments(trainer),
        "losses": {name: loss.config() for name, loss in trainer.losses.items()},
        "citations": _citations(trainer),
        "optimizer_steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "processes": args.world_size,
        "precision": next((p for p in ("bf16", "fp16") if getattr(args, p)), "fp32"),
        "device": args.device.type,
        "seed": args.seed,
        "selected_on": args.metric_for_best_model if args.load_best_model_at_end else None,
        "selected_on_split": _selected_on_split(trainer, task),
        "task_kind": task.kind,
        "remote_code": has_own_code(trainer.student),
        "text_columns": list(task.text_columns),
        "label_names": list(task.label_names or ()),
        "positive_class": _positive_class(task),
        "max_length": task.max_length,
        "train_rows": getattr(trainer.train_dataset, "num_rows", None),
        "versions": {
            "kdnlp": kdnlp.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "datasets": datasets.__version__,
            "python": platform.python_version(),
        },
        **more,
    }


def hub_source(origin: Mapping[str, Any]) -> str | None:
    """What a model comes from on the Hub, with the revision where it is known.

    Models of several seeds, each in a folder of its own, have this in common.

    Args:
        origin: what `kdnlp.hub.origin.describe_origin` told, or a run that it went into.

    Returns:
        `None` where nothing on the Hub is known.

    >>> hub_source({"base_model": "seed-1", "base_model_from": ["google-bert/bert-base-uncased"]})
    'google-bert/bert-base-uncased'
    """
    if not origin.get("base_model_on_hub"):
        return ", ".join(origin.get("base_model_from", ())) or None
    revision = origin.get("base_model_revision")
    return f"{origin['base_model']}@{revision}" if revision else str(origin["base_model"])


def _selected_on_split(trainer: CompressionTrainer, task: Task) -> str | None:
    """The split whose scores chose the checkpoint; `None` if none did, or it bears no name."""
    if not trainer.args.load_best_model_at_end:
        return None
    splits = task.eval_splits
    named = str(getattr(trainer.eval_dataset, "split", None))
    return splits[0] if len(splits) == 1 else named if named in splits else None


def _positive_class(task: Task) -> str | None:
    """The name of the class that F1 is of, where it is that of one class."""
    names = task.label_names or ()
    one = task.kind == "single_label_classification" and len(names) == 2
    return names[task.positive_class] if one else None


def _arguments(trainer: CompressionTrainer) -> dict[str, Any]:
    """The arguments of the method as it was used, then those that every training has."""
    args = trainer.args
    stock = {field.name for field in fields(TrainingArguments)}
    if not trainer.losses:
        stock |= {field.name for field in fields(DistillationTrainingArguments)}
    if not getattr(args, "cache_teacher_outputs", False):
        stock |= {"cache_teacher_outputs", "teacher_cache_dtype", "teacher_cache_top_k"}
    own = [f.name for f in fields(args) if f.init and f.name not in {*stock, *_NOT_TRAINING}]
    own += [BASELINE_RATE] if BASELINE_RATE not in own and hasattr(args, BASELINE_RATE) else []
    values = {name: getattr(args, name) for name in (*own, *SHARED_ARGUMENTS)}
    return {k: getattr(v, "value", v) for k, v in values.items() if v is not None}


def _citations(trainer: CompressionTrainer) -> list[str]:
    found = [trainer.citation, *(loss.citation for loss in trainer.losses.values())]
    found += [trainer.balancer.citation] if trainer.balancer is not None else []
    return list(dict.fromkeys(filter(None, found)))
