"""`kdnlp export`, from its command line to the folder that it leaves, or does not."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import onnx
import pytest
import torch
from huggingface_hub import ModelCard
from kinds import kind_rows, kind_task, tiny_head
from onnx import numpy_helper
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertForMaskedLM
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

import kdnlp
from kdnlp.cli import main, steps
from kdnlp.cli.export import latency_command
from kdnlp.compression import export, quantize
from kdnlp.compression.export import check_target, export_model
from kdnlp.compression.gate import ExportMismatch
from kdnlp.compression.settings import ExportSettings
from kdnlp.data.preparation import prepare
from kdnlp.data.synthetic import build_config, build_tokenizer, generate
from kdnlp.models.onnx_graph import OnnxModel
from kdnlp.profiling.profile import profile_models
from kdnlp.profiling.runtimes import RUNTIMES
from kdnlp.uploads.card_check import own_id_line
from kdnlp.uploads.export_section import with_export
from kdnlp.weights import EXPORT_JSON, SOURCE_DIGEST, folder_digest

KIND = "single_label_classification"
TASK = ("--task", "synthetic_sentiment", "--num_rows", "12")
INT8 = ("--quantize", "dynamic-int8", "--tolerance", "0.2")
TEXTS = ["the plot was not dull", "nobody said that the ending was funny"]


def run(*arguments):
    main(["export", *map(str, arguments)])


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read(folder):
    return json.loads((folder / EXPORT_JSON).read_text())


def saved(folder, model):
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "generate", partial(generate, num_train=64, num_validation=40))
        cache = tmp_path_factory.mktemp("hf-cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        yield


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), tiny_head(KIND))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model_folder):
    """The folder of a float32 graph, as the command leaves it."""
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    run(model_folder, *TASK, "--output_dir", folder)
    return folder


@pytest.fixture
def quick(exported, monkeypatch):
    """Later exports copy the graph that is there; `harm` may change it first."""
    harm = []

    def copy(model, path, opset, inputs):
        graph = onnx.load(exported / "model.onnx")
        for change in harm:
            change(graph)
        onnx.save(graph, path)
        return path

    monkeypatch.setattr(export, "export_onnx", copy)
    # One process is enough for the suite; `exported` had its own.
    monkeypatch.setattr(export, "check_plain_folder", lambda *arguments: None)
    return harm


def change_a_weight(graph):
    """Move the classifier of the graph by a hundredth."""
    (weight,) = (w for w in graph.graph.initializer if w.name == "model.classifier.weight")
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values * np.float32(1.01), weight.name))


def test_the_folder_holds_what_onnx_runtime_and_optimum_look_for(exported, model_folder):
    assert set(contents(exported)) == {
        *("model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", EXPORT_JSON)
    }
    assert read(exported)[SOURCE_DIGEST] == folder_digest(model_folder)
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["num_hidden_layers"] == 2
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert [path.name for path in exported.parent.iterdir()] == ["onnx"]
    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    batch = build_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits
    found = OnnxModel(exported / "model.onnx")(batch)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_a_card_says_of_the_graph_runs_it(exported, model_folder, monkeypatch):
    card = ModelCard(f"---\nlicense: mit\n---\n{own_id_line('me/small')}\n")
    text = str(with_export(card, exported.parent, [exported / "model.onnx"]))
    code = text.partition("```python\n")[2].partition("```")[0].replace('"..."', repr(TEXTS[0]))
    asked = {}

    def download(repo_id, allow_patterns):
        asked[repo_id] = allow_patterns
        return str(exported.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = {}
    exec(code, found)
    assert asked == {"me/small": "onnx/*"}
    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    with torch.no_grad():
        expected = model(**build_tokenizer()(TEXTS[:1], return_tensors="pt")).logits
    np.testing.assert_allclose(found["outputs"][0], expected, rtol=1e-4, atol=1e-5)


def test_the_log_and_the_end_say_what_was_found_and_what_to_type_next(
    quick, model_folder, tmp_path, capsys, caplog
):
    with caplog.at_level("INFO", "kdnlp"):
        run(model_folder, *TASK, "--output_dir", tmp_path / "onnx")
    (line,) = (r.getMessage() for r in caplog.records if "answers as the model" in r.getMessage())
    assert line.startswith("The export answers as the model does. The logits of 12 rows differ by")
    assert "Equality(" not in line
    shown = capsys.readouterr().out
    assert shown.endswith(f"kdnlp profile {model_folder} --runtimes sdpa,onnx\n")
    int8 = ExportSettings(quantize="dynamic-int8")
    assert latency_command("m", int8) == "kdnlp profile m --runtimes sdpa,onnx,onnx-int8"
    eager = latency_command("m", ExportSettings(), "eager")
    assert eager == "kdnlp profile m --runtimes eager,onnx"
    assert latency_command("m", ExportSettings(format="safetensors")) is None
    assert set(latency_command("m", int8).rpartition(" ")[2].split(",")) <= set(RUNTIMES)


def test_the_report_says_what_was_compared_and_what_it_cost(exported):
    facts = read(exported)
    assert (facts["format"], facts["precision"], facts["opset"]) == ("onnx", "float32", 18)
    assert facts["gate"]["rows"] == 12
    assert 0 <= facts["gate"]["largest_difference"] < 1e-5 < facts["gate"]["largest_logit"]
    assert (facts["gate"]["tolerance"], facts["gate"]["agreement"]) == (1e-4, 1.0)
    assert facts["metrics"]["original"] == facts["metrics"]["export"]
    assert set(facts["metrics"]["export"]["validation"]) == {"accuracy", "score"}
    assert all(seconds > 0 for seconds in facts["evaluation_seconds"].values())
    assert facts["size_mb"]["export"] == (exported / "model.onnx").stat().st_size / 1e6
    assert {"kdnlp", "torch", "transformers", "onnx", "onnxruntime"} <= set(facts["versions"])
    assert str(exported.parent) not in (exported / EXPORT_JSON).read_text()


def test_int8_is_smaller_and_its_metric_stands_beside_that_of_the_model(
    quick, model_folder, tmp_path, exported, capsys
):
    run(model_folder, *TASK, *INT8, "--output_dir", tmp_path / "int8")
    facts = read(tmp_path / "int8")
    assert (facts["precision"], facts["quantize"]) == ("int8", "dynamic-int8")
    assert facts["before_quantization"]["largest_difference"] < 1e-5
    assert 1e-5 < facts["gate"]["largest_difference"] <= 0.2 * facts["gate"]["largest_logit"]
    assert facts["metrics"]["original"] == read(exported)["metrics"]["original"]
    weights = onnx.load(tmp_path / "int8" / "model.onnx").graph.initializer
    assert sum(w.data_type == onnx.TensorProto.INT8 for w in weights) >= 13
    assert not any(w.data_type == onnx.TensorProto.FLOAT and len(w.dims) > 1 for w in weights)
    shown = capsys.readouterr().out
    assert "onnx, int8" in shown
    assert f"{100 * facts['metrics']['export']['validation']['accuracy']:.1f}" in shown


@pytest.mark.parametrize("flags", [(), INT8], ids=["float32", "int8"])
def test_a_planted_mismatch_leaves_nothing_and_an_older_export_as_it_was(
    flags, quick, model_folder, exported, tmp_path
):
    folder = tmp_path / "out"
    shutil.copytree(exported, folder)
    before = contents(folder)
    quick.append(change_a_weight)
    with pytest.raises(SystemExit, match="Nothing of it is kept"):
        run(model_folder, *TASK, *flags, "--output_dir", folder)
    assert contents(folder) == before
    with pytest.raises(SystemExit) as end:
        run(model_folder, *TASK, *flags, "--output_dir", tmp_path / "new")
    assert isinstance(end.value.__cause__, ExportMismatch)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    quick.clear()
    run(model_folder, *TASK, *flags, "--output_dir", folder)
    assert contents(folder) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_mismatch_that_only_quantization_makes_is_seen(
    quick, model_folder, tmp_path, monkeypatch
):
    def quantize_wrongly(source, target):
        graph = onnx.load(source)
        change_a_weight(graph)
        onnx.save(graph, target)

    monkeypatch.setattr(export, "quantize_onnx", quantize_wrongly)
    with pytest.raises(SystemExit, match="Nothing of it is kept"):
        run(model_folder, *TASK, *INT8[:2], "--tolerance", "1e-3", "--output_dir", tmp_path / "x")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_half_the_size(dtype, quick, model_folder, tmp_path):
    run(
        model_folder,
        *TASK,
        "--format=safetensors",
        "--dtype",
        dtype,
        "--output_dir",
        tmp_path / "x",
    )
    facts, weights = read(tmp_path / "x"), load_file(tmp_path / "x" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}
    assert facts["gate"]["largest_difference"] > 0
    assert facts["precision"] == dtype
    before, after = (f / "model.safetensors" for f in (model_folder, tmp_path / "x"))
    assert facts["size_mb"]["export"] * 1e6 == after.stat().st_size < 0.6 * before.stat().st_size
    assert json.loads((tmp_path / "x" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.slow
def test_half_precision_loads_where_kdnlp_is_not(model_folder, tmp_path):
    run(model_folder, *TASK, "--format=safetensors", "--output_dir", tmp_path / "x")
    assert (tmp_path / "x" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchao") is None, reason="needs the extra int8")
def test_int8_by_torchao_loads_with_transformers_alone(model_folder, tmp_path):
    run(model_folder, *TASK, "--format=pytorch-int8", "--output_dir", tmp_path / "x")
    facts = read(tmp_path / "x")
    weights = load_file(tmp_path / "x" / "model.safetensors")
    assert sum(tensor.dtype == torch.int8 for tensor in weights.values()) >= 12
    # The header of so small a file is larger than what it saves.
    assert sum(t.nbytes for t in weights.values()) / 1e6 < 0.9 * facts["size_mb"]["original"]
    assert facts["gate"]["largest_difference"] > 0
    assert "torchao" in facts["versions"]
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "x").eval()
    whole = AutoModelForSequenceClassification.from_pretrained(model_folder)
    profile = profile_models(
        {"model": whole, "int8": small},
        (1,),
        (8,),
        num_warmup=1,
        num_repeats=3,
        folders={"int8": tmp_path / "x"},
    )
    int8 = profile.models[1]
    data = sum(t.nbytes for t in weights.values()) / 1e6
    assert data <= int8.size_mb < 1.2 * data < profile.reference.size_mb
    assert int8.disk_size_mb > int8.size_mb


def test_torchao_is_asked_for_where_it_is_missing(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'kdnlp\[int8\]'"):
        run(model_folder, *TASK, "--format", "pytorch-int8", "--output_dir", tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_texts_alone_are_compared_without_a_metric(tmp_path):
    torch.manual_seed(0)
    words = BertForMaskedLM(build_config(1, 16, num_heads=2, intermediate_size=24))
    folder = saved(tmp_path / "words", words)
    flags = ("--format", "safetensors", "--dtype", "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "check_plain_folder", lambda *arguments: None)
        run(folder, "--texts", *TEXTS, *flags, "--output_dir", tmp_path / "x")
    facts = read(tmp_path / "x")
    assert facts["gate"]["rows"] == 2
    assert facts["gate"]["largest_difference"] == 0
    assert not {"metrics", "task"} & set(facts)


def test_texts_are_cut_at_the_models_positions(tmp_path):
    config = build_config(1, 16, num_heads=2, intermediate_size=24)
    config.max_position_embeddings = 12
    folder = saved(tmp_path / "short", BertForMaskedLM(config))
    flags = ("--format", "safetensors", "--dtype", "float32", "--output_dir", tmp_path / "x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "check_plain_folder", lambda *arguments: None)
        run(folder, "--texts", " ".join(TEXTS * 4), *flags)
    assert read(tmp_path / "x")["gate"]["rows"] == 1


def test_texts_are_as_they_are_where_neither_model_nor_tokenizer_has_a_limit(monkeypatch):
    model, tokenizer = tiny_head(KIND), build_tokenizer()
    tokenizer.model_max_length = VERY_LARGE_INTEGER
    monkeypatch.setattr(export, "max_positions", lambda model: None)
    source = export._source(model, tokenizer, ExportSettings(), None, None, TEXTS * 40, None)
    assert [len(ids) for ids in source.rows["input_ids"]][:2] == [
        len(ids) for ids in tokenizer(TEXTS)["input_ids"]
    ]


def test_without_a_task_a_model_must_say_what_its_head_is(model_folder, tmp_path):
    folder = saved(tmp_path / "encoder", tiny_head(KIND).base_model)
    with pytest.raises(SystemExit, match=r"with a head in its configuration, got BertModel"):
        run(folder, "--texts", *TEXTS, "--output_dir", tmp_path / "x")


def test_nothing_but_an_earlier_export_is_replaced(model_folder, exported, tmp_path):
    for place in (model_folder, model_folder.parent):
        with pytest.raises(SystemExit, match=r"must not hold --model"):
            run(model_folder, *TASK, "--output_dir", place)
    check_target(exported)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match=r"got a folder with thesis\.tex"):
        run(model_folder, *TASK, "--output_dir", tmp_path)
    with pytest.raises(SystemExit, match="must be a folder, got a file"):
        run(model_folder, *TASK, "--output_dir", tmp_path / "thesis.tex")
    shutil.copytree(exported, tmp_path / "x")
    (tmp_path / "x" / "notes.md").touch()
    with pytest.raises(ValueError, match=r"notes\.md"):
        check_target(tmp_path / "x")


@pytest.mark.parametrize("text", ["{}", "[]", '{"files": "model.onnx"}', "no JSON"])
def test_a_foreign_file_of_that_name_is_not_taken_for_an_export(text, tmp_path):
    (tmp_path / EXPORT_JSON).write_text(text)
    with pytest.raises(ValueError, match=rf"got a folder with {EXPORT_JSON}"):
        check_target(tmp_path)
    assert (tmp_path / EXPORT_JSON).read_text() == text


def test_a_graph_runs_with_the_threads_that_the_report_names(exported):
    loaded = export.FORMATS["onnx"].load(None, exported)
    options = loaded.session.get_session_options()
    assert options.intra_op_num_threads == read(exported)["threads"] == torch.get_num_threads()
    assert read(exported)["evaluation_passes"] == 1


def test_an_export_that_had_just_made_way_for_a_killed_one_comes_back(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "_partial-x.old")
    check_target(tmp_path / "x")
    assert contents(tmp_path / "x") == contents(exported)


def test_an_older_export_that_a_killed_one_was_removing_does_not_stop_the_next(exported, tmp_path):
    for name in ("x", "_partial-x.old"):
        shutil.copytree(exported, tmp_path / name)
    (tmp_path / "_partial-x.old" / "model.onnx").unlink()
    check_target(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert contents(tmp_path / "x") == contents(exported)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "synthetic_sentiment", "--texts", "a"), "got both"),
        ((), "Expected --task to be one of"),
    ],
)
def test_rows_must_come_from_one_place(flags, message, model_folder, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run(model_folder, *flags, "--output_dir", tmp_path / "x")


def test_rows_must_come_from_somewhere(tmp_path):
    with pytest.raises(ValueError, match="got no splits, no task and 0 texts"):
        export_model(tiny_head(KIND), build_tokenizer(), tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_a_model_with_code_of_its_own_is_refused(tmp_path):
    model = tiny_head(KIND)
    model.config.auto_map = {"AutoModel": "modeling.Own"}
    with pytest.raises(ValueError, match="brings Python code of its own"):
        export_model(model, build_tokenizer(), tmp_path / "x", texts=TEXTS)
    assert not any(tmp_path.iterdir())


def test_settings_that_contradict_each_other_end_with_status_2(model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(model_folder, *TASK, "--dtype", "float16", "--output_dir", tmp_path / "x")
    assert end.value.code == 2
    assert "dtype=float16 is a setting of format=safetensors" in capsys.readouterr().err


def test_a_licence_that_no_card_would_show_is_no_flag(model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(model_folder, *TASK, "--license", "gpl-3.0", "--output_dir", tmp_path / "x")
    assert end.value.code == 2
    assert "unknown: --license gpl-3.0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["token_classification", "question_answering", "regression"])
@pytest.mark.parametrize("quantized", [None, "dynamic-int8"])
def test_every_kind_of_task_is_exported_and_measured(kind, quantized, tmp_path):
    task, tokenizer = replace(kind_task(kind), name=kind), build_tokenizer()
    splits = prepare(kind_rows(kind), task, tokenizer)
    facts = export_model(
        tiny_head(kind),
        tokenizer,
        tmp_path / "x",
        ExportSettings(quantize=quantized, min_agreement=0.5),
        splits=splits,
        task=task,
    )
    assert set(facts["metrics"]["export"]["validation"]) == {*task.metrics, "score"}
    if quantized is None:
        original = facts["metrics"]["original"]["validation"]
        assert facts["metrics"]["export"]["validation"] == pytest.approx(original, abs=1e-4)


def test_the_fresh_process_cannot_import_kdnlp():
    script = Path(export.__file__).with_name("fresh_process.py").read_text()
    source = script.replace("found, logits = run(job)", "import kdnlp")
    done = subprocess.run(
        [sys.executable, "-c", source],
        input='{"auto_class": "AutoModel"}',
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError: import of kdnlp halted" in done.stderr


def test_names_are_public():
    assert kdnlp.export_model is export_model
    assert kdnlp.ExportMismatch is ExportMismatch
