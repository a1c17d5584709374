"""Several classes a text, however a table stores them, become one vector of zeros and ones."""

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from transformers import DataCollatorWithPadding

from kdnlp.data.preparation import check_dataset, prepare
from kdnlp.data.tables import infer_task, read_tables
from kdnlp.data.task import Task

KIND = "multi_label_classification"
TEXTS = ["the cat sat", "the dog ran", "a bird sang"]
GENRES = Task(
    "genres", ("text",), ("calm", "loud", "sad"), ("f1_micro",), label_column="genres", kind=KIND
)
EXPECTED = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
NAMES = [["sad", "calm"], [], ["loud"]]


def splits(**columns):
    rows = Dataset.from_dict({"text": TEXTS, **columns})
    return DatasetDict(train=rows, validation=rows)


def typed(labels, item):
    features = Features({"text": Value("string"), "genres": ListOf(item)})
    rows = Dataset.from_dict({"text": TEXTS, "genres": labels}, features=features)
    return DatasetDict(train=rows, validation=rows)


@pytest.mark.parametrize(
    "dataset",
    [
        splits(genres=NAMES),
        splits(genres=[[2, 0], [], [1]]),
        typed(NAMES, ClassLabel(names=["calm", "loud", "sad"])),
        # The dataset numbers the classes otherwise.
        typed(NAMES, ClassLabel(names=["sad", "calm", "loud"])),
    ],
    ids=["names", "ids", "class-labels", "reordered-class-labels"],
)
def test_labels_mean_the_same_classes_however_they_are_stored(tokenizer, dataset):
    assert list(prepare(dataset, GENRES, tokenizer)["train"]["labels"]) == EXPECTED


@pytest.mark.parametrize(
    "values", [([1, 0, 0], [0, 0, 1]), ([True, False, False], [0.0, 0.0, 1.0])]
)
def test_a_column_of_zeros_and_ones_per_class_is_read_in_the_order_of_the_classes(
    tokenizer, values
):
    dataset = splits(c=values[0], l=values[1], s=[1, 0, 0])
    task = infer_task(dataset, ["text"], "c, l,s")
    assert (task.kind, task.label_names) == (KIND, ("c", "l", "s"))
    assert task.label_column == ("c", "l", "s")
    assert list(prepare(dataset, task, tokenizer)["train"]["labels"]) == EXPECTED
    other = task.with_label_order(("s", "c", "l"))
    assert list(prepare(dataset, other, tokenizer)["train"]["labels"]) == [
        [row[2], row[0], row[1]] for row in EXPECTED
    ]


def test_a_batch_has_real_valued_targets_as_sigmoid_cross_entropy_needs(tokenizer):
    rows = prepare(splits(genres=NAMES), GENRES, tokenizer)["train"]
    batch = DataCollatorWithPadding(tokenizer)(list(rows))
    assert str(batch["labels"].dtype) == "torch.float32"
    assert batch["labels"].tolist() == EXPECTED


def test_a_list_column_of_a_users_file_says_by_itself_that_it_is_multi_label(tmp_path):
    rows = [{"text": t, "genres": g} for t, g in zip(TEXTS, NAMES, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = read_tables(tmp_path / "a.jsonl", tmp_path / "a.jsonl")
    task = infer_task(dataset, ["text"], "genres")
    assert (task.kind, task.label_names) == (KIND, ("calm", "loud", "sad"))
    assert task.metrics == ("f1_micro", "f1_macro", "subset_accuracy")
    check_dataset(dataset, task)


def test_a_split_whose_rows_all_have_no_label_is_read(tokenizer):
    dataset = splits(genres=NAMES)
    dataset["validation"] = Dataset.from_dict({"text": TEXTS, "genres": [[], [], []]})
    assert list(prepare(dataset, GENRES, tokenizer)["validation"]["labels"]) == [[0.0] * 3] * 3


def test_ids_in_lists_are_classes_by_number_or_by_the_names_that_are_given():
    dataset = splits(genres=[[2, 0], [], [1]])
    assert infer_task(dataset, ["text"], "genres").label_names == ("0", "1", "2")
    named = infer_task(dataset, ["text"], "genres", label_names=["x", "y", "z"])
    assert (named.kind, named.label_names) == (KIND, ("x", "y", "z"))


def test_a_column_whose_own_name_has_a_comma_is_one_column():
    task = infer_task(splits(**{"a,b": ["x", "y", "x"]}), ["text"], "a,b")
    assert (task.kind, task.label_column) == ("single_label_classification", "a,b")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["calm"], ["lout"], []], r"row 1: expected one of .* got 'lout'"),
        ([["calm"], None, []], r"row 1: expected a list of classes, got None.*Write \[\]"),
        ([["calm"], ["sad", None], []], r"row 1: expected one of .* got None"),
        ([[0], [3], []], "row 1: expected one of .* got 3"),
        # Zeros and ones would silently be read as the classes 0 and 1.
        ([[2], [0, 1, 0], []], r"row 1: expected each class once, got \[0, 1, 0\]"),
        (["calm", "loud", "sad"], "expected lists of class ids or class names"),
        ([[0.0, 1.0], [1.0, 0.0], []], "expected lists of class ids or class names"),
        ([[True], [False], []], "expected lists of class ids or class names"),
    ],
)
def test_a_row_that_would_teach_another_class_is_named(labels, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(splits(genres=labels), GENRES)


@pytest.mark.parametrize("labels", [[[1, 0], [0, 1], [1, 0]], [[1, 0]] * 3])
def test_zeros_and_ones_of_two_classes_are_not_read_as_both_classes_in_every_row(labels):
    dataset = splits(genres=labels)
    task = infer_task(dataset, ["text"], "genres")
    with pytest.raises(ValueError, match=r"'train', column 'genres': .* or \[0, 1\] in every row"):
        check_dataset(dataset, task)


@pytest.mark.parametrize("ids", [[[1, 0], [0, 1], [1]], [[0, 1]] * 3], ids=["some", "all"])
def test_ids_of_both_classes_are_read(ids, tokenizer):
    dataset = splits(genres=ids)
    task = infer_task(dataset, ["text"], "genres")
    labels = list(prepare(dataset, task, tokenizer)["train"]["labels"])
    assert labels == [[float(k in row) for k in (0, 1)] for row in ids]


@pytest.mark.parametrize(
    ("values", "got"), [([0, 2, 1], "2"), ([0, -1, 1], "-1"), ([0, None, 1], "None")]
)
def test_a_column_of_zeros_and_ones_holds_nothing_else(values, got):
    dataset = splits(c=values, l=[0, 1, 1])
    task = infer_task(dataset, ["text"], ["c", "l"])
    with pytest.raises(ValueError, match=rf"column 'c', row 1: expected 0 or 1.* got {got}"):
        check_dataset(dataset, task)


def test_a_missing_column_of_a_class_is_named():
    with pytest.raises(ValueError, match=r"\['s'\] missing"):
        infer_task(splits(c=[0, 1, 1]), ["text"], "c,s")
