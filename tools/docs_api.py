"""Reference pages: the public names, the commands' help, and docstrings as tables and text."""

import contextlib
import io
import os
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import griffe

import kdnlp
from kdnlp.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]

_GROUPS = {
    "arguments": "Training arguments: every setting, checked before anything is loaded.",
    "schedules": "Values that change over a run.",
    "data": "Tasks, tables and tokenised datasets.",
    "models": "Students, block stacks, the Theseus path, teachers.",
    "losses": "Distillation losses. [Which one to choose](../methods/losses/index.md).",
    "trainers": "The trainers, on `transformers.Trainer`.",
    "profiling": "Parameters, FLOPs, latency and memory.",
    "evaluation": "Metrics and reports.",
    "compression": "Pruning, quantization and export.",
    "hub": "Model cards and publishing.",
    "cli": "What a script of your own shares with the commands.",
}
"""What a module of public names is about, in the order of the pages."""


def api_pages() -> dict[str, str]:
    """A page a module with the public names that live there, and the list of all."""
    homes: dict[str, list[str]] = {group: [] for group in _GROUPS}
    for name, home in kdnlp._HOMES.items():
        homes.setdefault(home.partition(".")[0], []).append(name)
    homes = {group: names for group, names in homes.items() if names}
    pages = {"api/index.md": _api_index(homes)}
    for group, names in homes.items():
        parts = [f"# kdnlp.{group}", _GROUPS.get(group, "")]
        parts += [f"::: kdnlp.{name}" for name in names]
        pages[f"api/{group}.md"] = "\n\n".join(parts) + "\n"
    return pages


def _api_index(homes: dict[str, list[str]]) -> str:
    lines = ["# API", "Every public name is imported from `kdnlp`; `import kdnlp` loads no torch."]
    for group, names in homes.items():
        links = ", ".join(f"[`{name}`][kdnlp.{name}]" for name in names)
        lines.append(f"**[kdnlp.{group}]({group}.md)**: {links}")
    return "\n\n".join(lines) + "\n"


def command_pages() -> dict[str, str]:
    """A page a command with its help, and the list of all."""
    rows = [f"| [`kdnlp {name}`]({name}.md) | {does} |" for name, (_, does) in COMMANDS.items()]
    index = "# Commands\n\n| command | does |\n| :-- | :-- |\n" + "\n".join(rows) + "\n"
    index += f'\n```text title="kdnlp --help"\n{command_help()}```\n'
    pages = {"commands/index.md": index}
    for name, (_, does) in COMMANDS.items():
        pages[f"commands/{name}.md"] = (
            f"# kdnlp {name}\n\n{does[0].upper()}{does[1:]}.\n\n"
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


def docstring_text(name: str) -> str:
    """The text of a docstring, without its sections and its doctests."""
    texts = [section.value for section in _sections(name) if section.kind.value == "text"]
    paragraphs = [part for text in texts for part in text.strip().split("\n\n")]
    return "\n\n".join(part for part in paragraphs if not part.startswith(">>>"))


def values_table(name: str) -> str:
    """The settings of a public name: of arguments its own flags, else its parameters."""
    public = getattr(kdnlp, name)
    rows = _flags(public) if is_dataclass(public) else _parameters(name)
    return table(("name", "default", "meaning"), rows)


def _flags(arguments: Any) -> list[tuple[str, ...]]:
    own = vars(arguments)["__annotations__"]
    return [
        (f"`{field.name}`", f"`{field.default!r}`", field.metadata["help"])
        for field in fields(arguments)
        if field.name in own and "help" in field.metadata
    ]


def _parameters(name: str) -> list[tuple[str, ...]]:
    return [
        (f"`{parameter.name}`", default(parameter.default), one_line(parameter.description))
        for section in _sections(name)
        if section.kind.value == "parameters"
        for parameter in section.value
    ]


def default(expression: Any) -> str:
    """A default as code, or nothing where there is none."""
    return "" if expression is None else f"`{expression}`"


def one_line(text: str) -> str:
    """A text without line breaks, fit for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, its cells aligned left."""
    header = list(header)
    lines = [header, [":--"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sections(name: str) -> list[Any]:
    public = package()[name]
    assert public.docstring is not None, f"{name} has no docstring"
    return public.docstring.parse("google")


@cache
def package() -> Any:
    """The package as griffe reads it, without importing it."""
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    loaded = loader.load("kdnlp")
    loader.resolve_aliases()
    return loaded
