"""What is kept of a forward pass is what the model itself computed, on every architecture."""

import pytest
import torch
from settings import ARCHITECTURES, CAUSAL, NO_DROPOUT, tiny_batch, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from kdnlp.losses import AttentionLoss
from kdnlp.models.capture import (
    RECORDED_ATTENTION,
    Capture,
    LayerOutputs,
    combine_layers,
    hooks_noticed,
)
from kdnlp.models.layers import find_layers
from kdnlp.models.student import build_student
from kdnlp.models.theseus import attach, detach
from kdnlp.trainers.intermediate import IntermediateOutputs

CLOSED_ATTENTION = ("deberta-v2", "mpnet", "t5-encoder")
ARCHITECTURE = pytest.mark.parametrize("name", ARCHITECTURES)


def model_and_batch(name, **overrides):
    model = tiny_model(name, 4, **overrides)
    batch = {k: v for k, v in tiny_batch().items() if k != "labels"}
    batch["attention_mask"][1, 5:] = 0
    return model, batch, ARCHITECTURES[name].stack


def kept(model, batch, layers, stack=None):
    capture = Capture(model, layers, stack)
    try:
        with torch.no_grad(), capture as tensors:
            outputs = model(**batch)
        return outputs, tensors
    finally:
        capture.remove()


@ARCHITECTURE
def test_hidden_states_are_those_that_the_model_returns(name):
    model, batch, stack = model_and_batch(name)
    _, tensors = kept(model, batch, {"hidden_states": None}, stack)
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True).hidden_states
    assert list(tensors["hidden_states"]) == [0, 1, 2, 3, 4]
    # The last one has passed a final norm in some; DeBERTa's first block is followed by a conv.
    for layer in (0, 2, 3):
        assert torch.equal(tensors["hidden_states"][layer], expected[layer]), layer


@ARCHITECTURE
def test_only_the_layers_asked_for_are_kept(name):
    model, batch, stack = model_and_batch(name)
    layers = {"hidden_states": [1, 3], "queries": [4], "keys": [1]}
    _, tensors = kept(model, batch, layers, stack)
    assert {field: sorted(values) for field, values in tensors.items()} == {
        field: sorted(wanted) for field, wanted in layers.items()
    }
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


@ARCHITECTURE
def test_queries_keys_and_values_are_what_the_blocks_linear_maps_make(name):
    model, batch, stack = model_and_batch(name)
    fields = ("queries", "keys", "values")
    _, tensors = kept(model, batch, {field: [2] for field in fields}, stack)
    block = find_layers(model, stack).layers[1]
    widths = [tensors[field][2].size(-1) for field in fields]
    assert tensors["queries"][2].shape[:2] == batch["input_ids"].shape
    linear = [m for m in block.modules() if isinstance(m, nn.Linear) or hasattr(m, "nf")]
    seen = []
    hooks = [m.register_forward_hook(lambda m, _, out: seen.append(out)) for m in linear]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    parts = [out for out in seen if out.size(-1) in (*widths, sum(widths)) and out.dim() == 3]
    candidates = [part for out in parts for part in out.split(tensors["queries"][2].size(-1), -1)]
    for field in fields:
        assert any(torch.equal(part, tensors[field][2]) for part in candidates), field
    assert not torch.equal(tensors["queries"][2], tensors["keys"][2])
    assert not torch.equal(tensors["keys"][2], tensors["values"][2])


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in CLOSED_ATTENTION])
def test_attention_is_the_models_own_and_the_logits_stay(name):
    model, batch, stack = model_and_batch(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**batch, output_attentions=True)
    model.set_attn_implementation(RECORDED_ATTENTION)
    outputs, tensors = kept(model, batch, {"attentions": None, "scores": [2]}, stack)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-5, atol=1e-6)
    for layer in range(1, 5):
        got = tensors["attentions"][layer]
        torch.testing.assert_close(got, expected.attentions[layer - 1], rtol=1e-5, atol=1e-6)
    attended = expected.attentions[1][0, 0, -1] > 0
    scores, weights = tensors["scores"][2][0, 0, -1], tensors["attentions"][2][0, 0, -1]
    torch.testing.assert_close(scores[attended].softmax(-1), weights[attended])


@pytest.mark.parametrize("name", CLOSED_ATTENTION)
def test_a_model_that_hides_its_attention_says_so_before_training(name):
    model, _, stack = model_and_batch(name)
    with pytest.raises(ValueError, match=r"computes its attention in its own.*RelationLoss"):
        Capture(model, {"attentions": [1]}, stack)


def test_attention_of_half_precision_sums_to_one_as_a_divergence_needs():
    model, batch, _ = model_and_batch("bert")
    model.set_attn_implementation(RECORDED_ATTENTION)
    _, tensors = kept(model.to(torch.bfloat16), batch, {"attentions": None})
    for layer in tensors["attentions"].values():
        assert layer.dtype == torch.float32
        assert torch.allclose(layer.sum(-1), torch.ones(()), atol=1e-6)


def test_attention_is_shown_before_dropout():
    model, batch, _ = model_and_batch("bert", attention_probs_dropout_prob=0.5)
    model.train()
    model.set_attn_implementation(RECORDED_ATTENTION)
    _, tensors = kept(model, batch, {"attentions": [1]})
    torch.testing.assert_close(tensors["attentions"][1].sum(-1), torch.ones(3, 2, 7))


def test_gradients_flow_through_what_is_kept_and_checkpointing_does_not_replace_it():
    gradients = []
    for checkpointing in (False, True):
        model, batch, _ = model_and_batch("bert", **NO_DROPOUT)
        model.train()
        if checkpointing:
            # Its present name, or the one that transformers 5.17 has.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        capture = Capture(model, {"hidden_states": [2], "values": [3]})
        with capture as tensors:
            model(**batch)
        (
            tensors["hidden_states"][2].square().sum() + tensors["values"][3].square().sum()
        ).backward()
        capture.remove()
        gradients.append(model.bert.encoder.layer[0].attention.self.query.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("replaced", [(True, True), (False, False), (True, False)])
def test_a_slot_of_theseus_has_the_layer_of_whatever_ran_in_it(replaced):
    predecessor = tiny_model("bert", 4, **NO_DROPOUT)
    successor = build_student(predecessor, 2)
    with torch.no_grad():
        for parameter in successor.bert.encoder.layer.parameters():
            parameter.add_(0.1)
    batch = {k: v for k, v in tiny_batch().items() if k != "labels"}
    layers = attach(successor, predecessor)
    successor.train()
    layers.replaced = replaced
    fields = {"hidden_states": None, "queries": [1, 2]}
    _, tensors = kept(successor, batch, fields)
    hidden, states = tensors["hidden_states"], tensors["hidden_states"][0]
    with torch.no_grad():
        for slot in range(2):
            blocks = [layers[slot]] if replaced[slot] else layers.slots[slot]
            for block in blocks:
                query = block.attention.self.query(states)
                states = block(states)
                states = states if isinstance(states, torch.Tensor) else states[0]
            assert torch.equal(hidden[slot + 1], states)
            assert torch.equal(tensors["queries"][slot + 1], query)
    detach(successor)


@pytest.mark.parametrize(("field", "layer"), [("hidden_states", 5), ("values", 0), ("values", 5)])
def test_a_layer_that_does_not_exist_is_refused(field, layer):
    with pytest.raises(ValueError, match=rf"Layers of {field} must lie in [01]\.\.4"):
        Capture(tiny_model("bert", 4), {field: [layer]})


def test_a_block_without_queries_names_what_was_looked_for():
    model = tiny_model("bert", 2)
    for block in model.bert.encoder.layer:
        block.attention.self.question = block.attention.self.query
        del block.attention.self.query
    with pytest.raises(ValueError, match=r"No queries found in BertLayer.*query, q_lin"):
        Capture(model, {"queries": [1]})


def test_negative_layers_count_from_the_top():
    outputs = LayerOutputs(4, {4: "top", 3: "below"})
    assert (outputs[-1], outputs[-2], outputs[4]) == ("top", "below", "top")


def test_all_layers_win_over_some():
    wishes = [{"keys": [1], "values": [2]}, {"keys": None, "values": [3]}]
    assert combine_layers(wishes) == {"keys": None, "values": {2, 3}}


def test_attention_with_more_than_scores_and_a_mask_is_refused_before_training():
    """Gemma 2 caps its scores: run without the cap, it is another model."""
    config = AutoConfig.for_model(
        "gemma2", hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        intermediate_size=24, num_hidden_layers=2, vocab_size=40, attn_logit_softcapping=0.5,
        **CAUSAL,
    )  # fmt: skip
    torch.manual_seed(0)
    # The cap is part of this implementation alone; older transformers drop it in others.
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    own = model.config._attn_implementation
    with pytest.raises(ValueError, match="does more in its attention than the softmax of scores"):
        IntermediateOutputs([AttentionLoss()], model, model)
    assert model.config._attn_implementation == own
    assert not [m for m in model.modules() if m._forward_hooks]


def test_a_fused_map_that_is_no_three_thirds_is_not_cut_in_thirds():
    """GPT-BigCode's keys and values have one head."""
    config = AutoConfig.for_model(
        "gpt_bigcode", n_embd=16, n_head=4, n_layer=2, vocab_size=40, multi_query=True, **CAUSAL
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ValueError, match="No queries found in GPTBigCodeBlock"):
        Capture(model, {"queries": [1]})
    assert not [m for m in model.modules() if m._forward_hooks]


# Dynamo looks at `.grad` of every tensor it sees, and warns of what it uses itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore::DeprecationWarning")
def test_code_compiled_for_a_model_without_hooks_keeps_what_another_one_is_asked_for():
    (plain, batch, _), (watched, _, _) = (model_and_batch("bert", **NO_DROPOUT) for _ in range(2))
    try:
        with hooks_noticed(), torch.no_grad():
            torch.compile(plain, backend="eager")(**batch)
            capture = Capture(watched, {"hidden_states": [2]})
            with capture as tensors:
                torch.compile(watched, backend="eager")(**batch)
            capture.remove()
    finally:
        torch._dynamo.reset()
    assert tensors["hidden_states"].keys() == {2}
