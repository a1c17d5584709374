"""A model is scored on all rows of all splits, by its own weights, whatever trained beside it."""

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from settings import arguments, tiny_dataset, tiny_model
from sklearn.metrics import accuracy_score, f1_score

from kdnlp.data.synthetic import build_tokenizer
from kdnlp.data.task import Task
from kdnlp.evaluation.evaluate import evaluate_model

TASK = Task(
    "t", ("text",), ("no", "yes"), ("f1", "accuracy"), eval_splits=("matched", "mismatched")
)


@pytest.mark.parametrize("training", [True, False])
def test_metrics_equal_a_computation_by_hand_and_the_mode_stays(tmp_path, training):
    model = tiny_model("bert", 2).train(training)
    splits = DatasetDict(matched=tiny_dataset(33, seed=1), mismatched=tiny_dataset(7, seed=2))
    args = arguments("CompressionTrainer", tmp_path, per_device_eval_batch_size=8)
    results = evaluate_model(model, args, splits, TASK, build_tokenizer())
    assert model.training == training
    assert list(results) == ["matched", "mismatched"]
    model.eval()
    for split, values in results.items():
        batch = splits[split].with_format("torch")[:]
        with torch.no_grad():
            output = model(**batch)
        predicted, true = output.logits.argmax(-1).numpy(), batch["labels"].numpy()
        expected = {"f1": f1_score(true, predicted), "accuracy": accuracy_score(true, predicted)}
        assert {name: values[name] for name in expected} == pytest.approx(expected)
        assert values["score"] == pytest.approx(np.mean(list(expected.values())))
        assert values["loss"] == pytest.approx(output.loss.item(), abs=1e-4)


def test_evaluating_reports_nothing_and_changes_no_arguments(tmp_path):
    args = arguments("CompressionTrainer", tmp_path)
    args.push_to_hub, args.report_to = True, ["tensorboard"]
    splits = DatasetDict(matched=tiny_dataset(4), mismatched=tiny_dataset(4))
    evaluate_model(tiny_model(), args, splits, TASK, build_tokenizer())
    assert args.push_to_hub
    assert args.report_to == ["tensorboard"]
    assert list(tmp_path.iterdir()) == []
