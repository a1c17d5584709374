"""Words of a text that a masked language model can predict, and what it expects in their places."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from kdnlp.data.collation import resolve_max_length
from kdnlp.loading import load_config, load_model, load_tokenizer

_WORD_STARTS = ("Ġ", "▁")
"""What begins a token that begins a word, in byte-level and SentencePiece vocabularies."""

_PIECE_INSIDE = "##"
"""What begins a WordPiece token that goes on with a word."""


@dataclass(frozen=True)
class Word:
    """A word of one token: its place among the tokens, and its span of the text."""

    position: int
    start: int
    end: int


class MaskedWords:
    """A masked language model, and the words of its vocabulary that may stand in for another.

    Args:
        model: a masked language model, in eval mode.
        tokenizer: its own.
        candidates: words a place, at least 1 and fewer than the vocabulary's whole words.
        batch_size: masked texts at a time.
        max_length: the most tokens of a text; `None` as in `resolve_max_length`.

    Raises:
        ValueError: if model, tokenizer and settings do not go together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        candidates: int,
        batch_size: int,
        max_length: int | None,
    ) -> None:
        _check_tokenizer(tokenizer, model)
        self.model, self.tokenizer = model, tokenizer
        self.candidates, self.batch_size = candidates, batch_size
        self.max_length = resolve_max_length(tokenizer, max_length)
        self.words = whole_words(tokenizer)
        if len(self.words) <= candidates:
            raise ValueError(
                f"Expected fewer candidates than the vocabulary has whole words, "
                f"{len(self.words)}, got {candidates}. Pieces of words and special tokens would "
                "be put in their place. Ask for fewer."
            )
        self.allowed = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        self.allowed[list(self.words)] = True

    def find_words(self, texts: list[str]) -> tuple[list[list[int]], list[list[Word]]]:
        """The token ids of each text, and its words of one token."""
        encoding = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, return_offsets_mapping=True
        )
        ids, found = encoding["input_ids"], []
        for row, text in enumerate(texts):
            words = single_token_words(
                text, encoding.word_ids(row), encoding["offset_mapping"][row]
            )
            # A word that the vocabulary lacks is one token too, but none that the model knows.
            unknown = self.tokenizer.unk_token_id
            found.append([word for word in words if ids[row][word.position] != unknown])
        return ids, found

    @torch.no_grad()
    def predict(self, ids: list[list[int]], wanted: list[tuple[int, int]]) -> list[list[str]]:
        """The candidates for each (text, position), in an order that no rounding changes."""
        results: list[list[str]] = [[] for _ in wanted]
        by_length = sorted(range(len(wanted)), key=lambda i: len(ids[wanted[i][0]]))
        for first in range(0, len(by_length), self.batch_size):
            chosen = by_length[first : first + self.batch_size]
            found = self._most_probable([(ids[wanted[i][0]], wanted[i][1]) for i in chosen])
            for index, tokens in zip(chosen, found, strict=True):
                results[index] = [self.words[token] for token in sorted(tokens)]
        return results

    def _most_probable(self, masked: list[tuple[list[int], int]]) -> list[list[int]]:
        """Token ids of the candidates at one position of each sequence."""
        device = self.model.device
        sequences = [torch.tensor(ids) for ids, _ in masked]
        batch = pad_sequence(sequences, True, float(self.tokenizer.pad_token_id)).to(device)
        lengths = torch.tensor([len(ids) for ids, _ in masked], device=device)
        rows = torch.arange(len(masked), device=device)
        positions = torch.tensor([position for _, position in masked], device=device)
        original = batch[rows, positions]
        batch[rows, positions] = self.tokenizer.mask_token_id
        attended = (torch.arange(batch.size(1), device=device) < lengths[:, None]).long()
        logits = self.model(input_ids=batch, attention_mask=attended).logits[rows, positions]
        logits = logits.float().masked_fill(~self.allowed.to(device), -torch.inf)
        logits[rows, original] = -torch.inf
        return logits.topk(self.candidates).indices.tolist()


def whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that are words by themselves, of letters and digits, by id."""
    tokens = {i: t for t, i in tokenizer.get_vocab().items() if i not in tokenizer.all_special_ids}
    marked = {i for i, token in tokens.items() if token.startswith(_WORD_STARTS)}
    whole = marked or {i for i, token in tokens.items() if not token.startswith(_PIECE_INSIDE)}
    ids = sorted(whole)
    texts = tokenizer.batch_decode([[i] for i in ids])
    words = {i: text.strip() for i, text in zip(ids, texts, strict=True)}
    return {i: word for i, word in words.items() if word.isalnum()}


def single_token_words(
    text: str, word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]]
) -> list[Word]:
    """The words of a text that are one token, of letters and digits.

    Args:
        text: the text.
        word_ids: for each token the number of its word, `None` for special tokens.
        offsets: for each token its first character and the one after its last.
    """
    numbers = [number for number in word_ids if number is not None]
    if not numbers:
        return []
    spans = [span for span, number in zip(offsets, word_ids, strict=True) if number is not None]
    # A word at the cut may have had more pieces than are left of it.
    cut = set()
    if spans[-1][1] < len(text.rstrip()):
        cut.add(numbers[-1])
    if spans[0][0] > len(text) - len(text.lstrip()):
        cut.add(numbers[0])
    words = []
    for position, (number, (start, end)) in enumerate(zip(word_ids, offsets, strict=True)):
        surface = text[start:end]
        if number is None or number in cut or numbers.count(number) != 1:
            continue
        if surface.strip().isalnum():
            start += len(surface) - len(surface.lstrip())
            words.append(Word(position, start, start + len(surface.strip())))
    return words


def load_masked_lm(
    model: PreTrainedModel | str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked language model and its tokenizer, loaded where they are not yet.

    Raises:
        ValueError: if the model comes without its tokenizer, or its folder without a trained head.
    """
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise ValueError(
                "Expected the tokenizer of the loaded model, got None. Token ids of another one "
                "would be other words. Pass it, or the model's folder in place of the model."
            )
        return model, tokenizer
    name = os.fspath(model)
    load_config(name)  # which says it if there is no such model
    loaded, loading = load_model(AutoModelForMaskedLM, name)
    if loading["missing_keys"]:
        raise ValueError(
            f"Expected a masked language model, got {name}, whose weights lack "
            f"{', '.join(sorted(loading['missing_keys'])[:4])}. They would start at random, and so "
            "would the words that it chooses. Take the pretrained model, not one that was "
            "fine-tuned on another task."
        )
    return loaded, tokenizer or load_tokenizer(name)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"Expected a masked language model, got {type(model).__name__}, which predicts no "
            "words. Load one with AutoModelForMaskedLM."
        )
    if not tokenizer.is_fast or None in (tokenizer.mask_token_id, tokenizer.pad_token_id):
        raise ValueError(
            f"Expected a fast tokenizer with mask and pad tokens, got {type(tokenizer).__name__}. "
            "Without them words cannot be found in the text, hidden or batched. Load it with "
            "AutoTokenizer, and take a masked language model's."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"Expected the model's own tokenizer, of at most {model.config.vocab_size} tokens, got "
            f"one of {len(tokenizer)}. Its ids would be other words to the model. Load both from "
            "one place."
        )
