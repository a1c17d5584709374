"""Which checkpoint of a run can be resumed."""

from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

TRAINER_STATE_NAME = "trainer_state.json"


def last_whole_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint that was written to its end: the trainer's state is its last file."""
    numbers = {
        int(path.name.rpartition("-")[2]): path
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rpartition("-")[2].isdigit() and (path / TRAINER_STATE_NAME).is_file()
    }
    return str(numbers[max(numbers)]) if numbers else None
