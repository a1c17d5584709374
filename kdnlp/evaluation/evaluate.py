"""What a model scores on the task's splits, whoever trained it."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from kdnlp.data.task import Task


def evaluate_model(
    model: PreTrainedModel,
    args: TrainingArguments,
    splits: Mapping[str, Dataset],
    task: Task,
    data_collator: Any,
    compute_metrics: Callable[[EvalPrediction], dict[str, float]],
) -> dict[str, dict[str, float]]:
    """Evaluate a model on every eval split of the task, as the run's trainer would.

    Args:
        model: any model for the task; its mode is restored, and it stays on the run's device.
        args: batch size, precision, device and processes; nothing is logged or written.
        splits: the tokenised data.
        task: says which splits are evaluated.
        data_collator: makes batches.
        compute_metrics: from `kdnlp.evaluation.metrics.build_compute_metrics`.

    Returns:
        By split, the task's metrics, `score` and `loss`; under several processes the same on all.
    """
    quiet = copy.copy(args)
    quiet.report_to, quiet.push_to_hub = [], False
    training = model.training
    trainer = Trainer(model, quiet, data_collator=data_collator, compute_metrics=compute_metrics)
    results = {}
    for split in task.eval_splits:
        values = trainer.evaluate(splits[split])
        names = (*task.metrics, "score", "loss")
        results[split] = {name: float(values[f"eval_{name}"]) for name in names}
    model.train(training)
    return results
