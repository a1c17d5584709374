"""`kdnlp ladder`: students of several depths from one cached teacher; nothing is done twice."""

import json
import shutil
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from kdnlp.cli import compress, main, steps
from kdnlp.cli import ladder as ladder_module
from kdnlp.cli.ladder import parse_depths
from kdnlp.cli.options import DataOptions, LadderOptions, LadderTrainingArguments
from kdnlp.cli.rungs import RUNG_JSON, find_rung, ladder_settings
from kdnlp.data.synthetic import SYNTHETIC_TASKS, build_config, build_tokenizer, generate
from kdnlp.evaluation import plots
from kdnlp.evaluation import report as report_module
from kdnlp.evaluation.report import CompressionReport
from kdnlp.models.pretrained import head_config
from kdnlp.trainers.base import CompressionTrainer
from kdnlp.trainers.distillation import DistillationTrainer

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
        # Drawing takes longer than training here.
        patch.setattr(plots, "save_plots", lambda report, folder: None)
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
    assert [model.name for model in report.models] == ["teacher", "3 layers", "1 layer"]
    assert [model.num_layers for model in report.models] == [4, 3, 1]
    for depth in (3, 1):
        own = CompressionReport.load(ladder_of_two / f"{depth}-layers")
        assert own["student"].metrics == report[f"{depth} layer{'s' * (depth > 1)}"].metrics
        assert own["student"].behaviour == report[f"{depth} layer{'s' * (depth > 1)}"].behaviour
        assert 0 < own["student"].behaviour["validation"]["agreement"] <= 1
    assert [(test.model, test.against) for test in report.tests] == [
        ("3 layers", "teacher"),
        ("1 layer", "teacher"),
    ]
    settings = {"method": "distillation", "seed": 42, "ladder": "3,1", "init_layers": "first"}
    assert settings.items() <= report.run.items()
    assert report.run["base_model"] == own.run["base_model"]
    assert "| 1 layer | 1 |" in (ladder_of_two / "pareto.md").read_text()
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
    assert [model.name for model in report.models[1:]] == ["3 layers", "2 layers", "1 layer"]


class KilledError(Exception):
    pass


def kill(*_, **__):
    raise KilledError


def killed_ladder(*arguments):
    with pytest.raises(KilledError):
        ladder(*arguments)


@pytest.fixture
def resumed(monkeypatch):
    """What every training from here on is resumed from, by the name of the checkpoint."""
    names, train = [], CompressionTrainer.train

    def watched(self, resume_from_checkpoint=None, *arguments, **options):
        names.append(resume_from_checkpoint and Path(resume_from_checkpoint).name)
        return train(self, resume_from_checkpoint, *arguments, **options)

    monkeypatch.setattr(CompressionTrainer, "train", watched)
    return names


BY_STEPS = ("--save_strategy", "steps", "--save_steps", "2")


def test_a_ladder_that_was_killed_goes_on_from_the_checkpoint(
    teachers, tmp_path, resumed, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "save_model", kill_at_the_end_of_depth(1))
        killed_ladder(teachers[0], out, "--num_layers", "2,1", *BY_STEPS)
    # Half a run with one temperature and half with another would be reported as the other.
    with pytest.raises(SystemExit, match=r"1-layers .*made with other settings \(temperature\)"):
        ladder(teachers[0], out, "--num_layers", "1", *BY_STEPS, "--temperature", "7")
    ladder(teachers[0], out, "--num_layers", "2,1", *BY_STEPS)
    assert resumed == [None, None, "checkpoint-4"]
    assert (out / "pareto.md").is_file()


def kill_at_the_end_of_depth(depth):
    save = DistillationTrainer.save_model

    def save_or_die(self, output_dir=None, _internal_call=False):
        if not _internal_call and self.student.config.num_hidden_layers == depth:
            raise KilledError
        save(self, output_dir, _internal_call)

    return save_or_die


@pytest.mark.parametrize(
    ("place", "saving", "checkpoint"),
    [
        ("kdnlp.cli.ladder.publish_results", ("--save_strategy", "no"), None),
        ("kdnlp.hub.publish.build_card", ("--save_strategy", "no"), None),
        ("kdnlp.hub.publish.build_card", BY_STEPS, "checkpoint-4"),
        ("kdnlp.cli.ladder.finish_rung", ("--save_strategy", "no"), None),
    ],
)
def test_a_student_killed_between_its_model_and_its_last_file_is_not_done(
    place, saving, checkpoint, teachers, tmp_path, resumed, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(place, kill)
        killed_ladder(teachers[0], out, "--num_layers", "1", *saving)
    assert (out / "1-layers" / "model.safetensors").is_file()
    ladder(teachers[0], out, "--num_layers", "1", *saving)
    assert resumed == [None, checkpoint]
    assert (out / "1-layers" / "README.md").is_file()
    assert json.loads((out / "1-layers" / RUNG_JSON).read_text())["done"]


def test_an_overwritten_ladder_that_was_killed_goes_on_from_nothing_of_the_old_one(
    teachers, tmp_path, resumed, monkeypatch
):
    out, one = tmp_path / "out", ("--num_layers", "1", *BY_STEPS)
    ladder(teachers[0], out, *one)
    with monkeypatch.context() as patch:
        patch.setattr(CompressionTrainer, "train", kill)
        killed_ladder(teachers[0], out, *one, "--overwrite_output_dir", "--temperature", "7")
    ladder(teachers[0], out, *one, "--temperature", "7")
    assert resumed == [None, None]


def test_the_folder_of_another_run_is_not_taken_for_a_killed_student(teachers, tmp_path):
    model = tmp_path / "out" / "1-layers" / "model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_text("another run's")
    with pytest.raises(SystemExit, match=r"1-layers already holds another run"):
        ladder(teachers[0], tmp_path / "out", "--num_layers", "2,1")
    assert model.read_text() == "another run's"
    assert not (tmp_path / "out" / "2-layers").exists()


def test_what_is_done_is_read_before_anything_is_written(teachers, tmp_path, monkeypatch):
    calls = []
    for name in ("find_rung", "begin_rung"):
        function = getattr(ladder_module, name)
        monkeypatch.setattr(
            ladder_module, name, lambda *a, n=name, f=function: (calls.append(n), f(*a))[1]
        )
    monkeypatch.setattr(
        ladder_module, "evaluate_model", lambda *_, **__: calls.append("collective")
    )
    monkeypatch.setattr(CompressionTrainer, "train", kill)
    killed_ladder(teachers[0], tmp_path / "out", "--num_layers", "2,1")
    assert calls == ["find_rung", "find_rung", "collective", "begin_rung"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (("--temperature", "7"), "temperature"),
        (("--seed", "9"), "rows, seed"),
        (("--max_steps", "5"), "max_steps"),
        (("--label_smoothing_factor", "0.2"), "label_smoothing_factor"),
        (("--optim", "sgd"), "optim"),
        (("--max_grad_norm", "0.1"), "max_grad_norm"),
        (("--max_length", "9"), "max_length, rows"),
        (("--losses", '{"logits": {"temperature": 3}}'), "losses"),
        (("--teacher_cache_dtype", "float16"), "teacher_cache_dtype"),
    ],
)
def test_students_that_were_made_otherwise_are_not_put_into_one_report(
    change, names, teachers, ladder_of_two
):
    before = (ladder_of_two / "report.json").read_bytes()
    with pytest.raises(SystemExit, match=rf"made with other settings \({names}\)"):
        ladder(teachers[0], ladder_of_two, "--num_layers", "3,1", "--report_length", "9", *change)
    assert (ladder_of_two / "report.json").read_bytes() == before


def test_students_of_another_teacher_of_the_same_name_are_not_put_into_one_report(
    tmp_path, ladder_of_two
):
    other = save_teacher(tmp_path / "0", seed=1)
    with pytest.raises(SystemExit, match=r"made with other settings \(teacher\)"):
        ladder(other, ladder_of_two, "--num_layers", "3,1")


def test_what_decides_nothing_may_change(teachers, ladder_of_two, tmp_path, monkeypatch):
    monkeypatch.setattr(CompressionTrainer, "train", kill)
    moved = shutil.copytree(teachers[0], tmp_path / "moved")
    changes = ("--teacher_cache_dir", tmp_path / "elsewhere", "--logging_steps", "3")
    changes += ("--eval_strategy", "epoch", "--save_strategy", "no", "--save_total_limit", "1")
    changes += ("--per_device_eval_batch_size", "16", "--dataloader_num_workers", "1")
    ladder(moved, ladder_of_two, "--num_layers", "3,1", *changes)


@pytest.mark.parametrize(
    ("chosen", "decides"),
    [({}, False), ({"load_best_model_at_end": True, "save_steps": 2}, True)],
)
def test_evaluations_decide_where_they_choose_the_checkpoint(chosen, decides, tmp_path):
    model = BertForSequenceClassification(build_config(1, hidden_size=4, num_heads=1))
    options = LadderOptions(teacher="teacher", num_layers="1")
    splits = {"train": datasets.Dataset.from_dict({"input_ids": [[1, 2]]})}
    settings = []
    for count in (1, 2):
        often = {"eval_strategy": "steps", "eval_steps": count, "save_strategy": "steps"}
        args = LadderTrainingArguments(str(tmp_path), **often, **chosen)
        settings.append(ladder_settings(options, DataOptions(), args, model, splits))
    assert (settings[0] != settings[1]) == decides


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--num_layers", "3,2", "--init_layers", "0,1,2"),
            r"of 2 blocks.*init_layers=\[0, 1, 2\]",
        ),
        (("--num_layers", "3,1", "--losses", "patient"), r"of 1 blocks.*layer_map='skip'"),
        (
            ("--num_layers", "3,2", "--losses", '{"hidden": {"layer_map": {"3": 4}}}'),
            r"student of 2 blocks.*layers 0\.\.2 of the student",
        ),
    ],
)
def test_a_student_that_cannot_be_made_is_found_before_the_first_is_trained(
    flags, message, teachers, tmp_path
):
    with pytest.raises(SystemExit, match=message):
        ladder(teachers[0], tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_latencies_are_measured_on_the_run_s_device_of_the_teacher_that_was_asked_for(
    teachers, tmp_path, monkeypatch
):
    devices, loads = [], []
    measure, load = report_module.measure_latency, compress.load_finetuned

    def measured(*arguments, device=None, **options):
        devices.append(device)
        return measure(*arguments, device=device, **options)

    def loaded(source, *arguments, **options):
        loads.append((str(source), options.get("revision")))
        return load(source, *arguments, **options)

    monkeypatch.setattr(report_module, "measure_latency", measured)
    for module in (compress, ladder_module):
        monkeypatch.setattr(module, "load_finetuned", loaded)
    out, half = tmp_path / "out", ("--teacher_dtype", "bfloat16", "--revision", "main")
    ladder(teachers[0], out, "--num_layers", "1", *half)
    # Its outputs are cached: where it lies itself is no longer where the run is.
    assert devices == [torch.device("cpu")] * 2
    assert loads == [(str(teachers[0]), "main"), (str(out / "1-layers"), None)]
    assert CompressionReport.load(out).setting.dtype == "float32"  # that of the students, for both


def test_a_student_s_folder_that_leads_elsewhere_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "2-layers").symlink_to(tmp_path)
    args = LadderTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")
    for overwrite in (True, False):
        args.overwrite_output_dir = overwrite
        with pytest.raises(ValueError, match="student's folder must lie below output_dir"):
            find_rung(2, args, {})


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
    assert report["run"]["more_teachers"] == [teachers[1].name]
    assert report["run"]["teachers"] == ["not told"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"several teachers, `{teachers[0].name}` and `{teachers[1].name}`, which" in card


def test_a_further_teacher_with_another_vocabulary_is_refused(teachers, tmp_path):
    other = save_teacher(tmp_path / "other", 3)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(other)
    more = ("--more_teachers", other, "--num_layers", "2")
    with pytest.raises(SystemExit, match=r"--more_teachers .*other must have the teacher's voc"):
        run("distill", "--teacher", teachers[0], "--output_dir", tmp_path / "out", *FLAGS, *more)


def test_a_teacher_in_half_precision_teaches_a_student_in_full(teachers, tmp_path):
    half = ("--teacher_dtype", "bfloat16", "--num_layers", "2", "--no_baseline")
    run("distill", "--teacher", teachers[0], "--output_dir", tmp_path / "out", *FLAGS, *half)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    teacher, student = CompressionReport.load(tmp_path / "out").models
    for measured in (teacher, student):  # whatever the teacher ran in
        assert measured.size_mb == pytest.approx(measured.parameters * 4 / 1e6, rel=1e-3)
