"""`kdnlp profile`, from its command line to the files that it leaves behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from settings import tiny_model
from transformers import BertModel, T5Config, T5EncoderModel

from kdnlp.cli import main
from kdnlp.cli import profile as command
from kdnlp.cli.profile import find_lengths, model_names, numbers, own_graph
from kdnlp.models.student import build_student
from kdnlp.profiling.profile import Profile
from kdnlp.weights import SOURCE_DIGEST, folder_digest

QUICK = ("--batch_sizes", "2", "--lengths", "8", "--num_repeats", "3", "--device", "cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    teacher = tiny_model("bert", 4)
    teacher.save_pretrained(root / "teacher")
    build_student(teacher, 2).save_pretrained(root / "student")
    BertModel(teacher.config).save_pretrained(root / "headless")
    return root


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*arguments):
    main(["profile", *map(str, arguments)])


def test_models_are_measured_side_by_side_and_written(folders, tmp_path, capsys):
    settings = (*QUICK, "--threads", "1", "--output_dir", tmp_path, "--runtimes", "eager,sdpa")
    run(folders / "teacher", folders / "student", *settings, "--max_disagreement", "1000")
    found = Profile.load(tmp_path)
    assert [(m.name, m.num_layers) for m in found.models] == [("teacher", 4), ("student", 2)]
    assert found.models[1].disk_size_mb > 0
    assert found.setting.threads == 1
    (cell,) = found.models[1].cells
    assert (cell.latency.batch_size, cell.latency.sequence_length) == (2, 8)
    assert cell.agreement.max_difference == 1000
    assert [(r.model, r.runtime) for r in found.runtimes] == [
        (model, runtime) for model in ("teacher", "student") for runtime in ("eager", "sdpa")
    ]
    said = capsys.readouterr().out
    for title in ("Size", "FLOPs and latency", "Where time goes", "Runtimes", "what the FLOPs"):
        assert title in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "profile.json",
        "profile.md",
        "profile.png",
        "profile.svg",
    ]


def test_the_dtype_is_the_one_that_was_asked_for(folders, tmp_path):
    run(folders / "headless", *QUICK, "--dtype", "bfloat16", "--output_dir", tmp_path)
    found = Profile.load(tmp_path)
    assert found.setting.dtype == "bfloat16"
    assert (found.reference.architecture, found.reference.parameters.head) == ("BertModel", 0)


def export_beside(model, precision, digest, place="onnx"):
    """A graph that nobody could run, with what its export says of it."""
    folder = model / place
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").touch()
    facts = {"precision": precision, SOURCE_DIGEST: digest}
    (folder / "export.json").write_text(json.dumps(facts))
    return folder / "model.onnx"


def test_only_a_float32_graph_of_these_weights_is_measured_as_the_model(folders, tmp_path, caplog):
    model, own = tmp_path / "model", folder_digest(folders / "student")
    shutil.copytree(folders / "student", model)
    assert own_graph(model) is None
    assert not caplog.records
    (model / "model.onnx").touch()
    assert own_graph(model) is None
    stale = folder_digest(folders / "teacher")
    for precision, digest in (("int8", own), ("float32", stale), ("float32", None)):
        caplog.clear()
        export_beside(model, precision, digest)
        assert own_graph(model) is None
        assert len(caplog.records) == 2  # one for each of the graphs
    assert own_graph(model) is None
    assert own_graph(Path("google-bert/bert-base-uncased")) is None
    graph = export_beside(model, "float32", own)
    assert own_graph(model) == graph
    first = export_beside(model, "float32", own, ".")
    assert own_graph(model) == first


def test_all_comparisons_share_the_seconds_and_runtimes_get_the_models_own_graph(
    folders, tmp_path, monkeypatch
):
    shutil.copytree(folders / "student", tmp_path / "model")
    graph = export_beside(tmp_path / "model", "float32", folder_digest(tmp_path / "model"))
    seconds, graphs, profile_models = [], [], command.profile_models

    def profiled(*arguments, max_seconds, **options):
        seconds.append(max_seconds)
        return profile_models(*arguments, max_seconds=max_seconds, **options)

    def compared(*arguments, max_seconds, graph, **options):
        seconds.append(max_seconds)
        graphs.append(graph)
        return []

    monkeypatch.setattr(command, "profile_models", profiled)
    monkeypatch.setattr(command, "compare_runtimes", compared)
    both = (folders / "student", tmp_path / "model", *QUICK, "--max_seconds", "3")
    run(*both, "--runtimes", "onnx")
    assert (seconds, graphs) == ([1.0, 1.0, 1.0], [None, graph])
    seconds.clear()
    run(*both)
    assert seconds == [3.0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch_sizes", "1,x"), "expected numbers from 1, like 1,8,32, got '1,x'"),
        (("--lengths", ""), "expected numbers from 1"),
        (("--lengths", "8,0"), "expected numbers from 1"),
        (("--lengths", "8,9999"), "--lengths must be at most 512, the positions that student has"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--runtimes", "eager,tensorrt"), "got tensorrt"),
        (("--num_repeats", "2"), "num_repeats of at least 3"),
        (("--device", "gpu"), "--device must read like cpu or cuda:0, got 'gpu'"),
        (("--device", "mps"), "must be a CPU or a CUDA device"),
        (("--device", "cuda:99"), "CUDA devices here"),
        (("--max_disagreement", "-1"), "at least 0, got -1"),
    ],
)
def test_a_flag_that_makes_no_sense_ends_with_a_message_and_no_files(
    flags, message, folders, tmp_path, capsys
):
    with pytest.raises(SystemExit) as exit_:
        run(folders / "student", *QUICK, *flags, "--output_dir", tmp_path / "out")
    assert message in capsys.readouterr().err + str(exit_.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("positions", "lengths"), [((512, 512), (32, 128)), ((512, 64), (32, 64)), ((16,), (16,))]
)
def test_lengths_that_nobody_chose_are_what_all_models_can_read(positions, lengths, caplog):
    models = {str(n): tiny_model("bert", 1, max_position_embeddings=n) for n in positions}
    tiny = {"vocab_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    models["endless"] = T5EncoderModel(T5Config(**tiny))
    assert find_lengths(None, models) == lengths
    assert len(caplog.records) == (lengths != (32, 128))
    if caplog.records:
        assert f"instead of 32,128: {positions[-1]} has" in caplog.text
    with pytest.raises(ValueError, match=f"--lengths must be at most {min(positions)}"):
        find_lengths([8, 600], models)


def test_a_short_model_is_profiled_without_flags(tmp_path, monkeypatch):
    tiny_model("bert", 1, max_position_embeddings=64).save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(command, "profile_models", lambda *a, **o: asked.append(a[2]))
    monkeypatch.setattr(command, "profile_sections", lambda profile: [])
    monkeypatch.setattr(command, "disagreement_lines", lambda profile: [])
    monkeypatch.setattr(command, "profile_setting_line", lambda profile: "")
    run(tmp_path)
    assert asked == [(32, 64)]


def test_a_model_that_is_not_there_or_named_twice_is_said(folders):
    with pytest.raises(SystemExit, match="nowhere"):
        run(folders / "nowhere", *QUICK)
    with pytest.raises(SystemExit, match="Expected every model once"):
        run(folders / "student", folders / "student", *QUICK)


def test_names_are_short_and_never_the_same():
    assert model_names(["owner/model", "out/x/"]) == {"model": "owner/model", "x": "out/x/"}
    assert list(model_names(["a/m", "b/m"])) == ["a/m", "b/m"]


def test_numbers_are_read_in_their_order():
    assert numbers("8, 1,32") == [8, 1, 32]
