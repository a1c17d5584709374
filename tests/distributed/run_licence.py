"""Started by `accelerate launch`: of two processes the second has no way to the Hub.

Trains, and publishes under the licence that the Hub's card of the model's origin names.
"""

import json
import os
import sys
from pathlib import Path

if os.environ.get("RANK") == "1":
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # where nobody answers
    os.environ["HF_HOME"] += "-1"  # nor is what the first has downloaded found

sys.path.insert(0, str(Path(__file__).parents[1]))

from accelerate import PartialState
from accelerate.utils import gather_object
from settings import TRAINER_ROWS, build_trainer

from kdnlp.data.synthetic import build_tokenizer
from kdnlp.uploads.license import find_license


def raised(trainer):
    try:
        trainer.train()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def build(folder, origin):
    trainer = build_trainer(
        TRAINER_ROWS["finetuning"], folder, max_steps=1, push_to_hub=True, hub_strategy="end",
        hub_model_id="me/small", trainer_options={"processing_class": build_tokenizer()},
    )  # fmt: skip
    trainer.student.config._name_or_path = origin
    return trainer


def main(folder):
    refused = build(folder / "refused", "org/unknown")  # which also starts what gathers
    results = {
        "finds": gather_object([find_license("org/base") is not None]),
        "refused": gather_object([raised(refused)]),
    }
    trainer = build(folder / "run", "org/base")
    trainer.train()  # a process that is refused alone ends here, and its launcher the other
    results["steps"] = gather_object([trainer.state.global_step])
    trainer.push_to_hub()
    if PartialState().is_main_process:
        (folder / "results.json").write_text(json.dumps(results))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
