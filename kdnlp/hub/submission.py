"""A submission to GLUE's server (Wang et al. 2019): a zip of one TSV for each of its test sets."""

import io
import math
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from kdnlp.data.checks import check_tokenizer, resolve_max_length
from kdnlp.data.glue_unlabelled import DIAGNOSTIC
from kdnlp.data.preparation import build_collator
from kdnlp.data.sequence_classification import encode_unlabelled
from kdnlp.data.task import Task
from kdnlp.evaluation.evaluate import row_by_row, unread_outputs
from kdnlp.evaluation.predictions import read_outputs
from kdnlp.files import written_whole
from kdnlp.models.modes import evaluating
from kdnlp.models.pretrained import in_model_order

HEADER = "index\tprediction"

_NAMES = {name: name for name in ("entailment", "neutral", "contradiction")}
_ENTAILMENT = {name: name for name in ("entailment", "not_entailment")}


@dataclass(frozen=True)
class ServerFile:
    """One file of a submission.

    Attributes:
        name: what the server looks for in the zip.
        task: whose rows it answers, a key of `kdnlp.data.glue_unlabelled.TEST_SPLITS`.
        split: the Hub's name of the split.
        rows: how many rows it has.
        labels: what the server reads, by the names of the task's classes; `None` for a score.
    """

    name: str
    task: str
    split: str
    rows: int
    labels: Mapping[str, str] | None

    @property
    def model_task(self) -> str:
        """The task whose model answers."""
        return "mnli" if self.task == DIAGNOSTIC else self.task

    @property
    def filler(self) -> str:
        """The constant answer of a file without a model."""
        return "0.000" if self.labels is None else next(iter(self.labels.values()))


SERVER_FILES: tuple[ServerFile, ...] = (
    ServerFile("CoLA.tsv", "cola", "test", 1063, {"unacceptable": "0", "acceptable": "1"}),
    ServerFile("SST-2.tsv", "sst2", "test", 1821, {"negative": "0", "positive": "1"}),
    ServerFile("MRPC.tsv", "mrpc", "test", 1725, {"not_equivalent": "0", "equivalent": "1"}),
    ServerFile("STS-B.tsv", "stsb", "test", 1379, None),
    ServerFile("QQP.tsv", "qqp", "test", 390965, {"not_duplicate": "0", "duplicate": "1"}),
    ServerFile("MNLI-m.tsv", "mnli", "test_matched", 9796, _NAMES),
    ServerFile("MNLI-mm.tsv", "mnli", "test_mismatched", 9847, _NAMES),
    ServerFile("QNLI.tsv", "qnli", "test", 5463, _ENTAILMENT),
    ServerFile("RTE.tsv", "rte", "test", 3000, _ENTAILMENT),
    ServerFile("WNLI.tsv", "wnli", "test", 146, {"not_entailment": "0", "entailment": "1"}),
    ServerFile("AX.tsv", DIAGNOSTIC, "test", 1104, _NAMES),
)
"""All that the server wants: nine tasks, of which MNLI has two files, and the diagnostics."""


def files_of(task: str) -> list[ServerFile]:
    """The files that a model for `task` answers."""
    return [file for file in SERVER_FILES if file.model_task == task]


def answer(
    file: ServerFile,
    rows: Dataset,
    model: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    max_length: int | None = None,
) -> list[str]:
    """What a model answers to the rows of a file, as the server reads it.

    Args:
        file: says how many rows there must be and what the answers are called.
        rows: as `kdnlp.data.glue_unlabelled.load_glue_test` returns a split.
        model: fine-tuned on the task; its classes are taken by the names in its configuration.
        task: the task, in any order of labels.
        tokenizer: the model's own.
        args: batch size, precision and device; every process must call this.
        max_length: most tokens an example may have, as when the model was trained; default the
            task's.

    Returns:
        An answer for every row, in their order.

    Raises:
        ValueError: if there are more or fewer rows than the server has, the tokenizer allows fewer
            tokens, or a prediction is NaN.
    """
    check_rows(file, rows)
    task = in_model_order(task, model.config)
    check_tokenizer(tokenizer)
    length = resolve_max_length(task, tokenizer, max_length)
    tokens = encode_unlabelled(rows, file.split, task, tokenizer, length)
    with evaluating(model):
        trainer = Trainer(model, row_by_row(args), data_collator=build_collator(task, tokenizer))
        outputs = trainer.predict(tokens, ignore_keys=unread_outputs(model))
    evaluation = EvalPrediction(outputs.predictions, np.zeros(len(rows)))
    predicted, _ = read_outputs(task, evaluation)
    if file.labels is None:
        return [_score(value) for value in predicted.tolist()]
    assert task.label_names is not None
    return [file.labels[task.label_names[number]] for number in predicted.tolist()]


def check_rows(file: ServerFile, rows: Dataset) -> None:
    """Raise `ValueError` unless there are as many rows as the server has."""
    if len(rows) != file.rows:
        raise ValueError(
            f"{file.name}: expected the {file.rows} rows of GLUE's {file.task} {file.split}, got "
            f"{len(rows)}. The server compares row by row, and would refuse the file or score "
            "other rows. Use the whole test split, as the Hub or the official archive has it."
        )


def fill(file: ServerFile) -> list[str]:
    """The same answer for every row, for a task without a model."""
    return [file.filler] * file.rows


def write_submission(path: str | os.PathLike[str], answers: Mapping[str, Sequence[str]]) -> Path:
    """Write the zip, checked, so that it appears once it is whole.

    Args:
        path: of the zip.
        answers: for the name of every file of `SERVER_FILES`, its answers in the order of its rows.

    Raises:
        ValueError: if a file is missing, or the server would refuse or misread one.
    """
    _check_names(answers)
    for file in SERVER_FILES:
        _check_answers(file, answers[file.name])
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as partial, zipfile.ZipFile(partial, "w") as archive:
        for file in SERVER_FILES:
            # With a date of its own, the same answers would be another file every time.
            entry = zipfile.ZipInfo(file.name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, _as_tsv(answers[file.name]))
    return target


def check_submission(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` unless a zip holds every file, whole and in the server's words."""
    with zipfile.ZipFile(path) as archive:
        _check_names(archive.namelist())
        for file in SERVER_FILES:
            with archive.open(file.name) as entry:
                lines = io.TextIOWrapper(entry, encoding="utf-8").read().splitlines()
            _check_answers(file, _answers_in(file, lines))


def _as_tsv(answers: Sequence[str]) -> str:
    lines = (f"{number}\t{text}" for number, text in enumerate(answers))
    return "\n".join([HEADER, *lines, ""])


def _answers_in(file: ServerFile, lines: list[str]) -> list[str]:
    if not lines or lines[0] != HEADER:
        raise ValueError(
            f"{file.name}, line 1: expected {HEADER!r}, got {lines[:1]}. The server would take it "
            "for an answer. Write the file with write_submission."
        )
    answers = []
    for number, line in enumerate(lines[1:]):
        index, _, text = line.partition("\t")
        if index != str(number):
            raise ValueError(
                f"{file.name}, line {number + 2}: expected the index {number}, got {index!r}. "
                "Answers would be compared with those of other rows. Keep the order of the rows."
            )
        answers.append(text)
    return answers


def _check_names(names: Iterable[str]) -> None:
    expected, got = {file.name for file in SERVER_FILES}, set(names)
    if expected != got:
        missing, unknown = sorted(expected - got), sorted(got - expected)
        raise ValueError(
            f"Expected the files {', '.join(file.name for file in SERVER_FILES)}, "
            f"got none for {', '.join(missing) or 'none of them'}, and unknown "
            f"{', '.join(unknown) or 'none'}. The server refuses a zip without all of them."
        )


def _check_answers(file: ServerFile, answers: Sequence[str]) -> None:
    if len(answers) != file.rows:
        raise ValueError(
            f"{file.name}: expected {file.rows} answers, got {len(answers)}. The server compares "
            "row by row. Answer the whole test split."
        )
    for number, text in enumerate(answers):
        if not _is_answer(file, text):
            words = "a number in [0, 5]" if file.labels is None else sorted(file.labels.values())
            raise ValueError(
                f"{file.name}, row {number}: expected {words}, got {text!r}. The server would "
                "refuse it, or count it as wrong. Write the labels as it names them."
            )


def _is_answer(file: ServerFile, text: str) -> bool:
    if file.labels is not None:
        return text in file.labels.values()
    try:
        return 0 <= float(text) <= 5
    except ValueError:
        return False


def _score(value: float) -> str:
    """A similarity as the server reads it: within its range, with three decimals.

    >>> _score(5.2), _score(-0.0001), _score(2.71828)
    ('5.000', '0.000', '2.718')
    """
    if math.isnan(value):
        raise ValueError(
            "STS-B: expected numbers, got NaN. The model has diverged. Train it again with a lower "
            "learning rate, or in bf16 or fp32 instead of fp16."
        )
    return f"{min(max(value, 0.0), 5.0):.3f}"
