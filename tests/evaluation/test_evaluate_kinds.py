"""Every kind of task is scored by its own head, on all rows, whatever the batches."""

import numpy as np
import pytest
import torch
from kinds import kind_rows, kind_task, tiny_head
from settings import arguments
from sklearn.metrics import accuracy_score, f1_score

from kdnlp.data.preparation import KINDS, build_collator, prepare
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.evaluation.evaluate import evaluate_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))


def one_by_one(model, task, rows):
    """What the model says about each row alone, without padding."""
    collate = build_collator(task, build_tokenizer())
    taken = {"input_ids", "attention_mask", "token_type_ids"}
    with torch.no_grad():
        for row in rows:
            batch = collate([{name: row[name] for name in taken} | {"labels": [0]}])
            batch.pop("labels")
            yield row, model(**batch)


def multi_label(model, task, rows):
    outputs = list(one_by_one(model, task, rows))
    predicted = np.array([output.logits[0].sigmoid().numpy() > 0.5 for _, output in outputs])
    true = np.array([row["labels"] for row, _ in outputs])
    return {
        "f1_micro": f1_score(true, predicted, average="micro"),
        "subset_accuracy": accuracy_score(true, predicted),
    }


def token_classification(model, task, rows):
    hits = total = 0
    for row, output in one_by_one(model, task, rows):
        guesses = output.logits[0].argmax(-1).tolist()
        counted = [(g, t) for g, t in zip(guesses, row["labels"], strict=True) if t != -100]
        hits += sum(g == t for g, t in counted)
        total += len(counted)
    return {"accuracy": hits / total}


def question_answering(model, task, rows):
    best = {}
    for row, output in one_by_one(model, task, rows):
        start, end = output.start_logits[0], output.end_logits[0]
        for i, j in np.ndindex(len(start), len(end)):
            inside = row["char_starts"][i] >= 0 and row["char_starts"][j] >= 0
            if inside and i <= j < i + task.max_answer_length:
                text = row["context"][row["char_starts"][i] : row["char_ends"][j]]
                candidate = (float(start[i] + end[j]), text, row["answers"])
                best[row["example"]] = max(best.get(row["example"], candidate), candidate)
    assert len(rows) > len(best) == 20  # windows, of twenty questions
    found = [content(text) in map(content, answers) for _, text, answers in best.values()]
    return {"exact_match": np.mean(found)}


def content(text):
    return [word for word in text.split() if word not in ("the", ",")]


BY_HAND = {
    "multi_label_classification": multi_label,
    "token_classification": token_classification,
    "question_answering": question_answering,
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_metrics_equal_a_computation_row_by_row(kind, tmp_path):
    task, tokenizer = kind_task(kind), build_tokenizer()
    data = prepare(kind_rows(kind), task, tokenizer)
    args = arguments("CompressionTrainer", tmp_path, per_device_eval_batch_size=7)
    model = tiny_head(kind, seed=3)
    values = evaluate_model(model, args, data, task, tokenizer)["validation"]
    assert list(values) == [*task.metrics, "score", "loss"]
    expected = BY_HAND[kind](model, task, data["validation"])
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert 0 < values["loss"] < 10


def test_grouping_by_length_does_not_look_answers_up_in_other_contexts(tmp_path):
    task, tokenizer = kind_task("question_answering"), build_tokenizer()
    data, model = prepare(kind_rows(task.kind), task, tokenizer), tiny_head(task.kind, seed=3)
    values = [
        evaluate_model(
            model,
            arguments("CompressionTrainer", tmp_path, train_sampling_strategy=strategy),
            data,
            task,
            tokenizer,
        )
        for strategy in ("random", "group_by_length")
    ]
    assert values[0]["validation"] == pytest.approx(values[1]["validation"])


# No number of steps makes a correlation exactly one.
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"regression"}))
def test_a_model_that_has_learned_its_rows_by_heart_scores_one(kind, tmp_path):
    task, tokenizer = kind_task(kind), build_tokenizer()
    data = prepare(kind_rows(kind, 1, 16), task, tokenizer)
    model = tiny_head(kind, seed=1).train()
    collate = build_collator(task, tokenizer)
    columns = [c for c in data["train"].column_names if c in data["validation"].column_names]
    batch = collate(list(data["validation"].select_columns(columns)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    args = arguments("CompressionTrainer", tmp_path)
    values = evaluate_model(model, args, data, task, tokenizer)["validation"]
    assert {values[name] for name in task.metrics} == {1.0}
