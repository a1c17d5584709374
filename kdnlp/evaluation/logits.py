"""What maps a batch to logits, and its score on a task: a model, or what it was exported to."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import EvalLoopContainer

from kdnlp.data.inputs import MODEL_INPUTS
from kdnlp.data.preparation import build_collator
from kdnlp.data.task import Task
from kdnlp.evaluation.metrics import build_compute_metrics
from kdnlp.models.modes import evaluating
from kdnlp.models.onnx_graph import logits_names

LogitsOf = Callable[[Mapping[str, Any]], dict[str, NDArray[Any]]]
"""From the tokenizer's part of a batch, tensors of shape (batch, length), to logits by name."""

_LABELS = ("labels", "start_positions", "end_positions")


def model_logits(model: PreTrainedModel) -> LogitsOf:
    """A model as such a function, in eval mode; logits come in float32."""
    accepted, names = inspect.signature(model.forward).parameters, logits_names(model)

    def logits_of(batch: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        given = {k: v.to(model.device) for k, v in batch.items() if k in accepted}
        with evaluating(model), torch.inference_mode():
            found = model(**given, return_dict=True)
        return {name: found[name].float().cpu().numpy() for name in names}

    return logits_of


def token_batches(
    rows: Dataset, collator: Callable[[list[dict[str, Any]]], Any], sizes: Sequence[int]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows in their order, in batches whose sizes follow each other in turn.

    Yields:
        The inputs of a batch, and its labels.
    """
    kept = rows.select_columns([c for c in rows.column_names if c in {*MODEL_INPUTS, *_LABELS}])
    start, size = 0, cycle(sizes)
    while start < len(kept):
        stop = min(start + next(size), len(kept))
        columns = kept[start:stop]
        batch = collator(
            [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        )
        yield (
            {name: value for name, value in batch.items() if name not in _LABELS},
            {name: batch[name] for name in _LABELS if name in batch},
        )
        start = stop


def score_logits(
    logits_of: LogitsOf,
    splits: Mapping[str, Dataset],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 32,
) -> tuple[dict[str, dict[str, float]], float]:
    """Evaluate on every eval split of the task.

    Args:
        logits_of: what is evaluated.
        splits: the tokenised data, as `kdnlp.data.preparation.prepare` returns it.
        task: says which splits are evaluated, and by which metrics.
        tokenizer: pads the batches.
        batch_size: rows in a batch.

    Returns:
        By split, the task's metrics and `score`; and the seconds that computing the logits took.
    """
    collator, results, seconds = build_collator(task, tokenizer), {}, 0.0
    for split in task.eval_splits:
        logits, labels = EvalLoopContainer(), EvalLoopContainer()
        for inputs, given in token_batches(splits[split], collator, [batch_size]):
            start = time.perf_counter()
            found = logits_of(inputs)
            seconds += time.perf_counter() - start
            logits.add(_one_or_several(torch.as_tensor(value) for value in found.values()))
            labels.add(_one_or_several(given.values()))
        evaluation = EvalPrediction(logits.get_arrays(), labels.get_arrays())
        results[split] = build_compute_metrics(task, splits[split])(evaluation)
    return results, seconds


def _one_or_several(values: Any) -> Any:
    several = tuple(values)
    return several[0] if len(several) == 1 else several
