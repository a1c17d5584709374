"""Metrics of token classification: whole entities, found from `B-`, `I-` tags, and single tags.

An entity counts as found if its first word, its last word and its type are all right (Tjong Kim
Sang and De Meulder 2003, CoNLL-2003).
"""

from collections.abc import Sequence
from typing import Any

from datasets import Sequence as ListOf
from datasets import Value

from kdnlp.evaluation.task_metric import TaskMetric

Tags = Sequence[Sequence[str]]
"""The tags of each sentence, a tag a word."""

Entity = tuple[int, int, str]
"""The first word, the last word + 1, and the type."""

_TAGS = (ListOf(Value("string")), ListOf(Value("string")))


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, as CoNLL's script and seqeval's default mode find them.

    An entity begins at every `B-` or `S-`, and also at an `I-` or `E-` that continues nothing:
    after `O`, after `E-` or `S-`, or after another type. So IOB1, IOB2 and IOBES tags are all read,
    and a model's inconsistent tags are read kindly.

    >>> find_entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC')]
    """
    entities: list[Entity] = []
    previous, previous_kind, start = "O", "", 0
    # An O behind the last word ends what is open there.
    for position, tag in enumerate([*tags, "O"]):
        place, _, kind = tag.partition("-")
        follows_on = place in ("I", "E") and previous in ("B", "I") and kind == previous_kind
        if previous != "O" and not follows_on:
            entities.append((start, position, previous_kind))
        if not follows_on:
            start = position
        previous, previous_kind = place, kind
    return entities


class EntityPrecision(TaskMetric):
    """The share of the predicted entities that are right, in [0, 1]; 0 where there are none."""

    key = "precision"
    types = _TAGS
    description_text = "The share of predicted entities that are right."

    @staticmethod
    def score(predictions: Tags, references: Tags, **kwargs: Any) -> float:
        """Precision of entities over all sentences together."""
        hits, predicted, _ = _count(predictions, references)
        return hits / predicted if predicted else 0.0


class EntityRecall(TaskMetric):
    """The share of the true entities that were found, in [0, 1]; 0 where there are none."""

    key = "recall"
    types = _TAGS
    description_text = "The share of true entities that were found."

    @staticmethod
    def score(predictions: Tags, references: Tags, **kwargs: Any) -> float:
        """Recall of entities over all sentences together."""
        hits, _, true = _count(predictions, references)
        return hits / true if true else 0.0


class EntityF1(TaskMetric):
    """`2 * hits / (predicted + true)` over all entities of all sentences (micro), in [0, 1].

    0 where there are neither. No credit is given for a part of an entity.
    """

    key = "f1"
    types = _TAGS
    description_text = "F1 of whole entities, over all types together (micro)."

    @staticmethod
    def score(predictions: Tags, references: Tags, **kwargs: Any) -> float:
        """F1 of entities over all sentences together."""
        hits, predicted, true = _count(predictions, references)
        return 2 * hits / (predicted + true) if predicted + true else 0.0


class TagAccuracy(TaskMetric):
    """The share of words whose tag is right, in [0, 1].

    Where most words are `O` it is high for a model that finds nothing, so the usual metrics of an
    entity task leave it out; name `accuracy` in the task's metrics to see it.
    """

    key = "accuracy"
    types = _TAGS
    description_text = "The share of words whose tag is right."

    @staticmethod
    def score(predictions: Tags, references: Tags, **kwargs: Any) -> float:
        """Accuracy of tags over all words of all sentences together."""
        pairs = [
            predicted == true
            for sentence in zip(predictions, references, strict=True)
            for predicted, true in zip(*sentence, strict=True)
        ]
        return sum(pairs) / len(pairs)


def _count(predictions: Tags, references: Tags) -> tuple[int, int, int]:
    """Entities that are right, predicted and true."""
    hits = predicted = true = 0
    for found, given in zip(predictions, references, strict=True):
        ours, theirs = set(find_entities(found)), set(find_entities(given))
        hits += len(ours & theirs)
        predicted += len(ours)
        true += len(theirs)
    return hits, predicted, true
