"""What every training command does before and after it trains."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from typing import Any

from datasets import DatasetDict
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from kdnlp.arguments import CompressionTrainingArguments
from kdnlp.cli.options import DataOptions
from kdnlp.cli.remains import remains_told
from kdnlp.data.glue import GLUE_TASKS, load_glue_raw
from kdnlp.data.preparation import build_collator, prepare
from kdnlp.data.synthetic import SYNTHETIC_TASKS, generate
from kdnlp.data.tables import infer_task, read_tables
from kdnlp.data.task import Task
from kdnlp.evaluation.metrics import build_compute_metrics
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.tables import report_table
from kdnlp.trainers.output_dir import (
    check_other_files,
    check_output_dir,
    decided_by_main_process,
    output_dir_held,
)
from kdnlp.uploads.license import NO_LICENSE, License, as_license, find_license

_held = ExitStack()
"""What the command that runs has taken."""


def start(args: CompressionTrainingArguments) -> str | None:
    """Set up logging, take the run's folder, and find where to resume.

    Returns:
        The checkpoint to resume from, or `None` to start from the beginning.

    Raises:
        ValueError: if the folder holds another run or files that this one would replace, another
            process uses it, or the checkpoint is damaged.
        OSError: if nothing can be written to the folder.
    """
    set_up_logging(args)
    take_output_dir(args)
    checkpoint = args.checkpoint_to_resume()
    if checkpoint is None and not args.overwrite_output_dir:
        check_output_dir(str(args.output_dir))
        decided_by_main_process(lambda: check_other_files(str(args.output_dir)))
    return checkpoint


def license_of(
    args: CompressionTrainingArguments, asked: str | None, place: str, revision: str | None
) -> License | None:
    """The licence that the trained model gets, before it is trained.

    Args:
        args: says whether the model is published.
        asked: what `--license` names, which comes first.
        place: folder or Hub id of the model that it is made from, whose licence it has else.
        revision: of the latter.

    Returns:
        `None` where it is looked for after training, or not known.

    Raises:
        ValueError: if the model is published, and its licence is not known.
    """
    if asked is not None or not args.push_to_hub:
        return None if asked is None else as_license(asked)
    found = decided_by_main_process(lambda: find_license(place, revision))
    if found is None:
        raise ValueError(f"--push_to_hub needs a licence for the model, found none: {NO_LICENSE}")
    return found


def take_output_dir(args: CompressionTrainingArguments) -> None:
    """Hold the run's folder until the command ends, or refuse it before anything is loaded."""
    decided_by_main_process(lambda: _held.enter_context(output_dir_held(str(args.output_dir))))
    _held.enter_context(remains_told(args))


def releases_output_dir(
    main: Callable[[str, Sequence[str]], None],
) -> Callable[[str, Sequence[str]], None]:
    """A command that lets go of the folder that it took, however it ends."""

    @wraps(main)
    def command(name: str, argv: Sequence[str]) -> None:
        with _held:
            main(name, argv)

    return command


def set_up_logging(args: CompressionTrainingArguments) -> None:
    """Let what kdnlp says appear on the main process, or at the level that was asked for."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    level = args.get_process_log_level()
    if args.log_level == "passive" and args.should_log:
        level = logging.INFO
    logging.getLogger("kdnlp").setLevel(level)


def load_task(options: DataOptions, seed: int) -> tuple[Task, DatasetDict]:
    """The task that the flags name, and its rows as text.

    Raises:
        ValueError: if the flags name no task, an unknown one, or files without text columns.
    """
    if options.validation_file is not None and options.train_file is None:
        raise ValueError(
            f"--validation_file {options.validation_file} needs --train_file, got none. It would "
            "be ignored; name the file with the training rows too."
        )
    if options.train_file is not None:
        if options.task in (*GLUE_TASKS, *SYNTHETIC_TASKS):
            raise ValueError(
                f"--train_file is your own data, got --task {options.task} beside it. Report and "
                "card would call it GLUE's or the built-in task's; give it a name of its own, or "
                "leave one of the two out (a --config file may name a task too)."
            )
        if not options.text_columns:
            raise ValueError(
                "--train_file needs --text_columns, got none. Name the column with the text or "
                "the words, or the two with the pair, or with question and context."
            )
        # Split alike in every run: a predecessor must not have trained on validation rows.
        rows = read_tables(options.train_file, options.validation_file)
        name = options.task or "own-data"
        task = infer_task(rows, options.text_columns, options.label_column, name)
    elif options.task in SYNTHETIC_TASKS:
        task, rows = SYNTHETIC_TASKS[options.task], generate(options.task)
    elif options.task in GLUE_TASKS:
        task, rows = GLUE_TASKS[options.task], load_glue_raw(options.task, options.data_dir)
    else:
        raise ValueError(
            f"Expected --task to be one of {', '.join([*GLUE_TASKS, *SYNTHETIC_TASKS])}, or your "
            f"own data with --train_file and --text_columns; got --task {options.task}."
        )
    count = options.max_train_samples
    if count is not None and count < len(rows[task.train_split]):
        rows[task.train_split] = rows[task.train_split].shuffle(seed).select(range(count))
    return replace(task, max_length=options.max_length or task.max_length), rows


def trainer_inputs(
    rows: DatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
    args: CompressionTrainingArguments,
) -> tuple[DatasetDict, dict[str, Any]]:
    """The tokenised splits, and what every trainer of the run is given.

    Raises:
        ValueError: if the checkpoint is to be chosen by what no evaluation measures.
    """
    best, known = args.metric_for_best_model, [*task.metrics, "score", "loss"]
    if best is not None and best.removeprefix("eval_") not in known:
        raise ValueError(
            f"Expected --metric_for_best_model to be one of {', '.join(known)}, got {best}. The "
            f"run would end at its first evaluation, which measures no such thing on {task.name}."
        )
    with args.main_process_first(desc="tokenising"):
        splits = prepare(rows, task, tokenizer, options.max_length)
    measured = splits[task.eval_splits[0]]
    return splits, {
        "train_dataset": splits[task.train_split],
        "eval_dataset": measured,
        "processing_class": tokenizer,
        "data_collator": build_collator(task, tokenizer),
        "compute_metrics": build_compute_metrics(task, measured),
    }


def print_report(
    report: CompressionReport | None,
    folder: str,
    contents: str = "Model, tokenizer, report and card",
) -> None:
    """Print the report on the process that has it, and what lies where."""
    if report is not None:
        Console().print(report_table(report))
        Console().print(f"{contents} are in {folder}.")
