"""Multi-label metrics equal their definition from counts, at a probability of one half."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import EvalPrediction

from kdnlp.data.task import Task
from kdnlp.evaluation.metrics import KIND_METRICS, build_compute_metrics, compute

KIND = "multi_label_classification"
TASK = Task(
    "genres", ("text",), ("a", "b", "c", "d"), ("f1_micro", "f1_macro", "subset_accuracy"),
    kind=KIND,
)  # fmt: skip


def random_labels(count=200, seed=0):
    generator = np.random.default_rng(seed)
    true = generator.random((count, 4)) < [0.5, 0.2, 0.05, 0.4]
    flipped = generator.random(true.shape) < 0.2
    return (true ^ flipped).astype(int), true.astype(int)


def by_hand(predicted, true):
    hits = (predicted * true).sum(0)
    either = predicted.sum(0) + true.sum(0)
    return {
        "f1_micro": 2 * hits.sum() / either.sum(),
        "f1_macro": np.mean(2 * hits / either),
        "subset_accuracy": np.mean(
            [list(p) == list(t) for p, t in zip(predicted, true, strict=True)]
        ),
    }


def test_metrics_equal_their_definition():
    predicted, true = random_labels()
    values = compute(TASK, predicted, true)
    score = values.pop("score")
    assert values == pytest.approx(by_hand(predicted, true), abs=1e-12)
    assert score == pytest.approx(np.mean(list(values.values())))
    assert list(values) == list(TASK.metrics)


@pytest.mark.parametrize("name", KIND_METRICS[KIND])
def test_the_evaluate_interface_gives_the_same_number_in_batches(name):
    predicted, true = random_labels(50)
    metric = KIND_METRICS[KIND][name]()
    expected = compute(TASK, predicted, true)[name]
    assert metric.compute(predictions=predicted, references=true) == {name: expected}
    for part in (slice(0, 20), slice(20, 50)):
        metric.add_batch(predictions=predicted[part].tolist(), references=true[part].tolist())
    assert metric.compute() == {name: expected}


def test_the_trainers_hook_predicts_a_label_above_a_probability_of_one_half():
    logits = np.array([[0.1, -0.1, 3.0, -3.0], [-1.0, 1e-6, 0.0, -1e-6]], dtype=np.float32)
    true = np.array([[1, 0, 1, 0], [0, 1, 0, 0]], dtype=np.float32)
    hook = build_compute_metrics(TASK)
    assert hook(EvalPrediction(logits, true))["subset_accuracy"] == 1.0
    assert hook(EvalPrediction((logits, np.zeros((2, 7))), true))["f1_micro"] == 1.0
    assert hook(EvalPrediction(-logits, true))["f1_micro"] < 0.2


@pytest.mark.parametrize("constant", [0, 1])
def test_a_model_that_says_none_or_all_has_a_score_and_no_warning(constant):
    _, true = random_labels()
    values = compute(TASK, np.full_like(true, constant), true)
    assert values == pytest.approx(
        {**by_hand(np.full_like(true, constant), true), "score": values["score"]}
    )
    assert compute(TASK, np.zeros((3, 4)), np.zeros((3, 4)))["f1_macro"] == 0.0


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (np.zeros((3, 4)), np.zeros((2, 4)), r"\(3, 4\) and \(2, 4\)"),
        (np.zeros(3), np.zeros(3), r"of one shape \(examples, 4\)"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "expected 4 labels per example, got 2"),
        (np.full((3, 4), 2), np.zeros((3, 4)), "predictions that are 0 or 1, got 2 in row 0"),
        (np.zeros((3, 4)), np.full((3, 4), -100), "references that are 0 or 1, got -100 in row 0"),
    ],
)
def test_values_that_would_measure_something_else_are_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        compute(TASK, predicted, true)


def test_a_diverged_model_is_refused_and_not_scored_as_saying_nothing():
    logits = np.zeros((3, 4))
    logits[1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN in row 1"):
        build_compute_metrics(TASK)(EvalPrediction(logits, np.zeros((3, 4))))


def test_metrics_of_other_kinds_are_refused():
    with pytest.raises(
        ValueError, match=r"out of f1_micro, f1_macro, subset_accuracy, got \('f1',\)"
    ):
        build_compute_metrics(replace(TASK, metrics=("f1",)))
