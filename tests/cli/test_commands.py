"""Each command, from its command line to the files that it leaves behind."""

import contextlib
import io
import json
import logging
import shutil
import subprocess
import sys
from functools import partial

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

from kdnlp.cli import compress, demo, main, steps
from kdnlp.cli.options import DataOptions
from kdnlp.data.synthetic import build_config, build_tokenizer, generate
from kdnlp.data.tables import read_tables
from kdnlp.evaluation import plots
from kdnlp.evaluation.kept import PREDICTIONS_FILE
from kdnlp.evaluation.report import CompressionReport
from kdnlp.trainers.base import CompressionTrainer
from kdnlp.trainers.theseus import TheseusTrainer

TASK = ("--task", "synthetic_sentiment", "--max_train_samples", "64")
STEPS = ("--max_steps", "3", "--use_cpu", "--disable_tqdm", "true")
FAST = (*STEPS, "--report_seconds", "0.1")
FIRST_SECRET, SECOND_SECRET, SECRET_OF_THE_SHELL = "hf_FirstSecret", "hf_SecondSecret", "hf_Third"


def save_encoder(folder, num_layers=4):
    """A tiny pretrained encoder and its tokenizer."""
    torch.manual_seed(0)
    config = build_config(num_layers, hidden_size=16, num_heads=2, intermediate_size=24)
    BertModel(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def run(command, *arguments):
    main([command, *map(str, arguments)])


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """The built-in task with few rows, and a cache of tables that no other run shares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "generate", partial(generate, num_train=128, num_validation=96))
        cache = tmp_path_factory.mktemp("hf-cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, small_data):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, encoder):
    folder = tmp_path_factory.mktemp("finetuned")
    run("finetune", "--model", encoder, "--output_dir", folder, *TASK, *STEPS, "--seed", 5)
    return folder


@pytest.fixture(scope="module")
def theseus(tmp_path_factory, finetuned):
    folder = tmp_path_factory.mktemp("theseus")
    secret = ("--hub_token", FIRST_SECRET)
    run("theseus", "--predecessor", finetuned, "--output_dir", folder, *TASK, *FAST, *secret)
    return folder


@pytest.fixture(scope="module")
def said():
    """What the run of `distilled` printed and logged, at the most talkative level."""
    return io.StringIO()


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, finetuned, said):
    folder = tmp_path_factory.mktemp("distilled")
    settings = ("--no_baseline", "--loss_weights", "task=0.2,logits=0.8", "--num_layers", "1")
    flags = (*settings, f"--hub_token={SECOND_SECRET}", "--report_length", "12")
    with recorded(said), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET_OF_THE_SHELL)
        run("distill", "--teacher", finetuned, "--output_dir", folder, *TASK, *FAST, *flags)
    return folder


@contextlib.contextmanager
def recorded(text):
    """Write down standard output and error, and every record of any logger."""
    handler, libraries = logging.StreamHandler(text), ("", "transformers", "kdnlp")
    loggers = [(logging.getLogger(name), logging.getLogger(name).level) for name in libraries]
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        for logger, _ in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.DEBUG)
        yield
        for logger, level in loggers:
            logger.removeHandler(handler)
            logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_plot(finetuned, theseus, distilled, monkeypatch):
    """Drawing takes longer than training here; only the module's own runs draw."""
    monkeypatch.setattr(plots, "save_plots", lambda report, folder: None)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def count_steps(monkeypatch):
    """How many micro-batches each trainer class trains on."""
    counts = {}
    step = CompressionTrainer.training_step

    def counted(self, *arguments, **options):
        counts[type(self).__name__] = counts.get(type(self).__name__, 0) + 1
        return step(self, *arguments, **options)

    monkeypatch.setattr(CompressionTrainer, "training_step", counted)
    return counts


def test_finetune_leaves_what_the_other_commands_start_from(finetuned):
    config = read_json(finetuned / "config.json")
    assert config["num_hidden_layers"] == 4
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    report = CompressionReport.load(finetuned)
    assert [model.name for model in report.models] == ["model"]
    assert (report.run["method"], report.run["seed"]) == ("fine-tuning", 5)
    assert AutoTokenizer.from_pretrained(finetuned).pad_token == "[PAD]"


@pytest.mark.parametrize(
    ("command", "layers", "names"),
    [
        ("theseus", 2, ["predecessor", "successor", "baseline"]),
        ("distilled", 1, ["teacher", "student"]),
    ],
)
def test_the_folder_holds_a_smaller_model_and_its_account(
    command, layers, names, request, finetuned
):
    folder = request.getfixturevalue(command)
    assert read_json(folder / "config.json")["num_hidden_layers"] == layers
    report = CompressionReport.load(folder)
    assert [model.name for model in report.models] == names
    assert [model.num_layers for model in report.models] == [4, *[layers] * (len(names) - 1)]
    assert (report.task, report.metric_names) == ("synthetic_sentiment", ("accuracy",))
    assert report.run["optimizer_steps"] == 3
    assert report.run["base_model"] == finetuned.name
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "training_args.bin", "report.json", "report.md", "report.html", "report.png", "report.svg",
        "history.json", "_predictions.safetensors",
    }  # fmt: skip
    assert names[1] in (folder / "report.md").read_text()


def test_the_settings_of_the_command_line_reach_report_and_training(distilled, theseus):
    run_of = CompressionReport.load(distilled).run
    assert run_of["method"] == "distillation"
    assert run_of["arguments"]["loss_weights"] == {"task": 0.2, "logits": 0.8}
    assert list(run_of["losses"]) == ["logits"]
    assert CompressionReport.load(distilled).setting.sequence_length == 12
    assert CompressionReport.load(theseus).setting.sequence_length == 48
    assert CompressionReport.load(theseus).run["losses"] == {}


@pytest.mark.parametrize(
    ("command", "name"),
    [("finetuned", "model"), ("theseus", "successor"), ("distilled", "student")],
)
def test_the_reported_scores_are_those_of_the_saved_model(command, name, request):
    folder = request.getfixturevalue(command)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = steps.generate("synthetic_sentiment")["validation"]
    batch = tokenizer(list(rows["sentence"]), padding=True, return_tensors="pt")
    labels = torch.tensor(rows["label"])
    with torch.no_grad():
        logits = model(**batch).logits
    reported = CompressionReport.load(folder)[name].metrics["validation"]
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert reported["loss"] == pytest.approx(loss, abs=1e-5)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert reported["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_the_original_in_the_report_is_the_untouched_predecessor(theseus, distilled, finetuned):
    expected = CompressionReport.load(finetuned)["model"].metrics["validation"]["loss"]
    for folder in (theseus, distilled):
        report = CompressionReport.load(folder)
        assert report.original.metrics["validation"]["loss"] == pytest.approx(expected, abs=1e-6)
    losses = [m.metrics["validation"]["loss"] for m in CompressionReport.load(theseus).models]
    assert len(set(losses)) == 3


def test_no_weights_of_the_predecessor_are_in_the_folder(theseus, distilled):
    for folder, layers in ((theseus, 2), (distilled, 1)):
        weights = [p for p in folder.rglob("*.safetensors") if p.name != PREDICTIONS_FILE]
        assert weights
        for path in weights:
            blocks = {k.split(".")[3] for k in load_file(path) if ".encoder.layer." in k}
            assert len(blocks) == layers, path
        assert not list(folder.rglob("*.bin")) or {p.name for p in folder.rglob("*.bin")} == {
            "training_args.bin"
        }


def test_the_baseline_has_a_folder_of_its_own_and_only_if_asked_for(theseus, distilled):
    baseline = theseus / compress.BASELINE_FOLDER
    assert read_json(baseline / "config.json")["num_hidden_layers"] == 2
    assert not (baseline / "report.json").exists()
    ours, theirs = (load_file(f / "model.safetensors") for f in (theseus, baseline))
    assert ours.keys() == theirs.keys()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert not (distilled / compress.BASELINE_FOLDER).exists()


@pytest.mark.parametrize("command", ["finetuned", "theseus", "distilled"])
def test_the_card_loads_and_names_no_place_that_only_this_machine_has(command, request, finetuned):
    folder = request.getfixturevalue(command)
    card = ModelCard.load(folder / "README.md")
    report = CompressionReport.load(folder)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    assert set(card.data.tags) == {"kdnlp", report.run["method"]}
    assert card.data.base_model is None
    (result,) = card.data.eval_results
    own = report.models[min(1, len(report.models) - 1)]
    assert result.metric_value == pytest.approx(own.metrics["validation"]["accuracy"], abs=1e-6)
    assert str(finetuned.parent) not in str(card)


@pytest.mark.parametrize("command", ["finetuned", "theseus"])
def test_the_plot_is_a_picture(command, request):
    with Image.open(request.getfixturevalue(command) / "report.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert 800 <= picture.width <= 2400
        assert 300 <= picture.height <= 1200
        assert len(picture.convert("RGB").getcolors(100_000)) > 3


def test_the_command_in_the_report_can_be_shown_to_anyone(theseus, distilled, finetuned):
    for folder, command in ((theseus, "theseus --predecessor"), (distilled, "distill --teacher")):
        shown = read_json(folder / "report.json")["run"]["command"]
        flag = command.rpartition("-")[2]
        assert shown.startswith(f"kdnlp {command} '<{flag}>' --output_dir {folder.name}")
        assert f"`<{flag}>` is on the machine of the run" in (folder / "README.md").read_text()
        assert str(folder.parent) not in (folder / "report.json").read_text()
        assert "--max_steps 3" in shown
        for path in folder.iterdir():
            if path.suffix in (".json", ".md"):
                text = path.read_text(encoding="utf-8")
                assert FIRST_SECRET not in text
                assert SECOND_SECRET not in text
    assert "hub_token" not in (theseus / "report.json").read_text()


def test_no_token_is_in_any_file_or_said(theseus, distilled, said):
    secrets = (FIRST_SECRET, SECOND_SECRET, SECRET_OF_THE_SHELL)
    written = {**contents(theseus), **contents(distilled)}
    assert any(path.name == "training_args.bin" for path in written)
    for path, content in written.items():
        assert not [secret for secret in secrets if secret.encode() in content], path
    assert "The teacher scores" in said.getvalue()
    assert not [secret for secret in secrets if secret in said.getvalue()]


def test_a_baseline_that_leads_elsewhere_is_refused_before_any_work(finetuned, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / compress.BASELINE_FOLDER).symlink_to(tmp_path)
    with pytest.raises(SystemExit, match="baseline's folder must lie below output_dir"):
        run("theseus", "--predecessor", finetuned, "--output_dir", tmp_path / "out", *TASK, *FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_run_is_refused_before_any_work_and_touches_nothing(
    theseus, finetuned, monkeypatch
):
    before = contents(theseus)

    def too_late(*arguments, **options):
        raise AssertionError("loaded data or trained")

    monkeypatch.setattr(compress, "load_task", too_late)
    monkeypatch.setattr(CompressionTrainer, "train", too_late)
    with pytest.raises(SystemExit, match="already holds another run"):
        run("theseus", "--predecessor", finetuned, "--output_dir", theseus, *TASK, *FAST)
    assert contents(theseus) == before


def steps_of(folder):
    return CompressionReport.load(folder).run["optimizer_steps"]


SHORT = (*TASK, *FAST, "--no_baseline", "--save_strategy", "steps", "--save_steps", "2")


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(finetuned, tmp_path, count_steps):
    model, flags = ("--predecessor", finetuned), (*SHORT, "--max_steps", "4")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("theseus", *model, "--output_dir", whole, *flags)
    killed.mkdir()
    shutil.copytree(whole / "checkpoint-2", killed / "checkpoint-2")
    count_steps.clear()
    run("theseus", *model, "--output_dir", killed, *flags, "--resume_from_checkpoint", "true")
    assert count_steps == {"TheseusTrainer": 2}
    assert steps_of(killed) == 4
    ours, theirs = (load_file(f / "model.safetensors") for f in (whole, killed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("folder_is_there", [False, True])
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(
    folder_is_there, finetuned, tmp_path, count_steps
):
    folder = tmp_path / "run"
    if folder_is_there:
        folder.mkdir()
    flags = ("--resume_from_checkpoint", "true")
    run("theseus", "--predecessor", finetuned, "--output_dir", folder, *SHORT, *flags)
    assert count_steps == {"TheseusTrainer": 3}
    assert steps_of(folder) == 3


def test_resuming_a_run_that_has_finished_trains_no_further(finetuned, tmp_path, count_steps):
    flags = (*SHORT, "--max_steps", "3", "--lr_scheduler_type", "constant")
    model = ("--predecessor", finetuned, "--output_dir", tmp_path)
    run("theseus", *model, *flags)
    before = load_file(tmp_path / "model.safetensors")
    count_steps.clear()
    run("theseus", *model, *flags, "--resume_from_checkpoint", "true")
    after = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (steps_of(tmp_path), count_steps) == (3, {})


def test_a_run_from_the_start_has_a_baseline_from_the_start(finetuned, tmp_path, count_steps):
    model = ("--predecessor", finetuned, "--output_dir", tmp_path)
    flags = (*TASK, *FAST, "--save_strategy", "steps", "--save_steps", "2")
    run("theseus", *model, *flags)
    count_steps.clear()
    run("theseus", *model, *flags, "--overwrite_output_dir", "--resume_from_checkpoint", "false")
    assert count_steps == {"TheseusTrainer": 3, "CompressionTrainer": 3}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Sixty sentences of the built-in task under other column and class names."""
    path = tmp_path_factory.mktemp("table") / "own.csv"
    rows = generate("synthetic_sentiment", num_train=60, num_validation=1)["train"]
    lines = [f'"{row["sentence"]}",{("bad", "good")[row["label"]]}' for row in rows]
    path.write_text("\n".join(["review,verdict", *lines]) + "\n", encoding="utf-8")
    return path


OWN = ("--text_columns", "review", "--label_column", "verdict", "--max_length", "32")


def test_an_own_table_is_trained_and_compressed(table, encoder, tmp_path):
    data = ("--train_file", table, *OWN)
    run("finetune", "--model", encoder, "--output_dir", tmp_path / "a", *data, *STEPS)
    config = read_json(tmp_path / "a" / "config.json")
    assert config["id2label"] == {"0": "bad", "1": "good"}
    flags = (*FAST, "--no_baseline", "--losses", "logits", "--task", "reviews")
    model = ("--predecessor", tmp_path / "a", "--output_dir", tmp_path / "b")
    run("theseus", *model, *data, *flags)
    report = CompressionReport.load(tmp_path / "b")
    assert (report.task, report.metric_names) == ("reviews", ("accuracy", "f1"))
    assert report.run["text_columns"] == ["review"]
    assert report.run["label_names"] == ["bad", "good"]
    assert list(report.run["losses"]) == ["logits"]
    assert len(read_tables(table, seed=42)["validation"]) == 6


def test_an_own_table_does_not_pass_for_glue(table, encoder, tmp_path):
    data = ("--train_file", table, *OWN, "--task", "mrpc")
    try:
        run("finetune", "--model", encoder, "--output_dir", tmp_path, *data, *STEPS)
    except (ValueError, SystemExit):
        return
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.datasets is None


def test_a_model_that_takes_fewer_tokens_than_the_task_has_a_report(table, encoder, tmp_path):
    data = ("--train_file", table, *OWN[:-2])
    run("finetune", "--model", encoder, "--output_dir", tmp_path, *data, *STEPS)
    report = CompressionReport.load(tmp_path)
    assert report.setting.sequence_length == 64
    assert report.run["max_length"] == 64


def test_a_report_length_beyond_the_model_is_refused_before_training(
    finetuned, tmp_path, count_steps
):
    model = ("--predecessor", finetuned, "--output_dir", tmp_path)
    with pytest.raises(SystemExit, match="--report_length must lie in"):
        run("theseus", *model, *TASK, *FAST, "--no_baseline", "--report_length", "65")
    assert not count_steps


@pytest.mark.parametrize("command", ["finetune", "theseus"])
def test_evaluation_during_training_and_the_best_checkpoint(command, encoder, finetuned, tmp_path):
    flags = ("--eval_strategy", "steps", "--save_strategy", "steps", "--logging_steps", "1")
    best = ("--load_best_model_at_end", "--metric_for_best_model", "accuracy")
    if command == "finetune":
        model = ("--model", encoder, *STEPS)
    else:
        model = ("--predecessor", finetuned, *FAST)
    run(command, *model, "--output_dir", tmp_path, *TASK, *flags, "--save_steps", "1", *best)
    assert CompressionReport.load(tmp_path).run["selected_on"] == "accuracy"
    assert "which flatters it" in (tmp_path / "README.md").read_text()


def test_a_best_checkpoint_by_what_nothing_measures_is_refused(finetuned, tmp_path, count_steps):
    model = ("--predecessor", finetuned, "--output_dir", tmp_path)
    best = ("--load_best_model_at_end", "--save_strategy", "epoch", "--eval_strategy", "epoch")
    with pytest.raises(SystemExit, match="best_model to be one of accuracy, score, loss, got acc"):
        run("theseus", *model, *TASK, *FAST, *best, "--metric_for_best_model", "acc")
    assert not count_steps


def test_the_best_checkpoint_of_a_task_with_two_validation_splits(encoder, tmp_path):
    classes = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    for split in ("train", "validation_matched", "validation_mismatched"):
        rows = generate("synthetic_paraphrase", num_train=16, num_validation=1)["train"]
        rows = rows.rename_columns({"sentence1": "premise", "sentence2": "hypothesis"})
        rows.cast_column("label", classes).to_parquet(tmp_path / f"{split}.parquet")
    data = ("--task", "mnli", "--data_dir", tmp_path, "--max_length", "48")
    each = ("--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end")
    flags = (*data, *STEPS, *each, "--output_dir", tmp_path / "out")
    run("finetune", "--model", encoder, *flags)
    report = CompressionReport.load(tmp_path / "out")
    assert list(report["model"].metrics) == ["validation_matched", "validation_mismatched"]
    assert report.run["selected_on_split"] == "validation_matched"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "sentiment"), r"one of cola, .*synthetic_similarity.* got --task sentiment"),
        ((), "got --task None"),
        (("--train_file", "own.csv"), "--train_file needs --text_columns"),
        (("--train_file", "nowhere.csv", "--text_columns", "a"), "No file nowhere.csv"),
    ],
    ids=["unknown", "none", "no-columns", "no-file"],
)
def test_a_task_that_is_not_there_is_named(flags, message, finetuned, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run("theseus", "--predecessor", finetuned, "--output_dir", tmp_path, *flags, *FAST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "flag"), [("theseus", "--predecessor"), ("distill", "--teacher")]
)
def test_a_model_without_a_head_is_sent_to_finetune(command, flag, encoder, tmp_path):
    with pytest.raises(SystemExit, match="kdnlp finetune --model") as error:
        run(command, flag, encoder, "--output_dir", tmp_path, *TASK, *FAST)
    assert str(encoder) in str(error.value)
    assert "--task synthetic_sentiment" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_loss_is_refused(finetuned, tmp_path, count_steps):
    with pytest.raises(SystemExit, match=r"--losses names logit, hiden; .* out of logits"):
        run(
            "distill", "--teacher", finetuned, "--output_dir", tmp_path, *TASK, *FAST,
            "--losses", "logit, hiden",
        )  # fmt: skip
    assert not count_steps


def test_a_weight_for_a_loss_that_is_not_there_is_refused(finetuned, tmp_path, count_steps):
    flags = ("--loss_weights", "task=1,hidden=1")
    with pytest.raises(SystemExit, match="loss_weights names hidden"):
        run("distill", "--teacher", finetuned, "--output_dir", tmp_path, *TASK, *FAST, *flags)
    assert not count_steps


def test_a_student_of_its_own_takes_the_teachers_labels(finetuned, tmp_path):
    student = save_encoder(tmp_path / "encoder", num_layers=1)
    model = ("--teacher", finetuned, "--student", student)
    out = tmp_path / "out"
    run("distill", *model, "--output_dir", out, *TASK, *FAST, "--no_baseline")
    config = read_json(out / "config.json")
    assert config["num_hidden_layers"] == 1
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    recorded = CompressionReport.load(out).run
    assert (recorded["student"], recorded["teacher_dtype"]) == ("encoder", "float32")
    assert "init_layers" not in recorded


def test_a_student_of_its_own_with_another_depth_is_refused(
    finetuned, tmp_path, count_steps, capsys
):
    model = ("--teacher", finetuned, "--student", finetuned, "--num_layers", "2")
    with pytest.raises(SystemExit):
        run("distill", *model, "--output_dir", tmp_path, *TASK, *FAST)
    assert "Expected --student or --num_layers, got both" in capsys.readouterr().err
    assert not count_steps


def test_the_named_blocks_are_the_ones_that_are_copied(finetuned, tmp_path):
    flags = ("--init_layers", "0,2", "--learning_rate", "0", "--no_baseline")
    run("theseus", "--predecessor", finetuned, "--output_dir", tmp_path, *TASK, *FAST, *flags)
    predecessor, successor = (load_file(f / "model.safetensors") for f in (finetuned, tmp_path))
    block = "bert.encoder.layer.{}.output.dense.weight"
    assert torch.equal(successor[block.format(0)], predecessor[block.format(0)])
    assert torch.equal(successor[block.format(1)], predecessor[block.format(2)])
    assert block.format(2) not in successor
    assert CompressionReport.load(tmp_path).run["init_layers"] == [0, 2]


@pytest.mark.parametrize("value", ["0,x", "middle", "0,9"])
def test_blocks_that_are_not_there_are_refused_before_rows_are_tokenised(
    value, finetuned, tmp_path, monkeypatch
):
    monkeypatch.setattr("kdnlp.cli.compress.trainer_inputs", None)  # not called
    flags = ("--init_layers", value)
    with pytest.raises(SystemExit, match="init_layers"):
        run("theseus", "--predecessor", finetuned, "--output_dir", tmp_path, *TASK, *FAST, *flags)


def test_the_report_of_one_run_is_printed(theseus, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    run("report", theseus)
    printed = capsys.readouterr().out
    for word in ("predecessor", "successor", "baseline", "accuracy, %", "synthetic_sentiment"):
        assert word in printed


def test_several_runs_are_compared_and_written_where_asked(
    theseus, distilled, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    run("report", theseus, distilled, "--output_dir", tmp_path / "new")
    printed = capsys.readouterr().out
    written = (tmp_path / "new" / "comparison.md").read_text(encoding="utf-8")
    rows = read_json(tmp_path / "new" / "comparison.json")
    expected = {
        "predecessor": 4, "successor (theseus)": 2, "baseline": 2,
        "teacher": 4, "student (distillation)": 1,
    }  # fmt: skip
    assert {row["model"]: row["num_layers"] for row in rows} == expected
    for name in expected:
        assert name in printed
        assert name in written
    report = CompressionReport.load(theseus)
    by_name = {row["model"]: row for row in rows}
    assert by_name["successor (theseus)"]["scores"] == [report["successor"].score]
    assert by_name["baseline"]["flops_ratio"] == report.ratios("baseline")["flops"]


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"^kdnlp report: Expected report\.json in"):
        run("report", tmp_path)


LIGHT = """
import sys
from kdnlp.cli import main
for argv in (["--version"], ["--help"], ["nothing"]):
    try:
        main(argv)
    except SystemExit as end:
        print("status", end.code)
print("heavy:", sorted({"torch", "transformers", "datasets", "numpy"} & set(sys.modules)))
"""


def test_help_and_version_load_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60, check=True
    )
    assert "kdnlp 0." in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == [
        "status 0", "status 0", "status 2",
    ]  # fmt: skip
    for command in ("demo", "finetune", "distill", "theseus", "report"):
        assert f"\n  {command} " in done.stdout
    assert "invalid choice: 'nothing'" in done.stderr
    assert "heavy: []" in done.stdout


def test_the_demo_compares_four_models(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    small = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 24}
    monkeypatch.setattr(demo, "build_config", partial(build_config, **small))
    monkeypatch.setattr(demo, "generate", partial(generate, num_train=128, num_validation=96))
    run("demo", "--max_steps", "3", "--output_dir", tmp_path, "--use_cpu")
    report = CompressionReport.load(tmp_path / "theseus")
    names = ["predecessor", "Theseus successor", "distilled student", "baseline"]
    assert [model.name for model in report.models] == names
    assert [model.num_layers for model in report.models] == [4, 2, 2, 2]
    printed = capsys.readouterr().out
    for name in names:
        assert name in printed
    assert "'label': " in printed


def test_the_trainers_of_the_two_commands_are_not_mixed_up(theseus, distilled):
    assert CompressionReport.load(theseus).run["method"] == TheseusTrainer.method
    assert "replacing_fraction" in CompressionReport.load(theseus).run["arguments"]
    assert "replacing_fraction" not in CompressionReport.load(distilled).run["arguments"]


def test_runs_with_other_seeds_are_measured_on_the_same_rows_of_an_own_table(table):
    options = DataOptions(train_file=str(table), text_columns=["review"], label_column="verdict")
    rows = [steps.load_task(options, seed)[1] for seed in (1, 2)]
    held_out = [list(splits["validation"]["review"]) for splits in rows]
    assert held_out[0] == held_out[1]


def test_a_baseline_of_an_overwritten_run_is_not_taken_for_this_one_s(
    finetuned, tmp_path, monkeypatch, capsys
):
    earlier = tmp_path / "_baseline" / "checkpoint-99"
    earlier.mkdir(parents=True)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(compress, "finetune_baseline", stop)
    with pytest.raises(SystemExit, match=r"^130$"):
        run(
            "theseus", "--predecessor", finetuned, "--output_dir", tmp_path, *TASK, *FAST,
            "--overwrite_output_dir",
        )  # fmt: skip
    assert not earlier.exists()
    # To go on from the model's last checkpoint is to go on with the baseline.
    assert f"the last checkpoint, {tmp_path / 'checkpoint-3'}, is kept" in capsys.readouterr().err
