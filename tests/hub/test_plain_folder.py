"""A folder goes to the Hub only if it is the plain model that its files say it is."""

import json

import pytest
from changed_json import change
from settings import tiny_model
from transformers import BertForMaskedLM

from kdnlp.data.synthetic import build_config, build_tokenizer
from kdnlp.uploads.plain_folder import check_complete


@pytest.fixture
def folder(tmp_path):
    """A plain model and its tokenizer."""
    tiny_model("bert", 2).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def report_labels(*names):
    return lambda folder: (folder / "report.json").write_text(
        json.dumps({"run": {"label_names": names}})
    )


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


FAULTS = {
    "blocks": (change("config.json", num_hidden_layers=3), "num_hidden_layers=3 describes"),
    "fewer": (change("config.json", num_hidden_layers=1), "the weights have beyond it"),
    "width": (change("config.json", hidden_size=32), "the weights have in other shapes"),
    "head": (change("config.json", architectures=["BertModel"]), "classifier.bias"),
    "class": (change("config.json", architectures=["OwnModel"]), "['OwnModel'], which names no"),
    "no class": (change("config.json", architectures=None), "architectures is None"),
    "key": (change("config.json", kdnlp_loss="hidden"), "kdnlp_loss leads to kdnlp"),
    "tokenizer": (change("tokenizer_config.json", maker="kdnlp.x"), "maker leads to kdnlp"),
    "settings": (
        lambda f: (f / "tokenizer_config.json").unlink(),
        "tokenizer_config.json is missi",
    ),
    "vocabulary": (lambda f: (f / "tokenizer.json").unlink(), "has no vocabulary file"),
    "labels": (report_labels("good", "bad"), "id2label names ['no', 'yes'], and report.json"),
    "cut": (cut_weights, "the weights cannot be read"),
    "no JSON": (lambda f: (f / "config.json").write_text("[1]"), "Expected an object of JSON"),
}


@pytest.mark.parametrize(("harm", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_folder_that_is_not_the_plain_model_it_says_is_refused(folder, harm, fault):
    report_labels("YES", "no")(folder)
    assert folder / "model.safetensors" in check_complete(folder)
    harm(folder)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - each has its words below
        check_complete(folder)
    assert fault in str(refusal.value)


def test_generic_names_of_labels_contradict_no_report(folder):
    report_labels("good", "bad")(folder)
    change("config.json", id2label={0: "LABEL_0", 1: "LABEL_1"})(folder)
    check_complete(folder)


def test_a_model_in_shards_is_whole_with_all_of_them_only(folder):
    (folder / "model.safetensors").unlink()
    tiny_model("bert", 2).save_pretrained(folder, max_shard_size="4KB")
    assert set(folder.glob("model*")) <= set(check_complete(folder))
    next(folder.glob("model-00002-*")).unlink()
    with pytest.raises(ValueError, match="the weights cannot be read"):
        check_complete(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_part_that_is_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory, name):
    """The link is not followed, and the Hub would lose the weights that it has."""
    outside = tmp_path_factory.mktemp("disk") / name
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"got {name} as links that lead out"):
        check_complete(folder)


def test_the_parts_of_two_layers_which_are_one_are_not_missing(tmp_path):
    tied = BertForMaskedLM(build_config(1, hidden_size=8, num_heads=2, intermediate_size=8))
    tied.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    check_complete(tmp_path)


@pytest.mark.parametrize("tokenizer_class", ["ByT5Tokenizer", "CanineTokenizer"])
def test_a_tokenizer_of_bytes_needs_no_vocabulary(folder, tokenizer_class):
    (folder / "tokenizer.json").unlink()
    change("tokenizer_config.json", tokenizer_class=tokenizer_class)(folder)
    assert folder / "tokenizer_config.json" in check_complete(folder)
