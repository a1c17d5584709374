import math
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from kdnlp.data.preparation import check_dataset, prepare
from kdnlp.data.task import Task

SINGLE = Task("noise", ("text",), ("quiet", "loud"), ("accuracy",))
PAIR = Task("same", ("left", "right"), ("no", "yes"), ("accuracy",))
SCORE = Task("score", ("text",), None, ("pearson",))
TEXTS = ["the cat sat", "the dog ran very loud", "a bird sang"]


def splits(labels: list, texts: list | None = None, features: Features | None = None):
    rows = Dataset.from_dict({"text": texts or TEXTS, "label": labels}, features=features)
    return DatasetDict(train=rows, validation=rows)


def words(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_inputs_are_cut_but_not_padded_and_nothing_else_is_kept(tokenizer):
    out = prepare(splits([0, 1, 0]), SINGLE, tokenizer, max_length=5)
    assert set(out["train"].column_names) == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "labels",
    }
    decoded = [words(tokenizer, ids) for ids in out["train"]["input_ids"]]
    assert decoded == [
        "[CLS] the cat sat [SEP]",
        "[CLS] the dog ran [SEP]",
        "[CLS] a bird sang [SEP]",
    ]
    shorter = prepare(splits([0, 1, 0]), SINGLE, tokenizer)
    assert [len(ids) for ids in shorter["train"]["input_ids"]] == [5, 7, 5]


def test_a_pair_is_one_input_with_two_segments(tokenizer):
    rows = Dataset.from_dict({"left": ["the cat"], "right": ["a dog ran"], "label": [1]})
    out = prepare(DatasetDict(train=rows, validation=rows), PAIR, tokenizer)["train"][0]
    assert words(tokenizer, out["input_ids"]) == "[CLS] the cat [SEP] a dog ran [SEP]"
    assert out["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_token_types_are_left_out_where_the_model_has_none(tokenizer):
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    out = prepare(splits([0, 1, 0]), SINGLE, tokenizer)
    assert set(out["train"].column_names) == {"input_ids", "attention_mask", "labels"}


def test_batches_have_the_types_a_model_takes(tokenizer):
    collate = DataCollatorWithPadding(tokenizer)
    classes = collate(list(prepare(splits([0, 1, 0]), SINGLE, tokenizer)["train"]))
    scores = collate(list(prepare(splits([0, 1, 0]), SCORE, tokenizer)["train"]))
    assert str(classes["labels"].dtype) == "torch.int64"
    # Integer targets would select the cross-entropy in models that infer the problem type.
    assert str(scores["labels"].dtype) == "torch.float32"
    assert str(classes["input_ids"].dtype) == "torch.int64"
    assert classes["input_ids"].shape == (3, 7)


@pytest.mark.parametrize(
    ("labels", "label_type"),
    [
        (["quiet", "loud", "quiet"], Value("string")),
        ([0, 1, 0], Value("int32")),
        ([False, True, False], Value("bool")),
        (["quiet", "loud", "quiet"], ClassLabel(names=["quiet", "loud"])),
        # The dataset numbers the classes the other way round.
        (["quiet", "loud", "quiet"], ClassLabel(names=["loud", "quiet"])),
    ],
    ids=["names", "ids", "booleans", "class-labels", "reordered-class-labels"],
)
def test_labels_mean_the_same_class_however_they_are_stored(tokenizer, labels, label_type):
    features = Features({"text": Value("string"), "label": label_type})
    out = prepare(splits(labels, features=features), SINGLE, tokenizer)
    assert list(out["train"]["labels"]) == [0, 1, 0]


def test_rows_keep_their_labels_after_a_shuffle(tokenizer):
    texts = [word for word in ("cat", "dog", "bird") for _ in range(20)]
    labels = [0.5 if text == "cat" else 1.5 if text == "dog" else 2.5 for text in texts]
    dataset = splits(labels, texts).shuffle(seed=3)
    out = prepare(dataset, SCORE, tokenizer)["train"]
    targets = {"cat": 0.5, "dog": 1.5, "bird": 2.5}
    for row in out:
        assert row["labels"] == targets[tokenizer.convert_ids_to_tokens(row["input_ids"])[1]]


def test_an_unlabelled_extra_split_is_left_out(tokenizer):
    dataset = splits([0, 1, 0])
    dataset["test"] = Dataset.from_dict({"text": ["the cat"], "label": [-1]})
    assert set(prepare(dataset, SINGLE, tokenizer)) == {"train", "validation"}


def test_a_missing_split_is_named():
    with pytest.raises(ValueError, match=r"'validation_matched'.*\['train', 'validation'\]"):
        check_dataset(splits([0, 1, 0]), replace(SINGLE, eval_splits=("validation_matched",)))


def test_a_missing_column_is_named_with_those_there():
    with pytest.raises(ValueError, match=r"Split 'train'.*\['text', 'label'\].*\['sentence'\]"):
        check_dataset(splits([0, 1, 0]), replace(SINGLE, text_columns=("sentence",)))


def test_an_empty_split_is_refused():
    dataset = splits([0, 1, 0])
    dataset["validation"] = dataset["validation"].select([])
    with pytest.raises(ValueError, match=r"'validation'.*at least one row"):
        check_dataset(dataset, SINGLE)


@pytest.mark.parametrize(
    ("labels", "task", "got"),
    [
        ([0, 1, 2], SINGLE, "2"),
        ([0, 1, -1], SINGLE, "-1"),
        ([0, 1, None], SINGLE, "None"),
        (["quiet", "loud", "Loud"], SINGLE, "'Loud'"),
        ([0.5, 1.0, math.nan], SCORE, "nan"),
        ([0.5, 1.0, math.inf], SCORE, "inf"),
        ([0.5, 1.0, None], SCORE, "None"),
    ],
)
def test_a_bad_label_is_named_with_its_row(labels, task, got):
    with pytest.raises(ValueError, match=rf"Split 'train', column 'label', row 2: .* got {got}\."):
        check_dataset(splits(labels), task)


def test_the_row_is_counted_in_the_dataset_and_not_in_the_batch():
    count = 10_003
    dataset = splits([0] * (count - 1) + [7], ["the cat"] * count)
    with pytest.raises(ValueError, match=f"row {count - 1}: .* got 7"):
        check_dataset(dataset, SINGLE)


def test_rows_are_checked_as_selected_and_not_as_stored():
    rows = splits([7, 1, 0])["train"].select([1, 2])
    check_dataset(DatasetDict(train=rows, validation=rows), SINGLE)
    rows = splits([0, 1, 7])["train"].select([2, 1])
    with pytest.raises(ValueError, match=r"row 0: .* got 7"):
        check_dataset(DatasetDict(train=rows, validation=rows), SINGLE)


def test_a_missing_text_is_named_with_its_row():
    with pytest.raises(ValueError, match=r"column 'text', row 1: expected text, got None"):
        check_dataset(splits([0, 1, 0], ["the cat", None, "a dog"]), SINGLE)


@pytest.mark.parametrize("texts", [[1, 2, 3], [["the", "cat"], ["a"], ["dog"]]])
def test_a_column_that_is_no_text_is_refused(texts):
    with pytest.raises(ValueError, match=r"column 'text', row 0: expected text, got (1|\['the)"):
        check_dataset(splits([0, 1, 0], texts), SINGLE)


@pytest.mark.parametrize(
    ("labels", "task"),
    [([0.0, 1.0, 0.0], SINGLE), (["0.5", "1", "2"], SCORE), ([True, False, True], SCORE)],
)
def test_a_label_column_of_the_wrong_kind_is_refused(labels, task):
    with pytest.raises(ValueError, match=f"column 'label': expected .*{task.kind} task"):
        check_dataset(splits(labels), task)


def test_a_tokenizer_without_padding_is_refused_with_the_fix(tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        prepare(splits([0, 1, 0]), SINGLE, tokenizer)


@pytest.mark.parametrize("length", [0, 2, 65])
def test_a_length_that_keeps_no_text_or_passes_the_model_is_refused(tokenizer, length):
    with pytest.raises(ValueError, match=rf"max_length in 3\.\.64 .* got {length}\."):
        prepare(splits([0, 1, 0]), SINGLE, tokenizer, max_length=length)


def test_the_default_length_stays_within_the_tokenizers(tokenizer):
    long = [" ".join(["cat"] * 100)] * 3
    out = prepare(splits([0, 1, 0], long), SINGLE, tokenizer)
    assert {len(ids) for ids in out["train"]["input_ids"]} == {64}


def test_a_second_call_reads_the_cache_and_another_task_does_not(tokenizer, tmp_path: Path):
    splits(["quiet", "loud", "quiet"])["train"].to_json(tmp_path / "train.json")
    files = {split: str(tmp_path / "train.json") for split in ("train", "validation")}
    dataset = load_dataset("json", data_files=files)
    first = prepare(dataset, SINGLE, tokenizer)["train"]
    again = prepare(dataset, SINGLE, tokenizer)["train"]
    assert first.cache_files == again.cache_files != []
    other = prepare(dataset, replace(SINGLE, label_names=("loud", "quiet")), tokenizer)["train"]
    assert list(other["labels"]) == [1, 0, 1]
    assert list(prepare(dataset, SINGLE, tokenizer, max_length=3)["train"]["input_ids"][1]) != list(
        first["input_ids"][1]
    )
