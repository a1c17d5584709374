import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kdnlp

ROOT = Path(kdnlp.__file__).parent.parent
BUDGET_SECONDS = 0.3
HEAVY = {"torch", "transformers", "datasets", "evaluate", "accelerate", "numpy", "sklearn", "scipy"}
HEAVY |= {"matplotlib", "huggingface_hub", "rich", "yaml"}

REPORT = """
import json, sys, time
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


def import_afresh(statement):
    """Seconds that a statement takes in a new interpreter, and what it leaves loaded."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE", "COV_"))}
    result = subprocess.run(
        [sys.executable, "-c", REPORT.format(statement=statement)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=True,
    )
    seconds, modules = json.loads(result.stdout.splitlines()[-1])
    return seconds, set(modules)


def test_importing_costs_nothing_and_loads_no_torch():
    runs = [import_afresh("import kdnlp") for _ in range(5)]
    assert "kdnlp" in runs[0][1]
    assert not runs[0][1] & HEAVY
    assert min(seconds for seconds, _ in runs) < BUDGET_SECONDS


@pytest.mark.parametrize(
    "statement",
    [
        "import kdnlp; assert kdnlp.__version__; dir(kdnlp)",
        "import kdnlp; hasattr(kdnlp, 'utils')",
        "from kdnlp import build_schedule, SCHEDULES",
        "from kdnlp import cli",
    ],
)
def test_what_needs_no_torch_loads_none(statement):
    assert not import_afresh(statement)[1] & HEAVY


def test_the_measure_sees_torch_where_it_is_loaded():
    seconds, modules = import_afresh("from kdnlp import DistillationLoss")
    assert {"torch", "transformers"} <= modules
    assert seconds > 0


@pytest.mark.parametrize("name", kdnlp.__all__)
def test_every_public_name_leads_somewhere(name):
    value = getattr(kdnlp, name)
    home = kdnlp._HOMES.get(name)
    assert value is not None
    assert home is None or getattr(sys.modules[f"kdnlp.{home}"], name) is value


def test_names_are_public_once_and_where_they_are_defined():
    assert len(kdnlp.__all__) == len(set(kdnlp.__all__))
    for name, home in kdnlp._HOMES.items():
        defined_in = getattr(getattr(kdnlp, name), "__module__", None)
        if isinstance(defined_in, str) and defined_in.startswith("kdnlp"):
            assert defined_in.startswith(f"kdnlp.{home}")


def test_type_checkers_see_the_names_that_python_loads():
    tree = ast.parse(Path(kdnlp.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    homes = {name: f"kdnlp.{home}" for name, home in kdnlp._HOMES.items()}
    assert seen == homes, "a public name stands in _HOMES and under TYPE_CHECKING alike"


def test_every_loss_has_a_public_name():
    named = {loss.__name__ for loss in kdnlp.LOSSES.values()}
    missing = named - set(kdnlp.__all__)
    assert not missing, f"add {missing} to kdnlp/__init__.py: _HOMES and under TYPE_CHECKING"


def test_completion_offers_the_public_names():
    assert dir(kdnlp) == sorted(kdnlp.__all__)
    assert {"TheseusTrainer", "DistillationTrainer", "build_student", "__version__"} <= {
        *dir(kdnlp)
    }


@pytest.mark.parametrize("name", ["TheseusTrainr", "utils", "_missing"])
def test_a_misspelt_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'kdnlp' has no attribute '{name}'"):
        getattr(kdnlp, name)
    assert not hasattr(kdnlp, name)
    with pytest.raises(ImportError, match=name):
        exec(f"from kdnlp import {name}")
