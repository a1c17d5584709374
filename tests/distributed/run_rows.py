"""Started by `accelerate launch`: trains every row on all processes and writes what happened."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from settings import (
    SENSIBLE_CELLS,
    TRAINER_ROWS,
    TrainerRow,
    build_cell,
    build_trainer,
    tiny_dataset,
)

from kdnlp.losses import HiddenLoss


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


def main(folder: Path, per_device_batch: int) -> None:
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
    if PartialState().is_main_process:
        (folder / "results.json").write_text(json.dumps(results))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
