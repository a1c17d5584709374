"""The command line, `kdnlp COMMAND`: what is in `COMMANDS`.

This file only finds the command; `kdnlp --help` loads no torch.
"""

import argparse
import linecache
import logging
import re
import traceback
from collections.abc import Sequence
from importlib import import_module

import kdnlp
from kdnlp.cli.interruption import NOTHING_KEPT, ends_in_one_line
from kdnlp.cli.secrets import hide_tokens

logger = logging.getLogger(__name__)

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "compress a small model on a built-in task, in minutes and offline"),
    "finetune": ("finetune", "fine-tune a pretrained encoder on a task"),
    "distill": ("compress", "train a smaller student on a fine-tuned teacher's answers"),
    "theseus": ("compress", "replace a fine-tuned model's blocks by fewer ones while it runs"),
    "ladder": ("ladder", "distil one teacher into students of several depths, and compare them"),
    "profile": ("profile", "measure what models cost side by side, and where their time goes"),
    "export": ("export", "write a model for ONNX Runtime or in fewer bits, and check it"),
    "report": ("report", "print the report of a run, or compare several"),
    "submit": ("submit", "answer GLUE's test rows with your models, for its server"),
    "push": ("push", "publish a run's model, card and report on the Hub, and nothing else"),
}
"""Name of each command, the module here whose `main(command, argv)` runs it, and what it does."""

_KEPT = {
    "demo": "what it has finished is kept, and is made anew when it starts again.",
    "push": "the Hub has all of the commit or nothing of it.",
}
"""What an interrupted command keeps, where that is something and it does not say so itself."""

_SAY_WHAT_IS_WRONG = ("kdnlp", "transformers", "huggingface_hub", "datasets", "json")
"""The packages that read what the user names, and raise errors about it."""

_MEANT = (ValueError, TypeError, ImportError, RuntimeError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command of `COMMANDS`.

    Raises:
        SystemExit: with status 1 and a message, if the command cannot do what was asked for; its
            cause is the error. With status 2 for flags that make no sense, and 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="kdnlp",
        description="Compress a fine-tuned transformer, and account for what it cost and gained.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<10}{help_}" for name, (_, help_) in COMMANDS.items())
        + "\n\n`kdnlp COMMAND --help` explains a command. Several GPUs, one process each:\n"
        "  accelerate launch --multi_gpu --num_processes 2 -m kdnlp COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kdnlp {kdnlp.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the command's own arguments")
    parsed = parser.parse_args(argv)
    with ends_in_one_line(parsed.command, _KEPT.get(parsed.command, NOTHING_KEPT)):
        run(parsed.command, parsed.arguments)


def run(command: str, argv: Sequence[str]) -> None:
    """Run one command; what the user can mend is a message, and the rest a traceback."""
    module = import_module(f"kdnlp.cli.{COMMANDS[command][0]}")
    try:
        module.main(command, argv)
    except Exception as error:
        if not is_meant_for_people(error):
            raise
        logger.debug("This is where it was raised:", exc_info=True)
        message = hide_tokens(str(error) or type(error).__name__)
        raise SystemExit(f"kdnlp {command}: {message}") from error


def is_meant_for_people(error: Exception) -> bool:
    """Whether an error says what is wrong with what was given, or else is a defect of the code.

    Files, disk and network may fail at any place. Of the other errors those count that a package
    raises by a statement, as ours does when it refuses something; what an operation gives, such as
    an index out of range or tensors of two shapes, needs its traceback.
    """
    if isinstance(error, OSError):
        return True
    if not isinstance(error, _MEANT):
        return False
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    source = linecache.getline(frame.f_code.co_filename, line, frame.f_globals)
    return package in _SAY_WHAT_IS_WRONG and re.search(r"\braise\b", source) is not None
