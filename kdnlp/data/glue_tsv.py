"""GLUE as its own site ships it: one folder per task, tab-separated, unquoted, labels as text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, NamedSplit, Value

from kdnlp.data.task import Task

Row = tuple[int, dict[str, str]]
"""A line number, counted from 1, and the line's fields by column name."""


@dataclass(frozen=True)
class OfficialLayout:
    """Where the official archive keeps a task.

    Attributes:
        folder: the folder in the archive.
        columns: the Hub's column name to the name in the file's header.
        header: the column names of a file that has no header line.
    """

    folder: str
    columns: dict[str, str]
    header: tuple[str, ...] | None = None


def _pair(folder: str, label: str = "label") -> OfficialLayout:
    return OfficialLayout(
        folder, {"sentence1": "sentence1", "sentence2": "sentence2", "label": label}
    )


OFFICIAL_LAYOUTS: dict[str, OfficialLayout] = {
    "cola": OfficialLayout(
        "CoLA",
        {"sentence": "sentence", "label": "label"},
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": OfficialLayout("SST-2", {"sentence": "sentence", "label": "label"}),
    "mrpc": OfficialLayout(
        "MRPC", {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}
    ),
    "stsb": _pair("STS-B", label="score"),
    "qqp": OfficialLayout(
        "QQP", {"question1": "question1", "question2": "question2", "label": "is_duplicate"}
    ),
    "mnli": OfficialLayout(
        "MNLI", {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}
    ),
    "qnli": OfficialLayout(
        "QNLI", {"question": "question", "sentence": "sentence", "label": "label"}
    ),
    "rte": _pair("RTE"),
    "wnli": _pair("WNLI"),
}

# The Microsoft download of MRPC has one training file; this list says which pairs are GLUE's dev.
_MRPC_TRAIN, _MRPC_DEV_IDS = "msr_paraphrase_train.txt", "dev_ids.tsv"


def official_file(split: str) -> str:
    """The official file name of one of the Hub's splits.

    >>> official_file("train"), official_file("validation_matched")
    ('train.tsv', 'dev_matched.tsv')
    """
    return split.replace("validation", "dev") + ".tsv"


def has_official_files(folder: Path, task: Task) -> bool:
    """Whether `folder` holds every train and eval split of the task in the official layout."""
    if task.name == "mrpc" and all((folder / f).is_file() for f in (_MRPC_TRAIN, _MRPC_DEV_IDS)):
        return True
    return all((folder / official_file(split)).is_file() for split in _splits(task))


def read_official(folder: Path, task: Task) -> DatasetDict:
    """Read the train and eval splits from the official files, in the Hub's schema without `idx`.

    Args:
        folder: the task's own folder, as `has_official_files` accepts it.
        task: one of the nine.

    Returns:
        One in-memory dataset per split, labels as `ClassLabel` ids or float32 scores.

    Raises:
        ValueError: if a column, a field or a label is not what the task's files hold. It names
            the file and the line.
    """
    if not all((folder / official_file(split)).is_file() for split in _splits(task)):
        return _read_mrpc_archive(folder, task)
    return DatasetDict(
        {
            split: _to_dataset(_read_rows(path, task), task, path, split)
            for split in _splits(task)
            for path in (folder / official_file(split),)
        }
    )


def _read_mrpc_archive(folder: Path, task: Task) -> DatasetDict:
    dev_ids = {tuple(line.split("\t")) for _, line in _read_lines(folder / _MRPC_DEV_IDS)}
    rows = list(_read_rows(folder / _MRPC_TRAIN, task))
    in_dev = [(row["#1 ID"], row["#2 ID"]) in dev_ids for _, row in rows]
    parts = {
        "train": [row for row, dev in zip(rows, in_dev, strict=True) if not dev],
        "validation": [row for row, dev in zip(rows, in_dev, strict=True) if dev],
    }
    return DatasetDict(
        {s: _to_dataset(part, task, folder / _MRPC_TRAIN, s) for s, part in parts.items()}
    )


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    # Only \n ends a line: texts may hold \r or a Unicode line separator. MRPC starts with a BOM.
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.rstrip("\r\n")


def _read_rows(path: Path, task: Task) -> Iterator[Row]:
    layout = OFFICIAL_LAYOUTS[task.name]
    # QQP's first release has a few broken lines, which the Hub's copy leaves out as well.
    return _read_columns(
        path, task.name, [*layout.columns.values()], layout.header, skip_short=task.name == "qqp"
    )


def read_test_texts(path: Path, task: Task, layout: OfficialLayout) -> Dataset:
    """The texts of an official test file, whose labels only GLUE's server knows.

    Args:
        path: the file; it has a header line, that of CoLA too.
        task: says which columns are texts.
        layout: what they are called in the file.

    Raises:
        ValueError: if a column or a field is not what the task's files hold. No line is left out:
            the server counts them.
    """
    names = {column: layout.columns[column] for column in task.text_columns}
    rows = [row for _, row in _read_columns(path, task.name, [*names.values()])]
    texts = {column: [row[name] for row in rows] for column, name in names.items()}
    return Dataset.from_dict(texts, features=Features(dict.fromkeys(names, Value("string"))))


def _read_columns(
    path: Path,
    task: str,
    columns: list[str],
    header: tuple[str, ...] | None = None,
    skip_short: bool = False,
) -> Iterator[Row]:
    lines = _read_lines(path)
    header = header or tuple(next(lines, (1, ""))[1].split("\t"))
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(
            f"{path}: expected the columns {columns} of GLUE's {task}, got {list(header)}. Another "
            "file would be another task. Check that it is the official one, with its header line."
        )
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) >= len(header):
            yield number, dict(zip(header, fields, strict=False))
        elif not skip_short:
            raise ValueError(
                f"{path}, line {number}: expected {len(header)} fields, got {len(fields)}. A "
                "shifted field would be read as the text or the label. Download the file again."
            )


def _to_dataset(rows: Iterable[Row], task: Task, source: Path, split: str) -> Dataset:
    layout, label_column = OFFICIAL_LAYOUTS[task.name], task.label_columns[0]
    columns: dict[str, list[str | int | float]] = {column: [] for column in layout.columns}
    for number, row in rows:
        for column in task.text_columns:
            columns[column].append(row[layout.columns[column]])
        text = row[layout.columns[label_column]]
        columns[label_column].append(_parse_label(text, task, f"{source}, line {number}"))
    label = Value("float32") if task.label_names is None else ClassLabel(names=[*task.label_names])
    texts = {column: Value("string") for column in task.text_columns}
    features = Features({**texts, label_column: label})
    return Dataset.from_dict(columns, features=features, split=NamedSplit(split))


def _parse_label(text: str, task: Task, where: str) -> int | float:
    if task.label_names is None:
        return _parse_score(text, where)
    ids = {name: number for number, name in enumerate(task.label_names)}
    ids |= {str(number): number for number in range(task.num_labels)}
    if text not in ids:
        raise ValueError(
            f"{where}: expected a label out of {list(ids)}, got {text!r}. It would train as a "
            "wrong class. Check that the file is the official one, and no unlabelled test file."
        )
    return ids[text]


def _parse_score(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(
            f"{where}: expected a score, got {text!r}. It has no place in a regression. Check that "
            "the file is the official one."
        ) from error


def _splits(task: Task) -> tuple[str, ...]:
    return (task.train_split, *task.eval_splits)
