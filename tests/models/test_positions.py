"""A limit is that of what reads the texts, and a packed row is longer than it without harm."""

import pytest
import torch
from settings import tiny_model
from transformers import LEDConfig, LEDForConditionalGeneration

from kdnlp.models.positions import check_positions, position_limit


def test_the_limit_is_the_table_s():
    model = tiny_model("bert", 1)
    assert position_limit(model) == model.config.max_position_embeddings


def test_a_decoder_s_table_does_not_limit_what_the_encoder_reads():
    config = LEDConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
        max_encoder_position_embeddings=64, max_decoder_position_embeddings=16,
        attention_window=[8],
    )  # fmt: skip
    model = LEDForConditionalGeneration(config)
    assert position_limit(model) == 64
    assert position_limit(model, decoder=True) == 16


def test_packed_texts_may_be_longer_together():
    batch = {"input_ids": torch.zeros(1, 40, dtype=torch.long)}
    with pytest.raises(ValueError, match="at most 16 tokens in input_ids"):
        check_positions(batch, {"input_ids": 16}, "here")
    check_positions({**batch, "position_ids": batch["input_ids"]}, {"input_ids": 16}, "here")
