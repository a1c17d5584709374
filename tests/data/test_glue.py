import os
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from kdnlp.data import glue
from kdnlp.data.glue import GLUE_TASKS, load_glue, load_glue_raw
from kdnlp.data.glue_tsv import OFFICIAL_LAYOUTS
from kdnlp.evaluation.metrics import METRICS

NINE = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
TEXT = 'the "cat sat'  # A lone quote, as GLUE's unquoted files hold them.

# The official archive's header lines, and one training line for class 1 (or score 3.8).
OFFICIAL = {
    "cola": ("CoLA", None, f"gj04\t1\t\t{TEXT}"),
    "sst2": ("SST-2", "sentence\tlabel", f"{TEXT} \t1"),
    "mrpc": (
        "MRPC",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        f"1\t10\t20\t{TEXT}\ta dog",
    ),
    "stsb": (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        f"0\tnews\tfile\t2012\t1\tnone\tnone\t{TEXT}\ta dog\t3.800",
    ),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        f"5\t1\t2\t{TEXT}\ta dog\t1",
    ),
    "mnli": (
        "MNLI",
        "index\tpromptID\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        f"0\t3\tfiction\t( the )\t{TEXT}\ta dog\tentailment\tneutral",
    ),
    "qnli": ("QNLI", "index\tquestion\tsentence\tlabel", f"0\t{TEXT}\ta dog\tnot_entailment"),
    "rte": ("RTE", "index\tsentence1\tsentence2\tlabel", f"0\t{TEXT}\ta dog\tnot_entailment"),
    "wnli": ("WNLI", "index\tsentence1\tsentence2\tlabel", f"0\t{TEXT}\ta dog\t1"),
}


def write_lines(path: Path, *lines: str | None, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(line for line in lines if line is not None) + "\n"
    path.write_bytes(text.encode(encoding))


def write_official(root: Path, task: str) -> Path:
    folder, header, line = OFFICIAL[task]
    write_lines(root / folder / "train.tsv", header, line, line)
    for split in GLUE_TASKS[task].eval_splits:
        write_lines(root / folder / f"{split.replace('validation', 'dev')}.tsv", header, line)
    write_lines(root / folder / "test.tsv", "index\tsentence", f"0\t{TEXT}")
    return root / folder


def hub_rows(task: str, count: int) -> Dataset:
    names = GLUE_TASKS[task].label_names
    label = Value("float32") if names is None else ClassLabel(names=list(names))
    columns = GLUE_TASKS[task].text_columns
    features = Features({column: Value("string") for column in columns} | {"label": label})
    rows = {column: [f"the {column} {n}" for n in range(count)] for column in columns}
    return Dataset.from_dict(rows | {"label": [n % 2 for n in range(count)]}, features=features)


def write_parquet(folder: Path, task: str, shard: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    hub_rows(task, 4).to_parquet(folder / f"train{shard}.parquet")
    for split in GLUE_TASKS[task].eval_splits:
        hub_rows(task, 2).to_parquet(folder / f"{split}{shard}.parquet")


def test_the_table_agrees_with_itself():
    assert list(GLUE_TASKS) == NINE
    assert list(OFFICIAL_LAYOUTS) == NINE
    for name, task in GLUE_TASKS.items():
        assert set(task.metrics) <= set(METRICS)
        assert set(OFFICIAL_LAYOUTS[name].columns) == {*task.text_columns, "label"}
    assert GLUE_TASKS["mnli"].label_names == ("entailment", "neutral", "contradiction")
    # The Hub numbers these two the opposite way; a swap would turn 70% accuracy into 30%.
    assert GLUE_TASKS["rte"].label_names == ("entailment", "not_entailment")
    assert GLUE_TASKS["wnli"].label_names == ("not_entailment", "entailment")


@pytest.mark.parametrize("task", NINE)
def test_official_files_give_the_hubs_columns_and_ids(tmp_path, task):
    write_official(tmp_path, task)
    splits = load_glue_raw(task, tmp_path)
    description = GLUE_TASKS[task]
    assert list(splits) == ["train", *description.eval_splits]
    assert {name: str(split.split) for name, split in splits.items()} == {s: s for s in splits}
    assert len(splits["train"]) == 2
    row = splits["train"][0]
    assert row[description.text_columns[0]].rstrip() == TEXT
    assert row["label"] == (pytest.approx(3.8) if task == "stsb" else 1)
    if description.label_names:
        assert splits["train"].features["label"].names == list(description.label_names)


@pytest.mark.parametrize("task", ["sst2", "mnli", "stsb"])
@pytest.mark.parametrize("shard", ["", "-00000-of-00001"])
@pytest.mark.parametrize("inside", [True, False], ids=["all-tasks", "own-folder"])
def test_parquet_is_found_in_either_folder_and_by_either_name(tmp_path, task, shard, inside):
    write_parquet(tmp_path / task, task, shard)
    splits = load_glue_raw(task, tmp_path if inside else tmp_path / task)
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 4,
        **dict.fromkeys(GLUE_TASKS[task].eval_splits, 2),
    }


def test_a_folder_is_no_pattern_that_another_folder_matches(tmp_path):
    for folder, rows in (("glue[1]", 4), ("glue1", 3)):
        (tmp_path / folder / "rte").mkdir(parents=True)
        for split in ("train", "validation"):
            hub_rows("rte", rows).to_parquet(tmp_path / folder / "rte" / f"{split}.parquet")
    splits = load_glue_raw("rte", tmp_path / "glue[1]")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4, "validation": 4}


def test_shards_are_joined_in_order(tmp_path):
    write_parquet(tmp_path / "sst2", "sst2", "-00000-of-00001")
    (tmp_path / "sst2" / "train-00000-of-00001.parquet").unlink()
    for number, rows in enumerate((4, 3)):
        shard = tmp_path / "sst2" / f"train-0000{number}-of-00002.parquet"
        hub_rows("sst2", rows).to_parquet(shard)
    texts = list(load_glue_raw("sst2", tmp_path)["train"]["sentence"])
    assert texts == [f"the sentence {n}" for n in (0, 1, 2, 3, 0, 1, 2)]


def test_a_missing_shard_is_not_a_smaller_training_set(tmp_path):
    write_parquet(tmp_path / "sst2", "sst2", "-00000-of-00002")
    with pytest.raises(FileNotFoundError, match="expected 2 shards of the split 'train', got 1"):
        load_glue_raw("sst2", tmp_path)


def test_another_tasks_folder_is_not_taken_for_this_task(tmp_path):
    write_parquet(tmp_path / "rte", "rte")
    with pytest.raises(FileNotFoundError, match="GLUE's wnli"):
        load_glue_raw("wnli", tmp_path / "rte")
    (tmp_path / "rte").rename(tmp_path / "my-own-folder")
    assert len(load_glue_raw("rte", tmp_path / "my-own-folder")["train"]) == 4


def test_a_missing_copy_names_what_was_looked_for(tmp_path):
    write_lines(tmp_path / "MNLI" / "train.tsv", OFFICIAL["mnli"][1])
    with pytest.raises(FileNotFoundError) as error:
        load_glue_raw("mnli", tmp_path)
    for part in ("MNLI", "validation_mismatched.parquet", "dev_matched.tsv", "nyu-mll/glue"):
        assert part in str(error.value)


def test_an_unknown_task_names_the_nine():
    with pytest.raises(ValueError, match=", ".join(NINE)):
        load_glue_raw("ax")


def test_the_mrpc_download_is_split_as_glue_does(tmp_path):
    header = OFFICIAL["mrpc"][1]
    lines = [f"{n % 2}\t{n}\t{n + 100}\tthe cat {n}\tthe dog {n}" for n in range(6)]
    # Microsoft's file starts with a byte order mark, which would hide the first column's name.
    train = tmp_path / "MRPC" / "msr_paraphrase_train.txt"
    write_lines(train, header, *lines, encoding="utf-8-sig")
    with pytest.raises(FileNotFoundError, match=r"dev_ids\.tsv"):
        load_glue_raw("mrpc", tmp_path)
    write_lines(tmp_path / "MRPC" / "dev_ids.tsv", "1\t101", "4\t104")
    splits = load_glue_raw("mrpc", tmp_path)
    assert list(splits["validation"]["sentence1"]) == ["the cat 1", "the cat 4"]
    assert list(splits["train"]["label"]) == [0, 0, 1, 1]


@pytest.mark.parametrize("separator", ["\r", "\u2028", "\x85"])
def test_a_line_break_inside_a_text_does_not_cut_the_row(tmp_path, separator):
    folder = write_official(tmp_path, "sst2")
    write_lines(folder / "train.tsv", "sentence\tlabel", f"the cat{separator}sat\t1", "a dog\t0\r")
    rows = load_glue_raw("sst2", tmp_path)["train"]
    assert list(rows["sentence"]) == [f"the cat{separator}sat", "a dog"]
    assert list(rows["label"]) == [1, 0]


def test_a_broken_line_is_left_out_of_qqp_and_refused_elsewhere(tmp_path):
    for task in ("qqp", "rte"):
        folder = write_official(tmp_path, task)
        _, header, line = OFFICIAL[task]
        write_lines(folder / "train.tsv", header, line, "7\tcut off", line)
    assert len(load_glue_raw("qqp", tmp_path)["train"]) == 2
    with pytest.raises(ValueError, match=r"train\.tsv, line 3: expected 4 fields, got 2"):
        load_glue_raw("rte", tmp_path)


@pytest.mark.parametrize(
    ("task", "line"), [("rte", "0\tthe cat\ta dog\tneutral"), ("wnli", "0\tthe cat\ta dog\t-1")]
)
def test_an_unknown_label_is_named_with_its_line(tmp_path, task, line):
    folder = write_official(tmp_path, task)
    write_lines(folder / "dev.tsv", OFFICIAL[task][1], line)
    with pytest.raises(ValueError, match=rf"dev\.tsv, line 2: .* got '{line.split()[-1]}'"):
        load_glue_raw(task, tmp_path)


def test_another_files_columns_are_refused(tmp_path):
    folder = write_official(tmp_path, "sst2")
    write_lines(folder / "train.tsv", "text\tlabel", "the cat\t1")
    with pytest.raises(ValueError, match=r"train\.tsv: expected the columns .*'text', 'label'"):
        load_glue_raw("sst2", tmp_path)


def test_the_hub_is_asked_by_name_and_its_test_split_left_out(monkeypatch):
    calls = []

    def hub(*args: str) -> DatasetDict:
        calls.append(args)
        splits = ("train", "validation_matched", "validation_mismatched", "test_matched")
        return DatasetDict({split: hub_rows("mnli", 2) for split in splits})

    monkeypatch.setattr(glue, "load_dataset", hub)
    splits = load_glue_raw("mnli")
    assert calls == [("nyu-mll/glue", "mnli")]
    assert list(splits) == ["train", "validation_matched", "validation_mismatched"]


@pytest.mark.parametrize("task", NINE)
def test_a_loaded_task_is_ready_to_train(tmp_path, tokenizer, task):
    write_official(tmp_path, task)
    splits = load_glue(task, tokenizer, tmp_path)
    assert list(splits) == ["train", *GLUE_TASKS[task].eval_splits]
    row = splits["train"][0]
    segments = len(GLUE_TASKS[task].text_columns)
    assert row["input_ids"].count(tokenizer.sep_token_id) == segments
    assert splits["train"].features["labels"].dtype == ("float32" if task == "stsb" else "int64")


@pytest.mark.parametrize(
    ("task", "train", "validation"),
    [
        ("cola", 8551, 1043),
        ("sst2", 67349, 872),
        ("mrpc", 3668, 408),
        ("stsb", 5749, 1500),
        ("rte", 2490, 277),
        ("wnli", 635, 71),
    ],
)
@pytest.mark.skipif(
    "KDNLP_GLUE_DIR" not in os.environ, reason="KDNLP_GLUE_DIR names no GLUE folder"
)
def test_real_glue_has_its_known_size(tokenizer, task, train, validation):
    splits = load_glue(task, tokenizer, os.environ["KDNLP_GLUE_DIR"])
    assert (len(splits["train"]), len(splits["validation"])) == (train, validation)


def test_rows_that_cannot_be_fetched_are_asked_for_as_a_folder():
    with pytest.raises(ConnectionError, match=r"GLUE's mrpc could not be fetched: .* --data_dir"):
        load_glue_raw("mrpc")
