"""What the losses on class labels share."""

from collections.abc import Mapping

import torch


def read_labels(batch: Mapping[str, torch.Tensor], loss: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels, and which items count: those of `item_mask` that have a label.

    Args:
        batch: with `labels`, shape items, negative where there is none, and maybe `item_mask`.
        loss: name of the loss, for the error.

    Returns:
        Labels and mask, both of shape items.

    Raises:
        ValueError: if the batch has no labels.
    """
    if "labels" not in batch:
        raise ValueError(
            f"{loss} needs the labels, got a batch without. It teaches the true class; for "
            "unlabelled data use a loss that learns from the teacher, like LogitsLoss."
        )
    labels = batch["labels"]
    mask = labels >= 0
    if "item_mask" in batch:
        mask = mask & batch["item_mask"]
    return labels, mask
