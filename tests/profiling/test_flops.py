from itertools import pairwise

import pytest
import torch
from settings import ARCHITECTURES, NO_DROPOUT, tiny_batch, tiny_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from kdnlp.models.student import build_student
from kdnlp.profiling.flops import FlopCount, flops_per_example

FUSED = ["bert", "roberta", "distilbert", "modernbert", "gpt2", "llama", "t5-encoder"]


def bert_flops(length, layers, hidden, intermediate, labels=2):
    """BERT with a classifier, by hand: two operations for every multiply-add."""
    projections = 4 * length * hidden * hidden  # Query, key, value and output.
    scores = 2 * length * length * hidden  # Query times key, and weights times value.
    feed_forward = 2 * length * hidden * intermediate
    head = hidden * hidden + hidden * labels  # Pooler and classifier read one position.
    return 2 * (layers * (projections + scores + feed_forward) + head)


def bert(layers, hidden=32, intermediate=48, **values):
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=60,
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=hidden // 16,
            **values,
        )
    )


# The count runs the model, and BERT-base takes seconds; small ones vouch for the closed form.
def test_bert_base_takes_22_gflops_and_its_half_half_of_that():
    base, half = (bert_flops(128, layers, 768, 3072) for layers in (12, 6))
    assert base == 22_348_434_432
    assert 22.3e9 < base < 22.6e9
    assert half / base == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("length", "layers", "hidden", "intermediate", "labels"),
    [(128, 2, 64, 256, 2), (16, 3, 32, 48, 3), (1, 1, 16, 16, 2), (300, 1, 32, 64, 5)],
)
def test_bert_takes_the_operations_of_its_closed_form(
    length, layers, hidden, intermediate, labels, attention
):
    model = bert(layers, hidden, intermediate, num_labels=labels, attn_implementation=attention)
    count = flops_per_example(model, length)
    expected = bert_flops(length, layers, hidden, intermediate, labels)
    assert count == FlopCount(flops=expected, sequence_length=length)
    assert count.macs == expected / 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_block_costs_the_same_in_every_architecture(name):
    one, two, four = (flops_per_example(tiny_model(name, n), 16).flops for n in (1, 2, 4))
    assert four - two == 2 * (two - one) > 0


@pytest.mark.parametrize("name", FUSED)
def test_fused_attention_is_not_counted_as_free(name):
    counts = {
        attention: flops_per_example(tiny_model(name, 2, attn_implementation=attention), 24)
        for attention in ("eager", "sdpa")
    }
    assert counts["eager"] == counts["sdpa"]


def test_a_student_of_half_the_blocks_costs_half_beside_the_head():
    teacher = tiny_model("bert", num_layers=4)
    head = flops_per_example(tiny_model("bert", 1), 16).flops * 2
    head -= flops_per_example(tiny_model("bert", 2), 16).flops
    whole = flops_per_example(teacher, 16).flops
    student = flops_per_example(build_student(teacher, 2), 16).flops
    assert student - head == (whole - head) / 2


def test_the_length_counts_linearly_and_in_attention_squared():
    model = tiny_model("bert", 2)
    counts = [flops_per_example(model, length).flops for length in (8, 16, 24, 32)]
    differences = [b - a for a, b in pairwise(counts)]
    second = {b - a for a, b in pairwise(differences)}
    # Two layers of 2 x 2 x length^2 x 16; the second difference of length^2 is twice the step's.
    assert second == {2 * (2 * 2 * 16) * (2 * 8**2)}


def test_a_decoder_is_counted_with_as_many_tokens():
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    length = 10

    def count(encoder, decoder):
        config = T5Config(num_layers=encoder, num_decoder_layers=decoder, **sizes, **special)
        return flops_per_example(T5ForConditionalGeneration(config), length).flops

    attention = 2 * (4 * length * 16 * 16 + 2 * length * length * 16)
    feed_forward = 2 * 2 * length * 16 * 24
    assert count(2, 1) - count(1, 1) == attention + feed_forward
    assert count(1, 2) - count(1, 1) == 2 * attention + feed_forward
    assert count(1, 1) == 3 * attention + 2 * feed_forward + 2 * length * 16 * 40


def test_counting_leaves_the_model_as_it_was():
    model = tiny_model("bert", **NO_DROPOUT).train()
    model.bert.embeddings.eval()
    model.classifier.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    needs = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects = [id(parameter) for parameter in model.parameters()]
    flops_per_example(model, 16)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    assert [id(parameter) for parameter in model.parameters()] == objects
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model(**tiny_batch()).loss.backward()


def test_dropout_and_training_mode_change_no_count():
    model = tiny_model("bert")
    assert flops_per_example(model.train(), 16) == flops_per_example(model.eval(), 16)


def test_counting_during_a_run_draws_nothing_from_its_dropout():
    model = tiny_model("bert").train()
    before = torch.get_rng_state()
    flops_per_example(model, 16)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "attention", ["flash_attention_2", "flash_attention_3", "flex_attention", "paged|sdpa"]
)
def test_attention_that_the_counter_cannot_see_is_refused(attention):
    model = tiny_model("bert")
    model.config._attn_implementation = attention
    with pytest.raises(ValueError, match="does not see"):
        flops_per_example(model, 16)


@pytest.mark.parametrize(
    ("name", "limit"), [("bert", 20), ("distilbert", 20), ("roberta", 18), ("llama", 20)]
)
def test_a_sequence_longer_than_the_positions_is_refused(name, limit):
    model = tiny_model(name, 1, max_position_embeddings=20, pad_token_id=1)
    assert flops_per_example(model, limit).sequence_length == limit
    with pytest.raises(ValueError, match=f"at most {limit}, .* got {limit + 1}"):
        flops_per_example(model, limit + 1)


@pytest.mark.parametrize("length", [0, -1])
def test_an_empty_sequence_is_refused(length):
    with pytest.raises(ValueError, match="must be at least 1, got 1 and"):
        flops_per_example(tiny_model("bert"), length)
