"""Data for a teacher that reads other inputs than its student, and the collator that batches it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import Sequence as SequenceFeature
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from kdnlp.data.inputs import MODEL_INPUTS

TEACHER_PREFIX = "teacher_"
"""Columns whose names start with this are the teacher's: it gets them without the prefix."""

DEFAULT_MAX_LENGTH = 128

Collator = Callable[[list[dict[str, Any]]], Any]


class KnownColumnsCollator:
    """Batches the columns that a model names and the teacher's, and drops the others.

    Args:
        collator: makes a batch of the rows; those that are no mappings come to it as they are.
        names: the columns that the model names.
    """

    def __init__(self, collator: Collator, names: Iterable[str]) -> None:
        self.collator, self.names = collator, set(names)

    def __call__(self, rows: list[Any]) -> Any:
        """One batch of rows."""
        return self.collator([self._kept(row) for row in rows])

    def _kept(self, row: Any) -> Any:
        if not isinstance(row, Mapping):
            return row
        # Not the teacher's text, which no collator could put into a batch.
        return {
            name: value
            for name, value in row.items()
            if name in self.names
            or (name.startswith(TEACHER_PREFIX) and not isinstance(value, str))
        }


class TeacherInputsCollator:
    """Pads the student's inputs and every teacher's, each with its own tokenizer.

    A column belongs to a prefix where the rest of its name is an input of that tokenizer:
    `teacher_input_ids` to `"teacher_"`, `teacher_roberta_input_ids` to `"teacher_roberta_"`. All
    other columns, labels and extra ones, are batched with the student's inputs. A prefix without
    columns is passed over: data for evaluation needs none of the teacher's.

    Example:
        ```python
        collate = TeacherInputsCollator({"": student_tokenizer, "teacher_": teacher_tokenizer})
        trainer = DistillationTrainer(
            student, teacher, args, data_collator=collate, train_dataset=train
        )
        ```

    Args:
        tokenizers: by prefix. The student's stands under `""`; in its place may stand a collator,
            such as `DataCollatorForTokenClassification`, which pads the labels too.
        pad_to_multiple_of: pad lengths up to a multiple of this, which some hardware prefers; a
            collator under `""` keeps its own.

    Raises:
        ValueError: if there is no `""`, a prefix does not start with `teacher_`, a tokenizer has
            no pad token, or, on use, if the data holds token ids that no prefix covers.
    """

    def __init__(
        self,
        tokenizers: Mapping[str, PreTrainedTokenizerBase | Collator],
        pad_to_multiple_of: int | None = None,
    ) -> None:
        if "" not in tokenizers:
            raise ValueError(
                f'Expected the student\'s tokenizer under the prefix "", got {list(tokenizers)}. '
                "Its own inputs could not be padded. Add it: "
                '{"": student_tokenizer, "teacher_": teacher_tokenizer}.'
            )
        self.collators: dict[str, Collator] = {}
        self.inputs: dict[str, set[str]] = {}
        for prefix, tokenizer in tokenizers.items():
            if prefix:
                check_prefix(prefix)
            if isinstance(tokenizer, PreTrainedTokenizerBase):
                check_pad_token(tokenizer)
                self.inputs[prefix] = {*MODEL_INPUTS, *tokenizer.model_input_names}
                self.collators[prefix] = DataCollatorWithPadding(
                    tokenizer, pad_to_multiple_of=pad_to_multiple_of
                )
            elif prefix:
                raise TypeError(
                    f"Expected a tokenizer under {prefix!r}, got {type(tokenizer).__name__}. Only "
                    "the student's, under \"\", may be a collator: a teacher's inputs are padded "
                    "and nothing else."
                )
            else:
                self.collators[prefix] = tokenizer

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """Batch rows; the teachers' tensors keep their prefixes."""
        columns = {prefix: self._columns(features[0], prefix) for prefix in self.inputs if prefix}
        taken = {name for names in columns.values() for name in names}
        _check_token_ids(features[0], taken, list(self.collators))
        batch = self.collators[""](
            [{k: v for k, v in row.items() if k not in taken} for row in features]
        )
        for prefix, names in columns.items():
            if names:
                start = len(prefix)
                rows = [{name[start:]: row[name] for name in names} for row in features]
                padded = self.collators[prefix](rows)
                batch.update({prefix + name: tensor for name, tensor in padded.items()})
        return batch

    def _columns(self, row: Mapping[str, Any], prefix: str) -> list[str]:
        """The columns of one teacher."""
        start = len(prefix)
        return [n for n in row if n.startswith(prefix) and n[start:] in self.inputs[prefix]]


def add_teacher_inputs(
    dataset: Dataset,
    raw: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text_columns: Sequence[str],
    prefix: str = TEACHER_PREFIX,
    max_length: int | None = None,
    label_column: str = "label",
) -> Dataset:
    """Add the inputs of a teacher that reads the texts in its own way.

    For a teacher with another tokenizer than its student, or one that reads a column more: what it
    knows from inputs that exist only in training reaches the student through its answers
    (generalized distillation, Lopez-Paz, Bottou, Schölkopf, Vapnik 2016, ICLR, arXiv 1511.03643).

    Args:
        dataset: prepared for the student, as `prepare` returns a split.
        raw: the same rows in the same order, with the teacher's texts.
        tokenizer: the teacher's; must have a pad token.
        text_columns: the columns of `raw` that the teacher reads: one, or two for a pair.
        prefix: of the new columns. Members of a `TeacherEnsemble` that read other columns each
            have their own, such as `"teacher_roberta_"`.
        max_length: the most tokens that the teacher gets, special tokens included. The default is
            128, or the tokenizer's own limit where that is lower.
        label_column: where both datasets hold one label a row, each of its values must go with one
            value of `labels`: rows in another order are told by that.

    Returns:
        The dataset with `teacher_input_ids`, `teacher_attention_mask` and, where the tokenizer
        makes them, `teacher_token_type_ids`. `TeacherInputsCollator` pads them.

    Raises:
        ValueError: if the rows differ in number or order, a column is missing, already there or
            holds no text, the prefix does not start with `teacher_`, the tokenizer has no pad
            token, or `max_length` is out of range.
    """
    check_prefix(prefix)
    check_pad_token(tokenizer)
    _check_texts(raw, text_columns)
    length = resolve_max_length(tokenizer, max_length, len(text_columns))
    _check_rows(dataset, raw, label_column)
    inputs = {n: t for n, t in MODEL_INPUTS.items() if n in tokenizer.model_input_names}
    present = sorted({prefix + name for name in inputs} & set(dataset.column_names))
    if present:
        raise ValueError(
            f"Expected a dataset without {', '.join(present)}, got one that has them. Two teachers "
            "would share the columns. Remove them, or give this teacher another prefix."
        )
    encoded = raw.select_columns(list(text_columns)).map(
        _encode,
        batched=True,
        remove_columns=list(text_columns),
        features=Features({prefix + n: SequenceFeature(Value(t)) for n, t in inputs.items()}),
        fn_kwargs={
            "tokenizer": tokenizer,
            "text_columns": list(text_columns),
            "max_length": length,
            "prefix": prefix,
            "names": list(inputs),
        },
        desc="Tokenising for the teacher",
    )
    return concatenate_datasets([dataset, encoded], axis=1)


def check_prefix(prefix: str) -> None:
    """Raise `ValueError` unless columns with this prefix reach the teacher."""
    if not prefix.startswith(TEACHER_PREFIX):
        raise ValueError(
            f"Expected a prefix that starts with {TEACHER_PREFIX!r}, got {prefix!r}. Only such "
            "columns reach the teacher; others would be dropped, and it would read the student's "
            f"inputs. Use {TEACHER_PREFIX + prefix!r}."
        )


def check_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` if a tokenizer cannot pad."""
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"Expected a tokenizer with a pad token, got {type(tokenizer).__name__} without one. "
            "Inputs of several lengths could not be batched. Set tokenizer.pad_token = "
            "tokenizer.eos_token, and model.config.pad_token_id = tokenizer.pad_token_id."
        )


def resolve_max_length(
    tokenizer: PreTrainedTokenizerBase, max_length: int | None, num_texts: int = 1
) -> int:
    """The most tokens a text, or a pair, may have; by default 128 or the tokenizer's own limit.

    Raises:
        ValueError: if it leaves no room for text, or exceeds the tokenizer's limit.
    """
    limit = tokenizer.model_max_length
    length = min(DEFAULT_MAX_LENGTH, limit) if max_length is None else max_length
    special = tokenizer.num_special_tokens_to_add(pair=num_texts == 2)
    if not special < length <= limit:
        raise ValueError(
            f"Expected max_length in {special + 1}..{limit} ({special} special tokens; the "
            f"tokenizer's model_max_length), got {length}. Shorter inputs hold no text; longer "
            "ones have no position embedding. Choose a length in that range."
        )
    return length


def _encode(
    batch: Mapping[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    text_columns: list[str],
    max_length: int,
    prefix: str,
    names: list[str],
) -> dict[str, list[Any]]:
    texts = (batch[column] for column in text_columns)
    encoding = tokenizer(*texts, truncation=True, max_length=max_length)
    return {prefix + name: encoding[name] for name in names}


def _check_texts(raw: Dataset, text_columns: Sequence[str]) -> None:
    if isinstance(text_columns, str) or not 1 <= len(text_columns) <= 2:
        raise ValueError(
            f"Expected a list of one text column or two, got {text_columns!r}. A tokenizer takes a "
            "text or a pair, and would drop the rest. Join columns beforehand (Dataset.map)."
        )
    missing = [column for column in text_columns if column not in raw.column_names]
    if missing:
        raise ValueError(
            f"Expected the columns {list(text_columns)} in the raw dataset, got "
            f"{raw.column_names}; {missing} missing. The teacher would read other texts than it "
            "was trained on. Name the columns as the data does."
        )
    for column in text_columns:
        row = next((i for i, x in enumerate(raw[column]) if not isinstance(x, str)), None)
        if row is not None:
            raise ValueError(
                f"Column {column!r}, row {row}: expected text, got {raw[row][column]!r}. The "
                "teacher would fail on it or answer an empty input. Drop the row from both "
                "datasets, or write the missing text as ''."
            )


def _check_rows(dataset: Dataset, raw: Dataset, label_column: str) -> None:
    if len(dataset) != len(raw):
        raise ValueError(
            f"Expected the rows that the dataset was prepared from, got {len(raw)} for its "
            f"{len(dataset)}. The teacher would answer other texts than the student reads. Add the "
            "teacher's inputs before rows are selected, shuffled or copied."
        )
    if "labels" not in dataset.column_names or label_column not in raw.column_names:
        return
    seen: dict[Any, Any] = {}
    for row, (ours, theirs) in enumerate(zip(dataset["labels"], raw[label_column], strict=True)):
        if isinstance(ours, list) or isinstance(theirs, list):
            return  # several labels a row, which may have been cut or aligned with tokens
        expected = np.float32(theirs) if isinstance(ours, float) else seen.setdefault(theirs, ours)
        if ours != expected:
            raise ValueError(
                f"Row {row}: expected the label {expected} for {label_column} = {theirs!r} as in "
                f"earlier rows, got {ours}. The datasets' rows stand in different orders, and the "
                "teacher would answer other texts than the student reads. Prepare and add inputs "
                "before shuffling."
            )


def _check_token_ids(row: Mapping[str, Any], taken: set[str], prefixes: list[str]) -> None:
    others = [n for n in row if n.endswith("_input_ids") and n not in taken]
    others = [n for n in others if n.startswith(TEACHER_PREFIX)]
    if others:
        raise ValueError(
            f"Expected a tokenizer for every teacher's columns, got {', '.join(others)} and the "
            f"prefixes {prefixes}. They could not be padded. Add "
            f"{others[0].removesuffix('input_ids')!r} and its tokenizer."
        )
