"""The client of this process, led to a Hub on the loopback."""

from contextlib import contextmanager

from huggingface_hub import constants
from server import TOKEN, Hub

from kdnlp.uploads import send


@contextmanager
def loopback(monkeypatch, folder, owners=("me", "my-organisation")):
    """A server that this process's client asks, with its token, and waits for nothing.

    Args:
        monkeypatch: takes all of it back.
        folder: where the client keeps what it downloads.
        owners: whom the token may write for.
    """
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-home" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub-cache"))
    monkeypatch.setattr(send, "WAITS_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # transformers keeps a client, and with it the address of an earlier test's server.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    with Hub(owners) as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
