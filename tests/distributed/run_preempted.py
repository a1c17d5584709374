"""Started by `test_preempted.py`: two processes train together, and one of them gets a signal.

Every process is a fork, so that the imports are paid for once. Prints, as JSON and by scenario,
how the two ended: with what status, or with minus the signal.
"""

import faulthandler
import fcntl
import json
import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from settings import TRAINER_ROWS, build_trainer, tiny_model
from transformers import TrainerCallback

REFUSED = 3


class Tell(TrainerCallback):
    """Sends this process SIGTERM in the middle of its third step."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder, told):
    torch.manual_seed(11)
    trainer = build_trainer(
        TRAINER_ROWS["distillation"],
        folder,
        tiny_model("bert", 4),
        trainer_options={"callbacks": [Tell()] if told else []},
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=5,
    )
    try:
        trainer.train(resume_from_checkpoint="last")
    except ValueError as error:
        sys.exit(REFUSED if "in use by" in str(error) else 1)
    trainer.save_model()
    # Not when the trainer is freed: in a fork on a busy machine, torch may wait for its own thread
    # for good while the process group is destroyed.
    os._exit(0)


def together(folder, told=()):
    """Train in two processes, and tell how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in ("0", "1"):
        child = os.fork()
        if child == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            os.environ.update(place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            os.environ["ACCELERATE_USE_CPU"] = "true"
            faulthandler.dump_traceback_later(90, exit=True)
            try:
                train(folder, rank in told)
            except SystemExit as ended:
                os._exit(ended.code)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(root):
    (root / "held").mkdir()
    with open(root / "held" / "_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = together(root / "held")
    ends = {
        "refused": refused,
        "whole": together(root / "whole"),
        "told": together(root / "told", told=("1",)),
        "left": sorted(path.name for path in (root / "told").iterdir()),
        "resumed": together(root / "told"),
        "both": together(root / "both", told=("0", "1")),
    }
    print(f"\n{json.dumps(ends)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
