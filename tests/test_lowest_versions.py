"""The run on the lowest versions runs on the lowest versions."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from lowest_versions import lowest_versions


def test_every_requirement_is_held_at_its_lowest_version():
    requirements = ["transformers<6,>=5.17", "torch>=2.6", 'pytest>=8.3; extra == "dev"']
    assert lowest_versions(requirements, {}) == ["transformers==5.17", "torch==2.6"]
    held = lowest_versions(requirements, {"torch": "2.13.0"})
    assert held == ["transformers==5.17", "torch==2.13.0"]


def test_a_requirement_that_no_run_can_test_is_refused():
    with pytest.raises(ValueError, match=r"lowest version, got 'torch'.*Write name>=version"):
        lowest_versions(["torch"], {})


def test_a_mistyped_name_is_refused():
    with pytest.raises(ValueError, match="Expected names out of torch, got tensorflow"):
        lowest_versions(["torch>=2.6"], {"tensorflow": "2.0"})
