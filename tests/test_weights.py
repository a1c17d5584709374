"""The digest tells other weights apart, and the same ones alike wherever they lie."""

import json
from pathlib import Path

import pytest
import torch
from kinds import tiny_head
from transformers import BertForMaskedLM

from kdnlp.data.synthetic import build_config
from kdnlp.weights import (
    EXPORT_JSON,
    SOURCE_DIGEST,
    folder_digest,
    is_export_of,
    read_export,
    weights_digest,
)

KIND = "single_label_classification"


def digest(model):
    return weights_digest(model.state_dict().values())


@pytest.fixture
def model():
    return tiny_head(KIND)


def test_a_model_and_the_files_that_hold_it_have_one_digest(model, tmp_path):
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("model-*"))) > 1
    assert digest(model) == folder_digest(tmp_path / "one") == folder_digest(tmp_path / "shards")
    assert len(digest(model)) == len("sha256:") + 64


def test_tied_weights_which_a_file_holds_once_count_once(tmp_path):
    tied = BertForMaskedLM(build_config(1, hidden_size=8, num_heads=2, intermediate_size=8))
    tied.save_pretrained(tmp_path)
    assert digest(tied) == folder_digest(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_read_in_float32_is_the_same_model(model, dtype, tmp_path):
    half = model.to(dtype)
    half.save_pretrained(tmp_path)
    assert folder_digest(tmp_path) == digest(half.float())


def test_any_other_weight_is_another_digest(model):
    before = digest(model)
    with torch.no_grad():
        model.classifier.bias[1] += 1e-6
    assert digest(model) != before
    assert digest(tiny_head(KIND, seed=1)) != before
    ones = torch.ones(2, 3)
    assert weights_digest([ones]) != weights_digest([ones.T])


def test_one_file_comes_before_the_shards_of_an_earlier_model(model, tmp_path):
    tiny_head(KIND, seed=1).save_pretrained(tmp_path, max_shard_size="4KB")
    shards = {path: path.read_bytes() for path in tmp_path.glob("model-*")}
    model.save_pretrained(tmp_path)
    for path, content in shards.items():
        path.write_bytes(content)
    assert folder_digest(tmp_path) == digest(model)


def write(folder, text):
    folder.mkdir(exist_ok=True)
    Path(folder, EXPORT_JSON).write_text(text)
    return folder


def test_an_export_says_of_which_weights_it_is(model, tmp_path):
    model.save_pretrained(tmp_path)
    export = write(tmp_path / "onnx", json.dumps({SOURCE_DIGEST: digest(model)}))
    assert is_export_of(export, tmp_path)
    tiny_head(KIND, seed=1).save_pretrained(tmp_path)
    assert not is_export_of(export, tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"source_digest": null}'])
def test_an_export_that_does_not_say_so_is_of_no_weights(model, text, tmp_path):
    model.save_pretrained(tmp_path / "model")
    export = write(tmp_path / "onnx", text)
    assert read_export(export).get(SOURCE_DIGEST) is None
    assert not is_export_of(export, tmp_path / "model")
    assert not is_export_of(export, tmp_path)  # which holds no weights either
    assert read_export(tmp_path / "nowhere") == {}
