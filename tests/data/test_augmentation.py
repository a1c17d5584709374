"""Copies of rows change only what they may, and the same way however the work is cut up."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from kdnlp.data.augmentation import augment_tokens, draw_changes
from kdnlp.data.masked_words import single_token_words, whole_words
from kdnlp.data.word_replacement import replace_words

WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "sang", "loud", "quiet", "very", "1999"]
PIECES = ["un", "##loud", "##ly", ".", ",", "don", "'", "t"]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def wordpiece():
    """BERT's kind of tokenizer over a few words, some of several pieces."""
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *WORDS, *PIECES])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=32,
    )


def masked_lm(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.5,
    )
    return BertForMaskedLM(config).eval()


# Tokens.


def tokenised(rows=20, length=12, extra=None):
    generator = np.random.default_rng(0)
    ids = [[2, *generator.integers(5, 17, length - 3 + row % 3).tolist(), 3] for row in range(rows)]
    columns = {
        "input_ids": ids,
        "attention_mask": [[1] * len(row) for row in ids],
        "token_type_ids": [[0] * (len(row) - 4) + [1] * 4 for row in ids],
        "labels": [row % 2 for row in range(rows)],
    }
    return Dataset.from_dict({**columns, **(extra or {})})


def test_originals_come_first_and_each_copy_belongs_to_its_row(wordpiece):
    data = tokenised()
    out = augment_tokens(data, 3, wordpiece, seed=4)
    assert len(out) == 20 * 4
    assert out.select(range(20))[:] == data[:]
    assert out.features == data.features
    copies = out.select(range(20, 80))
    assert copies["labels"][:] == [row % 2 for row in range(20) for _ in range(3)]
    for number, copy in enumerate(copies["input_ids"]):
        # Tokens that are not masked stand in the order of the row that they come from.
        rest = iter(data[number // 3]["input_ids"])
        assert all(token in rest for token in copy if token != wordpiece.mask_token_id)


def test_each_copy_is_what_numpy_draws_for_its_seed_row_and_number(wordpiece):
    data, (mask, delete) = tokenised(), (0.3, 0.2)
    out = augment_tokens(data, 2, wordpiece, mask, delete, seed=9)
    for row, original in enumerate(data["input_ids"]):
        for copy in range(2):
            draws = np.random.default_rng([9, row, copy]).random(len(original))
            expected = [
                4 if delete <= draw < delete + mask and token > 4 else token
                for token, draw in zip(original, draws, strict=True)
                if token <= 4 or draw >= delete
            ]
            assert out[20 + 2 * row + copy]["input_ids"] == expected


def test_the_columns_that_go_with_the_tokens_are_cut_alike(wordpiece):
    data = tokenised(extra={"labels": [[7] * 9 for _ in range(20)], "row": list(range(20))})
    marked = data.map(lambda row: {"labels": row["input_ids"], "token_type_ids": row["input_ids"]})
    out = augment_tokens(marked, 1, wordpiece, mask_probability=0.0, delete_probability=0.5)
    for row in out.select(range(20, 40)):
        assert row["labels"] == row["token_type_ids"] == row["input_ids"]
        assert row["attention_mask"] == [1] * len(row["input_ids"])
        assert len(row["input_ids"]) < len(marked[row["row"]]["input_ids"])


def test_the_labels_of_a_multi_label_row_are_no_tokens(wordpiece):
    data = tokenised(extra={"labels": [[0.0, 1.0]] * 20})
    out = augment_tokens(data, 1, wordpiece, delete_probability=0.5)
    assert out["labels"][:] == [[0.0, 1.0]] * 40


def test_the_shares_of_masked_and_deleted_tokens_are_those_asked_for():
    special = np.zeros(200_000, dtype=bool)
    special[::10] = True
    masked, kept = draw_changes(special, 0.3, 0.2, np.random.default_rng(0))
    assert kept[special].all()
    assert not masked[special].any()
    assert not (masked & ~kept).any()
    assert (~kept)[~special].mean() == pytest.approx(0.2, abs=0.005)
    assert masked[~special].mean() == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize("probabilities", [(0.0, 1.0), (0.2, 0.8)])
def test_a_row_never_loses_its_last_word(probabilities):
    special = np.array([True, False, False, True])
    for seed in range(50):
        _, kept = draw_changes(special, *probabilities, np.random.default_rng(seed))
        assert kept[special].all()
        assert kept[~special].sum() >= 1
    masked, kept = draw_changes(np.array([True, True]), 0.5, 0.5, np.random.default_rng(0))
    assert kept.all()
    assert not masked.any()


def test_copies_do_not_depend_on_batches_processes_or_what_was_drawn_before(wordpiece):
    data = tokenised()
    first = augment_tokens(data, 2, wordpiece, seed=1)
    assert augment_tokens(data, 2, wordpiece, seed=1)[:] == first[:]
    assert augment_tokens(data.select(range(5)), 2, wordpiece, seed=1)[5:] == {
        name: column[20:30] for name, column in first[:].items()
    }
    assert augment_tokens(data, 2, wordpiece, seed=2)[:] != first[:]
    with_torch_format = augment_tokens(data.with_format("torch"), 2, wordpiece, seed=1)
    assert with_torch_format[:] == first[:]


def test_without_a_mask_token_tokens_can_only_be_deleted(wordpiece):
    wordpiece.mask_token = None
    with pytest.raises(ValueError, match=r"with a mask token.*Set mask_probability=0"):
        augment_tokens(tokenised(), 1, wordpiece)
    out = augment_tokens(tokenised(), 1, wordpiece, 0.0, 0.5)
    assert 0 not in np.concatenate(out["input_ids"][:])


def test_dropped_labels_are_gone_from_every_row(wordpiece):
    out = augment_tokens(tokenised(), 1, wordpiece, labels="drop")
    assert "labels" not in out.column_names
    with pytest.raises(ValueError, match="'label', whose labels are to be dropped"):
        augment_tokens(tokenised(), 1, wordpiece, labels="drop", label_column="label")
    with pytest.raises(ValueError, match='"keep" or "drop", got \'lose\''):
        augment_tokens(tokenised(), 1, wordpiece, labels="lose")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"copies": 0}, "got 0 and 0"),
        ({"seed": -1}, "got 1 and -1"),
        ({"mask_probability": -0.1}, "at least 0"),
        ({"mask_probability": 0.6, "delete_probability": 0.6}, "at most 1"),
        ({"mask_probability": 0.0, "delete_probability": 0.0}, "teach nothing new"),
        ({"mask_probability": float("nan")}, "got nan"),
    ],
)
def test_settings_that_augment_nothing_are_refused(settings, words, wordpiece):
    with pytest.raises(ValueError, match=words):
        augment_tokens(tokenised(), **{"copies": 1, "tokenizer": wordpiece, **settings})


def test_columns_that_would_no_longer_be_true_are_refused(wordpiece):
    texts = Dataset.from_dict({"text": ["a"], "label": [0]})
    with pytest.raises(ValueError, match="Expected tokenised rows"):
        augment_tokens(texts, 1, wordpiece)
    answers = tokenised(extra={"start_positions": [1] * 20, "end_positions": [2] * 20})
    with pytest.raises(ValueError, match="moves the answer"):
        augment_tokens(answers, 1, wordpiece)
    assert len(augment_tokens(answers, 1, wordpiece, delete_probability=0.0)) == 40
    of_teacher = tokenised(extra={"teacher_input_ids": [[1]] * 20})
    with pytest.raises(ValueError, match=r"got teacher_input_ids.*answer another text"):
        augment_tokens(of_teacher, 1, wordpiece)


# Words.

TEXTS = [
    "the cat sat very unloudly .",
    "a bird sang , the dog ran",
    "don't",
    "",
    "  very LOUD dog in 1999",
    "the quiet cat sat",
]


def texts(**more):
    return Dataset.from_dict(
        {"text": TEXTS, "label": [0, 1, 0, 1, 0, 1], "row": list(range(len(TEXTS))), **more}
    )


def expected_candidates(model, tokenizer, text, word, count):
    """By hand: hide one word of the text, and take the most probable other words."""
    ids = tokenizer(text)["input_ids"]
    position = ids.index(tokenizer.convert_tokens_to_ids(word))
    hidden = torch.tensor([[*ids[:position], tokenizer.mask_token_id, *ids[position + 1 :]]])
    with torch.no_grad():
        logits = model(input_ids=hidden).logits[0, position]
    others = [other for other in (*WORDS, "un", "don", "t") if other != word]
    others.sort(key=lambda other: -logits[tokenizer.convert_tokens_to_ids(other)])
    return set(others[:count])


def test_words_are_replaced_by_what_the_model_finds_most_probable_in_the_original(wordpiece):
    model = masked_lm(wordpiece)
    out = replace_words(texts(), ["text"], model, wordpiece, 12, 1.0, candidates=3)
    allowed = [expected_candidates(model, wordpiece, TEXTS[5], w, 3) for w in TEXTS[5].split()]
    copies = [row["text"].split(" ") for row in out.select(range(6, 78)) if row["row"] == 5]
    assert len(copies) == 12
    seen = [set(words) for words in zip(*copies, strict=True)]
    for found, candidates in zip(seen, allowed, strict=True):
        assert found <= candidates
        assert len(found) > 1  # drawn, and not always the first


def test_words_of_several_pieces_punctuation_and_spaces_stay(wordpiece):
    out = replace_words(texts(), ["text"], masked_lm(wordpiece), wordpiece, 3, 1.0, 3)
    for row in out.select(range(6, 24)):
        original, changed = TEXTS[row["row"]], row["text"]
        if row["row"] == 0:
            assert changed.endswith(" unloudly .")
        elif row["row"] == 1:
            assert changed.split(" ")[3] == ","
        elif row["row"] == 2:
            assert "'" in changed
        elif row["row"] == 3:
            assert changed == ""
        elif row["row"] == 4:
            assert changed.startswith("  ")  # and words that the vocabulary lacks stay
            assert changed.split()[1] == "LOUD"
            assert changed.split()[3] == "in"
        assert len(changed.split()) == len(original.split())


def test_originals_come_first_with_their_types_and_copies_keep_the_rest(wordpiece):
    data = texts().cast_column("label", ClassLabel(names=["no", "yes"]))
    out = replace_words(data, ["text"], masked_lm(wordpiece), wordpiece, 2, 0.5, 3, seed=3)
    assert out.select(range(6))[:] == data[:]
    assert out.features == data.features
    assert out["label"][6:] == [label for label in (0, 1, 0, 1, 0, 1) for _ in range(2)]
    assert out["row"][6:] == [row for row in range(6) for _ in range(2)]
    dropped = replace_words(
        data, ["text"], masked_lm(wordpiece), wordpiece, 1, 0.5, 3, labels="drop"
    )
    assert dropped.column_names == ["text", "row"]


def test_the_share_of_replaced_words_is_the_one_asked_for(wordpiece):
    text = "the cat sat very loud"
    data = Dataset.from_dict({"text": [text] * 60, "label": [0] * 60})
    out = replace_words(data, ["text"], masked_lm(wordpiece), wordpiece, 5, 0.3, 4)
    changed = [
        a != b
        for row in out.select(range(60, 360))
        for a, b in zip(row["text"].split(), text.split(), strict=True)
    ]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.04)


def test_copies_do_not_depend_on_batches_columns_or_the_models_mode(wordpiece):
    model = masked_lm(wordpiece)
    settings = (2, 0.5, 4)
    first = replace_words(texts(), ["text"], model, wordpiece, *settings, seed=1)
    again = replace_words(texts(), ["text"], model.train(), wordpiece, *settings, 1, batch_size=1)
    assert again[:] == first[:]
    assert model.training
    part = replace_words(texts().select([0, 1]), ["text"], model, wordpiece, *settings, seed=1)
    assert part["text"][2:] == first["text"][6:10]
    assert replace_words(texts(), ["text"], model, wordpiece, *settings, 2)[:] != first[:]
    pair = texts(other=TEXTS)
    both = replace_words(pair, ["text", "other"], model, wordpiece, *settings, seed=1)
    assert both["text"][:] == first["text"][:]
    assert both["other"][6:] != both["text"][6:]


def test_a_model_is_taken_from_a_folder_with_its_tokenizer(wordpiece, tmp_path):
    model = masked_lm(wordpiece)
    model.save_pretrained(tmp_path)
    wordpiece.save_pretrained(tmp_path)
    from_folder = replace_words(texts(), ["text"], tmp_path, copies=2, candidates=3)
    assert from_folder[:] == replace_words(texts(), ["text"], model, wordpiece, 2, candidates=3)[:]


def test_a_model_without_a_trained_head_chooses_no_words(wordpiece, tmp_path):
    classifier = BertForSequenceClassification(masked_lm(wordpiece).config)
    classifier.save_pretrained(tmp_path)
    wordpiece.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"whose weights lack cls\.predictions"):
        replace_words(texts(), ["text"], tmp_path)
    with pytest.raises(ValueError, match="BertForSequenceClassification, which predicts no words"):
        replace_words(texts(), ["text"], classifier, wordpiece)
    with pytest.raises(ValueError, match="tokenizer of the loaded model"):
        replace_words(texts(), ["text"], masked_lm(wordpiece))


def test_a_word_at_the_cut_is_not_mistaken_for_a_whole_one(wordpiece):
    model = masked_lm(wordpiece)
    # [CLS] very un [SEP]: of "unloudly" only its first piece is left.
    out = replace_words(
        Dataset.from_dict({"text": ["very unloudly"], "label": [0]}),
        ["text"], model, wordpiece, 5, 1.0, 3, max_length=4,
    )  # fmt: skip
    assert all(text.endswith(" unloudly") for text in out["text"])
    assert all(not text.startswith("very") for text in out["text"][1:])


def test_the_words_of_a_text_are_found_by_their_spans():
    spans = [(0, 0), (0, 3), (3, 7), (8, 10), (10, 12), (12, 13), (0, 0)]
    words = single_token_words("the cat unly.", [None, 0, 1, 2, 2, 3, None], spans)
    assert [(w.position, "the cat unly."[w.start : w.end]) for w in words] == [
        (1, "the"),
        (2, "cat"),
    ]
    assert single_token_words("", [None, None], [(0, 0), (0, 0)]) == []


def test_pieces_and_special_tokens_are_no_words(wordpiece):
    assert set(whole_words(wordpiece).values()) == {*WORDS, "un", "don", "t"}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<mask>", *alphabet, "at", "Ġthe", "Ġc", "ing", "Ã©", "ĠcÃ©"]
    merges = [("a", "t"), ("Ġ", "c"), ("Ã", "©"), ("Ġc", "Ã©")]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.decoder = decoders.ByteLevel()
    byte_level = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", mask_token="<mask>"
    )
    assert set(whole_words(byte_level).values()) == {"the", "c", "cé"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"copies": 0}, "copies of at least 1"),
        ({"replace_probability": 0.0}, r"must lie in \(0, 1\], got 0.0"),
        ({"replace_probability": 1.5}, r"must lie in \(0, 1\]"),
        ({"candidates": 0}, "at least 1"),
        ({"candidates": 15}, "has whole words, 15, got 15"),
        ({"batch_size": 0}, "at least 1"),
        ({"text_columns": "text"}, "got 'text'"),
        ({"text_columns": []}, "list of text columns"),
        ({"text_columns": ["body"]}, "Expected the column 'body'"),
        ({"text_columns": ["label"]}, "Column 'label', row 0: expected text, got 0"),
        ({"max_length": 2}, r"Expected max_length in 3\.\.32"),
    ],
)
def test_settings_that_replace_nothing_or_something_else_are_refused(settings, words, wordpiece):
    settings = {"text_columns": ["text"], "candidates": 3, **settings}
    with pytest.raises(ValueError, match=words):
        replace_words(texts(), model=masked_lm(wordpiece), tokenizer=wordpiece, **settings)


def test_a_tokenizer_that_is_not_the_models_is_refused(wordpiece):
    model = masked_lm(wordpiece)
    wordpiece.add_tokens(["more"])
    with pytest.raises(ValueError, match=r"model's own tokenizer, of at most 25 tokens, got .* 26"):
        replace_words(texts(), ["text"], model, wordpiece)
    wordpiece.mask_token = None
    with pytest.raises(ValueError, match="with mask and pad tokens"):
        replace_words(texts(), ["text"], model, wordpiece)
