"""Runs that are merged keep their meaning: nothing counted twice, nothing mixed up."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from test_report import account, latency, small_report

from kdnlp.evaluation import comparison_files
from kdnlp.evaluation.against import judge
from kdnlp.evaluation.comparison import compare
from kdnlp.evaluation.comparison_files import (
    comparison_rows,
    comparison_tables,
    comparison_test_rows,
    save_comparison,
)
from kdnlp.evaluation.plots import FRONT
from kdnlp.evaluation.report import CompressionReport
from kdnlp.profiling.speedup import Speedup


def run(method, seed, scores, layers=2):
    names = {"theseus": ("predecessor", "successor"), "distillation": ("teacher", "student")}
    models = [account(names[method][0], scores[0], 10.0)]
    models.append(account(names[method][1], scores[1], 5.0, 50, layers))
    models += [account("baseline", score, 4.0, 50, layers) for score in scores[2:]]
    return small_report(models=tuple(models), run={"method": method, "seed": seed})


RUNS = [
    run("theseus", 1, (0.8, 0.76, 0.70)),
    run("theseus", 2, (0.9, 0.81, 0.75)),
    run("distillation", 1, (0.8, 0.72)),
]


def test_means_and_spreads_are_those_of_numpy():
    rows = {row.model: row for row in compare(RUNS)}
    successor = rows["successor (theseus)"]
    assert successor.scores == (0.76, 0.81)
    assert successor.retention == pytest.approx((95.0, 90.0))
    cells = dict(zip(rows, comparison_rows(list(rows.values())), strict=True))
    mean, deviation = np.mean([76, 81]), np.std([76, 81], ddof=1)
    assert cells["successor (theseus)"][3] == f"{mean:.1f} ± {deviation:.1f}"
    assert cells["successor (theseus)"][4] == "92.5 ± 3.5"
    assert cells["student (distillation)"][3] == "72.0"


def test_methods_and_depths_are_kept_apart():
    rows = compare([*RUNS, run("theseus", 1, (0.8, 0.5), layers=1)])
    assert [(row.model, row.num_layers, len(row.scores)) for row in rows] == [
        ("predecessor", 4, 2),
        ("successor (theseus), 2 blocks", 2, 2),
        ("baseline", 2, 2),
        ("teacher", 4, 1),
        ("student (distillation)", 2, 1),
        ("successor (theseus), 1 block", 1, 1),
    ]


@pytest.mark.parametrize(
    ("method", "losses", "more", "label"),
    [
        ("distillation", ["logits"], {}, "student (distillation)"),
        ("distillation", ["logits", "patient"], {}, "student (distillation: logits, patient)"),
        ("theseus", [], {}, "successor (theseus)"),
        ("theseus", ["logits"], {}, "successor (theseus: logits)"),
        (
            "distillation",
            ["logits"],
            {"ensemble_metrics": {}},
            "student (distillation, several teachers)",
        ),
    ],
)
def test_runs_that_learned_by_other_losses_are_kept_apart(method, losses, more, label):
    report = run(method, 1, (0.8, 0.7))
    report = replace(report, run={**report.run, "losses": {key: {} for key in losses}, **more})
    assert [row.model for row in compare([report])][1] == label


def test_the_same_model_in_two_reports_counts_once():
    rows = {row.model: row for row in compare([RUNS[0], replace(RUNS[0])])}
    assert rows["predecessor"].scores == (0.8,)
    assert rows["baseline"].seeds == (1,)


def with_settings(report, **arguments):
    return replace(report, run={**report.run, "arguments": arguments})


def test_an_argument_that_is_not_set_and_one_that_is_not_told_are_alike():
    one, other = (run("theseus", seed, (0.8, 0.7)) for seed in (1, 2))
    rows = compare(
        [
            with_settings(one, warmup_steps=5, hub_revision=None),
            with_settings(other, warmup_steps=5),
        ]
    )
    assert [len(row.scores) for row in rows if not row.is_original] == [2]


def test_runs_that_differ_in_a_setting_are_not_pooled_as_seeds():
    runs = [with_settings(RUNS[0], learning_rate=1e-4), with_settings(RUNS[1], learning_rate=3e-5)]
    labels = [row.model for row in compare(runs)]
    assert labels == [
        "predecessor",
        "successor (theseus); learning_rate=0.0001",
        "successor (theseus); learning_rate=3e-05",
        "baseline; learning_rate=0.0001",
        "baseline; learning_rate=3e-05",
    ]


def test_a_setting_that_the_baseline_does_not_read_keeps_it_together():
    runs = [with_settings(RUNS[0], temperature=2.0), with_settings(RUNS[1], temperature=4.0)]
    rows = {row.model: row.seeds for row in compare(runs)}
    assert rows["baseline"] == (1, 2)
    assert rows["successor (theseus); temperature=2.0"] == (1,)


def test_the_rate_of_the_baseline_is_its_own_and_no_setting_of_the_method():
    one = with_settings(RUNS[0], learning_rate=2e-4, baseline_learning_rate=1e-4)
    rows = {r.model: r.seeds for r in compare([one, with_settings(RUNS[1], learning_rate=2e-4)])}
    assert rows["successor (theseus)"] == (1, 2)
    assert rows["baseline; learning_rate=0.0001"] == (1,)
    assert rows["baseline; learning_rate=0.0002"] == (2,)
    rows = {r.model: r.seeds for r in compare([one, with_settings(RUNS[1], learning_rate=1e-4)])}
    assert rows["baseline"] == (1, 2)


def test_settings_of_a_loss_keep_runs_apart():
    of = [{**RUNS[0].run, "losses": {"hidden": {"layer_map": x}}} for x in ("last", "uniform")]
    labels = [row.model for row in compare([replace(RUNS[0], run=run) for run in of])]
    assert "successor (theseus: hidden); loss hidden={'layer_map': 'last'}" in labels


HUB = {"base_model": "m/a", "base_model_on_hub": True}


@pytest.mark.parametrize(
    ("ours", "theirs", "shown"),
    [
        (HUB, {**HUB, "base_model": "m/b"}, "base_model=m/b"),
        ({**HUB, "base_model_revision": "1"}, {**HUB, "base_model_revision": "2"}, "m/a@2"),
        (
            {"base_model": "s1", "base_model_on_hub": False, "base_model_from": ["m/a"]},
            {"base_model": "s1", "base_model_on_hub": False, "base_model_from": ["m/b"]},
            "base_model=m/b",
        ),
        ({"train_rows": 3668}, {"train_rows": 200}, "train_rows=200"),
        ({"init_layers": "first"}, {"init_layers": [1, 3]}, "init_layers=[1, 3]"),
        ({"student": "m/a"}, {"student": "m/b"}, "student=m/b"),
        ({"selected_on": "score"}, {"selected_on": None}, "selected_on=None"),
    ],
)
def test_what_a_run_started_from_keeps_it_and_its_baseline_apart(ours, theirs, shown):
    runs = [replace(r, run={**r.run, **own}) for r, own in zip(RUNS, (ours, theirs), strict=False)]
    rows = {row.model: row.seeds for row in compare(runs)}
    for name in ("successor (theseus)", "baseline"):
        assert [seeds for model, seeds in rows.items() if model.startswith(name)] == [(1,), (2,)]
        assert any(model.startswith(name) and shown in model for model in rows)


@pytest.mark.parametrize("fact", [{"teacher_dtype": "float16"}, {"teachers": ["m/b"]}])
def test_what_is_learned_from_keeps_students_apart_and_their_baselines_together(fact):
    more = replace(RUNS[1], run={**RUNS[1].run, **fact})
    rows = {row.model: row.seeds for row in compare([RUNS[0], more])}
    assert rows["baseline"] == (1, 2)
    assert len([model for model in rows if model.startswith("successor")]) == 2


def test_a_predecessor_per_seed_in_a_folder_of_its_own_is_one_setting():
    origins = [
        {"base_model": f"s{n}", "base_model_on_hub": False, "base_model_from": ["m/a"]}
        for n in (1, 2)
    ]
    runs = [replace(r, run={**r.run, **o}) for r, o in zip(RUNS, origins, strict=False)]
    assert [(row.model, row.seeds) for row in compare(runs)] == [
        ("predecessor", (1, 2)),
        ("successor (theseus)", (1, 2)),
        ("baseline", (1, 2)),
    ]


def test_originals_and_students_of_other_sizes_are_kept_apart():
    other = RUNS[1].models
    wide = replace(RUNS[1], models=(replace(other[0], parameters=101), *other[1:]))
    assert [len(row.scores) for row in compare([RUNS[0], wide])] == [1] * 6
    wide = replace(RUNS[1], models=(other[0], replace(other[1], parameters=51), other[2]))
    assert [row.seeds for row in compare([RUNS[0], wide])] == [(1, 2), (1,), (2,), (1, 2)]


def test_one_seed_that_gave_two_scores_is_refused():
    twice = [run("theseus", 1, (0.8, 0.76)), run("theseus", 1, (0.8, 0.60))]
    with pytest.raises(ValueError, match=r"seed 1 whose successor scored 76\.0% and 60\.0%"):
        compare(twice)


def test_a_report_that_tells_nothing_of_its_run_is_compared():
    bare = CompressionReport.from_dict(small_report(run={}).to_dict())
    rows = compare([bare, RUNS[0], bare])
    assert [(row.model, row.seeds) for row in rows] == [
        ("predecessor", (None,)),
        ("successor", (None,)),
        ("successor (theseus)", (1,)),
        ("baseline", (1,)),
    ]
    tests = judge(rows, against="predecessor")
    assert comparison_test_rows(tests)[0][:4] == ("t", "successor", "predecessor", "-")
    # Two that tell no seed are no pair.
    assert judge(compare([bare, replace(RUNS[2], run={"method": "distillation"})])) == []


def test_two_reports_that_nothing_tells_apart_are_told_what_they_lack():
    bare = [replace(run("theseus", 1, (0.8, score)), run={}) for score in (0.76, 0.60)]
    with pytest.raises(ValueError, match=r"with no seed whose .* that says method and seed"):
        compare(bare)


def test_baselines_of_one_seed_that_differ_stay_with_their_own_runs():
    runs = [run("theseus", 1, (0.8, 0.76, 0.70)), run("distillation", 1, (0.8, 0.72, 0.71))]
    rows = {row.model: row.scores for row in compare(runs)}
    assert rows["baseline; beside=successor (theseus)"] == (0.70,)
    assert rows["baseline; beside=student (distillation)"] == (0.71,)
    sweep = [
        with_settings(run("theseus", 1, (0.8, 0.76, score)), temperature=temperature)
        for temperature, score in ((2.0, 0.70), (4.0, 0.71))
    ]
    assert {r.model: r.scores for r in compare(sweep)}["baseline; temperature=4.0"] == (0.71,)


def test_the_original_of_several_seeds_is_one_run():
    runs = [run("theseus", seed, (0.8, 0.7 + seed / 100)) for seed in (1, 2, 3)]
    assert [len(row.scores) for row in compare(runs)] == [1, 3]


def test_tasks_are_kept_apart():
    rows = compare([RUNS[0], replace(RUNS[0], task="other")])
    assert [row.task for row in rows] == ["t"] * 3 + ["other"] * 3


def test_speedups_are_the_mean_and_spread_of_the_runs_own_ratios():
    slower = [replace(model, latency=latency(model.name, 5.0)) for model in RUNS[1].models[2:]]
    rows = compare([RUNS[0], replace(RUNS[1], models=(*RUNS[1].models[:2], *slower))])
    row = next(row for row in rows if row.model == "baseline")
    assert row.speedups == {size: pytest.approx((2.5, 2.0)) for size in ("1", "32")}
    assert comparison_rows([row])[0][8] == "2.25x ± 0.35 / 2.25x ± 0.35"
    assert comparison_rows([rows[0]])[0][8] == "1.00x ± 0.00 / 1.00x ± 0.00"
    assert row.flops_ratio == 2.0


@pytest.mark.parametrize(
    ("intervals", "shown"),
    [
        ([(1.9, 2.1)], "2.00x"),
        ([(1.0, 3.0)], "2.00x ?"),
        ([(2.9, 3.1)], "3.00x !"),
        ([(1.0, 3.0), (1.0, 3.0)], "2.00x ± 0.00 ?"),
        ([(1.0, 3.0), (1.9, 2.1)], "2.00x ± 0.00"),
        ([(1.0, 3.0), None], "2.00x ± 0.00"),  # one was not measured round by round
    ],
)
def test_a_speedup_has_the_mark_that_all_its_runs_give_it(intervals, shown):
    reports = []
    for interval, report in zip(intervals, RUNS, strict=False):
        speedup = interval and Speedup(sum(interval) / 2, *interval, 0.95, 30)
        first, made, *others = report.models
        rows = tuple(replace(row, speedup=speedup) for row in made.latency)
        models = (first, replace(made, latency=rows), *others)
        reports.append(replace(report, models=models))
    cells = {row[1]: row[8] for row in comparison_rows(compare(reports))}
    assert cells["successor (theseus)"] == f"{shown} / {shown}"
    assert "?" not in cells["baseline"]  # it was not measured round by round


def front_of(rows):
    line = comparison_files._draw(rows).axes[0].get_lines()[-1]
    return line.get_label(), line.get_ydata().tolist()


def test_the_front_of_a_comparison_is_not_drawn_on_noise():
    # As many blocks and FLOPs: the baseline is ahead by 4 ms against 5, and by noise alone.
    assert front_of(compare(RUNS[:1])) == (FRONT, [76, 80])
    first, made, plain = RUNS[0].models
    wider = replace(plain, parameters=60)
    assert front_of(compare([replace(RUNS[0], models=(first, made, wider))])) == (
        FRONT,
        [70, 76, 80],
    )
    several = [
        replace(r, models=(*r.models[:2], replace(wider, latency=latency("baseline", ms))))
        for r, ms in zip(RUNS, (4.0, 6.0), strict=False)
    ]
    assert len(front_of(compare(several))[1]) == 2


def test_the_files_hold_the_printed_numbers(tmp_path):
    rows = compare(RUNS)
    save_comparison(rows, tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    for cells in comparison_rows(rows):
        assert f"| {' | '.join(cells)} |" in text
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved[0]["scores"] == [0.8, 0.9]


def test_a_score_that_is_no_number_is_counted_once_and_costs_no_file(tmp_path):
    run_without = run("theseus", 1, (0.8, float("nan")))
    rows = compare([run_without, replace(run_without)])
    assert [row.seeds for row in rows] == [(1,), (1,)]
    save_comparison(rows, tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text())[1]["scores"] == [None]


def behaving(report, agreement, error):
    figures = {"validation": {"rows": 9, "agreement": agreement, "calibration_error": error}}
    models = [
        model if model is report.original else replace(model, behaviour=figures)
        for model in report.models
    ]
    return replace(report, models=tuple(models))


def test_agreement_and_calibration_have_means_and_spreads_over_seeds():
    rows = {row.model: row for row in compare([behaving(RUNS[0], 0.9, 0.1), RUNS[1]])}
    assert rows["successor (theseus)"].agreement is None  # one of the runs does not tell it
    runs = [behaving(RUNS[0], 0.9, 0.1), behaving(RUNS[1], 0.8, 0.2)]
    rows = {row.model: row for row in compare(runs)}
    assert rows["successor (theseus)"].agreement == (0.9, 0.8)
    assert rows["predecessor"].agreement is None
    cells = dict(zip(rows, comparison_rows(list(rows.values())), strict=True))
    assert cells["successor (theseus)"][5:7] == ("85.0 ± 7.1", "15.0 ± 7.1")
    assert cells["predecessor"][5:7] == ("-", "-")


def test_tests_are_written_beside_the_models_they_are_of(tmp_path):
    rows = compare(RUNS[:2])
    tests = judge(rows)
    save_comparison(rows, tmp_path, tests)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"comparison.{suffix}" for suffix in ("md", "json", "html", "png", "svg")
    }
    text = (tmp_path / "comparison.md").read_text()
    assert "| t | successor (theseus) | baseline | 1, 2 | +6.0 ± 0.0 | - | - |" in text
    assert "Student's paired t-test" in text
    saved = {
        row["model"]: row["tests"] for row in json.loads((tmp_path / "comparison.json").read_text())
    }
    assert saved["baseline"] == []
    assert saved["successor (theseus)"][0]["differences"] == pytest.approx([0.06, 0.06])


def test_of_two_depths_each_row_is_written_with_its_own_test(tmp_path):
    runs = [run("theseus", 1, (0.8, 0.5, 0.4), layers=1), run("theseus", 1, (0.8, 0.7, 0.65))]
    rows = compare(runs)
    tests = judge(rows)
    save_comparison(rows, tmp_path, tests)
    saved = json.loads((tmp_path / "comparison.json").read_text())
    written = {
        (row["num_layers"], test["model"], test["against"]): test["differences"]
        for row in saved
        for test in row["tests"]
    }
    assert written == {
        (1, "successor (theseus), 1 block", "baseline, 1 block"): [pytest.approx(0.1)],
        (2, "successor (theseus), 2 blocks", "baseline, 2 blocks"): [pytest.approx(0.05)],
    }
    names = [cells[1] for cells in comparison_test_rows(tests)]
    assert names == ["successor (theseus), 1 block", "successor (theseus), 2 blocks"]


def test_a_terminal_of_80_columns_shows_every_cell_in_one_line():
    """Numbers that are broken over two lines cannot be read."""
    scores = {1: (0.8, 0.71, 0.61), 2: (0.8, 0.74, 0.65), 3: (0.8, 0.78, 0.62)}
    reports = [
        behaving(run("distillation", seed, own), 0.9 + seed / 100, 0.1)
        for seed, own in scores.items()
    ]
    console = Console(width=80, file=io.StringIO())
    for table in comparison_tables(compare(reports)):
        console.print(table)
    lines = console.file.getvalue().splitlines()
    for cells in comparison_rows(compare(reports)):
        shown = [line for line in lines if f" {cells[1]} " in f" {line} "]
        assert len(shown) == 2
        assert all(any(f" {cell} " in f" {line} " for line in shown) for cell in cells[1:])


def test_several_tasks_have_a_plot_each_whatever_their_names(tmp_path):
    rows = compare([RUNS[0], replace(RUNS[0], task="my own/data")])
    save_comparison(rows, tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.suffix == ".png"}
    assert names == {"comparison-t.png", "comparison-my-own-data.png"}
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 2


def test_tasks_whose_names_make_one_file_name_lose_neither_plot_nor_table(tmp_path):
    tasks = ("my data", "my-data", "My data", "my-data-2")
    save_comparison(compare([replace(RUNS[0], task=task) for task in tasks]), tmp_path)
    names = {path.stem for path in tmp_path.iterdir() if path.suffix == ".png"}
    numbered = ["my-data", "my-data-2", "My-data-3", "my-data-2-2"]
    assert names == {f"comparison-{name}" for name in numbered}
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == len(tasks)
    text = (tmp_path / "comparison.md").read_text()
    for task, name in zip(tasks, numbered, strict=True):
        assert f">{task}</h2>" in page
        assert f"![{task}: score" in text
        assert f"(comparison-{name}.png)" in text
