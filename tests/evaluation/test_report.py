"""The report says what was measured, in the right direction, and is never half there."""

import inspect
import json
import math
from dataclasses import replace

import pytest
import torch
from answers_of import TWO, kept
from PIL import Image
from settings import tiny_model
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
)

from kdnlp.data.task import Task
from kdnlp.evaluation import report as report_module
from kdnlp.evaluation.kept import Evaluation
from kdnlp.evaluation.module_times import measure_module_times
from kdnlp.evaluation.report import CompressionReport, ModelAccount, _of_one_type
from kdnlp.evaluation.significance import PairedTest
from kdnlp.evaluation.tables import how_measured, report_markdown, report_rows, report_table
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
        LatencyRow(
            *(name, size, 12, ms * size, 1000 / ms, 30),
            p90_ms=1.5 * ms * size,
            p99_ms=2 * ms * size,
        )
        for size in (1, 32)
    )


def account(name, score, ms, size=100, layers=4):
    return ModelAccount(
        name, metrics(score), layers, size, size // 2, size / 10, size * 1000, latency(name, ms)
    )


def small_report(**changes):
    models = (account("predecessor", 0.8, 10.0), account("successor", 0.76, 4.0, 50, 2))
    report = CompressionReport("t", TASK.metrics, models, SETTING, {"seed": 3})
    return replace(report, **changes)


def behaving(model, agreement, error, right):
    figures = {"rows": 14.0, "calibration_error": error}
    if agreement is not None:
        figures |= {"agreement": agreement, "kl_divergence": 0.1234}
    classes = {"no": {"accuracy": right / 7, "rows": 7.0}, "yes": {"accuracy": 0.5, "rows": 7.0}}
    behaviour = {"validation": figures}
    return replace(model, behaviour=behaviour, classes={"validation": classes})


def full_report():
    """A report with everything in it that a run can leave."""
    models = (
        behaving(account("teacher", 0.8, 10.0), None, 0.05, 5),
        behaving(account("student", 0.76, 4.0, 50, 2), 0.9, 0.1, 4),
        behaving(account("baseline", 0.7, 4.0, 50, 2), 0.8, 0.2, 3),
    )
    tests = (
        PairedTest("student", "baseline", 0.06, 0.01, 0.11, 0.02, 9, 2, 0.0654, 14, 2000, 0),
        PairedTest("student", "teacher", -0.04, -0.1, 0.02, 0.2, 2, 5, 0.4531, 14, 2000, 0),
        PairedTest("baseline", "teacher", -0.1, -0.2, -0.05, 0.0005, None, None, None, 14, 2000, 0),
    )
    return small_report(
        models=models,
        tests=tests,
        run={"seed": 3, "task_kind": "single_label_classification", "positive_class": "yes"},
        absent={"correlation": "its answers are no numbers"},
        history=({"step": 1, "loss": 0.9}, {"step": 2, "loss": 0.8}),
        module_ms={"teacher": {"attention": 3.0}, "student": {"attention": 1.5}},
        predictions={"teacher": {"validation": kept(TWO, 1)}},
    )


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


def test_architectures_that_cannot_lose_blocks_are_measured_all_the_same():
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    shared = AlbertConfig(vocab_size=40, embedding_size=8, num_hidden_layers=3, **sizes)
    widths = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "d_model": 16, "vocab_size": 40}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    two = BartConfig(**widths, **heads, encoder_layers=2, decoder_layers=3, num_labels=2)
    two.pad_token_id, two.bos_token_id, two.eos_token_id = 0, 1, 2
    models = {
        "albert": AlbertForSequenceClassification(shared),
        "bart": BartForSequenceClassification(two),
    }
    scores = dict.fromkeys(models, metrics(0.5))
    report = CompressionReport.measure(models, scores, TASK, batch_sizes=(1,), max_seconds=0.1)
    assert [model.num_layers for model in report.models] == [3, 5]


def test_a_model_that_ran_in_half_precision_is_compared_in_the_others_type():
    teacher = tiny_model("bert", 4).to(torch.bfloat16)
    models = {"teacher": teacher, "student": build_student(teacher, 2).float()}
    scores = dict.fromkeys(models, metrics(0.5))
    report = CompressionReport.measure(models, scores, TASK, batch_sizes=(1,), max_seconds=0.1)
    assert teacher.dtype == torch.bfloat16
    teacher.is_quantized = True  # as a library marks it, whose weights cannot be cast
    assert _of_one_type(models)["teacher"] is teacher
    assert report.setting.dtype == "float32"
    assert report["teacher"].size_mb == pytest.approx(report["teacher"].parameters * 4 / 1e6)


def test_measuring_leaves_the_models_in_the_mode_they_had():
    models = {"a": tiny_model().train(), "b": tiny_model().eval()}
    scores = dict.fromkeys(models, metrics(0.5))
    CompressionReport.measure(models, scores, TASK, batch_sizes=(1,), max_seconds=0.1)
    assert [model.training for model in models.values()] == [True, False]


def test_latencies_and_their_setting_are_of_the_device_that_was_asked_for(monkeypatch):
    asked = []
    results = {
        "measure_latency": latency("small", 1.0),
        "measure_module_times": ({}, {}),
        "describe_setting": SETTING,
    }
    for name, result in results.items():
        bound = inspect.signature(getattr(report_module, name)).bind

        def noted(*arguments, bound=bound, result=result, **options):
            asked.append(bound(*arguments, **options).arguments.get("device"))
            return result

        monkeypatch.setattr(report_module, name, noted)
    models, scores = {"small": tiny_model("bert", 1)}, {"small": metrics(0.8)}
    for device in (None, "cuda:1"):
        report = CompressionReport.measure(models, scores, TASK, device=device)
        # What is counted and not timed needs no such device.
        assert report["small"].flops == flops_per_example(models["small"], 12).flops
    assert asked == [*[None] * 3, *["cuda:1"] * 3]


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


def test_a_number_that_is_not_finite_costs_no_file(tmp_path):
    values = {**metrics(math.nan)["validation"], "loss": math.inf}
    models = (
        account("predecessor", 0.8, 10.0),
        replace(account("successor", 0, 4.0, 50, 2), metrics={"validation": values}),
        account("baseline", 0.7, 4.0, 0),  # without FLOPs: an infinite ratio
    )
    tests = (PairedTest("successor", "baseline", *[math.nan] * 4, 1, 2, None, 9, 2, 0),)
    history = ({"step": 1, "loss": math.nan},)
    small_report(models=models, tests=tests, history=history).save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["models"][1]["metrics"]["validation"]["loss"] is None
    read = CompressionReport.load(tmp_path)
    assert math.isnan(read["successor"].score)
    assert math.isnan(read["successor"].metrics["validation"]["loss"])
    assert math.isnan(read.tests[0].p_bootstrap)
    assert read.tests[0].p_mcnemar is None
    assert read["baseline"].score == pytest.approx(0.7)
    assert "| accuracy, % | 80.0 | nan | 70.0 |" in report_markdown(read)


def test_what_is_no_json_fails_before_a_file_of_an_earlier_report_is_replaced(tmp_path):
    small_report().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        small_report(task="other", run={"seed": 3, "folder": tmp_path}).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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
    cells = "320.0 / 480.0 / 640.0 | 128.0 / 192.0 / 256.0 (2.50x) |"
    assert f"| batch 32: p50 / p90 / p99, ms | {cells}" in text
    for fact in ("CPU (AVX2)", "1 thread,", "float32", "12 tokens", "30 passes"):
        assert fact in text


def test_a_report_with_a_95th_percentile_is_still_read_and_shown():
    values = small_report().to_dict()
    for model in values["models"]:
        for row in model["latency"]:
            del row["p90_ms"], row["p99_ms"]
            row["p95_ms"] = 9.0
    text = report_markdown(CompressionReport.from_dict(values))
    assert "| batch 1: p50 / p90 / p99, ms | 10.0 / - / - | 4.0 / - / - (2.50x) |" in text


def collapsed(model, **classes):
    own = {name: {"accuracy": right, "rows": 7.0} for name, right in classes.items()}
    alike = {"validation": {"rows": 14.0, "one_answer": 1.0}}
    return replace(model, behaviour=alike, classes={"validation": own})


def test_a_model_with_one_answer_is_named_below_the_table():
    first, second = small_report().models
    line = (
        "successor gives every row of validation the same answer, yes: it tells no rows apart, and "
        "its score is what that answer gets without a model."
    )
    found = small_report(models=(first, collapsed(second, no=0.0, yes=1.0)))
    assert line in report_markdown(found)
    assert line in report_table(found).caption
    assert "the same answer" not in report_markdown(small_report())
    # Where all rows are of one class, one answer is the right one.
    one_class = small_report(models=(first, collapsed(second, yes=1.0)))
    assert "the same answer" not in report_markdown(one_class)
    numbers = small_report(models=(first, collapsed(second)))
    assert "successor gives every row of validation the same answer: it" in report_markdown(numbers)


def test_few_passes_show_no_high_percentile():
    few = [
        replace(m, latency=tuple(replace(row, repeats=19) for row in m.latency))
        for m in small_report().models
    ]
    assert "| 10.0 / - / - | 4.0 / - / - (2.50x) |" in report_markdown(
        small_report(models=tuple(few))
    )


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


def test_a_full_report_is_read_back_whole_with_history_and_predictions(tmp_path):
    report = full_report()
    report.save(tmp_path)
    read = CompressionReport.load(tmp_path)
    assert read == report
    assert read.history == report.history
    own = read.predictions["teacher"]["validation"]
    assert (own.predicted == kept(TWO, 1).predicted).all()
    text = (tmp_path / "report.json").read_text()
    assert "history" not in text  # it has a file of its own


def test_what_an_earlier_report_left_does_not_pass_for_this_one_s(tmp_path):
    full_report().save(tmp_path)
    small_report().save(tmp_path)
    read = CompressionReport.load(tmp_path)
    assert (read.history, read.predictions, read.tests) == ((), {}, ())
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html", "report.json", "report.md", "report.png", "report.svg",
    }  # fmt: skip


def test_a_report_of_an_earlier_version_still_loads(tmp_path):
    values = json.loads(json.dumps(small_report().to_dict()))
    for name in ("tests", "absent", "module_ms"):
        del values[name]
    for model in values["models"]:
        del model["behaviour"], model["classes"]
    (tmp_path / "report.json").write_text(json.dumps(values))
    assert CompressionReport.load(tmp_path) == small_report()


def test_the_tables_show_behaviour_and_tests():
    rows = {label: cells for label, *cells in report_rows(full_report())}
    assert rows["agreement with the teacher, %"] == ["-", "90.0", "80.0"]
    assert rows["KL from the teacher, nats"] == ["-", "0.123", "0.123"]
    assert rows["calibration error (ECE), %"] == ["5.0", "10.0", "20.0"]
    above = rows["score above the baseline, points [95%]"]
    assert above == ["-", "+6.0 [+1.0, +11.0]", "-"]
    assert rows["p against the baseline: bootstrap / McNemar"] == ["-", "0.020 / 0.065", "-"]
    assert rows["p against the teacher: bootstrap / McNemar"] == ["-", "0.20 / 0.45", "<0.001"]


def test_every_figure_says_how_it_was_measured():
    text, hows = report_markdown(full_report()), dict(how_measured(full_report()))
    assert list(hows) == [label for label, *_ in report_rows(full_report())]
    assert all(how.endswith(".") and len(how) > 15 for how in hows.values())
    for label, how in hows.items():
        assert f"| {label} | {how} |" in text
    assert "14 labelled rows of the validation split, once, seed 3" in hows["accuracy, %"]
    assert hows["f1, %"].startswith("F1 of the class yes.")
    assert "15 bins" in hows["calibration error (ECE), %"]
    assert "2000 draws of the 14 rows" in hows["score above the baseline, points [95%]"]
    assert "- No correlation: its answers are no numbers." in text
    assert "| no | 7 | 71.4 | 57.1 | 42.9 |" in text
    for name in ("report", "training", "module_time"):
        assert f"]({name}.png)" in text


@pytest.mark.parametrize(
    ("split", "matched", "mismatched"),
    [
        (
            "m",
            "once; the checkpoint was chosen by f1 on it, which",
            "once; the checkpoint was chosen on m.",
        ),
        (None, "by f1 on one of the splits, which flatters it.", "by f1 on one of the splits, whi"),
    ],
)
def test_only_the_split_that_chose_the_checkpoint_is_called_flattered(split, matched, mismatched):
    both = {name: metrics(0.8)["validation"] for name in ("m", "mm")}
    models = tuple(replace(model, metrics=both) for model in small_report().models)
    run = {"selected_on": "f1", "selected_on_split": split}
    hows = dict(how_measured(small_report(models=models, run=run)))
    assert matched in hows["accuracy, % (m)"]
    assert mismatched in hows["accuracy, % (mm)"]


def test_of_tags_the_figures_are_shares_of_words_and_the_draws_of_sentences():
    report = full_report()
    tagging = replace(report, run={**report.run, "task_kind": "token_classification"})
    hows = dict(how_measured(tagging))
    agreement = hows["agreement with the teacher, %"]
    assert agreement.startswith("The share of words that the model answers")
    assert "On the 14 words with a tag of the validation split" in agreement
    assert "the mean over words" in hows["KL from the teacher, nats"]
    assert "draws of the 14 sentences" in hows["score above the baseline, points [95%]"]


def test_of_very_many_classes_the_largest_are_shown():
    classes = {f"c{i}": {"accuracy": 0.5, "rows": float(i)} for i in range(1, 41)}
    model = replace(account("model", 0.8, 1.0), classes={"validation": classes})
    text = report_markdown(small_report(models=(model,)))
    assert "| c40 | 40 | 50.0 |" in text
    assert "| c20 |" not in text
    assert "The 20 of 40 classes with the most rows." in text


def test_predictions_that_came_with_the_metrics_are_compared(measured):
    models, plain = measured
    assert "predictions" in plain.absent["behaviour"]
    evaluated = {
        name: Evaluation(metrics(0.5), {"validation": kept(TWO, seed)})
        for seed, name in enumerate(models)
    }
    history = [{"step": 1, "loss": math.nan, "grad_norm": 1.0}]
    report = CompressionReport.measure(
        models, evaluated, TASK, batch_sizes=(1,), max_seconds=0.1, history=history
    )
    assert "agreement" in report["successor"].behaviour["validation"]
    assert list(report["successor"].classes["validation"]) == ["no", "yes"]
    assert [(t.model, t.against) for t in report.tests] == [("successor", "predecessor")]
    assert set(report.predictions) == set(models)
    assert report.history == ({"step": 1, "grad_norm": 1.0},)


@pytest.mark.parametrize("seconds", [2.0, None])
def test_the_parts_of_a_model_sum_to_its_latency(seconds):
    models = {"small": tiny_model("bert", 1), "large": tiny_model("bert", 4)}
    rows = [row for name, ms in (("small", 2.0), ("large", 8.0)) for row in latency(name, ms)]
    times, absent = measure_module_times(models, rows, 12, max_seconds=seconds)
    assert absent == {}
    assert [sum(parts.values()) for parts in times.values()] == pytest.approx([2.0, 8.0])
    assert set(times["small"]) > {"embeddings", "attention", "feed_forward", "overhead"}


def test_without_time_or_in_compiled_blocks_no_parts_are_measured():
    model, rows = tiny_model("bert", 1), latency("small", 2.0)
    times, absent = measure_module_times({"small": model}, rows, 12, max_seconds=0.1)
    assert times == {}
    assert "was given 0.1 s" in absent["module times"]
    block = model.bert.encoder.layer[0]
    block._compiled_call_impl = block._call_impl  # what compile() sets, without a compiler
    times, absent = measure_module_times({"small": model}, rows, 12)
    assert times == {}
    assert "compiled" in absent["module times"]


def test_a_damaged_history_is_named(tmp_path):
    full_report().save(tmp_path)
    (tmp_path / "history.json").write_text("[{")
    with pytest.raises(ValueError, match="does not hold a compression report"):
        CompressionReport.load(tmp_path)
