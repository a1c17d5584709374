"""Attention over the real tokens of a batch, sequence by sequence, for transformers' interface."""

import inspect
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from kdnlp.models.token_layout import MaskFunction, TokenLayout

UNPADDED_ATTENTION = "kdnlp_unpadded"
"""The attention implementation of models that run without their padding."""


def unpadded_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: TokenLayout | torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention in which each sequence of a flat batch sees itself alone.

    Args:
        module: the attention module that calls this.
        query: shape (1, heads, tokens, head_size), after any rotary embedding.
        key: the same, with fewer heads where queries share them.
        value: as `key`.
        attention_mask: where the sequences lie. With a mask, or none, the batch has no padding or
            was not unpadded, and this is transformers' own SDPA attention.
        **kwargs: `dropout`, `scaling` and what other implementations take.

    Returns:
        The output, shape (1, tokens, heads, head_size), and no probabilities.
    """
    layout = attention_mask
    if not isinstance(layout, TokenLayout):
        return sdpa_attention_forward(module, query, key, value, layout, **kwargs)
    if _varlen_serves(query, layout, kwargs.get("dropout", 0.0)):
        return by_cumulative_lengths(query, key, value, layout, kwargs.get("scaling")), None
    # On an accelerator many small kernels cost more than the scores of padding.
    run = by_length if query.device.type == "cpu" else in_rectangle
    return run(module, query, key, value, layout, **{**kwargs, "is_causal": layout.is_causal}), None


def by_length(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TokenLayout,
    **kwargs: Any,
) -> torch.Tensor:
    """One call for all sequences of a length: no score of padding is computed."""
    outputs = []
    for group, window in zip(layout.groups, layout.windows, strict=True):
        shape = (group.rows, group.length)
        part = slice(group.start, group.start + group.rows * group.length)
        q, k, v = (x[0, :, part].unflatten(1, shape).transpose(0, 1) for x in (query, key, value))
        output, _ = sdpa_attention_forward(module, q, k, v, window, **kwargs)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)[None]


def in_rectangle(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TokenLayout,
    **kwargs: Any,
) -> torch.Tensor:
    """One call over the padded rows: the linear maps around it stay without padding."""
    q, k, v = (layout.scatter(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
    output, _ = sdpa_attention_forward(module, q, k, v, layout.rectangle, **kwargs)
    return layout.gather(output)


def by_cumulative_lengths(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TokenLayout,
    scaling: float | None,
) -> torch.Tensor:
    """One flash attention kernel over all sequences: half precision on a CUDA device."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    ends, longest = layout.cumulative, layout.lengths[-1]
    output = varlen_attn(
        q,
        k,
        v,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0) if layout.is_causal else (-1, -1),
        enable_gqa=query.size(1) != key.size(1),
    )
    assert isinstance(output, torch.Tensor)
    return output[None]


def layout_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **kwargs: Any,
) -> TokenLayout | torch.Tensor | None:
    """What the blocks are given as a mask: where the real tokens lie.

    Where there is no padding, or queries and keys are not of one text, it is the mask that SDPA
    attention gets.
    """
    given = attention_mask
    if given is not None and given.dim() == 2 and q_length == kv_length == given.size(1):
        layout = TokenLayout(given, mask_function, local_size)
        if not layout.is_full:
            return layout
        given = None
    mask: torch.Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=given,
        local_size=local_size,
        **kwargs,
    )
    return mask


AttentionInterface.register(UNPADDED_ATTENTION, unpadded_attention)
AttentionMaskInterface.register(UNPADDED_ATTENTION, layout_mask)


def _varlen_serves(query: torch.Tensor, layout: TokenLayout, dropout: float) -> bool:
    """Whether the kernel for cumulative lengths can run: it knows no dropout and no float32."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    plain = not dropout and not layout.has_window and query.size(-1) <= 256
    return query.is_cuda and half and plain and _has_varlen(query.device)


@cache
def _has_varlen(device: torch.device) -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return False
    known = inspect.signature(varlen_attn).parameters
    new_enough = torch.cuda.get_device_capability(device) >= (8, 0)
    return new_enough and {"window_size", "enable_gqa", "scale"} <= set(known)
