"""Where the teacher looks: its attention, as probabilities or as the scores before the softmax."""

from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from kdnlp.losses.base import masked_mean
from kdnlp.losses.citations import MINILM, TINYBERT
from kdnlp.losses.layer_map import LayerMap
from kdnlp.losses.logits import kl_terms
from kdnlp.losses.mapped import MappedLoss

Distance = Literal["kl", "mse"]


def attention_mse(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`(student - teacher)^2`, mean over heads, attended keys, and attending tokens.

    Args:
        student: scores or probabilities, shape (batch, heads, length, length), query by key.
        teacher: the same shape.
        mask: the attention mask, shape (batch, length); `None` counts all tokens.

    Returns:
        A scalar, at least 0.
    """
    error = (student - teacher).square().mean(1)
    if mask is None:
        return error.mean()
    keys = mask[:, None].to(error.dtype)
    return masked_mean((error * keys).sum(-1) / keys.sum(-1).clamp(min=1), mask)


def attention_kl(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`KL(teacher || student)` of each token's attention, mean over heads and attending tokens.

    Args:
        student: probabilities over keys, shape (batch, heads, length, length).
        teacher: the same shape.
        mask: the attention mask, shape (batch, length); `None` counts all tokens.

    Returns:
        A scalar in nats, at least 0.
    """
    # A key that is masked or underflows has probability 0, and the logarithm needs a floor.
    floor = torch.finfo(student.dtype).tiny
    divergence = kl_terms(teacher.clamp(min=floor).log(), student.clamp(min=floor).log())
    return masked_mean(divergence.sum(-1).mean(1), mask)


class HeadwiseLoss(MappedLoss):
    """A comparison of attention head by head, summed over mapped layers.

    Raises:
        ValueError: before training, if the numbers of heads differ.
    """

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Find the layers, and check that the heads can be compared one by one."""
        super().prepare(student, teacher, task)
        assert teacher is not None
        check_heads(type(self).__name__, student, teacher)


class AttentionScoresLoss(HeadwiseLoss):
    """Attention scores before the softmax by `attention_mse`, summed over mapped layers.

    Reads `scores`, with any rotary embedding and without the mask: entries of padding do not
    count, and those of the future, in a decoder, do. Student and teacher need the same number of
    heads; `RelationLoss` does not.

    Args:
        layer_map: see `kdnlp.losses.layer_map.resolve_layer_map`, from layer 1 on.

    Source: Jiao et al. 2020, "TinyBERT", EMNLP Findings, arXiv 1909.10351, eq. 7.
    """

    field = "scores"
    needs = frozenset({"scores"})
    citation = TINYBERT

    def compare(
        self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, layer: int
    ) -> torch.Tensor:
        """Squared error of one layer's scores."""
        return attention_mse(student, teacher, mask)


class AttentionLoss(HeadwiseLoss):
    """Attention probabilities by `attention_kl` or `attention_mse`, summed over mapped layers.

    Reads `attentions`, before dropout. Student and teacher need the same number of heads;
    `RelationLoss` does not. The squared error of probabilities is small where attention is spread
    over many tokens, and needs a large weight there.

    Args:
        layer_map: see `kdnlp.losses.layer_map.resolve_layer_map`, from layer 1 on.
        distance: `"kl"` or `"mse"`.

    Source: Wang et al. 2020, "MiniLM", NeurIPS, arXiv 2002.10957, eq. 5, there for the last layer;
    the squared error after Zagoruyko and Komodakis 2017, ICLR, arXiv 1612.03928.
    """

    field = "attentions"
    needs = frozenset({"attentions"})
    citation = MINILM

    def __init__(self, layer_map: LayerMap = "uniform", distance: Distance = "kl") -> None:
        super().__init__(layer_map)
        if distance not in ("kl", "mse"):
            raise ValueError(f'distance must be "kl" or "mse", got {distance!r}.')
        self.distance = distance

    def compare(
        self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, layer: int
    ) -> torch.Tensor:
        """Distance of one layer's probabilities."""
        compare = attention_kl if self.distance == "kl" else attention_mse
        return compare(student, teacher, mask)

    def config(self) -> dict[str, Any]:
        """The layer map and the distance."""
        return {**super().config(), "distance": self.distance}


def check_heads(loss: str, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """Raise `ValueError` unless both models have as many attention heads."""
    ours, theirs = student.num_attention_heads, teacher.num_attention_heads
    if ours != theirs:
        raise ValueError(
            f"{loss} compares attention head by head and needs one number of heads, got {ours} of "
            f"the student and {theirs} of the teacher. Use RelationLoss, which splits queries, "
            "keys and values into heads of its own."
        )
