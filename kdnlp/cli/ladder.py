"""`kdnlp ladder`: one teacher, students of several depths, and which of them to take."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import PreTrainedModel, set_seed

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.cli.compress import (
    check_report_length,
    describe_start,
    load_original,
    parse_init_layers,
)
from kdnlp.cli.loss_settings import resolve_losses
from kdnlp.cli.options import DataOptions, LadderOptions, LadderTrainingArguments
from kdnlp.cli.parsing import parse_arguments, without_config
from kdnlp.cli.rungs import Rung, begin_rung, find_rung, finish_rung, ladder_settings
from kdnlp.cli.shown_command import command_line
from kdnlp.cli.steps import (
    license_of,
    load_task,
    print_report,
    releases_output_dir,
    set_up_logging,
    take_output_dir,
    trainer_inputs,
)
from kdnlp.data.task import Task
from kdnlp.evaluation.evaluate import evaluate_model
from kdnlp.evaluation.kept import Evaluation
from kdnlp.evaluation.pareto import PARETO_PLOT, pareto_rows, save_pareto
from kdnlp.evaluation.report import CompressionReport, Metrics
from kdnlp.hub.publish import publish_results
from kdnlp.models.heads import task_kind
from kdnlp.models.layers import find_layers
from kdnlp.models.pretrained import in_model_order, load_finetuned
from kdnlp.models.student import build_student, select_layers
from kdnlp.trainers.distillation import DistillationTrainer
from kdnlp.uploads.license import License

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Distil one fine-tuned teacher into students of several depths. Its answers are written to "
    "disk once. OUTPUT_DIR then holds a folder a student, each as `kdnlp distill` leaves it, and a "
    "report over all with pareto.md and pareto.png. Started again, it goes on where it was killed "
    "and does no finished student twice."
)


_DATACLASSES = (LadderOptions, DataOptions, LadderTrainingArguments)


@releases_output_dir
def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options, data, args = parse_arguments(
        _DATACLASSES,
        argv,
        section="distill",
        prog=f"kdnlp {command}",
        description=DESCRIPTION,
    )
    set_up_logging(args)
    take_output_dir(args)
    license = license_of(args, options.license, options.teacher, options.revision)
    resolve_losses(options.losses)
    task, rows = load_task(data, args.seed)
    teacher, tokenizer = load_original(options, task)
    task = in_model_order(task, teacher.config)
    check_report_length(options.report_length, tokenizer, teacher)
    depths = parse_depths(options.num_layers, len(find_layers(teacher).layers))
    check_students(depths, teacher, options)
    splits, inputs = trainer_inputs(rows, task, tokenizer, data, args)
    settings = ladder_settings(options, data, args, teacher, splits)
    rungs = [find_rung(depth, args, settings) for depth in depths]
    # Else a slow process would find what a fast one has begun, and go another way.
    PartialState().wait_for_everyone()

    evaluated = partial(evaluate_model, splits=splits, task=task, tokenizer=tokenizer)
    original = evaluated(teacher, args)
    shown = command_line(command, without_config(_DATACLASSES, argv, "distill"))
    for rung in rungs:
        if rung.done:
            logger.info("The student of %d blocks is done already.", rung.depth)
            continue
        begin_rung(rung, settings)
        trainer = train_student(rung, teacher, options, inputs, license)
        metrics = {"teacher": original, "student": evaluated(trainer.student, rung.args)}
        publish_student(trainer, teacher, metrics, task, options, shown)
        finish_rung(rung, settings)
    if args.process_index == 0:
        report_all(teacher, original, rungs, task, options, args)


def parse_depths(text: str, available: int) -> list[int]:
    """Numbers of blocks, from text such as `6,4,3,2`.

    >>> parse_depths("3,2,3", 6)
    [3, 2]

    Raises:
        ValueError: if one is no number of blocks that the teacher has.
    """
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--num_layers must read like 6,4,3,2, got {text!r}.") from error
    if not depths or not all(1 <= depth <= available for depth in depths):
        raise ValueError(
            f"--num_layers must be numbers from 1 to {available}, the teacher's blocks, got "
            f"{text!r}. A student with more blocks than its teacher is no compression."
        )
    return list(dict.fromkeys(depths))


def check_students(depths: Sequence[int], teacher: PreTrainedModel, options: LadderOptions) -> None:
    """Raise `ValueError`, before the first student is trained, if one could not be."""
    stack, kind = find_layers(teacher), task_kind(teacher)
    for depth in depths:
        config = copy.deepcopy(teacher.config)
        setattr(config, stack.count_key, depth)
        try:
            select_layers(depth, len(stack.layers), parse_init_layers(options.init_layers))
            for loss in (resolve_losses(options.losses) or {}).values():
                loss.prepare(config, teacher.config, kind)
        except ValueError as error:
            raise ValueError(
                f"--num_layers {options.num_layers} has a student of {depth} blocks, which cannot "
                f"be made or trained: {error}"
            ) from error


def train_student(
    rung: Rung,
    teacher: PreTrainedModel,
    options: LadderOptions,
    inputs: dict[str, Any],
    license: License | None = None,
) -> DistillationTrainer:
    """Build, train and save one student, from where it was killed if it was."""
    logger.info("The student of %d blocks.", rung.depth)
    set_seed(rung.args.seed)
    init_layers = parse_init_layers(options.init_layers)
    student = build_student(teacher, rung.depth, init_layers).float()
    losses = resolve_losses(options.losses)
    trainer = DistillationTrainer(student, teacher, rung.args, losses, **inputs)
    trainer.license = license
    trainer.train(resume_from_checkpoint=rung.checkpoint)
    trainer.save_model()
    return trainer


def publish_student(
    trainer: DistillationTrainer,
    teacher: PreTrainedModel,
    metrics: Mapping[str, Metrics],
    task: Task,
    options: LadderOptions,
    command: str,
) -> None:
    """Write the report and the card of one student, and push it where the arguments say so."""
    publish_results(
        trainer,
        {"teacher": teacher, "student": trainer.student},
        metrics,
        task,
        base_model=options.teacher,
        sequence_length=options.report_length,
        max_seconds=options.report_seconds,
        command=command,
        **describe_start(options),
    )


def report_all(
    teacher: PreTrainedModel,
    original: Metrics,
    rungs: Sequence[Rung],
    task: Task,
    options: LadderOptions,
    args: DistillationTrainingArguments,
) -> None:
    """Measure all models side by side, whenever each was made."""
    trusted = options.trust_remote_code
    students = {
        rung.name: load_finetuned(rung.folder, task, trust_remote_code=trusted)[0] for rung in rungs
    }
    reports = {rung.name: CompressionReport.load(rung.folder) for rung in rungs}
    metrics = {
        name: Evaluation(report["student"].metrics, report.predictions.get("student"))
        for name, report in reports.items()
    }
    length = options.report_length or min(r.setting.sequence_length for r in reports.values())
    depths = ",".join(str(rung.depth) for rung in rungs)
    report = CompressionReport.measure(
        {"teacher": teacher, **students},
        {"teacher": original, **metrics},
        replace(task, max_length=length),
        max_seconds=options.report_seconds,
        run={**in_common([r.run for r in reports.values()]), "ladder": depths},
        device=args.device,
    )
    report.save(str(args.output_dir))
    save_pareto(report, str(args.output_dir))
    print_report(report, str(args.output_dir), "A folder a student, the report and the front")
    for cells in pareto_rows(report):
        Console().print(f"{cells[0]}: worth having {cells[-1]}")
    Console().print(f"The front is drawn in {Path(str(args.output_dir), PARETO_PLOT)}.")


def in_common(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts that all of several runs share.

    >>> in_common([{"seed": 1, "epochs": 3.0}, {"seed": 1, "epochs": 2.5}])
    {'seed': 1}
    """
    first, *others = runs
    return {k: v for k, v in first.items() if all(o.get(k) == v for o in others)}
