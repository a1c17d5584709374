"""What a model scores on the task's splits, whoever trained it."""

import copy
from collections.abc import Mapping

from datasets import Dataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy

from kdnlp.data.preparation import build_collator
from kdnlp.data.task import Task
from kdnlp.evaluation.kept import Evaluation, Predictions, keep_predictions
from kdnlp.evaluation.metrics import build_compute_metrics, compute
from kdnlp.evaluation.predictions import read_outputs
from kdnlp.models.modes import evaluating
from kdnlp.models.precision import restore_forward, wrapped_forward


def evaluate_model(
    model: PreTrainedModel,
    args: TrainingArguments,
    splits: Mapping[str, Dataset],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
) -> Evaluation:
    """Evaluate a model on every eval split of the task, as a trainer with `args` would.

    Args:
        model: any model for the task; its mode is restored, and it stays on the run's device.
        args: batch size, precision, device and processes; nothing is logged or written.
        splits: the tokenised data, as `kdnlp.data.preparation.prepare` returns it.
        task: says which splits are evaluated, and by which metrics.
        tokenizer: pads the batches.

    Returns:
        By split, the task's metrics, `score` and `loss`; under several processes the same on all.
        Its `predictions` are the answers that the metrics were computed from.
    """
    quiet = copy.copy(args)
    quiet.report_to, quiet.push_to_hub = [], False
    # A full half-precision evaluation would cast the caller's model for good.
    quiet.bf16_full_eval = quiet.fp16_full_eval = False
    quiet.eval_strategy = IntervalStrategy.NO  # a schedule of evaluations asks for an eval_dataset
    # Grouping by length would shuffle the rows, and answers are looked up row by row.
    quiet.train_sampling_strategy = "random"
    wrapped = wrapped_forward(model)
    trainer = Trainer(model, quiet, data_collator=build_collator(task, tokenizer))
    # Else the stock loss is multiplied by the number of processes.
    trainer.model_accepts_loss_kwargs = False
    # A model that is evaluated is whole, whatever the run shards while it trains.
    trainer.is_fsdp_enabled = False
    names = (*task.metrics, "score", "loss")
    results = Evaluation()
    with evaluating(model):
        for split in task.eval_splits:
            keeping = _KeepingMetrics(task, splits[split])
            trainer.compute_metrics = keeping
            values = trainer.evaluate(splits[split])
            results[split] = {name: float(values[f"eval_{name}"]) for name in names}
            assert keeping.kept is not None
            results.predictions[split] = keeping.kept
    restore_forward(model, wrapped)
    return results


class _KeepingMetrics:
    """A `compute_metrics` that keeps the answers, so that no model runs twice for them."""

    def __init__(self, task: Task, features: Dataset) -> None:
        build_compute_metrics(task, features)  # refuses what cannot be measured, before it runs
        self.task, self.features = task, features
        self.kept: Predictions | None = None

    def __call__(self, evaluation: EvalPrediction) -> dict[str, float]:
        predictions, references = read_outputs(self.task, evaluation, self.features)
        self.kept = keep_predictions(self.task, evaluation, predictions, references)
        return compute(self.task, predictions, references)
