"""`kdnlp ladder`: one teacher, students of several depths, and which of them to take."""

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainingArguments, set_seed

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.cli.compress import check_report_length, parse_init_layers, resolve_losses
from kdnlp.cli.options import DataOptions, LadderOptions, LadderTrainingArguments
from kdnlp.cli.parsing import parse_arguments
from kdnlp.cli.steps import command_line, load_task, print_report, set_up_logging, trainer_inputs
from kdnlp.data.task import Task
from kdnlp.evaluation.evaluate import evaluate_model
from kdnlp.evaluation.pareto import PARETO_PLOT, pareto_rows, save_pareto
from kdnlp.evaluation.report import REPORT_JSON, CompressionReport, Metrics
from kdnlp.hub.publish import publish_results
from kdnlp.models.layers import find_layers
from kdnlp.models.pretrained import in_model_order, load_finetuned
from kdnlp.models.student import build_student
from kdnlp.trainers.distillation import DistillationTrainer

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Distil one fine-tuned teacher into students of several depths. Its answers are written to "
    "disk once. OUTPUT_DIR then holds a folder a student, each as `kdnlp distill` leaves it, and a "
    "report over all with pareto.md and pareto.png. Started again, it goes on where it was killed "
    "and does no finished student twice."
)

_NOT_TRAINING = ("output_dir", "resume_from_checkpoint", "overwrite_output_dir", "hub_token")


def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options, data, args = parse_arguments(
        (LadderOptions, DataOptions, LadderTrainingArguments),
        argv,
        section="distill",
        prog=f"kdnlp {command}",
        description=DESCRIPTION,
    )
    set_up_logging(args)
    resolve_losses(options.losses)
    task, rows = load_task(data, args.seed)
    dtype = getattr(torch, options.teacher_dtype)
    teacher, tokenizer = load_finetuned(
        options.teacher, task, revision=options.revision, dtype=dtype
    )
    task = in_model_order(task, teacher.config)
    check_report_length(options.report_length, tokenizer, teacher)
    depths = parse_depths(options.num_layers, len(find_layers(teacher).layers))
    settings = _settings(options, data, args)
    done = {depth: finished_report(_folder(args, depth), settings, args) for depth in depths}
    splits, inputs = trainer_inputs(rows, task, tokenizer, data, args)

    metrics: dict[str, Metrics] = {
        "teacher": evaluate_model(teacher, args, splits, task, tokenizer)
    }
    for depth in depths:
        name, report = f"{depth} layers", done[depth]
        if report is not None:
            logger.info("The student of %d blocks is done already.", depth)
            metrics[name] = report["student"].metrics
            continue
        logger.info("The student of %d blocks.", depth)
        rung = _rung_arguments(args, depth)
        set_seed(rung.seed)
        student = build_student(teacher, depth, parse_init_layers(options.init_layers)).float()
        losses = resolve_losses(options.losses)
        trainer = DistillationTrainer(student, teacher, rung, losses, **inputs)
        trainer.train(resume_from_checkpoint=rung.checkpoint_to_resume())
        trainer.save_model()
        metrics[name] = evaluate_model(student, rung, splits, task, tokenizer)
        publish_results(
            trainer,
            {"teacher": teacher, "student": student},
            {"teacher": metrics["teacher"], "student": metrics[name]},
            task,
            base_model=options.teacher,
            sequence_length=options.report_length,
            max_seconds=options.report_seconds,
            command=command_line(command, argv),
            ladder=settings,
        )
    if args.should_save:
        _report(options, task, args, depths, metrics)


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


def finished_report(
    folder: Path, settings: dict[str, Any], args: DistillationTrainingArguments
) -> CompressionReport | None:
    """The report of a student that is done; `None` if it is not.

    Raises:
        ValueError: if the folder holds a student that was made otherwise.
    """
    if args.overwrite_output_dir or not (folder / REPORT_JSON).is_file():
        return None
    report = CompressionReport.load(folder)
    before = report.run.get("ladder")
    if before != settings:
        changed = sorted(k for k in settings if (before or {}).get(k) != settings[k])
        raise ValueError(
            f"{folder} holds a student that was made with other settings ({', '.join(changed)}). "
            "One report over both would compare what cannot be compared. Choose another "
            "--output_dir, or pass --overwrite_output_dir to make all students anew."
        )
    return report


def _settings(
    options: LadderOptions, data: DataOptions, args: DistillationTrainingArguments
) -> dict[str, Any]:
    """Everything that decides what a student learns, as plain values."""
    own = {f.name for f in fields(DistillationTrainingArguments)}
    stock = {f.name for f in fields(TrainingArguments)}
    kept = [*sorted(own - stock), "learning_rate", "num_train_epochs", "max_steps", "seed"]
    kept += ["per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay"]
    kept += ["lr_scheduler_type", "warmup_steps", "bf16", "fp16"]
    values = {name: getattr(args, name) for name in kept if name not in _NOT_TRAINING}
    values["teacher_dtype"] = options.teacher_dtype
    values |= {**asdict(data), "losses": options.losses, "init_layers": options.init_layers}
    values["teacher"] = Path(options.teacher).name
    plain = json.dumps({k: getattr(v, "value", v) for k, v in values.items()}, default=str)
    return dict(json.loads(plain))


def _folder(args: DistillationTrainingArguments, depth: int) -> Path:
    return Path(str(args.output_dir), f"{depth}-layers")


def _rung_arguments(
    args: DistillationTrainingArguments, depth: int
) -> DistillationTrainingArguments:
    """The arguments for one student: its own folder and Hub name, resumed where it was killed."""
    rung = copy.deepcopy(args)
    rung.output_dir = str(_folder(args, depth))
    rung.hub_token = args.hub_token
    rung.resume_from_checkpoint = None if args.overwrite_output_dir else "last"
    if args.push_to_hub:
        name = args.hub_model_id or Path(str(args.output_dir)).name
        rung.hub_model_id = f"{name}-{depth}-layers"
    return rung


def _report(
    options: LadderOptions,
    task: Task,
    args: DistillationTrainingArguments,
    depths: list[int],
    metrics: dict[str, Metrics],
) -> None:
    """Measure all models side by side, whenever each was made."""
    sources = {"teacher": options.teacher}
    sources |= {f"{depth} layers": str(_folder(args, depth)) for depth in depths}
    models = {name: load_finetuned(source, task)[0] for name, source in sources.items()}
    limits = [CompressionReport.load(_folder(args, depth)).setting for depth in depths]
    length = options.report_length or min(setting.sequence_length for setting in limits)
    report = CompressionReport.measure(
        models,
        metrics,
        replace(task, max_length=length),
        max_seconds=options.report_seconds,
        run={"method": "distillation", "seed": args.seed, "ladder": _depths_text(depths)},
    )
    report.save(str(args.output_dir))
    save_pareto(report, str(args.output_dir))
    print_report(report, str(args.output_dir))
    for cells in pareto_rows(report):
        Console().print(f"{cells[0]}: worth having {cells[-1]}")
    Console().print(f"The front is drawn in {Path(str(args.output_dir), PARETO_PLOT)}.")


def _depths_text(depths: list[int]) -> str:
    return ",".join(map(str, depths))
