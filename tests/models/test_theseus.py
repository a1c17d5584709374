import copy

import numpy as np
import pytest
import torch
from settings import ARCHITECTURES, tiny_batch, tiny_model
from transformers import (
    AutoConfig,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from kdnlp.models.layers import find_layers
from kdnlp.models.student import build_student
from kdnlp.models.theseus import (
    TheseusLayers,
    attach,
    detach,
    draw_replaced,
    resolve_slot_sizes,
)


def joined(name="bert", predecessor_layers=4, successor_layers=2, **options):
    stack = ARCHITECTURES[name].stack
    predecessor = tiny_model(name, predecessor_layers)
    successor = build_student(predecessor, successor_layers, stack=stack).eval()
    return predecessor, successor, attach(successor, predecessor, stack=stack, **options)


def logits(model, **options):
    batch = tiny_batch()
    del batch["labels"]
    with torch.no_grad():
        return model(**batch, **options)[0]


def set_path(layers, replaced):
    """The sampled path with dropout off: only the list is in training mode."""
    layers.training, layers.replaced = True, replaced


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_replaced_is_the_predecessor_exactly(name):
    predecessor, successor, layers = joined(name)
    set_path(layers, (False, False))
    assert torch.equal(logits(successor), logits(predecessor))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_everything_replaced_is_the_exported_successor_exactly(name, tmp_path):
    _, successor, layers = joined(name)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.mul_(1.1)
    set_path(layers, (True, True))
    on_path = logits(successor)
    successor.save_pretrained(tmp_path)
    exported, info = type(successor).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert torch.equal(logits(exported.eval()), on_path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_mixed_path_differs_from_both_ends(name):
    predecessor, successor, layers = joined(name)
    set_path(layers, (True, False))
    mixed = logits(successor)
    assert not torch.allclose(mixed, logits(predecessor), atol=1e-4)
    detach(successor)
    assert not torch.allclose(mixed, logits(successor), atol=1e-4)


def test_eval_mode_runs_the_successor_whatever_was_drawn():
    _, successor, layers = joined()
    layers.replaced = (False, False)
    in_eval = logits(successor)
    detach(successor)
    assert torch.equal(in_eval, logits(successor))


def test_slices_act_on_slots_so_no_path_is_cut_short():
    predecessor, _, layers = joined("llama", 5, 2, slot_sizes=[2, 3])
    set_path(layers, (False, True))
    blocks = find_layers(predecessor).layers
    assert layers[:2] == [blocks[0], blocks[1], layers[1]]
    assert layers[:1] == [blocks[0], blocks[1]]
    assert len(layers) == 2


def test_the_predecessor_is_in_no_parameter_list_and_no_state_dict():
    predecessor, successor, _ = joined()
    plain = build_student(predecessor, 2)
    assert list(successor.state_dict()) == list(plain.state_dict())
    theirs = {id(p) for p in predecessor.parameters()}
    assert not theirs & {id(p) for p in successor.parameters()}


def test_hidden_states_are_captured_along_the_path():
    predecessor, successor, layers = joined()
    set_path(layers, (False, True))
    batch = tiny_batch()
    states = successor(**batch, output_hidden_states=True).hidden_states
    reference = predecessor(**batch, output_hidden_states=True).hidden_states
    assert len(states) == 1 + 2 + 1
    for got, expected in zip(states[:3], reference[:3], strict=True):
        assert torch.equal(got, expected)


def test_attach_takes_over_embeddings_and_head_and_detach_leaves_a_plain_model():
    predecessor = tiny_model()
    successor = build_student(predecessor, 2)
    with torch.no_grad():
        successor.classifier.weight.zero_()
        successor.bert.embeddings.word_embeddings.weight.zero_()
    blocks = copy.deepcopy(successor.bert.encoder.layer.state_dict())
    attach(successor, predecessor)
    detach(successor)
    assert type(successor.bert.encoder.layer) is torch.nn.ModuleList
    assert torch.equal(successor.classifier.weight, predecessor.classifier.weight)
    for name, tensor in successor.bert.encoder.layer.state_dict().items():
        assert torch.equal(tensor, blocks[name])


def test_detach_of_a_plain_model_changes_nothing():
    model = tiny_model()
    before = model.bert.encoder.layer
    detach(model)
    assert model.bert.encoder.layer is before


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_slots_are_replaced_as_often_as_the_rate_says(rate):
    draws = np.array([draw_replaced(7, step, rate, 6) for step in range(10_000)])
    sigma = np.sqrt(rate * (1 - rate) / len(draws))
    assert np.all(np.abs(draws.mean(0) - rate) <= 4 * sigma)
    if 0 < rate < 1:
        assert np.all(np.abs(np.corrcoef(draws.T) - np.eye(6)) < 0.05)


def test_a_draw_depends_on_seed_and_step_alone():
    torch.manual_seed(0)
    first = [draw_replaced(3, step, 0.5, 8) for step in range(20)]
    torch.rand(5)
    assert [draw_replaced(3, step, 0.5, 8) for step in range(20)] == first
    assert [draw_replaced(4, step, 0.5, 8) for step in range(20)] != first
    assert len(set(first)) > 15


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((12, 6), [2] * 6), ((12, 5), [2, 2, 2, 3, 3]), ((4, 4), [1] * 4), ((6, 1), [6])],
)
def test_the_default_cut_spares_the_bottom(sizes, expected):
    assert resolve_slot_sizes(*sizes) == expected


@pytest.mark.parametrize("bad", [[1, 2], [2, 2, 1], [4, 0], [5, -1], [2, 2, 0]])
def test_slots_that_do_not_add_up_are_refused(bad):
    with pytest.raises(ValueError, match="add up"):
        resolve_slot_sizes(4, 2, bad)


def test_more_successor_than_predecessor_blocks_are_refused():
    with pytest.raises(ValueError, match="must stand for at least one"):
        attach(tiny_model(num_layers=4), tiny_model(num_layers=2))


@pytest.mark.parametrize(
    ("successor", "fact"),
    [
        (lambda: tiny_model("roberta", 2), "model type"),
        (lambda: tiny_model("bert", 2, hidden_size=32), "hidden size"),
        (lambda: tiny_model("bert", 2, vocab_size=50), "vocabulary size"),
        (lambda: tiny_model("bert", 2, id2label={0: "yes", 1: "no"}), "label names"),
        (lambda: tiny_model("bert", 2, intermediate_size=20, max_position_embeddings=9), "shape"),
    ],
)
def test_models_that_cannot_be_mixed_are_refused_with_the_fact(successor, fact):
    with pytest.raises(ValueError, match=fact):
        attach(successor(), tiny_model("bert", 4))


def test_a_successor_that_lacks_a_kind_of_block_is_refused():
    predecessor = tiny_model("modernbert", 4)
    successor = build_student(predecessor, init_layers=[0, 2])
    with pytest.raises(ValueError, match="kinds of block"):
        attach(successor, predecessor)


def test_loops_that_index_layer_types_are_refused():
    config = Gemma3TextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    predecessor = Gemma3ForCausalLM(config)
    with pytest.raises(ValueError, match="looks up layer_types"):
        attach(build_student(predecessor, 2), predecessor)


def test_a_forward_that_bypasses_iteration_is_found_out(monkeypatch):
    predecessor = tiny_model("bert", 4)
    successor = build_student(predecessor, 2)

    def by_index(self, hidden_states, attention_mask=None, **kwargs):
        for i in range(len(self.layer)):
            hidden_states = self.layer[i](hidden_states, attention_mask)
        return type("Output", (), {"last_hidden_state": hidden_states, "past_key_values": None})()

    monkeypatch.setattr(type(successor.bert.encoder), "forward", by_index)
    with pytest.raises(ValueError, match="does not run the sampled path"):
        attach(successor, predecessor)
    assert not isinstance(successor.bert.encoder.layer, TheseusLayers)


def test_the_cache_is_off_so_positions_cannot_shift():
    assert AutoConfig.for_model("llama").use_cache
    _, successor, _ = joined("llama")
    assert successor.config.use_cache is False


def test_the_decoder_of_an_encoder_decoder_is_replaced_without_its_cache():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "vocab_size": 40}
    config = T5Config(num_layers=2, num_decoder_layers=4, decoder_start_token_id=0, **sizes)
    predecessor = T5ForConditionalGeneration(config).eval()
    successor = build_student(predecessor, 2, stack="decoder").eval()
    before = [m.config.use_cache for m in (successor, successor.encoder, successor.decoder)]
    layers = attach(successor, predecessor, stack="decoder")
    batch = tiny_batch()
    batch["labels"] = batch["input_ids"]
    set_path(layers, (False, False))
    with torch.no_grad():
        expected = predecessor(**batch, use_cache=False).logits
        assert torch.allclose(successor(**batch).logits, expected, atol=1e-5)
    detach(successor)
    after = [m.config.use_cache for m in (successor, successor.encoder, successor.decoder)]
    assert after == before == [True, False, True]


def test_a_predecessor_mapped_from_disk_is_attached_too(tmp_path):
    """Weights read from a file lie at odd addresses, where matrix products round otherwise."""
    tiny_model("bert", 4, hidden_size=96, intermediate_size=128).save_pretrained(tmp_path)
    predecessor = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert any(parameter.data_ptr() % 64 for parameter in predecessor.parameters())
    successor = build_student(predecessor, 2)
    before = {name: tensor.data_ptr() for name, tensor in successor.state_dict().items()}
    layers = attach(successor, predecessor)
    assert {n: t.data_ptr() for n, t in successor.state_dict().items()} == before
    successor.eval()
    set_path(layers, (False, False))
    assert torch.allclose(logits(successor), logits(predecessor), atol=1e-5)
