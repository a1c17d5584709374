"""What the code says of itself, as Markdown: docstrings' texts, and tables of settings."""

import importlib.util
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import griffe

import kdnlp
from kdnlp.schedules import SCHEDULES

ROOT = Path(__file__).parents[1]

_SETTINGS = ("name", "default", "meaning")
_PROGRESS = (0.0, 0.25, 0.5, 0.75, 1.0)


def docstring_text(name: str) -> str:
    """The text of a docstring, without its sections and its doctests."""
    texts = [section.value for section in _sections(name) if section.kind.value == "text"]
    paragraphs = [part for text in texts for part in text.strip().split("\n\n")]
    return "\n\n".join(part for part in paragraphs if not part.startswith(">>>"))


def values_table(name: str, *starts: str) -> str:
    """The settings of a public name: of arguments its own flags, else its parameters.

    Args:
        name: in `kdnlp`.
        *starts: what the names of the settings start with; without any, all are shown.
    """
    public = getattr(kdnlp, name)
    rows = _flags(public, starts) if is_dataclass(public) else _parameters(name)
    return table(_SETTINGS, rows)


def recipe_table(name: str, *starts: str) -> str:
    """The flags of a script in recipes/ that start so."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return table(_SETTINGS, _flags(recipe.Script, starts))


def schedules_table() -> str:
    """Every schedule, and its values on the way from 0 to 1."""
    rows = [
        (f"`{name}`", _first_paragraph(name), *(f"{curve(at, 0.0, 1.0):.2f}" for at in _PROGRESS))
        for name, curve in SCHEDULES.items()
    ]
    return table(("name", "value", *(f"at {at:g}" for at in _PROGRESS)), rows)


def _first_paragraph(schedule: str) -> str:
    return one_line(docstring_text(f"schedules.{schedule}").split("\n\n")[0])


def _flags(arguments: Any, starts: tuple[str, ...]) -> list[tuple[str, ...]]:
    own = vars(arguments)["__annotations__"]
    return [
        (f"`{field.name}`", f"`{field.default!r}`", field.metadata["help"])
        for field in fields(arguments)
        if field.name in own and "help" in field.metadata and field.name.startswith(starts or "")
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
