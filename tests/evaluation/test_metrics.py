import pickle
import time
from dataclasses import replace

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference
from transformers import EvalPrediction

from kdnlp.data.task import Task
from kdnlp.evaluation.metrics import METRICS, build_compute_metrics, compute

TWO = Task("two", ("text",), ("no", "yes"), ("f1", "accuracy"))
THREE = Task("three", ("text",), ("a", "b", "c"), ("accuracy", "f1", "matthews_correlation"))
REAL = Task("real", ("text",), None, ("pearson", "spearmanr"))
CLASS_METRICS = ("accuracy", "f1", "matthews_correlation")


def random_ids(classes, count=500, seed=0):
    generator = np.random.default_rng(seed)
    true = generator.integers(classes, size=count)
    noise = generator.integers(classes, size=count)
    return np.where(generator.random(count) < 0.7, true, noise), true


def random_scores(count=500, seed=0):
    generator = np.random.default_rng(seed)
    true = np.round(generator.random(count) * 5, 1)  # Rounded: ties, as STS-B's scores have.
    return (true + generator.normal(size=count)).astype(np.float32), true.astype(np.float32)


def by_hand(classes, predicted, true):
    """The class metrics from counts, without scikit-learn."""
    counts = np.zeros((classes, classes))
    np.add.at(counts, (true, predicted), 1)
    hits, rows, columns = np.diag(counts), counts.sum(1), counts.sum(0)
    f1 = 2 * hits / (rows + columns)
    covariance = hits.sum() * len(true) - rows @ columns
    spread = (len(true) ** 2 - columns @ columns) * (len(true) ** 2 - rows @ rows)
    return {
        "accuracy": hits.sum() / len(true),
        "f1": f1[1] if classes == 2 else f1.mean(),
        "matthews_correlation": covariance / np.sqrt(spread),
    }


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_class_metrics_equal_their_definition_and_sklearn(classes):
    predicted, true = random_ids(classes)
    task = Task("t", ("text",), tuple(map(str, range(classes))), CLASS_METRICS)
    values = compute(task, predicted, true)
    score = values.pop("score")
    assert values == pytest.approx(by_hand(classes, predicted, true), abs=1e-12)
    assert values["matthews_correlation"] == reference.matthews_corrcoef(true, predicted)
    assert score == pytest.approx(np.mean(list(values.values())))


def test_correlations_equal_their_definition_with_ties():
    predicted, true = random_scores()
    x, y = predicted.astype(np.float64), true.astype(np.float64)
    values = compute(REAL, predicted, true)
    assert values["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    ranks = np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]
    assert values["spearmanr"] == pytest.approx(ranks, abs=1e-12)
    assert values["score"] == pytest.approx((values["pearson"] + values["spearmanr"]) / 2)


@pytest.mark.parametrize("name", METRICS)
def test_the_evaluate_interface_gives_the_same_number_in_batches(name):
    real = name in REAL.metrics
    predicted, true = random_scores() if real else random_ids(2)
    task = replace(REAL if real else TWO, metrics=(name,))
    expected = compute(task, predicted, true)[name]
    metric = METRICS[name]()
    assert metric.name == name
    assert metric.compute(predictions=predicted, references=true) == {name: expected}
    for part in range(0, 500, 150):
        metric.add_batch(
            predictions=predicted[part : part + 150], references=true[part : part + 150]
        )
    assert metric.compute() == {name: expected}
    for left, right in zip(predicted[:20], true[:20], strict=True):
        metric.add(prediction=left, reference=right)
    assert metric.compute()[name] == pytest.approx(
        compute(task, predicted[:20], true[:20])[name], abs=1e-12
    )


def test_metrics_combine_under_their_own_names():
    predicted, true = random_ids(2)
    combined = evaluate.combine([METRICS[name]() for name in ("accuracy", "f1")])
    values = compute(TWO, predicted, true)
    assert combined.compute(predictions=predicted, references=true) == {
        "accuracy": values["accuracy"],
        "f1": values["f1"],
    }


def test_f1_is_macro_for_three_classes_even_where_two_occur():
    predicted, true = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    macro = reference.f1_score(true, predicted, average="macro")
    binary = reference.f1_score(true, predicted)
    assert macro != binary
    assert compute(THREE, predicted, true)["f1"] == macro
    assert compute(TWO, predicted, true)["f1"] == binary
    metric = METRICS["f1"]()
    assert metric.compute(predictions=predicted, references=true, average="macro")["f1"] == macro


@pytest.mark.parametrize("constant", [0, 1])
def test_a_model_that_says_one_class_scores_chance_without_warnings(constant):
    predicted, true = np.full(10, constant), np.array([0, 1] * 5)
    task = replace(TWO, metrics=CLASS_METRICS)
    values = compute(task, predicted, true)
    assert values["matthews_correlation"] == 0.0
    assert values["accuracy"] == 0.5
    assert values["f1"] == pytest.approx(2 / 3 if constant else 0.0)


@pytest.mark.parametrize("which", ["predictions", "references"])
def test_a_constant_regression_is_zero_and_not_nan(which):
    varied, constant = np.arange(5.0), np.full(5, 2.5)
    pair = (constant, varied) if which == "predictions" else (varied, constant)
    assert compute(REAL, *pair) == {"pearson": 0.0, "spearmanr": 0.0, "score": 0.0}


def test_a_long_float32_array_far_from_zero_keeps_its_digits():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=100_000)
    predicted = (1000 + noise).astype(np.float32)
    true = (1000 + noise + generator.normal(size=100_000)).astype(np.float32)
    value = METRICS["pearson"].score(predicted, true)
    exact = np.corrcoef(predicted.astype(np.longdouble), true.astype(np.longdouble))[0, 1]
    assert value == pytest.approx(float(exact), abs=1e-9)


def test_the_trainers_hook_reads_logits():
    predicted, true = random_ids(3)
    logits = np.eye(3, dtype=np.float32)[predicted] * 2 - 5
    hook = build_compute_metrics(THREE)
    expected = compute(THREE, predicted, true)
    assert hook(EvalPrediction(logits, true)) == expected
    hidden = np.zeros((500, 4))
    assert hook(EvalPrediction((logits, hidden), true)) == expected
    assert list(expected) == ["accuracy", "f1", "matthews_correlation", "score"]
    assert pickle.loads(pickle.dumps(hook))(EvalPrediction(logits, true)) == expected


@pytest.mark.parametrize("shape", [(500, 1), (500,)])
def test_the_trainers_hook_reads_one_real_number(shape):
    predicted, true = random_scores()
    hook = build_compute_metrics(REAL)
    assert hook(EvalPrediction(predicted.reshape(shape), true)) == compute(REAL, predicted, true)


def test_one_example_is_not_squeezed_away():
    values = build_compute_metrics(TWO)(EvalPrediction(np.array([[0.1, 0.9]]), np.array([1])))
    assert values == {"f1": 1.0, "accuracy": 1.0, "score": 1.0}
    values = build_compute_metrics(REAL)(EvalPrediction(np.array([[0.1]]), np.array([1.0])))
    assert values["score"] == 0.0


def test_logits_of_another_width_are_refused():
    logits, true = np.zeros((4, 3)), np.zeros(4, dtype=int)
    for task in (TWO, REAL):
        with pytest.raises(ValueError, match=rf"\(examples, {task.num_labels}\), got \(4, 3\)"):
            build_compute_metrics(task)(EvalPrediction(logits, true))


def test_a_diverged_model_is_refused_and_not_scored_as_class_zero():
    logits = np.zeros((4, 2))
    logits[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN in row 2"):
        build_compute_metrics(TWO)(EvalPrediction(logits, np.zeros(4, dtype=int)))
    with pytest.raises(ValueError, match="finite numbers, got nan in row 1"):
        build_compute_metrics(REAL)(EvalPrediction(np.array([0.0, np.nan]), np.arange(2.0)))


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([0, 1], [0, -1], r"references that are ids in 0\.\.1, got -1 in row 1"),
        ([0, 2], [0, 1], r"predictions that are ids in 0\.\.1, got 2 in row 1"),
        ([0.2, 0.8], [0, 1], r"got 0\.2 in row 0"),
        ([0, 1, 1], [0, 1], r"got \(3,\) and \(2,\)"),
        ([], [], r"got \(0,\) and \(0,\)"),
    ],
)
def test_values_that_would_measure_something_else_are_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        compute(TWO, predicted, true)


@pytest.mark.parametrize("names", [("accuracy", "bleu"), ()])
def test_an_unknown_metric_is_refused_before_training(names):
    with pytest.raises(ValueError, match="spearmanr, got"):
        build_compute_metrics(replace(TWO, metrics=names))


def test_nothing_is_written_below_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    for metric in METRICS.values():
        metric().compute(predictions=[0, 1, 1], references=[0, 1, 0])
    assert list(tmp_path.rglob("*")) == []


def test_several_processes_still_share_one_file(tmp_path):
    metric = METRICS["accuracy"](num_process=2, process_id=1, cache_dir=str(tmp_path))
    assert not metric.keep_in_memory
    assert (tmp_path / "accuracy" / "default").is_dir()


def test_the_hook_is_quick_on_a_large_split():
    predicted, true = random_ids(2, count=40_000)  # As many as QQP's validation split.
    hook, logits = build_compute_metrics(TWO), np.eye(2)[predicted]
    start = time.perf_counter()
    hook(EvalPrediction(logits, true))
    assert time.perf_counter() - start < 2.0  # About 0.02 s on an idle core.
