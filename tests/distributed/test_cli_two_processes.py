"""`accelerate launch -m kdnlp` on two processes: one report, with one process's numbers."""

import json

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from kdnlp.data.preparation import prepare
from kdnlp.data.synthetic import build_config, build_tokenizer, generate
from kdnlp.data.tables import infer_task, read_tables
from kdnlp.evaluation.kept import PREDICTIONS_FILE, load_predictions
from kdnlp.evaluation.metrics import build_compute_metrics
from kdnlp.evaluation.significance import score_of
from kdnlp.models.pretrained import head_config

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A predecessor and tables whose validation rows do not fill the last batch of each process."""
    root = tmp_path_factory.mktemp("two-processes")
    for split, rows in generate("synthetic_sentiment", num_train=40, num_validation=13).items():
        rows.remove_columns("idx").to_json(root / f"{split}.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "cache-here"))
        patch.setenv("HF_DATASETS_CACHE", str(root / "cache-there"))
        config = build_config(4, hidden_size=16, num_heads=2, intermediate_size=24)
        config.update(head_config(task_and_rows(root)[0]))
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(root / "predecessor")
        build_tokenizer().save_pretrained(root / "predecessor")
        yield root


def task_and_rows(root):
    rows = read_tables(root / "train.jsonl", root / "validation.jsonl")
    return infer_task(rows, ["sentence"]), rows


@pytest.fixture(scope="module")
def run(folder, launch):
    """The finished command, and the folder that it wrote."""
    data = ("--train_file", "train.jsonl", "--validation_file", "validation.jsonl")
    files = [part if part.startswith("--") else str(folder / part) for part in data]
    done = launch(
        "-m", "kdnlp", "theseus", "--predecessor", str(folder / "predecessor"), *files,
        "--text_columns", "sentence", "--output_dir", str(folder / "out"), "--max_length", "48",
        "--max_steps", "4", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4",
        "--per_device_eval_batch_size", "4", "--use_cpu", "--disable_tqdm", "true",
        "--report_seconds", "0.5",
    )  # fmt: skip
    return done, folder / "out"


def evaluate_alone(model_folder, root):
    """What a plain `Trainer` in this process says about a saved model."""
    task, rows = task_and_rows(root)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(model_folder),
        TrainingArguments(str(root / "alone"), use_cpu=True, report_to="none", disable_tqdm=True),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=build_compute_metrics(task),
    )
    return trainer.evaluate(prepare(rows, task, tokenizer)["validation"])


def test_two_processes_write_and_print_one_report(run):
    done, out = run
    report = json.loads((out / "report.json").read_text())
    assert (report["run"]["processes"], report["run"]["optimizer_steps"]) == (2, 4)
    assert [m["name"] for m in report["models"]] == ["predecessor", "successor", "baseline"]
    assert done.stdout.count("what it cost and gained") == 1
    assert done.stdout.count("Model, tokenizer, report and card are in") == 1
    assert not list(out.rglob("*.partial"))
    assert "own-data" in (out / "README.md").read_text()


MODELS = pytest.mark.parametrize(
    ("name", "saved"),
    [("predecessor", "predecessor"), ("successor", "out"), ("baseline", "out/_baseline")],
)


def reported(out, name):
    models = json.loads((out / "report.json").read_text())["models"]
    return {model["name"]: model["metrics"]["validation"] for model in models}[name]


@MODELS
def test_the_reported_scores_are_those_of_one_process(name, saved, run, folder):
    got, expected = reported(run[1], name), evaluate_alone(folder / saved, folder)
    for key in ("accuracy", "f1", "score"):
        assert got[key] == pytest.approx(expected[f"eval_{key}"], abs=1e-9), key


@MODELS
def test_the_reported_loss_is_that_of_one_process(name, saved, run, folder):
    got, expected = reported(run[1], name), evaluate_alone(folder / saved, folder)
    # The last batch of a process is filled up with rows that count again in its mean.
    assert got["loss"] == pytest.approx(expected["eval_loss"], rel=0.02)


def test_training_moved_the_successor(run):
    losses = [reported(run[1], name)["loss"] for name in ("predecessor", "successor", "baseline")]
    assert len({round(loss, 4) for loss in losses}) == 3


@MODELS
def test_the_kept_predictions_are_every_row_once_in_its_order(name, saved, run, folder):
    task, rows = task_and_rows(folder)
    kept = load_predictions(run[1] / PREDICTIONS_FILE)[name]
    assert kept["validation"].labels.tolist() == list(rows["validation"]["label"])
    score = score_of(kept, task.metrics)
    assert score == pytest.approx(reported(run[1], name)["score"], abs=1e-9)


@pytest.mark.slow
def test_two_processes_agree_which_students_of_a_ladder_are_done(folder, launch):
    """Where one trains what another takes to be done, both wait for ever."""
    tables = {"--train_file": "train.jsonl", "--validation_file": "validation.jsonl"}
    files = [part for flag, name in tables.items() for part in (flag, str(folder / name))]
    for depths in ("2", "2,1"):
        done = launch(
            "-m", "kdnlp", "ladder", "--teacher", str(folder / "predecessor"), *files,
            "--text_columns", "sentence", "--output_dir", str(folder / "ladder"), "--num_layers",
            depths, "--max_length", "48", "--max_steps", "2", "--use_cpu", "--disable_tqdm", "true",
            "--report_seconds", "0.3", "--teacher_cache_dir", str(folder / "teacher-outputs"),
        )  # fmt: skip
    assert "The student of 2 blocks is done already." in done.stderr
    assert "The student of 1 blocks." in done.stderr
    report = json.loads((folder / "ladder" / "report.json").read_text())
    assert [model["name"] for model in report["models"]] == ["teacher", "2 layers", "1 layer"]
    for depth in (2, 1):
        state = json.loads((folder / "ladder" / f"{depth}-layers" / "_rung.json").read_text())
        assert (state["done"], state["settings"]["processes"]) == (True, 2)
