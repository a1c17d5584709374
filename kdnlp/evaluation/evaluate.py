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

_STATES = (
    "past_key_values",
    "hidden_states",
    "attentions",
    "encoder_last_hidden_state",
    "encoder_hidden_states",
    "encoder_attentions",
    "decoder_hidden_states",
    "decoder_attentions",
    "cross_attentions",
)


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
    wrapped = wrapped_forward(model)
    trainer = Trainer(model, row_by_row(args), data_collator=build_collator(task, tokenizer))
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
            values = trainer.evaluate(splits[split], ignore_keys=unread_outputs(model))
            results[split] = {name: float(values[f"eval_{name}"]) for name in names}
            assert keeping.kept is not None
            results.predictions[split] = keeping.kept
    restore_forward(model, wrapped)
    return results


def row_by_row(args: TrainingArguments) -> TrainingArguments:
    """A run's arguments for a stock trainer that has an answer to every row, in their order.

    Returns:
        A copy that keeps batch size, precision, device and processes, and writes nothing.
    """
    quiet = copy.copy(args)
    quiet.report_to, quiet.push_to_hub = [], False
    # A full half-precision evaluation would cast the caller's model for good.
    quiet.bf16_full_eval = quiet.fp16_full_eval = False
    quiet.eval_strategy = IntervalStrategy.NO  # a schedule of evaluations asks for an eval_dataset
    # Grouping by length would shuffle the rows, and answers are looked up row by row.
    quiet.train_sampling_strategy = "random"
    quiet.dataloader_drop_last = False  # would leave rows of the last batch out of the score
    # The stock trainer would read the first split again for each one after it.
    quiet.dataloader_persistent_workers = False
    # What all rows are gathered for are their outputs.
    quiet.prediction_loss_only = quiet.batch_eval_metrics = False
    quiet.eval_do_concat_batches = True
    return quiet


def unread_outputs(model: PreTrainedModel) -> list[str]:
    """The outputs that no metric reads, some of which are the hidden states of every token."""
    return [*getattr(model.config, "keys_to_ignore_at_inference", []), *_STATES]


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
