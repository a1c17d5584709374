"""Started by `accelerate launch`: trains every row on all processes and writes what happened.

With `fsdp` as the last argument the rows train sharded. Accelerate starts FSDP on GPUs alone,
though torch shards on CPUs as well; here it is told that the processes are those of GPUs.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import settings
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from settings import (
    NO_DROPOUT,
    SENSIBLE_CELLS,
    TRAINER_ROWS,
    TrainerRow,
    build_cell,
    build_trainer,
    tiny_dataset,
    tiny_model,
)

from kdnlp.losses import HiddenLoss
from kdnlp.models.student import build_student


def checksum(model):
    return [tensor.double().sum().item() for tensor in model.state_dict().values()]


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
        build_trainer(TRAINER_ROWS["theseus"], folder, fsdp=True)
    except ValueError as error:
        return str(error)
    return ""


def shard_rows(folder: Path, per_device_batch: int) -> dict:
    """Every row under FSDP2, with a whole or a sharded partner in turn."""
    results = {"refused": refused_without_gpus(folder / "refused")}
    build = settings.arguments

    def as_on_gpus(*args, **kwargs):
        made = build(*args, **kwargs)
        assert made.device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return made

    settings.arguments = as_on_gpus
    for number, (name, row) in enumerate(TRAINER_ROWS.items()):
        if row.arguments.get("loss_balancing") == "gradient_norm":
            continue
        torch.manual_seed(11)
        taught = row.trainer != "CompressionTrainer"
        partner = tiny_model("bert", 4, **NO_DROPOUT)
        student = build_student(partner, 2)
        trainer = build_trainer(
            row,
            folder / name,
            partner,
            student,
            per_device_train_batch_size=per_device_batch,
            eval_strategy="steps",
            eval_steps=3,
            save_strategy="steps",
            save_steps=4,
            fsdp=True,
            fsdp_config={"version": 2},
            **({"shard_teacher": number % 2 == 0} if taught else {}),
        )
        trainer.train()
        trainer.save_model()
        results[name] = {
            "history": list(trainer.state.log_history),
            "checksums": gather_object([checksum(trainer.student)]),
            "strategy": str(trainer.accelerator.distributed_type),
            "same_object": trainer.student is student,
            "evaluates": trainer.evaluate()["eval_loss"],
        }
        if name in ("theseus", "distillation-parameters"):
            results[name]["resumed"] = resumed(row, folder / name, per_device_batch)
    return results


def resumed(row: TrainerRow, folder: Path, per_device_batch: int) -> list:
    """The weights of a run that goes on from the sharded run's checkpoint."""
    trainer = build_trainer(
        row,
        folder,
        per_device_train_batch_size=per_device_batch,
        fsdp=True,
        fsdp_config={"version": 2},
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    return checksum(trainer.student)


def main(folder: Path, per_device_batch: int, strategy: str = "ddp") -> None:
    if strategy == "fsdp":
        write(folder, shard_rows(folder, per_device_batch))
        return
    results = {}
    for name, row in TRAINER_ROWS.items():
        torch.manual_seed(11)
        trainer = build_trainer(
            row,
            folder / name,
            per_device_train_batch_size=per_device_batch,
            eval_strategy="steps",
            eval_steps=3,
        )
        trainer.train()
        trainer.save_model()
        results[name] = {
            "history": trainer.state.log_history,
            "checksums": gather_object([checksum(trainer.student)]),
            "ddp": type(trainer.model_wrapped).__name__,
        }
    for loss, task in SENSIBLE_CELLS:
        torch.manual_seed(11)
        trainer = build_cell(
            loss, task, folder / loss / task, per_device_train_batch_size=per_device_batch
        )
        trainer.train()
        results[f"{loss}-{task}"] = {
            "history": trainer.state.log_history,
            "checksums": gather_object([checksum(trainer.student)]),
        }
    results["unlabelled"] = unlabelled_layers(folder / "unlabelled")
    write(folder, results)


def write(folder: Path, results: dict) -> None:
    if PartialState().is_main_process:
        (folder / "results.json").write_text(json.dumps(results))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
