"""Started by `accelerate launch`: one of two processes meets a number that is none.

Writes what each process raised, and which checkpoints there are.
"""

import gc
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from accelerate import PartialState
from accelerate.utils import gather_object
from settings import TRAINER_ROWS, build_trainer, tiny_dataset
from transformers import TrainerCallback


class Spoil(TrainerCallback):
    """Lets one process's teacher answer NaN in step 4."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and PartialState().process_index == 1:
            self.trainer.partner.register_forward_hook(self.spoil)

    def spoil(self, module, given, outputs):
        outputs.logits[1] = math.nan


def raised(trainer):
    try:
        trainer.train()
    except (ValueError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def build(name, folder, waits, **options):
    trainer = build_trainer(
        TRAINER_ROWS[name], folder, trainer_options=options, save_strategy="steps", save_steps=2,
        logging_steps=50, per_device_train_batch_size=2,
    )  # fmt: skip
    trainer.finite.reads_steps = not waits
    return trainer


def main(folder):
    gc.freeze()  # accelerate collects garbage before each run
    results = {}
    for name in ("distillation", "theseus-logits"):
        for waits in (False, True):
            where = folder / f"{name}-{waits}"
            callback = Spoil()
            callback.trainer = build(name, where, waits, callbacks=[callback])
            said = gather_object([raised(callback.trainer)])
            results[f"teacher-{name}-{waits}"] = said, sorted(p.name for p in where.iterdir())
    # Rows 6 and 7 are the second process's in its second step; one of two has labels at all.
    labels = [0, 1] * 16
    labels[6:8] = [0, 9]
    rows = tiny_dataset().remove_columns("labels")
    for waits in (False, True):
        stream = rows.add_column("labels", labels).to_iterable_dataset()
        trainer = build("distillation", folder / f"labels-{waits}", waits, train_dataset=stream)
        results[f"labels-{waits}"] = gather_object([raised(trainer)]), []
    half = rows.add_column("labels", [0, 1, -100, -100] * 8).to_iterable_dataset()
    trainer = build("distillation", folder / "half", False, train_dataset=half)
    results["half"] = gather_object([raised(trainer)]), trainer.state.log_history
    if PartialState().is_main_process:
        (folder / "results.json").write_text(json.dumps(results))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
