"""Means of several models' predictions, as logits again.

Everywhere `logits` has the shape (members, *items, labels), and `weights` one that broadcasts with
it, at least 0 and summing to 1 over the members.
"""

import torch
import torch.nn.functional as F


def mean_softmax(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`log(sum_k w_k softmax(logits_k))`: a softmax of it is the mean of the distributions.

    Returns:
        Log probabilities, shape (*items, labels); minus infinity where no member gives any.
    """
    return torch.logsumexp(logits.log_softmax(-1) + weights.log(), dim=0)


def mean_sigmoid(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`logit(sum_k w_k sigmoid(logits_k))`: a sigmoid of it is the mean of the probabilities.

    Returns:
        Logits, shape (*items, labels).
    """
    yes = torch.logsumexp(F.logsigmoid(logits) + weights.log(), dim=0)
    no = torch.logsumexp(F.logsigmoid(-logits) + weights.log(), dim=0)
    return yes - no


def mean_logits(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`sum_k w_k logits_k`: the normalised geometric mean of the distributions.

    Returns:
        Logits, shape (*items, labels). What a member of weight 0 says does not count, even where
        it is infinite.
    """
    counted = torch.where(weights > 0, logits, torch.zeros_like(logits))
    return (counted * weights).sum(0)


def softmax_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the distribution over labels; the last dimension stays, with size 1."""
    return torch.special.entr(logits.softmax(-1)).sum(-1, keepdim=True)


def sigmoid_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of all yes-or-no labels together; the last dimension stays, with size 1."""
    entropy = torch.special.entr(logits.sigmoid()) + torch.special.entr((-logits).sigmoid())
    return entropy.sum(-1, keepdim=True)


def entropy_weights(entropy: torch.Tensor) -> torch.Tensor:
    """`w_k = exp(-H_k) / sum_j exp(-H_j)`: members that are sure weigh more.

    Args:
        entropy: in nats, members first.

    Returns:
        Weights of the same shape, which sum to 1 over the members.
    """
    return (-entropy).softmax(0)
