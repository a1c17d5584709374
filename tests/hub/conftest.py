"""A Hub on the loopback that the real client of this process talks to."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from loopback import loopback
from server import TOKEN

from kdnlp.evaluation import plots


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server; the client of this process asks it, with its token, and waits for nothing."""
    with loopback(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without pictures, whose drawing takes longer than training here."""
    monkeypatch.setattr(plots, "save_plots", lambda report, folder: None)


@pytest.fixture
def elsewhere(hub, tmp_path):
    """The environment of another process, on a machine that has never asked this Hub."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    return {**own, **home, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}
