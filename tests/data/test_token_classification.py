"""Every word keeps its own tag, whatever the tokenizer makes of it."""

import json
import logging
import re
from dataclasses import replace

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import CanineTokenizer, PreTrainedTokenizerFast

from kdnlp.data.preparation import build_collator, check_dataset, prepare
from kdnlp.data.tables import infer_task, read_tables
from kdnlp.data.task import Task
from kdnlp.data.token_classification import IGNORED, word_of_each_token

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ENTITIES = Task("ner", ("tokens",), TAGS, ("f1",), label_column="tags", kind="token_classification")
WORDS = [["Ada", "Lovelace", "lives", "in", "London"], ["nobody", "came"], ["rain"]]
NAMES = [["B-PER", "I-PER", "O", "O", "B-LOC"], ["O", "O"], ["O"]]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def splits(words=WORDS, tags=NAMES, features=None):
    rows = Dataset.from_dict({"tokens": words, "tags": tags}, features=features)
    return DatasetDict(train=rows, validation=rows)


def word_pieces():
    pieces = ["Ada", "Love", "##lace", "live", "##s", "in", "Lon", "##don", "no", "##body", "came"]
    vocabulary = {p: i for i, p in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL, model_max_length=32)


def trained(backend, trainer_class, pre_tokenizer):
    backend.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if trainer_class is trainers.BpeTrainer else []
    trainer = trainer_class(
        vocab_size=len(alphabet) + (12 if alphabet else 30), special_tokens=[*SPECIAL.values()],
        initial_alphabet=alphabet, show_progress=False,
        **({"unk_token": "[UNK]"} if trainer_class is trainers.UnigramTrainer else {}),
    )  # fmt: skip
    backend.train_from_iterator([" ".join(words) for words in WORDS * 20], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL, model_max_length=64)


TOKENIZERS = {
    "word-pieces": word_pieces,
    "byte-level": lambda: trained(
        Tokenizer(models.BPE()),
        trainers.BpeTrainer,
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ),
    "byte-level-whole-offsets": lambda: trained(
        Tokenizer(models.BPE()),
        trainers.BpeTrainer,
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False),
    ),
    "sentence-pieces": lambda: trained(
        Tokenizer(models.Unigram()), trainers.UnigramTrainer, pre_tokenizers.Metaspace()
    ),
}


def pieces(tokenizer, row):
    """The tokens of a row beside their labels by name."""
    names = [TAGS[label] if label != IGNORED else None for label in row["labels"]]
    return list(zip(tokenizer.convert_ids_to_tokens(row["input_ids"]), names, strict=True))


def test_the_first_piece_of_each_word_has_its_tag_and_nothing_else_counts():
    tokenizer = word_pieces()
    rows = prepare(splits(), ENTITIES, tokenizer)["train"]
    assert pieces(tokenizer, rows[0]) == [
        ("[CLS]", None), ("Ada", "B-PER"), ("Love", "I-PER"), ("##lace", None), ("live", "O"),
        ("##s", None), ("in", "O"), ("Lon", "B-LOC"), ("##don", None), ("[SEP]", None),
    ]  # fmt: skip
    assert pieces(tokenizer, rows[2]) == [("[CLS]", None), ("[UNK]", "O"), ("[SEP]", None)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_word_is_labelled_once_and_in_order_by_every_kind_of_tokenizer(name):
    tokenizer = TOKENIZERS[name]()
    for row, words, tags in zip(
        prepare(splits(), ENTITIES, tokenizer)["validation"], WORDS, NAMES, strict=True
    ):
        # Running text, as in pretraining: a bare word would be the rest of another word.
        assert row["input_ids"] == tokenizer(" ".join(words))["input_ids"]
        labels = [label for label in row["labels"] if label != IGNORED]
        assert [TAGS[label] for label in labels] == tags
        at = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
        parts = [row["input_ids"][a:b] for a, b in zip(at, [*at[1:], -1], strict=True)]
        texts = ["".join(tokenizer.convert_ids_to_tokens(part)) for part in parts]
        for text, word in zip(texts, words, strict=True):
            assert re.sub("[Ġ▁#]", "", text) in (word, "[UNK]")
        assert len(row["input_ids"]) > len(words) + 2 or words == ["rain"]


def test_words_are_found_as_the_tokenizers_own_word_ids_say():
    tokenizer = word_pieces()
    for words in WORDS:
        split = tokenizer(words, is_split_into_words=True)
        running = tokenizer(" ".join(words), return_offsets_mapping=True)
        is_text = [part is not None for part in running.sequence_ids(0)]
        found = word_of_each_token(words, running["offset_mapping"], is_text)
        assert found == split.word_ids(0)


def test_all_pieces_are_trained_if_asked_but_metrics_go_on_counting_words():
    tokenizer, task = word_pieces(), replace(ENTITIES, label_all_subwords=True)
    data = prepare(splits(), task, tokenizer)
    assert pieces(tokenizer, data["train"][0])[1:-1] == [
        ("Ada", "B-PER"), ("Love", "I-PER"), ("##lace", "I-PER"), ("live", "O"), ("##s", "O"),
        ("in", "O"), ("Lon", "B-LOC"), ("##don", "I-LOC"),
    ]  # fmt: skip
    plain = prepare(splits(), ENTITIES, tokenizer)
    assert list(data["validation"]["labels"]) == list(plain["validation"]["labels"])


def test_a_first_tag_without_a_tag_that_continues_it_is_repeated():
    names = ("O", "B-PER", "I-PER", "B-LOC")
    task = replace(ENTITIES, label_names=names, label_all_subwords=True)
    labels = prepare(splits(), task, word_pieces())["train"][0]["labels"]
    assert labels[-3:] == [3, 3, IGNORED]


@pytest.mark.parametrize(
    ("tags", "item"),
    [
        (NAMES, Value("string")),
        ([[TAGS.index(tag) for tag in row] for row in NAMES], Value("int64")),
        (NAMES, ClassLabel(names=list(TAGS))),
        (NAMES, ClassLabel(names=sorted(TAGS))),
    ],
    ids=["names", "ids", "class-labels", "reordered-class-labels"],
)
def test_tags_mean_the_same_however_they_are_stored(tags, item):
    features = Features({"tokens": ListOf(Value("string")), "tags": ListOf(item)})
    rows = prepare(splits(tags=tags, features=features), ENTITIES, word_pieces())["train"]
    assert [label for label in rows[0]["labels"] if label != IGNORED] == [1, 2, 0, 0, 3]


def test_a_batch_pads_labels_with_what_does_not_count():
    tokenizer = word_pieces()
    rows = list(prepare(splits(), ENTITIES, tokenizer)["train"])
    batch = build_collator(ENTITIES, tokenizer)(rows)
    assert batch["labels"].shape == batch["input_ids"].shape == (3, 10)
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert str(batch["labels"].dtype) == "torch.int64"


def test_cut_words_are_counted_in_a_warning_where_they_would_flatter_the_score(caplog):
    with caplog.at_level(logging.WARNING, logger="kdnlp"):
        rows = prepare(splits(), ENTITIES, word_pieces(), max_length=6)["validation"]
    assert "2 of the 8 words in split 'validation' have no token" in caplog.text
    assert [label for label in rows[0]["labels"] if label != IGNORED] == [1, 2, 0]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="kdnlp"):
        prepare(splits(), ENTITIES, word_pieces())
    assert not caplog.records


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ([["a", "b"], ["c"]], [["O", "O"], ["O", "O"]], "row 1: expected as many tags as words"),
        ([["a"], []], [["O"], []], r"row 1: expected words and a tag for each, got \[\] and \[\]"),
        ([["a"], None], [["O"], ["O"]], "row 1: expected words and a tag for each, got None"),
        ([["a"], ["b", None]], [["O"], ["O", "O"]], "row 1: expected words and a tag for each"),
        ([["a"], ["b"]], [["O"], None], "row 1: expected words and a tag for each"),
        ([["a"], ["b", "c"]], [["O"], ["O", "B-ORG"]], "row 1, word 1: .* got 'B-ORG'"),
        ([["a"], ["b", "c"]], [[0], [0, 7]], "row 1, word 1: .* got 7"),
        (["a b", "c"], [["O", "O"], ["O"]], "expected one column with lists of words"),
        ([["a"], ["b"]], ["O", "O"], "expected lists of class ids or class names"),
    ],
)
def test_a_sentence_whose_tags_would_shift_is_named(words, tags, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(splits(words, tags), ENTITIES)


def test_a_tokenizer_that_cannot_place_labels_is_refused():
    with pytest.raises(ValueError, match="needs a fast tokenizer, got CanineTokenizer"):
        prepare(splits(), ENTITIES, CanineTokenizer(), max_length=32)


def test_a_file_of_words_and_tags_says_by_itself_what_it_is(tmp_path):
    rows = [{"tokens": w, "tags": t} for w, t in zip(WORDS, NAMES, strict=True)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    task = infer_task(read_tables(tmp_path / "a.json", tmp_path / "a.json"), ["tokens"], "tags")
    assert (task.kind, task.label_names) == (
        "token_classification",
        ("B-LOC", "B-PER", "I-PER", "O"),
    )
    assert task.metrics == ("f1", "precision", "recall")


def test_tags_that_mark_no_entities_are_measured_word_by_word():
    task = infer_task(splits([["dogs", "bark"]], [["NOUN", "VERB"]]), ["tokens"], "tags")
    assert task.metrics == ("accuracy",)
