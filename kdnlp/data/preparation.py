"""From a dataset of texts to one that a Trainer can batch: check, tokenise, place the labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from kdnlp.data.checks import check_split, check_tokenizer, resolve_max_length
from kdnlp.data.question_answering import check_answers, encode_answers
from kdnlp.data.sequence_classification import check_texts_and_labels, encode_texts
from kdnlp.data.task import Task, TaskKind
from kdnlp.data.token_classification import check_tags, encode_tags


@dataclass(frozen=True)
class Kind:
    """What differs from one kind of task to another.

    How its outputs are read and its metrics computed stands in `kdnlp.evaluation`.

    Attributes:
        auto_class: the transformers class that loads a model with the right head.
        pipeline_tag: what the Hub and `transformers.pipeline` call it.
        problem_type: how a sequence classifier chooses its loss; `None` for other heads.
        metrics: the usual ones, by the names of `kdnlp.evaluation.metrics.KIND_METRICS`.
        check: raises `ValueError` for rows that would train something else.
        encode: from checked rows to tokens and labels.
        collator: what makes a batch, given the tokenizer.
        call: how the tokenizer is called, for the model card; empty for a text or a pair.
        answer: how the model's output is read, for the model card.
    """

    auto_class: str
    pipeline_tag: str
    problem_type: str | None
    metrics: tuple[str, ...]
    check: Callable[[Dataset, str, Task], None]
    encode: Callable[[Dataset, str, Task, PreTrainedTokenizerBase, int], Dataset]
    collator: Callable[[PreTrainedTokenizerBase], Any] = DataCollatorWithPadding
    call: str = ""
    answer: str = ""


def _sequence(problem_type: str, metrics: tuple[str, ...], answer: str = "") -> Kind:
    return Kind(
        "AutoModelForSequenceClassification",
        "text-classification",
        problem_type,
        metrics,
        check_texts_and_labels,
        encode_texts,
        answer=answer,
    )


KINDS: dict[TaskKind, Kind] = {
    "single_label_classification": _sequence("single_label_classification", ("accuracy",)),
    "multi_label_classification": _sequence(
        "multi_label_classification",
        ("f1_micro", "f1_macro", "subset_accuracy"),
        "A text has every label whose logit is above 0 (a probability above 0.5).",
    ),
    "regression": _sequence(
        "regression", ("pearson", "spearmanr"), "The only logit is the predicted number."
    ),
    "token_classification": Kind(
        "AutoModelForTokenClassification",
        "token-classification",
        None,
        ("f1", "precision", "recall"),
        check_tags,
        encode_tags,
        DataCollatorForTokenClassification,
        call='tokenizer(" ".join(words))',
        answer="The tag of a word is that of its first token.",
    ),
    "question_answering": Kind(
        "AutoModelForQuestionAnswering",
        "question-answering",
        None,
        ("exact_match", "f1"),
        check_answers,
        encode_answers,
        call="tokenizer(question, context)",
        answer="The answer is the span of the context with the largest sum of start and end logit.",
    ),
}
"""Every kind of task that can be prepared, loaded, measured and described."""


def prepare(
    dataset: DatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
) -> DatasetDict:
    """Tokenise the task's splits, ready for a Trainer with the collator of `build_collator`.

    Inputs are cut, never padded: the collator pads each batch to its own longest example. Class
    names become ids by name, whatever order the dataset keeps them in.

    Args:
        dataset: must hold the task's train and eval splits; other splits are left out.
        task: says which columns are text and label, and what the classes are.
        tokenizer: must have a pad token.
        max_length: the most tokens an example may have, special tokens included. The default is
            the task's, or the tokenizer's own limit where that is lower.

    Returns:
        The train and eval splits with `input_ids`, `attention_mask`, `token_type_ids` (where the
        tokenizer makes them) and the labels of the kind: see `encode_texts`, `encode_tags` and
        `encode_answers`.

    Raises:
        ValueError: as `check_dataset`; or if the tokenizer cannot serve the task, or `max_length`
            is out of range.
    """
    check_dataset(dataset, task)
    check_tokenizer(tokenizer)
    length = resolve_max_length(task, tokenizer, max_length)
    encode = KINDS[task.kind].encode
    return DatasetDict(
        {split: encode(dataset[split], split, task, tokenizer, length) for split in _splits(task)}
    )


def check_dataset(dataset: DatasetDict, task: Task) -> None:
    """Refuse a dataset that would train or measure something else than the task.

    Args:
        dataset: the raw splits. Splits that the task does not name are not looked at.
        task: what they should hold.

    Raises:
        ValueError: if a split or column is missing, a split is empty, a text or label is null, a
            text column holds no strings, a label is no class of the task, lists of class ids hold
            every class in every row, a regression target is not a finite number, tags and words
            differ in number, or an answer does not stand where it should. It names the split, and
            the first offending row where there is one.
    """
    for split in _splits(task):
        check_split(dataset, split, task)
        KINDS[task.kind].check(dataset[split], split, task)


def build_collator(task: Task, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The collator that pads the task's inputs, and its labels where they have a length.

    Args:
        task: its kind decides.
        tokenizer: the one that `prepare` was given.
    """
    return KINDS[task.kind].collator(tokenizer)


def _splits(task: Task) -> tuple[str, ...]:
    return (task.train_split, *task.eval_splits)
