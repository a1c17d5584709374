"""A teacher with inputs of its own gets them row by row, padded its own way."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)

from kdnlp.data.collation import TeacherInputsCollator, add_teacher_inputs
from kdnlp.data.preparation import prepare
from kdnlp.data.task import Task

TEXTS = ["the cat sat", "the dog ran very loud", "a bird sang"]
NOTES = ["quiet", "very loud", "loud"]
TASK = Task("noise", ("text",), ("quiet", "loud"), ("accuracy",))


@pytest.fixture
def letters():
    """A byte-level tokenizer in RoBERTa's manner: other ids, pad 1, no token types."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )


def raw(labels=("quiet", "loud", "quiet"), texts=TEXTS):
    return Dataset.from_dict({"text": list(texts), "note": NOTES, "label": list(labels)})


def prepared(tokenizer, rows=None, task=TASK):
    rows = rows or raw()
    return prepare(DatasetDict(train=rows, validation=rows), task, tokenizer)["train"]


def texts_of(tokenizer, batch, prefix=""):
    """The texts that a batch holds, read off its attended tokens."""
    return [
        tokenizer.decode(ids[attended.bool()], skip_special_tokens=True)
        for ids, attended in zip(
            batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"], strict=True
        )
    ]


def test_every_row_keeps_its_text_for_both_readers(tokenizer, letters):
    data = add_teacher_inputs(prepared(tokenizer), raw(), letters, ["text"])
    collate = TeacherInputsCollator({"": tokenizer, "teacher_": letters})
    batch = collate([data[i] for i in (1, 0, 2)])
    expected = [TEXTS[i] for i in (1, 0, 2)]
    assert texts_of(tokenizer, batch) == expected
    assert texts_of(letters, batch, "teacher_") == expected
    assert batch["labels"].tolist() == [1, 0, 0]
    assert "teacher_token_type_ids" not in batch


def test_each_reader_is_padded_with_its_own_token_to_its_own_length(tokenizer, letters):
    data = add_teacher_inputs(prepared(tokenizer), raw(), letters, ["text"])
    batch = TeacherInputsCollator({"": tokenizer, "teacher_": letters})(list(data))
    for prefix, own, length in (("", tokenizer, 7), ("teacher_", letters, 23)):
        ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
        assert ids.shape == mask.shape == (3, length)
        assert set(ids[mask == 0].tolist()) == {own.pad_token_id}
        assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)
    assert (tokenizer.pad_token_id, letters.pad_token_id) == (0, 1)


def test_the_students_part_is_what_the_plain_collator_makes(tokenizer, letters):
    plain = prepared(tokenizer).add_column("row", [7, 8, 9])
    data = add_teacher_inputs(plain, raw(), letters, ["text"])
    expected = DataCollatorWithPadding(tokenizer)(list(plain))
    got = TeacherInputsCollator({"": tokenizer, "teacher_": letters})(list(data))
    assert set(got) == {*expected, "teacher_input_ids", "teacher_attention_mask"}
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_extra_columns_of_the_teacher_are_kept_and_not_padded(tokenizer, letters):
    data = add_teacher_inputs(prepared(tokenizer), raw(), letters, ["text"])
    data = data.add_column("teacher_logits", [[0.5, 1.5], [1.0, 2.0], [3.0, 4.0]])
    batch = TeacherInputsCollator({"": tokenizer, "teacher_": letters})(list(data))
    assert batch["teacher_logits"].tolist() == [[0.5, 1.5], [1.0, 2.0], [3.0, 4.0]]


def test_data_for_evaluation_needs_no_inputs_of_the_teachers(tokenizer, letters):
    plain = prepared(tokenizer)
    batch = TeacherInputsCollator({"": tokenizer, "teacher_": letters})(list(plain))
    assert set(batch) == set(DataCollatorWithPadding(tokenizer)(list(plain)))


def test_two_teachers_have_columns_of_their_own(tokenizer, letters):
    data = add_teacher_inputs(prepared(tokenizer), raw(), letters, ["text"])
    data = add_teacher_inputs(data, raw(), letters, ["note"], prefix="teacher_b_")
    by_prefix = {"": tokenizer, "teacher_": letters, "teacher_b_": letters}
    batch = TeacherInputsCollator(by_prefix, pad_to_multiple_of=8)(list(data))
    assert texts_of(letters, batch, "teacher_") == TEXTS
    assert texts_of(letters, batch, "teacher_b_") == NOTES
    lengths = [batch[f"{p}input_ids"].size(1) for p in ("", "teacher_", "teacher_b_")]
    assert lengths == [8, 24, 16]


def test_a_privileged_column_reaches_the_teacher_alone(tokenizer):
    data = add_teacher_inputs(prepared(tokenizer), raw(), tokenizer, ["text", "note"])
    batch = TeacherInputsCollator({"": tokenizer, "teacher_": tokenizer})(list(data))
    assert texts_of(tokenizer, batch) == TEXTS
    both = [f"{text} {note}" for text, note in zip(TEXTS, NOTES, strict=True)]
    assert texts_of(tokenizer, batch, "teacher_") == both
    assert batch["teacher_token_type_ids"].max() == 1
    assert batch["token_type_ids"].max() == 0


def test_the_student_may_be_padded_by_a_collator_of_its_own(tokenizer, letters):
    data = Dataset.from_dict(
        {
            "input_ids": [[2, 4, 3], [2, 4, 5, 6, 3]],
            "attention_mask": [[1] * 3, [1] * 5],
            "labels": [[-100, 1, -100], [-100, 1, 0, 1, -100]],
        }
    )
    rows = raw().select([0, 1])
    data = add_teacher_inputs(data, rows, letters, ["text"])
    own = DataCollatorForTokenClassification(tokenizer)
    batch = TeacherInputsCollator({"": own, "teacher_": letters})(list(data))
    assert batch["labels"][0].tolist() == [-100, 1, -100, -100, -100]
    assert texts_of(letters, batch, "teacher_") == TEXTS[:2]


def test_the_teachers_texts_are_cut_at_its_own_length(tokenizer, letters):
    data = add_teacher_inputs(prepared(tokenizer), raw(), letters, ["text"], max_length=8)
    assert [len(ids) for ids in data["teacher_input_ids"]] == [8, 8, 8]
    assert letters.decode(data["teacher_input_ids"][0], skip_special_tokens=True) == "the ca"


def test_a_collator_without_the_students_tokenizer_is_refused(letters):
    with pytest.raises(ValueError, match=r'tokenizer under the prefix ""'):
        TeacherInputsCollator({"teacher_": letters})


def test_prefixes_and_tokenizers_that_lead_nowhere_are_refused(tokenizer, letters):
    with pytest.raises(ValueError, match=r"starts with 'teacher_', got 'roberta_'.*Use 'teacher_r"):
        TeacherInputsCollator({"": tokenizer, "roberta_": letters})
    with pytest.raises(TypeError, match="Expected a tokenizer under 'teacher_', got DataCollator"):
        TeacherInputsCollator({"": tokenizer, "teacher_": DataCollatorWithPadding(letters)})
    letters.pad_token = None
    with pytest.raises(ValueError, match="with a pad token"):
        TeacherInputsCollator({"": tokenizer, "teacher_": letters})
    with pytest.raises(ValueError, match="with a pad token"):
        add_teacher_inputs(prepared(tokenizer), raw(), letters, ["text"])


def test_inputs_that_no_tokenizer_was_given_for_are_named(tokenizer, letters):
    data = add_teacher_inputs(prepared(tokenizer), raw(), letters, ["text"], "teacher_b_")
    with pytest.raises(ValueError, match=r"got teacher_b_input_ids.*Add 'teacher_b_'"):
        TeacherInputsCollator({"": tokenizer, "teacher_": letters})(list(data))


def test_rows_in_another_number_or_order_are_refused(tokenizer, letters):
    data = prepared(tokenizer)
    with pytest.raises(ValueError, match=r"got 2 for its 3.*answer other texts"):
        add_teacher_inputs(data, raw().select([0, 1]), letters, ["text"])
    with pytest.raises(ValueError, match=r"Row 2: expected the label 1 .*different orders"):
        add_teacher_inputs(data.select([1, 0, 2]), raw(), letters, ["text"])
    score = Task("score", ("text",), None, ("pearson",))
    numbers = raw(labels=(0.1, 0.7, 0.3))
    kept = add_teacher_inputs(prepared(tokenizer, numbers, score), numbers, letters, ["text"])
    assert kept["labels"][:] == pytest.approx([0.1, 0.7, 0.3])
    with pytest.raises(ValueError, match=r"Row 0: .*different orders"):
        add_teacher_inputs(
            prepared(tokenizer, numbers, score).select([2, 1, 0]), numbers, letters, ["text"]
        )


def test_labels_numbered_in_any_way_are_no_other_order(tokenizer, letters):
    task = TASK.with_label_order(("loud", "quiet"))
    data = add_teacher_inputs(prepared(tokenizer, task=task), raw(), letters, ["text"])
    assert data["labels"][:] == [1, 0, 1]
    unlabelled = raw().remove_columns("label")
    assert len(add_teacher_inputs(prepared(tokenizer), unlabelled, letters, ["text"])) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"text_columns": []}, "one text column or two"),
        ({"text_columns": "text"}, "got 'text'"),
        ({"text_columns": ["text", "note", "label"]}, "would drop the rest"),
        ({"text_columns": ["body"]}, r"\['body'\] missing"),
        ({"prefix": "roberta_"}, "starts with 'teacher_'"),
        ({"max_length": 2}, r"Expected max_length in 3\.\.64"),
        ({"max_length": 65}, "no position embedding"),
    ],
)
def test_teachers_inputs_that_would_be_others_are_refused(settings, words, tokenizer, letters):
    with pytest.raises(ValueError, match=words):
        add_teacher_inputs(
            prepared(tokenizer), raw(), letters, **{"text_columns": ["text"], **settings}
        )


def test_a_missing_text_and_columns_that_are_there_already_are_refused(tokenizer, letters):
    data = add_teacher_inputs(prepared(tokenizer), raw(), letters, ["text"])
    with pytest.raises(ValueError, match="Two teachers would share the columns"):
        add_teacher_inputs(data, raw(), letters, ["text"])
    holes = raw().remove_columns("note").add_column("note", ["x", None, "y"])
    with pytest.raises(ValueError, match="Column 'note', row 1: expected text, got None"):
        add_teacher_inputs(prepared(tokenizer), holes, letters, ["note"])


def test_what_is_added_is_small_and_leaves_the_rest_as_it_was(tokenizer, letters):
    plain = prepared(tokenizer)
    data = add_teacher_inputs(plain, raw(), letters, ["text"])
    assert data.select_columns(plain.column_names)[:] == plain[:]
    assert data.features["teacher_input_ids"].feature.dtype == "int32"
    shuffled = plain.select(np.array([2, 0, 1]))
    rows = raw().select([2, 0, 1])
    again = add_teacher_inputs(shuffled, rows, letters, ["text"])
    assert again["teacher_input_ids"][:] == [data["teacher_input_ids"][i] for i in (2, 0, 1)]
    assert again["labels"][:] == [data["labels"][i] for i in (2, 0, 1)]
