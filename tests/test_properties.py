"""Whatever the numbers: a `ValueError` before training, or a run that is exact."""

import gc
import math
from itertools import accumulate

import hypothesis
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from settings import TRAINER_ROWS, build_trainer, tiny_dataset

from kdnlp.arguments import TheseusTrainingArguments
from kdnlp.arguments.values import parse_slot_sizes, parse_weights
from kdnlp.losses.layer_map import resolve_layer_map
from kdnlp.models.theseus import draw_replaced, resolve_slot_sizes
from kdnlp.schedules import SCHEDULES

any_float = st.floats() | st.floats(0.0, 1.0) | st.sampled_from([0.0, 1.0, -0.0, 1e-300, 1e300])
schedules = st.sampled_from([*SCHEDULES, "cubic"])
few = st.integers(0, 13)
calm = hypothesis.settings(deadline=None)


# Arguments: refused, or every value of the run is in its range.


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": any_float,
            "final_temperature": any_float,
            "temperature_schedule": schedules,
            "loss_weights": st.dictionaries(st.sampled_from(["task", "logits", "x"]), any_float),
            "final_loss_weights": st.dictionaries(st.sampled_from(["task", "logits"]), any_float),
            "loss_weights_schedule": schedules,
            "replacing_schedule": schedules,
            "initial_replacing_rate": any_float,
            "replacing_fraction": any_float,
            "allow_incomplete_replacement": st.booleans(),
        },
    ),
    st.lists(st.floats(0.0, 1.0), max_size=5),
)
@calm
def test_any_arguments_are_refused_or_stay_in_range_for_the_whole_run(values, points):
    args = BLANK
    for name in OWN:
        setattr(args, name, values.get(name, OWN[name]))
    try:
        args.check()
        args.check_loss_names(["task", "logits"])
    except ValueError:
        return
    ends = args.temperature, args.final_temperature or args.temperature
    start = args.loss_weights or {"task": 0.5, "logits": 0.5}
    end = args.final_loss_weights or start
    for progress in [0.0, *points, 1.0]:
        assert min(ends) <= args.temperature_at(progress) <= max(ends)
        assert args.temperature_at(progress) > 0
        assert 0.0 <= args.replacing_rate_at(progress) <= 1.0
        for name, weight in args.loss_weights_at(progress, ["task", "logits"]).items():
            between = sorted((start.get(name, 0.0), end.get(name, 0.0)))
            assert between[0] <= weight <= between[1]
    assert (args.temperature_at(0.0), args.temperature_at(1.0)) == ends
    if not args.allow_incomplete_replacement:
        assert args.replacing_rate_at(1.0) == 1.0
    assert any(args.loss_weights_at(p, ["task", "logits"])[n] for p in (0, 1) for n in start)


OWN = {
    "temperature": 2.0,
    "final_temperature": None,
    "temperature_schedule": "linear",
    "loss_weights": None,
    "final_loss_weights": None,
    "loss_weights_schedule": "linear",
    "replacing_schedule": "linear",
    "initial_replacing_rate": 0.3,
    "replacing_fraction": 0.6,
    "allow_incomplete_replacement": False,
}
BLANK = TheseusTrainingArguments(output_dir="unused", use_cpu=True, report_to="none")


@given(st.dictionaries(st.text("abc_", min_size=1), st.floats(0.0, 1e6)))
def test_weights_survive_being_written_as_text(weights):
    assume(weights)
    text = ",".join(f"{name}={weight!r}" for name, weight in weights.items())
    assert parse_weights(text, "loss_weights") == weights


@given(st.lists(st.integers(1, 9), min_size=1))
def test_slot_sizes_survive_being_written_as_text(sizes):
    assert parse_slot_sizes(",".join(map(str, sizes))) == parse_slot_sizes(str(sizes)) == sizes


# Slots, draws and layer maps.


@given(few, few, st.none() | st.lists(few, max_size=6))
def test_slots_are_refused_or_cover_every_block_once(theirs, ours, sizes):
    try:
        slots = resolve_slot_sizes(theirs, ours, sizes)
    except ValueError:
        return
    assert (len(slots), sum(slots), min(slots) >= 1) == (ours, theirs, True)
    if sizes is None:
        assert slots == sorted(slots)
        assert max(slots) - min(slots) <= 1
    ends = list(accumulate(slots))
    parts = [range(end - size, end) for end, size in zip(ends, slots, strict=True)]
    assert [block for part in parts for block in part] == list(range(theirs))


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.floats(0.0, 1.0), st.integers(1, 24))
def test_a_draw_is_one_answer_a_slot_and_the_same_for_all_who_ask(seed, step, rate, slots):
    drawn = draw_replaced(seed, step, rate, slots)
    assert draw_replaced(seed, step, rate, slots) == drawn
    assert len(drawn) == slots
    assert rate not in (0.0, 1.0) or set(drawn) == {bool(rate)}
    # A higher rate replaces what a lower one does, and more.
    more = draw_replaced(seed, step, min(1.0, rate + 0.25), slots)
    assert all(high or not low for low, high in zip(drawn, more, strict=True))


@given(
    st.sampled_from(["uniform", "skip", "last", "first"])
    | st.dictionaries(st.integers(-1, 13), st.integers(-1, 13), max_size=5),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 1),
)
def test_a_layer_map_is_refused_or_names_layers_that_exist(layer_map, ours, theirs, first):
    try:
        resolved = resolve_layer_map(layer_map, ours, theirs, first)
    except ValueError:
        return
    assert resolved
    assert all(first <= i <= ours and first <= j <= theirs for i, j in resolved.items())
    if isinstance(layer_map, str):
        taught = [resolved[layer] for layer in sorted(resolved)]
        assert taught == sorted(taught)
        assert layer_map != "uniform" or resolved[ours] == theirs


# Runs.

TRAINERS = ("distillation", "theseus-logits")
trainers = st.sampled_from(TRAINERS)


@st.composite
def shapes(draw):
    """A batch, how often it is accumulated, and rows of which some may have no label."""
    labels = draw(st.lists(st.sampled_from([-100, 0, 1]), min_size=1, max_size=9))
    hypothesis.assume(max(labels) >= 0)  # none that counts is refused
    return draw(st.integers(1, 4)), draw(st.integers(1, 3)), labels


def check_shape(folder, name, shape):
    """A run and its twin, of one batch a step, log the same finite numbers."""
    batch, accumulation, labels = shape
    rows = tiny_dataset(len(labels)).remove_columns("labels").add_column("labels", labels)
    logs = []
    for size, times in ((batch, accumulation), (batch * accumulation, 1)):
        trainer = build_trainer(
            TRAINER_ROWS[name],
            folder,
            trainer_options={"train_dataset": rows},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            max_steps=2,
            overwrite_output_dir=True,
            **({} if name == "distillation" else {"replacing_fraction": 0.5}),
        )
        trainer.train()
        keys = ("loss", "grad_norm", "loss_task", "loss_logits")
        logs.append([e[k] for k in keys for e in trainer.state.log_history if k in e])
    assert len(logs[0]) == 8
    assert all(map(math.isfinite, logs[0]))
    assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-6)


def check_numbers(folder, name, values):
    """Numbers of the arguments are refused before training, or train a finite model."""
    numbers = {k: v for k, v in values.items() if name != "distillation" or "replac" not in k}
    try:
        trainer = build_trainer(
            TRAINER_ROWS[name], folder, max_steps=2, overwrite_output_dir=True, **numbers
        )
        trainer.train()
    except ValueError:
        return
    logged = [value for entry in trainer.state.log_history for value in entry.values()]
    assert all(math.isfinite(value) for value in logged)
    assert all(tensor.isfinite().all() for tensor in trainer.student.state_dict().values())


numbers = st.fixed_dictionaries(
    {
        "temperature": any_float | st.floats(0.01, 100.0),
        "loss_weights": st.fixed_dictionaries(
            {"task": st.floats(0.0, 10.0), "logits": any_float | st.floats(0.0, 10.0)}
        ),
        "initial_replacing_rate": st.floats(0.0, 1.0),
        "replacing_fraction": st.floats(0.01, 1.0),
        "replacing_schedule": schedules,
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Accelerate collects garbage before each run; what is there already takes most of its time.
    gc.freeze()
    yield tmp_path_factory.mktemp("runs")
    gc.unfreeze()


@given(name=trainers, shape=shapes())
@hypothesis.settings(calm, max_examples=10)
def test_any_shape_of_the_batch_trains_what_its_twin_trains(folder, name, shape):
    check_shape(folder, name, shape)


@given(name=trainers, values=numbers)
@hypothesis.settings(calm, max_examples=10)
def test_any_numbers_are_refused_or_train_a_finite_model(folder, name, values):
    check_numbers(folder, name, values)


@pytest.mark.slow
@given(name=trainers, shape=shapes())
@hypothesis.settings(calm, max_examples=200)
def test_many_shapes_of_the_batch_train_what_their_twins_train(folder, name, shape):
    check_shape(folder, name, shape)


@pytest.mark.slow
@given(name=trainers, values=numbers)
@hypothesis.settings(calm, max_examples=200)
def test_many_numbers_are_refused_or_train_a_finite_model(folder, name, values):
    check_numbers(folder, name, values)
