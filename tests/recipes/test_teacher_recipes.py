"""The recipes for several teachers, and for teachers with other inputs, run offline."""

import copy
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from kdnlp import CompressionTrainer, DistillationTrainer
from kdnlp.data.glue import GLUE_TASKS
from kdnlp.data.synthetic import build_config, build_tokenizer, generate
from kdnlp.evaluation import plots
from kdnlp.models.pretrained import head_config

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes" / "configs" / "mrpc.yaml"
TINY = ("--max_steps", "3", "--use_cpu", "--disable_tqdm", "true", "--max_length", "40")
NEVER = ("--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none")
SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}


def byte_level_tokenizer():
    """RoBERTa's kind: bytes, `<s>` and `</s>`, padding 1, no token types."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A table with a note that only the teacher reads, GLUE-shaped data, and three models."""
    root = tmp_path_factory.mktemp("teacher-recipes")
    (root / "glue" / "mrpc").mkdir(parents=True)
    for split, rows in generate("synthetic_paraphrase", 64, 32).items():
        rows.to_parquet(root / "glue" / "mrpc" / f"{split}.parquet")
    rows = generate("synthetic_sentiment", num_train=60, num_validation=1)["train"]
    words = [("bad", "good")[label] for label in rows["label"]]
    notes = [f"it is {word}" for word in words]
    table = rows.select_columns(["sentence"]).add_column("note", notes).add_column("label", words)
    table.to_csv(root / "own.csv", index=False)

    torch.manual_seed(0)
    config = build_config(3, hidden_size=16, num_heads=2, intermediate_size=24)
    BertModel(config).save_pretrained(root / "bert")
    build_tokenizer().save_pretrained(root / "bert")
    names = {0: "good", 1: "bad"}  # not the order of the table's labels
    tokenizer = byte_level_tokenizer()
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=70, intermediate_size=24,
        id2label=names, label2id={v: k for k, v in names.items()}, **SIZES,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(root / "roberta")
    tokenizer.save_pretrained(root / "roberta")
    config = build_config(3, hidden_size=16, num_heads=2, intermediate_size=24)
    config.update(head_config(GLUE_TASKS["mrpc"]))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(root / "mrpc")
    build_tokenizer().save_pretrained(root / "mrpc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "cache"))
        patch.setattr(plots, "save_plots", lambda report, folder: None)
        yield root


def run(name, *arguments, last=NEVER):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([*map(str, arguments), *TINY, *last])


@pytest.mark.parametrize("columns", [(), ("--teacher_columns", "sentence", "note")])
def test_a_teacher_of_another_family_teaches_a_small_student(columns, root, capsys):
    out = root / f"other-{len(columns)}"
    report = run(
        "other_teacher", "--train_file", root / "own.csv", "--text_columns", "sentence",
        "--teacher", root / "roberta", "--student", root / "bert", "--num_layers", "1",
        "--output_dir", out, *columns,
    )  # fmt: skip
    assert [model.name for model in report.models] == ["teacher", "student", "baseline"]
    assert [model.num_layers for model in report.models] == [2, 1, 1]
    assert report.run["teacher_columns"] == list(columns[1:]) or ["sentence"]
    assert report.run["text_columns"] == ["sentence"]
    assert (out / "report.md").read_text() in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["id2label"]) == ("bert", {"0": "good", "1": "bad"})
    assert AutoModelForSequenceClassification.from_pretrained(out).config.vocab_size > 100


@pytest.mark.parametrize("layers", [(), ("--num_layers", "1")])
def test_every_generation_and_the_ensembles_student_stand_in_the_report(layers, root, capsys):
    out = root / f"born-again-{len(layers)}"
    report = run(
        "born_again", "--config", CONFIG, "--data_dir", root / "glue",
        "--teacher", root / "mrpc", "--model", root / "bert", "--output_dir", out, *layers,
    )  # fmt: skip
    names = ["teacher", "generation 1", "generation 2", "student"]
    assert [model.name for model in report.models] == names
    students = 1 if layers else 3
    assert [model.num_layers for model in report.models] == [3, students, students, students]
    assert set(report.run["ensemble_metrics"]["validation"]) == {"f1", "accuracy", "score", "loss"}
    assert "The ensemble of 2 generations" in capsys.readouterr().out
    weights = [
        AutoModelForSequenceClassification.from_pretrained(folder).classifier.weight
        for folder in (out / "_generation_1", out / "_generation_2", out)
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_the_successor_of_theseus_learns_on_with_all_it_has(root, capsys, monkeypatch):
    out, seen = root / "both", {}
    keep = DistillationTrainer.train

    def train(self, *args, **kwargs):
        seen["before"], seen["trainer"] = copy.deepcopy(self.student.state_dict()), self
        return keep(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", train)
    report = run(
        "theseus_then_distill", "--config", CONFIG, "--data_dir", root / "glue", "--num_layers",
        "1", "--predecessor", root / "mrpc", "--output_dir", out,
    )  # fmt: skip
    names = ["predecessor", "successor", "baseline"]
    assert [(m.name, m.num_layers) for m in report.models] == [*zip(names, (3, 1, 1), strict=True)]
    assert (report.run["optimizer_steps"], report.run["first_share"]) == (3, 0.5)
    assert report.run["method"] == "theseus-then-distillation"
    assert ["xu2020bert" in report.run["citations"][0], len(report.run["citations"])] == [True, 2]
    whole = AutoModelForSequenceClassification.from_pretrained(root / "mrpc").state_dict()
    first = AutoModelForSequenceClassification.from_pretrained(out / "_theseus").state_dict()
    last = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    # The first stage leaves alone what is not a block, the second trains all but the teacher.
    apart = {name for name in first if "layer." not in name}
    assert all(torch.equal(first[name], whole[name]) for name in apart)
    assert all(torch.equal(seen["before"][name], first[name]) for name in first)
    teacher = seen["trainer"].teacher.state_dict()
    assert all(torch.equal(teacher[name], whole[name]) for name in whole)
    trained = {name for name in last if not torch.equal(last[name], first[name])}
    assert {name.split(".")[1] for name in trained} >= {"embeddings", "encoder", "pooler"}
    assert "classifier.weight" in trained
    assert (out / "report.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize("killed_in", ["first", "second"])
def test_a_run_killed_in_either_stage_goes_on_and_ends_the_same(killed_in, root, monkeypatch):
    """A checkpoint of the second stage is enough; one of the first goes on in its own folder."""
    out, steps = root / f"killed-{killed_in}", []
    saved = ("--save_strategy", "steps", "--save_steps", "1", "--max_steps", "4", *NEVER[:2])
    arguments = (
        "theseus_then_distill", "--config", CONFIG, "--data_dir", root / "glue", "--num_layers",
        "1", "--predecessor", root / "mrpc", "--output_dir", out,
    )  # fmt: skip
    run(*arguments, last=saved)
    whole = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    own = out / "_theseus" if killed_in == "first" else out
    gone = [out / "checkpoint-1", out / "checkpoint-2"] if killed_in == "first" else []
    for folder in (*gone, own / "checkpoint-2"):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("model.safetensors", "report.json"):
        (out / name).unlink()
    keep = CompressionTrainer.training_step

    def step(self, *args, **kwargs):
        steps.append((type(self).__name__, self.state.global_step))
        return keep(self, *args, **kwargs)

    monkeypatch.setattr(CompressionTrainer, "training_step", step)
    run(*arguments, "--resume_from_checkpoint", "last", last=saved)
    rest = [("DistillationTrainer", 1)] if killed_in == "second" else [
        ("TheseusTrainer", 1), ("DistillationTrainer", 0), ("DistillationTrainer", 1),
    ]  # fmt: skip
    assert [taken for taken in steps if taken[0] != "CompressionTrainer"] == rest
    again = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--first_share", "1"], "leave both stages a part of the run, got 1.0"),
        (["--first_share", "0.1"], "leave both stages a part of the run, got 0.1 of max_steps=3"),
        (["--unfreeze_after_replacement", "true"], "trains everything anyway"),
        (["--resume_from_checkpoint", "false"], "already holds another run"),
    ],
)
def test_what_would_not_be_two_stages_is_refused_before_training(flags, said, root, tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=said):
        run("theseus_then_distill", "--config", CONFIG, "--data_dir", root / "glue",
            "--predecessor", root / "mrpc", "--output_dir", tmp_path, *flags)  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_the_second_stage_alone_reads_is_kept_from_the_first(root):
    out = root / "weighed"
    report = run(
        "theseus_then_distill", "--config", CONFIG, "--data_dir", root / "glue", "--num_layers",
        "1", "--predecessor", root / "mrpc", "--output_dir", out, "--loss_weights",
        "task=0.5,logits=0.5", "--final_loss_weights", "task=1,logits=0", "--cache_teacher_outputs",
    )  # fmt: skip
    assert report.run["arguments"]["final_loss_weights"] == {"task": 1.0, "logits": 0.0}
    assert report.run["optimizer_steps"] == 3
