"""Made-up answers of every kind of task, as they are kept, and as the metrics take them."""

from dataclasses import replace

import numpy as np
from kinds import kind_task
from transformers import EvalPrediction

from kdnlp.data.task import Task
from kdnlp.evaluation.kept import Predictions, keep_predictions
from kdnlp.evaluation.metrics import KIND_METRICS
from kdnlp.evaluation.predictions import read_outputs

THREE = Task("three", ("text",), ("a", "b", "c"), ("f1", "accuracy"))
TWO = Task("two", ("text",), ("no", "yes"), ("f1", "accuracy"), positive_class=0)
WORDS = ("Rome", "the Rome", "an old town", "old town", "town", "")


def tasks() -> dict[str, Task]:
    """A task of every kind with all metrics that can be resampled, two classes and three."""
    kinds = {
        kind: replace(kind_task(kind), metrics=tuple(KIND_METRICS[kind]))
        for kind in KIND_METRICS
        if kind not in ("single_label_classification", "regression")
    }
    kinds["regression"] = replace(kind_task("regression"), metrics=("pearson", "spearmanr"))
    every = tuple(KIND_METRICS["single_label_classification"])
    return {**kinds, "two": replace(TWO, metrics=every), "three": replace(THREE, metrics=every)}


def evaluation_of(task: Task, seed: int, rows: int = 12, labels_seed: int = 0) -> EvalPrediction:
    """Logits that know a part of the labels, and the labels; alike for one `labels_seed`."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(labels_seed)
    if task.kind == "regression":
        labels = truth.integers(0, 5, rows).astype(np.float32)
        # Rounded, so that there are ties.
        return EvalPrediction((labels + rng.normal(0, 2, rows)).round()[:, None], labels)
    shape = (rows, 6) if task.kind == "token_classification" else (rows,)
    if task.kind == "multi_label_classification":
        labels = truth.integers(0, 2, (rows, task.num_labels)).astype(np.float32)
        return EvalPrediction(2 * labels - 1 + rng.normal(0, 2, labels.shape), labels)
    labels = truth.integers(0, task.num_labels, shape)
    logits = rng.normal(0, 1, (*shape, task.num_labels))
    logits += 1.5 * (labels[..., None] == np.arange(task.num_labels))
    if task.kind == "token_classification":
        labels = np.where(np.arange(6) < truth.integers(2, 7, rows)[:, None], labels, -100)
    return EvalPrediction(logits.astype(np.float32), labels)


def answers_of(task: Task, seed: int, rows: int = 12, labels_seed: int = 0):
    """Kept predictions, and predictions and references as `compute` takes them."""
    if task.kind == "question_answering":
        rng, truth = np.random.default_rng(seed), np.random.default_rng(labels_seed)
        outputs = (
            [WORDS[i] for i in rng.integers(0, len(WORDS), rows)],
            [[WORDS[i], "Rome"] for i in truth.integers(0, len(WORDS) - 1, rows)],
        )
        return keep_predictions(task, None, *outputs), *outputs
    evaluation = evaluation_of(task, seed, rows, labels_seed)
    outputs = read_outputs(task, evaluation)
    return keep_predictions(task, evaluation, *outputs), *outputs


def kept(task: Task, seed: int, rows: int = 12, labels_seed: int = 0) -> Predictions:
    """Kept predictions alone."""
    return answers_of(task, seed, rows, labels_seed)[0]
