"""One cell of the grid: load, train, evaluate; what came out as plain values."""

import hashlib
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, set_seed

import kdnlp
from benchmarks.glue.grid import Cell
from kdnlp import (
    GLUE_TASKS,
    LOSSES,
    CompressionTrainer,
    CompressionTrainingArguments,
    DistillationTrainer,
    DistillationTrainingArguments,
    TeacherEnsemble,
    TheseusTrainer,
    TheseusTrainingArguments,
    augment_tokens,
    build_collator,
    build_compute_metrics,
    build_student,
    evaluate_model,
    find_layers,
    in_model_order,
    load_finetuned,
    load_for_finetuning,
    prepare,
)
from kdnlp.data.glue import load_glue_raw
from kdnlp.data.task import Task

HOLDOUT = "holdout"
SPLIT_SEED = 0

_TRAINERS = {
    "plain": (CompressionTrainer, CompressionTrainingArguments),
    "distillation": (DistillationTrainer, DistillationTrainingArguments),
    "theseus": (TheseusTrainer, TheseusTrainingArguments),
}


@dataclass(frozen=True)
class Place:
    """Where cells find what they need, and what they run on.

    Attributes:
        data_dir: a folder of GLUE; `None` for the Hub's.
        model: a folder or Hub id of the pretrained encoder, in the place of the grid's.
        work: a folder for teachers' weights and cached outputs, which are not results.
        device: `cpu` or `cuda`.
        bf16: train under autocast.
        threads: of torch, on a CPU.
    """

    data_dir: str | None
    model: str | None
    work: Path
    device: str = "cpu"
    bf16: bool = False
    threads: int = 1

    @property
    def setting(self) -> str:
        """The name that keeps results of another device or precision apart."""
        return f"{self.device}-{'bfloat16' if self.bf16 else 'float32'}"


def teacher_folder(place: Place, cell: Cell) -> Path:
    """Where the weights of a teacher's cell are."""
    return place.work / place.setting / "teachers" / cell.path.with_suffix("")


def run_cell(cell: Cell, place: Place, teachers: Sequence[Cell]) -> dict[str, Any]:
    """Train and evaluate one cell.

    Args:
        cell: what is trained.
        place: data, folders and device.
        teachers: the chosen teacher's cell, then those of the others, whose weights are there;
            none for a teacher.

    Returns:
        The cell, scores on hold-out and validation, steps, seconds, versions and machine.
    """
    started = time.perf_counter()
    torch.set_num_threads(place.threads)
    set_seed(cell.seed)
    place.work.mkdir(parents=True, exist_ok=True)
    task = replace(GLUE_TASKS[cell.task], eval_splits=(HOLDOUT, "validation"))
    if teachers:
        folders = [str(teacher_folder(place, teacher)) for teacher in teachers]
        original, tokenizer = load_finetuned(folders[0], task)
        task = in_model_order(task, original.config)
        model = build_student(original, cell.blocks, cell.settings["init_layers"])
    else:
        original, tokenizer = load_for_finetuning(place.model or cell.settings["model"], task)
        model = original
    splits = prepare(split_rows(task, place, cell.settings["holdout"]), task, tokenizer)
    copies = cell.settings.get("copies")
    if copies:
        splits[task.train_split] = augment_tokens(splits[task.train_split], copies, tokenizer)
    partner: Any = original
    if cell.settings.get("ensemble"):
        partner = TeacherEnsemble([load_finetuned(folder, task)[0] for folder in folders]).eval()
    trained = _run_stages(cell, place, model, partner, original, splits, task, tokenizer)
    scores = evaluate_model(trained.model, trained.args, splits, task, tokenizer)
    if not teachers:
        trained.trainer.save_model(str(teacher_folder(place, cell)))
    teacher = teachers[0] if teachers else cell
    return {
        **cell.described(),
        "teacher": {
            "sha256": weights_sha256(teacher_folder(place, teacher)),
            "learning_rate": teacher.learning_rate,
        },
        HOLDOUT: scores[HOLDOUT],
        "validation": scores["validation"],
        "optimizer_steps": trained.steps,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": describe_machine(place),
        "versions": {
            "kdnlp": kdnlp.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


@dataclass(frozen=True)
class _Trained:
    """What the last stage left, and the steps of all."""

    trainer: CompressionTrainer
    model: PreTrainedModel
    args: CompressionTrainingArguments
    steps: int


def _run_stages(
    cell: Cell,
    place: Place,
    model: PreTrainedModel,
    partner: Any,
    original: PreTrainedModel,
    splits: DatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
) -> _Trained:
    """Train stage after stage; one that restarts has the trained student as its teacher."""
    _freeze_others(model, cell.settings.get("trained_blocks"))
    steps = 0
    with tempfile.TemporaryDirectory(dir=place.work) as folder:
        for number, stage in enumerate(cell.settings["stages"]):
            if stage.get("restart"):
                partner = model
                model = build_student(original, cell.blocks, cell.settings["init_layers"])
            args = _arguments(stage, cell, place, f"{folder}/{number}")
            trainer = _trainer(stage, model, partner, args, splits, task, tokenizer)
            trainer.train()
            model, steps = trainer.student, steps + trainer.state.global_step
    return _Trained(trainer, model, args, steps)


def _freeze_others(model: PreTrainedModel, trained_blocks: list[int] | None) -> None:
    """Leave the other blocks as they are: only some of the predecessor's are being replaced."""
    if trained_blocks is not None:
        for number, block in enumerate(find_layers(model).layers):
            block.requires_grad_(number in trained_blocks)


def split_rows(task: Task, place: Place, share: float) -> DatasetDict:
    """GLUE's rows, with a hold-out taken from the train split, the same in every cell."""
    rows = load_glue_raw(task.name, place.data_dir)
    column = None if task.label_names is None else task.label_columns[0]
    parts = rows[task.train_split].train_test_split(
        share, seed=SPLIT_SEED, stratify_by_column=column
    )
    return DatasetDict(
        {task.train_split: parts["train"], HOLDOUT: parts["test"], "validation": rows["validation"]}
    )


def _arguments(
    stage: dict[str, Any], cell: Cell, place: Place, folder: str
) -> CompressionTrainingArguments:
    values = {
        "num_train_epochs": stage["epochs"],
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "bf16": place.bf16,
        "use_cpu": place.device == "cpu",
        "save_strategy": "no",
        "logging_steps": 50,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        **stage["arguments"],
    }
    if stage["trainer"] == "distillation":
        cache = str(place.work / place.setting / "cache")
        values |= {"cache_teacher_outputs": True, "teacher_cache_dir": cache}
    return _TRAINERS[stage["trainer"]][1](folder, **values)


def _trainer(
    stage: dict[str, Any],
    model: PreTrainedModel,
    partner: Any,
    args: CompressionTrainingArguments,
    splits: DatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
) -> CompressionTrainer:
    inputs: dict[str, Any] = {
        "train_dataset": splits[task.train_split],
        "eval_dataset": splits[HOLDOUT],
        "processing_class": tokenizer,
        "data_collator": build_collator(task, tokenizer),
        "compute_metrics": build_compute_metrics(task),
    }
    losses = {n: LOSSES[n](**own) for n, own in (stage["losses"] or {}).items()}
    build = _TRAINERS[stage["trainer"]][0]
    if stage["trainer"] == "plain":
        trainer = build(model, args, **inputs)
    else:
        trainer = build(model, partner, args, losses=losses or None, **inputs)
    trainer.remove_callback(PrinterCallback)  # several cells would print at a time
    return trainer


def weights_sha256(folder: Path) -> str:
    """The start of the checksum of a model's weights, which tells two trainings apart."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def describe_machine(place: Place) -> dict[str, Any]:
    """What the figures of a place were measured on."""
    if place.device == "cuda":
        return {"device": torch.cuda.get_device_name(), "precision": place.setting}
    processor = platform.processor() or platform.machine()
    with suppress(FileNotFoundError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"device": f"{processor} ({instructions})", "threads": place.threads}
