"""The gate lets no export pass that is another model, or a folder that is not plain."""

import shutil

import numpy as np
import pytest
import torch
from changed_json import change
from datasets import Dataset
from kinds import tiny_head
from transformers import DataCollatorWithPadding

from kdnlp.compression import gate
from kdnlp.compression.gate import (
    Equality,
    ExportMismatch,
    check_equal,
    check_plain_config,
    check_plain_folder,
)
from kdnlp.compression.settings import AGREEMENTS, TOLERANCES, ExportSettings
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.evaluation.logits import model_logits, token_batches

AUTO_CLASS = "AutoModelForSequenceClassification"
SEQUENCE, TOKENS = "single_label_classification", "token_classification"
MASK = {"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}


def saying(values, name="logits"):
    """What always gives these logits."""
    return lambda batch: {name: np.array(values, np.float32)}


def compare(ours, theirs, kind=SEQUENCE, tolerance=0.1, min_agreement=0.5):
    return check_equal(saying(ours), saying(theirs), [MASK], kind, tolerance, min_agreement)


def test_the_difference_is_a_share_of_the_largest_logit_of_the_model():
    found = compare([[4.0, -8.0], [1.0, 2.0]], [[4.4, -8.0], [1.0, 2.0]])
    assert found == Equality(2, pytest.approx(0.4), 8.0, 1.0)
    assert found.share == pytest.approx(0.05)
    with pytest.raises(ExportMismatch, match=r"got a difference of 0\.4 where the largest is 8 "):
        compare([[4.0, -8.0], [1.0, 2.0]], [[4.4, -8.0], [1.0, 2.0]], tolerance=0.049)


def test_equal_enough_logits_with_other_predictions_do_not_pass():
    ours, theirs = [[4.0, 4.1], [0.0, 0.1]], [[4.1, 4.0], [0.1, 0.0]]
    with pytest.raises(ExportMismatch, match=r"and 0\.0% equal on 2 rows"):
        compare(ours, theirs)
    assert compare(ours, theirs, min_agreement=0).agreement == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_export_that_gives_no_numbers_does_not_pass(broken):
    with pytest.raises(ExportMismatch):
        compare([[4.0, 1.0], [1.0, 2.0]], [[4.0, 1.0], [broken, 2.0]], tolerance=1e6)
    with pytest.raises(ValueError, match="finite logits from the model itself"):
        compare([[4.0, broken], [1.0, 2.0]], [[4.0, 1.0], [1.0, 2.0]])


def test_padding_does_not_count_where_every_token_has_an_answer():
    ours = np.arange(12.0).reshape(2, 3, 2)
    theirs = ours.copy()
    theirs[0, 2] = 99
    assert compare(ours, theirs, TOKENS).largest_difference == 0
    theirs[1, 2] = 99
    with pytest.raises(ExportMismatch):
        compare(ours, theirs, TOKENS)


def test_answers_are_compared_by_start_and_end():
    def answers(start, end):
        return lambda batch: {
            "start_logits": np.array(start, np.float32),
            "end_logits": np.array(end, np.float32),
        }

    rows = [[2.0, 1.0, 50.0], [0.0, 1.0, 3.0]]
    other = [[2.0, 1.0, 60.0], [0.0, 3.1, 3.0]]
    found = check_equal(
        answers(rows, rows), answers(rows, other), [MASK], "question_answering", 1.0, 0.5
    )
    assert found == Equality(2, pytest.approx(2.1), 3.0, 0.75)


def test_several_labels_and_real_numbers_agree_in_their_own_ways():
    ours, theirs = [[1.0, -1.0], [3.0, 0.1]], [[1.0, -1.0], [3.0, -0.1]]
    assert compare(ours, theirs, "multi_label_classification").agreement == 0.75
    assert compare([[1.0], [2.0]], [[1.1], [2.0]], "regression", 0.1, 1.0).agreement is None


def test_other_shapes_and_no_rows_are_no_comparison():
    with pytest.raises(ExportMismatch, match="answers another question"):
        compare([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="at least one row"):
        check_equal(saying([[1.0]]), saying([[1.0]]), [], SEQUENCE, 1.0, 0.0)


@pytest.fixture(scope="module")
def tiny():
    return tiny_head(SEQUENCE), build_tokenizer()


@pytest.fixture
def folder(tiny, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path)
    return tmp_path


FAULTS = {
    "layers": (change("config.json", num_hidden_layers=3), "num_hidden_layers=3 and the rest"),
    "width": (change("config.json", architectures=["BertModel"]), "architectures is"),
    "labels": (change("config.json", id2label={0: "x", 1: "y"}), "id2label is {0: 'x', 1: 'y'}"),
    "loss": (change("config.json", problem_type="regression"), "problem_type is regression"),
    "key": (change("config.json", kdnlp_loss="hidden"), "kdnlp_loss leads to kdnlp"),
    "value": (change("config.json", deep=[{"kept": "kdnlp.Path"}]), "kept leads to kdnlp"),
    "tokenizer": (change("tokenizer_config.json", maker="kdnlp"), "maker leads to kdnlp"),
    "code": (change("config.json", auto_map={"AutoModel": "m.M"}), "auto_map leads to code"),
    "pickle": (lambda f: (f / "old.bin").touch(), "old.bin may run code"),
    "config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "vocabulary": (lambda f: (f / "tokenizer.json").unlink(), "no vocabulary file"),
    "setting": (
        lambda f: (f / "tokenizer_config.json").unlink(),
        "tokenizer_config.json is missing",
    ),
}


@pytest.mark.parametrize(("harm", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_folder_that_is_not_plain_is_refused_by_what_is_wrong(harm, fault, folder, tiny):
    check_plain_config(folder, tiny[0])
    harm(folder)
    with pytest.raises(ExportMismatch) as refusal:
        check_plain_config(folder, tiny[0])
    assert fault in str(refusal.value)


def first_batch(tokenizer):
    rows = Dataset.from_dict(dict(tokenizer(["the plot was not dull", "the film"])))
    return next(token_batches(rows, DataCollatorWithPadding(tokenizer), [2]))[0]


def test_weights_that_load_otherwise_elsewhere_are_seen(folder, tiny, monkeypatch):
    said, batch = model_logits(tiny[0]), first_batch(tiny[1])
    run, found, logits = gate._run_afresh, {}, {}

    def run_once(job):
        if not found:
            for kept, new in zip((found, logits), run(job), strict=True):
                kept.update(new)
        return found, logits

    monkeypatch.setattr(gate, "_run_afresh", run_once)
    check_plain_folder(folder, *tiny, AUTO_CLASS, batch, said)
    with pytest.raises(ExportMismatch, match="its logits are others than here"):
        check_plain_folder(
            folder, *tiny, AUTO_CLASS, batch, model_logits(tiny_head(SEQUENCE, seed=1))
        )
    found.update({"missing": ["pooler"], "probe_ids": [1], "class": "BertModel"})
    with pytest.raises(ExportMismatch) as refusal:
        check_plain_folder(folder, *tiny, AUTO_CLASS, batch, said)
    for fault in ("missing is ['pooler']", "reads a text otherwise", "it loads as BertModel"):
        assert fault in str(refusal.value)


@pytest.mark.slow
def test_a_folder_that_fails_to_load_elsewhere_is_refused(folder, tiny):
    model, tokenizer = tiny
    said, batch = model_logits(model), first_batch(tokenizer)
    with pytest.raises(ExportMismatch, match="an error there"):
        check_plain_folder(folder, *tiny, "AutoModelForMultipleChoice", batch, said)
    shutil.rmtree(folder)
    tiny_head(SEQUENCE, num_layers=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    change("config.json", num_hidden_layers=2)(folder)
    with pytest.raises(ExportMismatch, match="unexpected is"):
        check_plain_folder(folder, *tiny, AUTO_CLASS, batch, said)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "safetensors", "quantize": "dynamic-int8"}, "quantize=dynamic-int8 is a"),
        ({"format": "onnx", "dtype": "float16"}, "dtype=float16 is a setting of format=safet"),
        ({"format": "pytorch-int8", "opset": 18}, "opset=18 is a setting of format=onnx"),
        ({"opset": 13}, "opset must be at least 18"),
        ({"num_rows": 0}, "num_rows and batch_size must be at least 1"),
        ({"tolerance": -0.1}, "tolerance must be at least 0"),
        ({"tolerance": float("nan")}, "tolerance must be at least 0"),
        ({"min_agreement": 1.1}, r"min_agreement lie in 0\.\.1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExportSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({}, "float32"),
        ({"quantize": "dynamic-int8"}, "int8"),
        ({"format": "pytorch-int8"}, "int8"),
        ({"format": "safetensors"}, "float16"),
        ({"format": "safetensors", "dtype": "bfloat16"}, "bfloat16"),
        ({"format": "safetensors", "dtype": "float32"}, "float32"),
    ],
)
def test_the_precision_decides_on_what_passes(settings, precision):
    found = ExportSettings(**settings)
    assert found.precision == precision
    assert found.largest_share == TOLERANCES[precision]
    assert found.least_agreement == AGREEMENTS[precision]
    assert ExportSettings(**settings, tolerance=0.0, min_agreement=0.0).largest_share == 0
