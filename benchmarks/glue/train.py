"""One cell of the grid: load, train, evaluate; what came out as plain values."""

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, set_seed

import kdnlp
from benchmarks.glue.grid import PLAIN, TRAINERS, Cell
from kdnlp import (
    GLUE_TASKS,
    LOSSES,
    CompressionTrainer,
    CompressionTrainingArguments,
    TeacherEnsemble,
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
from kdnlp.files import replace_folder
from kdnlp.profiling.setting import processor_name
from kdnlp.weights import folder_digest, weights_digest

HOLDOUT = "holdout"
SPLIT_SEED = 0

PARTIAL = "cell-"
"""How the folders begin that a cell has while it runs."""


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
    told = cell.described()
    folders = [teacher_folder(place, teacher) for teacher in teachers]
    if teachers:
        original, tokenizer = load_finetuned(str(folders[0]), task)
        task = in_model_order(task, original.config)
        model = build_student(original, cell.blocks, cell.settings["init_layers"])
    else:
        original, tokenizer = load_for_finetuning(place.model or cell.settings["model"], task)
        model = original
        told["encoder"] = weights_digest(original.base_model.parameters())
    rows = split_rows(task, place, cell.settings["holdout"])
    data = _Data(task, tokenizer, prepare(rows, task, tokenizer))
    copies = cell.settings.get("copies")
    if copies:
        train = data.splits[task.train_split]
        data.splits[task.train_split] = augment_tokens(train, copies, tokenizer)
    partner: Any = original
    if cell.settings.get("ensemble"):
        members = [load_finetuned(str(folder), task)[0] for folder in folders]
        partner = TeacherEnsemble(members).eval()
    trainer, steps = _run_stages(cell, place, model, partner, original, data)
    scores = evaluate_model(trainer.student, trainer.args, data.splits, task, tokenizer)
    if not teachers:
        folders = [teacher_folder(place, cell)]
        _save_whole(trainer, folders[0], place)
    return {
        **told,
        "teachers": [folder_digest(folder) for folder in folders],
        "rows": _rows_digest(rows),
        HOLDOUT: scores[HOLDOUT],
        "validation": scores["validation"],
        "predicted": _as_text(scores.predictions["validation"].predicted),
        "optimizer_steps": steps,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": describe_machine(place),
        "versions": _versions(),
    }


@dataclass(frozen=True)
class _Data:
    """A task, what reads its texts, and its rows as tokens."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    splits: DatasetDict


def _run_stages(
    cell: Cell, place: Place, model: Any, partner: Any, original: Any, data: _Data
) -> tuple[CompressionTrainer, int]:
    """Train stage after stage; one that restarts has the trained student as its teacher.

    Returns:
        The last stage's trainer, and the optimizer steps of all.
    """
    steps = 0
    _freeze_others(model, cell.settings.get("trained_blocks"))
    with tempfile.TemporaryDirectory(dir=place.work, prefix=PARTIAL) as folder:
        for number, stage in enumerate(cell.settings["stages"]):
            if stage.get("restart"):
                partner = model
                model = build_student(original, cell.blocks, cell.settings["init_layers"])
                _freeze_others(model, cell.settings.get("trained_blocks"))
            args = _arguments(stage, cell, place, f"{folder}/{number}")
            trainer = _trainer(stage, model, partner, args, data)
            trainer.train()
            model, steps = trainer.student, steps + trainer.state.global_step
    return trainer, steps


def _save_whole(trainer: CompressionTrainer, folder: Path, place: Place) -> None:
    """Write a teacher so that it appears under its name with all its files."""
    with tempfile.TemporaryDirectory(dir=place.work, prefix=PARTIAL) as partial:
        trainer.save_model(f"{partial}/model")
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(Path(partial, "model"), folder)


def _rows_digest(rows: DatasetDict) -> str:
    """The start of a checksum of all texts and labels, split by split."""
    text = json.dumps({name: split.to_dict() for name, split in rows.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_text(predicted: Any) -> str:
    """What a model answered, row by row: classes by number, or numbers to four digits."""
    return " ".join(f"{answer:.4g}" for answer in predicted)


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
    if stage["trainer"] == "distillation" or stage["losses"]:
        cache = str(place.work / place.setting / "cache")
        values |= {"cache_teacher_outputs": True, "teacher_cache_dir": cache}
    return TRAINERS[stage["trainer"]].arguments_class(folder, **values)


def _trainer(
    stage: dict[str, Any], model: Any, partner: Any, args: CompressionTrainingArguments, data: _Data
) -> CompressionTrainer:
    inputs: dict[str, Any] = {
        "train_dataset": data.splits[data.task.train_split],
        "eval_dataset": data.splits[HOLDOUT],
        "processing_class": data.tokenizer,
        "data_collator": build_collator(data.task, data.tokenizer),
        "compute_metrics": build_compute_metrics(data.task),
    }
    losses = {n: LOSSES[n](**own) for n, own in (stage["losses"] or {}).items()}
    build: Any = TRAINERS[stage["trainer"]]
    if stage["trainer"] == PLAIN:
        trainer = build(model, args, **inputs)
    else:
        trainer = build(model, partner, args, losses=losses or None, **inputs)
    trainer.remove_callback(PrinterCallback)  # several cells would print at a time
    return trainer


def _versions() -> dict[str, str]:
    packages = (kdnlp, torch, transformers)
    versions = {package.__name__: str(package.__version__) for package in packages}
    return {**versions, "python": platform.python_version()}


def describe_machine(place: Place) -> dict[str, Any]:
    """What the figures of a place were measured on."""
    if place.device == "cuda":
        return {"device": torch.cuda.get_device_name()}
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"device": f"{processor_name()} ({instructions})", "threads": place.threads}
