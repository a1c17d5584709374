"""A tag for every word: sentences as lists of words become tokens, of which some bear a label."""

import logging
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from transformers import PreTrainedTokenizerBase

from kdnlp.data.checks import TEXT_TYPES, arrow_tables, check_offsets, list_item
from kdnlp.data.inputs import input_columns, input_features
from kdnlp.data.labels import ClassIds, class_ids, unknown_class
from kdnlp.data.task import Task

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of positions that count neither in the loss nor in a metric."""


def check_tags(rows: Dataset, split: str, task: Task) -> None:
    """Raise `ValueError`, naming the first offending row, unless every word has a known tag."""
    words, tags = task.text_columns[0], task.label_columns[0]
    item = list_item(rows.features[words])
    if len(task.text_columns) > 1 or getattr(item, "dtype", None) not in TEXT_TYPES:
        raise ValueError(
            f"Split {split!r}, columns {list(task.text_columns)}: expected one column with lists "
            f"of words, got {rows.features[words]}. Tags are given word by word, and cutting a "
            "text otherwise than its tags would shift them. Split the texts as the tags were made."
        )
    ids = class_ids(rows.features[tags], task, split)
    assert ids is not None
    for first_row, table in arrow_tables(rows, [words, tags]):
        pairs = zip(table[words].to_pylist(), table[tags].to_pylist(), strict=True)
        for row, (sentence, labels) in enumerate(pairs):
            _check_sentence(sentence, labels, f"Split {split!r}, row {first_row + row}", task, ids)


def encode_tags(
    rows: Dataset, split: str, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Tokens of checked sentences, the first token of each word with the word's tag.

    The words are joined by single spaces and read as running text, as the model was pretrained:
    byte-level tokenizers (RoBERTa, GPT-2, ModernBERT) take a word without the space before it for
    the rest of another word. With the task's `label_all_subwords` the other tokens of a word are
    trained too: a `B-` tag goes on as `I-` where there is one. Splits that are evaluated always
    label the first token only, so that metrics count words.

    Returns:
        `input_ids` and what goes with them, and `labels`: an int64 tag id per token, `IGNORED` for
        special tokens and the rest of each word. Words beyond `max_length` are cut, and a warning
        counts those of an evaluated split.

    Raises:
        ValueError: if the tokenizer cannot tell which characters a token stands for.
    """
    check_offsets(tokenizer, task)
    columns = input_columns(tokenizer)
    measured = split in task.eval_splits
    ids = class_ids(rows.features[task.label_columns[0]], task, split)
    encoded = rows.map(
        _encode,
        batched=True,
        remove_columns=rows.column_names,
        features=Features({**input_features(columns), "labels": ListOf(Value("int64"))}),
        fn_kwargs={
            "tokenizer": tokenizer,
            "task": task,
            "ids": ids,
            "max_length": max_length,
            "columns": columns,
            "continued": _continued(task) if task.label_all_subwords and not measured else None,
        },
        desc=f"Tokenising {task.name} {split}",
    )
    if measured:
        _warn_of_cut_words(rows, encoded, split, task, max_length)
    return encoded


def word_of_each_token(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], is_text: Sequence[bool]
) -> list[int | None]:
    """Which word each token of `" ".join(words)` belongs to; `None` for special tokens.

    >>> word_of_each_token(["a", "word"], [(0, 0), (0, 1), (1, 4), (4, 6)], [False, *[True] * 3])
    [None, 0, 1, 1]

    Args:
        words: the words of one sentence.
        offsets: first and last + 1 character of each token; a leading space may be counted in.
        is_text: whether each token stands for a part of the text.
    """
    starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    # A token may begin at the space before its word, but not end there.
    return [
        bisect(starts, max(start, min(start + 1, end - 1))) - 1 if text else None
        for (start, end), text in zip(offsets, is_text, strict=True)
    ]


def _encode(
    batch: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    ids: ClassIds,
    max_length: int,
    columns: list[str],
    continued: Mapping[int, int] | None,
) -> dict[str, list[Any]]:
    sentences = batch[task.text_columns[0]]
    encoding = tokenizer(
        [" ".join(words) for words in sentences],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
    )
    labels = []
    for row, (words, tags) in enumerate(zip(sentences, batch[task.label_columns[0]], strict=True)):
        is_text = [part is not None for part in encoding.sequence_ids(row)]
        positions = word_of_each_token(words, encoding["offset_mapping"][row], is_text)
        labels.append(_spread([ids[tag] for tag in tags], positions, continued))
    return {**{column: encoding[column] for column in columns}, "labels": labels}


def _spread(
    tags: list[int], positions: list[int | None], continued: Mapping[int, int] | None
) -> list[int]:
    """The label of each token: its word's tag at the word's first token, then `continued`."""
    labels, previous = [], None
    for word in positions:
        if word is None:
            labels.append(IGNORED)
        elif word != previous:
            labels.append(tags[word])
        else:
            labels.append(IGNORED if continued is None else continued[tags[word]])
        previous = word
    return labels


def _continued(task: Task) -> dict[int, int]:
    """The tag of a word's further tokens: `I-X` after `B-X` where there is one, else the same."""
    names = list(task.label_names or ())
    inside = {number: f"I-{name[2:]}" for number, name in enumerate(names) if name[:2] == "B-"}
    return {
        number: names.index(inside[number]) if inside.get(number) in names else number
        for number in range(len(names))
    }


def _check_sentence(
    words: list[str] | None, tags: list[Any] | None, place: str, task: Task, ids: ClassIds
) -> None:
    if not words or not tags or None in words:
        raise ValueError(
            f"{place}: expected words and a tag for each, got {words and words[:20]} and "
            f"{tags and tags[:20]}. There would be nothing to learn or to measure. Drop the row "
            "(Dataset.filter), or fill in what is missing."
        )
    if len(words) != len(tags):
        raise ValueError(
            f"{place}: expected as many tags as words, got {len(words)} words and {len(tags)} "
            f"tags ({words[:8]}, {tags[:8]}). Every tag after the gap would be that of another "
            "word. Correct or drop the row."
        )
    unknown = [tag for tag in tags if tag not in ids]
    if unknown:
        position = f"{place}, word {tags.index(unknown[0])}"
        raise unknown_class(position, unknown[0], task, ids)


def _warn_of_cut_words(
    rows: Dataset, encoded: Dataset, split: str, task: Task, max_length: int
) -> None:
    words = sum(map(len, rows[task.text_columns[0]]))
    labelled = sum(label != IGNORED for labels in encoded["labels"] for label in labels)
    if labelled < words:
        logger.warning(
            "%d of the %d words in split %r have no token within max_length=%d, and are not "
            "measured. Raise max_length, or cut the sentences.",
            words - labelled,
            words,
            split,
            max_length,
        )
