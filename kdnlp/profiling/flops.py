"""Floating-point operations of one forward pass, counted and not estimated.

A multiply-add is 2 FLOPs throughout, so BERT-base at 128 tokens takes 22.4 GFLOPs. Papers that
give half of that (11.2) count multiply-adds.
"""

from dataclasses import dataclass

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from kdnlp.models.modes import evaluating
from kdnlp.profiling.forward import example_inputs
from kdnlp.profiling.parts import OTHER, PARTS, find_parts

COUNTED_ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class FlopCount:
    """The cost of one example.

    Attributes:
        flops: floating-point operations of its forward pass, 2 per multiply-add.
        sequence_length: its length in tokens, none of them padding.
    """

    flops: int
    sequence_length: int

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.flops // 2


def flops_per_example(model: PreTrainedModel, sequence_length: int = 128) -> FlopCount:
    """Count the operations of a forward pass on one example without padding.

    Counted are matrix products and convolutions: linear layers, the attention's two products per
    layer (over all positions, also in a causal model) and the heads. Embedding look-ups, softmax,
    norms and activations are not, by the usual convention; in BERT they are under 1%. Operations in
    kernels that torch's counter does not know, such as packed int8 linear layers, count as nothing.

    Args:
        model: a transformers model; it is run once in eval mode and left as it was.
        sequence_length: tokens, in the decoder too if there is one.

    Raises:
        ValueError: if the sequence exceeds the model's positions, or the attention implementation
            is not one of `COUNTED_ATTENTION`.
    """
    counter = _count(model, sequence_length)
    return FlopCount(flops=counter.get_total_flops(), sequence_length=sequence_length)


def flops_by_part(model: PreTrainedModel, sequence_length: int = 128) -> dict[str, int]:
    """Split what `flops_per_example` counts by the parts of `find_parts`; they sum to it.

    Returns:
        FLOPs of `embeddings`, `attention`, `feed_forward` and `other`; a look-up in a table is 0.
    """
    counter = _count(model, sequence_length)
    by_module = counter.get_flop_counts()
    names = {module: name for name, module in model.named_modules()}
    parts = dict.fromkeys(PARTS, 0)
    for module, part in find_parts(model):
        found = by_module.get(f"{type(model).__name__}.{names[module]}", {})
        parts[part] += sum(found.values())
    parts[OTHER] = counter.get_total_flops() - sum(parts.values())
    return parts


def _count(model: PreTrainedModel, sequence_length: int) -> FlopCounterMode:
    _check_attention(model)
    inputs = example_inputs(model, 1, sequence_length)
    # The counter hooks into the gradients of whatever asks for one, and fails on DeBERTa's tables.
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    # It has no formula for the CPU's fused attention kernel and would count it as free.
    with (
        evaluating(model),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        functional_call(model, weights, kwargs=inputs)
    return counter


def _check_attention(model: PreTrainedModel) -> None:
    attention = model.config._attn_implementation
    if attention is not None and attention not in COUNTED_ATTENTION:
        raise ValueError(
            f"FLOPs are counted for attention implementations {' and '.join(COUNTED_ATTENTION)}, "
            f"got {attention!r}. Its products run inside a kernel that the counter does not see, "
            "and the total would come out too low. Call model.set_attn_implementation('sdpa') "
            "first; the count is the same for all of them."
        )
