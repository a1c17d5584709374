"""More texts for a teacher to label: words replaced by what a masked language model expects."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdnlp.data.augmentation import Labels, check_copies, with_copies, with_labels
from kdnlp.data.masked_words import MaskedWords, Word, load_masked_lm


def replace_words(
    dataset: Dataset,
    text_columns: Sequence[str],
    model: PreTrainedModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    copies: int = 20,
    replace_probability: float = 0.4,
    candidates: int = 15,
    seed: int = 0,
    batch_size: int = 32,
    max_length: int | None = None,
    labels: Labels = "keep",
    label_column: str = "label",
) -> Dataset:
    """Add copies of texts in which words are replaced by a masked language model's choices.

    A word of one token is masked, alone and in the original text; the `candidates` words that the
    model finds most probable there are what it may be replaced by, each as likely as the other.
    What is drawn depends on (seed, row, copy, column) alone.

    Where it differs from the paper: words of several tokens, for which the paper takes neighbours
    in GloVe's space, are left as they are, and so are unknown words and what lies beyond
    `max_length`. Only whole words of letters and digits are candidates, and never the word itself.

    The copies are questions for the teacher: a replaced word may turn "good" into "bad", and the
    label that the copy takes over from its row is then wrong. Let the teacher's answers weigh more
    than the labels, or all (`loss_weights={"logits": 1}`). `"keep"` is the default because
    `prepare` wants a label in every row; `"drop"` is for data that is tokenised otherwise, and a
    trainer whose loss on the labels still weighs something refuses it.

    Args:
        dataset: rows of text.
        text_columns: the columns whose words are replaced, each text by itself.
        model: a masked language model, or the folder or Hub id of one.
        tokenizer: the model's own, a fast one; `None` loads it from where the model is.
        copies: per row, at least 1; N_a in the paper.
        replace_probability: of each word of one token, in (0, 1]; p_t in the paper.
        candidates: how many words each is drawn from, at least 1; K in the paper.
        seed: at least 0; the same seed gives the same rows.
        batch_size: masked texts at a time; their logits take 4 * batch_size * tokens * vocabulary
            bytes.
        max_length: the most tokens of a text that the model reads. The default is 128, or the
            tokenizer's own limit where that is lower.
        labels: `"keep"` gives every copy its row's label; `"drop"` takes the labels off all rows.
        label_column: holds the labels.

    Returns:
        The rows as they were, then the copies of the first row, of the second, and so on. A copy
        in which nothing was drawn is its row again.

    Raises:
        ValueError: if a setting is out of range, a column is missing or holds no text, the model
            has no trained language-modelling head, or the tokenizer is not its own, not a fast one
            or without a mask token.

    Source: Jiao et al. 2020, "TinyBERT", algorithm 1, arXiv 1909.10351.
    """
    check_copies(copies, seed)
    _check_settings(replace_probability, candidates, batch_size)
    _check_texts(dataset, text_columns)
    model, tokenizer = load_masked_lm(model, tokenizer)
    predictor = MaskedWords(model, tokenizer, candidates, batch_size, max_length)
    dataset = with_labels(dataset, labels, label_column)
    settings = {
        "predictor": predictor,
        "text_columns": list(text_columns),
        "copies": copies,
        "probability": replace_probability,
        "seed": seed,
    }
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return with_copies(dataset, _replace, settings, batch_rows=256)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _replace(
    batch: Mapping[str, list[Any]],
    rows: list[int],
    predictor: MaskedWords,
    text_columns: list[str],
    copies: int,
    probability: float,
    seed: int,
) -> dict[str, list[Any]]:
    out = {n: [value for value in column for _ in range(copies)] for n, column in batch.items()}
    for number, column in enumerate(text_columns):
        texts = batch[column]
        ids, words = predictor.find_words(texts)
        # draws[row][copy]: for each word, whether it is replaced, and by which candidate.
        draws = [
            [
                np.random.default_rng([seed, row, copy, number]).random((2, len(words[place])))
                for copy in range(copies)
            ]
            for place, row in enumerate(rows)
        ]
        wanted = [
            (place, int(index))
            for place, drawn in enumerate(draws)
            for index in np.flatnonzero((np.stack(drawn)[:, 0] < probability).any(0))
        ]
        found = predictor.predict(ids, [(p, words[p][i].position) for p, i in wanted])
        choices = dict(zip(wanted, found, strict=True))
        out[column] = [
            _rewrite(texts[place], words[place], draw, probability, choices, place)
            for place, drawn in enumerate(draws)
            for draw in drawn
        ]
    return out


def _rewrite(
    text: str,
    words: list[Word],
    draw: NDArray[np.float64],
    probability: float,
    choices: Mapping[tuple[int, int], list[str]],
    place: int,
) -> str:
    """The text with the drawn words replaced, from the last to the first."""
    for index in reversed(np.flatnonzero(draw[0] < probability).tolist()):
        word, options = words[index], choices[place, index]
        chosen = options[int(draw[1, index] * len(options))]
        text = text[: word.start] + chosen + text[word.end :]
    return text


def _check_settings(probability: float, candidates: int, batch_size: int) -> None:
    if not 0 < probability <= 1:
        raise ValueError(
            f"replace_probability must lie in (0, 1], got {probability}. It is the share of words "
            "that are replaced; copies without one teach nothing new."
        )
    if candidates < 1 or batch_size < 1:
        raise ValueError(
            f"candidates and batch_size must be at least 1, got {candidates} and {batch_size}. A "
            "word is drawn from the candidates, which are found batch by batch."
        )


def _check_texts(dataset: Dataset, text_columns: Sequence[str]) -> None:
    if isinstance(text_columns, str) or not text_columns:
        raise ValueError(
            f"Expected a list of text columns, got {text_columns!r}. Name those whose words are to "
            "be replaced."
        )
    for column in text_columns:
        if column not in dataset.column_names:
            raise ValueError(
                f"Expected the column {column!r}, got {dataset.column_names}. Its words could not "
                "be replaced. Name the columns as the data does."
            )
        row = next((i for i, x in enumerate(dataset[column]) if not isinstance(x, str)), None)
        if row is not None:
            raise ValueError(
                f"Column {column!r}, row {row}: expected text, got {dataset[row][column]!r}. There "
                "are no words to replace. Drop the row, or write the missing text as ''."
            )
