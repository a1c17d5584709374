"""Parts are found by structure: each family's own names must not matter."""

import pytest
from settings import ARCHITECTURES, tiny_model
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from kdnlp.models.layers import count_blocks, find_blocks
from kdnlp.profiling.flops import flops_by_part, flops_per_example
from kdnlp.profiling.parts import ParameterParts, count_parts, find_parts
from kdnlp.profiling.size import count_parameters

HIDDEN, INNER, VOCABULARY, POSITIONS = 16, 24, 40, 512


def bert_block():
    attention = 4 * (HIDDEN * HIDDEN + HIDDEN) + 2 * HIDDEN
    return attention + 2 * HIDDEN * INNER + INNER + HIDDEN + 2 * HIDDEN


def test_berts_parameters_lie_where_counting_by_hand_finds_them():
    tables = (VOCABULARY + POSITIONS + 2) * HIDDEN
    norm_and_pooler = 2 * HIDDEN + HIDDEN * HIDDEN + HIDDEN
    head = 2 * HIDDEN + 2
    blocks = 3 * bert_block()
    total = tables + norm_and_pooler + blocks + head
    assert count_parts(tiny_model("bert", 3)) == ParameterParts(
        total=total, embeddings=tables, blocks=blocks, head=head, other=norm_and_pooler
    )


def test_a_table_inside_a_block_is_no_block():
    model = tiny_model("t5-encoder", 2)  # Its relative positions stand in the first block.
    attention, feed_forward, norms = 4 * 16 * 16, 2 * 16 * 24, 2 * 16
    assert count_parts(model).blocks == 2 * (attention + feed_forward + norms)
    assert count_parts(model).embeddings == VOCABULARY * 16 + 32 * 2


def test_a_tied_head_is_the_embeddings_and_its_bias_is_the_heads():
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertForMaskedLM(BertConfig(vocab_size=40, num_hidden_layers=1, **sizes))
    transform = 16 * 16 + 16 + 2 * 16
    assert count_parts(model).head == transform + 40
    assert count_parts(model).embeddings == (40 + 512 + 2) * 16


def test_a_model_without_a_head_has_none():
    assert count_parts(BertModel(tiny_model("bert", 1).config)).head == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_parts_sum_to_the_total_and_a_block_more_grows_the_blocks_alone(name):
    two, three, four = (count_parts(tiny_model(name, n)) for n in (2, 3, 4))
    for parts in (two, three, four):
        assert parts.total == parts.embeddings + parts.blocks + parts.head + parts.other
    whole = count_parameters(tiny_model(name, 2))
    assert (two.total, two.embeddings) == (whole.total, whole.embeddings)
    assert four.blocks - three.blocks == three.blocks - two.blocks > 0
    assert (three.embeddings, three.head, three.other) == (two.embeddings, two.head, two.other)
    assert two.head > 0


def matrices(module):
    return {id(p) for p in module.parameters() if p.dim() >= 2}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_and_feed_forward_divide_every_blocks_matrices(name):
    model = tiny_model(name, 3)
    parts = find_parts(model)
    for block in find_blocks(model):
        inside = set(block.modules())
        held = {
            part: set().union(*(matrices(m) for m, p in parts if p == part and m in inside))
            for part in ("attention", "feed_forward")
        }
        assert held["attention"] | held["feed_forward"] == matrices(block)
        assert not held["attention"] & held["feed_forward"]
        # Query, key, value and output are square or fused; the rest goes through the inner width.
        inner = {id(p) for p in block.parameters() if p.dim() >= 2 and INNER in p.shape}
        if name not in ("modernbert", "gpt2", "llama"):
            assert held["feed_forward"] == inner
        assert len(held["attention"]) >= 2
        assert len(held["feed_forward"]) >= 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_part_is_inside_another_else_time_would_count_twice(name):
    modules = [module for module, _ in find_parts(tiny_model(name, 2))]
    assert len(modules) == len(set(modules))
    for module in modules:
        inside = set(module.modules()) - {module}
        assert not inside & set(modules)
        assert not isinstance(module, nn.ModuleList)  # nothing calls a list


def test_a_list_of_modules_is_never_called_but_what_is_in_it_may_be():
    model = tiny_model("bert", 1)
    (block,) = find_blocks(model)
    block.experts = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(16)])
    parts = dict(find_parts(model))
    assert block.experts not in parts
    assert [parts.get(m) for m in block.experts] == ["feed_forward", "feed_forward", None]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_words_enter_through_the_embeddings(name):
    model = tiny_model(name, 2)
    table = model.get_input_embeddings()
    found = [m for m, part in find_parts(model) if part == "embeddings"]
    assert any(table in set(module.modules()) for module in found)


def test_encoder_and_decoder_both_count():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "vocab_size": 40}
    model = T5ForConditionalGeneration(T5Config(num_layers=2, num_decoder_layers=3, **sizes))
    parts = [part for _, part in find_parts(model)]
    assert len(find_blocks(model)) == 5
    assert parts.count("attention") == 2 + 3 * 2  # The decoder attends to the encoder too.
    assert parts.count("feed_forward") == 5


def test_blocks_that_share_their_weights_are_found_once_and_counted_every_time():
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = AlbertConfig(vocab_size=40, embedding_size=8, num_hidden_layers=3, **sizes)
    model = AlbertForSequenceClassification(config).eval()
    (block,) = find_blocks(model)
    assert count_blocks(model) == 3
    twice = AlbertConfig(**{**config.to_dict(), "inner_group_num": 2})
    assert count_blocks(AlbertForSequenceClassification(twice)) == 6
    assert count_parts(model).blocks == sum(p.numel() for p in block.parameters())
    single = AlbertConfig(**{**config.to_dict(), "num_hidden_layers": 1})
    one = AlbertForSequenceClassification(single).eval()
    thrice, once = (flops_by_part(m, 12) for m in (model, one))
    for part in ("attention", "feed_forward"):
        assert thrice[part] == 3 * once[part] > 0


def test_flops_by_part_are_those_of_the_closed_form():
    length, hidden, inner, layers = 12, HIDDEN, INNER, 3
    attention = 2 * layers * (4 * length * hidden * hidden + 2 * length * length * hidden)
    feed_forward = 2 * layers * 2 * length * hidden * inner
    head = 2 * (hidden * hidden + hidden * 2)
    assert flops_by_part(tiny_model("bert", layers), length) == {
        "embeddings": 0,
        "attention": attention,
        "feed_forward": feed_forward,
        "other": head,
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flops_by_part_sum_to_the_whole(name):
    model = tiny_model(name, 2)
    parts = flops_by_part(model, 8)
    assert sum(parts.values()) == flops_per_example(model, 8).flops
    assert min(parts["attention"], parts["feed_forward"]) > 0
    assert parts["other"] >= 0
