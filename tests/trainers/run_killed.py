"""Started by `test_kill.py`: trains rows from where their folders left off, or is killed.

    python run_killed.py FOLDER [--kill] ROW...

Every row trains in a process of its own that shares nothing but the imports. With `--kill` it
sends itself SIGKILL between two micro-batches, as when a machine is taken away.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from settings import TRAINER_ROWS, build_trainer, tiny_dataset, tiny_model
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

# Paths are drawn, evenly, until step 6: before the kill, and after it.
DRAWS = {
    "replacing_schedule": "constant",
    "initial_replacing_rate": 0.5,
    "replacing_fraction": 0.7,
}


class Kill(TrainerCallback):
    """Ends the process halfway through step 5, one step after a checkpoint."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def train(name, folder, kill):
    """Train a row of the settings table, with dropout on so that the random state matters."""
    partner = tiny_model("bert", 4)
    torch.manual_seed(11)
    row = TRAINER_ROWS[name]
    trainer = build_trainer(
        row,
        folder,
        partner,
        trainer_options={
            # Six steps an epoch: the run goes on within one, and into the next.
            "train_dataset": tiny_dataset(48),
            "callbacks": [Kill()] if kill else [],
        },
        max_steps=8,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=2,
        **(DRAWS if row.trainer == "TheseusTrainer" else {}),
    )
    started = folder.is_dir() and get_last_checkpoint(str(folder)) is not None
    trainer.train(resume_from_checkpoint=started)
    trainer.save_model()


def main():
    """Print how the process of each row ended: with 0, or with minus the signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("rows", nargs="+")
    options = parser.parse_args()
    for name in options.rows:
        child = os.fork()
        if child == 0:
            try:
                train(name, options.folder / name, options.kill)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"{name} ended with {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
