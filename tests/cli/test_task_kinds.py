"""The commands take every kind of task, from the user's file or built in, to a smaller model."""

import json
from functools import partial

import pytest
from kinds import SUBJECTS, kind_rows, plain_rows, save_encoder
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

from kdnlp.cli import main, steps
from kdnlp.data.synthetic import generate
from kdnlp.evaluation import plots
from kdnlp.evaluation.report import CompressionReport

STEPS = ("--max_steps", "3", "--use_cpu", "--disable_tqdm", "true", "--report_to", "none")
SMALLER = (*STEPS, "--report_seconds", "0.1", "--no_baseline", "--num_layers", "2")


def run(command, *arguments):
    main([command, *map(str, arguments)])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Files as users have them: lists, columns of zeros and ones, words and tags, answers."""
    root = tmp_path_factory.mktemp("task-kinds")
    save_encoder(root / "encoder")
    for name, kind in {
        "subjects": "multi_label_classification",
        "tags": "token_classification",
        "answers": "question_answering",
    }.items():
        rows = [json.dumps(row) for row in plain_rows(kind_rows(kind, 40)["train"])]
        (root / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    lines = [["sentence", *SUBJECTS]]
    for row in kind_rows("multi_label_classification", 40)["train"]:
        text, subjects = row["sentence"].replace(",", ""), row["subjects"]
        lines.append([text, *("1" if subject in subjects else "0" for subject in SUBJECTS)])
    (root / "columns.csv").write_text("\n".join(map(",".join, lines)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "cache"))
        patch.setattr(steps, "generate", partial(generate, num_train=40, num_validation=20))
        patch.setattr(plots, "save_plots", lambda report, folder: None)
        yield root


DATA = {
    "subjects": ("--train_file", "subjects.jsonl", "--text_columns", "sentence",
                 "--label_column", "subjects"),
    "columns": ("--train_file", "columns.csv", "--text_columns", "sentence",
                "--label_column", ",".join(SUBJECTS)),
    "tags": ("--train_file", "tags.jsonl", "--text_columns", "tokens", "--label_column", "tags"),
    "answers": ("--train_file", "answers.jsonl", "--text_columns", "question", "context",
                "--label_column", "answers", "--max_length", "20"),
    "entities": ("--task", "synthetic_entities"),
    "questions": ("--task", "synthetic_answers"),
}  # fmt: skip
LEADING = {
    "subjects": "f1_micro", "columns": "f1_micro", "tags": "f1", "answers": "exact_match",
    "entities": "f1", "questions": "exact_match",
}  # fmt: skip


def flags(root, data):
    return [root / part if str(part).endswith((".jsonl", ".csv")) else part for part in DATA[data]]


@pytest.fixture(scope="module", params=DATA)
def finetuned(request, root):
    data = request.param
    folder = root / f"{data}-teacher"
    run("finetune", "--model", root / "encoder", "--output_dir", folder, *flags(root, data), *STEPS)
    return data, folder


def test_finetune_writes_a_model_of_the_kind_with_its_own_metrics(finetuned):
    data, folder = finetuned
    report = CompressionReport.load(folder)
    assert report.metric_names[0] == LEADING[data]
    config = json.loads((folder / "config.json").read_text())
    if data in ("subjects", "columns"):
        assert config["problem_type"] == "multi_label_classification"
        assert sorted(config["label2id"]) == sorted(SUBJECTS)


@pytest.mark.parametrize(
    ("command", "source", "names"),
    [
        ("distill", "--teacher", ["teacher", "student"]),
        ("theseus", "--predecessor", ["predecessor", "successor"]),
    ],
)
def test_both_methods_compress_it(command, source, names, finetuned, root):
    data, folder = finetuned
    out = root / f"{data}-{command}"
    run(command, source, folder, "--output_dir", out, *flags(root, data), *SMALLER)
    report = CompressionReport.load(out)
    assert [model.name for model in report.models] == names
    assert [model.num_layers for model in report.models] == [4, 2]
    before = CompressionReport.load(folder)["model"].metrics["validation"]
    after = report.original.metrics["validation"]
    assert {n: after[n] for n in report.metric_names} == pytest.approx(
        {n: before[n] for n in report.metric_names}
    )
    auto = {"tags": AutoModelForTokenClassification, "answers": AutoModelForQuestionAnswering}
    if data in auto:
        _, loading = auto[data].from_pretrained(out, output_loading_info=True)
        assert not loading["missing_keys"]


def test_the_best_checkpoint_of_a_reader_is_chosen_by_its_answers(root, tmp_path):
    each = ("--eval_strategy", "steps", "--save_strategy", "steps", "--logging_steps", "1")
    best = ("--save_steps", "1", "--load_best_model_at_end", "--metric_for_best_model", "f1")
    model = ("--model", root / "encoder", "--output_dir", tmp_path)
    run("finetune", *model, *flags(root, "answers"), *STEPS, *each, *best)
    assert CompressionReport.load(tmp_path).run["selected_on"] == "f1"
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    logged = [row["eval_f1"] for row in state["log_history"] if "eval_f1" in row]
    assert state["best_metric"] == max(logged)
