import copy
import dataclasses
import json
import pickle

import pytest
from settings import CHECKPOINTING
from transformers import HfArgumentParser, TrainingArguments
from whole_checkpoint import write_checkpoint

from kdnlp.arguments import (
    CompressionTrainingArguments,
    DistillationTrainingArguments,
    TheseusTrainingArguments,
)
from kdnlp.arguments.paths import check_below
from kdnlp.arguments.values import parse_slot_sizes, parse_weights
from kdnlp.cli.options import LadderTrainingArguments

CLASSES = [CompressionTrainingArguments, DistillationTrainingArguments, TheseusTrainingArguments]
NAMES = ["task", "logits"]
WEIGHTS = {"task": 0.25, "logits": 0.75}
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def distillation(tmp_path):
    return lambda **values: build(DistillationTrainingArguments, tmp_path, **values)


@pytest.fixture
def theseus(tmp_path):
    return lambda **values: build(TheseusTrainingArguments, tmp_path, **values)


def build(cls, folder, **values):
    return cls(output_dir=str(folder), use_cpu=True, report_to="none", **values)


REFUSED_BY_DISTILLATION = [
    ("temperature", 0.0, "temperature must be above 0 and finite, got 0"),
    ("temperature", -2.0, "temperature must be above 0 and finite, got -2"),
    ("temperature", NAN, "temperature must be above 0 and finite, got nan"),
    ("temperature", INF, "temperature must be above 0 and finite, got inf"),
    ("temperature", 1e-30, r"temperature must lie in \[0.0001, 10000\], got 1e-30"),
    ("final_temperature", 1e200, r"final_temperature must lie in .* rounding"),
    ("loss_weights", {"task": 1e300}, "the weight of 'task' must be at most 1e\\+06, got 1e"),
    ("final_temperature", 0.0, "final_temperature must be above 0 and finite, got 0"),
    ("final_temperature", NAN, "final_temperature must be above 0 and finite, got nan"),
    ("temperature_schedule", "exponential", "temperature_schedule must be one of constant"),
    ("temperature_schedule", "anti", "temperature_schedule must be one of .* got 'anti'"),
    ("loss_weights_schedule", "Linear", "loss_weights_schedule must be one of constant"),
    ("loss_weights_schedule", "anti", "loss_weights_schedule must be one of .* got 'anti'"),
    ("loss_weights", {"task": -0.1}, "the weight of 'task' must be finite and at least 0"),
    ("loss_weights", "task=1,logits=-1", "the weight of 'logits' must be finite and at least 0"),
    ("loss_weights", {"task": NAN}, "the weight of 'task' must be finite and .* got nan"),
    ("loss_weights", '{"task": Infinity}', "the weight of 'task' must be finite and .* got inf"),
    ("loss_weights", "task", "loss_weights must read like"),
    ("loss_weights", "task=0.5,", "loss_weights must read like"),
    ("loss_weights", "task:0.5", "loss_weights must read like"),
    ("loss_weights", "task=half", "loss_weights must read like"),
    ("loss_weights", "", "loss_weights must read like"),
    ("loss_weights", '{"task": 0.5', "loss_weights must read like"),
    ("loss_weights", {"task": None}, "loss_weights must read like"),
    ("loss_weights", ["task"], "loss_weights must read like"),
    ("loss_weights", 0.5, "loss_weights must read like"),
    ("final_loss_weights", {"task": 1.0}, "final_loss_weights needs loss_weights"),
    ("final_loss_weights", "task=-1", "final_loss_weights: the weight of 'task' must be"),
    ("final_loss_weights", "task", "final_loss_weights must read like"),
]
REFUSED_BY_THESEUS = [
    ("initial_replacing_rate", -0.1, r"initial_replacing_rate must lie in \[0, 1\], got -0.1"),
    ("initial_replacing_rate", 1.1, r"initial_replacing_rate must lie in \[0, 1\], got 1.1"),
    ("initial_replacing_rate", NAN, r"initial_replacing_rate must lie in \[0, 1\], got nan"),
    ("replacing_fraction", 0.0, r"replacing_fraction must lie in \(0, 1\], got 0"),
    ("replacing_fraction", -0.5, r"replacing_fraction must lie in \(0, 1\], got -0.5"),
    ("replacing_fraction", 60, r"replacing_fraction must lie in \(0, 1\], got 60"),
    ("replacing_fraction", NAN, r"replacing_fraction must lie in \(0, 1\], got nan"),
    ("replacing_fraction", 1.0, "never reaches a replacing rate of 1"),
    ("replacing_schedule", "curriculum", "replacing_schedule must be one of .*anti, got 'curric"),
    ("skipped_gradients", "drop", 'skipped_gradients must be "zero" or "none", got \'drop\''),
    ("skipped_gradients", None, 'skipped_gradients must be "zero" or "none", got None'),
    ("torch_compile", True, "Use compile_blocks=True instead"),
    ("slot_sizes", "1,1,0", "slot_sizes must be whole numbers of at least 1"),
    ("slot_sizes", [2, -1], "slot_sizes must be whole numbers of at least 1"),
    ("slot_sizes", [], "slot_sizes must be whole numbers of at least 1"),
    ("slot_sizes", "", "slot_sizes must read like 1,1,2,2"),
    ("slot_sizes", "2;2", "slot_sizes must read like 1,1,2,2"),
    ("slot_sizes", [1.5, 2], "slot_sizes must read like 1,1,2,2"),
    ("slot_sizes", "two", "slot_sizes must read like 1,1,2,2"),
]
REFUSED_BY_ALL = [
    ("learning_rate", -1.0, "learning_rate must be a number of at least 0, got -1"),
    ("learning_rate", NAN, "learning_rate must be a number of at least 0, got nan"),
    ("per_device_train_batch_size", 0, "per_device_train_batch_size must be .* at least 1, got 0"),
    ("per_device_eval_batch_size", -8, "per_device_eval_batch_size must be .* at least 1, got -8"),
    ("gradient_accumulation_steps", 0, "gradient_accumulation_steps must be .* at least 1, got 0"),
    ("num_train_epochs", 0.0, "num_train_epochs must be above 0, got 0"),
    ("weight_decay", INF, "weight_decay must be a number of at least 0, got inf"),
    ("seed", -1, "seed must be a number of at least 0, got -1"),
]
REFUSED = [
    *((CompressionTrainingArguments, *row) for row in REFUSED_BY_ALL),
    *((DistillationTrainingArguments, *row) for row in REFUSED_BY_DISTILLATION),
    *((TheseusTrainingArguments, *row) for row in REFUSED_BY_DISTILLATION + REFUSED_BY_THESEUS),
]


@pytest.mark.parametrize(("cls", "name", "value", "message"), REFUSED)
def test_a_value_that_would_train_wrongly_is_refused(cls, name, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(cls, tmp_path, **{name: value})


@pytest.mark.parametrize(("cls", "name", "value", "message"), REFUSED)
def test_a_value_that_a_search_sets_later_is_refused_too(cls, name, value, message, tmp_path):
    args = build(cls, tmp_path)
    args.check()
    setattr(args, name, value)
    with pytest.raises(ValueError, match=message):
        args.check()


def test_text_that_a_search_sets_later_is_parsed(theseus):
    args = theseus()
    args.loss_weights, args.slot_sizes = "task=0.25,logits=0.75", "1,3"
    args.check()
    assert (args.loss_weights, args.slot_sizes) == (WEIGHTS, [1, 3])


# Replacing rate.


def test_the_rate_is_the_papers_ramp_and_then_one(theseus):
    args = theseus(initial_replacing_rate=0.1, replacing_fraction=0.5)
    rates = [args.replacing_rate_at(step / 1000) for step in range(1001)]
    assert rates == pytest.approx([min(1, 0.9 / 500 * step + 0.1) for step in range(1001)])
    assert rates.index(1.0) == 500
    assert set(rates[500:]) == {1.0}


def test_the_default_ramp_leaves_a_second_stage(theseus):
    args = theseus()
    assert args.replacing_rate_at(0.0) == 0.3
    assert args.replacing_rate_at(0.599) < 1.0
    assert args.replacing_rate_at(0.6) == args.replacing_rate_at(1.0) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step", "anti"])
def test_a_rate_that_never_reaches_one_must_be_asked_for_by_name(schedule, theseus):
    values = {"replacing_schedule": schedule, "replacing_fraction": 1.0}
    with pytest.raises(ValueError, match="never reaches a replacing rate of 1"):
        theseus(**values)
    args = theseus(**values, allow_incomplete_replacement=True)
    assert args.replacing_rate_at(0.999) < 1.0


def test_always_replacing_is_plain_fine_tuning_and_allowed(theseus):
    args = theseus(initial_replacing_rate=1.0, replacing_fraction=1.0)
    assert {args.replacing_rate_at(progress) for progress in (0.0, 0.5, 1.0)} == {1.0}


@pytest.mark.parametrize("fraction", [0.6, 1.0])
def test_a_constant_rate_of_zero_trains_nothing_and_is_refused(fraction, theseus):
    values = {"initial_replacing_rate": 0.0, "replacing_fraction": fraction}
    with pytest.raises(ValueError, match="never uses a successor block"):
        theseus(
            replacing_schedule="constant", allow_incomplete_replacement=fraction == 1.0, **values
        )
    assert theseus(initial_replacing_rate=0.0).replacing_rate_at(0.3) == pytest.approx(0.5)


# Slots, checkpointing, compilation.


@pytest.mark.parametrize("value", ["1,1,2,2", " 1, 1,2 ,2 ", "[1, 1, 2, 2]", (1, 1, 2, 2)])
def test_slot_sizes_mean_the_same_as_text_and_as_numbers(value, theseus):
    assert theseus(slot_sizes=value).slot_sizes == [1, 1, 2, 2]
    assert parse_slot_sizes(value) == [1, 1, 2, 2]


def test_slot_sizes_keep_their_order_and_default_to_an_even_cut(theseus):
    assert theseus(slot_sizes="3,1").slot_sizes == [3, 1]
    assert theseus(slot_sizes="4").slot_sizes == [4]
    assert theseus().slot_sizes is None


@pytest.mark.parametrize("kwargs", [{"use_reentrant": True}, '{"use_reentrant": true}'])
def test_reentrant_checkpointing_would_train_no_first_block_and_is_refused(kwargs, theseus):
    with pytest.raises(ValueError, match="non-reentrant gradient checkpointing"):
        theseus(**{CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": kwargs})


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_reentrant_checkpointing_is_refused_under_its_old_name_too(theseus):
    with pytest.raises(ValueError, match="non-reentrant gradient checkpointing"):
        theseus(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})


def test_other_checkpointing_and_compiled_blocks_are_allowed(theseus, distillation):
    settings = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}}
    args = theseus(**settings, compile_blocks=True)
    assert getattr(args, CHECKPOINTING)
    assert args.compile_blocks
    assert distillation(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}})


# Loss weights and temperature.


@pytest.mark.parametrize(
    "value",
    [
        WEIGHTS,
        "task=0.25,logits=0.75",
        "logits=0.75, task=0.25",
        '{"task": 0.25, "logits": 0.75}',
        ' {"logits": 0.75, "task": 0.25}',
        {"task": "0.25", "logits": "0.75"},
    ],
)
def test_weights_mean_the_same_in_every_spelling(value, distillation):
    args = distillation(loss_weights=value, final_loss_weights=value)
    assert args.loss_weights == args.final_loss_weights == WEIGHTS
    assert parse_weights(value, "loss_weights") == WEIGHTS
    assert args.loss_weights_at(0.5, NAMES) == pytest.approx(WEIGHTS)


def test_weights_are_not_normalised_behind_the_users_back(distillation):
    args = distillation(loss_weights="task=1,logits=100")
    assert args.loss_weights_at(0.5, NAMES) == {"task": 1.0, "logits": 100.0}


@pytest.mark.parametrize("names", [["task"], NAMES, ["task", "logits", "hidden"]])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_weights_default_to_equal_shares_that_sum_to_one(names, progress, distillation):
    weights = distillation().loss_weights_at(progress, names)
    assert weights == dict.fromkeys(names, pytest.approx(1 / len(names)))
    assert list(weights) == names


def test_a_loss_that_is_left_out_weighs_nothing(distillation):
    args = distillation(loss_weights="logits=1")
    assert args.loss_weights_at(0.0, NAMES) == {"task": 0.0, "logits": 1.0}


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("linear", (0.0, 0.5, 0.75, 1.0)),
        ("cosine", (0.0, 0.5, 0.8535533905932737, 1.0)),
        ("step", (0.0, 0.5, 0.75, 1.0)),
    ],
)
def test_weights_move_to_their_final_values(schedule, values, distillation):
    args = distillation(
        loss_weights="task=0,logits=1",
        final_loss_weights="task=1",
        loss_weights_schedule=schedule,
    )
    for progress, value in zip((0.0, 0.5, 0.75, 1.0), values, strict=True):
        expected = {"task": value, "logits": 1 - value}
        assert args.loss_weights_at(progress, NAMES) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("linear", (8.0, 6.5, 5.0, 2.0)),
        ("cosine", (8.0, 7.121320343559642, 5.0, 2.0)),
        ("step", (8.0, 6.5, 5.0, 2.0)),
    ],
)
def test_the_temperature_moves_to_its_final_value(schedule, values, distillation):
    args = distillation(temperature=8.0, final_temperature=2.0, temperature_schedule=schedule)
    got = [args.temperature_at(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert got == pytest.approx(values)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_without_final_values_nothing_moves(schedule, distillation):
    args = distillation(
        temperature=3.0,
        loss_weights=WEIGHTS,
        temperature_schedule=schedule,
        loss_weights_schedule=schedule,
    )
    for progress in (0.0, 0.5, 1.0):
        assert args.temperature_at(progress) == 3.0
        assert args.loss_weights_at(progress, NAMES) == WEIGHTS
    assert distillation().temperature_at(1.0) == 2.0


@pytest.mark.parametrize("argument", ["loss_weights", "final_loss_weights"])
def test_a_weight_for_no_loss_is_not_ignored(argument, distillation):
    weights = {"loss_weights": WEIGHTS, argument: {**WEIGHTS, "hiden": 1.0}}
    args = distillation(**weights)
    with pytest.raises(ValueError, match=f"{argument} names hiden, but the losses .*task, logits"):
        args.check_loss_names(NAMES)
    args.check_loss_names([*NAMES, "hiden"])


@pytest.mark.parametrize("weights", ["task=0", {"task": 0, "logits": 0.0}])
def test_weights_of_zero_train_nothing_and_are_refused(weights, distillation):
    with pytest.raises(ValueError, match="no weight to any of task, logits"):
        distillation(loss_weights=weights).check_loss_names(NAMES)


def test_a_weight_at_either_end_is_enough(distillation):
    for values in ({"loss_weights": "task=1,logits=0"}, {"final_loss_weights": "task=1"}):
        distillation(**{"loss_weights": "logits=0", **values}).check_loss_names(NAMES)
    distillation().check_loss_names(NAMES)


def test_a_loss_without_a_weight_is_not_trained_on_as_if_it_had_one(distillation):
    args = distillation(loss_weights="task=0.5,logits=0.5")
    with pytest.raises(ValueError, match="no weight for patient, relation, got"):
        args.check_loss_names([*NAMES, "patient", "relation"])
    distillation(loss_weights="logits=1").check_loss_names(NAMES)


# Serialisation.

SET = {
    CompressionTrainingArguments: {
        "overwrite_output_dir": True,
        "learning_rate": 3e-5,
        "logging_nan_inf_filter": True,
        "unpadded": True,
    },
    DistillationTrainingArguments: {
        "temperature": 4.0,
        "final_temperature": 1.5,
        "temperature_schedule": "cosine",
        "loss_weights": "task=0.25,logits=0.75",
        "final_loss_weights": '{"logits": 2}',
        "loss_weights_schedule": "step",
        "loss_balancing": "uncertainty",
        "baseline_learning_rate": 2e-5,
        "shard_teacher": False,
        "teacher_precision": "bfloat16",
        "compile_teacher": True,
        "cache_teacher_outputs": True,
        "teacher_cache_dir": "teacher",
        "teacher_cache_limit_gb": 2.5,
        "teacher_cache_dtype": "bfloat16",
        "teacher_cache_top_k": 7,
    },
    TheseusTrainingArguments: {
        "shard_teacher": True,
        "loss_weights": "task=0.25,logits=0.75",
        "replacing_schedule": "anti",
        "initial_replacing_rate": 0.1,
        "replacing_fraction": 1.0,
        "allow_incomplete_replacement": True,
        "slot_sizes": "1,1,2,2",
        "skipped_gradients": "none",
        "predecessor_dropout": False,
        "unfreeze_after_replacement": True,
        "compile_blocks": True,
        CHECKPOINTING: True,
        f"{CHECKPOINTING}_kwargs": '{"use_reentrant": false}',
    },
}


def comparable(args):
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}


@pytest.mark.parametrize("cls", CLASSES)
def test_the_rows_here_set_every_field_of_the_class(cls):
    own = {f.name for f in dataclasses.fields(cls)} - {
        f.name for f in dataclasses.fields(cls.__mro__[1])
    }
    assert own <= set(SET[cls])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("through_json", [False, True])
def test_arguments_survive_the_card_and_the_checkpoint(cls, through_json, tmp_path):
    args = build(cls, tmp_path, **SET[cls])
    plain = json.loads(args.to_json_string()) if through_json else args.to_dict()
    rebuilt = cls(**plain)
    assert rebuilt.to_dict() == args.to_dict()
    for name in SET[cls]:
        assert getattr(rebuilt, name) == getattr(args, name)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_command_line_gives_the_same_arguments(cls, tmp_path):
    flags = {"output_dir": tmp_path, "use_cpu": True, "report_to": "none", **SET[cls]}
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    (parsed,) = HfArgumentParser(cls).parse_args_into_dataclasses(argv)
    assert type(parsed) is cls
    assert comparable(parsed) == comparable(build(cls, tmp_path, **SET[cls]))


@pytest.mark.parametrize("cls", CLASSES)
def test_flags_that_are_left_out_keep_the_defaults_of_python(cls, tmp_path):
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none"]
    (parsed,) = HfArgumentParser(cls).parse_args_into_dataclasses(argv)
    assert comparable(parsed) == comparable(build(cls, tmp_path))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_argument_explains_itself(cls):
    stock = {field.name for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(cls):
        assert field.name in stock or field.metadata["help"].endswith(".")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_baseline_has_the_same_budget_and_is_never_pushed(cls, tmp_path):
    pushed = {"push_to_hub": True, "hub_model_id": "me/successor", "max_steps": 70, "seed": 5}
    args = build(cls, tmp_path, **SET[cls], **pushed)
    baseline = args.for_baseline(str(tmp_path / "baseline"))
    assert type(baseline) is CompressionTrainingArguments
    ours, theirs = args.to_dict(), baseline.to_dict()
    differ = {name for name in theirs if theirs[name] != ours[name]}
    rate = SET[cls].get("baseline_learning_rate")
    assert ("learning_rate" in differ) == (rate is not None)
    assert baseline.learning_rate == (rate or args.learning_rate)
    differ -= {"learning_rate"}
    assert differ - {"overwrite_output_dir"} == {"output_dir", "push_to_hub", "hub_model_id"}
    assert (baseline.push_to_hub, baseline.hub_model_id) == (False, None)
    assert baseline.output_dir == str(tmp_path / "baseline")
    assert (args.push_to_hub, args.output_dir) == (True, str(tmp_path))


# Resuming.


@pytest.fixture
def killed_run(tmp_path):
    for step in (2, 10, 9):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    return tmp_path


@pytest.mark.parametrize("wish", ["last", "Last", "true", "True"])
def test_the_newest_checkpoint_is_the_one_of_the_highest_step(wish, killed_run):
    args = build(CompressionTrainingArguments, killed_run, resume_from_checkpoint=wish)
    assert args.checkpoint_to_resume() == str(killed_run / "checkpoint-10")


def test_a_checkpoint_that_was_being_written_when_the_run_was_killed_is_passed_over(killed_run):
    (killed_run / "checkpoint-12").mkdir()
    (killed_run / "checkpoint-12" / "config.json").touch()
    args = build(CompressionTrainingArguments, killed_run, resume_from_checkpoint="last")
    assert args.checkpoint_to_resume() == str(killed_run / "checkpoint-10")


@pytest.mark.parametrize("folder", [".", "not there"])
def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(folder, tmp_path):
    args = build(CompressionTrainingArguments, tmp_path / folder, resume_from_checkpoint="last")
    assert args.checkpoint_to_resume() is None


@pytest.mark.parametrize(
    ("wish", "parts"), [("last", "last"), ("LAST_whole", "last_whole"), ("a/checkpoint-3", "last")]
)
def test_the_parts_of_a_run_pass_over_damaged_checkpoints_where_it_may(wish, parts, tmp_path):
    args = build(CompressionTrainingArguments, tmp_path, resume_from_checkpoint=wish)
    assert args.newest_checkpoint_wish() == parts


@pytest.mark.parametrize("wish", [None, "false", "False"])
def test_a_run_that_was_not_asked_to_resume_does_not(wish, killed_run):
    args = build(CompressionTrainingArguments, killed_run, resume_from_checkpoint=wish)
    assert args.checkpoint_to_resume() is None


@pytest.mark.parametrize("wish", ["last", "last_whole", "somewhere"])
def test_a_run_whose_checkpoints_cannot_be_resumed_is_not_started_to_be_resumed(wish, tmp_path):
    """Adam's moments would start again at zero, and nothing would say so."""
    with pytest.raises(ValueError, match="save_only_model=True writes checkpoints without"):
        build(
            CompressionTrainingArguments,
            tmp_path,
            save_only_model=True,
            resume_from_checkpoint=wish,
        )
    build(CompressionTrainingArguments, tmp_path, save_only_model=True)


def test_a_checkpoint_in_the_middle_of_a_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="saves in the middle of a step"):
        build(CompressionTrainingArguments, tmp_path, enable_jit_checkpoint=True)


def test_a_named_checkpoint_is_taken_even_where_a_newer_one_lies(killed_run):
    named = str(killed_run / "checkpoint-2")
    args = build(CompressionTrainingArguments, killed_run, resume_from_checkpoint=named)
    assert args.checkpoint_to_resume() == named


@pytest.mark.parametrize("place", ["{}/other", "{}/run/../other", "{}/run/link", "{}/run"])
def test_what_leads_out_of_a_folder_is_not_below_it(place, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"It must lie below output_dir .*Choose a folder below"):
        check_below(tmp_path / "run", place.format(tmp_path), "It")
    check_below(tmp_path / "run", tmp_path / "run" / "a" / "b", "It")


@pytest.mark.parametrize("cls", [*CLASSES, LadderTrainingArguments])
def test_what_loggers_and_pickles_take_of_the_arguments_holds_no_token(cls, tmp_path):
    args = build(cls, tmp_path, hub_token="hf_Secret")
    views = [str(args), repr(args), args.to_dict(), args.to_json_string(), args.to_sanitized_dict()]
    for view in [*views, pickle.dumps(args), copy.deepcopy(args).hub_token]:
        assert "hf_Secret" not in str(view)
    assert args.for_baseline(str(tmp_path / "baseline")).hub_token is None


@pytest.mark.parametrize("name", ["loss_weights", "final_loss_weights"])
def test_weights_that_name_no_loss_are_refused_and_not_taken_for_the_default(name, distillation):
    given = {"loss_weights": "task=1", name: {}}
    with pytest.raises(ValueError, match=f"{name} must name at least one loss"):
        distillation(**given)
