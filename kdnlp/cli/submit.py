"""`kdnlp submit`: the answers of your models to GLUE's test rows, as its server takes them."""

import argparse
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from rich.console import Console
from rich.table import Table
from transformers import TrainingArguments

from kdnlp.cli.parsing import PlainParser
from kdnlp.data.glue import GLUE_TASKS
from kdnlp.data.glue_unlabelled import load_glue_test
from kdnlp.evaluation.report import REPORT_JSON, CompressionReport
from kdnlp.hub.submission import (
    SERVER_FILES,
    ServerFile,
    answer,
    check_rows,
    check_submission,
    files_of,
    fill,
    write_submission,
)
from kdnlp.models.pretrained import check_finetuned, load_finetuned
from kdnlp.trainers.output_dir import decided_by_main_process

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Answer GLUE's test rows with your models, and write the zip that https://gluebenchmark.com "
    "takes: CoLA, SST-2, MRPC, STS-B, QQP, MNLI (matched and mismatched), QNLI, RTE, WNLI, and the "
    "diagnostics AX, which MNLI's model answers. The server wants all of them."
)


def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = _parser(command).parse(argv)
    models = parse_models(options.models)
    for task, place in models.items():
        check_finetuned(place, GLUE_TASKS[task], trust_remote_code=options.trust_remote_code)
    check_all_tasks(models, options.fill)
    answers = answer_all(models, options)
    path = decided_by_main_process(lambda: _written(options.output, answers))
    Console().print(overview(models))
    Console().print(f"{path} is whole, and ready for the server.", soft_wrap=True)


def _parser(command: str) -> PlainParser:
    parser = PlainParser(command, DESCRIPTION)
    parser.add_argument("--output", required=True, metavar="ZIP", help="submission.zip")
    parser.add_argument(
        "--models",
        required=True,
        nargs="+",
        metavar="TASK=DIR",
        help=f"the model of each task, a folder or Hub id; tasks are {', '.join(GLUE_TASKS)}",
    )
    parser.add_argument("--data_dir", help="folder with GLUE's test files; without it, the Hub's")
    parser.add_argument(
        "--fill",
        action="store_true",
        help="answer tasks without a model by one constant, which scores as badly as it sounds",
    )
    parser.add_argument(
        "--max_length",
        type=int,
        help="most tokens an example may have, of every model; default what its report says that "
        "it was trained with, or without one the task's",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="examples a batch")
    parser.add_argument("--use_cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--bf16", action="store_true", help="evaluate in bfloat16")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run Python code of the models"
    )
    return parser


def parse_models(pairs: Sequence[str]) -> dict[str, str]:
    """Models by task.

    >>> parse_models(["cola=out/cola", "sst2=me/small-sst2"])
    {'cola': 'out/cola', 'sst2': 'me/small-sst2'}
    """
    models: dict[str, str] = {}
    for pair in pairs:
        task, equals, place = pair.partition("=")
        if task not in GLUE_TASKS or not equals or not place or task in models:
            raise ValueError(
                f"Expected --models TASK=DIR, each task once, out of {', '.join(GLUE_TASKS)}; got "
                f"{pair!r}. It is not clear whose answers are meant."
            )
        models[task] = place
    return models


def check_all_tasks(models: dict[str, str], fill_others: bool) -> None:
    """Raise `ValueError` for a task without a model, unless it is to be filled."""
    missing = [task for task in GLUE_TASKS if task not in models]
    if missing and not fill_others:
        raise ValueError(
            f"Expected a model for each of GLUE's tasks, got none for {', '.join(missing)}. The "
            "server refuses a zip without all files. Name their models, or pass --fill to answer "
            "them by a constant, and do not read a meaning into their scores."
        )


def answer_all(models: dict[str, str], options: argparse.Namespace) -> dict[str, list[str]]:
    """The answers by file; all rows are there and counted before the first model is loaded."""
    rows = {
        name: load_glue_test(name, options.data_dir)
        for name in dict.fromkeys(file.task for task in models for file in files_of(task))
    }
    for file in SERVER_FILES:
        if file.task in rows:
            check_rows(file, rows[file.task][file.split])
    answers = {file.name: fill(file) for file in SERVER_FILES}
    for task in models:
        answers |= answer_task(task, models[task], rows, options)
    return answers


def answer_task(
    name: str, place: str, rows: dict[str, DatasetDict], options: argparse.Namespace
) -> dict[str, list[str]]:
    """What one model answers, by file."""
    task = GLUE_TASKS[name]
    model, tokenizer = load_finetuned(place, task, trust_remote_code=options.trust_remote_code)
    length = options.max_length
    if length is None:
        length = trained_length(place)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_eval_batch_size=options.batch_size,
            use_cpu=options.use_cpu,
            bf16_full_eval=options.bf16,
            dataloader_pin_memory=not options.use_cpu,
            report_to=[],
        )
        return {
            file.name: answer(
                file, rows[file.task][file.split], model, task, tokenizer, args, length
            )
            for file in files_of(name)
        }


def trained_length(place: str) -> int | None:
    """The most tokens of an example in a model's training, by the report beside it.

    Args:
        place: the model's folder or Hub id.

    Returns:
        The number; `None` where there is no report, or none that says it.

    Raises:
        ValueError: if what lies there is no report.
    """
    path = Path(place, REPORT_JSON)
    if not os.path.isdir(place):
        try:
            path = Path(hf_hub_download(place, REPORT_JSON))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # nobody could be asked
                logger.warning(
                    "Whether %s has a report is not known: its rows are cut at the task's length, "
                    "unless --max_length says at which it was trained.",
                    place,
                )
            return None
    if not path.is_file():
        return None
    try:
        length: int | None = CompressionReport.load(path.parent).run.get("max_length")
    except ValueError as error:
        raise ValueError(f"{error} Or say with --max_length how long its rows were.") from error
    return length


def overview(models: dict[str, str]) -> Table:
    """Which file was answered by what."""
    table = Table(title="GLUE submission")
    for column in ("file", "rows", "answered by"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for file in SERVER_FILES:
        table.add_row(file.name, str(file.rows), _source(file, models))
    return table


def _source(file: ServerFile, models: dict[str, str]) -> str:
    default = f"the constant {file.filler} (--fill)"
    return Path(models[file.model_task]).name if file.model_task in models else default


def _written(output: str, answers: dict[str, list[str]]) -> str:
    path = write_submission(output, answers)
    check_submission(path)
    return str(path)
