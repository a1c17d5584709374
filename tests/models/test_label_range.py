"""Labels of every type of number, and words of the stack that predicts them."""

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from kdnlp.models.label_range import num_classes, sound_labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_scores_may_be_whole_numbers_of_any_width(dtype):
    labels = torch.tensor([3, 4], dtype=dtype)
    sound, bad = sound_labels({"labels": labels}, "regression", None)
    assert not bad.any()
    assert sound["labels"].tolist() == [3, 4]


def test_a_class_that_there_is_not_counts_for_nothing():
    labels = torch.tensor([0, 2, -100, 1], dtype=torch.int32)
    sound, bad = sound_labels({"labels": labels}, "single_label_classification", 2)
    assert bad.tolist() == [False, True, False, False]
    assert sound["labels"].tolist() == [0, -100, -100, 1]


def test_the_words_are_those_that_the_decoder_predicts():
    config = MarianConfig(
        vocab_size=50, decoder_vocab_size=90, share_encoder_decoder_embeddings=False, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0,
        encoder_attention_heads=2, decoder_attention_heads=2, decoder_start_token_id=0,
        eos_token_id=1, forced_eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    assert num_classes(MarianMTModel(config), "seq2seq_lm") == 90
