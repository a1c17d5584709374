"""`kdnlp ladder`: students of several depths from one cached teacher; nothing is done twice."""

import json
from functools import partial

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from kdnlp.cli import main, steps
from kdnlp.cli.ladder import parse_depths
from kdnlp.data.synthetic import SYNTHETIC_TASKS, build_config, build_tokenizer, generate
from kdnlp.evaluation.report import CompressionReport
from kdnlp.models.pretrained import head_config
from kdnlp.trainers.base import CompressionTrainer

FLAGS = (
    "--task", "synthetic_sentiment", "--max_train_samples", "64", "--max_steps", "4", "--use_cpu",
    "--disable_tqdm", "true", "--report_seconds", "0.1", "--report_length", "12",
)  # fmt: skip


def save_teacher(folder, seed):
    config = build_config(4, hidden_size=16, num_heads=2, intermediate_size=24)
    config.update(head_config(SYNTHETIC_TASKS["synthetic_sentiment"]))
    torch.manual_seed(seed)
    BertForSequenceClassification(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "generate", partial(generate, num_train=128, num_validation=96))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "cache"))
        yield [save_teacher(root / str(seed), seed) for seed in (0, 1)]


def run(command, *arguments):
    main([command, *map(str, arguments)])


def ladder(teacher, out, *more):
    cache = ("--teacher_cache_dir", out.parent / "cached-teacher")
    run("ladder", "--teacher", teacher, "--output_dir", out, *FLAGS, *cache, *more)


@pytest.fixture(scope="module")
def ladder_of_two(teachers, tmp_path_factory):
    out = tmp_path_factory.mktemp("ladder") / "out"
    ladder(teachers[0], out, "--num_layers", "3,1")
    return out


def test_every_student_is_a_plain_model_in_a_folder_of_its_own(ladder_of_two):
    for depth in (3, 1):
        folder = ladder_of_two / f"{depth}-layers"
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.num_hidden_layers == depth
        assert {"README.md", "report.md"} <= {path.name for path in folder.iterdir()}


def test_one_report_and_one_front_hold_all_of_them(ladder_of_two):
    report = CompressionReport.load(ladder_of_two)
    assert [model.name for model in report.models] == ["teacher", "3 layers", "1 layers"]
    assert [model.num_layers for model in report.models] == [4, 3, 1]
    for depth in (3, 1):
        own = CompressionReport.load(ladder_of_two / f"{depth}-layers")
        assert own["student"].metrics == report[f"{depth} layers"].metrics
    assert "| 1 layers | 1 |" in (ladder_of_two / "pareto.md").read_text()
    with Image.open(ladder_of_two / "pareto.png") as image:
        assert image.width > 1000


def test_the_teacher_is_asked_once_for_all_students(ladder_of_two):
    caches = [p for p in (ladder_of_two.parent / "cached-teacher").iterdir() if p.is_dir()]
    assert len(caches) == 1


def test_a_student_that_is_done_is_not_done_again(teachers, ladder_of_two, monkeypatch):
    trained, train = [], CompressionTrainer.train

    def counted(self, *arguments, **options):
        trained.append(self.student.config.num_hidden_layers)
        return train(self, *arguments, **options)

    monkeypatch.setattr(CompressionTrainer, "train", counted)
    ladder(teachers[0], ladder_of_two, "--num_layers", "3,2,1")
    assert trained == [2]
    report = CompressionReport.load(ladder_of_two)
    assert [model.name for model in report.models[1:]] == ["3 layers", "2 layers", "1 layers"]


class KilledError(Exception):
    pass


def test_a_ladder_that_was_killed_goes_on_from_the_checkpoint(teachers, tmp_path, monkeypatch):
    out, settings = tmp_path / "out", ("--save_strategy", "steps", "--save_steps", "2")
    resumed, train = [], CompressionTrainer.train

    def killed(self, *arguments, **options):
        result = train(self, *arguments, **options)
        if self.student.config.num_hidden_layers == 1:
            raise KilledError
        return result

    def watched(self, resume_from_checkpoint=None, *arguments, **options):
        resumed.append(resume_from_checkpoint)
        return train(self, resume_from_checkpoint, *arguments, **options)

    monkeypatch.setattr(CompressionTrainer, "train", killed)
    with pytest.raises(KilledError):
        ladder(teachers[0], out, "--num_layers", "2,1", *settings)
    monkeypatch.setattr(CompressionTrainer, "train", watched)
    ladder(teachers[0], out, "--num_layers", "2,1", *settings)
    assert [str(checkpoint).rpartition("/")[2] for checkpoint in resumed] == ["checkpoint-4"]
    assert (out / "pareto.md").is_file()


@pytest.mark.parametrize("change", [("--temperature", "7"), ("--seed", "9"), ("--max_steps", "5")])
def test_students_that_were_made_otherwise_are_not_put_into_one_report(
    change, teachers, ladder_of_two
):
    before = (ladder_of_two / "report.json").read_bytes()
    name = change[0].removeprefix("--")
    with pytest.raises(ValueError, match=rf"made with other settings \({name}\)"):
        ladder(teachers[0], ladder_of_two, "--num_layers", "3,1", *change)
    assert (ladder_of_two / "report.json").read_bytes() == before


def test_depths_are_read_in_their_order_and_once():
    assert parse_depths("4, 2,4,1", 4) == [4, 2, 1]


@pytest.mark.parametrize("text", ["0", "5", "2,x", ""])
def test_depths_that_the_teacher_does_not_have_are_refused(text):
    with pytest.raises(ValueError, match="--num_layers must"):
        parse_depths(text, 4)


def test_several_teachers_are_learned_from_as_one(teachers, tmp_path):
    more = ("--more_teachers", teachers[1], "--num_layers", "2", "--no_baseline")
    run("distill", "--teacher", teachers[0], "--output_dir", tmp_path / "out", *FLAGS, *more)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [model["name"] for model in report["models"]] == ["teacher", "student"]
    together = report["run"]["ensemble_metrics"]["validation"]
    alone = report["models"][0]["metrics"]["validation"]
    assert together["loss"] != alone["loss"]


def test_a_further_teacher_with_another_vocabulary_is_refused(teachers, tmp_path):
    other = save_teacher(tmp_path / "other", 3)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(other)
    more = ("--more_teachers", other, "--num_layers", "2")
    with pytest.raises(ValueError, match=r"--more_teachers .*other must have the teacher's voc"):
        run("distill", "--teacher", teachers[0], "--output_dir", tmp_path / "out", *FLAGS, *more)


def test_a_teacher_in_half_precision_teaches_a_student_in_full(teachers, tmp_path):
    half = ("--teacher_dtype", "bfloat16", "--num_layers", "2", "--no_baseline")
    run("distill", "--teacher", teachers[0], "--output_dir", tmp_path / "out", *FLAGS, *half)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    sizes = [m.size_mb for m in CompressionReport.load(tmp_path / "out").models]
    assert sizes[0] < 1.2 * sizes[1]  # four blocks in half precision against two in full
