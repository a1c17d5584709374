"""GLUE's test splits: texts whose labels only the server at https://gluebenchmark.com knows."""

import os
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset

from kdnlp.data.glue import GLUE_TASKS, HUB_DATASET, candidate_folders, find_parquet
from kdnlp.data.glue_tsv import OFFICIAL_LAYOUTS, read_test_texts
from kdnlp.data.task import Task

DIAGNOSTIC = "ax"
"""The diagnostic set: rows like MNLI's, which MNLI's model answers."""

TEST_SPLITS: dict[str, tuple[str, ...]] = {
    **{name: ("test",) for name in GLUE_TASKS if name != "mnli"},
    "mnli": ("test_matched", "test_mismatched"),
    DIAGNOSTIC: ("test",),
}
"""The Hub's names of the test splits, by task."""

_OTHER_FOLDERS = {DIAGNOSTIC: ("AX", "diagnostic")}
_OTHER_FILES = {
    DIAGNOSTIC: ("AX.tsv", "diagnostic.tsv"),
    "mrpc": ("msr_paraphrase_test.txt",),
}
"""What the official archive calls a test file, where it is not called after its split."""


def task_of_test(name: str) -> Task:
    """The task whose model answers the test rows of `name`; of the diagnostic set it is MNLI.

    Raises:
        ValueError: if there is no such task.
    """
    if name not in TEST_SPLITS:
        raise ValueError(
            f"Expected one of GLUE's tasks, {', '.join(TEST_SPLITS)}, got {name!r}. Only these are "
            "scored by its server."
        )
    return replace(GLUE_TASKS["mnli"], name=name) if name == DIAGNOSTIC else GLUE_TASKS[name]


def load_glue_test(name: str, data_dir: str | os.PathLike[str] | None = None) -> DatasetDict:
    """The texts of a task's test splits, in the server's order and without labels.

    Args:
        name: a key of `TEST_SPLITS`.
        data_dir: `None` loads `nyu-mll/glue` from the Hub. Else a folder with all tasks, or the
            task's own: parquet named by split (`test.parquet`), or the official archive's files
            (`CoLA/test.tsv`, `diagnostic/diagnostic.tsv`).

    Returns:
        A split for each of the task's `TEST_SPLITS`, with the text columns alone.

    Raises:
        ValueError: if there is no such task, or an official file is damaged.
        FileNotFoundError: if `data_dir` does not hold its test rows.
    """
    task, splits = task_of_test(name), TEST_SPLITS.get(name, ())
    if data_dir is None:
        loaded = load_dataset(HUB_DATASET, name)
        return DatasetDict({split: _texts(loaded[split], task) for split in splits})
    folders = candidate_folders(Path(data_dir), name, *_official_folders(name))
    for folder in folders:
        parquet = find_parquet(folder, splits)
        if parquet is not None:
            loaded = load_dataset("parquet", data_files=parquet)
            return DatasetDict({split: _texts(loaded[split], task) for split in splits})
        files = {split: _official_test(folder, name, split) for split in splits}
        if all(files.values()):
            layout = OFFICIAL_LAYOUTS["mnli" if name == DIAGNOSTIC else name]
            return DatasetDict(
                {
                    split: read_test_texts(path, task, layout)
                    for split, path in files.items()
                    if path is not None
                }
            )
    names = [file for split in splits for file in (f"{split}.parquet", f"{split}.tsv")]
    raise FileNotFoundError(
        f"No test rows of GLUE's {name} under {data_dir}. Looked in {', '.join(map(str, folders))} "
        f"for {', '.join([*names, *_OTHER_FILES.get(name, ())])}. Point data_dir at the folder "
        f"that holds them, or leave it out to load {HUB_DATASET} from the Hub."
    )


def _official_folders(name: str) -> tuple[str, ...]:
    return _OTHER_FOLDERS.get(name) or (OFFICIAL_LAYOUTS[name].folder,)


def _official_test(folder: Path, name: str, split: str) -> Path | None:
    files = (folder / file for file in (f"{split}.tsv", *_OTHER_FILES.get(name, ())))
    return next((path for path in files if path.is_file()), None)


def _texts(rows: Dataset, task: Task) -> Dataset:
    return rows.select_columns(list(task.text_columns))
