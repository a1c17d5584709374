"""How a smaller model behaves beside its original, where scores alone do not tell.

Two models of one score may be wrong on different rows, and be sure of it to different degrees.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kdnlp.data.task import TaskKind
from kdnlp.evaluation.glue_metrics import Pearson
from kdnlp.evaluation.kept import Predictions
from kdnlp.losses.logits import soft_target_kl, soft_target_sigmoid_kl

CALIBRATION_BINS = 15

_NO_CLASSES = {
    "regression": "a number has no classes",
    "question_answering": "an answer is a span of a text, and no class",
}
_NO_PROBABILITY = {
    "regression": "a number comes without a probability",
    "question_answering": "positions, not answers, have probabilities, and they are not kept",
}
_ONLY_NUMBERS = "its answers are no numbers"


def expected_calibration_error(
    confidence: ArrayLike, right: ArrayLike, bins: int = CALIBRATION_BINS
) -> float:
    """`sum over bins of |rows in it| / |rows| * |accuracy - mean confidence|`, in [0, 1].

    Bins are of equal width, and the upper end belongs to a bin. It is biased upwards where bins
    hold few rows, and 0 for a model that answers every row with the base rate: read it beside the
    accuracy. Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML, section 2.

    Args:
        confidence: the probability of the answer that was given, in [0, 1], shape `(rows,)`.
        right: whether it was right, the same shape.
        bins: how many.

    Raises:
        ValueError: if there are no rows, the shapes differ, or a confidence is no probability.
    """
    sure, hits = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if sure.ndim != 1 or sure.shape != hits.shape or not len(sure):
        raise ValueError(
            f"Expected confidence and right of one shape (rows,) with rows > 0, got {sure.shape} "
            f"and {hits.shape}. Answers would be judged by those to other rows."
        )
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(
            f"Expected confidences in [0, 1], got {sure.min():g} to {sure.max():g}. They are no "
            "probabilities and fall into no bin. Pass the softmax of the logits."
        )
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=hits - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def describe_behaviour(own: Predictions, original: Predictions | None) -> dict[str, float]:
    """What makes sense for the kind of task, of the figures that a report shows, and `rows`.

    `one_answer` is there where a model answers all rows alike, and tells none apart.

    Args:
        own: the answers of a model.
        original: those of the model that it is to behave like, on the same rows; `None` leaves the
            comparison out.
    """
    figures = {"rows": float(len(own.labels))}
    if (own.predicted == own.predicted[:1]).all():
        figures["one_answer"] = 1.0
    if original is not None:
        figures |= _compared(own, original)
    if own.kind not in _NO_PROBABILITY:
        sure, right = _decisions(own)
        figures["calibration_error"] = expected_calibration_error(sure, right)
    return figures


def class_accuracy(own: Predictions) -> dict[str, dict[str, float]]:
    """By class, the share of right answers (`accuracy`) among its rows (`rows`).

    The rows of a class are those whose label it is; of several labels a row, all of them, for each
    is a yes-or-no question to every row. A class without rows is left out.
    """
    if own.kind in _NO_CLASSES:
        return {}
    right = own.predicted == own.labels
    of_class = [
        right[:, i] if right.ndim == 2 else right[own.labels == i]
        for i in range(len(own.label_names))
    ]
    return {
        name: {"accuracy": float(hits.mean()), "rows": float(len(hits))}
        for name, hits in zip(own.label_names, of_class, strict=True)
        if len(hits)
    }


def absent_figures(kind: TaskKind) -> dict[str, str]:
    """The figures that this kind of task does not have, with the reason."""
    absent = {}
    if kind in _NO_PROBABILITY:
        absent = dict.fromkeys(("kl_divergence", "calibration_error"), _NO_PROBABILITY[kind])
        absent["class_accuracy"] = _NO_CLASSES[kind]
    if kind == "regression":
        absent["agreement"] = "two real numbers are hardly ever equal"
    else:
        absent |= dict.fromkeys(("correlation", "mean_difference"), _ONLY_NUMBERS)
    return absent


def _compared(own: Predictions, original: Predictions) -> dict[str, float]:
    ours, theirs = own.predicted, original.predicted
    if own.kind == "regression":
        return {
            "correlation": Pearson.score(ours, theirs),
            "mean_difference": float(np.abs(ours - theirs).mean()),
        }
    same = ours == theirs
    figures = {"agreement": float((same.all(axis=1) if same.ndim == 2 else same).mean())}
    if own.kind not in _NO_PROBABILITY:
        loss = soft_target_sigmoid_kl if _several_labels(own) else soft_target_kl
        student, teacher = (torch.from_numpy(_logits(p)) for p in (own, original))
        # Rounding may leave a little less than nothing of equal distributions.
        figures["kl_divergence"] = max(0.0, float(loss(student, teacher)))
    return figures


def _decisions(own: Predictions) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The probability of what was decided, and whether it is right, of every decision."""
    logits = torch.from_numpy(_logits(own))
    right = own.predicted == own.labels
    if _several_labels(own):
        return logits.abs().sigmoid().flatten().numpy(), right.flatten()
    return logits.softmax(-1).max(-1).values.numpy(), right


def _several_labels(own: Predictions) -> bool:
    return own.kind == "multi_label_classification"


def _logits(own: Predictions) -> NDArray[np.float64]:
    return own.arrays["logits"].astype(np.float64)
