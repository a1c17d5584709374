"""Loading a model reads data: no pickle, and no code that the caller did not ask for."""

import ast
import json
import logging
import shlex
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from settings import tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import kdnlp
from kdnlp.data.masked_words import load_masked_lm
from kdnlp.data.task import Task
from kdnlp.loading import CONVERT, load_config, load_model, load_tokenizer
from kdnlp.models.pretrained import load_as_saved, load_finetuned, load_for_finetuning
from kdnlp.models.student import build_student

TASK = Task("pair", ("text",), ("different", "same"), ("accuracy",))
LABELS = {"id2label": {0: "different", 1: "same"}, "label2id": {"different": 0, "same": 1}}

CODE = """
from pathlib import Path

from transformers import BertConfig, BertForSequenceClassification

Path({marker!r}).touch()


class OwnConfig(BertConfig):
    model_type = {model_type!r}


class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""
AUTO_MAP = {
    "AutoConfig": "own_code.OwnConfig",
    "AutoModelForSequenceClassification": "own_code.OwnModel",
}


@pytest.fixture
def folder(tmp_path):
    """A fine-tuned model and its tokenizer."""
    place = tmp_path / "model"
    tiny_model("bert", 2, **LABELS).save_pretrained(place)
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(place)
    return place


class Response:
    headers, request = {}, None


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        (HFValidationError("bad"), "it is no OWNER/NAME either"),
        (GatedRepoError("403", response=Response()), "it is gated"),
        (RepositoryNotFoundError("404", response=Response()), "not found there, or private"),
        (RevisionNotFoundError("404", response=Response()), "it has no such revision"),
        (LocalEntryNotFoundError("no connection"), "it cannot be reached"),
    ],
)
def test_a_model_that_cannot_be_fetched_is_named_with_the_reason(cause, why, monkeypatch):
    def fetch(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'") from cause

    monkeypatch.setattr(AutoConfig, "from_pretrained", fetch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(FileNotFoundError, match=rf"No folder me/gone here, .*Hub \({why}"):
        load_config("me/gone")


def test_another_failure_is_not_taken_for_a_model_that_is_not_there(folder, monkeypatch):
    def read(*_, **__):
        raise PermissionError("Permission denied: config.json")

    monkeypatch.setattr(AutoConfig, "from_pretrained", read)
    for name in (str(folder), "me/gone"):
        with pytest.raises(PermissionError, match="Permission denied"):
            load_config(name)


LOADERS = {
    "config": load_config,
    "as saved": load_as_saved,
    "finetuned": lambda name: load_finetuned(name, TASK),
    "for finetuning": lambda name: load_for_finetuning(name, TASK),
    "masked": lambda name: load_masked_lm(name, None),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_no_model_is_said_by_whatever_loads_one(loader, folder):
    load = LOADERS[loader]
    (folder / "config.json").rename(folder / "other.json")
    for name, message in (
        ("nowhere", r"No folder nowhere here, and .*\(offline: HF_HUB_OFFLINE is set"),
        ("nowhere/at-all", r"No folder nowhere/at-all here, and .*\(offline"),
        ("./missing", r"No folder \./missing here, .*\(it is no OWNER/NAME"),
        (str(folder), "got a folder without config.json"),
        (str(folder / "other.json"), "got the file .*other.json"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            load(name)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "ran"


@pytest.fixture(autouse=True)
def modules_of_its_own(tmp_path, monkeypatch):
    """Where transformers would copy and import code from, used by no other test."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_code(folder, marker, model_type):
    (folder / "own_code.py").write_text(CODE.format(marker=str(marker), model_type=model_type))
    edit(folder / "config.json", auto_map=AUTO_MAP, model_type=model_type)


def make_pickle(folder, name="pytorch_model.bin"):
    torch.save(tiny_model("bert", 2, **LABELS).state_dict(), folder / name)
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("load", [load_finetuned, load_for_finetuning])
def test_code_beside_the_weights_is_refused_without_being_run(load, folder, marker):
    add_code(folder, marker, "own-type")
    with pytest.raises(ValueError, match="brings Python code of its own") as error:
        load(folder, TASK)
    assert "--trust_remote_code" in str(error.value)
    assert str(folder) in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("load", [load_finetuned, load_for_finetuning])
def test_a_class_of_transformers_is_taken_before_the_code_and_leads_to_it_no_more(
    load, folder, marker, tmp_path, caplog
):
    add_code(folder, marker, "bert")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own_code.Own"]})
    with caplog.at_level(logging.WARNING, "kdnlp"):
        model, tokenizer = load(folder, TASK)
    for part in ("model", "tokenizer"):
        assert f"Python code of its own for its {part}, left out" in caplog.text
    build_student(model, 1).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    for path in (tmp_path / "student").iterdir():
        assert b"own_code" not in path.read_bytes(), path
        assert path.suffix != ".py"
    assert not marker.exists()


def test_a_tokenizer_that_is_nothing_without_its_code_is_refused(folder, marker):
    (folder / "own_code.py").write_text(CODE.format(marker=str(marker), model_type="x"))
    own = {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}
    edit(folder / "tokenizer_config.json", auto_map=own, tokenizer_class="OwnTokenizer")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="brings Python code of its own"):
        load_tokenizer(str(folder))
    assert not marker.exists()


def test_code_runs_where_it_is_trusted_and_what_is_saved_says_so(folder, marker, tmp_path, caplog):
    add_code(folder, marker, "own-type")
    with caplog.at_level(logging.WARNING, "kdnlp"):
        model, _ = load_finetuned(folder, TASK, trust_remote_code=True)
    assert marker.exists()
    assert type(model).__name__ == "OwnModel"
    assert "runs Python code of its own; what is saved carries it along" in caplog.text
    build_student(model, 1).save_pretrained(tmp_path / "student")
    assert (tmp_path / "student" / "own_code.py").is_file()
    assert "own-type" not in CONFIG_MAPPING


def test_a_pickle_of_weights_is_refused_and_the_message_converts_it(folder, monkeypatch):
    make_pickle(folder)
    for load in (load_for_finetuning, load_finetuned):
        with pytest.raises(OSError, match=r"in safetensors, got pytorch_model\.bin") as error:
            load(folder, TASK)
    command = str(error.value).partition("tensors alone: ")[2]
    assert command == CONVERT
    python, flag, code = shlex.split(command)
    assert (python, flag) == ("python", "-c")
    monkeypatch.chdir(folder)
    exec(code, {})
    model, _ = load_finetuned(folder, TASK)
    expected = tiny_model("bert", 2, **LABELS).state_dict()
    assert all(torch.equal(tensor, expected[k]) for k, tensor in model.state_dict().items())


def test_a_masked_language_model_is_read_as_carefully(folder):
    make_pickle(folder)
    with pytest.raises(OSError, match="in safetensors"):
        load_masked_lm(folder, None)


def test_a_pickle_beside_safetensors_is_left_alone(folder):
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert load_finetuned(folder, TASK)[0].config.num_hidden_layers == 2


def test_a_hub_model_without_safetensors_is_explained(monkeypatch):
    class Auto:
        @classmethod
        def from_pretrained(cls, name, **kwargs):
            assert kwargs["use_safetensors"] is True
            raise OSError(f"{name} cannot be loaded with `safetensors`.")

    with pytest.raises(OSError, match=r"weights of someone/model in safetensors.*save_file"):
        load_model(Auto, "someone/model")


def test_pickles_cannot_be_asked_for(folder):
    with pytest.raises(TypeError, match="use_safetensors"):
        load_finetuned(folder, TASK, use_safetensors=False)


FORBIDDEN = {"from_pretrained", "from_config", "load_dataset_builder", "unsafe_load", "full_load"}


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func), node


def test_nothing_in_the_package_reads_what_could_run():
    """A new reader has to go through kdnlp.loading, or say that it takes no pickles.

    What runs where kdnlp cannot be imported says so by itself.
    """
    found = {}
    for path in Path(kdnlp.__file__).parent.rglob("*.py"):
        for name, call in calls(path):
            base, _, method = name.rpartition(".")
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            found.setdefault(name, []).append(path.name)
            if path.name == "fresh_process.py" and "AutoTokenizer" not in name:
                assert method != "from_pretrained" or options["use_safetensors"] == "True"
            elif path.name not in ("loading.py", "fresh_process.py"):
                assert method not in FORBIDDEN, (path, name)
            assert base not in ("pickle", "joblib", "dill", "marshal", "shelve"), (path, name)
            assert name not in ("yaml.load", "yaml.load_all", "pandas.read_pickle"), (path, name)
            if name == "torch.load":
                assert options.get("weights_only") == "True", path
            if name in ("np.load", "np.save"):
                assert options.get("allow_pickle") == "False", (path, call.lineno)
    assert {"np.load", "yaml.safe_load", "auto_class.from_pretrained"} <= found.keys()
