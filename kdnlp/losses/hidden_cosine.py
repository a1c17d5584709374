"""Aligned directions: the cosine between the two models' hidden states (Sanh et al. 2019)."""

import torch

from kdnlp.losses.base import masked_mean
from kdnlp.losses.mapped import ProjectedLoss


def hidden_cosine(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`1 - cos(student, teacher)`, mean over tokens.

    Args:
        student: hidden states, shape (batch, length, width).
        teacher: the same shape.
        mask: the attention mask, shape (batch, length); `None` counts all tokens.

    Returns:
        A scalar in [0, 2].
    """
    return masked_mean(1 - torch.cosine_similarity(student, teacher, dim=-1), mask)


class HiddenCosineLoss(ProjectedLoss):
    """Hidden states of one direction by `hidden_cosine`, summed over mapped layers.

    Reads `hidden_states`. It ignores their size, and so the few large dimensions less than
    `HiddenLoss` does not.

    Args:
        layer_map: see `kdnlp.losses.layer_map.resolve_layer_map`; DistilBERT compares the last
            layers alone, as `{6: 12}` does for a student of 6 blocks and a teacher of 12.
        projection: `True` learns a map for equal widths too; `None` only where they differ.

    Source: Sanh, Debut, Chaumond, Wolf 2019, "DistilBERT", arXiv 1910.01108, section 3.
    """

    citation = """@article{sanh2019distilbert,
  title={{DistilBERT}, a distilled version of {BERT}: smaller, faster, cheaper and lighter},
  author={Sanh, Victor and Debut, Lysandre and Chaumond, Julien and Wolf, Thomas},
  journal={arXiv preprint arXiv:1910.01108},
  year={2019}
}"""

    def compare(
        self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, layer: int
    ) -> torch.Tensor:
        """Cosine distance of one layer."""
        return hidden_cosine(self.project(student, layer), teacher, mask)
