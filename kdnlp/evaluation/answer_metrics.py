"""Metrics of question answering as SQuAD defines them (Rajpurkar et al. 2016, section 6.1).

Values are fractions; SQuAD's own script reports percent.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Sequence as ListOf
from datasets import Value

from kdnlp.evaluation.task_metric import TaskMetric

_ANSWERS = (Value("string"), ListOf(Value("string")))
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_words(text: str) -> list[str]:
    """The words that are compared: in lower case, without ASCII punctuation and English articles.

    Punctuation goes first and leaves no gap, so that "the-end" is one word, and no article.

    >>> answer_words("The  Eiffel-Tower, in a city!")
    ['eiffeltower', 'in', 'city']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()


class ExactMatch(TaskMetric):
    """The share of answers whose words are those of one of the references, in [0, 1]."""

    key = "exact_match"
    types = _ANSWERS
    description_text = "The share of answers that equal a reference, but for case and articles."

    @staticmethod
    def score(
        predictions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any
    ) -> float:
        """Exact match of answers, each with the list of all that are right."""
        return _mean_of_best(predictions, references, _equal)


class AnswerF1(TaskMetric):
    """F1 of the words of answer and reference, the best reference of each, in [0, 1].

    The mean over questions. An answer that shares no word with any reference counts as 0.
    """

    key = "f1"
    types = _ANSWERS
    description_text = "The mean F1 of the words of answer and best reference."

    @staticmethod
    def score(
        predictions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any
    ) -> float:
        """F1 of answers' words, each with the list of all that are right."""
        return _mean_of_best(predictions, references, _overlap)


def _mean_of_best(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    compare: Callable[[list[str], list[str]], float],
) -> float:
    best = [
        max(compare(answer_words(answer), answer_words(reference)) for reference in given)
        for answer, given in zip(predictions, references, strict=True)
    ]
    return sum(best) / len(best)


def _equal(answer: list[str], reference: list[str]) -> float:
    return float(answer == reference)


def _overlap(answer: list[str], reference: list[str]) -> float:
    """`2 * shared / (words + words)`, a word counted as often as both have it."""
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference)) if shared else 0.0
