"""`kdnlp demo`: the whole job on a built-in task, in minutes, on a CPU, without the Hub."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from transformers import (
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    pipeline,
    set_seed,
)

from kdnlp.arguments import (
    CompressionTrainingArguments,
    DistillationTrainingArguments,
    TheseusTrainingArguments,
)
from kdnlp.cli.parsing import parse_arguments
from kdnlp.cli.shown_command import command_line
from kdnlp.cli.steps import print_report
from kdnlp.data.preparation import prepare
from kdnlp.data.synthetic import (
    COMPRESSION_BUDGET,
    DEMO_BUDGET,
    SYNTHETIC_TASKS,
    TrainingBudget,
    build_config,
    build_tokenizer,
    generate,
)
from kdnlp.data.task import Task
from kdnlp.evaluation.evaluate import evaluate_model
from kdnlp.evaluation.metrics import build_compute_metrics
from kdnlp.hub.publish import publish_results
from kdnlp.models.pretrained import head_config
from kdnlp.models.student import build_student, select_layers
from kdnlp.trainers.base import CompressionTrainer
from kdnlp.trainers.distillation import DistillationTrainer
from kdnlp.trainers.theseus import TheseusTrainer

TASK = "synthetic_sentiment"
EXAMPLE = "although the plot was not dull , nobody said that the ending was funny"


@dataclass(kw_only=True)
class DemoOptions:
    """What the demo lets you change."""

    group_title: ClassVar[str] = "demo"

    output_dir: str = field(
        default="demo-output", metadata={"help": "Where models and report go; overwritten."}
    )
    num_layers: int = field(default=2, metadata={"help": "Blocks of the small models, of 4."})
    seed: int = field(default=0, metadata={"help": "Of weights, batches and replacements."})
    max_steps: int = field(
        default=-1, metadata={"help": "Stop every training after that many steps, for a trial."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU that is there."})


def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    (options,) = parse_arguments(
        (DemoOptions,),
        argv,
        prog=f"kdnlp {command}",
        description="Train a small predecessor on a built-in task, compress it by BERT-of-Theseus "
        "and by distillation, fine-tune a model of the same size, and compare the four.",
    )
    console, folder = Console(), Path(options.output_dir)
    # A depth that cannot be is refused before anything is trained.
    select_layers(options.num_layers, build_config().num_hidden_layers, "first")
    set_seed(options.seed)
    task, tokenizer = SYNTHETIC_TASKS[TASK], build_tokenizer()
    splits = prepare(generate(task), task, tokenizer)
    inputs: dict[str, Any] = {
        "train_dataset": splits["train"],
        "eval_dataset": splits["validation"],
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
        "compute_metrics": build_compute_metrics(task),
    }
    predecessor = _train_predecessor(console, task, options, inputs)
    theseus, others = _compress(console, predecessor, options, inputs)
    models = {"predecessor": predecessor, "Theseus successor": theseus.student, **others}
    metrics = {
        name: evaluate_model(model, theseus.args, splits, task, tokenizer)
        for name, model in models.items()
    }
    origin = str(folder / "predecessor")
    shown = command_line(command, argv)
    report = publish_results(
        theseus, models, metrics, task, origin, max_seconds=20.0, command=shown
    )
    print_report(report, str(folder / "theseus"))
    classify = pipeline("text-classification", str(folder / "theseus"), device="cpu")
    console.print(f"The successor, loaded with plain transformers, reads “{EXAMPLE}” as:")
    console.print(classify(EXAMPLE))


def _train_predecessor(
    console: Console, task: Task, options: DemoOptions, inputs: dict[str, Any]
) -> PreTrainedModel:
    console.rule("1/4  the predecessor: 4 blocks, trained from scratch")
    config = build_config()
    config.update(head_config(task))
    args = CompressionTrainingArguments(**_settings("predecessor", DEMO_BUDGET, options))
    return _train(CompressionTrainer(BertForSequenceClassification(config), args, **inputs))


def _compress(
    console: Console, predecessor: PreTrainedModel, options: DemoOptions, inputs: dict[str, Any]
) -> tuple[TheseusTrainer, dict[str, PreTrainedModel]]:
    """The Theseus trainer, trained, and the student and the baseline beside it."""
    successor = build_student(predecessor, options.num_layers)
    student, initial = copy.deepcopy(successor), copy.deepcopy(successor)
    console.rule(f"2/4  BERT-of-Theseus: {options.num_layers} blocks replace 4")
    args = TheseusTrainingArguments(
        **_settings("theseus", COMPRESSION_BUDGET, options),
        initial_replacing_rate=0.5,
        unfreeze_after_replacement=True,
    )
    theseus = TheseusTrainer(successor, predecessor, args, **inputs)
    _train(theseus)
    console.rule("3/4  distillation: the same initial model learns the predecessor's answers")
    distill_args = DistillationTrainingArguments(
        **_settings("distilled", COMPRESSION_BUDGET, options)
    )
    distilled = _train(DistillationTrainer(student, predecessor, distill_args, **inputs))
    console.rule("4/4  the baseline: the same initial model, fine-tuned")
    baseline_args = args.for_baseline(str(Path(options.output_dir, "baseline")))
    baseline = _train(CompressionTrainer(initial, baseline_args, **inputs))
    return theseus, {"distilled student": distilled, "baseline": baseline}


def _train(trainer: CompressionTrainer) -> PreTrainedModel:
    trainer.train()
    trainer.save_model()
    return trainer.student


def _settings(name: str, budget: TrainingBudget, options: DemoOptions) -> dict[str, Any]:
    return {
        "output_dir": str(Path(options.output_dir, name)),
        "overwrite_output_dir": True,
        "per_device_train_batch_size": budget.batch_size,
        "per_device_eval_batch_size": 100,
        "learning_rate": budget.learning_rate,
        "num_train_epochs": budget.num_epochs,
        "warmup_steps": budget.warmup_ratio,
        "max_steps": options.max_steps,
        "logging_steps": 100,
        "save_strategy": "no",
        "report_to": "none",
        "seed": options.seed,
        "use_cpu": options.use_cpu,
        "dataloader_pin_memory": False,
    }
