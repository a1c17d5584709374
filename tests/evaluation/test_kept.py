"""What is kept of predictions is enough to compute the scores again, and nothing else."""

import numpy as np
import pytest
from answers_of import TWO, answers_of, kept, tasks
from datasets import DatasetDict
from settings import arguments, tiny_dataset, tiny_model

from kdnlp.data.synthetic import build_tokenizer
from kdnlp.data.task import Task
from kdnlp.evaluation.evaluate import evaluate_model
from kdnlp.evaluation.kept import (
    Evaluation,
    Predictions,
    load_predictions,
    save_predictions,
)
from kdnlp.evaluation.significance import score_of

TASKS = tasks()


def equal(first, second):
    return (
        (first.kind, first.label_names, first.positive_class)
        == (second.kind, second.label_names, second.positive_class)
        and first.arrays.keys() == second.arrays.keys()
        and all(np.array_equal(first.arrays[k], second.arrays[k]) for k in first.arrays)
    )


@pytest.mark.parametrize("name", TASKS)
def test_what_is_saved_is_read_back_to_the_bit(name, tmp_path):
    task = TASKS[name]
    models = {
        "teacher": {"a": kept(task, 1), "b": kept(task, 2)},
        "org/student 2": {"a": kept(task, 3)},
    }
    save_predictions(models, tmp_path / "p.safetensors")
    read = load_predictions(tmp_path / "p.safetensors")
    assert {n: list(s) for n, s in read.items()} == {n: list(s) for n, s in models.items()}
    for model, splits in models.items():
        assert all(equal(read[model][split], own) for split, own in splits.items())
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_no_text_is_kept(tmp_path):
    own, predictions, _ = answers_of(TASKS["question_answering"], 1)
    assert "Rome" in predictions
    save_predictions({"m": {"v": own}}, tmp_path / "p")
    assert b"Rome" not in (tmp_path / "p").read_bytes()


@pytest.mark.parametrize("content", [b"", b"no numbers at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(ValueError, match=r"p does not hold kept predictions.*run the command"):
        load_predictions(tmp_path / "p")


def test_other_rows_are_not_taken_for_the_same():
    own = kept(TWO, 1)
    assert own.same_rows(kept(TWO, 2))
    assert not own.same_rows(kept(TWO, 1, rows=11))
    assert not own.same_rows(kept(TWO, 1, labels_seed=5))
    renamed = Predictions(own.kind, ("yes", "no"), 0, own.arrays)
    assert not own.same_rows(renamed)
    tags = kept(TASKS["token_classification"], 1)
    moved = Predictions(tags.kind, tags.label_names, 1, {**tags.arrays, "sentence": tags.units * 2})
    assert not tags.same_rows(moved)


def test_an_evaluation_keeps_what_its_scores_were_computed_from(tmp_path, monkeypatch):
    task = Task("t", ("text",), ("no", "yes"), ("f1", "accuracy"), eval_splits=("a", "b"))
    splits = DatasetDict(a=tiny_dataset(33, seed=1), b=tiny_dataset(7, seed=2))
    args = arguments("CompressionTrainer", tmp_path, per_device_eval_batch_size=8)
    model, runs = tiny_model(), []
    model.register_forward_hook(lambda *_: runs.append(1))
    result = evaluate_model(model, args, splits, task, build_tokenizer())
    assert len(runs) == 5 + 1  # batches: no row runs twice
    for split in splits:
        assert result.predictions[split].labels.tolist() == splits[split]["labels"][:]
        own = score_of({split: result.predictions[split]}, task.metrics)
        assert own == pytest.approx(result[split]["score"])


def test_an_evaluation_is_a_plain_mapping_of_metrics():
    result = Evaluation({"v": {"score": 0.5}}, {"v": kept(TWO, 1)})
    assert result == {"v": {"score": 0.5}}
    assert Evaluation(iter(result.items())).predictions == {}
