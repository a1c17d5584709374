"""`kdnlp theseus` and `kdnlp distill`: from a fine-tuned model to a smaller one and its report."""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from kdnlp.arguments import (
    CompressionTrainingArguments,
    DistillationTrainingArguments,
    TheseusTrainingArguments,
)
from kdnlp.arguments.paths import check_below
from kdnlp.cli.loss_settings import resolve_losses
from kdnlp.cli.options import (
    CompressionOptions,
    DataOptions,
    DistillOptions,
    SmallerOptions,
    TheseusOptions,
)
from kdnlp.cli.parsing import parse_arguments, without_config
from kdnlp.cli.shown_command import command_line
from kdnlp.cli.steps import (
    license_of,
    load_task,
    print_report,
    releases_output_dir,
    start,
    trainer_inputs,
)
from kdnlp.data.task import Task
from kdnlp.evaluation.evaluate import evaluate_model
from kdnlp.evaluation.report import Metrics
from kdnlp.evaluation.run import hub_source
from kdnlp.hub.origin import describe_origin, model_name
from kdnlp.hub.publish import publish_results
from kdnlp.models.ensemble import TeacherEnsemble
from kdnlp.models.layers import find_layers
from kdnlp.models.pretrained import in_model_order, load_finetuned, load_for_finetuning
from kdnlp.models.student import InitLayers, build_student
from kdnlp.profiling.forward import max_positions
from kdnlp.trainers.base import CompressionTrainer
from kdnlp.trainers.distillation import DistillationTrainer
from kdnlp.trainers.output_dir import decided_by_main_process, remove_checkpoints
from kdnlp.trainers.theseus import TheseusTrainer

logger = logging.getLogger(__name__)

BASELINE_FOLDER = "_baseline"
"""Below output_dir; a name that starts with an underscore is left out of what goes to the Hub."""

_DATACLASSES = {
    "theseus": (TheseusOptions, DataOptions, TheseusTrainingArguments),
    "distill": (DistillOptions, DataOptions, DistillationTrainingArguments),
}
_TRAINERS: dict[str, type[DistillationTrainer] | type[TheseusTrainer]] = {
    "theseus": TheseusTrainer,
    "distill": DistillationTrainer,
}
_NAMES = {
    TheseusTrainer.method: ("predecessor", "successor"),
    DistillationTrainer.method: ("teacher", "student"),
}
"""What a report calls the original and the smaller model, by the trainer's method."""

_DESCRIPTIONS = {
    "theseus": "Compress a fine-tuned model by BERT-of-Theseus (Xu et al. 2020): the blocks of a "
    "smaller successor take the places of the predecessor's while it runs.",
    "distill": "Compress a fine-tuned model by distillation (Hinton et al. 2015): a smaller "
    "student learns the labels and the teacher's soft answers.",
}
_OUTPUT = (
    " OUTPUT_DIR then holds a plain transformers model and tokenizer, a model card, and the report "
    "as report.md, report.html, report.json and plots."
)


@releases_output_dir
def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options, data, args = parse_arguments(
        _DATACLASSES[command],
        argv,
        section=command,
        prog=f"kdnlp {command}",
        description=_DESCRIPTIONS[command] + _OUTPUT,
    )
    checkpoint = start(args)
    own = getattr(options, "student", None)
    start_of = (source_of(options), options.revision) if own is None else (own, None)
    license = license_of(args, options.license, *start_of)
    baseline_folder(args)
    losses = resolve_losses(options.losses)
    set_seed(args.seed)
    task, rows = load_task(data, args.seed)
    original, tokenizer = load_original(options, task)
    task = in_model_order(task, original.config)
    check_report_length(options.report_length, tokenizer, original)
    smaller = build_smaller(options, original, task, tokenizer)
    partner = join_teachers(options, original, task, tokenizer)
    splits, inputs = trainer_inputs(rows, task, tokenizer, data, args)
    initial = copy.deepcopy(smaller) if options.baseline else None
    trainer = _TRAINERS[command](smaller, partner, args, losses, **inputs)
    trainer.license = license
    evaluated = partial(evaluate_model, args=args, splits=splits, task=task, tokenizer=tokenizer)
    models, metrics, facts = train_models(trainer, original, initial, inputs, checkpoint, evaluated)
    report = publish_results(
        trainer,
        models,
        metrics,
        task,
        base_model=source_of(options),
        student=own,
        sequence_length=options.report_length,
        max_seconds=options.report_seconds,
        command=command_line(command, without_config(_DATACLASSES[command], argv, command)),
        **describe_start(options),
        **facts,
    )
    print_report(report, str(args.output_dir))


def describe_start(options: SmallerOptions) -> dict[str, Any]:
    """What a model learned from and started from, beside the original itself, as plain values."""
    facts: dict[str, Any] = {}
    if hasattr(options, "teacher_dtype"):
        facts["teacher_dtype"] = options.teacher_dtype
    others = getattr(options, "more_teachers", None)
    if others:
        facts["more_teachers"] = [model_name(path) for path in others]
        # Their folders have other names for every seed.
        facts["teachers"] = [hub_source(describe_origin(path)) or "not told" for path in others]
    if getattr(options, "student", None) is None:
        facts["init_layers"] = parse_init_layers(options.init_layers)
    return facts


def source_of(options: SmallerOptions) -> str:
    """Folder or Hub id of the model that is compressed."""
    return str(getattr(options, "predecessor", None) or getattr(options, "teacher", None))


def load_original(
    options: SmallerOptions, task: Task
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that is compressed, in the type of weights that was asked for."""
    dtype = getattr(torch, getattr(options, "teacher_dtype", "float32"))
    return load_finetuned(
        source_of(options),
        task,
        revision=options.revision,
        dtype=dtype,
        trust_remote_code=options.trust_remote_code,
    )


def train_models(
    trainer: CompressionTrainer,
    original: PreTrainedModel,
    initial: PreTrainedModel | None,
    inputs: dict[str, Any],
    checkpoint: str | None,
    evaluated: Callable[[PreTrainedModel], Metrics],
) -> tuple[dict[str, PreTrainedModel], dict[str, Metrics], dict[str, Any]]:
    """Train the smaller model and its baseline, and evaluate them and the original.

    Returns:
        The models and their metrics by name, the original first; and the metrics of several
        teachers together, where the original is not the only one.
    """
    first, second = _NAMES[trainer.method]
    models, metrics = {first: original}, {first: evaluated(original)}
    logger.info("The %s scores %s.", first, metrics[first])
    partner: Any = trainer.partner
    facts: dict[str, Any] = {}
    if isinstance(partner, TeacherEnsemble):
        facts["ensemble_metrics"] = evaluated(partner)  # type: ignore[arg-type]
    if checkpoint is None:
        # A baseline of an earlier run would be taken for this one's when this one is resumed.
        earlier = str(baseline_folder(trainer.args))
        decided_by_main_process(lambda: remove_checkpoints(earlier))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    models[second], metrics[second] = trainer.student, evaluated(trainer.student)
    if initial is not None:
        resumed = checkpoint is not None
        models["baseline"] = finetune_baseline(initial, trainer.args, inputs, resumed)
        metrics["baseline"] = evaluated(models["baseline"])
    return models, metrics, facts


def join_teachers(
    options: CompressionOptions, first: PreTrainedModel, task: Task, tokenizer: Any
) -> PreTrainedModel:
    """The first teacher alone, or with others as one; its label order is theirs together.

    Raises:
        ValueError: if another one has other labels or another vocabulary.
    """
    others = getattr(options, "more_teachers", None)
    if not others:
        return first
    members = [first]
    for path in others:
        member, own_tokenizer = load_finetuned(
            path, task, dtype=first.dtype, trust_remote_code=options.trust_remote_code
        )
        check_same_tokens(tokenizer, own_tokenizer, "--more_teachers", path)
        members.append(member)
    return TeacherEnsemble(members).eval()  # type: ignore[return-value]


def build_smaller(
    options: CompressionOptions,
    original: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel:
    """The student or successor before training: the original's blocks, or a model of its own."""
    student = getattr(options, "student", None)
    if student is not None:
        trusted = options.trust_remote_code
        model, own_tokenizer = load_for_finetuning(student, task, trust_remote_code=trusted)
        check_same_tokens(tokenizer, own_tokenizer, "--student", student)
        return model
    num_layers = options.num_layers
    init_layers = parse_init_layers(options.init_layers)
    if num_layers is None and isinstance(init_layers, str):
        num_layers = max(1, len(find_layers(original).layers) // 2)
    # A student trains in float32 whatever its teacher is: half precision loses small updates.
    return build_student(original, num_layers, init_layers).float()


def check_same_tokens(
    teacher: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, flag: str, name: str
) -> None:
    """Raise `ValueError` if the two tokenizers number their tokens differently."""
    if teacher.get_vocab() != other.get_vocab():
        raise ValueError(
            f"{flag} {name} must have the teacher's vocabulary, got another one. The same ids "
            "would be other words to one of them. Choose a model of the teacher's family, or leave "
            f"{flag} out; recipes/other_teacher.py shows how to use a teacher with another one."
        )


def check_report_length(
    length: int | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    """Raise `ValueError`, before any training, if the report is to measure what cannot be read."""
    most = min(tokenizer.model_max_length, max_positions(model) or tokenizer.model_max_length)
    if length is not None and not 0 < length <= most:
        raise ValueError(
            f"--report_length must lie in 1..{most}, what tokenizer and model allow, got {length}. "
            "The report after training would fail; choose such a length."
        )


def parse_init_layers(value: str) -> InitLayers:
    """A name such as `spaced`, or indices such as `0,2,4`.

    >>> parse_init_layers("0,2,4")
    [0, 2, 4]
    """
    if not any(character.isdigit() for character in value):
        return value  # type: ignore[return-value]
    try:
        return [int(index) for index in value.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--init_layers must be first, last, spaced, or indices such as 0,2,4, got {value!r}."
        ) from error


def finetune_baseline(
    initial: PreTrainedModel,
    args: CompressionTrainingArguments,
    inputs: dict[str, Any],
    resumed: bool,
) -> PreTrainedModel:
    """Fine-tune the initial model with the run's budget, in a folder below the run's.

    It goes on from its own newest checkpoint if the run itself was resumed.
    """
    own = args.for_baseline(str(baseline_folder(args)))
    own.resume_from_checkpoint = args.newest_checkpoint_wish() if resumed else None
    trainer = CompressionTrainer(initial, own, **inputs)
    logger.info("Fine-tuning the baseline: the same initial model with the same budget.")
    trainer.train(resume_from_checkpoint=own.resume_from_checkpoint)
    trainer.save_model()
    return trainer.student


def baseline_folder(args: CompressionTrainingArguments) -> Path:
    """Where the baseline goes.

    Raises:
        ValueError: if a link there leads out of the run's folder: what is in it is overwritten.
    """
    folder = Path(str(args.output_dir), BASELINE_FOLDER)
    check_below(str(args.output_dir), folder, "The baseline's folder")
    return folder
