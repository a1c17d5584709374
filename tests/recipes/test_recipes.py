"""Every recipe runs offline from its command line to its report, and every config is its task's."""

import importlib.util
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, BertModel

from kdnlp.arguments import (
    CompressionTrainingArguments,
    DistillationTrainingArguments,
    TheseusTrainingArguments,
)
from kdnlp.cli.options import DataOptions, DistillOptions, FinetuneOptions, TheseusOptions
from kdnlp.cli.parsing import SECTIONS, parse_arguments
from kdnlp.data.glue import GLUE_TASKS
from kdnlp.data.synthetic import build_config, build_tokenizer, generate
from kdnlp.evaluation import plots
from kdnlp.evaluation.report import CompressionReport

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
COMMANDS = {
    "finetune": ((FinetuneOptions, DataOptions, CompressionTrainingArguments), "--model"),
    "distill": ((DistillOptions, DataOptions, DistillationTrainingArguments), "--teacher"),
    "theseus": ((TheseusOptions, DataOptions, TheseusTrainingArguments), "--predecessor"),
}
# GLUE's own counts of training rows.
TRAIN_ROWS = {
    "cola": 8551, "sst2": 67349, "mrpc": 3668, "stsb": 5749, "qqp": 363846, "mnli": 392702,
    "qnli": 104743, "rte": 2490, "wnli": 635,
}  # fmt: skip
TINY = ("--max_steps", "3", "--use_cpu", "--disable_tqdm", "true", "--max_length", "48")


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *arguments):
    return load(name).main([*map(str, arguments), *TINY])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """MRPC-shaped parquet, a table of the user's own, and a tiny pretrained encoder."""
    root = tmp_path_factory.mktemp("recipes")
    (root / "glue" / "mrpc").mkdir(parents=True)
    pairs = generate("synthetic_paraphrase", num_train=64, num_validation=32)
    for split, rows in pairs.items():
        rows.to_parquet(root / "glue" / "mrpc" / f"{split}.parquet")
    single = generate("synthetic_sentiment", num_train=60, num_validation=1)["train"]
    lines = [f'"{row["sentence"]}",{row["label"] + 0.5}' for row in single]
    (root / "own.csv").write_text("\n".join(["review,stars", *lines]) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = build_config(4, hidden_size=16, num_heads=2, intermediate_size=24)
    BertModel(config).save_pretrained(root / "encoder")
    build_tokenizer().save_pretrained(root / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "cache"))
        patch.setattr(plots, "save_plots", lambda report, folder: None)
        yield root


def glue_flags(root):
    # The rest of the file counts: batch size, learning rate, epochs, weights, curriculum.
    config = ("--config", CONFIGS / "mrpc.yaml", "--eval_strategy", "no", "--save_strategy", "no")
    return (*config, "--data_dir", root / "glue")


@pytest.fixture(scope="module")
def finetuned(root):
    flags = (*glue_flags(root), "--output_dir", root / "mrpc")
    return run("glue_finetune", "--model", root / "encoder", *flags)


def test_finetune_writes_a_model_for_the_other_recipes(finetuned, root):
    assert [model.name for model in finetuned.models] == ["model"]
    assert finetuned.task == "mrpc"
    assert finetuned == CompressionReport.load(root / "mrpc")
    config = json.loads((root / "mrpc" / "config.json").read_text())
    assert config["id2label"] == {"0": "not_equivalent", "1": "equivalent"}


@pytest.mark.parametrize(
    ("recipe", "flag", "names"),
    [
        ("glue_theseus", "--predecessor", ["predecessor", "successor", "baseline"]),
        ("glue_distill", "--teacher", ["teacher", "student", "baseline"]),
    ],
)
def test_a_recipe_compresses_what_finetune_wrote(recipe, flag, names, finetuned, root, capsys):
    out = root / recipe
    flags = (*glue_flags(root), "--num_layers", "2", "--output_dir", out)
    report = run(recipe, flag, root / "mrpc", *flags)
    assert [model.name for model in report.models] == names
    assert [model.num_layers for model in report.models] == [4, 2, 2]
    assert report.metric_names == ("f1", "accuracy")
    before, after = (r.models[0].metrics["validation"]["loss"] for r in (finetuned, report))
    assert after == pytest.approx(before, abs=1e-6)
    assert (out / "report.md").read_text() in capsys.readouterr().out
    assert AutoModelForSequenceClassification.from_pretrained(out).config.num_hidden_layers == 2
    assert (out / "_baseline").is_dir()
    arguments = report.run["arguments"]
    assert (arguments["per_device_train_batch_size"], arguments["learning_rate"]) == (32, 2e-5)
    if recipe == "glue_theseus":
        assert (arguments["initial_replacing_rate"], arguments["replacing_fraction"]) == (0.3, 0.58)
    else:
        assert arguments["loss_weights"] == {"task": 0.5, "logits": 0.5}


def test_a_config_runs_as_it_stands(root):
    flags = ("--config", CONFIGS / "mrpc.yaml", "--data_dir", root / "glue")
    run("glue_finetune", "--model", root / "encoder", *flags, "--output_dir", root / "as-it-stands")
    assert CompressionReport.load(root / "as-it-stands").task == "mrpc"


def test_the_own_dataset_recipe_goes_from_a_table_to_a_small_model(root):
    table = ("--train_file", root / "own.csv", "--text_columns", "review")
    model = ("--model", root / "encoder", "--num_layers", "2", "--output_dir", root / "own")
    report = run("own_dataset", *table, "--label_column", "stars", *model)
    assert (report.task, report.metric_names) == ("own", ("pearson", "spearmanr"))
    assert [model.name for model in report.models] == ["predecessor", "successor", "baseline"]
    assert report.run["text_columns"] == ["review"]
    config = json.loads((root / "own" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["problem_type"]) == (2, "regression")
    predecessor = json.loads((root / "own" / "_predecessor" / "config.json").read_text())
    assert predecessor["num_hidden_layers"] == 4


def test_a_depth_that_cannot_be_is_refused_before_the_predecessor_is_trained(root):
    table = (
        "--train_file",
        root / "own.csv",
        "--text_columns",
        "review",
        "--label_column",
        "stars",
    )
    model = ("--model", root / "encoder", "--output_dir", root / "deep", "--num_layers", "9")
    with pytest.raises(ValueError, match="num_layers must lie between 1 and the teacher's 4"):
        run("own_dataset", *table, *model)
    assert not (root / "deep" / "_predecessor").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_can_be_read_in_one_go(recipe):
    lines = (ROOT / "recipes" / f"{recipe}.py").read_text(encoding="utf-8").splitlines()
    assert 60 <= len(lines) <= 140


class ParsedError(Exception):
    pass


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_in_a_recipes_docstring_parses(recipe, monkeypatch):
    def stop(seed):
        raise ParsedError

    module = load(recipe)
    monkeypatch.setattr(module, "set_seed", stop)
    monkeypatch.chdir(ROOT)
    call = module.__doc__.replace("\\\n", " ").partition(f"python recipes/{recipe}.py")[2]
    with pytest.raises(ParsedError):
        module.main([*shlex.split(call), "--use_cpu"])


def parse(command, config, *flags):
    dataclasses, required = COMMANDS[command]
    argv = ["--use_cpu", required, "m", "--output_dir", "o", "--config", str(config), *flags]
    return parse_arguments(dataclasses, argv, command)


def test_there_is_a_config_for_every_glue_task():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*GLUE_TASKS, "minilm"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("task", GLUE_TASKS)
def test_a_config_is_of_its_own_task_and_within_the_papers_grid(task, command):
    _, data, args = parse(command, CONFIGS / f"{task}.yaml")
    assert data.task == task
    assert data.max_length == GLUE_TASKS[task].max_length
    assert args.learning_rate in (1e-5, 2e-5)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 32
    if command == "theseus":
        assert args.replacing_schedule == "linear"
        assert args.initial_replacing_rate in (0.1, 0.3)
        assert args.replacing_rate_at(0.999) == 1.0
    if command == "distill":
        assert sum(args.loss_weights.values()) == 1.0


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_the_ramp_is_the_one_that_the_comment_promises(task):
    path = CONFIGS / f"{task}.yaml"
    comment = " ".join(path.read_text(encoding="utf-8").replace("#", "").split())
    rate = float(re.search(r"base rate (0\.\d)", comment)[1])
    ramp, steps = (
        int(number.replace(",", ""))
        for number in re.search(r"ramp of about ([\d,]+) of ([\d,]+) opt", comment).groups()
    )
    *_, args = parse("theseus", path)
    assert args.initial_replacing_rate == rate
    assert math.ceil(TRAIN_ROWS[task] / 32) * args.num_train_epochs == steps
    assert args.replacing_fraction == pytest.approx(ramp / steps, abs=0.006)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_all_sections_of_a_config_are_read_by_some_command(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    nested = {
        k for k, v in content.items() if isinstance(v, dict) and not {"task", "logits"} & set(v)
    }
    assert nested == set(SECTIONS)
    for command in COMMANDS:
        assert parse(command, path, "--task", "mrpc")[2].num_train_epochs > 0
