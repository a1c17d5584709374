"""A speed-up that the FLOPs do not explain is pointed out, with the part that eats the gap."""

from dataclasses import replace

from settings import tiny_model
from test_report import TASK, account, metrics, small_report

from kdnlp.evaluation import report as report_module
from kdnlp.evaluation.html import report_html
from kdnlp.evaluation.promises import promise_lines
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.rows import rows_of
from kdnlp.evaluation.tables import report_markdown, report_table
from kdnlp.profiling.latency import LatencyRow
from kdnlp.profiling.speedup import Speedup

BEFORE = {"embeddings": 1.0, "attention": 4.0, "feed_forward": 4.0, "other": 0.5, "overhead": 0.5}
AFTER = {"embeddings": 1.0, "attention": 2.0, "feed_forward": 2.0, "other": 0.5, "overhead": 2.5}


def sped_up(*ratios, spread=0.01, **changes):
    """Half the FLOPs, and as many times faster at batch 1 and 32."""
    original, smaller = account("teacher", 0.8, 10.0), account("student", 0.7, 8.0, 50, 2)
    rows = tuple(
        replace(row, speedup=Speedup(ratio, ratio - spread, ratio + spread, 0.95, 30))
        for row, ratio in zip(smaller.latency, ratios, strict=True)
    )
    return small_report(models=(original, replace(smaller, latency=rows)), **changes)


def test_a_planted_disagreement_is_flagged_with_the_part_that_eats_it(tmp_path):
    report = sped_up(1.25, 2.0, module_ms={"teacher": BEFORE, "student": AFTER})
    (line,) = promise_lines(report)
    assert line == (
        "FLOPs and latency disagree: student, batch 1, 12 tokens: 2.00x fewer FLOPs, 1.25x "
        "faster; it misses what they promise by 38% (allowed 20%). Most of it is launch overhead, "
        "which takes 2.25 ms more than promised, of the 3.00 ms that the whole pass takes more."
    )
    text = report_markdown(report)
    for shown in (text, report_table(report).caption, report_html(report, tmp_path)):
        assert line in shown
    assert "8.0 / 12.0 / 16.0 (1.25x !) |" in text
    assert "256.0 / 384.0 / 512.0 (2.00x) |" in text


def test_a_plain_model_raises_no_flag():
    report = sped_up(1.7, 2.3)
    assert promise_lines(report) == [
        "No measured speed-up is surely further than 20% from what the FLOPs promise."
    ]
    assert "x !)" not in report_markdown(report)


def test_a_speed_up_that_is_too_noisy_to_tell_is_named_and_not_flagged():
    lines = promise_lines(sped_up(1.5, 2.0, spread=0.15))
    assert lines[0].startswith("No measured speed-up is surely further")
    assert lines[1] == "Too noisy to tell whether it is that far: student, batch 1, 12 tokens."
    text = report_markdown(sped_up(1.5, 2.0, spread=0.15))
    assert "8.0 / 12.0 / 16.0 (1.50x ?) |" in text
    assert "(2.00x) |" in text


def test_a_median_as_promised_within_a_wide_interval_is_noise_too():
    lines = promise_lines(sped_up(2.0, 2.0, spread=1.5))
    assert lines[1].endswith("student, batch 1, 12 tokens; student, batch 32, 12 tokens.")


def test_without_the_time_of_the_parts_the_reason_is_told():
    report = sped_up(1.25, 2.0, absent={"module times": "measuring was given 0.1 s"})
    (line,) = promise_lines(report)
    assert line.endswith("eats the difference is not known: measuring was given 0.1 s.")


def test_a_report_of_before_speed_ups_were_kept_says_nothing():
    assert promise_lines(small_report()) == []


def test_speed_ups_are_those_of_the_rounds_with_their_interval():
    report = sped_up(1.25, 2.0)
    assert report.ratios("student")["latency_batch_1"] == 1.25  # of medians 10 and 8 too
    report = sped_up(1.5, 2.0)
    assert report.ratios("student")["latency_batch_1"] == 1.5  # and not of medians
    how = next(row.how for row in rows_of(report) if row.label.startswith("batch 1"))
    assert "student 1.49 to 1.51 (95%)" in how


def test_speed_ups_and_times_of_parts_are_saved_and_read_back():
    report = sped_up(1.25, 1.0, more_module_ms={"32": {"teacher": BEFORE, "student": AFTER}})
    assert CompressionReport.from_dict(report.to_dict()) == report


def test_the_parts_are_measured_where_the_flops_do_not_explain_the_speed_up(monkeypatch):
    models = {"teacher": tiny_model("bert", 4), "plain": tiny_model("bert", 2)}
    models["slow"] = models["plain"]
    ratios = {1: {"plain": 2.0, "slow": 2.0}, 32: {"plain": 2.0, "slow": 0.5}}
    rows = [
        LatencyRow(
            *(name, size, 12, 1.0, 1.0, 30),
            speedup=None if name == "teacher" else Speedup(*[ratios[size][name]] * 3, 0.95, 30),
        )
        for size in (1, 32)
        for name in models
    ]
    asked = []

    def times(models, rows, *_, **__):
        asked.append((list(models), sorted({row.batch_size for row in rows})))
        return dict.fromkeys(models, AFTER), {}

    monkeypatch.setattr(report_module, "measure_latency", lambda *_, **__: rows)
    monkeypatch.setattr(report_module, "measure_module_times", times)
    scores = dict.fromkeys(models, metrics(0.5))
    report = CompressionReport.measure(models, scores, TASK, batch_sizes=(1, 32))
    assert asked == [(list(models), [1, 32]), (["teacher", "slow"], [32])]
    (line,) = promise_lines(report)
    assert "slow, batch 32" in line
    assert "Most of it is" in line


def test_measured_models_have_speed_ups_over_the_first():
    models = {"teacher": tiny_model("bert", 4), "student": tiny_model("bert", 1)}
    scores = dict.fromkeys(models, metrics(0.5))
    report = CompressionReport.measure(models, scores, TASK, batch_sizes=(1,), max_seconds=0.1)
    assert report.original.latency[0].speedup is None
    found = report["student"].latency[0].speedup
    assert found.low <= found.ratio <= found.high
    assert found.rounds == report["student"].latency[0].repeats
