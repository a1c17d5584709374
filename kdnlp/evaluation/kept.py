"""What a model answered row by row, kept to be compared later without running it again."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import EvalPrediction

from kdnlp.data.task import Task, TaskKind
from kdnlp.data.token_classification import IGNORED
from kdnlp.evaluation.answer_metrics import AnswerF1, ExactMatch, answer_words
from kdnlp.evaluation.predictions import read_logits
from kdnlp.files import written_whole

PREDICTIONS_FILE = "_predictions.safetensors"
"""In the run's folder; a name that starts with an underscore is left out of what goes to the Hub.

The labels of one's own rows are nobody else's business.
"""

LIMIT_MB = 64
"""Predictions of more than that are not kept on disk, all models of a report together."""


@dataclass(frozen=True)
class Predictions:
    """One model's answers to the rows of one split.

    Attributes:
        kind: the task's kind.
        label_names: the task's classes in the order of the logits; none for numbers and answers.
        positive_class: the id of the class that a two-class F1 is of.
        arrays: `logits`, shape `(rows, labels)`, and `labels`, shape `(rows,)` or for several
            labels a row `(rows, labels)`. For token classification a row is a tag that counts, and
            `sentence`, shape `(rows,)`, says which sentence it is in. For question answering
            `exact_match` and `f1` in [0, 1], and digests of the words of the `answer` and of the
            right ones as `labels`, all of shape `(questions,)`.
    """

    kind: TaskKind
    label_names: tuple[str, ...]
    positive_class: int
    arrays: dict[str, NDArray[Any]] = field(repr=False)

    @property
    def labels(self) -> NDArray[Any]:
        """The true answers; see `arrays`."""
        return self.arrays["labels"]

    @property
    def predicted(self) -> NDArray[Any]:
        """Class ids, zeros and ones, real numbers, or digests of answers, a row each."""
        if self.kind == "question_answering":
            return self.arrays["answer"]
        logits = self.arrays["logits"]
        if self.kind == "regression":
            return logits[:, 0]
        if self.kind == "multi_label_classification":
            return (logits > 0).astype(np.int64)
        return logits.argmax(-1)

    @property
    def units(self) -> NDArray[np.int64]:
        """Which sentence, question or text each row belongs to: rows of one are not independent."""
        return self.arrays.get("sentence", np.arange(len(self.labels)))

    def same_rows(self, other: "Predictions") -> bool:
        """Whether both are answers to the same rows in the same order, as far as labels tell."""
        return (
            (self.kind, self.label_names) == (other.kind, other.label_names)
            and np.array_equal(self.labels, other.labels)
            and np.array_equal(self.units, other.units)
        )

    @property
    def size_mb(self) -> float:
        """What they take on disk, in MB of 10^6 bytes."""
        return sum(array.nbytes for array in self.arrays.values()) / 1e6


class Evaluation(dict[str, dict[str, float]]):
    """Metrics by split, with the answers that they were computed from.

    Attributes:
        predictions: by split.
    """

    def __init__(
        self,
        metrics: Mapping[str, dict[str, float]] | Iterable[tuple[str, dict[str, float]]] = (),
        predictions: Mapping[str, Predictions] | None = None,
    ) -> None:
        super().__init__(metrics)
        self.predictions = dict(predictions or {})


def keep_predictions(
    task: Task, evaluation: EvalPrediction, predictions: Any, references: Any
) -> Predictions:
    """The answers of a split, without padding and without texts.

    Args:
        task: what was evaluated.
        evaluation: what a Trainer gathered.
        predictions: what `kdnlp.evaluation.predictions.read_outputs` made of it.
        references: likewise.
    """
    arrays = {
        "question_answering": lambda: _of_answers(predictions, references),
        "token_classification": lambda: _of_tags(*read_logits(evaluation)),
    }.get(task.kind, lambda: _of_rows(*read_logits(evaluation)))()
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return Predictions(task.kind, tuple(task.label_names or ()), task.positive_class, contiguous)


def save_predictions(
    models: Mapping[str, Mapping[str, Predictions]], path: str | os.PathLike[str]
) -> None:
    """Write the answers of several models, by name and split, so that they appear whole.

    Args:
        models: at least one, all of one task.
        path: the file.
    """
    first = next(iter(next(iter(models.values())).values()))
    metadata = {
        "kind": str(first.kind),
        "label_names": json.dumps(first.label_names),
        "positive_class": str(first.positive_class),
    }
    arrays = {
        f"{name}/{split}/{part}": array
        for name, splits in models.items()
        for split, answers in splits.items()
        for part, array in answers.arrays.items()
    }
    with written_whole(Path(path)) as partial:
        save_file(arrays, partial, metadata)


def load_predictions(path: str | os.PathLike[str]) -> dict[str, dict[str, Predictions]]:
    """Read what `save_predictions` wrote.

    Raises:
        ValueError: if the file is damaged, or another one.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        kind = cast(TaskKind, metadata["kind"])
        label_names = tuple(json.loads(metadata["label_names"]))
        positive_class = int(metadata["positive_class"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)} does not hold kept predictions: {error!r}. No models can be tested "
            "against each other by it. Remove it to read the report alone, or run the command "
            "again."
        ) from error
    models: dict[str, dict[str, Predictions]] = {}
    for key, array in arrays.items():
        name, split, part = key.rsplit("/", 2)
        empty = Predictions(kind, label_names, positive_class, {})
        models.setdefault(name, {}).setdefault(split, empty).arrays[part] = array
    return models


def _of_rows(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"logits": logits.reshape(len(logits), -1).astype(np.float32), "labels": labels}


def _of_tags(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    counted = labels != IGNORED
    sentence = np.broadcast_to(np.arange(len(labels))[:, None], labels.shape)
    return {
        "logits": logits[counted].astype(np.float32),
        "labels": labels[counted],
        "sentence": sentence[counted],
    }


def _of_answers(answers: list[str], references: list[list[str]]) -> dict[str, NDArray[Any]]:
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": np.array([ExactMatch.score([a], [r]) for a, r in pairs]),
        "f1": np.array([AnswerF1.score([a], [r]) for a, r in pairs]),
        "answer": np.array([_digest(answer_words(a)) for a in answers]),
        "labels": np.array([_digest(sorted(right)) for right in references]),
    }


def _digest(words: list[str]) -> int:
    digest = hashlib.blake2b(json.dumps(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
