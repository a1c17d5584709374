"""From the logits of start and end to answers in words, over all windows of a context."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

_NEEDED = ("example", "char_starts", "char_ends", "context")


@dataclass(frozen=True)
class Answer:
    """A span of a context.

    Attributes:
        text: its characters, without spaces around them.
        score: the sum of its start logit and its end logit.
        start: its first character in the context.
        end: its last character + 1.
    """

    text: str
    score: float
    start: int
    end: int


def find_answers(
    start_logits: ArrayLike,
    end_logits: ArrayLike,
    features: Dataset,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> list[list[Answer]]:
    """The best answers to every question: `argmax start[i] + end[j]` over its windows' spans.

    All spans of at most `max_answer_length` tokens of the context are compared, so the best one is
    exact. A span that several windows hold counts once, with its best score.

    Args:
        start_logits: shape `(windows, length)`; what lies beyond a window's own length is not read.
        end_logits: the same shape.
        features: an evaluated split as `prepare` returns it for question answering, in order.
        n_best: answers to keep, at least 1.
        max_answer_length: the most tokens of an answer, at least 1.

    Returns:
        For every question, in the order of its rows, up to `n_best` answers, the best first; none
        where no window holds any of the context.

    Raises:
        ValueError: if the logits are not those of the features, or not numbers, or a count is below
            1.
    """
    starts, ends = np.asarray(start_logits), np.asarray(end_logits)
    _check(starts, ends, features, n_best, max_answer_length)
    found: list[dict[tuple[int, int], Answer]] = []
    windows = features.select_columns(list(_NEEDED)).with_format("numpy")
    for start, end, row in zip(starts, ends, windows, strict=True):
        while len(found) <= int(row["example"]):
            found.append({})
        best = found[int(row["example"])]
        for answer in _answers_of_window(start, end, row, n_best, max_answer_length):
            span = (answer.start, answer.end)
            if span not in best or best[span].score < answer.score:
                best[span] = answer
    return [sorted(spans.values(), key=lambda a: (-a.score, a.start))[:n_best] for spans in found]


def references_of(features: Dataset) -> list[list[str]]:
    """The right answers to every question of an evaluated split, in the order of its rows."""
    answers: list[list[str]] = []
    for example, texts in zip(features["example"], features["answers"], strict=True):
        if example == len(answers):
            answers.append(texts)
    return answers


def _answers_of_window(
    start: NDArray[np.float32],
    end: NDArray[np.float32],
    row: dict[str, NDArray[np.int_]],
    n_best: int,
    max_answer_length: int,
) -> list[Answer]:
    char_starts, char_ends = row["char_starts"], row["char_ends"]
    tokens = np.flatnonzero(char_ends > char_starts)
    scores = _span_scores(start[tokens], end[tokens], max_answer_length)
    answers = []
    for flat in np.argsort(-scores, axis=None, kind="stable")[:n_best]:
        first, more = np.unravel_index(flat, scores.shape)
        if not np.isfinite(scores[first, more]):
            break
        begins, stops = char_starts[tokens[first]], char_ends[tokens[first + more]]
        text = str(row["context"])[begins:stops].strip()
        answers.append(Answer(text, float(scores[first, more]), int(begins), int(stops)))
    return answers


def _span_scores(
    start: NDArray[np.float32], end: NDArray[np.float32], max_answer_length: int
) -> NDArray[np.float32]:
    """`start[i] + end[i + d]`, shape `(tokens, most)`, `d` tokens after the first; else `-inf`."""
    count = len(start)
    scores = np.full((count, min(count, max_answer_length)), -np.inf, dtype=np.float32)
    for more in range(scores.shape[1]):
        scores[: count - more, more] = start[: count - more] + end[more:]
    return scores


def _check(
    starts: NDArray[np.float32],
    ends: NDArray[np.float32],
    features: Dataset,
    n_best: int,
    max_answer_length: int,
) -> None:
    missing = [column for column in _NEEDED if column not in features.column_names]
    if missing:
        raise ValueError(
            f"Expected an evaluated split of a question-answering task, with the columns "
            f"{', '.join(_NEEDED)}, got {', '.join(features.column_names)}. Without them no logit "
            "is a character of a text. Pass what prepare returns for one of the task's eval_splits."
        )
    longest = max(map(len, features["char_starts"]))
    if starts.ndim != 2 or starts.shape != ends.shape or len(starts) != len(features):
        raise ValueError(
            f"Expected start and end logits of one shape ({len(features)}, length), got "
            f"{starts.shape} and {ends.shape}. They would be read as answers from other windows. "
            "Pass the predictions on the very split that `features` is."
        )
    if starts.shape[1] < longest:
        raise ValueError(
            f"Expected logits for {longest} tokens, the longest window, got {starts.shape[1]}. The "
            "logits are those of other windows. Pass the predictions on this split."
        )
    if n_best < 1 or max_answer_length < 1:
        raise ValueError(
            f"n_best and max_answer_length must be at least 1, got {n_best} and "
            f"{max_answer_length}. No answer would be left."
        )
    _check_numbers(starts, ends, features["char_starts"])


def _check_numbers(
    starts: NDArray[np.float32], ends: NDArray[np.float32], windows: Sequence[Sequence[int]]
) -> None:
    wrong = np.isnan(starts) | np.isnan(ends)
    row = next((i for i, window in enumerate(windows) if wrong[i, : len(window)].any()), None)
    if row is not None:
        raise ValueError(
            f"Expected logits without NaN, got NaN in window {row}. A diverged model would be "
            "scored by an arbitrary span. Lower the learning rate, or train in bf16 or fp32 "
            "instead of fp16."
        )
