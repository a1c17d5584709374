"""A Hub on the loopback that the real client of this process talks to."""

import os
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

sys.path.insert(0, str(Path(__file__).parent))

from server import TOKEN, Hub

from kdnlp.evaluation import plots
from kdnlp.uploads import send


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server; the client of this process asks it, with its token, and waits for nothing."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-home" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(send, "WAITS_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # transformers keeps a client, and with it the address of an earlier test's server.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    with Hub() as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
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
