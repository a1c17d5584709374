import importlib.util
import re
import shutil
from dataclasses import asdict

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from settings import tiny_model

from kdnlp.models import onnx_graph
from kdnlp.profiling import runtimes
from kdnlp.profiling.forward import example_inputs
from kdnlp.profiling.onnx_session import OnnxSession
from kdnlp.profiling.runtimes import RUNTIMES, RuntimeRow, compare_runtimes

QUICK = {"num_warmup": 1, "num_repeats": 3}
SHAPE = {"batch_sizes": (2,), "lengths": (8,)}


def write_graph(path, *inputs, shape=("b", "l")):
    """A graph of two logits an example: the sum of what it reads, and that sum again."""
    nodes = [
        *(helper.make_node("Cast", [n], [f"{n}_f"], to=TensorProto.FLOAT) for n in inputs),
        helper.make_node("Sum", [f"{n}_f" for n in inputs], ["all"]),
        helper.make_node("ReduceSum", ["all", "axes"], ["one"], keepdims=1),
        helper.make_node("Concat", ["one", "one"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_eager_and_sdpa_take_turns_and_say_the_same():
    model = tiny_model("bert", 2).train()
    rows = compare_runtimes(model, ("eager", "sdpa"), "m", (1, 2), (8, 16), **QUICK)
    cells = [(r.latency.sequence_length, r.latency.batch_size, r.runtime) for r in rows]
    shapes = [(8, 1), (8, 2), (16, 1), (16, 2)]
    assert cells == [(*shape, runtime) for shape in shapes for runtime in ("eager", "sdpa")]
    for eager, sdpa in zip(rows[::2], rows[1::2], strict=True):
        assert eager.speedup is eager.max_difference is None
        assert sdpa.speedup.rounds == 3
        assert sdpa.max_difference < 1e-5
    assert model.config._attn_implementation == "sdpa"
    assert model.training


def test_each_runtime_really_has_its_own_attention_and_the_models_weights(monkeypatch):
    model, seen = tiny_model("bert", 1), {}

    def watch(models, inputs, *rest):
        seen.update(models)
        return {name: [1.0] * 3 for name in models}

    monkeypatch.setattr(runtimes, "time_rounds", watch)
    compare_runtimes(model, ("eager", "sdpa"), **SHAPE, **QUICK)
    assert {n: m.config._attn_implementation for n, m in seen.items()} == {
        "eager": "eager",
        "sdpa": "sdpa",
    }
    for other in seen.values():
        assert other is not model
        for own, shared in zip(model.parameters(), other.parameters(), strict=True):
            assert own is shared


def test_a_graph_is_run_on_the_same_inputs_and_compared(tmp_path):
    model = tiny_model("bert", 1)
    graph = write_graph(tmp_path / "model.onnx", "input_ids", "attention_mask")
    eager, row = compare_runtimes(model, ("eager", "onnx"), graph=graph, **SHAPE, **QUICK)
    inputs = example_inputs(model, 2, 8)
    with torch.no_grad():
        logits = model(**inputs).logits
    sums = (inputs["input_ids"] + inputs["attention_mask"]).sum(1, keepdim=True)
    assert row.max_difference == pytest.approx(float((sums - logits).abs().max()), rel=1e-5)
    assert row.latency.p50_ms > 0
    assert row.speedup.ratio > 0
    assert eager.latency.batch_size == row.latency.batch_size == 2


def test_token_types_that_a_graph_reads_are_zero(tmp_path):
    session = OnnxSession(write_graph(tmp_path / "g.onnx", "input_ids", "token_type_ids"))
    (logits,) = session(input_ids=torch.tensor([[1, 2], [3, 4]]), attention_mask=torch.ones(2, 2))
    assert logits.tolist() == [[3.0, 3.0], [7.0, 7.0]]


def test_a_graph_that_reads_something_else_is_missing_and_stops_nothing(tmp_path):
    graph = write_graph(tmp_path / "model.onnx", "input_ids", "entity_ids")
    rows = compare_runtimes(tiny_model("bert", 1), ("onnx", "eager"), graph=graph, **SHAPE, **QUICK)
    assert [row.runtime for row in rows] == ["eager", "onnx"]
    assert rows[1].latency is None
    assert "reads entity_ids, which the model is not given" in rows[1].missing
    assert rows[0].speedup is None  # It is the first that ran.


def test_a_graph_of_one_size_is_missing_for_others(tmp_path):
    graph = write_graph(tmp_path / "model.onnx", "input_ids", shape=(1, 8))
    rows = compare_runtimes(tiny_model("bert", 1), ("eager", "onnx"), graph=graph, **SHAPE, **QUICK)
    assert rows[1].missing.startswith("failed: the graph takes no such input")
    assert rows[0].latency is not None


def test_a_file_that_is_no_graph_is_said_by_its_name(tmp_path):
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"graph that ONNX Runtime can run, got .*model\.onnx"):
        compare_runtimes(tiny_model("bert", 1), ("onnx",), graph=graph, **SHAPE, **QUICK)


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        ("onnx", r"got no onnx, onnxruntime, onnxscript. .* pip install 'kdnlp\[onnx\]'"),
        ("onnx-int8", "Install them"),
        ("compile", r"needs a C\+\+ compiler on a CPU, found none"),
    ],
)
def test_what_is_not_installed_is_a_row_with_the_reason(runtime, reason, monkeypatch):
    for module in (runtimes, onnx_graph):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    rows = compare_runtimes(tiny_model("bert", 1), (runtime,), "m", **SHAPE, **QUICK)
    (row,) = rows
    assert (row.model, row.runtime, row.latency) == ("m", runtime, None)
    assert re.search(reason, row.missing)
    assert RuntimeRow.from_dict(asdict(row)) == row


def test_a_graph_is_float32_and_another_precision_would_be_compared_with_it():
    model = tiny_model("bert", 1).bfloat16()
    (row,) = compare_runtimes(model, ("onnx",), **SHAPE, **QUICK)
    assert "exported from float32 only, the model is torch.bfloat16" in row.missing


def test_an_attention_that_the_model_lacks_is_missing_and_not_another_one(monkeypatch):
    model = tiny_model("bert", 1)

    def refuse(self, implementation):
        raise ValueError(f"no {implementation}\nfor this model")

    monkeypatch.setattr(type(model), "set_attn_implementation", refuse)
    (row,) = compare_runtimes(model, ("eager",), **SHAPE, **QUICK)
    assert row.missing == "no eager"


def test_a_model_that_fails_is_an_error_and_no_missing_runtime(monkeypatch):
    model = tiny_model("bert", 1)

    def fail(self, *args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(model.bert), "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        compare_runtimes(model, ("eager",), **SHAPE, **QUICK)


def test_a_model_that_no_graph_can_stand_for_is_missing_with_the_reason():
    (row,) = compare_runtimes(tiny_model("bert", 1).bert, ("onnx",), **SHAPE, **QUICK)
    assert "BertModel cannot be exported" in row.missing


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"runtimes": ("eager", "tensorrt")}, ValueError, "out of eager, .* got tensorrt"),
        ({"runtimes": ()}, ValueError, "got none"),
        ({"batch_sizes": ()}, ValueError, "at least one model and one batch size"),
        ({"num_repeats": 1}, ValueError, "num_repeats of at least 3"),
        ({"graph": "not/there.onnx"}, FileNotFoundError, "not/there.onnx: no such file"),
    ],
)
def test_what_cannot_be_compared_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        compare_runtimes(tiny_model("bert", 1), **{"runtimes": ("eager",), **values})


# Torch's compiler and exporter warn of what they use themselves.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs kdnlp[onnx]")
def test_all_of_them_run_one_model_and_agree():
    model = tiny_model("bert", 2)
    rows = compare_runtimes(model, tuple(RUNTIMES), "m", (1, 3), (8, 16), **QUICK)
    assert [row.runtime for row in rows] == [*RUNTIMES] * 4, [row.missing for row in rows]
    for row in rows[1:5] + rows[6:]:
        if row.runtime != "eager":
            assert row.max_difference < (0.5 if row.runtime == "onnx-int8" else 1e-4), row
    exact = {row.max_difference for row in rows if row.runtime == "onnx-int8"}
    assert min(exact) > 1e-6  # else nothing was quantized
