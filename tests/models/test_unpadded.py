"""Without padding the outputs and gradients are the padded model's, or the model is refused."""

import copy

import pytest
import torch
from settings import ARCHITECTURES, NO_DROPOUT, task_model, tiny_batch, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from kdnlp.models.capture import Capture
from kdnlp.models.student import build_student
from kdnlp.models.theseus import attach, detach
from kdnlp.models.unpadded import Unpadded
from kdnlp.models.unpadded_attention import (
    UNPADDED_ATTENTION,
)

OPEN = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert", "gpt2", "llama")
CLOSED = ("deberta-v2", "mpnet", "t5-encoder")
LENGTHS = (9, 1, 6, 6, 4, 9)

# Without dropout, under the name that each family gives it.
RATES = {
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    "modernbert": {},
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "llama": {},
}


def padded_batch(lengths=LENGTHS, left=False):
    width = max(lengths)
    batch = tiny_batch(len(lengths), width)
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    batch["attention_mask"] = (real.flip(1) if left else real).long()
    batch["input_ids"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], 0)
    return batch


def run(model, batch):
    """Logits and gradients; in training mode, which has no dropout here."""
    model.zero_grad()
    outputs = model.train()(**batch)
    outputs.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return outputs.logits.detach(), gradients


def assert_equal_runs(model, batch, stack=None):
    logits, gradients = run(model, batch)
    unpadded = Unpadded(model, stack)
    try:
        got, theirs = run(model, batch)
    finally:
        unpadded.remove()
    scale = max(float(g.abs().max()) for g in gradients.values())
    assert torch.allclose(got, logits, rtol=1e-6, atol=1e-6 * float(logits.abs().max()))
    assert list(theirs) == list(gradients)
    for name, gradient in gradients.items():
        assert torch.allclose(theirs[name], gradient, rtol=1e-5, atol=1e-5 * scale), name


@pytest.mark.parametrize("name", OPEN)
def test_logits_and_gradients_are_the_padded_models(name):
    assert_equal_runs(tiny_model(name, 3, **RATES.get(name, NO_DROPOUT)), padded_batch())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_on_the_left_moves_no_position(name):
    assert_equal_runs(tiny_model(name, 3, **RATES[name]), padded_batch(left=True))


def test_a_mean_over_tokens_may_begin_anywhere():
    assert_equal_runs(
        tiny_model("modernbert", 3, classifier_pooling="mean"), padded_batch(left=True)
    )


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_head_on_the_first_position_refuses_padding_there(name):
    model = tiny_model(name, 3)
    unpadded = Unpadded(model)
    with pytest.raises(ValueError, match=r"got 4 of 6 with padding before it"):
        model(**padded_batch(left=True))
    unpadded.remove()


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2"])
def test_tokens_that_are_masked_in_mid_text_are_left_out(name):
    model = tiny_model(name, 3, **RATES.get(name, NO_DROPOUT))
    batch = padded_batch()
    batch["attention_mask"][0, 3:5] = 0
    assert_equal_runs(model, batch)


def test_keys_that_queries_share_stay_shared():
    model = tiny_model("llama", 2, num_attention_heads=4, num_key_value_heads=2)
    assert_equal_runs(model, padded_batch())


def test_a_window_over_the_whole_text_is_none():
    assert_equal_runs(tiny_model("modernbert", 3, local_attention=64), padded_batch())


@pytest.mark.parametrize("task", ["token_classification", "masked_lm", "causal_lm"])
def test_what_is_said_of_each_real_token_is_the_padded_models(task):
    batch = {k: v for k, v in padded_batch().items() if k != "labels"}
    model = task_model(task)
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"] % 4, -100)
    logits, gradients = run(model, batch)
    unpadded = Unpadded(model)
    got, theirs = run(model, batch)
    unpadded.remove()
    real = batch["attention_mask"] == 1
    assert torch.allclose(got[real], logits[real], rtol=1e-5, atol=1e-6)
    scale = max(float(g.abs().max()) for g in gradients.values())
    assert all(
        torch.allclose(theirs[n], gradients[n], rtol=1e-5, atol=1e-5 * scale) for n in gradients
    )


def test_a_head_over_several_choices_runs_too():
    batch = {k: v.view(3, 2, -1) for k, v in padded_batch().items() if k != "labels"}
    assert_equal_runs(task_model("multiple_choice"), {**batch, "labels": torch.tensor([0, 1, 1])})


def test_a_batch_without_padding_is_bit_equal():
    model = tiny_model("bert", 3)
    batch = tiny_batch()
    with torch.no_grad():
        expected = model(**batch).logits
        unpadded = Unpadded(model)
        assert torch.equal(model(**batch).logits, expected)
    unpadded.remove()


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama"])
def test_the_linear_maps_see_no_padding(name):
    model = tiny_model(name, 2)
    unpadded, seen = Unpadded(model), set()
    for module in model.base_model.modules():
        if isinstance(module, nn.Linear) and "pooler" not in str(module):
            module.register_forward_hook(lambda m, args, out: seen.add(args[0].shape[:2]))
    with torch.no_grad():
        model.base_model(**{k: v for k, v in padded_batch().items() if k != "labels"})
    unpadded.remove()
    assert (1, sum(LENGTHS)) in seen
    assert (len(LENGTHS), max(LENGTHS)) not in seen


@pytest.mark.parametrize("before", [True, False], ids=["asked_before", "asked_after"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2"])
def test_whoever_watches_the_blocks_sees_padded_tensors(name, before):
    model, batch = tiny_model(name, 3), padded_batch()
    real = batch["attention_mask"] == 1
    fields = {"hidden_states": [0, 1, 2], "queries": [1], "keys": [2], "values": [3]}

    def kept(capture):
        with torch.no_grad(), capture as tensors:
            returned = model(**batch, output_hidden_states=True).hidden_states
        return {f: dict(tensors[f]) for f in fields}, returned

    first = Capture(model, fields)
    expected, states = kept(first)
    if before:
        unpadded = Unpadded(model)
        got, theirs = kept(first)
    else:
        first.remove()
        unpadded = Unpadded(model)
        second = Capture(model, fields)
        got, theirs = kept(second)
        second.remove()
    first.remove()
    unpadded.remove()
    for field, layers in fields.items():
        for layer in layers:
            assert got[field][layer].shape == expected[field][layer].shape
            assert torch.allclose(got[field][layer][real], expected[field][layer][real], atol=1e-5)
    for ours, padded in zip(theirs, states, strict=True):
        assert torch.allclose(ours[real], padded[real], atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama", "distilbert"])
def test_the_theseus_path_runs_the_predecessors_blocks_without_padding(name):
    predecessor = tiny_model(name, 4, **RATES.get(name, NO_DROPOUT))
    successor = build_student(predecessor, 2)
    batch = padded_batch()
    with torch.no_grad():
        expected = predecessor(**batch).logits
    layers = attach(successor, predecessor)
    both = [Unpadded(predecessor), Unpadded(successor)]
    successor.train()
    seen = []
    hook = next(
        m for m in layers.slots[1][0].modules() if isinstance(m, nn.Linear)
    ).register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    layers.replaced = (False, False)
    with torch.no_grad():
        got = successor(**batch).logits
    hook.remove()
    for unpadded in reversed(both):
        unpadded.remove()
    detach(successor)
    assert seen == [sum(LENGTHS)]
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_recomputed_blocks_take_the_same_tokens(name, reentrant):
    model = tiny_model(name, 3, **RATES.get(name, NO_DROPOUT))
    batch = padded_batch()
    _, expected = run(model, batch)
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    unpadded = Unpadded(model)
    _, got = run(model, batch)
    # The mask of another batch comes before the first one's backward pass.
    model.zero_grad()
    loss = model(**batch).loss
    model(**padded_batch((2, 5, 3)))
    loss.backward()
    unpadded.remove()
    for name_, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(got[name_], expected[name_], atol=1e-5)
            assert torch.allclose(parameter.grad, expected[name_], atol=1e-5)


def test_a_copy_of_an_unpadded_model_runs_its_own_weights():
    model, batch = tiny_model("bert", 2), padded_batch()
    unpadded = Unpadded(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(**batch).logits
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(twin(**batch).logits, expected)
    unpadded.remove()


def test_dropout_of_attention_is_on_in_training():
    model = tiny_model("bert", 2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    unpadded = Unpadded(model)
    model.train()
    with torch.no_grad():
        first, second = (model(**padded_batch()).logits for _ in range(2))
    unpadded.remove()
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_its_rounding(dtype):
    model, batch = tiny_model("bert", 3).to(dtype), padded_batch()
    with torch.no_grad():
        expected = model(**batch).logits
        unpadded = Unpadded(model)
        got = model(**batch).logits
    unpadded.remove()
    assert torch.allclose(got, expected, rtol=2e-2, atol=2e-2)


def test_a_model_is_as_it_was_once_it_is_removed():
    model = tiny_model("gpt2", 2)
    own, before = model.config._attn_implementation, model.config.to_dict()
    unpadded = Unpadded(model)
    assert model.config._attn_implementation == UNPADDED_ATTENTION
    unpadded.remove()
    assert model.config._attn_implementation == own
    assert model.config.to_dict() == before
    assert not any("forward" in vars(module) for module in model.modules())


# What is refused.


@pytest.mark.parametrize("name", CLOSED)
def test_terms_by_position_in_the_scores_are_refused(name):
    model = tiny_model(name, 2)
    with pytest.raises(ValueError, match=r"does not let its attention function be chosen"):
        Unpadded(model, ARCHITECTURES[name].stack)
    assert model.config._attn_implementation != UNPADDED_ATTENTION


def test_a_softmax_over_positions_is_refused():
    with pytest.raises(ValueError, match="classes of BertForQuestionAnswering are positions"):
        Unpadded(task_model("question_answering"))


def test_a_decoder_beside_an_encoder_is_refused():
    with pytest.raises(ValueError, match="one stack"):
        Unpadded(task_model("seq2seq_lm"), "encoder")


def test_a_block_that_mixes_positions_elsewhere_is_refused_and_left_as_it_was():
    model = tiny_model("bert", 2)
    own = model.config._attn_implementation
    dense = model.bert.encoder.layer[1].intermediate.dense
    dense.register_forward_hook(lambda m, args, out: out + out.roll(1, 1))
    with pytest.raises(ValueError, match="gives other outputs without padding"):
        Unpadded(model)
    assert model.config._attn_implementation == own
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_block_that_computes_with_its_mask_is_refused():
    model = tiny_model("bert", 2)
    model.bert.encoder.layer[0].register_forward_pre_hook(lambda m, args: (args[0], args[1] & True))
    with pytest.raises(ValueError, match="computes with its attention mask itself"):
        Unpadded(model)


def test_a_row_without_tokens_is_refused():
    model, batch = tiny_model("bert", 2), padded_batch()
    batch["attention_mask"][1] = 0
    unpadded = Unpadded(model)
    with pytest.raises(ValueError, match="1 of 6 rows"):
        model(**batch)
    unpadded.remove()


def test_a_key_value_cache_is_refused():
    model, batch = tiny_model("gpt2", 2), padded_batch()
    unpadded = Unpadded(model)
    with pytest.raises(ValueError, match="no key-value cache"):
        model(**batch, use_cache=True)
    unpadded.remove()


@pytest.mark.parametrize("model_class", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_a_model_without_a_padding_token_is_probed_below_its_head(model_class):
    config = AutoConfig.for_model(
        "bert", vocab_size=40, **ARCHITECTURES["bert"].config, pad_token_id=None
    )
    Unpadded(model_class.from_config(config)).remove()
