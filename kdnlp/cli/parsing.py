"""From a command line and a YAML file to dataclasses, with a help text that a person can read."""

import argparse
import dataclasses
import difflib
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

from kdnlp.arguments.paths import check_below
from kdnlp.cli.secrets import hide_tokens, hide_values
from kdnlp.cli.shown_command import flag_groups, flag_name

SECTIONS = ("finetune", "distill", "theseus")
"""Keys of a configuration file that hold what only one command reads."""

COMMON_TRAINING_FLAGS = (
    "output_dir",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "gradient_accumulation_steps",
    "seed",
    "bf16",
    "fp16",
    "use_cpu",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "resume_from_checkpoint",
    "logging_steps",
    "report_to",
    "disable_tqdm",
    "train_sampling_strategy",
    "push_to_hub",
    "hub_model_id",
)
"""The flags of `TrainingArguments` that `--help` shows; `--help_all` shows the others too."""

WRITTEN_FOLDERS = ("teacher_cache_dir",)
"""The flags, beside `output_dir` itself, whose values are written to."""

MOST_CHOICES_SHOWN = 6


def parse_arguments(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    section: str | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> tuple[Any, ...]:
    """Parse flags into one instance of each dataclass.

    `--config FILE` reads flags from a YAML file: a key for every flag, and sections named in
    `SECTIONS` whose keys count for that command only. Flags on the command line win over the
    file, and a section over the rest of the file. A file may be another's: what it names to write
    to must lie below `output_dir`, while the command line may name any folder.

    Args:
        dataclass_types: what to fill; every field is a flag.
        argv: the arguments; `None` takes the process's.
        section: the section of the configuration file that counts.
        prog: the command's name in the help.
        description: the first paragraph of the help.

    Raises:
        SystemExit: with status 2 and a message for a flag that is unknown, missing or out of range.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        dataclass_types,
        show_all="--help_all" in argv,
        prog=prog,
        description=description,
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
    )
    general = parser.add_argument_group("general")
    general.add_argument("--config", metavar="FILE", help="YAML file with a key for every flag.")
    general.add_argument("-h", "--help", "--help_all", action="help", help=_HELP)
    config, argv = _split_config(argv)
    flags = parser.config_flags(config, section) if config else []
    try:
        *parsed, _, unknown = parser.parse_args_into_dataclasses(
            [*flags, *argv], return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    if unknown:
        parser.error(_unknown_message(hide_values(unknown), parser, config))
    parser.check_folders(parsed)
    return tuple(parsed)


def without_config(
    dataclass_types: Sequence[type], argv: Sequence[str], section: str | None = None
) -> list[str]:
    """The arguments with the flags in place of the `--config` file that holds them.

    Those that the command line gives too are left out. The arguments are as `parse_arguments` has
    taken them.
    """
    config, rest = _split_config(list(argv))
    if config is None:
        return rest
    parser = _Parser(dataclass_types, show_all=False, allow_abbrev=False, add_help=False)
    given = {flag_name(group) for group in flag_groups(rest)}
    groups = flag_groups(parser.config_flags(config, section))
    return [*(part for group in groups if flag_name(group) not in given for part in group), *rest]


_HELP = "Show this text; --help_all lists all flags of transformers.TrainingArguments too."


class PlainParser(argparse.ArgumentParser):
    """A parser of flags that no dataclass declares; it ends as `parse_arguments` does."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"kdnlp {command}",
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the message, in which a value may have been a token."""
        super().error(hide_tokens(message))

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of the flags.

        Raises:
            SystemExit: with status 2 and a message for a flag that is unknown, missing or wrong.
        """
        parsed, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(_unknown_message(hide_values(unknown), self, every="--help"))
        return parsed


class _Parser(HfArgumentParser):
    """A parser that groups flags by the class that declares them, the most special first."""

    def __init__(self, dataclass_types: Sequence[Any], show_all: bool, **kwargs: Any) -> None:
        self.show_all = show_all
        self.from_file: dict[str, Any] = {}
        super().__init__(dataclass_types, **kwargs)

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the message, in which a value may have been a token."""
        super().error(hide_tokens(message))

    def check_folders(self, parsed: Sequence[Any]) -> None:
        """Refuse folders that the configuration file, and not the command line, names to write."""
        values = {k: v for options in parsed for k, v in vars(options).items()}
        for name in WRITTEN_FOLDERS:
            given = self.from_file.get(name)
            if given is not None and values.get(name) == str(given):
                try:
                    check_below(values["output_dir"], given, f"{name} in a configuration file")
                except ValueError as error:
                    self.error(f"{error} Or name it on the command line: --{name} {given}")

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        hints = get_type_hints(dtype)
        left = {field.name: field for field in dataclasses.fields(dtype) if field.init}
        for owner in dtype.__mro__:
            if not dataclasses.is_dataclass(owner):
                continue
            group = self.add_argument_group(_title(owner))
            own = set(inspect.get_annotations(owner))  # type: ignore[arg-type]
            for name in [name for name in left if name in own]:
                field = left.pop(name)
                field.type = hints[name]
                self._parse_dataclass_field(group, field)  # type: ignore[arg-type]

    def format_help(self) -> str:
        """The help without the flags that hardly anyone sets."""
        stock = {field.name for field in dataclasses.fields(TrainingArguments)}
        for action in self._actions:
            if action.choices and len(list(action.choices)) > MOST_CHOICES_SHOWN:
                action.metavar = "NAME"
            if action.option_strings[0].startswith("--no_"):
                action.help, action.default = f"Turn --{action.dest} off.", None
            if action.dest in stock.difference(COMMON_TRAINING_FLAGS) and not self.show_all:
                action.help = argparse.SUPPRESS
        return super().format_help()

    def config_flags(self, path: Path, section: str | None) -> list[str]:
        """The flags that a configuration file stands for."""
        if not path.is_file():
            self.error(f"--config: no file {path}")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"--config: {path} is not plain YAML: {error}")
        if not isinstance(content, dict):
            self.error(f"--config: {path} must map flags to values, got {type(content).__name__}")
        values = {k: v for k, v in content.items() if k not in SECTIONS}
        own = (content.get(section) if section else None) or {}
        if not isinstance(own, dict):
            self.error(f"--config: {section} in {path} must map flags to values, got {own!r}")
        values.update(own)
        if "config" in values:
            self.error(f"--config: {path} names another file; put its keys here instead")
        self.from_file = values
        return [part for name, value in values.items() for part in self._flag(str(name), value)]

    def _flag(self, name: str, value: Any) -> list[str]:
        if value is None:
            return []
        action = self._option_string_actions.get(f"--{name}")
        if action is not None and action.nargs == 0:  # a --no_... flag, which takes no value
            return [f"--{name}"] if value else []
        if value is False and action is not None and "no" in (action.choices or ()):
            value = "no"  # YAML 1.1 reads a bare no as false
        if isinstance(value, list) and action is not None and action.nargs == "+":
            return [f"--{name}", *map(str, value)]
        if isinstance(value, list):
            return [f"--{name}={','.join(map(str, value))}"]
        return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling a flag, and no default where it is nothing."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        """Name what is required only; a hundred optional flags help nobody."""
        required = [action for action in actions if action.required]
        names = " ".join(
            f"{a.option_strings[0]} {a.metavar or a.dest.upper()}"
            if a.option_strings
            else self._format_args(a, a.dest)
            for a in required
        )
        super().add_usage(f"%(prog)s {names} [...]".replace("  ", " "), actions, groups, prefix)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.dest == "help":
            return super()._format_action_invocation(action)
        values = "" if action.nargs in (0, "?") else f" {self._format_args(action, 'VALUE')}"
        return f"{action.option_strings[0]}{values}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", argparse.SUPPRESS) or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)


def _title(owner: Any) -> str:
    if owner is TrainingArguments:
        return "training (transformers.TrainingArguments)"
    return str(vars(owner).get("group_title", owner.__name__))


def _split_config(argv: list[str]) -> tuple[Path | None, list[str]]:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    found, rest = finder.parse_known_args(argv)
    return (Path(found.config) if found.config else None), rest


def _unknown_message(
    unknown: list[str],
    parser: argparse.ArgumentParser,
    config: Any = None,
    every: str = "--help_all",
) -> str:
    flag = unknown[0].partition("=")[0]
    known = [action.option_strings[0] for action in parser._actions if action.option_strings]
    close = difflib.get_close_matches(flag, known, n=2)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    source = f" (command line or {config})" if config else ""
    return f"unknown: {' '.join(unknown)}{source}.{hint} {every} lists every flag."
