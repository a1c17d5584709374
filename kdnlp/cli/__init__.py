"""The command line, `kdnlp COMMAND`: what is in `COMMANDS`.

This file only finds the command; `kdnlp --help` loads no torch.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module

import kdnlp

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


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command of `COMMANDS`."""
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
    module = import_module(f"kdnlp.cli.{COMMANDS[parsed.command][0]}")
    module.main(parsed.command, parsed.arguments)
