import pytest
from settings import ARCHITECTURES, tiny_model
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from kdnlp.models.layers import LAYER_PATHS, find_layers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_stack_is_found_where_the_architecture_keeps_it(name):
    row = ARCHITECTURES[name]
    stack = find_layers(tiny_model(name, num_layers=3), row.stack)
    assert (stack.path, stack.count_key) == (row.path, row.layer_key)
    assert len(stack.layers) == 3


def test_a_model_without_a_head_is_searched_too():
    assert find_layers(tiny_model("bert").bert).path == "encoder.layer"


def tiny_t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_heads=2,
            num_layers=2,
            num_decoder_layers=3,
        )
    )


def test_two_stacks_are_never_guessed_between():
    with pytest.raises(ValueError, match=r"2 stacks .*stack='encoder' or stack='decoder'"):
        find_layers(tiny_t5())


@pytest.mark.parametrize(
    ("stack", "blocks", "key"), [("encoder", 2, "num_layers"), ("decoder", 3, "num_decoder_layers")]
)
def test_the_named_stack_of_two_is_counted_by_its_own_field(stack, blocks, key):
    found = find_layers(tiny_t5(), stack=stack)
    assert (len(found.layers), found.count_key) == (blocks, key)


@pytest.mark.parametrize("num_layers", [1, 4])
def test_shared_parameters_are_refused_with_the_reason(num_layers):
    model = AlbertForSequenceClassification(
        AlbertConfig(
            vocab_size=40,
            embedding_size=8,
            hidden_size=16,
            num_attention_heads=2,
            intermediate_size=24,
            num_hidden_layers=num_layers,
        )
    )
    with pytest.raises(ValueError, match="one set of block parameters"):
        find_layers(model)


def test_a_row_in_layer_paths_overrides_the_search(monkeypatch):
    model = tiny_model("bert")
    monkeypatch.setitem(LAYER_PATHS, "bert", "pooler")
    with pytest.raises(ValueError, match="No stack of blocks"):
        find_layers(model)
    monkeypatch.setitem(LAYER_PATHS, "bert", "encoder.layer")
    assert find_layers(model).path == "bert.encoder.layer"
