"""The report says what was measured, in the right direction, and is never half there."""

import inspect
import json
import math
from dataclasses import replace

import pytest
from PIL import Image
from settings import tiny_model

from kdnlp.data.task import Task
from kdnlp.evaluation import report as report_module
from kdnlp.evaluation.report import CompressionReport, ModelAccount
from kdnlp.evaluation.tables import report_markdown, report_rows
from kdnlp.models.student import build_student
from kdnlp.profiling.flops import flops_per_example
from kdnlp.profiling.latency import LatencyRow, LatencySetting
from kdnlp.profiling.size import count_parameters, disk_size_mb

TASK = Task("t", ("text",), ("no", "yes"), ("f1", "accuracy"), max_length=12)
SETTING = LatencySetting("CPU (AVX2)", "float32", 1, 12, "sdpa", "2.13.0", "5.23.0")


def metrics(value):
    return {"validation": {"f1": value, "accuracy": value, "score": value, "loss": 1.0}}


def latency(name, ms):
    return tuple(
        LatencyRow(name, size, 12, ms * size, 2 * ms * size, 1000 / ms, 30) for size in (1, 32)
    )


def account(name, score, ms, size=100, layers=4):
    return ModelAccount(
        name, metrics(score), layers, size, size // 2, size / 10, size * 1000, latency(name, ms)
    )


def small_report(**changes):
    models = (account("predecessor", 0.8, 10.0), account("successor", 0.76, 4.0, 50, 2))
    report = CompressionReport("t", TASK.metrics, models, SETTING, {"seed": 3})
    return replace(report, **changes)


@pytest.fixture(scope="module")
def measured():
    predecessor = tiny_model("bert", 4)
    models = {"predecessor": predecessor, "successor": build_student(predecessor, 2)}
    scores = {"predecessor": metrics(0.8), "successor": metrics(0.6)}
    report = CompressionReport.measure(
        models, scores, TASK, batch_sizes=(1, 2), max_seconds=0.1, run={"seed": 3}
    )
    return models, report


def test_every_number_is_that_of_its_own_model(measured):
    models, report = measured
    for name, model in models.items():
        row = report[name]
        parameters = count_parameters(model)
        assert row.parameters == parameters.total
        assert row.parameters_without_embeddings == parameters.without_embeddings
        assert row.flops == flops_per_example(model, 12).flops
        assert [(r.model, r.batch_size) for r in row.latency] == [(name, 1), (name, 2)]
    assert [model.num_layers for model in report.models] == [4, 2]
    assert report.setting.sequence_length == 12


def test_the_size_is_that_of_the_file_on_disk(measured, tmp_path):
    models, report = measured
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        header = 0.02  # the names of the tensors, in MB
        assert 0 <= disk_size_mb(tmp_path / name) - report[name].size_mb < header


def test_measuring_leaves_the_models_in_the_mode_they_had():
    models = {"a": tiny_model().train(), "b": tiny_model().eval()}
    scores = dict.fromkeys(models, metrics(0.5))
    CompressionReport.measure(models, scores, TASK, batch_sizes=(1,), max_seconds=0.1)
    assert [model.training for model in models.values()] == [True, False]


def test_latencies_and_their_setting_are_of_the_device_that_was_asked_for(monkeypatch):
    asked = []
    for name in ("measure_latency", "describe_setting"):
        bound = inspect.signature(getattr(report_module, name)).bind
        result = {"measure_latency": latency("small", 1.0), "describe_setting": SETTING}[name]

        def noted(*arguments, bound=bound, result=result, **options):
            asked.append(bound(*arguments, **options).arguments.get("device"))
            return result

        monkeypatch.setattr(report_module, name, noted)
    models, scores = {"small": tiny_model("bert", 1)}, {"small": metrics(0.8)}
    for device in (None, "cuda:1"):
        report = CompressionReport.measure(models, scores, TASK, device=device)
        # What is counted and not timed needs no such device.
        assert report["small"].flops == flops_per_example(models["small"], 12).flops
    assert asked == [None, None, "cuda:1", "cuda:1"]


def test_ratios_point_the_right_way():
    report = small_report()
    assert report.retention("successor") == pytest.approx(95.0)
    assert report.retention("predecessor") == 100.0
    assert report.ratios("successor") == {
        "parameters": 2.0,
        "parameters_without_embeddings": 2.0,
        "size_mb": 2.0,
        "flops": 2.0,
        "latency_batch_1": 2.5,
        "latency_batch_32": 2.5,
    }


def test_the_score_is_the_mean_of_the_splits():
    values = {"matched": {"score": 0.8}, "mismatched": {"score": 0.6}}
    assert replace(account("x", 0, 1), metrics=values).score == pytest.approx(0.7)


@pytest.mark.parametrize("score", [0.0, -0.1])
def test_nothing_is_a_percentage_of_a_score_at_chance(score):
    report = small_report(models=(account("a", score, 1.0), account("b", 0.5, 1.0)))
    assert report.retention("b") is None
    assert ("score kept, %", "-", "-") in report_rows(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_saved_report_is_read_back_whole(tmp_path):
    report = small_report()
    report.save(tmp_path)
    assert CompressionReport.load(tmp_path) == report
    compared = json.loads((tmp_path / "report.json").read_text())["compared"]
    assert compared["successor"]["retention_percent"] == pytest.approx(95.0)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html", "report.json", "report.md", "report.png", "report.svg",
    }  # fmt: skip


def test_the_plot_is_a_picture_of_readable_size(tmp_path):
    small_report().save(tmp_path)
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
        colours = picture.convert("RGB").getcolors(maxcolors=1_000_000)
    assert len(colours) > 10


def test_a_report_that_cannot_be_drawn_leaves_the_old_one(tmp_path, monkeypatch):
    small_report().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        small_report(run={"seed": 4}).save(tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == before
    assert CompressionReport.load(tmp_path).run == {"seed": 3}


def test_the_table_names_each_metric_and_says_how_it_was_measured():
    text = report_markdown(small_report())
    assert "| f1, % | 80.0 | 76.0 |" in text
    assert "| score kept, % | 100.0 | 95.0 |" in text
    assert "| batch 32: p50 / p95, ms | 320.0 / 640.0 | 128.0 / 256.0 (2.50x) |" in text
    for fact in ("CPU (AVX2)", "1 thread,", "float32", "12 tokens", "30 passes"):
        assert fact in text


def test_a_model_without_metrics_is_refused_before_anything_is_timed():
    models = {"a": tiny_model(), "b": tiny_model()}
    with pytest.raises(ValueError, match="none for b"):
        CompressionReport.measure(models, {"a": metrics(0.5)}, TASK)
    with pytest.raises(ValueError, match="metrics for every model"):
        CompressionReport.measure({}, {}, TASK)


def test_a_missing_or_foreign_report_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"report\.json in .*found none"):
        CompressionReport.load(tmp_path)
    (tmp_path / "report.json").write_text('{"task": "t"}')
    with pytest.raises(ValueError, match="does not hold a compression report"):
        CompressionReport.load(tmp_path)


def test_a_free_model_has_no_finite_ratio():
    report = small_report(models=(account("a", 0.5, 1.0), account("b", 0.5, 1.0, size=0)))
    assert report.ratios("b")["flops"] == math.inf
