"""The grid of GLUE: which cells are wanted, what is refused, cells that train, and the tables."""

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import BertModel

from benchmarks.glue import latency, train
from benchmarks.glue.__main__ import GRID, main
from benchmarks.glue.drive import alone, run_grid
from benchmarks.glue.grid import Grid
from benchmarks.glue.latency import measure_latency
from benchmarks.glue.plots import kept_of, save_all
from benchmarks.glue.quick import expected, run_quick
from benchmarks.glue.results import RESULTS, Results, wanted
from benchmarks.glue.rows import Share, find, read_latency, read_rows
from benchmarks.glue.sections import sections
from benchmarks.glue.tables import Summary, replaced
from benchmarks.glue.train import HOLDOUT, Place, run_cell, split_rows, teacher_folder
from kdnlp import find_layers, load_finetuned
from kdnlp.data.glue import GLUE_TASKS, load_glue_raw
from kdnlp.data.synthetic import build_config, build_tokenizer, generate
from kdnlp.evaluation.metrics import compute

ROOT = Path(__file__).parents[2]

SMALL = """
model: {model}
holdout: 0.25
arguments: {{per_device_train_batch_size: 8, per_device_eval_batch_size: 32}}
tasks:
  mrpc: {{epochs: 1, teacher_epochs: 1}}
averaged: [mrpc]
teacher: {{learning_rates: [1.0e-3, 2.0e-3], seed: 1}}
student: {{learning_rates: [1.0e-3, 3.0e-3]}}
methods:
  baseline: {{title: fine-tuning}}
  logits: {{title: logits, trainer: distillation, losses: {{logits: {{}}}}}}
  both:
    title: Theseus, then logits
    stages:
      - {{share: 0.5, trainer: theseus, arguments: {{replacing_fraction: 0.5}}}}
      - {{share: 0.5, trainer: distillation, losses: {{logits: {{}}}}}}
  uneven:
    title: uneven
    trainer: theseus
    by_blocks: {{2: {{slot_sizes: [1, 3]}}}}
  born-again:
    title: born again
    budget: 2
    stages:
      - {{share: 0.5, trainer: distillation, losses: {{logits: {{}}}}}}
      - {{share: 0.5, trainer: distillation, losses: {{logits: {{}}}}, restart: true}}
  one-block:
    title: blocks 1 and 2 alone replaced
    trainer: theseus
    init_layers: [0, 2, 3]
    trained_blocks: [0]
    arguments: {{slot_sizes: [2, 1, 1], replacing_fraction: 0.5}}
  long:
    title: longer
    budget: 2
    against: long
  more:
    title: two teachers, more rows, one block trained
    trainer: distillation
    losses: {{logits: {{}}}}
    arguments: {{loss_weights: {{logits: 1}}}}
    ensemble: true
    copies: 1
    trained_blocks: [1]
studies:
  methods:
    setting: cpu-float32
    plan:
      - {{tasks: [mrpc], blocks: [2], seeds: [1, 2], methods: [baseline, logits, both, uneven]}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """MRPC-shaped rows, a tiny pretrained encoder of four blocks, and a cache of their own."""
    root = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "hf-cache"))
        (root / "glue" / "mrpc").mkdir(parents=True)
        pairs = generate("synthetic_paraphrase", num_train=64, num_validation=32)
        for split, rows in pairs.items():
            names = GLUE_TASKS["mrpc"].label_names
            rows = rows.cast_column("label", datasets.ClassLabel(names=list(names)))
            rows.to_parquet(root / "glue" / "mrpc" / f"{split}.parquet")
        tokenizer = build_tokenizer()
        torch.manual_seed(0)
        config = build_config(4, hidden_size=16, num_heads=2, intermediate_size=24)
        BertModel(config).save_pretrained(root / "encoder")
        tokenizer.save_pretrained(root / "encoder")
        (root / "grid.yaml").write_text(SMALL.format(model=root / "encoder"), encoding="utf-8")
        yield Place(str(root / "glue"), str(root / "encoder"), root / "work")


@pytest.fixture(autouse=True)
def restored_state():
    """A cell seeds its process and sets its threads."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)


@pytest.fixture
def grid(place):
    return Grid.read(place.work.parent / "grid.yaml")["methods"]


def told(cell, holdout, validation=0.5, teacher="same", rows="these"):
    """What a cell's JSON says, as far as choosing and tables read it."""
    return {
        **cell.described(),
        "teachers": [teacher],
        "rows": rows,
        "encoder": "one",
        HOLDOUT: {"score": holdout},
        "validation": {"score": validation},
        "predicted": " ".join("01" * 16),
        "optimizer_steps": 6,
        "seconds": 1.0,
        "machine": {"device": "a processor", "threads": 1},
        "versions": {"torch": "2"},
    }


def children(pid):
    """The processes that a process has started (Linux)."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()


def fill(grid, results, scores=None):
    """Put a score for every cell until no more are wanted; the higher rate wins each choice."""
    while missing := [c for c in wanted(grid, results) if results.get(c) is None]:
        for cell in missing:
            score = (scores or {}).get((cell.method, cell.seed), 0.5)
            results.put(cell, told(cell, cell.learning_rate, score))


def test_the_seeds_wait_for_the_rate_that_the_hold_out_chooses(grid, tmp_path):
    results = Results(tmp_path)
    teachers = grid.teachers("mrpc")
    assert wanted(grid, results) == teachers
    results.put(teachers[0], told(teachers[0], 0.7))
    results.put(teachers[1], told(teachers[1], 0.6, validation=0.99))
    assert results.chosen(teachers) == teachers[0]
    tried = grid.students("mrpc", "baseline", 2, 1)
    assert wanted(grid, results)[:4] == [*teachers, *tried]
    results.put(tried[0], told(tried[0], 0.4, validation=0.9))
    assert tried[1] in wanted(grid, results)
    results.put(tried[1], told(tried[1], 0.5, validation=0.1))
    second = [c for c in wanted(grid, results) if (c.method, c.seed) == ("baseline", 2)]
    assert [c.learning_rate for c in second] == [3e-3]


def test_a_method_tries_learning_rates_of_its_own(grid, tmp_path):
    fast = {**grid.methods["baseline"], "learning_rates": [4e-3, 8e-3, 9e-3]}
    plan = [{"tasks": ["mrpc"], "blocks": [2], "seeds": [1, 2], "methods": ["baseline", "fast"]}]
    grid, results = (
        replace(grid, methods={**grid.methods, "fast": fast}, plan=plan),
        Results(tmp_path),
    )
    fill(grid, results)
    row = find(read_rows(grid, results), "mrpc", "fast", 2)
    assert (row.learning_rate, sorted(row.scores)) == (9e-3, [1, 2])
    assert len(list((tmp_path / "mrpc" / "2-blocks" / "fast").iterdir())) == 4
    assert find(read_rows(grid, results), "mrpc", "baseline", 2).learning_rate == 3e-3


def test_a_result_of_other_settings_is_refused(grid, tmp_path):
    results, cell = Results(tmp_path), grid.teachers("mrpc")[0]
    results.put(cell, told(cell, 0.7))
    assert results.get(cell)[HOLDOUT] == {"score": 0.7}
    longer = replace(grid, tasks={"mrpc": {"epochs": 1, "teacher_epochs": 2}})
    with pytest.raises(ValueError, match="other settings than the grid's now: stages"):
        results.get(longer.teachers("mrpc")[0])
    close = replace(cell, learning_rate=1.04e-3)
    assert close.path != cell.path
    (tmp_path / close.path).write_bytes((tmp_path / cell.path).read_bytes())
    with pytest.raises(ValueError, match="other settings than the grid's now: learning_rate"):
        results.get(close)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("trainer: theseus", "trainer: thesis", "got \\['thesis'\\]"),
        ("losses: {{logits: {{}}}}", "losses: {{logit: {{}}}}", "got \\['logit'\\]"),
        ("title: logits, trainer: distillation", "title: logits", "a plain trainer has no teacher"),
        ("share: 0.5", "share: 0.7", "sum to 1, got 1.4"),
        ("title: born again", "title: x\n    trainer: theseus", "beside its stages"),
        ("blocks: [2]", "blocks: [1]", "plan for uneven, blocks"),
        ("replacing_fraction", "replacing_part", "got \\['replacing_part'\\]"),
        ("  mrpc: {{epochs", "  mrcp: {{epochs", "got \\['mrcp'\\]"),
        ("against: long", "against: short", "got \\['short'\\]"),
        ("title: logits, trainer", "titel: logits, trainer", "got \\['titel'\\]"),
        ("methods: [baseline, logits", "methods: [base, logits", "got \\['base'\\]"),
        ("tasks: [mrpc]", "tasks: [rte]", "got \\['rte'\\]"),
        ("plan:", "plans:", "study methods, beside tasks: .*got \\['plans'\\]"),
        ("    setting: cpu-float32\n", "", "study methods, beside tasks: setting is missing"),
        ("holdout:", "held_out:", "got \\['held_out'\\]"),
    ],
)
def test_a_name_that_there_is_not_is_refused_before_anything_runs(old, new, what, tmp_path):
    text = SMALL.replace(old, new).format(model="m")
    assert text != SMALL.format(model="m")
    (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=what):
        Grid.read(tmp_path / "grid.yaml")


def test_the_hold_out_is_apart_from_what_trains_and_the_same_every_time(place):
    first, again = (split_rows(GLUE_TASKS["mrpc"], place, 0.25) for _ in range(2))
    assert {name: len(rows) for name, rows in first.items()} == {
        "train": 48, HOLDOUT: 16, "validation": 32,
    }  # fmt: skip
    assert list(first[HOLDOUT]["sentence1"]) == list(again[HOLDOUT]["sentence1"])
    assert not set(first["train"]["idx"]) & set(first[HOLDOUT]["idx"])
    shares = [sum(first[name]["label"]) / len(first[name]) for name in ("train", HOLDOUT)]
    assert shares[0] == pytest.approx(shares[1], abs=0.04)


def test_cells_from_texts_to_scores(place, grid, tmp_path):
    """A teacher, then a student in two stages of two trainers."""
    teacher = grid.teachers("mrpc")[0]
    own = run_cell(teacher, place, [])
    assert own["optimizer_steps"] == 6
    assert (teacher_folder(place, teacher) / "tokenizer.json").is_file()
    assert own["validation"].keys() >= {"f1", "accuracy", "score", "loss"}
    assert set(own["predicted"].split()) <= {"0", "1"}
    assert len(own["predicted"].split()) == 32
    for method, steps in {"both": 6, "uneven": 6, "born-again": 12}.items():
        cell = grid.students("mrpc", method, 2, 1)[0]
        result = run_cell(cell, place, [teacher])
        assert result["optimizer_steps"] == steps
        assert (result["teachers"], result["rows"]) == (own["teachers"], own["rows"])
        assert 0 <= result[HOLDOUT]["score"] <= 1
        assert result == json.loads(json.dumps(result))
    uneven = grid.students("mrpc", "uneven", 2, 1)[0]
    assert uneven.settings["stages"][0]["arguments"]["slot_sizes"] == [1, 3]


def test_what_is_not_to_train_stays_and_several_teachers_are_told(place, grid, monkeypatch):
    evaluated, evaluate_model = [], train.evaluate_model

    def evaluate(model, *inputs):
        evaluated.append(model)
        return evaluate_model(model, *inputs)

    monkeypatch.setattr(train, "evaluate_model", evaluate)
    teachers = grid.teachers("mrpc")
    for teacher in teachers:
        run_cell(teacher, place, [])
    result = run_cell(grid.students("mrpc", "more", 2, 1)[0], place, teachers)
    assert result["optimizer_steps"] == 12
    assert len(set(result["teachers"])) == 2
    run_cell(grid.students("mrpc", "one-block", 3, 1)[0], place, teachers[:1])
    chosen = load_finetuned(str(teacher_folder(place, teachers[0])), GLUE_TASKS["mrpc"])[0]
    blocks = [b.state_dict().values() for b in find_layers(chosen).layers]
    for model, copied, unchanged in (
        (evaluated[-2], [0, 1], [True, False]),
        (evaluated[-1], [0, 2, 3], [False, True, True]),
    ):
        own = [block.state_dict().values() for block in find_layers(model).layers]
        pairs = zip(own, [blocks[i] for i in copied], strict=True)
        assert [all(map(torch.equal, *pair)) for pair in pairs] == unchanged


def test_students_of_two_teachers_are_not_compared(grid, tmp_path):
    results = Results(tmp_path)
    fill(grid, results)
    assert find(read_rows(grid, results), "mrpc", "logits", 2).learning_rate == 3e-3
    cell = grid.students("mrpc", "logits", 2, 2)[1]
    for other in ({"teacher": "another"}, {"rows": "others"}):
        results.put(cell, told(cell, 0.5, **other))
        with pytest.raises(ValueError, match="cannot be compared"):
            read_rows(grid, results)


def test_the_table_has_means_spread_and_the_seeds_own_differences(grid, tmp_path):
    results = Results(tmp_path)
    scores = {("teacher", 1): 0.8, ("baseline", 1): 0.6, ("baseline", 2): 0.7}
    fill(grid, results, scores | {("logits", 1): 0.64, ("logits", 2): 0.72})
    rows = read_rows(grid, results)
    lines = "\n".join(Summary(rows, grid, 2).markdown())
    # On the hold-out `fill` gives every cell its rate: the students 3e-3, the teacher 2e-3.
    assert "| fine-tuning | 65.0 ± 7.1 | 81.2 ± 8.8 | - | 150.0 ± 0.0 | - |" in lines
    gained = "85.0 ± 7.1 | +3.0 ± 1.4 | 150.0 ± 0.0 | 0.0 ± 0.0"
    assert f"| logits | 68.0 ± 5.7 = | {gained} |" in lines
    difference = find(rows, "mrpc", "logits", 2).over(find(rows, "mrpc", "baseline", 2))
    assert difference.each == {1: pytest.approx(4.0), 2: pytest.approx(2.0)}


def test_a_method_is_compared_with_the_baseline_of_its_own_budget(grid, tmp_path):
    methods = {**grid.methods, "longer": {"title": "twice", "budget": 2, "against": "long"}}
    plan = [{"tasks": ["mrpc"], "blocks": [2], "seeds": [1, 2]}]
    plan[0]["methods"] = ["baseline", "long", "longer", "logits"]
    grid, results = replace(grid, methods=methods, plan=plan), Results(tmp_path)
    scores = {("baseline", 1): 0.4, ("long", 1): 0.6, ("longer", 1): 0.6, ("logits", 1): 0.7}
    fill(grid, results, scores | {(name, 2): score for (name, _), score in scores.items()})
    summary = Summary(read_rows(grid, results), grid, 2)
    assert "The baseline of *twice* is *longer*." in summary.markdown()[-1]
    gains = {name: summary.over(name) for name in summary.methods}
    over = {name: difference and difference.mean for name, difference in gains.items()}
    assert over == {"baseline": None, "logits": pytest.approx(30), "long": None, "longer": 0}


def test_a_task_that_a_method_was_not_run_on_leaves_it_without_a_mean(grid, tmp_path):
    tasks = {name: {"epochs": 1, "teacher_epochs": 1} for name in ("mrpc", "rte", "sst2")}
    parts = {"baseline": ["mrpc", "rte", "sst2"], "logits": ["mrpc"], "long": ["mrpc", "rte"]}
    plan = [
        {"tasks": names, "blocks": [2], "seeds": [1, 2], "methods": [method]}
        for method, names in parts.items()
    ]
    grid = replace(grid, tasks=tasks, averaged=["mrpc", "rte"], plan=plan)
    results = Results(tmp_path)
    fill(grid, results)
    summary = Summary(read_rows(grid, results), grid, 2)
    assert summary.tasks == ["mrpc", "rte", "sst2"]
    shares = {name: summary.kept(name) for name in summary.methods}
    kept = {name: share and share.mean for name, share in shares.items()}
    assert kept == {"baseline": 100, "logits": None, "long": 100}


def test_what_is_kept_has_the_spread_of_the_seeds_that_all_tasks_have():
    three, two = Share({1: 80.0, 2: 90.0, 3: 100.0}), Share({1: 70.0, 2: 60.0})
    mean = Share.mean_of([three, two])
    assert (mean.mean, mean.each) == (77.5, {1: 75.0, 2: 75.0})
    assert (mean.deviation, Share({1: 80.0}).deviation) == (0.0, None)


def test_of_a_teacher_that_scores_nothing_no_share_is_kept(grid, tmp_path):
    results = Results(tmp_path)
    fill(grid, results, {("teacher", 1): 0.0})
    line = next(x for x in Summary(read_rows(grid, results), grid, 2).markdown() if "logits |" in x)
    assert line == "| logits | 50.0 ± 0.0 = | - | 0.0 ± 0.0 | 150.0 ± 0.0 | 0.0 ± 0.0 |"


def test_a_cell_that_had_just_ended_as_a_worker_was_killed_is_not_run_again(
    place, grid, tmp_path, monkeypatch
):
    results, jobs = Results(tmp_path / "results"), []
    fill(grid, results)
    done, lost = grid.students("mrpc", "logits", 2, 1)
    (results.folder / lost.path).unlink()

    def work_through(self, cells, number):
        jobs.append(number)
        return [done, lost] if len(jobs) == 1 else []

    monkeypatch.setattr("benchmarks.glue.drive._Run.work_through", work_through)
    assert run_grid(grid, results, replace(place, work=tmp_path / "work"), 2) == {}
    assert jobs == [2, 1, 2]  # alone, the one that was lost; then on


def test_two_runs_of_one_folder_are_refused(place, grid, tmp_path):
    with alone(tmp_path / "results"), pytest.raises(ValueError, match="Another run of the grid"):
        run_grid(grid, Results(tmp_path / "results"), replace(place, work=tmp_path / "work"), 1)


@pytest.mark.parametrize(
    "flags", [["--bf16"], ["--device", "cuda"], ["--jobs", "2"], ["--study", "hunt"]]
)
def test_tables_of_other_results_than_the_readmes_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        main(["--tables", *flags])
    error = capsys.readouterr().err
    assert "it writes what" in error
    assert f"Leave {flags[0]} out" in error


def test_the_tables_of_other_results_lie_beside_them(place, grid, tmp_path, capsys):
    results = Results(tmp_path / "methods" / "cpu-float32")
    fill(grid, results, {("logits", 1): 0.64, ("logits", 2): 0.72})
    flags = ["--tables", "--results", str(tmp_path), "--grid", str(place.work.parent / "grid.yaml")]
    assert main(flags) == 0
    page = results.folder / "tables.md"
    assert str(page) in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# GLUE: methods, cpu-float32\n")
    gained = "136.0 ± 11.3 | +18.0 ± 5.7 | 150.0 ± 0.0 | 0.0 ± 0.0"
    assert f"| logits | 68.0 ± 5.7 | {gained} |" in text
    assert "| methods, cpu-float32 | a processor | 1 | torch 2 | 14 |" in text
    with pytest.raises(SystemExit):
        main([*flags, "--jobs", "2"])
    assert "Leave --jobs out" in capsys.readouterr().err


def test_another_grid_needs_other_results(place):
    with pytest.raises(SystemExit, match="Give --results another folder"):
        main(["--grid", str(place.work.parent / "grid.yaml")])


def test_what_one_answer_scores_stands_in_the_table(grid, tmp_path):
    tasks = {"mrpc": {**grid.tasks["mrpc"], "one_answer": 40.0}}
    grid, results = replace(grid, tasks=tasks), Results(tmp_path)
    fill(grid, results, {("logits", 1): 0.45, ("logits", 2): 0.46, ("uneven", 1): 0.499})
    lines = Summary(read_rows(grid, results), grid, 2).markdown()
    assert lines[3] == "| one answer for all rows | 40.0 | 80.0 |  |  |  |"
    assert any("| 45.5 ± 0.7 < |" in line for line in lines)
    assert any("| 50.0 ± 0.1 = |" in line for line in lines)


@pytest.mark.skipif(
    "KDNLP_GLUE_DIR" not in os.environ, reason="KDNLP_GLUE_DIR names no GLUE folder"
)
@pytest.mark.parametrize("name", Grid.read(GRID)["methods"].tasks)
def test_one_answer_scores_what_the_grid_says(name):
    task = GLUE_TASKS[name]
    split = load_glue_raw(name, os.environ["KDNLP_GLUE_DIR"])["validation"]
    labels = np.array(split[task.label_columns[0]])
    scores = compute(task, np.full_like(labels, statistics.mode(labels)), labels)
    said = Grid.read(GRID)["methods"].tasks[name]["one_answer"]
    assert 100 * scores["score"] == pytest.approx(said, abs=0.05)


def test_a_study_has_results_and_teachers_of_its_own(tmp_path, monkeypatch):
    ran = {}

    def run(grid, results, place, jobs):
        ran[grid.name] = (results.folder.relative_to(tmp_path), place.work.relative_to(tmp_path))
        return {}

    monkeypatch.setattr("benchmarks.glue.__main__.run_grid", run)
    flags = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work"), "--study"]
    for study in ("hunt", "longer-teachers"):
        assert main([*flags, study]) == 0
    assert ran == {
        "hunt": (Path("results/hunt/cpu-float32"), Path("work/hunt")),
        "longer-teachers": (
            Path("results/longer-teachers/cpu-float32"),
            Path("work/longer-teachers"),
        ),
    }


def test_a_study_says_what_its_tasks_have_otherwise(place, tmp_path):
    text = SMALL.format(model="m")
    longer = "  longer:\n    tasks: {mrpc: {teacher_epochs: 9}}" + text.split("  methods:")[1]
    (tmp_path / "grid.yaml").write_text(text + longer, encoding="utf-8")
    studies = Grid.read(tmp_path / "grid.yaml")
    one, other = studies["methods"].tasks["mrpc"], studies["longer"].tasks["mrpc"]
    assert other == {**one, "teacher_epochs": 9} != one
    (tmp_path / "grid.yaml").write_text(text + longer.replace("mrpc:", "rte:", 1), encoding="utf-8")
    misspelt = text + longer.replace("teacher_epochs", "teachers_epochs", 1)
    (tmp_path / "other.yaml").write_text(misspelt, encoding="utf-8")
    with pytest.raises(ValueError, match=r"study longer, task mrpc: .*got \['teachers_epochs'\]"):
        Grid.read(tmp_path / "other.yaml")
    with pytest.raises(ValueError, match=r"study longer, tasks: .*got \['rte'\]"):
        Grid.read(tmp_path / "grid.yaml")


def test_an_unknown_study_is_refused():
    with pytest.raises(SystemExit, match=r"expected one of methods, hunt, longer-.*; got hunts"):
        main(["--study", "hunts"])


def test_the_plots_are_drawn(grid, tmp_path):
    methods = {
        "rate-0.1": {**grid.methods["uneven"], "by_blocks": {}, "ablation": "rate"},
        "theseus-constant": {"title": "constant", "trainer": "theseus"},
    }
    for spec, rate in zip(methods.values(), (0.1, 0.5), strict=True):
        spec["arguments"] = {"replacing_schedule": "constant", "initial_replacing_rate": rate}
        spec.pop("by_blocks", None)
    plan = [{"tasks": ["mrpc"], "blocks": [3], "seeds": [1, 2]}]
    plan[0]["methods"] = ["baseline", *methods]
    grid, results = replace(grid, methods=grid.methods | methods, plan=plan), Results(tmp_path)
    fill(grid, results)
    cells = [{"batch_size": 32, "speedup": 2.0}]
    measured = {"length": 128, "depths": {"6": cells, "3": cells}}
    rows = read_rows(grid, results)
    assert kept_of(rows, grid, measured) == {
        ("teacher", 6): 100,
        ("baseline", 3): 100,
        ("theseus-constant", 3): 100,
    }
    save_all(rows, grid, measured, tmp_path / "plots")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"kept.png", "kept.svg", "rates.png", "rates.svg"}


def test_latency_is_measured_for_every_depth(place, grid, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "BATCH_SIZES", (1, 2))
    monkeypatch.setattr(latency, "LENGTH", 16)
    monkeypatch.setattr(latency, "SECONDS", 0.1)
    measured = measure_latency([2, 4], Results(tmp_path), place, grid.model)
    assert measured == read_latency(Results(tmp_path))
    assert {depth: len(cells) for depth, cells in measured["depths"].items()} == {"4": 2, "2": 2}
    assert [cell["batch_size"] for cell in measured["depths"]["2"]] == [1, 2]
    assert measured["depths"]["2"][0]["flops_ratio"] == pytest.approx(2, rel=0.1)
    assert {cell["speedup"] for cell in measured["depths"]["4"]} == {1.0}


def test_the_readmes_hold_what_the_committed_results_say():
    for path, parts in sections(Grid.read(GRID)).items():
        text = path.read_text(encoding="utf-8")
        for name, lines in parts.items():
            assert replaced(text, name, lines) == text, f"{path}: {name}; run --tables"


def test_committed_results_name_no_place_and_no_text():
    files = sorted(RESULTS.rglob("*.json"))
    assert files
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "/" not in text.replace("sentence-transformers/all-MiniLM-L6-v2", ""), path


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_ends_like_one_that_was_not(place, grid, tmp_path):
    """The driver is killed when the first cells are there; what it did is not done again."""
    command = [sys.executable, "-m", "benchmarks.glue", "--grid", place.work.parent / "grid.yaml"]
    command += ["--data_dir", place.data_dir, "--results", tmp_path / "killed", "--jobs", "2"]
    command += ["--work", tmp_path / "work"]
    env = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    killed = tmp_path / "killed" / "methods" / "cpu-float32"
    with subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True) as process:
        while len(list(killed.rglob("*.json"))) < 3:
            assert process.poll() is None
            time.sleep(0.05)
        workers = children(process.pid)
        process.kill()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.05)  # the suite's time limit ends it where they stay
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*.json")}
    assert subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = Results(tmp_path / "whole")
    assert run_grid(grid, whole, replace(place, work=tmp_path / "work-2"), 2) == {}
    again = Results(killed)
    assert all(again.get(cell) is not None for cell in wanted(grid, again))
    assert [row.scores for row in read_rows(grid, again)] == [
        row.scores for row in read_rows(grid, whole)
    ]


@pytest.mark.slow
def test_killed_workers_are_named_and_leave_a_grid_that_goes_on(place, grid, tmp_path):
    """As for want of memory: each cell is tried once more, alone, before it counts as failed."""
    results, own = Results(tmp_path / "results"), replace(place, work=tmp_path / "work")
    plan = [{**grid.plan[0], "methods": ["baseline", "logits"]}]
    grid = replace(grid, plan=plan, student={"learning_rates": [1e-3]})
    stop = threading.Event()

    def kill_workers():
        """All that work once the first student is there, also the fresh ones."""
        while not stop.is_set():
            done = results.get(grid.students("mrpc", "baseline", 2, 1)[0])
            for child in multiprocessing.active_children() if done else []:
                child.kill()
            time.sleep(0.2)

    killer = threading.Thread(target=kill_workers)
    killer.start()
    failed = run_grid(grid, results, own, 2)
    stop.set()
    killer.join()
    assert failed
    assert all("its process was killed" in str(error) for error in failed.values())
    assert run_grid(grid, results, own, 2) == {}
    assert all(results.get(cell) is not None for cell in wanted(grid, results))


@pytest.mark.slow
def test_a_teacher_that_comes_out_otherwise_is_refused(place, grid, tmp_path, monkeypatch):
    """After a clone its weights are not there, and it is trained again."""
    results, own = Results(tmp_path / "results"), replace(place, work=tmp_path / "work")
    grid = replace(grid, plan=[{**grid.plan[0], "methods": ["baseline"], "seeds": [1]}])
    assert run_grid(grid, results, own, 1) == {}
    student = grid.students("mrpc", "baseline", 2, 1)[0]
    before = results.get(student)
    (results.folder / student.path).unlink()
    shutil.rmtree(own.work)
    assert run_grid(grid, results, own, 2) == {}
    assert results.get(student)["validation"] == before["validation"]
    (results.folder / student.path).unlink()
    shutil.rmtree(own.work)
    for teacher in grid.teachers("mrpc"):
        results.put(teacher, {**results.get(teacher), "teachers": ["others"]})
    failed = run_grid(grid, results, own, 1)
    assert all("came out with other weights" in str(error) for error in failed.values())
    assert results.get(student) is None


def test_one_more_seed_is_expected_where_students_t_says():
    low, high = expected([0.79, 0.80, 0.81])
    assert (low, high) == pytest.approx(
        (80 - 4.303 * (4 / 3) ** 0.5, 80 + 4.303 * (4 / 3) ** 0.5), abs=1e-3
    )


@pytest.fixture(scope="module")
def row(place, tmp_path_factory):
    """A row of two seeds that was really trained: its grid, and its results."""
    own = replace(place, work=tmp_path_factory.mktemp("row"))
    grid = Grid.read(place.work.parent / "grid.yaml")["methods"]
    plan = [{**grid.plan[0], "methods": ["logits"]}]
    grid = replace(grid, plan=plan, student={"learning_rates": [1e-3]})
    results = Results(own.work / "results" / "cpu-float32")
    assert run_grid(grid, results, own, 1) == {}
    return grid, results


def say(results, cell, **values):
    """Let a result say something else."""
    results.put(cell, {**results.get(cell), **values})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "flipped", "device", "status", "said"),
    [
        ((0.1, 0.9), 1, "cpu", 0, ": within ["),
        ((0.998, 0.999), 1, "cpu", 1, ": NOT within ["),
        ((0.1, 0.9), 0, "cpu", 1, ": within ["),
        ((0.1, 0.9), 0, "cuda", 0, ": within ["),
    ],
    ids=["wide", "narrow", "other answers", "of another kind of device"],
)
def test_a_row_is_trained_anew_and_compared(
    place, row, tmp_path, monkeypatch, capsys, scores, flipped, device, status, said
):
    """`flipped` is the seed that answers otherwise in the table: of 0 and 1, the second."""
    for name, value in (("ROWS", {"mrpc": "logits"}), ("BLOCKS", 2)):
        monkeypatch.setattr(f"benchmarks.glue.quick.{name}", value)
    grid, trained = row
    own = replace(place, work=tmp_path / "work")
    results = Results(tmp_path / "results" / f"{device}-float32")
    with pytest.raises(ValueError, match="nothing to compare"):
        run_quick("mrpc", grid, results, own)
    shutil.copytree(trained.folder, results.folder)
    cells = [grid.students("mrpc", "logits", 2, seed)[0] for seed in (1, 2)]
    first = results.get(cells[0])["predicted"]
    other = first.translate(str.maketrans("01", "10"))
    for number, (cell, score) in enumerate(zip(cells, scores, strict=True)):
        answers = other if number == flipped else first
        say(results, cell, validation={"score": score}, predicted=answers)
    assert run_quick("mrpc", grid, results, own) == status
    told = capsys.readouterr().out
    assert said in told
    assert f"{0.0 if flipped == 0 else 100.0}% are answered as that seed does in the table" in told
    assert "its seeds agree with each other on 0.0 to 0.0%" in told
    assert (own.work / "quick" / "results" / "mrpc" / "2-blocks" / "logits").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["encoder", "rows"])
def test_a_row_of_another_encoder_or_of_other_rows_is_not_compared(
    place, row, tmp_path, monkeypatch, what
):
    for name, value in (("ROWS", {"mrpc": "logits"}), ("BLOCKS", 2)):
        monkeypatch.setattr(f"benchmarks.glue.quick.{name}", value)
    grid, trained = row
    results = Results(tmp_path / "results" / "cpu-float32")
    shutil.copytree(trained.folder, results.folder)
    for cell in wanted(grid, results):
        say(results, cell, **{what: "other"})
    with pytest.raises(ValueError, match=f"Expected the table's {what}, got other"):
        run_quick("mrpc", grid, results, replace(place, work=tmp_path / "work"))
