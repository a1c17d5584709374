"""The plots show the report's own numbers, and there is none without data."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_report import account, small_report

from kdnlp.evaluation.palette import COLOURS, ROLES
from kdnlp.evaluation.plots import (
    FRONT,
    PLOTS,
    draw_module_times,
    draw_scores,
    drawable,
    save_plots,
)
from kdnlp.profiling.parts import PART_NAMES

RATES = (
    {"replacing_rate": 0.5, "replaced_fraction": 0.25},
    {"replacing_rate": 1.0, "replaced_fraction": 1.0},
)
HISTORY = (
    {"step": 10, "loss": 0.9, "loss_task": 1.0, "loss_logits": 0.8, **RATES[0]},
    {"step": 15, "eval_score": 0.6, "eval_loss": 0.7},
    {"step": 20, "loss": 0.5, "loss_task": 0.6, "loss_logits": 0.4, **RATES[1]},
    {"step": 20, "train_loss": 0.7},
)
PARTS = {
    "predecessor": {"embeddings": 1.0, "attention": 4.0, "feed-forward": 5.0},
    "successor": {"embeddings": 1.0, "attention": 2.0, "launch overhead": 0.5},
}


def drawn(name, **changes):
    return PLOTS[name].draw(small_report(**changes))


def lines_of(panel):
    return {line.get_label(): np.array(line.get_xydata()) for line in panel.get_lines()}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["report"]),
        ({"history": HISTORY[:2]}, ["report"]),  # one point is no course
        ({"history": HISTORY}, ["report", "training"]),
        ({"module_ms": PARTS}, ["report", "module_time"]),
    ],
)
def test_what_has_no_data_is_not_drawn(changes, names):
    assert list(drawable(small_report(**changes))) == names


def test_plots_of_an_earlier_report_do_not_stay(tmp_path):
    save_plots(small_report(history=HISTORY), tmp_path)
    both = {f"{name}.{suffix}" for name in ("report", "training") for suffix in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == both
    before = (tmp_path / "report.svg").read_bytes()
    save_plots(small_report(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.png", "report.svg"}
    assert (tmp_path / "report.svg").read_bytes() == before  # drawn again, the same file
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.width == 1400  # twice the width of a model card
    assert b"<svg" in before


def test_losses_rate_and_scores_are_those_of_the_log():
    top, bottom = drawn("training", history=HISTORY).axes
    losses, shares = lines_of(top), lines_of(bottom)
    assert losses["weighted sum"].tolist() == [[10, 0.9], [20, 0.5]]
    assert losses["part: task"].tolist() == [[10, 1.0], [20, 0.6]]
    assert losses["part: logits"].tolist() == [[10, 0.8], [20, 0.4]]
    assert shares["replacing rate"].tolist() == [[10, 50], [20, 100]]
    assert shares["blocks replaced, mean since the last log"].tolist() == [[10, 25], [20, 100]]
    assert shares["score on the eval split"].tolist() == [[15, 60]]
    assert (bottom.get_xlabel(), bottom.get_ylabel()) == ("optimizer step", "%")


def test_the_rate_is_a_ramp_between_what_was_logged_and_steps_are_whole():
    bottom = drawn("training", history=HISTORY).axes[1]
    styles = {line.get_label(): line.get_drawstyle() for line in bottom.get_lines()}
    assert set(styles.values()) == {"default"}
    few = [{"step": s, "loss": 1.0, "replacing_rate": s / 3} for s in (1, 2, 3)]
    ticks = drawn("training", history=tuple(few)).axes[-1].get_xticks()
    assert [tick for tick in ticks if tick != round(tick)] == []


def test_a_model_looks_alike_in_every_picture():
    models = small_report().models

    def look(line):
        return line.get_color(), line.get_marker()

    points = drawn("report", models=models).axes[0].get_lines()
    successor = look(points[1])
    assert successor == ROLES["made"]
    lines = {line.get_label(): line for line in drawn("training", history=HISTORY).axes[1].lines}
    assert look(lines["score on the eval split"]) == successor
    backwards = draw_scores({"ms": [1, 2]}, [1, 2], ["successor (theseus)", "predecessor"], "%")
    assert look(backwards.axes[0].get_lines()[0]) == successor


def test_a_part_looks_alike_whatever_others_there_are():
    def colours(parts):
        panel = draw_module_times({"m": dict.fromkeys(parts, 1.0)}).axes[0]
        return dict(zip(parts, (bar.get_facecolor() for bar in panel.patches), strict=True))

    every = colours(PART_NAMES)
    assert colours(["feed_forward", "overhead"]) == {
        part: every[part] for part in ("feed_forward", "overhead")
    }


def test_the_legend_of_one_model_names_no_line():
    figure = drawn("report", models=(account("model", 0.8, 10.0),))
    assert [text.get_text() for text in figure.legends[0].texts] == ["model"]
    assert FRONT not in lines_of(figure.axes[0])


def test_a_single_loss_is_drawn_once_and_no_panel_is_empty():
    entries = [{"step": s, "loss": 1.0 / s, "loss_task": 1.0 / s} for s in (1, 2, 3)]
    (panel,) = drawn("training", history=tuple(entries)).axes
    assert len(panel.get_lines()) == 1


def test_losses_of_several_magnitudes_have_a_logarithmic_axis():
    entries = [{"step": s, "loss": 100.0**-s} for s in (1, 2)]
    (panel,) = drawn("training", history=tuple(entries)).axes
    assert panel.get_yscale() == "log"
    assert drawn("training", history=HISTORY).axes[0].get_yscale() == "linear"


def test_points_and_front_are_those_of_the_models():
    models = (
        account("teacher", 0.8, 10.0),
        account("slow and bad", 0.6, 6.0, 60, 3),
        account("small", 0.7, 4.0, 50, 2),
    )
    first, second = drawn("report", models=models).axes
    lines = lines_of(first)
    assert lines["none better for its cost"].tolist() == [[4, 70], [10, 80]]
    points = [
        line.get_xydata()[0].tolist() for line in first.get_lines() if len(line.get_xydata()) == 1
    ]
    assert points == [pytest.approx(p) for p in ([10, 80], [6, 60], [4, 70])]
    assert first.get_xlabel() == "median latency, ms, batch 1"
    assert second.get_xlabel() == "median latency, ms, batch 32"
    assert first.get_ylabel() == "mean of f1 and accuracy, %"


def test_the_front_is_no_longer_for_noise_between_two_equal_models():
    models = (account("teacher", 0.8, 10.0), account("a", 0.7, 1.0, 50), account("b", 0.7, 4.0, 50))
    panel = drawn("report", models=models).axes[0]
    assert lines_of(panel)[FRONT].tolist() == [[4, 70], [10, 80]]


def test_bars_are_stacked_and_a_part_that_a_model_lacks_takes_no_time():
    figure = draw_module_times(PARTS)
    ends = {}
    for bar in figure.axes[0].patches:
        ends[bar.get_y()] = max(ends.get(bar.get_y(), 0), bar.get_x() + bar.get_width())
    assert list(ends.values()) == pytest.approx([10.0, 3.5])
    assert {text.get_text() for text in figure.axes[0].texts} == {"10.0", "3.5"}
    assert "ms" in figure.axes[0].get_xlabel()


def test_one_model_without_any_spread_is_drawn_without_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = small_report(models=(account("model", 0.0, 10.0),))
        save_plots(replace(report, module_ms={"model": {"all": 0.0}}), tmp_path)
    assert (tmp_path / "module_time.png").stat().st_size > 1000


def test_a_legend_of_long_names_is_inside_the_picture(tmp_path):
    names = [
        f"student (distillation); a_setting={i}; another_long_setting=$value$" for i in range(4)
    ]
    figure = draw_scores({"ms": [1.0, 2.0, 3.0, 4.0]}, [1, 2, 3, 4], names, "%")
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert box.y0 >= 0
    assert figure.axes[0].get_window_extent().height > 0.4 * figure.bbox.height
    assert [text.get_text() for text in figure.legends[0].texts] == [*names, FRONT]


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_every_colour_stands_out_from_the_page():
    assert len(set(COLOURS)) == len(COLOURS)
    assert min(1.05 / (luminance(colour) + 0.05) for colour in COLOURS) > 2
