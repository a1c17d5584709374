"""More rows for a teacher to label: copies of tokenised rows with tokens masked and deleted."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import generate_random_fingerprint
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from kdnlp.data.collation import TEACHER_PREFIX

Labels = Literal["keep", "drop"]

_ANSWER_POSITIONS = ("start_positions", "end_positions")


def augment_tokens(
    dataset: Dataset,
    copies: int,
    tokenizer: PreTrainedTokenizerBase,
    mask_probability: float = 0.1,
    delete_probability: float = 0.1,
    seed: int = 0,
    labels: Labels = "keep",
    label_column: str = "labels",
) -> Dataset:
    """Add copies of tokenised rows in which some tokens are masked and some are gone.

    Each ordinary token is deleted with one probability, else masked with the other. Special tokens
    and at least one ordinary one always stay; all columns that go with the tokens are cut alike.
    What is drawn depends on (seed, row, copy) alone, not on batches, processes or earlier calls.

    The copies are questions for the teacher. The label that a copy takes over from its row may no
    longer be true of it, so let the teacher's answers weigh more than the labels, or all
    (`loss_weights={"logits": 1}`). With `labels="drop"` no row has a label, and a trainer whose
    loss on the labels still weighs something refuses the data.

    Args:
        dataset: rows of `input_ids`, as `kdnlp.data.preparation.prepare` makes them.
        copies: per row, at least 1.
        tokenizer: the one that made the rows; says which tokens are special and what masks.
        mask_probability: in [0, 1]; must be 0 where the tokenizer has no mask token.
        delete_probability: in [0, 1]; the two sum to at most 1.
        seed: at least 0; the same seed gives the same rows.
        labels: `"keep"` gives every copy its row's label; `"drop"` takes the labels off all rows.
        label_column: holds the labels. One label a token (a list of integers) is cut with them.

    Returns:
        The rows as they were, then the copies of the first row, of the second, and so on.

    Raises:
        ValueError: if a setting is out of range, there is nothing to mask with, a column is
            missing, answers are given by position while tokens are deleted, or the teacher already
            has inputs of its own, which would not change along.

    Source: masking for distillation, Tang et al. 2019, arXiv 1903.12136; random deletion, Wei, Zou
    2019, "EDA", arXiv 1901.11196.
    """
    check_copies(copies, seed)
    _check_probabilities(tokenizer, mask_probability, delete_probability)
    _check_columns(dataset, delete_probability)
    dataset = with_labels(dataset, labels, label_column)
    settings = {
        "copies": copies,
        "seed": seed,
        "special_ids": sorted(tokenizer.all_special_ids),
        "mask_id": tokenizer.mask_token_id if mask_probability else 0,
        "mask_probability": mask_probability,
        "delete_probability": delete_probability,
        "aligned": _aligned_columns(dataset, tokenizer, label_column),
    }
    return with_copies(dataset, _change_tokens, settings)


def draw_changes(
    special: NDArray[np.bool_],
    mask_probability: float,
    delete_probability: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tokens of a row are masked, and which are kept: both of the shape of `special`."""
    draws = rng.random(len(special))
    kept = special | (draws >= delete_probability)
    if not (kept & ~special).any() and not special.all():
        kept[np.where(special, -1.0, draws).argmax()] = True
    masked = ~special & kept & (draws >= delete_probability)
    return masked & (draws < delete_probability + mask_probability), kept


def with_copies(
    dataset: Dataset,
    function: Callable[..., dict[str, list[Any]]],
    settings: Mapping[str, Any],
    batch_rows: int = 1000,
) -> Dataset:
    """The rows, then what `function(batch, rows, **settings)` makes of them, batch by batch.

    Args:
        dataset: the rows.
        function: takes columns and the rows' numbers, returns columns of more rows.
        settings: its keyword arguments.
        batch_rows: rows at a time.
    """
    dataset = dataset.with_format(None)
    added = dataset.map(
        function,
        batched=True,
        batch_size=batch_rows,
        with_indices=True,
        fn_kwargs=dict(settings),
        features=dataset.features,
        # A model among the settings has no cheap and safe hash to find an earlier result by.
        load_from_cache_file=False,
        new_fingerprint=generate_random_fingerprint(),
        desc="Augmenting",
    )
    return concatenate_datasets([dataset, added])


def with_labels(dataset: Dataset, labels: Labels, label_column: str) -> Dataset:
    """The dataset, without its labels where they are to be dropped."""
    if labels not in ("keep", "drop"):
        raise ValueError(
            f'labels must be "keep" or "drop", got {labels!r}. The copies take over their rows\' '
            "labels, or no row has one."
        )
    if labels == "keep":
        return dataset
    if label_column not in dataset.column_names:
        raise ValueError(
            f"Expected the column {label_column!r}, whose labels are to be dropped, got "
            f"{dataset.column_names}. Labels of another name would stay and be trained on. Name "
            "the column with label_column."
        )
    return dataset.remove_columns(label_column)


def check_copies(copies: int, seed: int) -> None:
    """Raise `ValueError` unless there is at least one copy and the seed is no negative number."""
    if copies < 1 or seed < 0:
        raise ValueError(
            f"Expected copies of at least 1 and a seed of at least 0, got {copies} and {seed}. "
            "Without a copy nothing is augmented, and no generator has a negative seed."
        )


def _change_tokens(
    batch: Mapping[str, list[Any]],
    rows: list[int],
    copies: int,
    seed: int,
    special_ids: list[int],
    mask_id: int,
    mask_probability: float,
    delete_probability: float,
    aligned: list[str],
) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {name: [] for name in batch}
    for position, row in enumerate(rows):
        values = {name: column[position] for name, column in batch.items()}
        ids = np.asarray(values["input_ids"])
        special = np.isin(ids, special_ids)
        for copy in range(copies):
            rng = np.random.default_rng([seed, row, copy])
            masked, kept = draw_changes(special, mask_probability, delete_probability, rng)
            changed = {**values, "input_ids": np.where(masked, mask_id, ids)}
            for name in out:
                value = changed[name]
                out[name].append(np.asarray(value)[kept].tolist() if name in aligned else value)
    return out


def _aligned_columns(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, label_column: str
) -> list[str]:
    """The columns with one entry a token."""
    aligned = {*tokenizer.model_input_names, "input_ids", "attention_mask", "token_type_ids"}
    entries = getattr(dataset.features.get(label_column), "feature", None)
    # Real numbers are the labels of a multi-label row, one a class.
    if str(getattr(entries, "dtype", "")).startswith("int"):
        aligned.add(label_column)
    return [name for name in dataset.column_names if name in aligned]


def _check_probabilities(
    tokenizer: PreTrainedTokenizerBase, mask_probability: float, delete_probability: float
) -> None:
    total = mask_probability + delete_probability
    if not (mask_probability >= 0 and delete_probability >= 0 and 0 < total <= 1):
        raise ValueError(
            f"mask_probability and delete_probability must be at least 0 and sum to more than 0 "
            f"and at most 1, got {mask_probability} and {delete_probability}. A token is masked, "
            "deleted or left as it is, and copies without a change teach nothing new."
        )
    if mask_probability and tokenizer.mask_token_id is None:
        raise ValueError(
            f"Expected a tokenizer with a mask token, got {type(tokenizer).__name__} without one "
            f"and mask_probability {mask_probability}. Any other token in its place would be a "
            "word. Set mask_probability=0, and delete tokens alone."
        )


def _check_columns(dataset: Dataset, delete_probability: float) -> None:
    if "input_ids" not in dataset.column_names:
        raise ValueError(
            f"Expected tokenised rows with input_ids, got {dataset.column_names}. There are no "
            "tokens to change. Tokenise first (kdnlp.prepare); for texts, see replace_words."
        )
    of_teacher = [n for n in dataset.column_names if n.startswith(TEACHER_PREFIX)]
    if of_teacher:
        raise ValueError(
            f"Expected rows without the teacher's own inputs, got {', '.join(of_teacher)}. They "
            "would stay as they are, and the teacher would answer another text than the student "
            "reads. Augment the texts with replace_words, then prepare them for both."
        )
    positions = [n for n in _ANSWER_POSITIONS if n in dataset.column_names]
    if positions and delete_probability:
        raise ValueError(
            f"Expected rows without {' and '.join(positions)}, got some, and delete_probability "
            f"{delete_probability}. Deleting tokens moves the answer to other positions than the "
            "labels say. Set delete_probability=0, and mask alone."
        )
