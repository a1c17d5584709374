"""The rows of a run, looked at once before it starts: can the models read them?"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel

from kdnlp.data.columns import column_parts, number_columns
from kdnlp.models.alignment import TEACHER_PREFIX
from kdnlp.models.heads import LABELLED_TASKS
from kdnlp.models.label_range import num_classes, some_label_counts, wrong_labels
from kdnlp.models.positions import position_limit, too_long
from kdnlp.trainers.step import WeightedLossTrainer

MAX_ROWS = 8
"""How many rows an error names."""


def check_training_data(trainer: WeightedLossTrainer, model: PreTrainedModel) -> dict[str, int]:
    """Look at the rows to train on, and those to evaluate on during the run.

    Of what is no `datasets.Dataset` only the number of rows is looked at: its batches are when they
    come. So is what a dataset's own transform makes of its columns.

    Returns:
        The most tokens that a batch may have, by column.

    Raises:
        ValueError: for rows that would stop the run in the middle, or train wrongly.
    """
    _check_number(trainer)
    limits = _limits(trainer, model)
    classes = num_classes(model, trainer.task)
    own = position_limit(model)
    alone = {} if own is None else {"input_ids": own}  # the student is evaluated alone
    alone |= _label_limit(trainer, model)
    for name, dataset in _datasets(trainer):
        here = limits if name == "train_dataset" else alone
        if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
            continue
        for column in sorted({"input_ids", *here} & set(number_columns(dataset))):
            _check_lengths(dataset, name, column, here.get(column))
        wrong = wrong_labels(dataset, trainer.task, classes)
        found = list(islice(wrong, MAX_ROWS))
        if found:
            _refuse_labels(name, trainer.task, classes, found)
        if name == "train_dataset" and trainer.task in LABELLED_TASKS:
            _check_some_label(trainer, dataset)
    return limits


def _check_number(trainer: WeightedLossTrainer) -> None:
    rows = trainer.train_dataset
    if rows is None or not hasattr(rows, "__len__"):
        return
    step = trainer.args.train_batch_size * trainer.args.world_size
    least = step if trainer.args.dataloader_drop_last else 1
    if len(rows) < least:
        more = "" if least == 1 else f" for the {step} of a batch, as dataloader_drop_last=True"
        raise ValueError(
            f"train_dataset: expected at least {least} row{'s'[: least > 1]}{more}, got "
            f"{len(rows)}. Nothing would be trained. Check the filter or the file that it came "
            "from, or use a smaller batch."
        )


def _datasets(trainer: WeightedLossTrainer) -> Iterator[tuple[str, Any]]:
    yield "train_dataset", trainer.train_dataset
    if trainer.args.eval_strategy != "no":
        held_out: Any = trainer.eval_dataset
        if isinstance(held_out, dict):
            yield from ((f"eval_dataset {name!r}", rows) for name, rows in held_out.items())
        else:
            yield "eval_dataset", held_out


def _limits(trainer: WeightedLossTrainer, model: PreTrainedModel) -> dict[str, int]:
    """The most tokens in each column of token ids that a model with a table of positions reads."""
    columns = trainer.train_columns()
    ours = position_limit(model)
    theirs = None if trainer.partner is None else position_limit(trainer.partner)
    if f"{TEACHER_PREFIX}input_ids" in columns:
        limits = {"input_ids": ours, f"{TEACHER_PREFIX}input_ids": theirs}
    elif any(c.startswith(TEACHER_PREFIX) and c.endswith("input_ids") for c in columns):
        limits = {"input_ids": ours}  # members of an ensemble read columns of their own
    else:
        limits = {"input_ids": min((n for n in (ours, theirs) if n is not None), default=None)}
    found = {column: limit for column, limit in limits.items() if limit is not None}
    return found | _label_limit(trainer, model, trainer.partner)


def _label_limit(trainer: WeightedLossTrainer, *models: PreTrainedModel | None) -> dict[str, int]:
    """The most labels of a row whose tokens a decoder reads, by column."""
    if trainer.task != "seq2seq_lm":
        return {}
    limits = [position_limit(model, decoder=True) for model in models if model is not None]
    known = [limit for limit in limits if limit is not None]
    return {"labels": min(known)} if known else {}


def _check_lengths(dataset: Dataset, name: str, column: str, limit: int | None) -> None:
    first = 0
    for lengths, _ in column_parts(dataset, column):
        if not lengths:
            return
        empty = np.flatnonzero(lengths[-1] == 0)
        if len(empty) and len(lengths) == 1 and column != "labels":
            raise ValueError(
                f"{name}, {column}, row {first + int(empty[0])}: expected at least one token, got "
                "none. Its answer would be that of the padding. Drop the row, or let the tokenizer "
                "add its special tokens."
            )
        if limit is not None and lengths[-1].max(initial=0) > limit:
            place = int((lengths[-1] > limit).argmax())
            row = first + place * len(lengths[0]) // len(lengths[-1])
            raise too_long(f"{name}, row {row}", column, limit, int(lengths[-1][place]))
        first += len(lengths[0])


def _check_some_label(trainer: WeightedLossTrainer, dataset: Dataset) -> None:
    """Refuse -100 alone where a loss that counts is over predictions, as -100 takes those out."""
    units = {name: loss.unit for name, loss in trainer.losses.items()}
    weights = [trainer.loss_weights(progress) for progress in (0.0, 1.0)]
    emptied = [
        name
        for name in weights[0]
        if any(own[name] for own in weights) and units.get(name, "items") == "items"
    ]
    if emptied and not some_label_counts(dataset):
        raise ValueError(
            "train_dataset, labels: expected some that count, got -100 alone. What has it is out "
            f"of every loss over predictions, the teacher's too, and {', '.join(emptied)} would "
            "learn nothing. To learn from the teacher without labels, dataset.remove_columns("
            '"labels") and set loss_weights without task.'
        )


def _refuse_labels(
    name: str, task: str, classes: int | None, found: Sequence[tuple[int, str, int | float]]
) -> None:
    named = [f"{value} in row {row}" for row, _, value in found]
    expected = "finite numbers" if classes is None else f"class ids in 0..{classes - 1}, or -100"
    if task == "multi_label_classification":
        expected = "numbers in [0, 1]"
    if task == "question_answering":
        expected = "positions of at least 0"
    column = found[0][1]
    more = ", and perhaps more" if len(named) == MAX_ROWS else ""
    unknown = (
        "-100 for a class takes it out of every loss over predictions, the teacher's too, and rows "
        "without labels want no column of them, with loss_weights that leave out task"
    )
    if task == "question_answering":
        unknown = "0, the first token, says that there is no answer"
    raise ValueError(
        f"{name}, {column}: expected {expected} for a model of the kind {task!r}, got "
        f"{', '.join(named)}{more}. There is no output for them: the loss would be wrong, NaN, or "
        f"stop the device. Correct or drop these rows; {unknown}. A "
        "number that is missing (None) shows as NaN or as the smallest integer."
    )
