"""Real tokens are taken out and put back in place, and attention over them is a plain softmax."""

import pytest
import torch
from torch import nn
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sliding_window_bidirectional_mask_function,
)

from kdnlp.models.token_layout import TokenLayout
from kdnlp.models.unpadded_attention import (
    by_cumulative_lengths,
    by_length,
    in_rectangle,
    unpadded_attention,
)

LENGTHS = (9, 1, 6, 6, 4, 9)


def mask_of(lengths=LENGTHS):
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_tokens_that_are_taken_out_come_back_to_their_places():
    mask = mask_of()
    mask[0, 4] = False
    layout = TokenLayout(mask)
    states = torch.randn(*mask.shape, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(layout.scatter(layout.gather(states)), states * mask[..., None])
    positions = torch.arange(mask.size(1))[None]
    assert torch.equal(layout.gather(positions), layout.gather(positions.expand(mask.shape)))
    assert layout.lengths == [1, 4, 6, 6, 8, 9]
    assert layout.groups[2] == (5, 2, 6)
    assert layout.cumulative.tolist() == [0, 1, 5, 11, 17, 25, 34]
    assert torch.autograd.gradcheck(lambda x: layout.scatter(layout.gather(x) ** 2), states)


@pytest.mark.parametrize("kind", ["full", "causal", "window"])
@pytest.mark.parametrize("attend", [by_length, in_rectangle])
def test_every_way_is_the_softmax_over_one_sequence(kind, attend):
    function = {
        "full": bidirectional_mask_function,
        "causal": causal_mask_function,
        "window": sliding_window_bidirectional_mask_function(2),
    }[kind]
    mask = mask_of()
    layout = TokenLayout(mask, function)
    states = torch.randn(3, 1, 2, layout.tokens, 4, dtype=torch.float64, requires_grad=True)
    module = nn.Module()

    def ours(x):
        return attend(module, *x, layout, is_causal=layout.is_causal)

    expected, start = [], 0
    for length in layout.lengths:
        query, key, value = states[:, 0, :, start : start + length]
        start += length
        scores = query @ key.transpose(1, 2) / 2
        place = torch.arange(length)
        apart = place[:, None] - place
        seen = {"full": apart < 99, "causal": apart >= 0, "window": apart.abs() <= 2}[kind]
        weights = torch.where(seen, scores, -torch.inf).softmax(-1)
        expected.append((weights @ value).transpose(0, 1))
    assert torch.allclose(ours(states)[0], torch.cat(expected), atol=1e-12)
    (ours(states) ** 2).sum().backward()
    got, states.grad = states.grad, None
    (torch.cat(expected) ** 2).sum().backward()
    assert torch.allclose(got, states.grad, atol=1e-10)


def test_a_mask_of_another_shape_is_transformers_own_attention():
    query = torch.randn(2, 2, 5, 4)
    module = nn.Module()
    output, _ = unpadded_attention(module, query, query, query, None, is_causal=False)
    expected = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert torch.equal(output, expected.transpose(1, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_for_cumulative_lengths_is_the_one_by_length(causal):
    function = causal_mask_function if causal else bidirectional_mask_function
    layout = TokenLayout(mask_of().cuda(), function)
    states = torch.randn(3, 1, 2, layout.tokens, 32, dtype=torch.bfloat16, device="cuda")
    got = by_cumulative_lengths(*states, layout, None)
    expected = by_length(nn.Module(), *states, layout, is_causal=causal)
    assert torch.allclose(got, expected, rtol=2e-2, atol=2e-2)
