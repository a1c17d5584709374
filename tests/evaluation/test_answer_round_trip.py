"""From an answer to labels, windows and logits, and back to the answer, by every tokenizer."""

from dataclasses import replace

import numpy as np
import pytest
from kinds import kind_rows, kind_task
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdnlp.data.preparation import prepare
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.evaluation.answers import find_answers, references_of

KIND = "question_answering"
ROWS = kind_rows(KIND, 40, 30)


def trained(model, pre_tokenizer, trainer):
    """A tokenizer without special tokens around texts, as GPT-2 has it."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    texts = [*ROWS["train"]["context"], *ROWS["train"]["question"]]
    backend.train_from_iterator(texts, trainer)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special, model_max_length=128)


def byte_level(trim_offsets):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["[PAD]", "[UNK]"], show_progress=False,
        initial_alphabet=alphabet,
    )  # fmt: skip
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    return trained(models.BPE(), pieces, trainer)


def sentence_pieces():
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["[PAD]", "[UNK]"], unk_token="[UNK]", show_progress=False
    )
    return trained(models.Unigram(), pre_tokenizers.Metaspace(), trainer)


TOKENIZERS = {
    "words": build_tokenizer,
    "byte-level": lambda: byte_level(True),
    "byte-level-whole-offsets": lambda: byte_level(False),
    "sentence-pieces": sentence_pieces,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_model_that_points_at_the_labels_gives_the_answers(name, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    length = 26 if name == "words" else 60
    task = replace(kind_task(KIND), max_length=length, stride=length // 2 - 4, max_answer_length=60)
    features = prepare(ROWS, task, TOKENIZERS[name]())["validation"]
    shape = (len(features), max(map(len, features["input_ids"])))
    starts, ends = np.full(shape, -9.0), np.full(shape, -9.0)
    for window, row in enumerate(features):
        starts[window, row["start_positions"]] = ends[window, row["end_positions"]] = 9.0
    found = find_answers(starts, ends, features, n_best=1, max_answer_length=60)
    expected = [answers["text"] for answers in ROWS["validation"]["answers"]]
    assert [best[0].text for best in found] == [texts[0] for texts in expected]
    assert references_of(features) == expected
