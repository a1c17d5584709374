"""A submission to GLUE's server: every file, every row, and the labels by the server's names."""

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import BertForSequenceClassification

from kdnlp.cli import main, submit
from kdnlp.data.glue import GLUE_TASKS
from kdnlp.data.synthetic import build_config, build_tokenizer
from kdnlp.evaluation.report import CompressionReport, ModelAccount
from kdnlp.hub import submission
from kdnlp.hub.submission import SERVER_FILES, check_submission, fill, write_submission
from kdnlp.models.pretrained import head_config
from kdnlp.profiling.latency import LatencyRow, LatencySetting

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from test_glue_unlabelled import OFFICIAL, plant

# As the server's documentation has them: the rows of every file, and the words in it.
ROWS = {
    "CoLA.tsv": 1063, "SST-2.tsv": 1821, "MRPC.tsv": 1725, "STS-B.tsv": 1379, "QQP.tsv": 390965,
    "MNLI-m.tsv": 9796, "MNLI-mm.tsv": 9847, "QNLI.tsv": 5463, "RTE.tsv": 3000, "WNLI.tsv": 146,
    "AX.tsv": 1104,
}  # fmt: skip
THREE = {"entailment", "neutral", "contradiction"}
WORDS = {"MNLI-m.tsv": THREE, "MNLI-mm.tsv": THREE, "AX.tsv": THREE}
WORDS |= {name: {"entailment", "not_entailment"} for name in ("QNLI.tsv", "RTE.tsv")}
SEEN = ("movie", "plot", "dull", "great", "acting")
FEW = len(SEEN)


def read(path):
    """Header and answers of every file of a zip."""
    with zipfile.ZipFile(path) as archive:
        lines = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    assert {name[0] for name in lines.values()} == {"index\tprediction"}
    rows = {name: [line.split("\t") for line in text[1:]] for name, text in lines.items()}
    for answers in rows.values():
        assert [index for index, _ in answers] == [str(n) for n in range(len(answers))]
    return {name: [text for _, text in answers] for name, answers in rows.items()}


@pytest.fixture
def few_rows(monkeypatch):
    """A server that has a few rows of everything."""
    files = tuple(replace(file, rows=FEW) for file in SERVER_FILES)
    for module in (submission, submit):
        monkeypatch.setattr(module, "SERVER_FILES", files)
    return files


@pytest.fixture
def glue(tmp_path, few_rows):
    """A folder with a few test rows of every task, each with other words."""
    for name in OFFICIAL:
        path = plant(tmp_path / "glue", name, FEW)
        lines = path.read_text().splitlines()
        lines[1:] = [line.replace("cat", word) for line, word in zip(lines[1:], SEEN, strict=True)]
        path.write_text("\n".join([*lines, ""]))
    return tmp_path / "glue"


def tiny(folder, name, order=None):
    """A model for a task; with `order` its classes are numbered so, and it means the same."""
    task = GLUE_TASKS[name]
    config = build_config(2, hidden_size=16, num_heads=2, intermediate_size=24)
    config.update(head_config(task))
    torch.manual_seed(list(GLUE_TASKS).index(name))
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        # Answers lie on both sides, or a wrong order would go unnoticed.
        seen = build_tokenizer()(list(SEEN), padding=True, return_tensors="pt")
        model.classifier.bias.sub_(model(**seen).logits.mean(0))
        if order is not None:
            config.update(
                head_config(task.with_label_order(tuple(task.label_names[n] for n in order)))
            )
            model.classifier.weight.copy_(model.classifier.weight[order])
            model.classifier.bias.copy_(model.classifier.bias[order])
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return model


def untrained(folder, name):
    """The configuration of a model for a task, without weights."""
    config = build_config(2)
    config.update(head_config(GLUE_TASKS[name]))
    config.save_pretrained(folder / f"untrained-{name}")
    return folder / f"untrained-{name}"


def run(glue, output, *models, flags=("--fill",)):
    named = [f"{name}={folder}" for name, folder in models]
    where = ["--output", str(output), "--data_dir", str(glue), "--use_cpu"]
    main(["submit", *where, *flags, "--models", *named])


def refused(*args, **kwargs):
    with pytest.raises(SystemExit) as stopped:
        run(*args, **kwargs)
    assert isinstance(stopped.value.code, str)
    return stopped.value.code


def test_the_table_is_the_servers_and_names_the_classes_of_the_tasks():
    assert {file.name: file.rows for file in SERVER_FILES} == ROWS
    for file in SERVER_FILES:
        names = GLUE_TASKS[file.model_task].label_names
        assert (file.labels is None) == (names is None)
        if file.labels is not None:
            assert set(file.labels) == set(names)
            assert set(file.labels.values()) == WORDS.get(file.name, {"0", "1"})
    # Its ids and the server's agree with the Hub's: class 1 of WNLI is entailment.
    two = {
        file.task: file.labels for file in SERVER_FILES if file.name not in WORDS and file.labels
    }
    for name, labels in two.items():
        assert [labels[label] for label in GLUE_TASKS[name].label_names] == ["0", "1"]


def test_a_whole_submission_has_every_row_of_the_real_test_splits(tmp_path):
    path = write_submission(tmp_path / "all.zip", {f.name: fill(f) for f in SERVER_FILES})
    check_submission(path)
    answers = read(path)
    assert {name: len(texts) for name, texts in answers.items()} == ROWS


def test_models_answer_by_the_names_of_their_classes(tmp_path, glue, capsys):
    models = {}
    for name, order in (("mnli", [2, 0, 1]), ("rte", [1, 0]), ("stsb", None)):
        models[name] = tiny(tmp_path / name, name, order)
    run(glue, tmp_path / "out" / "submission.zip", *((name, tmp_path / name) for name in models))
    answers = read(tmp_path / "out" / "submission.zip")
    tokenizer = build_tokenizer()
    for file, name in (
        ("MNLI-m.tsv", "mnli"),
        ("AX.tsv", "mnli"),
        ("RTE.tsv", "rte"),
        ("STS-B.tsv", "stsb"),
    ):
        source = {"AX.tsv": "ax"}.get(file, name)
        texts = [
            line.split("\t")[-2:]
            for line in (glue / OFFICIAL[source][0]).read_text().splitlines()[1:]
        ]
        pairs = tokenizer(*map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = models[name](**pairs).logits
        if name == "stsb":
            expected = [f"{min(max(value, 0), 5):.3f}" for value in logits[:, 0].tolist()]
        else:
            expected = [models[name].config.id2label[n] for n in logits.argmax(-1).tolist()]
        assert answers[file] == expected
    assert answers["CoLA.tsv"] == ["0"] * FEW
    out = " ".join(capsys.readouterr().out.split())
    assert "the constant 0 (--fill)" in out


def test_another_order_of_classes_gives_the_same_file(tmp_path, glue):
    tiny(tmp_path / "one", "mnli")
    tiny(tmp_path / "other", "mnli", [2, 0, 1])
    for name in ("one", "other"):
        run(glue, tmp_path / f"{name}.zip", ("mnli", tmp_path / name))
    assert len(set(read(tmp_path / "one.zip")["MNLI-m.tsv"])) > 1
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


@pytest.mark.slow
def test_nine_models_answer_everything(tmp_path, glue, capsys):
    for name in GLUE_TASKS:
        tiny(tmp_path / name, name)
    run(glue, tmp_path / "all.zip", *((n, tmp_path / n) for n in GLUE_TASKS), flags=())
    check_submission(tmp_path / "all.zip")
    assert "constant" not in capsys.readouterr().out


def report_of(length):
    """What a run leaves beside its model, as far as it says how long the rows were."""
    latency = LatencyRow("m", 1, 8, 1.0, 1.0, 3)
    model = ModelAccount("m", {"validation": {"score": 0.5}}, 1, 1, 1, 1.0, 1, (latency,))
    setting = LatencySetting("CPU", "float32", 1, 8, "sdpa", "2", "5")
    run = {} if length is None else {"max_length": length}
    return CompressionReport("rte", ("accuracy",), (model,), setting, run)


@pytest.fixture
def lengths(monkeypatch):
    """Where the rows of every answer were cut, in turn."""
    seen, encode = [], submission.encode_unlabelled

    def noted(rows, split, task, tokenizer, length):
        seen.append(length)
        return encode(rows, split, task, tokenizer, length)

    monkeypatch.setattr(submission, "encode_unlabelled", noted)
    return seen


def test_rows_are_cut_where_they_were_in_training(tmp_path, glue, lengths):
    tiny(tmp_path / "rte", "rte")
    report = tmp_path / "rte" / "report.json"
    task = min(GLUE_TASKS["rte"].max_length, build_tokenizer().model_max_length)
    for length, flags, expected in (
        (None, (), task),
        (task - 7, (), task - 7),
        (task - 7, ("--max_length", "11"), 11),
    ):
        report.write_text(json.dumps(report_of(length).to_dict()))
        run(glue, tmp_path / "x.zip", ("rte", tmp_path / "rte"), flags=("--fill", *flags))
        assert lengths.pop() == expected
    report.unlink()
    run(glue, tmp_path / "x.zip", ("rte", tmp_path / "rte"))
    assert lengths == [task]


def test_a_damaged_report_or_a_length_that_no_row_fits_in_is_said(tmp_path, glue):
    tiny(tmp_path / "rte", "rte")
    (tmp_path / "rte" / "report.json").write_text("{}")
    said = refused(glue, tmp_path / "x.zip", ("rte", tmp_path / "rte"))
    assert "does not hold a compression report" in said
    assert "--max_length" in said
    flags = ("--fill", "--max_length", "0")
    said = refused(glue, tmp_path / "x.zip", ("rte", tmp_path / "rte"), flags=flags)
    assert "Expected max_length in" in said


def test_a_report_on_the_hub_counts_and_one_that_cannot_be_asked_for_is_said(
    tmp_path, monkeypatch, caplog
):
    (tmp_path / "report.json").write_text(json.dumps(report_of(200).to_dict()))
    monkeypatch.setattr(submit, "hf_hub_download", lambda *_: str(tmp_path / "report.json"))
    assert submit.trained_length("me/rte") == 200

    for error, warned in ((EntryNotFoundError, 0), (LocalEntryNotFoundError, 1)):
        absent = Mock(side_effect=error("no report.json"))
        monkeypatch.setattr(submit, "hf_hub_download", absent)
        assert submit.trained_length("me/rte") is None
        assert len(caplog.records) == warned


def test_a_task_without_a_model_is_refused_unless_it_is_to_be_filled(tmp_path, glue):
    said = refused(glue, tmp_path / "x.zip", ("mrpc", untrained(tmp_path, "mrpc")), flags=())
    assert "got none for cola, sst2, stsb, qqp, mnli, qnli, rte, wnli" in said
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("models", [["ax=a"], ["mrpc"], ["mrpc="], ["mrpc=a", "mrpc=b"], ["=a"]])
def test_a_pair_that_means_nothing_is_refused(models):
    with pytest.raises(ValueError, match="Expected --models TASK=DIR"):
        submit.parse_models(models)


def test_rows_are_counted_before_a_model_is_loaded(tmp_path, glue):
    path = glue / OFFICIAL["sst2"][0]
    path.write_text(path.read_text() + f"{FEW}\tone more\n")
    said = refused(glue, tmp_path / "x.zip", ("sst2", untrained(tmp_path, "sst2")))
    assert f"SST-2.tsv: expected the {FEW} rows of GLUE's sst2 test, got {FEW + 1}" in said


def test_the_real_counts_hold_where_no_test_lowers_them(tmp_path):
    plant(tmp_path, "rte", FEW)
    assert "RTE.tsv: expected the 3000 rows" in refused(
        tmp_path, tmp_path / "x.zip", ("rte", untrained(tmp_path, "rte"))
    )


def test_models_that_are_not_there_or_of_another_task_are_said_before_tasks_and_rows(tmp_path):
    where = (tmp_path / "no-glue", tmp_path / "x.zip")
    assert "No folder nowhere here" in refused(*where, ("mrpc", "nowhere"), flags=())
    of_rte = untrained(tmp_path, "rte")
    assert "not fine-tuned on sst2" in refused(*where, ("sst2", of_rte), flags=())


def test_a_model_of_another_task_or_that_diverged_is_refused(tmp_path, glue):
    tiny(tmp_path / "rte", "rte")
    assert "not fine-tuned on sst2" in refused(glue, tmp_path / "x.zip", ("sst2", tmp_path / "rte"))
    for name, said in (("sst2", "got NaN in row 0"), ("stsb", "The model has diverged")):
        model = tiny(tmp_path / name, name)
        with torch.no_grad():
            model.classifier.bias.fill_(float("nan"))
        model.save_pretrained(tmp_path / name)
        assert said in refused(glue, tmp_path / "x.zip", (name, tmp_path / name))
    assert not (tmp_path / "x.zip").exists()


def broken(path, few_rows, name, change):
    """A zip in which one file is other than the server wants it."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in few_rows:
            text = submission._as_tsv(fill(file))
            text = change(text) if file.name == name else text
            if text is not None:
                archive.writestr(file.name, text)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("RTE.tsv", lambda t: t.replace("entailment", "0", 1), "row 0: expected"),
        ("CoLA.tsv", lambda t: t.replace("\t0", "\tacceptable"), "row 0: expected"),
        ("STS-B.tsv", lambda t: t.replace("0.000", "5.001", 1), "a number in"),
        ("STS-B.tsv", lambda t: t.replace("0.000", "nan", 1), "a number in"),
        ("STS-B.tsv", lambda t: t.replace("0.000", "high", 1), "a number in"),
        ("QQP.tsv", lambda t: t.replace("index", "id"), "line 1: expected"),
        ("QQP.tsv", lambda t: t.replace("1\t0", "2\t0"), "expected the index 1, got '2'"),
        ("WNLI.tsv", lambda t: t.rsplit("\n", 2)[0], "expected 5 answers, got 4"),
        ("WNLI.tsv", lambda t: "", "line 1: expected"),
        ("AX.tsv", lambda t: None, "got none for AX.tsv"),
    ],
)
def test_what_the_server_would_refuse_is_found(tmp_path, few_rows, name, change, said):
    broken(tmp_path / "x.zip", few_rows, name, change)
    with pytest.raises(ValueError, match=said):
        check_submission(tmp_path / "x.zip")


def test_nothing_is_written_unless_all_of_it_is_right(tmp_path, few_rows):
    answers = {file.name: fill(file) for file in few_rows}
    with pytest.raises(ValueError, match=r"unknown notes\.txt"):
        write_submission(tmp_path / "x.zip", {**answers, "notes.txt": []})
    answers["MRPC.tsv"] = ["2"] * FEW
    with pytest.raises(ValueError, match=r"MRPC\.tsv, row 0: expected \['0', '1'\], got '2'"):
        write_submission(tmp_path / "x.zip", answers)
    assert list(tmp_path.iterdir()) == []
