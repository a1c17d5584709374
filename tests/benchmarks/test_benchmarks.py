"""Every benchmark still runs, at sizes that say nothing about speed."""

import copy
import importlib
import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdnlp.profiling import profile
from kdnlp.profiling.speedup import Speedup

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if path.stem not in ("interleave", "floors")
)
MODELS = ("--teacher_layers", "2", "--student_layers", "1", "--hidden_size", "64")
STEPS = ("--repeats", "1", "--steps", "2", "--batch_size", "2")


@pytest.fixture(autouse=True)
def restored_state(monkeypatch):
    """The benchmarks are scripts: they seed and silence the process that they run in."""
    monkeypatch.syspath_prepend(str(ROOT))
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def run(name, *arguments):
    return importlib.import_module(f"benchmarks.{name}").main([*arguments])


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_readme_lists_every_script_with_its_command(name):
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"`{name}.py`" in text or f"benchmarks/{name}.py" in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(name, "--help")
    assert exit_.value.code == 0
    assert "--repeats" in capsys.readouterr().out


@pytest.mark.parametrize("row", ["live teacher in int8", "Theseus, rate 0.5"])
def test_steps(row, monkeypatch, capsys):
    module = importlib.import_module("benchmarks.steps")
    monkeypatch.setattr(module, "compare_memory", lambda options: 1.0)
    results = run("steps", *STEPS, *MODELS, "--only", row)
    assert results.keys() == {row, "memory"}
    assert results[row] > 0


@pytest.mark.parametrize("side", ["trainer", "floor"])
def test_peak_memory_is_this_processs_own(side, capsys):
    assert run("steps", *STEPS, *MODELS, "--memory_of", side)["peak"] > 100
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) > 100


def test_overhead(capsys):
    results = run("overhead", *STEPS, *MODELS, "--warmup", "1")
    assert len(results) == 8


def test_cache_building(capsys):
    assert run("cache_building", *MODELS, "--rows", "12", "--batch_size", "4", "--repeats", "1") > 0


def test_ladder(capsys):
    sizes = ("--rows", "8", "--batch_size", "4", "--epochs", "1", "--depths", "2,1")
    assert run("ladder", *MODELS, *sizes) > 0
    assert "bare: pass" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("trainer", ["distillation", "theseus"])
def test_processes(trainer, capsys):
    efficiencies = run("processes", *STEPS, *MODELS, "--trainers", trainer)
    assert list(efficiencies) == [trainer]
    assert efficiencies[trainer] > 0


def test_all_together(capsys):
    sizes = ("--rows", "24", "--batch_size", "4", "--repeats", "1", "--bf16", "no")
    assert run("all_together", *MODELS, *sizes)["whole"] > 0


def test_profile_agrees(capsys):
    sizes = ("--teacher_layers", "3", "--hidden_size", "64", "--depths", "2,1", "--length", "8")
    results = run("profile_agrees", *sizes, "--batch_sizes", "2", "--repeats", "1", "--rounds", "6")
    assert list(results) == [(0, 2, "2"), (0, 2, "1")]
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert all(
        ("DISAGREE" in line) != results[key] for line, key in zip(lines, results, strict=True)
    )


@pytest.mark.parametrize(("ratio", "status"), [(0.0, 0), (1e6, 1)])
def test_a_disagreement_is_the_status_of_the_script(ratio, status, monkeypatch, capsys):
    """With intervals that hold every ratio, or that no bare loop can meet."""

    def measured(*arguments, **options):
        profile = profile_models(*arguments, **options)
        speedup = Speedup(1.0, ratio, 1e9, 0.95, 6)
        models = [
            replace(model, cells=tuple(replace(cell, speedup=speedup) for cell in model.cells))
            for model in profile.models
        ]
        return replace(profile, models=tuple(models))

    profile_models = profile.profile_models
    monkeypatch.setattr(profile, "profile_models", measured)
    sizes = ("--teacher_layers", "2", "--hidden_size", "64", "--depths", "1", "--length", "8")
    quick = ("--batch_sizes", "2", "--repeats", "1", "--rounds", "6")
    monkeypatch.setattr("sys.argv", ["profile_agrees", *sizes, *quick])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "benchmarks" / "profile_agrees.py"), run_name="__main__")
    assert stopped.value.code == status
    assert ("DISAGREE" in capsys.readouterr().out) == bool(status)


@pytest.mark.slow
def test_the_profile_finds_the_speed_ups_that_a_bare_loop_finds(capsys):
    """In most repeats: one of them may have been disturbed between the two."""
    sizes = ("--teacher_layers", "12", "--hidden_size", "256", "--depths", "6,3", "--length", "32")
    results = run("profile_agrees", *sizes, "--batch_sizes", "4", "--repeats", "3")
    for depth in ("6", "3"):
        agreed = [agrees for (_, _, name), agrees in results.items() if name == depth]
        assert len(agreed) == 3
        assert sum(agreed) >= 2, capsys.readouterr().out


def test_ratios_agree_where_their_intervals_meet():
    module = importlib.import_module("benchmarks.profile_agrees")
    found = module.rank_interval([float(n) for n in range(1, 31)])
    assert (found.low, found.value, found.high) == (10, 15.5, 21)
    for low, high, meets in ((21, 30, True), (22, 30, False), (1, 9, False), (12, 13, True)):
        other = module.Ratio(low, low, high)
        assert found.meets(other) == other.meets(found) == meets


def test_a_trainer_and_its_floor_take_the_same_steps(tmp_path):
    """Else the ratios compare two methods: without dropout the weights end up the same."""
    floors, steps = (importlib.import_module(f"benchmarks.{n}") for n in ("floors", "steps"))
    options = steps.parse([*STEPS, *MODELS])
    for name in ("live teacher", "Theseus, rate 0.5", "Theseus, rate 0.3, skipped blocks rest"):
        torch.manual_seed(0)
        models = steps.build_models(options)
        for module in (part for model in models for part in model.modules()):
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        copies = copy.deepcopy(models)
        rows = steps.build_rows(options)
        trainer = steps.build_trainer(name, models, rows, options, tmp_path)
        trainer.args.lr_scheduler_type = "constant"
        trainer.train()
        floor = steps.build_floor(name, copies, rows, options)
        for _ in range(options.steps + steps.WARMUP):
            floor()
        ours = trainer.student.bert.encoder.layer.state_dict()
        theirs = copies[0].bert.encoder.layer.state_dict()
        far = max(float((ours[k] - theirs[k]).abs().max()) for k in ours)
        assert far < floors.LEARNING_RATE / 10, name


def test_turns_are_begun_by_every_variant():
    turns = importlib.import_module("benchmarks.interleave").in_turns("abc", 3)
    assert list(turns) == [*"abc", *"bca", *"cab"]


def test_the_spread_is_median_and_quartiles():
    spread = importlib.import_module("benchmarks.interleave").Spread.of(np.arange(101))
    assert (spread.low, spread.median, spread.high) == (25, 50, 75)


def test_the_parts_of_kdnlp_against_each_other(capsys):
    assert len(run("cached_teacher", *STEPS, *MODELS, "--warmup", "1", "--max_length", "8")) == 3
    small = ("--layers", "1", "--hidden_size", "64", "--batches", "2")
    assert len(run("unpadded", *small, "--batch_size", "2", "--repeats", "1")) == 8
    assert len(run("cache_storage", "--rows", "64", "--batch_size", "4", "--repeats", "2")) == 4
