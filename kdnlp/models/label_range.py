"""Which labels a model has an output for: in a batch, and in a column of a dataset."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from kdnlp.data.columns import column_parts, number_columns
from kdnlp.models.heads import IGNORED_LABEL

POSITIONS = ("start_positions", "end_positions")

_WORDS = ("masked_lm", "causal_lm", "seq2seq_lm")
_CLASSES = ("single_label_classification", "token_classification")


def num_classes(model: PreTrainedModel, task: str) -> int | None:
    """How many classes an item of the task may have; `None` where that is not the model's to say.

    Real numbers have none, and those of question answering and multiple choice are as many as a
    batch has positions and choices.
    """
    if task in _WORDS:
        head = model.get_output_embeddings()  # Marian's decoder may have words of its own
        words = model.config.get_text_config().vocab_size if head is None else len(head.weight)
        return int(words)
    return model.config.num_labels if task in _CLASSES else None


def sound_labels(
    batch: Mapping[str, Any], task: str, classes: int | None
) -> tuple[dict[str, Any], torch.Tensor | None]:
    """The batch with labels that no output stands for made to count for nothing.

    Args:
        batch: what the model is given, the teacher's columns among it or not.
        task: the kind of task.
        classes: what `num_classes` says.

    Returns:
        The batch, and which of its rows had such a label, boolean (rows,), on its device; `None`
        without labels.
    """
    if task == "multiple_choice" and "input_ids" in batch:
        classes = batch["input_ids"].size(1)
    sound, rows = dict(batch), []
    for name in _label_columns(task):
        if isinstance(batch.get(name), torch.Tensor):
            wrong = _wrong(batch[name], task, classes)
            rows.append(wrong.reshape(len(wrong), -1).any(1))
            if not batch[name].is_floating_point():
                none = 0 if task == "question_answering" else IGNORED_LABEL
                sound[name] = batch[name].masked_fill(wrong, none)
    return sound, torch.stack(rows).any(0) if rows else None


def wrong_labels(
    dataset: Dataset, task: str, classes: int | None
) -> Iterator[tuple[int, str, int | float]]:
    """The row, the column and the value of every label that no output stands for.

    The arguments are those of `sound_labels`. A label that is missing is one of them.
    """
    for name in sorted({*_label_columns(task)} & {*number_columns(dataset)}):
        first = 0
        for lengths, values in column_parts(dataset, name):
            wrong = _wrong(torch.tensor(values), task, classes).numpy()
            owners = np.arange(len(lengths[0]) if lengths else len(values))
            num_rows = len(owners)
            if wrong.any():
                for inner in lengths:
                    owners = np.repeat(owners, inner)
                for place in np.flatnonzero(wrong):
                    yield first + int(owners[place]), name, values[place].item()
            first += num_rows


def some_label_counts(dataset: Dataset) -> bool:
    """Whether the dataset has no labels of class ids, or one of them that is not -100."""
    if "labels" not in number_columns(dataset):
        return True
    parts = (values for _, values in column_parts(dataset, "labels"))
    return any(part.dtype.kind == "f" or (part != IGNORED_LABEL).any() for part in parts)


def _label_columns(task: str) -> tuple[str, ...]:
    return POSITIONS if task == "question_answering" else ("labels",)


def _wrong(labels: torch.Tensor, task: str, classes: int | None) -> torch.Tensor:
    """Which labels no output stands for, in their shape."""
    if labels.is_floating_point():
        wrong = ~labels.isfinite()
        if task == "multi_label_classification":
            # The cross-entropy with a target beyond [0, 1] has no lower bound.
            wrong = wrong | (labels < 0) | (labels > 1)
        return wrong
    labels = labels.long()  # a bound that a smaller type cannot hold would wrap around
    if task == "question_answering":
        return labels < 0  # one beyond the end is an answer that was cut off
    # A number that is missing comes as the smallest there is.
    most = torch.iinfo(torch.int64).max if classes is None else classes - 1
    least = 0 if classes is not None else torch.iinfo(torch.int64).min + 1
    return (labels != IGNORED_LABEL) & ((labels < least) | (labels > most))
