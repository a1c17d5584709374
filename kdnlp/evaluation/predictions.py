"""What a model predicts, read from its outputs, and in the form that the task's metrics take."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray
from transformers import EvalPrediction

from kdnlp.data.task import Task, TaskKind
from kdnlp.data.token_classification import IGNORED
from kdnlp.evaluation.answers import find_answers, references_of


def read_outputs(
    task: Task, evaluation: EvalPrediction, features: Dataset | None = None
) -> tuple[Any, Any]:
    """Predictions and references from what a Trainer gathered.

    Logits are read from `predictions`, or from its first element where a model returns several
    arrays; for question answering the first two are those of start and end.

    Args:
        task: its kind says what logits mean.
        evaluation: logits of shape `(examples, num_labels)`, for token classification
            `(examples, length, num_labels)`, for question answering two of `(windows, length)`.
        features: for question answering, the split that was evaluated.

    Returns:
        What `as_metrics_take_them` takes.

    Raises:
        ValueError: if the logits have another shape or hold NaN, or are those of another split.
    """
    if task.kind == "question_answering":
        return _read_answers(task, evaluation, features)
    logits, labels = read_logits(evaluation)
    return _decide(task, logits), labels


def read_logits(evaluation: EvalPrediction) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits and labels of what a Trainer gathered, the first of each where there are several."""
    logits, labels = (
        np.asarray(values[0] if isinstance(values, tuple) else values)
        for values in (evaluation.predictions, evaluation.label_ids)
    )
    return logits, labels


def as_metrics_take_them(task: Task, predictions: Any, references: Any) -> tuple[Any, Any]:
    """Check predictions and references, and bring them into the form of the task's metrics.

    Args:
        task: its kind says what a prediction is.
        predictions: class ids or real numbers, shape `(examples,)`; zeros and ones, shape
            `(examples, num_labels)`; tag ids, shape `(examples, length)`; or answers as text.
        references: the labels, the same shape; `IGNORED` marks positions that do not count; for
            answers, the list of all that are right for each.

    Returns:
        Both; tags by name, sentence by sentence, without the positions that do not count.

    Raises:
        ValueError: if the shapes differ, there are no examples, or a value is none of the task's.
    """
    return _CHECKS[task.kind](task, predictions, references)


def _decide(task: Task, logits: NDArray[Any]) -> NDArray[Any]:
    """Class ids, zeros and ones, or real numbers from logits."""
    if task.kind == "regression" and logits.ndim == 1:
        return logits
    shape = ("examples", "length") if task.kind == "token_classification" else ("examples",)
    if logits.ndim != len(shape) + 1 or logits.shape[-1] != task.num_labels:
        raise ValueError(
            f"Task {task.name!r} needs logits of shape ({', '.join(shape)}, {task.num_labels}), "
            f"got {logits.shape}. Another shape would be read as other classes. Build the model "
            f"with num_labels={task.num_labels}."
        )
    if task.kind == "regression":
        return logits[:, 0]
    if np.isnan(logits).any():
        row = int(np.isnan(logits).reshape(len(logits), -1).any(axis=1).argmax())
        raise ValueError(
            f"Task {task.name!r}: expected logits without NaN, got NaN in row {row}. The largest "
            "of NaNs is class 0, so a diverged model would score like a constant one. Lower the "
            "learning rate, or train in bf16 or fp32 instead of fp16."
        )
    if task.kind == "multi_label_classification":
        return (logits > 0).astype(np.int64)  # a probability above 0.5
    return logits.argmax(axis=-1)


def _read_answers(
    task: Task, evaluation: EvalPrediction, features: Dataset | None
) -> tuple[list[str], list[list[str]]]:
    assert features is not None
    start, end = list(evaluation.predictions)[:2]
    found = find_answers(start, end, features, n_best=1, max_answer_length=task.max_answer_length)
    labels = evaluation.label_ids
    if isinstance(labels, tuple) and list(labels[0]) != list(features["start_positions"]):
        raise ValueError(
            f"Task {task.name!r}: expected predictions on the rows that the metrics were built "
            "for, in their order, got others. The spans would be looked up in other contexts. Call "
            "build_compute_metrics(task, features) with the split that is evaluated, and leave "
            "train_sampling_strategy=group_by_length, which shuffles evaluated rows too."
        )
    return [best[0].text if best else "" for best in found], references_of(features)


def _check_values(
    task: Task, predictions: ArrayLike, references: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """One class id or real number per example."""
    predicted, true = _arrays(task, predictions, references, ("examples",))
    for what, values in (("prediction", predicted), ("reference", true)):
        _refuse(task, what, values, _wrong_values(task, values))
    return predicted, true


def _check_label_sets(
    task: Task, predictions: ArrayLike, references: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A row of zeros and ones per example."""
    shape = ("examples", str(task.num_labels))
    predicted, true = _arrays(task, predictions, references, shape)
    if true.shape[1] != task.num_labels:
        raise ValueError(
            f"Task {task.name!r}: expected {task.num_labels} labels per example, got "
            f"{true.shape[1]}. They would be counted as those of other classes."
        )
    for what, values in (("prediction", predicted), ("reference", true)):
        _refuse(task, what, values, (values != 0) & (values != 1))
    return predicted.astype(np.int64), true.astype(np.int64)


def _check_tags(
    task: Task, predictions: ArrayLike, references: ArrayLike
) -> tuple[list[list[str]], list[list[str]]]:
    """Tags by name, where they count."""
    predicted, true = _arrays(task, predictions, references, ("examples", "length"))
    counted = true != IGNORED
    if not counted.any():
        raise ValueError(
            f"Task {task.name!r}: expected at least one tag that counts, got only {IGNORED}. Every "
            "metric would be undefined. Check that the words fit within max_length."
        )
    for what, values in (("prediction", predicted), ("reference", true)):
        _refuse(task, what, values, counted & _wrong_values(task, values))
    names = np.array(task.label_names)
    ours, theirs = (
        [names[row[keep].astype(int)].tolist() for row, keep in zip(tags, counted, strict=True)]
        for tags in (predicted, true)
    )
    return ours, theirs


def _check_answers(
    task: Task, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """An answer per question, and the list of those that are right."""
    if len(predictions) != len(references) or not len(references) or not all(references):
        raise ValueError(
            f"Task {task.name!r}: expected as many answers as questions, each with at least one "
            f"reference, got {len(predictions)} answers and {len(references)} lists of references"
            f"{'' if all(references) else ', some empty'}. Answers would be compared with those to "
            "other questions."
        )
    return predictions, references


_CHECKS: dict[TaskKind, Callable[[Task, Any, Any], tuple[Any, Any]]] = {
    "single_label_classification": _check_values,
    "regression": _check_values,
    "multi_label_classification": _check_label_sets,
    "token_classification": _check_tags,
    "question_answering": _check_answers,
}


def _arrays(
    task: Task, predictions: ArrayLike, references: ArrayLike, shape: tuple[str, ...]
) -> tuple[NDArray[Any], NDArray[Any]]:
    predicted, true = np.asarray(predictions), np.asarray(references)
    if predicted.ndim != len(shape) or predicted.shape != true.shape or not len(true):
        named = f"({', '.join(shape)}{',' if len(shape) == 1 else ''})"
        raise ValueError(
            f"Task {task.name!r}: expected predictions and references of one shape {named} "
            f"with examples > 0, got {predicted.shape} and {true.shape}. Other shapes would "
            "compare examples with the wrong labels. Pass one prediction per label."
        )
    return predicted, true


def _refuse(task: Task, what: str, values: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
    """Raise `ValueError` if any value is wrong, naming the first one's row."""
    if not wrong.any():
        return
    expected = f"ids in 0..{task.num_labels - 1}" if task.label_names else "finite numbers"
    if task.kind == "multi_label_classification":
        expected = "0 or 1"
    place = tuple(np.argwhere(wrong)[0])
    raise ValueError(
        f"Task {task.name!r}: expected {what}s that are {expected}, got {values[place]} in "
        f"row {place[0]}. It would count as an error of the model, or as a class of its own. "
        "Leave unlabelled rows out, and look for divergence if it is a prediction."
    )


def _wrong_values(task: Task, values: NDArray[Any]) -> NDArray[np.bool_]:
    if task.kind == "regression":
        return ~np.isfinite(values)
    return (values < 0) | (values >= task.num_labels) | (values != np.floor(values))
