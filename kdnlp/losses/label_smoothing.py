"""Label smoothing: a little of every label's weight goes to all classes (Szegedy et al. 2016)."""

from collections.abc import Mapping
from typing import Any

import torch

from kdnlp.losses.base import CHOICE_TASKS, DistillationLoss, Outputs, masked_mean
from kdnlp.losses.class_labels import read_labels


def smoothed_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float = 0.1,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`-sum_k ((1 - e) [k = y] + e / K) log q_k`, mean over the items that count.

    Args:
        logits: shape (*items, labels), finite.
        labels: the true class `y`, shape (*items); anything negative where an item does not count.
        smoothing: `e`, in [0, 1): the weight spread over all `K` classes, the true one included.
        mask: which items count, shape (*items); `None` counts all.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: if the smoothing is out of range.
    """
    _check_smoothing(smoothing)
    log_probs = logits.log_softmax(-1)
    true = log_probs.gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    cross_entropy = -(1 - smoothing) * true - smoothing * log_probs.mean(-1)
    return masked_mean(cross_entropy, mask)


class LabelSmoothingLoss(DistillationLoss):
    """Cross-entropy with smoothed labels, by `smoothed_cross_entropy`; it needs no teacher.

    Reads `logits`, shape (*items, labels), and `labels`. It takes the place of the task's own
    loss: weights like `task=0,label_smoothing=1`. Question answering is refused: its classes are
    the positions, and a part spread over all of them would go to padding, where it costs thousands
    of nats, and to places that can be no answer.

    Args:
        smoothing: the weight spread over all classes, in [0, 1).

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016, "Rethinking the Inception Architecture
    for Computer Vision", CVPR, arXiv 1512.00567, section 7.
    """

    needs_teacher = False
    tasks = CHOICE_TASKS - {"question_answering"}
    unit = "items"
    citation = """@inproceedings{szegedy2016rethinking,
  title={Rethinking the Inception Architecture for Computer Vision},
  author={Szegedy, Christian and Vanhoucke, Vincent and Ioffe, Sergey and Shlens, Jon and
    Wojna, Zbigniew},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2016}
}"""

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        _check_smoothing(smoothing)
        self.smoothing = smoothing

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        labels, mask = read_labels(batch, type(self).__name__)
        return smoothed_cross_entropy(student["logits"], labels, self.smoothing, mask)

    def config(self) -> dict[str, Any]:
        """The smoothing."""
        return {"smoothing": self.smoothing}


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(
            f"smoothing must lie in [0, 1), got {smoothing}. At 1 the labels would not count, and "
            "a negative one pushes the student from the other classes without end. 0.1 is usual."
        )
