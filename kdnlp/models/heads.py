"""What a model's head predicts, and how its logits and a batch's labels become items of a loss.

The one place that knows tasks apart: losses see items, each with logits over some labels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

SEQUENCE_TASKS = ("single_label_classification", "multi_label_classification", "regression")
TOKEN_TASKS = ("token_classification", "masked_lm", "causal_lm", "seq2seq_lm")
TASK_KINDS = (*SEQUENCE_TASKS, "question_answering", "multiple_choice", *TOKEN_TASKS)
"""Every kind of task; one prediction an example, two, or one a position."""

LABELLED_TASKS = (*SEQUENCE_TASKS, "token_classification")
"""Tasks whose labels have names in the configuration."""

UNITS = ("rows", "items", "tokens")
"""What a loss is a mean over: examples, predictions that count, attended positions."""

IGNORED_LABEL = -100
MASKED_LOGIT = -1e4
"""The logit of a position that is padding: its probability is 0 and its gradient is no NaN."""

_CLASSES = {
    "token_classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question_answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "multiple_choice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked_lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
}


def task_kind(model: PreTrainedModel, labels: Any = None) -> str:
    """The kind of task, out of `TASK_KINDS`, that a model's head is for.

    A class that transformers does not name counts as what it derives from, and failing that as a
    sequence classifier. One whose configuration does not say `problem_type` has one label an
    example, or is a regression where it has one logit.

    Args:
        model: the model.
        labels: the `datasets` feature of the labels, where it is known. Lists of real numbers make
            a sequence classifier a multi-label one, as they do for the models themselves.
    """
    names = {parent.__name__ for parent in type(model).__mro__}
    for task, classes in _CLASSES.items():
        if names & set(classes.values()):
            return task
    problem = getattr(model.config, "problem_type", None)
    if problem is None:
        several = str(getattr(getattr(labels, "feature", None), "dtype", "")).startswith("float")
        kinds = {True: "multi_label_classification", False: "single_label_classification"}
        problem = "regression" if model.config.num_labels == 1 else kinds[several]
    return str(problem)


def check_named_outputs(*models: Any) -> None:
    """Raise `ValueError` if a model gives its outputs without their names; `None` is no model."""
    for model in models:
        for member in getattr(model, "members", [model]):
            if getattr(getattr(member, "config", None), "return_dict", True) is False:
                raise ValueError(
                    f"Expected outputs by name, got return_dict=False in the configuration of "
                    f"{type(member).__name__}: losses would find no logits among what it returns. "
                    "Set model.config.return_dict = True, or in its config.json."
                )


def as_items(
    outputs: Mapping[str, Any], batch: Mapping[str, Any], task: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs and batch with logits, labels and `item_mask` of one shape, item by item.

    - Sequence tasks: an item an example, `logits` (batch, labels); the label -100 does not count.
    - Token tasks: an item a position, `logits` (batch, length, labels); those with the label -100
      do not count, nor, without labels, those that are not attended to. The logits of a causal
      language model are shifted, so that position t is compared with the token at t + 1.
    - Question answering: two items an example, start and end, `logits` (batch, 2, length);
      padding has the logit `MASKED_LOGIT`, and a label there or beyond does not count.
    - Multiple choice: an item an example, `logits` (batch, choices); the attention mask becomes
      (batch * choices, length), the shape that hidden states have.

    Args:
        outputs: what a model returned; without logits where only its layers are of interest.
        batch: what it was given, with or without labels.
        task: its kind of task.
    """
    outputs, batch, mask = dict(outputs), dict(batch), item_mask(batch, task)
    if mask is not None:
        batch["item_mask"] = mask
    if task == "question_answering":
        return _answer_items(outputs, batch)
    if task == "multiple_choice" and batch.get("attention_mask") is not None:
        batch["attention_mask"] = batch["attention_mask"].flatten(0, 1)
    if task == "causal_lm":
        if "logits" in outputs:
            outputs["logits"] = outputs["logits"][:, :-1]
        if batch.get("labels") is not None:
            batch["labels"] = batch["labels"][:, 1:]
    return outputs, batch


def item_mask(batch: Mapping[str, Any], task: str) -> torch.Tensor | None:
    """Which predictions count, in the shape of the items; `None` where all do.

    The label -100 does not count, nor an answer beyond the end of the text, as in the models' own
    losses, nor one in its padding. A token task without labels counts the positions that are
    attended to.
    """
    labels = batch.get("labels")
    if task == "question_answering":
        return _answer_mask(batch)
    if task not in TOKEN_TASKS:
        chosen = labels is not None and not labels.is_floating_point()
        return labels != IGNORED_LABEL if chosen else None  # type: ignore[return-value]
    if labels is not None:
        mask = labels != IGNORED_LABEL
    elif batch.get("attention_mask") is not None and task != "seq2seq_lm":
        mask = batch["attention_mask"].bool()
    else:
        known = batch["decoder_input_ids" if task == "seq2seq_lm" else "input_ids"]
        mask = torch.ones_like(known, dtype=torch.bool)
    return mask[:, 1:] if task == "causal_lm" else mask


def count_items(batch: Mapping[str, Any], task: str) -> torch.Tensor:
    """How many rows, items and tokens a batch has, in the order of `UNITS`; stays on the device."""
    first = next(value for value in batch.values() if isinstance(value, torch.Tensor))
    # Filled on the device: a copy from the host would wait for it.
    rows = torch.full((), float(len(first)), device=first.device)
    mask = item_mask(batch, task)
    attended, ids = batch.get("attention_mask"), batch.get("input_ids")
    items = rows if mask is None else mask.sum()
    tokens = rows
    if attended is not None:
        tokens = attended.sum()
    elif ids is not None:
        tokens = rows * ids[0].numel()
    return torch.stack([rows, items.to(rows), tokens.to(rows)])


def with_some_label(batch: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The batch, with one label put in where it has none that counts.

    A model's own loss over nothing is 0 / 0, and the NaN would spread however small its weight.
    Such a batch counts no item, so what the stand-in teaches weighs nothing. Question answering
    keeps its positions: its starts may count where no end does, and its loss reads the item mask.
    """
    mask, batch = item_mask(batch, task), dict(batch)
    if mask is not None and batch.get("labels") is not None:
        labels = batch["labels"].clone(memory_format=torch.contiguous_format)
        last = labels.view(-1)[-1:]
        last.copy_(torch.where(mask.any(), last, torch.zeros_like(last)))
        batch["labels"] = labels
    return batch


def _answer_mask(batch: Mapping[str, Any]) -> torch.Tensor | None:
    if batch.get("start_positions") is None:
        return None
    labels, width = _positions(batch), batch["input_ids"].size(-1)
    within, attended = labels < width, batch.get("attention_mask")
    if attended is None:
        return within
    return within & attended.gather(1, labels.clamp(0, width - 1)).bool()


def _positions(batch: Mapping[str, Any]) -> torch.Tensor:
    """The answers' starts and ends, shape (batch, 2)."""
    both = batch["start_positions"], batch["end_positions"]
    return torch.stack([positions.flatten() for positions in both], dim=1)


def _answer_items(
    outputs: dict[str, Any], batch: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    if "start_logits" not in outputs:
        return outputs, batch
    logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=1)
    if batch.get("attention_mask") is not None:
        padding = batch["attention_mask"][:, None] == 0
        logits = logits.masked_fill(padding, MASKED_LOGIT)
    outputs["logits"] = logits
    if batch.get("start_positions") is not None:
        batch["labels"] = _positions(batch).clamp(0, logits.size(-1) - 1)
    return outputs, batch
