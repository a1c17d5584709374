"""The Pareto front is what no other model beats, and the table and the plot say the same."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_report import account, small_report

from kdnlp.evaluation.pareto import (
    PARETO_MARKDOWN,
    PARETO_PLOT,
    cost_axes,
    fronts_of,
    latency_ranges,
    pareto_front,
    pareto_rows,
    save_pareto,
)
from kdnlp.evaluation.plots import PLOTS
from kdnlp.profiling.speedup import Speedup


def by_definition(costs, scores):
    """The front by its definition, in numpy."""
    points = np.array(list(zip(costs, scores, strict=True)))
    kept = []
    for i, (cost, score) in enumerate(points):
        no_worse = (points[:, 0] <= cost) & (points[:, 1] >= score)
        better = (points[:, 0] < cost) | (points[:, 1] > score)
        if not (no_worse & better).any():
            kept.append(i)
    return sorted(kept, key=lambda i: costs[i])


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_the_one_of_the_definition(seed):
    generator = np.random.default_rng(seed)
    costs = generator.integers(1, 8, 12).astype(float).tolist()
    scores = (generator.integers(1, 8, 12) / 10).tolist()
    assert pareto_front(costs, scores) == by_definition(costs, scores)


def test_two_equal_models_are_both_worth_having():
    assert pareto_front([1.0, 1.0, 2.0], [0.5, 0.5, 0.5]) == [0, 1]


def sped_up(model, *bounds):
    """The model, with the interval of its speed-up at each batch size."""
    rows = zip(model.latency, bounds, strict=True)
    speedups = [replace(row, speedup=Speedup(sum(b) / 2, *b, 0.95, 30)) for row, b in rows]
    return replace(model, latency=tuple(speedups))


def test_noise_gives_a_worse_model_of_the_same_build_no_place_on_the_front():
    teacher = account("teacher", 0.8, 10.0)
    student, baseline = account("student", 0.7, 5.1, 50, 2), account("baseline", 0.6, 5.0, 50, 2)
    fronts = fronts_of(small_report(models=(teacher, student, baseline)))
    assert fronts["median latency, ms, batch 1"] == [1, 0]
    assert fronts["GFLOPs / example"] == [1, 0]
    # Of another size, it is worth having by its latency.
    smaller = replace(baseline, parameters=49)
    fronts = fronts_of(small_report(models=(teacher, student, smaller)))
    assert fronts["median latency, ms, batch 1"] == [2, 1, 0]


def test_latencies_whose_intervals_overlap_are_one_cost():
    teacher = account("teacher", 0.8, 10.0)
    student = sped_up(account("student", 0.7, 5.1, 50, 2), (1.8, 2.1), (1.8, 1.9))
    other = sped_up(account("other", 0.6, 5.0, 60, 2), (1.9, 2.2), (2.0, 2.2))
    fronts = fronts_of(small_report(models=(teacher, student, other)))
    assert fronts["median latency, ms, batch 1"] == [1, 0]
    assert fronts["median latency, ms, batch 32"] == [2, 1, 0]
    noise = sped_up(student, (0.9, 2.1), (1.8, 1.9))
    fronts = fronts_of(small_report(models=(teacher, noise)))
    assert fronts["median latency, ms, batch 1"] == [0]
    assert fronts["median latency, ms, batch 32"] == [1, 0]


def test_how_far_noise_may_move_a_latency_is_drawn_beside_it():
    teacher = account("teacher", 0.8, 10.0)
    student = sped_up(account("student", 0.7, 5.0, 50, 2), (1.0, 2.5), (1.6, 2.0))
    report = small_report(models=(teacher, student))
    ranges = latency_ranges(report)
    assert ranges["median latency, ms, batch 1"] == [None, (4.0, 10.0)]
    assert ranges["median latency, ms, batch 32"] == [None, (160.0, 200.0)]
    bars = [c for c in PLOTS["report"].draw(report).axes[0].collections if len(c.get_paths())]
    assert [bar.get_paths()[0].vertices[:, 0].tolist() for bar in bars] == [[4.0, 10.0]]


def ladder_report():
    """A report in which the middle student is slower and worse than the small one."""
    rungs = (
        account("teacher", 0.8, 10.0, 100, 6),
        account("3 layers", 0.6, 6.0, 60, 3),
        account("2 layers", 0.7, 4.0, 50, 2),
    )
    return small_report(models=rungs)


def test_the_table_says_by_which_costs_a_model_is_worth_having():
    rows = {cells[0]: cells for cells in pareto_rows(ladder_report())}
    assert rows["teacher"][-1] == "by all"
    assert rows["2 layers"][-1] == "by all"
    assert rows["3 layers"][-1] == "no"
    assert rows["2 layers"][1:4] == ("2", "70.0", "4.0")


def test_a_model_that_is_small_but_slow_is_worth_having_by_its_size_alone():
    slow = account("slow", 0.6, 12.0, 10, 2)
    rows = pareto_rows(small_report(models=(account("teacher", 0.8, 10.0, 100, 6), slow)))
    assert rows[1][-1] == "size, GFLOPs / example"


def test_every_cost_is_the_models_own():
    report = ladder_report()
    costs = {label: cost(report["2 layers"]) for label, cost in cost_axes(report).items()}
    assert costs == {
        "median latency, ms, batch 1": 4.0,
        "median latency, ms, batch 32": 128.0,
        "size, MB": 5.0,
        "GFLOPs / example": 50_000 / 1e9,
    }


def test_table_and_plot_are_written_whole(tmp_path):
    save_pareto(ladder_report(), tmp_path / "out")
    names = {PARETO_MARKDOWN, PARETO_PLOT, "pareto.svg"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    text = (tmp_path / "out" / PARETO_MARKDOWN).read_text()
    assert "| 3 layers | 3 | 60.0 | 6.0 | 6.0 | 0.00 | no |" in text
    with Image.open(tmp_path / "out" / PARETO_PLOT) as image:
        assert image.width == 1400  # twice a model card's 700 pixels
        assert image.width / 1.6 < image.height < image.width
