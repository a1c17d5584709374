import ast
import re
from pathlib import Path

import pytest

import kdnlp

PACKAGE = Path(kdnlp.__file__).parent
LEVELS = [
    {"arguments", "checkpoints", "files", "loading", "schedules", "uploads", "weights"},
    {"data"},
    {"models"},
    {"losses"},
    {"trainers"},
    {"profiling"},
    {"evaluation"},
    {"compression"},
    {"hub"},
    {"cli", "__main__"},
]
LEVEL = {group: level for level, groups in enumerate(LEVELS) for group in groups}
FILES = sorted(PACKAGE.rglob("*.py"))
LAZY = PACKAGE / "__init__.py"
"""The one file that may name every other: it imports them when they are used."""


def group_of(dotted):
    """The group of a module of the package, as `kdnlp.data.task` or as a file's path."""
    return dotted.split(".")[1] if "." in dotted else None


def module_name(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(tree):
    """Dotted names of everything of the package that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                yield public(alias.name) if node.module == "kdnlp" else node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "kdnlp":
                yield public(node.attr)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (name for name in map(leading_text, node.args) if name)


def public(name):
    """Where a name of the top level leads: `kdnlp.LOSSES` is `kdnlp.losses`."""
    return f"kdnlp.{kdnlp._HOMES.get(name, name)}"


def leading_text(node):
    """A literal string, or an f-string as far as its first value."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def imports_from_below(module, source):
    """What a module imports from groups below its own; the order reads from the top down."""
    own = LEVEL[group_of(module)]
    names = {
        name
        for name in imports(ast.parse(source))
        if name.split(".")[0] == "kdnlp" and group_of(name) not in (None, "__version__")
    }
    return sorted(name for name in names if LEVEL[group_of(name)] > own)


def test_the_walk_finds_the_package():
    assert len(FILES) > 20
    assert LAZY in FILES
    modules = {module_name(file) for file in FILES}
    assert {"kdnlp", "kdnlp.arguments", "kdnlp.losses", "kdnlp.trainers.theseus"} <= modules


def test_every_file_has_a_place_in_the_order():
    groups = {group_of(module_name(file)) for file in FILES if file != LAZY}
    assert groups <= set(LEVEL)
    assert len(groups) > 8


@pytest.mark.parametrize("file", [f for f in FILES if f != LAZY], ids=module_name)
def test_a_file_imports_only_from_its_own_group_and_those_above(file):
    assert imports_from_below(module_name(file), file.read_text(encoding="utf-8")) == []


FROM_BELOW = {
    "at the top": "from kdnlp.trainers.base import CompressionTrainer",
    "as a module": "import kdnlp.trainers.base as base",
    "as a group": "from kdnlp import trainers",
    "by its public name": "from kdnlp import CompressionTrainer",
    "by a public attribute": "import kdnlp\nkdnlp.CompressionTrainer",
    "inside a function": "def f():\n    from kdnlp.trainers.base import CompressionTrainer",
    "inside a method": "class A:\n    def f(self):\n        import kdnlp.trainers.base",
    "for type checkers": "if TYPE_CHECKING:\n    from kdnlp.trainers.base import A",
    "when it can": "try:\n    import kdnlp.trainers.base\nexcept ImportError:\n    pass",
    "by name": "import_module('kdnlp.trainers.base')",
    "by a built name": "importlib.import_module(f'kdnlp.trainers.{name}')",
}


@pytest.mark.parametrize("source", FROM_BELOW.values(), ids=FROM_BELOW)
def test_an_import_from_below_is_found_however_it_is_written(source):
    assert imports_from_below("kdnlp.models.student", source) != []
    assert imports_from_below("kdnlp.trainers.theseus", source) == []
    assert imports_from_below("kdnlp.hub.card", source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import kdnlp\nkdnlp.__version__",
        "from kdnlp import __version__, build_schedule",
        "import torch\nfrom transformers.trainer import Trainer",
        "from kdnlp.data.task import Task\nfrom kdnlp.models.layers import find_layers",
        "import kdnlp_extras.cli",
        "text = 'kdnlp.cli.main'",
    ],
)
def test_imports_from_above_and_from_elsewhere_are_left_alone(source):
    assert imports_from_below("kdnlp.models.student", source) == []


def test_relative_imports_cannot_slip_past():
    with pytest.raises(AssertionError, match="relative import in line 1"):
        imports_from_below("kdnlp.models.student", "from ..trainers import base")


def test_every_level_may_import_from_the_ones_above_and_none_below():
    groups = sorted(LEVEL, key=LEVEL.__getitem__)
    for own in groups:
        for other in groups:
            found = imports_from_below(f"kdnlp.{own}", f"import kdnlp.{other}.thing")
            assert bool(found) == (LEVEL[other] > LEVEL[own])


def test_contributors_are_told_the_order_that_holds():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = (
        re.search(r"down the tree of `kdnlp/`: ([^.]*)\.", text)[1].replace("\n", " ").split(", ")
    )
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} <= set(told)
    assert [LEVEL[group] for group in told] == sorted(LEVEL[group] for group in told)
