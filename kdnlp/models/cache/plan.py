"""Before a cache is written: what will be in it, what decides that, and whether it can be right."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from kdnlp.models.cache.fields import (
    INDICES,
    TOKENS,
    Field,
    batch_masks,
    describe,
    pack,
    split_outputs,
)
from kdnlp.models.cache.fingerprint import combine, fingerprint_rows, fingerprint_tensors
from kdnlp.models.cache.rows import token_counts
from kdnlp.models.cache.store import FORMAT, Layout

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
Collator = Callable[[list[dict[str, Any]]], Batch]
Predict = Callable[[Batch], Mapping[str, Any]]

_PROBE_ROWS = 32
_PADDING_TOLERANCE = 0.05


@dataclass(frozen=True)
class TeacherPass:
    """A teacher and the rows that it is asked about."""

    predict: Predict
    dataset: Dataset
    collator: Collator
    top_k: int | None = None

    def collate(self, rows: np.ndarray) -> dict[str, Any]:
        """The batch of some rows."""
        return dict(self.collator(self.dataset.__getitems__(rows.tolist())))

    def ask(self, batch: Batch) -> Mapping[str, Any]:
        """The teacher's outputs."""
        with torch.no_grad():
            return self.predict(batch)

    def stored(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What is stored of them, by the name of its array."""
        return split_outputs(self.ask(batch), self.top_k)


def plan_cache(asked: TeacherPass, dtype: str, logits_mask: str) -> tuple[Layout, str]:
    """What the cache will hold, and a hash of all that decides it but the teacher.

    Raises:
        ValueError: if the collator draws at random, or the outputs cannot be stored.
    """
    lengths = token_counts(asked.dataset, {TOKENS, logits_mask})
    inputs = _fingerprint_inputs(asked)
    # Together the shortest row is padded as much as it can be.
    ends = np.array([lengths[TOKENS].argmin(), lengths[TOKENS].argmax()])
    batch, alone = asked.collate(ends), asked.collate(ends[:1])
    outputs = asked.ask(batch)
    labels = 0 if asked.top_k is None else _check_top_k(asked.top_k, outputs)
    tensors = split_outputs(outputs, asked.top_k)
    fields = describe(tensors, labels, dtype, logits_mask)
    _warn_of_padding(_packed(fields, tensors, batch), _packed(fields, asked.stored(alone), alone))
    rows = fingerprint_rows(asked.dataset)
    return Layout(fields, lengths, labels), combine(str(FORMAT), rows, inputs, repr(fields))


def _fingerprint_inputs(asked: TeacherPass) -> str:
    """A hash of what the collator makes of the first rows: its padding and its own tokenizing."""
    first = np.arange(min(_PROBE_ROWS, len(asked.dataset)))
    batches = [asked.collate(first) for _ in range(2)]
    hashes = {
        fingerprint_tensors({k: v for k, v in batch.items() if isinstance(v, torch.Tensor)})
        for batch in batches
    }
    if len(hashes) > 1:
        raise ValueError(
            "The collator gave two batches for the same rows: it masks or augments at random. The "
            "cached outputs would be those of other inputs than the student's. Draw once, by "
            "dataset.map, or train with the teacher live."
        )
    return hashes.pop()


def _packed(
    fields: tuple[Field, ...], tensors: Mapping[str, torch.Tensor], batch: Batch
) -> dict[str, torch.Tensor]:
    masks = batch_masks(batch)
    return {field.name: pack(tensors[field.name], field, masks) for field in fields}


def _warn_of_padding(
    together: Mapping[str, torch.Tensor], alone: Mapping[str, torch.Tensor]
) -> None:
    """Warn if a row's outputs are others when it is alone in its batch.

    They are cached as one batch makes them, and the student may see the row in another.
    """
    for name, expected in alone.items():
        expected = expected.float()
        difference = (together[name][: len(expected)].float() - expected).norm()
        if name != INDICES and difference > _PADDING_TOLERANCE * expected.norm():
            logger.warning(
                "The teacher's %s of a row are others when it is padded. Cached and live outputs "
                "will differ. Is the teacher in training mode, or does it count positions over "
                "padding on the left?",
                name,
            )


def _check_top_k(top_k: int, outputs: Mapping[str, Any]) -> int:
    """The number of labels, of which `top_k` are a part."""
    labels = outputs["logits"].size(-1) if "logits" in outputs else 0
    if not 1 <= top_k < labels:
        raise ValueError(
            f"top_k must lie in [1, labels - 1], got {top_k} for logits of {labels} labels. There "
            "would be nothing to keep or to leave out. Use top_k=None to store all of them."
        )
    return labels
