"""Flags and YAML mean the same, the command line wins, and nothing is dropped without a word."""

import re
from dataclasses import dataclass, field

import pytest

from kdnlp.arguments import (
    CompressionTrainingArguments,
    DistillationTrainingArguments,
    TheseusTrainingArguments,
)
from kdnlp.cli.options import (
    CompressionOptions,
    DataOptions,
    DistillOptions,
    FinetuneOptions,
    TheseusOptions,
)
from kdnlp.cli.parsing import COMMON_TRAINING_FLAGS, parse_arguments
from kdnlp.losses import LOSSES

COMMANDS = {
    "finetune": (FinetuneOptions, DataOptions, CompressionTrainingArguments),
    "distill": (DistillOptions, DataOptions, DistillationTrainingArguments),
    "theseus": (TheseusOptions, DataOptions, TheseusTrainingArguments),
}
CACHE = "--cache_teacher_outputs"
REQUIRED = {"finetune": "--model", "distill": "--teacher", "theseus": "--predecessor"}


@pytest.fixture
def parse(tmp_path):
    """Parse the text of a YAML file and flags; the flags that every command needs are given."""

    def parse(*flags, config=None, command="theseus"):
        argv = ["--use_cpu", REQUIRED[command], "model", "--output_dir", str(tmp_path / "out")]
        if config is not None:
            path = tmp_path / "config.yaml"
            path.write_text(config, encoding="utf-8")
            argv += ["--config", str(path)]
        return parse_arguments(COMMANDS[command], [*argv, *flags], command, f"kdnlp {command}")

    return parse


@pytest.fixture
def refused(parse, capsys):
    """What stands on stderr when parsing ends with status 2."""

    def refused(*flags, **options):
        with pytest.raises(SystemExit) as error:
            parse(*flags, **options)
        assert error.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return refused


def test_the_keys_of_a_file_are_flags(parse):
    options, data, args = parse(
        config="task: mrpc\nmax_length: 99\nnum_layers: 3\nper_device_train_batch_size: 5\n"
        "lr_scheduler_type: cosine\ninitial_replacing_rate: 0.1\n"
    )
    assert (options.predecessor, options.num_layers) == ("model", 3)
    assert (data.task, data.max_length) == ("mrpc", 99)
    assert (args.per_device_train_batch_size, args.lr_scheduler_type) == (5, "cosine")
    assert args.initial_replacing_rate == 0.1


def test_a_required_flag_may_stand_in_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("theseus: {predecessor: here}\n")
    argv = ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu"]
    assert parse_arguments(COMMANDS["theseus"], argv, "theseus")[0].predecessor == "here"


@pytest.mark.parametrize(("command", "epochs"), [("finetune", 4), ("distill", 7), ("theseus", 9)])
def test_a_section_counts_for_its_command_only_and_wins_over_the_rest(command, epochs, parse):
    config = (
        "num_train_epochs: 7\nfinetune: {num_train_epochs: 4}\n"
        "theseus: {num_train_epochs: 9, replacing_fraction: 0.5}\nseed: 5\n"
    )
    *_, args = parse(config=config, command=command)
    assert (args.num_train_epochs, args.seed) == (epochs, 5)


def test_a_section_wins_even_where_the_rest_of_the_file_comes_later(parse):
    assert parse(config="theseus: {seed: 1}\nseed: 2\n")[2].seed == 1


def test_without_a_section_only_the_rest_of_the_file_counts(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("seed: 5\ntheseus: {seed: 6, replacing_fraction: 0.5}\n")
    argv = ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu"]
    assert parse_arguments((CompressionTrainingArguments,), argv)[0].seed == 5


def test_an_empty_file_and_an_empty_section_change_nothing(parse):
    assert parse(config="# nothing\n") == parse(config="theseus:\n") == parse()


@pytest.mark.parametrize("position", ["before", "after"])
def test_the_command_line_wins_over_file_and_section(position, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("task: mrpc\ntext_columns: [a, b]\nbf16: true\ntheseus: {seed: 6}\n")
    config = ["--config", str(path)]
    flags = ["--seed", "7", "--task=rte", "--text_columns", "c", "--bf16", "false"]
    argv = [*config, *flags] if position == "before" else [*flags, *config]
    base = ["--predecessor", "model", "--output_dir", str(tmp_path), "--use_cpu"]
    _, data, args = parse_arguments(COMMANDS["theseus"], [*base, *argv], "theseus")
    assert (args.seed, data.task, data.text_columns, args.bf16) == (7, "rte", ["c"], False)


def test_a_list_fills_a_flag_that_takes_several_values(parse):
    config = "text_columns: [first text, second]\n"
    assert parse(config=config)[1].text_columns == ["first text", "second"]
    assert parse(config="text_columns: only\n")[1].text_columns == ["only"]


def test_a_list_fills_a_flag_that_takes_text_with_commas(parse):
    config = "slot_sizes: [1, 1, 2]\ninit_layers: [0, 2, 3]\nlosses: [logits]\n"
    options, _, args = parse(config=config)
    assert args.slot_sizes == [1, 1, 2]
    assert (options.init_layers, options.losses) == ("0,2,3", "logits")
    assert args == parse("--slot_sizes", "1,1,2")[2]


def test_a_mapping_fills_a_flag_that_takes_json(parse):
    config = (
        "loss_weights: {task: 0.5, logits: 5e-1}\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 0.1}\n"
    )
    *_, args = parse(config=config)
    assert args.loss_weights == {"task": 0.5, "logits": 0.5}
    assert args.lr_scheduler_kwargs == {"min_lr": 0.1}


@pytest.mark.parametrize("number", ["2e-5", "2.0e-5", "0.00002", '"2e-5"'])
def test_a_learning_rate_that_yaml_takes_for_text_is_a_number(number, parse):
    assert parse(config=f"learning_rate: {number}\n")[2].learning_rate == 2e-5


def test_booleans_of_a_file_are_not_taken_for_text(parse):
    options, _, args = parse(config="baseline: false\nbf16: true\npredecessor_dropout: no\n")
    assert (options.baseline, args.bf16, args.predecessor_dropout) == (False, True, False)
    assert parse(config="baseline: true\n")[0].baseline is True


def test_null_leaves_the_default(parse):
    options, data, args = parse(config="num_layers: null\nmax_length: ~\nseed:\ntask: null\n")
    assert (options.num_layers, data.max_length, data.task) == (None, None, None)
    assert args.seed == CompressionTrainingArguments.seed


def test_no_baseline_turns_the_baseline_off(parse):
    assert parse()[0].baseline is True
    assert parse("--no_baseline")[0].baseline is False
    assert parse("--no_baseline", config="baseline: true\n")[0].baseline is False
    assert parse("--baseline", config="baseline: false\n")[0].baseline is True


def test_an_unknown_flag_is_refused_and_the_near_one_named(refused):
    message = refused("--replacing_fractoin", "0.5")
    assert "unknown: --replacing_fractoin 0.5." in message
    assert "Did you mean --replacing_fraction" in message
    assert "--help_all" in message
    assert "unknown: extra." in refused("extra")


def test_an_unknown_key_is_refused_and_the_file_named(refused):
    message = refused(config="learning_rat: 2e-5\n")
    assert "unknown: --learning_rat=2e-5 (command line or " in message
    assert "config.yaml" in message
    assert "Did you mean --learning_rate" in message
    assert "Did you mean --replacing_schedule" in refused(
        config="theseus: {replacing_schedul: linear}\n"
    )


def test_a_flag_of_another_command_is_refused(refused):
    assert "unknown: --slot_sizes 1,1" in refused("--slot_sizes", "1,1", command="distill")
    assert "unknown: --teacher x" in refused("--teacher", "x")


def test_an_abbreviation_is_no_flag(refused):
    message = refused("--learning_ra", "1")
    assert "unknown: --learning_ra 1." in message
    assert "Did you mean --learning_rate" in message
    assert "unknown: --conf x" in refused("--conf", "x")


def test_a_missing_required_flag_is_named(capsys):
    with pytest.raises(SystemExit) as error:
        parse_arguments(COMMANDS["theseus"], ["--task", "mrpc"], "theseus", "kdnlp theseus")
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "required: --predecessor" in message
    assert message.startswith("usage: kdnlp theseus --predecessor PREDECESSOR [...]")


@pytest.mark.parametrize(
    ("command", "flag", "value", "message"),
    [
        ("theseus", "replacing_fraction", "1.5", "must lie in (0, 1], got 1.5. It is the share"),
        ("theseus", "initial_replacing_rate", "-0.1", "must lie in [0, 1], got -0.1"),
        ("theseus", "slot_sizes", "1,x", "slot_sizes must read like 1,1,2,2, got '1,x'"),
        ("distill", "temperature", "0", "temperature must be above 0 and finite, got 0.0"),
        ("distill", "loss_weights", "task:1", "must read like task=0.5,logits=0.5 or be JSON"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True], ids=["flag", "file"])
def test_a_value_out_of_range_ends_with_the_arguments_own_message(
    command, flag, value, message, in_file, refused
):
    # A flag's value that starts with a dash needs the equals sign.
    flags = () if in_file else (f"--{flag}={value}",)
    config = f'{flag}: "{value}"\n' if in_file else None
    assert message in refused(*flags, config=config, command=command)


def test_a_value_of_another_type_or_choice_names_the_flag(refused):
    assert "--max_steps" in refused(config="max_steps: many\n")
    message = refused("--replacing_schedule", "lineal")
    assert "--replacing_schedule" in message
    assert "anti" in message
    assert "replacing_schedule" in refused("--replacing_schedule", "anti", command="distill")


def test_a_missing_config_file_is_named(refused, tmp_path):
    missing = tmp_path / "nowhere.yaml"
    assert f"--config: no file {missing}" in refused("--config", str(missing))
    assert f"--config: no file {tmp_path}" in refused("--config", str(tmp_path))
    assert "--config: expected one argument" in refused("--config")


@pytest.mark.parametrize(("text", "kind"), [("- task: mrpc\n", "list"), ("just text\n", "str")])
def test_a_file_that_holds_no_mapping_is_refused(text, kind, refused):
    assert f"must map flags to values, got {kind}" in refused(config=text)


UNSAFE = "task: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{}]]"


def test_a_tag_that_would_run_code_is_refused_and_not_run(parse, tmp_path):
    target = tmp_path / "touched"
    with pytest.raises((SystemExit, Exception), match=r"2|could not determine a constructor"):
        parse(config=UNSAFE.format(target) + "\n")
    assert not target.exists()
    with pytest.raises((SystemExit, Exception), match=r"2|could not determine a constructor"):
        parse(config="task: !!python/object:kdnlp.data.task.Task {name: x}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("theseus: 5\n", "theseus"),
        ("theseus: [a]\n", "theseus"),
        ("loss_weights: {task: 1\n", "config.yaml"),
        (UNSAFE.format("x") + "\n", "config.yaml"),
    ],
    ids=["section-number", "section-list", "no-yaml", "unsafe"],
)
def test_a_file_that_cannot_be_read_ends_with_a_message_that_names_it(text, message, refused):
    assert message in refused(config=text)


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        (["--hub_tokn", "of-another-form"], None),
        (["--api-token=of-another-form"], None),
        (["--hubtok", "hf_Secret"], None),
        ([], "hub_tokn: of-another-form\n"),
        ([], "hub_token: hf_Secret: {\n"),
        (["--seed", "hf_Secret"], None),
    ],
)
def test_no_token_is_in_an_error(flags, config, refused):
    message = refused(*flags, config=config)
    assert "***" in message
    assert "Secret" not in message
    assert "of-another-form" not in message


@pytest.mark.parametrize("command", ["distill", "theseus"])
def test_a_licence_that_the_hub_does_not_know_is_refused_before_training(command, refused):
    assert "Expected a licence's id" in refused("--license", "The MIT Licence", command=command)


@pytest.mark.parametrize("place", ["{}/elsewhere", "{}/out/../elsewhere", "{}/out/link", "{}/out"])
def test_a_file_cannot_write_outside_the_output_folder(place, refused, parse, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    place = place.format(tmp_path)
    message = refused(CACHE, config=f"distill: {{teacher_cache_dir: {place}}}", command="distill")
    assert "teacher_cache_dir in a configuration file must lie below output_dir" in message
    assert f"on the command line: --teacher_cache_dir {place}" in message
    flags = (CACHE, "--teacher_cache_dir", place)
    args = parse(*flags, config="teacher_cache_dir: /x", command="distill")[-1]
    assert args.teacher_cache_dir == place


def test_a_file_may_write_below_the_output_folder(parse, tmp_path):
    inside = f"{tmp_path}/out/cache"
    args = parse(CACHE, config=f"teacher_cache_dir: {inside}", command="distill")[-1]
    assert args.teacher_cache_dir == inside


@pytest.mark.parametrize("flag", ["save_strategy", "eval_strategy"])
def test_a_bare_no_in_a_file_is_the_strategy_and_not_false(flag, parse):
    assert getattr(parse(config=f"{flag}: no\n")[2], flag) == "no"


def test_a_file_that_names_another_file_is_refused(refused):
    refused(config="config: other.yaml\n")


def help_text(flag, parse, capsys, command="theseus"):
    with pytest.raises(SystemExit) as error:
        parse(flag, command=command)
    assert error.value.code == 0
    return capsys.readouterr().out


def flags_in(text):
    return re.findall(r"^ +--(\w+)", text, flags=re.MULTILINE)


def test_the_help_shows_our_own_flags_and_the_common_ones_once(parse, capsys):
    text = help_text("--help", parse, capsys)
    shown = flags_in(text)
    assert len(shown) == len(set(shown))
    assert set(COMMON_TRAINING_FLAGS) <= set(shown)
    assert {"predecessor", "num_layers", "task", "train_file", "replacing_fraction"} <= set(shown)
    assert {"no_baseline", "temperature", "overwrite_output_dir", "config"} <= set(shown)
    assert not {"fsdp_config", "deepspeed", "hub_token", "no_skip_memory_metrics"} & set(shown)
    assert text.index("--predecessor VALUE") < text.index("--slot_sizes VALUE")
    assert text.index("--slot_sizes VALUE") < text.index("--learning_rate VALUE")


def test_help_all_shows_every_flag(parse, capsys):
    shown = set(flags_in(help_text("--help_all", parse, capsys)))
    assert {"fsdp_config", "deepspeed", "hub_token", "replacing_fraction", "task"} <= shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_ours_has_a_help_text_and_dashes_are_another_spelling(command, parse, capsys):
    text = help_text("--help", parse, capsys, command)
    bare = re.findall(r"^ +(--\w+(?: VALUE)?)\s*\n +--", text, flags=re.MULTILINE)
    assert not bare
    assert "None" not in text
    assert "==SUPPRESS==" not in text
    assert parse("--num-train-epochs", "2", command=command)[2].num_train_epochs == 2


@dataclass(kw_only=True)
class Script:
    model: str
    text_columns: list[str] = field(metadata={"help": "One or two."})
    size: int = 6


def test_a_required_field_and_a_list_parse_in_a_dataclass_of_the_users(tmp_path):
    # What recipes do: a small dataclass beside the training arguments, and no section.
    script, args = parse_arguments(
        (Script, CompressionTrainingArguments),
        ["--model", "m", "--text_columns", "a", "b", "--output_dir", str(tmp_path), "--use_cpu"],
    )
    assert (script.model, script.text_columns, script.size) == ("m", ["a", "b"], 6)
    assert args.output_dir == str(tmp_path)


def test_the_help_names_every_loss():
    text = CompressionOptions.__dataclass_fields__["losses"].metadata["help"]
    assert all(name in text for name in LOSSES)
