"""Started by `accelerate launch`: trains rows or cells on all processes and writes what happened.

The sharded parts are FSDP2. Accelerate starts it on GPUs alone, though torch shards on CPUs as
well; here it is told that the processes are those of GPUs.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import settings
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from settings import (
    FEW_CELLS,
    LOSS_ROWS,
    NO_DROPOUT,
    SENSIBLE_CELLS,
    TASK_ROWS,
    TRAINER_ROWS,
    TrainerRow,
    build_cell,
    build_trainer,
    task_dataset,
    task_model,
    tiny_dataset,
    tiny_model,
)
from transformers import BertForSequenceClassification

from kdnlp.arguments import CompressionTrainingArguments
from kdnlp.cli import main as main_command
from kdnlp.data.synthetic import build_config, build_tokenizer
from kdnlp.losses import HiddenLoss
from kdnlp.models.student import build_student
from kdnlp.trainers.base import CompressionTrainer

LOSS_NAMES = [name for name in TRAINER_ROWS if name.removeprefix("distillation-") in LOSS_ROWS]
"""The rows that differ in their loss alone."""

RESUMED = ("theseus", "distillation-parameters")


def main(folder: Path, part: str) -> None:
    results = PARTS[part](folder)
    if PartialState().is_main_process:
        (folder / "results.json").write_text(json.dumps(results))
    PartialState().destroy_process_group()


def train_rows(folder: Path, names: list[str]) -> dict:
    """Rows under DDP."""
    results = {}
    for name in names:
        torch.manual_seed(11)
        trainer = build_trainer(
            TRAINER_ROWS[name], folder / name, eval_strategy="steps", eval_steps=3, **share()
        )
        trainer.train()
        trainer.save_model()
        results[name] = {
            "history": trainer.state.log_history,
            "checksums": gather_object([checksum(trainer.student)]),
            "ddp": type(trainer.model_wrapped).__name__,
        }
    return results


def train_cells(folder: Path, cells: list[tuple[str, str]]) -> dict:
    """Losses on kinds of task under DDP."""
    results = {}
    for loss, task in cells:
        torch.manual_seed(11)
        trainer = build_cell(loss, task, folder / loss / task, **share())
        trainer.train()
        results[f"{loss}-{task}"] = {
            "history": trainer.state.log_history,
            "checksums": gather_object([checksum(trainer.student)]),
        }
    return results


def unlabelled_layers(folder: Path) -> dict:
    """One block's hidden states alone: the blocks above it, and the head, learn nothing."""
    trainer = build_trainer(
        TrainerRow("DistillationTrainer", losses=lambda: {"hidden": HiddenLoss({1: 2})}),
        folder,
        trainer_options={"train_dataset": tiny_dataset().remove_columns("labels")},
        loss_weights="hidden=1",
    )
    trainer.train()
    return {"checksums": gather_object([checksum(trainer.student)])}


def refused_without_gpus(folder: Path) -> str:
    """What is said where FSDP was asked for and Accelerate would start DDP."""
    try:
        build_trainer(TRAINER_ROWS["theseus"], folder, **FSDP)
    except ValueError as error:
        return str(error)
    return ""


def shard_rows(folder: Path, names: list[str]) -> dict:
    """Rows under FSDP2, with a whole or a sharded partner in turn."""
    as_on_gpus()
    results = {}
    for number, name in enumerate(names):
        torch.manual_seed(11)
        row = TRAINER_ROWS[name]
        partner = tiny_model("bert", 4, **NO_DROPOUT)
        student = build_student(partner, 2)
        taught = row.trainer != "CompressionTrainer"
        saves = {"save_strategy": "steps", "save_steps": 4} if name in RESUMED else {}
        trainer = build_trainer(
            row, folder / name, partner, student, eval_strategy="steps", eval_steps=3, **share(),
            **FSDP, **saves, **({"shard_teacher": number % 2 == 0} if taught else {}),
        )  # fmt: skip
        trainer.train()
        trainer.save_model()
        results[name] = {
            "history": list(trainer.state.log_history),
            "checksums": gather_object([checksum(trainer.student)]),
            "strategy": str(trainer.accelerator.distributed_type),
            "same_object": trainer.student is student,
            "evaluates": trainer.evaluate()["eval_loss"],
        }
        if name in RESUMED:
            results[name]["resumed"] = resumed(row, folder / name)
    return results


def resumed(row: TrainerRow, folder: Path) -> list:
    """The weights of a run that goes on from a checkpoint, and started somewhere else."""
    partner = tiny_model("bert", 4, **NO_DROPOUT)
    student = build_student(partner, 2)
    with torch.no_grad():
        for parameter in student.base_model.encoder.parameters():
            parameter.mul_(1.5)
    trainer = build_trainer(row, folder, partner, student, **share(), **FSDP)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    return checksum(trainer.student)


def shard_tasks(folder: Path) -> dict:
    """One step on every kind of task, or why it was refused."""
    as_on_gpus()
    results = {}
    for task in TASK_ROWS:
        teacher = task_model(task)
        try:
            trainer = CompressionTrainer(
                build_student(teacher, 2, stack=TASK_ROWS[task].stack),
                settings.arguments("CompressionTrainer", folder / task, max_steps=1, **FSDP),
                train_dataset=task_dataset(task),
            )
        except ValueError as error:
            results[task] = str(error)
        else:
            results[task] = trainer.train().training_loss
    return results


FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}


def as_on_gpus() -> None:
    """Have every set of arguments believe that its processes are those of GPUs."""
    resolve = CompressionTrainingArguments.__post_init__

    def resolve_as_on_gpus(args):
        resolve(args)
        assert args.device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    CompressionTrainingArguments.__post_init__ = resolve_as_on_gpus


def shard_command(folder: Path) -> dict:
    """`kdnlp theseus` from a saved model to report and card, as an FSDP configuration asks."""
    as_on_gpus()
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    os.environ |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}  # as recipes/accelerate/fsdp2.yaml
    if os.environ["RANK"] == "0":
        torch.manual_seed(0)
        model = BertForSequenceClassification(build_config(4, 16, 2, 24))
        model.save_pretrained(folder / "model")
        build_tokenizer().save_pretrained(folder / "model")
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    command = (
        f"theseus --predecessor {folder / 'model'} --task synthetic_sentiment --use_cpu "
        f"--output_dir {folder / 'out'} --max_train_samples 64 --max_steps 4 --save_steps 2 "
        "--report_seconds 0.3 --disable_tqdm true --shard_teacher true --eval_strategy steps "
        "--eval_steps 2"
    )
    main_command(command.split())
    return {}


def share() -> dict:
    """This process's share of 8 rows a step."""
    return {"per_device_train_batch_size": 8 // int(os.environ["WORLD_SIZE"])}


def checksum(model):
    return [tensor.double().sum().item() for tensor in model.state_dict().values()]


SHARDED = [n for n, row in TRAINER_ROWS.items() if "gradient_norm" not in row.arguments.values()]
FEW_SHARDED = [*RESUMED, "finetuning", "distillation-cached", "theseus-unfreeze"]
UNLIKE_ROWS = [name for name in TRAINER_ROWS if name not in LOSS_NAMES]

PARTS = {
    "few": lambda folder: {
        **train_rows(folder, UNLIKE_ROWS),
        **train_cells(folder, FEW_CELLS),
        "unlabelled": unlabelled_layers(folder / "unlabelled"),
        "fsdp": refused_without_gpus(folder / "fsdp"),
    },
    "rest": lambda folder: {
        **train_rows(folder, LOSS_NAMES),
        **train_cells(folder, [cell for cell in SENSIBLE_CELLS if cell not in FEW_CELLS]),
    },
    "rows": lambda folder: train_rows(folder, UNLIKE_ROWS),
    "sharded-few": lambda folder: shard_rows(folder, FEW_SHARDED),
    "sharded-rest": lambda folder: shard_rows(
        folder, [name for name in SHARDED if name not in FEW_SHARDED]
    ),
    "sharded-tasks": shard_tasks,
    "sharded-command": shard_command,
}
"""What one launch does. The parts with the rest of something are for the slow tests."""


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
