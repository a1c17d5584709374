"""The loss of question answering on its labels."""

import torch
import torch.nn.functional as F

from kdnlp.losses.base import masked_mean


def answer_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """`-log q_label`, mean over the starts and ends that count; 0 where none does.

    The models' own loss is half the mean over starts plus half the mean over ends, which is the
    same where all count and no text is padded. Where some are cut off, it weighs a start otherwise
    than an end, so that its value depends on how rows lie in micro-batches; and it takes padding
    for a place where an answer may be.

    Args:
        logits: shape (batch, 2, length), finite; very low at padding.
        labels: positions in [0, length), also where they do not count; shape (batch, 2).
        mask: which of them count, boolean, shape (batch, 2).

    Returns:
        A scalar in nats, in float32.
    """
    losses = F.cross_entropy(logits.float().mT, labels, reduction="none")
    return masked_mean(losses, mask)
