import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdnlp.schedules import NUM_STAIRS, SCHEDULES, anti, build_schedule

NAMES = list(SCHEDULES)
RISING = ["linear", "cosine", "step"]
GRID = [n / 1000 for n in range(1001)]
RAMPS = [(0.3, 1.0), (0.0, 1.0), (5.0, 1.0), (2.0, 2.0)]

unit = st.floats(0.0, 1.0)
value = st.floats(-1e3, 1e3)
fraction = st.floats(0.01, 1.0)


@pytest.mark.parametrize(("start", "end"), RAMPS)
@pytest.mark.parametrize("name", RISING)
def test_a_ramp_starts_and_ends_where_it_was_told(name, start, end):
    schedule = build_schedule(name, start, end)
    assert schedule(0.0) == start
    assert schedule(1.0) == end


def test_the_middle_of_each_curve_is_its_closed_form():
    middle = {name: build_schedule(name, 1.0, 5.0)(0.25) for name in NAMES}
    assert middle == {
        "constant": 1.0,
        "linear": 2.0,
        "cosine": pytest.approx(1 + 4 * math.sin(math.pi / 8) ** 2),
        "step": 2.0,
        "anti": 3.0,
    }


@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.001])
@pytest.mark.parametrize(("start", "end"), RAMPS)
@pytest.mark.parametrize("name", ["constant", *RISING])
def test_a_ramp_never_turns_back(name, start, end, fraction):
    schedule = build_schedule(name, start, end, fraction)
    steps = np.diff([schedule(progress) for progress in GRID]) * np.sign(end - start)
    assert steps.min() >= 0


def test_stairs_are_four_equally_wide_and_high():
    values = [build_schedule("step", 0.0, 1.0)(progress) for progress in GRID[:-1]]
    heights, widths = np.unique(values, return_counts=True)
    assert heights.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert widths.tolist() == [1000 // NUM_STAIRS] * NUM_STAIRS


def test_a_cosine_is_slow_at_both_ends():
    values = np.array([build_schedule("cosine", 0.0, 1.0)(progress) for progress in GRID])
    np.testing.assert_allclose(values, (1 - np.cos(np.pi * np.array(GRID))) / 2, atol=1e-12)
    np.testing.assert_allclose(values + values[::-1], 1.0, atol=1e-12)
    steps = np.diff(values)
    assert steps.argmax() in (499, 500)
    assert max(steps[0], steps[-1]) < steps.max() / 500


# Xu et al. 2020, eq. 6: p_d(t) = min(1, k t + b). The ramp ends at step N = (1 - b) / k.
@pytest.mark.parametrize("base", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("ramp_steps", [1, 100, 333, 600, 1000])
def test_the_linear_ramp_is_the_papers_at_every_step(base, ramp_steps):
    schedule = build_schedule("linear", base, 1.0, ramp_steps / 1000)
    k = (1 - base) / ramp_steps
    for step in range(1001):
        rate = schedule(step / 1000)
        assert rate == pytest.approx(min(1.0, k * step + base), abs=1e-12)
        assert rate <= 1.0
        assert (rate == 1.0) == (step >= ramp_steps or base == 1.0)


@pytest.mark.parametrize("base", [0.1, 0.3])
def test_the_anti_curriculum_is_one_minus_the_papers_ramp(base):
    linear = build_schedule("linear", base, 1.0, 0.6)
    schedule = build_schedule("anti", base, 1.0, 0.6)
    for step in range(600):
        expected = 1 - linear(step / 1000)
        assert schedule(step / 1000) == pytest.approx(expected, abs=1e-12)
        assert schedule(step / 1000) == pytest.approx(1 - min(1, (1 - base) / 600 * step + base))
    assert {schedule(step / 1000) for step in range(600, 1001)} == {1.0}


@pytest.mark.parametrize("name", NAMES)
def test_from_the_fraction_on_the_value_is_the_end_whatever_came_before(name):
    for fraction in (0.001, 0.25, 0.6, 0.999):
        schedule = build_schedule(name, 0.3, 1.0, fraction)
        assert {schedule(progress) for progress in GRID if progress >= fraction} == {1.0}
        assert schedule(fraction) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_fraction_squeezes_the_curve_and_does_not_cut_it(name):
    whole, squeezed = build_schedule(name, 0.3, 1.0), build_schedule(name, 0.3, 1.0, 0.5)
    for progress in GRID[:-1]:
        assert squeezed(progress / 2) == whole(progress)


def test_over_the_whole_run_a_constant_stays_and_anti_ends_at_zero():
    assert {build_schedule("constant", 0.3, 1.0)(progress) for progress in GRID} == {0.3}
    assert build_schedule("anti", 0.3, 1.0)(1.0) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_and_another_process_see_the_same_value(name):
    schedule = build_schedule(name, 0.3, 1.0, 0.7)
    forwards = [schedule(progress) for progress in GRID]
    again = pickle.loads(pickle.dumps(schedule))
    assert [again(progress) for progress in reversed(GRID)] == forwards[::-1]


@given(st.sampled_from(["constant", *RISING]), value, value, fraction, unit)
def test_a_value_never_leaves_the_interval_between_start_and_end(name, start, end, part, progress):
    got = build_schedule(name, start, end, part)(progress)
    slack = 1e-12 * max(abs(start), abs(end))
    assert min(start, end) - slack <= got <= max(start, end) + slack


@given(st.sampled_from(NAMES), unit, fraction, unit)
def test_a_replacing_rate_is_a_probability_to_the_last_bit(name, start, part, progress):
    assert 0.0 <= build_schedule(name, start, 1.0, part)(progress) <= 1.0


@given(st.sampled_from(["constant", *RISING]), st.floats(0.0, 1e3), st.floats(0.0, 1e3), unit)
def test_a_loss_weight_never_turns_negative(name, start, end, progress):
    assert build_schedule(name, start, end)(progress) >= 0.0


@given(value, value, unit)
def test_anti_mirrors_linear(start, end, progress):
    mirrored = anti(progress, start, end) + SCHEDULES["linear"](progress, start, end)
    assert mirrored == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize("name", ["Linear", "exponential", ""])
def test_an_unknown_schedule_is_refused_with_the_choice(name):
    with pytest.raises(ValueError, match="constant, linear, cosine, step, anti"):
        build_schedule(name, 0.0, 1.0)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, 60, float("nan")])
def test_a_ramp_that_jumps_at_once_or_never_arrives_is_refused(fraction):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got"):
        build_schedule("linear", 0.0, 1.0, fraction)


@pytest.mark.parametrize("progress", [-0.001, 1.001, 7, float("nan")])
@pytest.mark.parametrize("name", NAMES)
def test_progress_counted_in_steps_is_refused(name, progress):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got"):
        build_schedule(name, 0.0, 1.0, 0.5)(progress)
