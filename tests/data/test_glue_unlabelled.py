"""GLUE's test rows, from wherever they lie, in the server's order and all of them."""

import os

import pytest
from datasets import Dataset, DatasetDict

from kdnlp.data import glue_unlabelled
from kdnlp.data.glue import GLUE_TASKS
from kdnlp.data.glue_unlabelled import TEST_SPLITS, load_glue_test, task_of_test
from kdnlp.data.sequence_classification import encode_unlabelled
from kdnlp.hub.submission import SERVER_FILES

TEXT = 'the "cat sat'

# The official archive's test files: no labels, and a header that CoLA's training file lacks.
OFFICIAL = {
    "cola": ("CoLA/test.tsv", "index\tsentence", "{}\t" + TEXT),
    "sst2": ("SST-2/test.tsv", "index\tsentence", "{}\t" + TEXT),
    "mrpc": (
        "MRPC/test.tsv",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "{}\t1\t2\t" + TEXT + "\tb",
    ),
    "stsb": (
        "STS-B/test.tsv",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
        "{}\tnews\tf\t2012\t1\tn\tn\t" + TEXT + "\tb",
    ),
    "qqp": ("QQP/test.tsv", "id\tquestion1\tquestion2", "{}\t" + TEXT + "\tb"),
    "qnli": ("QNLI/test.tsv", "index\tquestion\tsentence", "{}\t" + TEXT + "\tb"),
    "rte": ("RTE/test.tsv", "index\tsentence1\tsentence2", "{}\t" + TEXT + "\tb"),
    "wnli": ("WNLI/test.tsv", "index\tsentence1\tsentence2", "{}\t" + TEXT + "\tb"),
    "ax": ("diagnostic/diagnostic.tsv", "index\tsentence1\tsentence2", "{}\t" + TEXT + "\tb"),
    "mnli": (
        "MNLI/test_matched.tsv",
        "index\tpromptID\tgenre\tsentence1_parse\tsentence1\tsentence2",
        "{}\t1\tfiction\t( the )\t" + TEXT + "\tb",
    ),
}


def plant(root, name, rows=3):
    """The official test files of a task, with a few rows."""
    file, header, line = OFFICIAL[name]
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *(line.format(number) for number in range(rows)), ""])
    path.write_text(text, encoding="utf-8")
    if name == "mnli":
        path.with_name("test_mismatched.tsv").write_text(text, encoding="utf-8")
    return path


def hub_rows(name, count=3):
    columns = {
        column: [f"{column} {n}" for n in range(count)]
        for column in task_of_test(name).text_columns
    }
    return Dataset.from_dict({**columns, "label": [-1] * count, "idx": list(range(count))})


def test_every_task_and_the_diagnostics_have_test_splits():
    assert set(TEST_SPLITS) == {*GLUE_TASKS, "ax"} == set(OFFICIAL)
    assert {(file.task, file.split) for file in SERVER_FILES} == {
        (task, split) for task, splits in TEST_SPLITS.items() for split in splits
    }


@pytest.mark.parametrize("name", TEST_SPLITS)
def test_official_files_give_the_texts_in_the_hubs_columns(tmp_path, name):
    plant(tmp_path, name)
    splits = load_glue_test(name, tmp_path)
    assert tuple(splits) == TEST_SPLITS[name]
    for rows in splits.values():
        assert tuple(rows.column_names) == task_of_test(name).text_columns
        assert len(rows) == 3
        assert rows[0][task_of_test(name).text_columns[0]] == TEXT


@pytest.mark.parametrize("name", TEST_SPLITS)
def test_parquet_of_the_hub_gives_the_texts_alone(tmp_path, name):
    for split in TEST_SPLITS[name]:
        (tmp_path / name).mkdir(exist_ok=True)
        hub_rows(name).to_parquet(tmp_path / name / f"{split}.parquet")
    splits = load_glue_test(name, tmp_path)
    for rows in splits.values():
        assert tuple(rows.column_names) == task_of_test(name).text_columns
        first = task_of_test(name).text_columns[0]
        assert list(rows[first]) == [f"{first} {n}" for n in range(3)]


def test_a_folder_is_no_pattern_that_another_folder_matches(tmp_path):
    for folder, rows in (("glue[1]", 4), ("glue1", 3)):
        (tmp_path / folder / "rte").mkdir(parents=True)
        hub_rows("rte", rows).to_parquet(tmp_path / folder / "rte" / "test.parquet")
    assert len(load_glue_test("rte", tmp_path / "glue[1]")["test"]) == 4


def test_the_hub_is_asked_for_the_test_split(monkeypatch):
    calls = []

    def load(*args):
        calls.append(args)
        return DatasetDict({split: hub_rows("mnli") for split in ("train", *TEST_SPLITS["mnli"])})

    monkeypatch.setattr(glue_unlabelled, "load_dataset", load)
    assert tuple(load_glue_test("mnli")) == TEST_SPLITS["mnli"]
    assert calls == [("nyu-mll/glue", "mnli")]


def test_microsofts_own_file_of_mrpc_is_read(tmp_path):
    path = plant(tmp_path, "mrpc")
    text = path.read_text().replace("index", "Quality")
    path.unlink()
    path.with_name("msr_paraphrase_test.txt").write_text(text, encoding="utf-8-sig")
    assert len(load_glue_test("mrpc", tmp_path)["test"]) == 3


def test_no_broken_line_is_left_out_not_of_qqp_either(tmp_path):
    path = plant(tmp_path, "qqp")
    path.write_text(path.read_text() + "3\tcut off\n")
    with pytest.raises(ValueError, match=r"test\.tsv, line 5: expected 3 fields, got 2"):
        load_glue_test("qqp", tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"test\.parquet, test\.tsv, AX\.tsv"):
        load_glue_test("ax", tmp_path)
    with pytest.raises(ValueError, match="Expected one of GLUE's tasks"):
        load_glue_test("squad", tmp_path)
    plant(tmp_path, "rte")
    with pytest.raises(FileNotFoundError, match="wnli"):  # RTE's columns are WNLI's
        load_glue_test("wnli", tmp_path / "RTE")


def test_tokens_without_labels_keep_the_order_and_refuse_a_missing_text(tokenizer):
    task = GLUE_TASKS["rte"]
    tokens = encode_unlabelled(hub_rows("rte"), "test", task, tokenizer, 16)
    assert set(tokens.column_names) <= {"input_ids", "attention_mask", "token_type_ids"}
    assert list(tokens["input_ids"]) == [
        tokenizer(f"sentence1 {n}", f"sentence2 {n}", truncation=True, max_length=16)["input_ids"]
        for n in range(3)
    ]
    broken = Dataset.from_dict({"sentence1": ["a", None], "sentence2": ["b", "c"]})
    with pytest.raises(ValueError, match="row 1: expected text, got None"):
        encode_unlabelled(broken, "test", task, tokenizer, 16)


@pytest.mark.slow
@pytest.mark.parametrize("file", SERVER_FILES, ids=lambda file: file.name)
@pytest.mark.skipif(
    "KDNLP_GLUE_DIR" not in os.environ, reason="KDNLP_GLUE_DIR names no GLUE folder"
)
def test_the_real_test_rows_are_as_many_as_the_server_has(file):
    try:
        rows = load_glue_test(file.task, os.environ["KDNLP_GLUE_DIR"])[file.split]
    except FileNotFoundError:
        pytest.skip("the folder has no test rows of this task")
    assert len(rows) == file.rows
