"""Questions whose answers stand in a text: rows in SQuAD's shape become windows of tokens.

Rajpurkar et al. 2016, arXiv 1606.05250. Every question has an answer here; SQuAD 2.0's
unanswerable ones are refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from kdnlp.data.checks import arrow_tables, check_offsets, check_text_type, check_texts
from kdnlp.data.inputs import input_columns, input_features
from kdnlp.data.task import Task

_ANSWER_FIELDS = {"text", "answer_start"}
_LABELS = {"start_positions": Value("int64"), "end_positions": Value("int64")}
_FOR_ANSWERS = {
    "example": Value("int32"),
    "char_starts": ListOf(Value("int32")),
    "char_ends": ListOf(Value("int32")),
    "context": Value("string"),
    "answers": ListOf(Value("string")),
}
"""What turns logits into scored answers, beside the model's inputs; a Trainer leaves it out."""


def is_answers(feature: Any) -> bool:
    """Whether a column has the shape of SQuAD's `answers`: texts, and where each starts."""
    inner = getattr(feature, "feature", feature)
    return isinstance(inner, dict) and set(inner) >= _ANSWER_FIELDS


def check_answers(rows: Dataset, split: str, task: Task) -> None:
    """Raise `ValueError`, naming the first offending row, unless each row has its answer."""
    columns, answers = task.text_columns, task.label_columns[0]
    if len(columns) != 2 or not is_answers(rows.features[answers]):
        raise ValueError(
            f"Split {split!r}: expected two text columns, the question's and the context's, and a "
            f"column {answers!r} with text and answer_start, got {list(columns)} and "
            f"{rows.features[answers]}. Without a place in the context there is nothing to "
            "predict. Give the rows SQuAD's columns, and name question and context in that order."
        )
    for column in columns:
        check_text_type(rows, split, column)
    for first_row, table in arrow_tables(rows, [*columns, answers]):
        check_texts(table, split, columns, first_row)
        pairs = zip(table[columns[1]].to_pylist(), table[answers].to_pylist(), strict=True)
        for row, (context, given) in enumerate(pairs):
            _check_answer(context, given, f"Split {split!r}, row {first_row + row}", answers)


def encode_answers(
    rows: Dataset, split: str, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Windows over the contexts of checked rows, each with the question in front.

    A context that does not fit becomes several windows that share the task's `stride` tokens. The
    label of a window is the first of the answers, or position 0 (the first token, `[CLS]` in BERT)
    twice where the answer is not wholly within.

    Returns:
        A row per window: `input_ids` and what goes with them, `start_positions`, `end_positions`;
        in evaluated splits also `example` (the row that it came from), `char_starts` and
        `char_ends` (characters of the context by token, -1 elsewhere), `context` and `answers`,
        which `kdnlp.evaluation.answers` reads.

    Raises:
        ValueError: if the tokenizer cannot tell which characters a token stands for or pads on the
            left, or a question leaves no room for its context.
    """
    check_offsets(tokenizer, task)
    if tokenizer.padding_side != "right":
        raise ValueError(
            f"Expected a tokenizer that pads on the right, got {tokenizer.padding_side!r}. Padding "
            "in front would move every answer away from the position that it is labelled with. "
            "Set tokenizer.padding_side = 'right'."
        )
    stride = max_length // 3 if task.stride is None else task.stride
    _check_room(rows, split, task, tokenizer, max_length, stride)
    columns = input_columns(tokenizer)
    more = _FOR_ANSWERS if split in task.eval_splits else {}
    return rows.map(
        _encode,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        features=Features({**input_features(columns), **_LABELS, **more}),
        fn_kwargs={
            "tokenizer": tokenizer,
            "task": task,
            "max_length": max_length,
            "stride": stride,
            "columns": [*columns, *_LABELS, *more],
        },
        desc=f"Tokenising {task.name} {split}",
    )


def token_positions(
    char_starts: NDArray[np.int_], char_ends: NDArray[np.int_], start: int, end: int
) -> tuple[int, int]:
    """First and last token of a window that stand for characters `start` to `end` of the context.

    Args:
        char_starts: the first character of each token, shape `(tokens,)`; -1 outside the context.
        char_ends: the last character + 1 of each token, the same shape.
        start: the first character.
        end: the last character + 1.

    Returns:
        Two indices, or `(0, 0)` if the window does not hold all of these characters.
    """
    inside = char_starts >= 0
    if not inside.any() or start < char_starts[inside].min() or end > char_ends.max():
        return 0, 0
    touched = np.flatnonzero(inside & (char_starts < end) & (char_ends > start))
    return (int(touched[0]), int(touched[-1])) if len(touched) else (0, 0)


def _encode(
    batch: Mapping[str, list[Any]],
    numbers: list[int],
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    max_length: int,
    stride: int,
    columns: list[str],
) -> dict[str, list[Any]]:
    questions, contexts = (batch[column] for column in task.text_columns)
    encoding = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    encoded: dict[str, list[Any]] = {column: [] for column in columns}
    for window, row in enumerate(encoding["overflow_to_sample_mapping"]):
        answers, (starts, ends) = batch[task.label_columns[0]][row], _characters(encoding, window)
        known = {
            **_first_answer(answers, starts, ends),
            "example": numbers[row],
            "char_starts": starts,
            "char_ends": ends,
            "context": contexts[row],
            "answers": answers["text"],
        }
        for column in columns:
            encoded[column].append(known[column] if column in known else encoding[column][window])
    return encoded


def _first_answer(
    answers: Mapping[str, Sequence[Any]], starts: NDArray[np.int_], ends: NDArray[np.int_]
) -> dict[str, int]:
    """The labels of a window."""
    begin = answers["answer_start"][0]
    positions = token_positions(starts, ends, begin, begin + len(answers["text"][0]))
    return dict(zip(_LABELS, positions, strict=True))


def _characters(encoding: Any, window: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Where each token of a window begins and ends in the context; -1 outside the context."""
    offsets = np.array(encoding["offset_mapping"][window])
    in_context = np.array([part == 1 for part in encoding.sequence_ids(window)])
    starts, ends = np.where(in_context[:, None], offsets, -1).T
    return starts, ends


def _check_answer(
    context: str, answers: Mapping[str, Sequence[Any]] | None, place: str, column: str
) -> None:
    texts = list((answers or {}).get("text") or [])
    starts = list((answers or {}).get("answer_start") or [])
    if not texts or len(texts) != len(starts) or not all(texts):
        raise ValueError(
            f"{place}, column {column!r}: expected at least one answer, and where it starts, got "
            f"{texts} at {starts}. A question without an answer (SQuAD 2.0 has some) would teach "
            "the first token as its answer. Leave such rows out (Dataset.filter)."
        )
    for text, start in zip(texts, starts, strict=True):
        found = context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            raise ValueError(
                f"{place}, column {column!r}: expected {text!r} at character {start} of the "
                f"context, got {found!r}. Another span would be learned as the answer. Count "
                "answer_start in characters from 0, and name the text columns in the order "
                "question, context."
            )


def _check_room(
    rows: Dataset,
    split: str,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stride: int,
) -> None:
    """Windows move on by what they hold of the context less the stride, which must be above 0."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    column = task.text_columns[0]
    questions = rows.select_columns([column])
    for number, batch in enumerate(questions.iter(batch_size=1000)):
        ids = tokenizer(batch[column], add_special_tokens=False)["input_ids"]
        longest = int(np.argmax([len(row) for row in ids]))
        room = max_length - special - len(ids[longest])
        if room <= stride or stride < 0:
            raise ValueError(
                f"Split {split!r}, row {1000 * number + longest}: expected a question that leaves "
                f"more than stride={stride} of max_length={max_length} tokens to the context, got "
                f"{len(ids[longest])} tokens, which leave {room}. The windows would never reach "
                "the context's end. Raise max_length, lower the task's stride, or drop the row."
            )
