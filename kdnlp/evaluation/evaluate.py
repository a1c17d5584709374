"""What a model scores on the task's splits, whoever trained it."""

import copy
from collections.abc import Mapping

from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from kdnlp.data.task import Task
from kdnlp.evaluation.metrics import build_compute_metrics


def evaluate_model(
    model: PreTrainedModel,
    args: TrainingArguments,
    splits: Mapping[str, Dataset],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, dict[str, float]]:
    """Evaluate a model on every eval split of the task, as a trainer with `args` would.

    Args:
        model: any model for the task; its mode is restored, and it stays on the run's device.
        args: batch size, precision, device and processes; nothing is logged or written.
        splits: the tokenised data, as `kdnlp.data.preparation.prepare` returns it.
        task: says which splits are evaluated, and by which metrics.
        tokenizer: pads the batches.

    Returns:
        By split, the task's metrics, `score` and `loss`; under several processes the same on all.
    """
    quiet = copy.copy(args)
    quiet.report_to, quiet.push_to_hub = [], False
    training = model.training
    trainer = Trainer(
        model,
        quiet,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=build_compute_metrics(task),
    )
    names = (*task.metrics, "score", "loss")
    results = {}
    for split in task.eval_splits:
        values = trainer.evaluate(splits[split])
        results[split] = {name: float(values[f"eval_{name}"]) for name in names}
    model.train(training)
    return results
