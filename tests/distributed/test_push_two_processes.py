"""Two processes train and publish: one of them writes to the Hub, once."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from kdnlp.data.synthetic import SYNTHETIC_TASKS, build_config, build_tokenizer
from kdnlp.models.pretrained import head_config

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from server import TOKEN, Hub

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server that the processes which a test starts ask, with its token."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        yield server


def test_one_of_two_processes_publishes(launch, hub, tmp_path):
    config = build_config(4, hidden_size=16, num_heads=2, intermediate_size=24)
    config.update(head_config(SYNTHETIC_TASKS["synthetic_sentiment"]))
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    build_tokenizer().save_pretrained(tmp_path / "teacher")
    out = tmp_path / "out"
    launch(
        *("-m", "kdnlp", "distill", "--teacher", str(tmp_path / "teacher")),
        *("--task", "synthetic_sentiment", "--max_train_samples", "64", "--no_baseline"),
        *("--output_dir", str(out), "--max_steps", "2", "--use_cpu", "--report_seconds", "0.5"),
        *("--push_to_hub", "--hub_model_id", "me/small", "--hub_strategy", "end"),
        *("--license", "mit", "--disable_tqdm", "true"),
    )
    repo = hub.repos["me/small"]
    assert repo.messages == ["initial commit", "Model save", "End of training"]
    assert hub.asked("/repos/create") == 1
    assert b"license: mit" in repo.files()["README.md"]
    launch("-m", "kdnlp", "push", str(out), "--repo_id", "me/again")
    assert hub.repos["me/again"].messages == ["initial commit", "Upload model"]
    assert hub.names("me/again") == hub.names("me/small")
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.num_hidden_layers == 2


def test_one_of_two_processes_asks_the_hub_for_the_licence(launch, hub, tmp_path):
    hub.add_repo("org/base", {"README.md": b"---\nlicense: cc-by-4.0\n---\n"})
    launch(str(Path(__file__).parent / "run_licence.py"), str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["finds"] == [True, False]  # asked alone, the second would be refused alone
    assert results["steps"] == [1, 1]
    assert b"license: cc-by-4.0" in hub.repos["me/small"].files()["README.md"]
    first, second = results["refused"]
    assert first == second
    assert first.startswith("ValueError: push_to_hub needs a licence for the model, found none")
