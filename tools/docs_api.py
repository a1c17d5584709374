"""Reference pages: the public names by module, and the help of every command."""

import contextlib
import io
import os
from unittest.mock import patch

import kdnlp
from kdnlp.cli import COMMANDS, main

_GROUPS = {
    "arguments": "Training arguments: every setting, checked before anything is loaded.",
    "schedules": "Values that change over a run.",
    "data": "Tasks, tables and tokenised datasets.",
    "models": "Students, block stacks, the Theseus path, teachers.",
    "losses": "Distillation losses. [Which one to choose](../methods/losses/index.md).",
    "trainers": "The trainers, on `transformers.Trainer`.",
    "profiling": "Parameters, FLOPs, latency and memory.",
    "evaluation": "Metrics and reports.",
    "compression": "Exports to other formats and fewer bits, and the gate that checks them.",
    "uploads": "What may go to the Hub, and whether model and card are whole.",
    "hub": "Model cards, publishing, submissions to GLUE's server.",
    "cli": "What a script of your own shares with the commands.",
}
"""What a module of public names is about, in the order of the pages."""

_WIDE = "---\nhide: [toc]\n---\n\n"
"""Before a page whose text needs the room of the table of contents."""


def api_pages() -> dict[str, str]:
    """A page a module with the public names that live there, and the list of all."""
    homes: dict[str, list[str]] = {group: [] for group in _GROUPS}
    for name, home in kdnlp._HOMES.items():
        homes.setdefault(home.partition(".")[0], []).append(name)
    homes = {group: names for group, names in homes.items() if names}
    pages = {"api/index.md": _api_index(homes)}
    for group, names in homes.items():
        parts = [f"# kdnlp.{group}", _GROUPS.get(group, "")]
        parts += [_directive(name) for name in names]
        pages[f"api/{group}.md"] = "\n\n".join(parts) + "\n"
    return pages


def _directive(name: str) -> str:
    """Where a public name is described; the methods of losses are those of `DistillationLoss`."""
    is_loss = kdnlp._HOMES[name] == "losses" and name not in ("DistillationLoss", "LOSSES")
    return f"::: kdnlp.{name}" + ("\n    options:\n      members: []" if is_loss else "")


def _api_index(homes: dict[str, list[str]]) -> str:
    lines = ["# API", "Every public name is imported from `kdnlp`; `import kdnlp` loads no torch."]
    for group, names in homes.items():
        links = ", ".join(f"[`{name}`][kdnlp.{name}]" for name in names)
        lines.append(f"**[kdnlp.{group}]({group}.md)**: {links}")
    return "\n\n".join(lines) + "\n"


def command_pages() -> dict[str, str]:
    """A page a command with its help, and the list of all."""
    rows = [f"| [`kdnlp {name}`]({name}.md) | {does} |" for name, (_, does) in COMMANDS.items()]
    index = f"{_WIDE}# Commands\n\n| command | does |\n| :-- | :-- |\n" + "\n".join(rows) + "\n"
    index += f'\n```text title="kdnlp --help"\n{command_help()}```\n'
    pages = {"commands/index.md": index}
    for name, (_, does) in COMMANDS.items():
        pages[f"commands/{name}.md"] = (
            f"{_WIDE}# kdnlp {name}\n\n{does[0].upper()}{does[1:]}.\n\n"
            f'```text title="kdnlp {name} --help"\n{command_help(name)}```\n'
        )
    return pages


def command_help(*command: str) -> str:
    """What `kdnlp COMMAND --help` prints, 100 columns wide."""
    text = io.StringIO()
    with (
        patch.dict(os.environ, {"COLUMNS": "100"}),
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        main([*command, "--help"])
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
