"""An answer's place in a text becomes a place among tokens, in every window that holds it."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CanineTokenizer, PreTrainedTokenizerFast

from kdnlp.data.preparation import build_collator, check_dataset, prepare
from kdnlp.data.question_answering import token_positions
from kdnlp.data.tables import infer_task, read_tables
from kdnlp.data.task import Task

TASK = Task(
    "qa", ("question", "context"), None, ("f1",), label_column="answers",
    kind="question_answering",
)  # fmt: skip
CONTEXT = "the cat sat. a dog ran and the bird sang very loud, a quiet song"
QUESTION = "who ran ?"


def answer(context, text, nth=0):
    start = -1
    for _ in range(nth + 1):
        start = context.index(text, start + 1)
    return {"text": [text], "answer_start": [start]}


def splits(*rows):
    rows = rows or ((QUESTION, CONTEXT, answer(CONTEXT, "dog")),)
    columns = dict(zip(("question", "context", "answers"), zip(*rows, strict=True), strict=True))
    dataset = Dataset.from_dict({name: list(values) for name, values in columns.items()})
    return DatasetDict(train=dataset, validation=dataset)


@pytest.fixture
def tokenizer():
    """One token a letter beyond the known words, so that words have several tokens."""
    known = ["the", "cat", "sat", "a", "dog", "ran", "and", "who", "?", ".", ","]
    letters = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *known, *"bcdefghijklmnopqrstuvwxyz", *letters]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **special, sep_token="[SEP]", model_max_length=64
    )


def spans(rows, tokenizer):
    """What stands between the labelled positions of each window, in characters of the context."""
    found = []
    for row in rows:
        start, end = row["start_positions"], row["end_positions"]
        if (start, end) == (0, 0):
            found.append(None)
        else:
            assert row["input_ids"][start] != tokenizer.sep_token_id
            found.append(row["context"][row["char_starts"][start] : row["char_ends"][end]])
    return found


@pytest.mark.parametrize("text", ["dog", "the cat", "bird sang", "song", "a quiet song", CONTEXT])
def test_the_labelled_tokens_are_those_of_the_answer(tokenizer, text):
    dataset = splits((QUESTION, CONTEXT, answer(CONTEXT, text)))
    rows = prepare(dataset, TASK, tokenizer)["validation"]
    assert spans(rows, tokenizer) == [text]


def test_the_place_decides_where_the_words_occur_twice(tokenizer):
    dataset = splits((QUESTION, CONTEXT, answer(CONTEXT, "the", nth=1)))
    (row,) = prepare(dataset, TASK, tokenizer)["validation"]
    assert row["char_starts"][row["start_positions"]] == CONTEXT.rindex("the")


def test_an_answer_within_a_token_is_that_token(tokenizer):
    (row,) = prepare(splits((QUESTION, CONTEXT, answer(CONTEXT, "o"))), TASK, tokenizer)[
        "validation"
    ]
    assert row["context"][row["char_starts"][row["start_positions"]] :].startswith("dog")


def test_windows_cover_the_context_overlap_by_the_stride_and_label_whole_answers_only(tokenizer):
    task = replace(TASK, stride=6)
    rows = prepare(splits(), task, tokenizer, max_length=18)["validation"]
    room = 18 - 3 - 3  # three special tokens, three of the question
    places = []
    for row in rows:
        starts = np.array(row["char_starts"])
        assert (starts >= 0).sum() <= room
        assert row["example"] == 0
        places.append(starts[starts >= 0].tolist())
    whole = tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)
    every = [start for start, _ in whole["offset_mapping"]]
    assert sorted({start for window in places for start in window}) == every
    for before, after in pairwise(places):
        assert before[-6:] == after[:6]
    assert spans(rows, tokenizer).count("dog") == sum(CONTEXT.index("dog") in w for w in places)
    assert None in spans(rows, tokenizer)


def test_an_answer_that_a_window_cuts_is_not_labelled_there(tokenizer):
    text = "dog ran and the bird"
    rows = prepare(
        splits((QUESTION, CONTEXT, answer(CONTEXT, text))), replace(TASK, stride=8), tokenizer, 20
    )["validation"]
    found = spans(rows, tokenizer)
    assert set(found) == {None, text}
    for row, span in zip(rows, found, strict=True):
        characters = [c for c in row["char_starts"] if c >= 0]
        begin = CONTEXT.index(text)
        holds = characters[0] <= begin and max(row["char_ends"]) >= begin + len(text)
        assert holds == (span is not None)


def test_the_default_stride_is_a_third_of_the_window(tokenizer):
    default = prepare(splits(), TASK, tokenizer, max_length=24)["train"]
    third = prepare(splits(), replace(TASK, stride=8), tokenizer, max_length=24)["train"]
    assert list(default["input_ids"]) == list(third["input_ids"])


def test_windows_remember_their_row_and_its_answers(tokenizer):
    first = (QUESTION, CONTEXT, answer(CONTEXT, "dog"))
    second = ("who sat ?", "the cat sat", {"text": ["the cat", "cat"], "answer_start": [0, 4]})
    rows = prepare(splits(first, second), replace(TASK, stride=6), tokenizer, 18)["validation"]
    assert list(rows["example"]) == sorted(rows["example"])
    assert set(rows["example"]) == {0, 1}
    assert rows[-1]["answers"] == ["the cat", "cat"]
    assert rows[-1]["context"] == "the cat sat"
    assert spans(rows, tokenizer)[-1] == "the cat"


def test_what_only_evaluation_needs_is_left_out_of_training(tokenizer):
    data = prepare(splits(), TASK, tokenizer)
    assert set(data["train"].column_names) == {
        "input_ids", "attention_mask", "start_positions", "end_positions",
    }  # fmt: skip
    batch = build_collator(TASK, tokenizer)(list(data["train"]))
    assert str(batch["start_positions"].dtype) == "torch.int64"
    assert batch["start_positions"].shape == (1,)


def test_token_positions_of_a_window_by_hand():
    # Two tokens of the question, a separator, then "the", "cat" and "sat" from character 10 on.
    starts, ends = np.array([-1, -1, -1, 10, 14, 18, -1]), np.array([-1, -1, -1, 13, 17, 21, -1])
    assert token_positions(starts, ends, 14, 21) == (4, 5)
    assert token_positions(starts, ends, 10, 21) == (3, 5)
    assert token_positions(starts, ends, 9, 13) == (0, 0)
    assert token_positions(starts, ends, 18, 22) == (0, 0)
    assert token_positions(starts[:3], ends[:3], 10, 13) == (0, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((QUESTION, CONTEXT, {"text": ["dog"], "answer_start": [0]}), "'dog' at character 0"),
        ((QUESTION, CONTEXT, {"text": ["dog"], "answer_start": [-50]}), "'dog' at character -50"),
        # Question and context in the wrong order.
        ((CONTEXT, QUESTION, answer(CONTEXT, "dog")), "in the order question, context"),
        ((QUESTION, CONTEXT, {"text": [""], "answer_start": [0]}), "at least one answer"),
        ((QUESTION, CONTEXT, {"text": ["dog"], "answer_start": [1, 2]}), "at least one answer"),
        ((QUESTION, None, answer(CONTEXT, "dog")), "row 1: expected text, got None"),
    ],
)
def test_an_answer_that_is_not_where_it_should_be_is_named_with_its_row(row, message):
    good = (QUESTION, CONTEXT, answer(CONTEXT, "cat"))
    with pytest.raises(ValueError, match=message) as error:
        check_dataset(splits(good, row), TASK)
    assert "row 1" in str(error.value)


def test_a_question_without_an_answer_is_refused_and_not_learned_as_the_first_token():
    features = Features({
        "question": Value("string"), "context": Value("string"),
        "answers": {"text": ListOf(Value("string")), "answer_start": ListOf(Value("int32"))},
    })  # fmt: skip
    rows = {"question": [QUESTION], "context": [CONTEXT]}
    for missing in ({"text": [], "answer_start": []}, None):
        dataset = Dataset.from_dict({**rows, "answers": [missing]}, features=features)
        with pytest.raises(ValueError, match=r"row 0.*SQuAD 2\.0"):
            check_dataset(DatasetDict(train=dataset, validation=dataset), TASK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_column": "context"}, "with text and answer_start"),
        ({"text_columns": ("context",)}, "expected two text columns"),
    ],
)
def test_columns_of_another_shape_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(splits(), replace(TASK, **changes))


def test_a_question_that_leaves_no_room_to_move_on_is_named(tokenizer):
    long = ("who and who and who ?", CONTEXT, answer(CONTEXT, "cat"))
    dataset = splits((QUESTION, CONTEXT, answer(CONTEXT, "dog")), long)
    with pytest.raises(ValueError, match=r"row 1: .* got 6 tokens, which leave 6"):
        prepare(dataset, replace(TASK, stride=6), tokenizer, max_length=15)
    prepare(dataset, replace(TASK, stride=5), tokenizer, max_length=15)


def test_tokenizers_that_would_move_the_answers_are_refused(tokenizer):
    with pytest.raises(ValueError, match="needs a fast tokenizer, got CanineTokenizer"):
        prepare(splits(), TASK, CanineTokenizer(), max_length=64)
    tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="pads on the right, got 'left'"):
        prepare(splits(), TASK, tokenizer)


def test_a_file_in_squads_shape_says_by_itself_what_it_is(tmp_path):
    rows = [
        {"id": "x", "question": QUESTION, "context": CONTEXT, "answers": answer(CONTEXT, "dog")}
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    dataset = read_tables(tmp_path / "a.json", tmp_path / "a.json")
    task = infer_task(dataset, ["question", "context"], "answers")
    assert (task.kind, task.label_names, task.max_length) == ("question_answering", None, 384)
    assert task.metrics == ("exact_match", "f1")
    check_dataset(dataset, task)
