"""The user's own data: a table on disk becomes a dataset and a task."""

import csv
import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from pandas.errors import ParserWarning

from kdnlp.data.checks import list_item
from kdnlp.data.label_names import are_entity_tags, check_label_names, infer_label_names
from kdnlp.data.preparation import KINDS
from kdnlp.data.question_answering import is_answers
from kdnlp.data.task import Task, TaskKind

# "NA", "null" and "None" are words in a text, and a lone quote in a TSV file opens no field: with
# pandas' defaults the first become missing values and the second swallows the lines that follow.
# Where rows have more fields than the header, pandas would make the first an index: no column.
_CSV_OPTIONS = {"keep_default_na": False, "na_values": [""], "index_col": False}
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV_OPTIONS),
    ".tsv": ("csv", {**_CSV_OPTIONS, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}

_NO_ROWS = "corresponds to no data"
"""What datasets says of a table without rows."""


def read_tables(
    train_file: str | os.PathLike[str],
    validation_file: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> DatasetDict:
    """Read a training table and a validation table, or split one in two.

    CSV and TSV files need a header line that names every field. Only empty cells count as missing:
    words like "NA" stay words. TSV fields are read as they stand, without quoting.

    Args:
        train_file: a .csv, .tsv, .json, .jsonl or .parquet file.
        validation_file: the same; `None` takes a random part of the training rows.
        validation_fraction: the share of rows, in (0, 1), that is held out without a
            `validation_file`. Rows are drawn one by one: where near-duplicates or rows of one
            author must not stand on both sides, split beforehand.
        seed: of the random split; the same seed gives the same rows.

    Returns:
        `train` and `validation`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a format is unknown, a file holds no rows or is not what its ending says, a
            row has more fields than the header, or the split would leave a side empty.
    """
    train = _read_table(Path(train_file))
    if validation_file is not None:
        return DatasetDict(train=train, validation=_read_table(Path(validation_file)))
    held_out = round(len(train) * validation_fraction)
    if not 0.0 < validation_fraction < 1.0 or not 0 < held_out < len(train):
        raise ValueError(
            f"Expected a validation_fraction in (0, 1) that leaves rows on both sides, got "
            f"{validation_fraction} of the {len(train)} rows in {train_file}. There would be "
            "nothing to train on or nothing to measure. Change it, or give a validation_file."
        )
    parts = train.train_test_split(test_size=held_out, seed=seed)
    return DatasetDict(train=parts["train"], validation=parts["test"])


def infer_task(
    dataset: DatasetDict,
    text_columns: Sequence[str],
    label_column: str | Sequence[str] = "label",
    name: str = "own-data",
    label_names: Sequence[str] | None = None,
) -> Task:
    """Describe the task that the training split poses.

    The columns say what it is:

    | text columns | label column | task |
    | :-- | :-- | :-- |
    | one or two texts | class names, class ids or booleans | classification |
    | | real numbers | regression |
    | | lists of class names or ids; or several columns of 0 and 1 | multi-label |
    | one column with lists of words | lists of tags, a tag a word | token classification |
    | question, context | SQuAD's `answers`: `text` and `answer_start` | question answering |

    Class names come from `label_names`, else from the column: a `ClassLabel`'s own, sorted distinct
    strings, or the ids 0..n-1 themselves; of several columns, their names. Only the training split
    is looked at, so that a misspelt class in the validation split is an error and no class of its
    own.

    Args:
        dataset: must hold a `train` split.
        text_columns: one column for a single text, two for a pair.
        label_column: the column to predict; several as a sequence, or as text with commas.
        name: what reports call the task.
        label_names: class names in the order of their ids, where the column has none.

    Returns:
        A task with the usual metrics of its kind: accuracy (and F1 for two classes), Pearson and
        Spearman correlation, micro and macro F1 and subset accuracy, F1, precision and recall of
        entities (or accuracy, where tags are no `B-X` and `I-X`), exact match and F1.

    Raises:
        ValueError: if the split or a column is missing, labels are null, class ids have gaps, there
            is one class only, or numbers are stored as text.
    """
    labels = _label_columns(dataset, label_column)
    rows = _train_rows(dataset, [*text_columns, *labels])
    if not 1 <= len(text_columns) <= 2:
        raise ValueError(
            f"Expected one text column or two, got {list(text_columns)}. A tokenizer takes a text "
            "or a pair, and would drop the rest. Join columns beforehand."
        )
    kind = _kind_of(rows, text_columns, labels)
    names: tuple[str, ...] | None
    if len(labels) > 1:
        names = check_label_names(tuple(label_names or labels), ", ".join(labels))
    else:
        names = infer_label_names(rows, labels[0], label_names, kind)
    return Task(
        name,
        tuple(text_columns),
        names,
        _usual_metrics(kind, names),
        label_column=labels[0] if len(labels) == 1 else labels,
        kind=kind,
        # SQuAD's contexts have about 150 tokens; 384 is the length that BERT's authors chose.
        max_length=384 if kind == "question_answering" else Task.max_length,
    )


def _label_columns(dataset: DatasetDict, wish: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(wish, str):
        return tuple(wish)
    # A column whose own name has a comma is one column.
    whole = wish in dataset.get("train", Dataset.from_dict({})).column_names
    return (wish,) if whole else tuple(name.strip() for name in wish.split(","))


def _kind_of(rows: Dataset, text_columns: Sequence[str], labels: tuple[str, ...]) -> TaskKind:
    """What the types of the columns say; `infer_label_names` checks the values."""
    feature = rows.features[labels[0]]
    if len(labels) > 1:
        return "multi_label_classification"
    if is_answers(feature):
        return "question_answering"
    if list_item(rows.features[text_columns[0]]) is not None:
        return "token_classification"
    if list_item(feature) is not None:
        return "multi_label_classification"
    if str(getattr(feature, "dtype", feature)).startswith("float"):
        return "regression"
    return "single_label_classification"


def _usual_metrics(kind: TaskKind, names: tuple[str, ...] | None) -> tuple[str, ...]:
    if kind == "single_label_classification" and len(names or ()) == 2:
        return ("accuracy", "f1")
    if kind == "token_classification" and not are_entity_tags(names or ()):
        return ("accuracy",)
    return KINDS[kind].metrics


def _read_table(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(
            f"No file {path}. Check the path; folders and patterns are not read."
        )
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"Expected a file ending in {', '.join(_FORMATS)}, got {path.name!r}. The ending says "
            "how it is read. Convert or rename it."
        )
    if not path.stat().st_size:
        raise _without_rows(path)
    loader, options = _FORMATS[path.suffix.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)  # pandas' word for fields that it drops
            # One call per file: several files in one call must agree on every column, used or not.
            return load_dataset(loader, data_files=glob.escape(str(path)), split="train", **options)
    except StopIteration as error:  # blank lines alone
        raise _without_rows(path) from error
    except (ValueError, DatasetGenerationError) as error:
        if _NO_ROWS in str(error):
            raise _without_rows(path) from error
        if isinstance(error.__cause__, ParserWarning):
            raise _too_many_fields(path) from error
        raise _unreadable(path, error.__cause__ or error) from error


def _without_rows(path: Path) -> ValueError:
    return ValueError(
        f"Expected rows in {path}, got none. There is nothing to learn from or to measure "
        "on. Name the file that holds the rows."
    )


def _too_many_fields(path: Path) -> ValueError:
    return ValueError(
        f"Expected as many fields in a row of {path} as its header names, got more. A part of a "
        "text would be dropped, or train as a label. Quote a field of a .csv that holds a comma "
        '("Paris, France",1), or name every field in the header.'
    )


def _unreadable(path: Path, cause: BaseException) -> ValueError:
    return ValueError(
        f"Expected {path} to be what its ending says, got something else "
        f"({str(cause).strip()}). Rows would be lost or read wrongly. Mend the file, or give it "
        "the ending of what it is."
    )


def _train_rows(dataset: DatasetDict, columns: list[str]) -> Dataset:
    if "train" not in dataset:
        raise ValueError(
            f"Expected a split 'train', got {list(dataset)}. The classes are read from it. Rename "
            "the split that holds the training rows."
        )
    rows = dataset["train"]
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"Expected columns {columns}, got {rows.column_names}; {missing} missing. Name the "
            "columns as the file does, and check that a CSV or TSV file has its header line."
        )
    return rows
