"""A graph answers as its model does at every batch size and length, or there is none."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from settings import ARCHITECTURES, SMALL, VOCAB_SIZE, task_model, tiny_model

import kdnlp
from kdnlp.models import onnx_graph
from kdnlp.models.onnx_graph import OnnxModel, check_exportable, export_onnx, quantize_onnx

FEW = ("gpt2",)  # BERT's graph is every other test's
SIZES = [(1, 5, 0), (7, 23, 9), (4, 2, 1), (2, 64, 50), (1, 1, 0)]
"""Rows, tokens, and how many of the first row's tokens are padding; exported are 3 rows of 11."""


def padded_batch(model, rows, length, padding):
    ids = torch.randint(5, VOCAB_SIZE, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, length - padding :] = 0
    ids[mask == 0] = model.config.pad_token_id or 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_same(model, path, **more):
    graph = OnnxModel(path)
    for rows, length, padding in SIZES:
        batch = padded_batch(model, rows, length, padding)
        batch |= {name: make(batch["input_ids"]) for name, make in more.items()}
        with torch.no_grad():
            expected = model(**batch)
        for name, found in graph(batch).items():
            np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=2e-5)
    return graph


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in ARCHITECTURES],
)
def test_every_family_is_the_same_at_other_sizes_than_those_it_was_exported_with(
    name, tmp_path, capfd
):
    model, logger = tiny_model(name, 2), logging.getLogger("torch.onnx")
    before = model.config.to_dict(), logger.level
    path = export_onnx(model, tmp_path / "model.onnx", inputs=["input_ids", "attention_mask"])
    assert capfd.readouterr() == ("", "")
    assert (model.config.to_dict(), logger.level) == before
    graph = assert_same(model, path)
    assert graph.inputs == ["input_ids", "attention_mask"]
    assert graph.outputs == ["logits"]
    assert [list(value.shape) for value in graph.session.get_inputs()] == [["batch", "length"]] * 2


@pytest.mark.parametrize(
    "task",
    [
        pytest.param("question_answering"),
        pytest.param("token_classification", marks=pytest.mark.slow),
        pytest.param("masked_lm", marks=pytest.mark.slow),
    ],
)
def test_heads_that_answer_for_every_token_and_weights_that_fill_a_second_file(
    task, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx_graph, "_ONE_FILE_BYTES", 1000)
    model = task_model(task, 2).train()
    path = export_onnx(model, tmp_path / "model.onnx")
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert model.training
    graph = assert_same(model.eval(), path, token_type_ids=lambda ids: (ids > 20).long())
    assert graph.inputs == ["input_ids", "attention_mask", "token_type_ids"]
    both = ["start_logits", "end_logits"]
    assert graph.outputs == (both if task == "question_answering" else ["logits"])
    (domain,) = onnx.load(path).opset_import
    assert domain.version == 18
    with pytest.raises(ValueError, match="Without token_type_ids there is nothing to compute"):
        graph(padded_batch(model, 1, 3, 0))


def test_a_graph_does_not_publish_where_the_code_that_wrote_it_lies(tmp_path):
    graph = export_onnx(tiny_model("bert", 1), tmp_path / "model.onnx")
    quantize_onnx(graph, tmp_path / "int8.onnx")
    for file in (graph, tmp_path / "int8.onnx"):
        content = file.read_bytes()
        for package in (kdnlp, torch, transformers):
            assert str(Path(package.__file__).parents[1]).encode() not in content
        assert b".py" not in content


@pytest.mark.slow
def test_a_newer_opset_is_the_one_that_is_written(tmp_path):
    model = tiny_model("bert", 1)
    path = export_onnx(model, tmp_path / "model.onnx", opset=20)
    assert [d.version for d in onnx.load(path).opset_import if d.domain == ""] == [20]
    assert_same(model, path, token_type_ids=torch.zeros_like)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: task_model("causal_lm"), "it is a model for causal_lm"),
        (lambda: task_model("seq2seq_lm"), "it is a model for seq2seq_lm"),
        (lambda: task_model("multiple_choice"), "it is a model for multiple_choice"),
        (lambda: tiny_model("bert").bert, "this one has no head"),
        (
            lambda: transformers.T5ForSequenceClassification(
                transformers.T5Config(
                    vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=24, num_layers=1
                )
            ),
            "its decoder reads a second text",
        ),
    ],
    ids=["causal", "seq2seq", "choices", "headless", "decoder"],
)
def test_a_model_that_no_such_graph_can_stand_for_is_refused(build, reason, tmp_path):
    model = build()
    with pytest.raises(ValueError, match=reason):
        check_exportable(model)
    with pytest.raises(ValueError, match=reason):
        export_onnx(model, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced_is_refused_with_the_reason(tmp_path):
    class Branching(transformers.BertForSequenceClassification):
        def forward(self, input_ids, attention_mask=None, **kwargs):
            if input_ids.sum().item() > 40:
                attention_mask = None
            return super().forward(input_ids, attention_mask, **kwargs)

    model = Branching(transformers.BertConfig(vocab_size=VOCAB_SIZE, num_hidden_layers=1, **SMALL))
    with pytest.raises(ValueError, match="Branching cannot be exported: torch's exporter"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_an_opset_that_the_exporter_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="opset must be at least 18, got 14"):
        export_onnx(tiny_model("bert", 1), tmp_path / "model.onnx", opset=14)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_what_installs_it(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None if name == missing else 1)
    for act in (lambda p: export_onnx(tiny_model("bert", 1), p), OnnxModel):
        with pytest.raises(ImportError, match=rf"got no {missing}\..*'kdnlp\[onnx\]'"):
            act(tmp_path / "model.onnx")
