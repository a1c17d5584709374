"""Scores from logits alone are those that a Trainer gives the same model."""

import pytest
from kinds import kind_rows, kind_task, tiny_head
from settings import arguments

from kdnlp.data.preparation import KINDS, build_collator, prepare
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.evaluation.evaluate import evaluate_model
from kdnlp.evaluation.logits import model_logits, score_logits, token_batches


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_scores_as_the_trainer_says(kind, tmp_path):
    task, tokenizer, model = kind_task(kind), build_tokenizer(), tiny_head(kind).train()
    splits = prepare(kind_rows(kind), task, tokenizer)
    found, seconds = score_logits(model_logits(model), splits, task, tokenizer, batch_size=6)
    args = arguments("CompressionTrainer", tmp_path, per_device_eval_batch_size=8)
    expected = evaluate_model(model, args, splits, task, tokenizer)
    for split, values in found.items():
        assert values == pytest.approx({name: expected[split][name] for name in values}, abs=1e-5)
        assert set(values) == {*task.metrics, "score"}
    assert seconds > 0
    assert model.training


def test_batches_hold_every_row_once_in_turns_of_the_sizes():
    task, tokenizer = kind_task("single_label_classification"), build_tokenizer()
    rows = prepare(kind_rows(task.kind), task, tokenizer)["validation"]
    batches = list(token_batches(rows, build_collator(task, tokenizer), [1, 7, 2]))
    assert [len(labels["labels"]) for _, labels in batches] == [1, 7, 2, 1, 7, 2]
    assert [n for _, labels in batches for n in labels["labels"].tolist()] == rows["labels"][:]
    assert all("labels" not in inputs for inputs, _ in batches)
