"""The nine GLUE tasks (Wang et al. 2019, https://gluebenchmark.com), from the Hub or a folder."""

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import DatasetDict, load_dataset
from transformers import PreTrainedTokenizerBase

from kdnlp.data.glue_tsv import OFFICIAL_LAYOUTS, has_official_files, official_file, read_official
from kdnlp.data.preparation import prepare
from kdnlp.data.task import Task

HUB_DATASET = "nyu-mll/glue"

_ACCURACY = ("accuracy",)
_PAIR = ("sentence1", "sentence2")

# Label names stand in the Hub's order: a model fine-tuned on the Hub's ids keeps its meaning. Note
# that RTE and WNLI number their two classes the opposite way.
GLUE_TASKS: dict[str, Task] = {
    task.name: replace(task, dataset=HUB_DATASET)
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        Task("sst2", ("sentence",), ("negative", "positive"), _ACCURACY),
        Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
        Task("stsb", _PAIR, None, ("pearson", "spearmanr")),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            _ACCURACY,
            eval_splits=("validation_matched", "validation_mismatched"),
        ),
        Task(
            "qnli",
            ("question", "sentence"),
            ("entailment", "not_entailment"),
            _ACCURACY,
            max_length=256,
        ),
        Task("rte", _PAIR, ("entailment", "not_entailment"), _ACCURACY),
        Task("wnli", _PAIR, ("not_entailment", "entailment"), _ACCURACY),
    )
}


def load_glue(
    task: str | Task,
    tokenizer: PreTrainedTokenizerBase,
    data_dir: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
) -> DatasetDict:
    """A GLUE task, checked and tokenised, ready for a Trainer.

    Args:
        task: a key of `GLUE_TASKS`, or one of its tasks with another order of labels, as
            `in_model_order` makes it, or another `max_length`.
        tokenizer: the model's own; must have a pad token.
        data_dir: as in `load_glue_raw`.
        max_length: the most tokens an example may have; the default is the task's.

    Returns:
        What `kdnlp.data.preparation.prepare` returns, for the train and labelled eval splits.

    Raises:
        ValueError: if the task is unknown, or the data or tokenizer cannot serve it.
        FileNotFoundError: if `data_dir` holds no known layout of the task.
    """
    raw = load_glue_raw(task if isinstance(task, str) else task.name, data_dir)
    description = GLUE_TASKS[task] if isinstance(task, str) else task
    return prepare(raw, description, tokenizer, max_length)


def load_glue_raw(task: str, data_dir: str | os.PathLike[str] | None = None) -> DatasetDict:
    """A GLUE task's texts and labels. Its unlabelled test splits are left out.

    Args:
        task: a key of `GLUE_TASKS`.
        data_dir: `None` loads `nyu-mll/glue` from the Hub. Else a folder with all tasks, or the
            task's own: parquet named by split (`train.parquet`, or a Hub snapshot's
            `train-00000-of-00001.parquet`), or GLUE's official archive (`CoLA/train.tsv`).

    Returns:
        The train and eval splits of the task, in the Hub's columns.

    Raises:
        ValueError: if the task is unknown, or an official file is damaged.
        FileNotFoundError: if `data_dir` holds no known layout of the task.
        ConnectionError: if the Hub cannot be reached, and the rows are not in datasets' cache.
    """
    if task not in GLUE_TASKS:
        raise ValueError(
            f"Expected a GLUE task out of {', '.join(GLUE_TASKS)}, got {task!r}. For your own data "
            "use kdnlp.data.tables."
        )
    description = GLUE_TASKS[task]
    if data_dir is None:
        try:
            splits = load_dataset(HUB_DATASET, task)
        except ConnectionError as error:
            raise ConnectionError(
                f"GLUE's {task} could not be fetched: {error}. Without a network, name a folder "
                "with GLUE: --data_dir, or data_dir= from Python."
            ) from error
        return DatasetDict({split: splits[split] for split in _splits(description)})
    for folder in candidate_folders(Path(data_dir), task, OFFICIAL_LAYOUTS[task].folder):
        files = find_parquet(folder, _splits(description))
        if files is not None:
            return load_dataset("parquet", data_files=files)
        if has_official_files(folder, description):
            return read_official(folder, description)
    raise _not_found(Path(data_dir), description)


def candidate_folders(data_dir: Path, task: str, *official: str) -> list[Path]:
    """Where a task's files may lie: in folders below `data_dir`, or in itself.

    Args:
        data_dir: what the user named.
        task: the Hub's name of the task.
        official: what folders of it are called elsewhere.
    """
    own = {task, *official}
    folders = [data_dir / name for name in sorted(own)]
    # RTE, WNLI and MRPC share their columns: given the folder of another task, nothing later would
    # notice that it is not this one.
    others = {name.lower() for key in GLUE_TASKS for name in (key, OFFICIAL_LAYOUTS[key].folder)}
    others -= {name.lower() for name in own}
    return folders if data_dir.resolve().name.lower() in others else [*folders, data_dir]


def find_parquet(folder: Path, splits: Sequence[str]) -> dict[str, list[str]] | None:
    """The parquet files of every split, in shard order; `None` unless all splits are there.

    They are escaped: `load_dataset` reads a path as a pattern.
    """
    found = {}
    for split in splits:
        whole = folder / f"{split}.parquet"
        shards = [whole] if whole.is_file() else _find_shards(folder, split)
        if not shards:
            return None
        found[split] = [glob.escape(str(path)) for path in shards]
    return found


def _find_shards(folder: Path, split: str) -> list[Path]:
    shards = sorted(folder.glob(f"{split}-[0-9]*-of-[0-9]*.parquet"))
    if shards and len(shards) != (count := int(shards[0].stem.rpartition("-of-")[2])):
        raise FileNotFoundError(
            f"{folder}: expected {count} shards of the split {split!r}, got "
            f"{len(shards)}. It would train or measure on a part of the data. Download the rest."
        )
    return shards


def _not_found(data_dir: Path, task: Task) -> FileNotFoundError:
    parquet = ", ".join(f"{split}.parquet" for split in _splits(task))
    official = ", ".join(official_file(split) for split in _splits(task))
    if task.name == "mrpc":
        official += " (or msr_paraphrase_train.txt with dev_ids.tsv)"
    places = candidate_folders(data_dir, task.name, OFFICIAL_LAYOUTS[task.name].folder)
    folders = ", ".join(map(str, places))
    return FileNotFoundError(
        f"No complete copy of GLUE's {task.name} under {data_dir}. Looked in {folders} for "
        f"{parquet} (or <split>-00000-of-00001.parquet), and for {official}. Point data_dir at the "
        f"folder that holds them, or leave it out to load {HUB_DATASET} from the Hub."
    )


def _splits(task: Task) -> tuple[str, ...]:
    return (task.train_split, *task.eval_splits)
