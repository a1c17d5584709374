"""A model is scored on all rows of all splits, by its own weights, whatever trained beside it."""

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from settings import VOCAB_SIZE, arguments, tiny_dataset, tiny_model
from sklearn.metrics import accuracy_score, f1_score
from transformers import BartConfig, BartForSequenceClassification, Trainer

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


@pytest.mark.parametrize(
    "values",
    [
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
        {"dataloader_drop_last": True},
        {"prediction_loss_only": True},
        {"batch_eval_metrics": True},
        {"eval_do_concat_batches": False},
    ],
    ids=lambda values: next(iter(values)),
)
def test_every_row_of_every_split_counts_whatever_the_arguments_say(tmp_path, values):
    splits = DatasetDict(matched=tiny_dataset(33, seed=1), mismatched=tiny_dataset(7, seed=2))
    scores = []
    for own in ({}, values):
        args = arguments("CompressionTrainer", tmp_path, per_device_eval_batch_size=8, **own)
        found = evaluate_model(tiny_model("bert", 2), args, splits, TASK, build_tokenizer())
        scores.append({split: pytest.approx(told) for split, told in found.items()})
        assert {split: len(p.predicted) for split, p in found.predictions.items()} == {
            "matched": 33, "mismatched": 7,
        }  # fmt: skip
    assert dict(found) == scores[0]


def test_hidden_states_are_not_gathered_over_the_rows(tmp_path, monkeypatch):
    gathered = []
    step = Trainer.prediction_step

    def kept(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        gathered.append(result[1])
        return result

    monkeypatch.setattr(Trainer, "prediction_step", kept)
    rows = tiny_dataset(4)
    rows = rows.map(
        lambda row: {
            "input_ids": [*row["input_ids"], 3],
            "attention_mask": [*row["attention_mask"], 1],
        }
    )
    splits = DatasetDict(matched=rows, mismatched=rows)
    args = arguments("CompressionTrainer", tmp_path)
    sizes = {
        f"{side}_{name}": 2
        for side in ("encoder", "decoder")
        for name in ("attention_heads", "ffn_dim")
    }
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    config = BartConfig(
        vocab_size=VOCAB_SIZE, d_model=16, num_labels=2, **sizes, **layers, **special
    )
    model = BartForSequenceClassification(config)
    evaluate_model(model, args, splits, TASK, build_tokenizer())
    assert [type(logits) for logits in gathered] == [torch.Tensor] * 2


def test_evaluating_reports_nothing_and_changes_no_arguments(tmp_path):
    args = arguments("CompressionTrainer", tmp_path)
    args.push_to_hub, args.report_to = True, ["tensorboard"]
    splits = DatasetDict(matched=tiny_dataset(4), mismatched=tiny_dataset(4))
    evaluate_model(tiny_model(), args, splits, TASK, build_tokenizer())
    assert args.push_to_hub
    assert args.report_to == ["tensorboard"]
    assert list(tmp_path.iterdir()) == []
