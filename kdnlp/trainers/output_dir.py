"""The folder of a run: whose results are in it, and what overwriting them means."""

import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

RESULTS = ("model.safetensors", "model.safetensors.index.json", "report.json")


def check_output_dir(output_dir: str) -> None:
    """Raise `ValueError` if `output_dir` already holds the results of a run."""
    folder = Path(output_dir)
    traces = [name for name in RESULTS if (folder / name).exists()]
    checkpoint = get_last_checkpoint(output_dir) if folder.is_dir() else None
    if checkpoint is not None:
        traces.append(Path(checkpoint).name)
    if traces:
        resume = "" if checkpoint is None else "go on with resume_from_checkpoint, "
        raise ValueError(
            f"output_dir {output_dir} already holds another run ({', '.join(traces)}). Its results "
            f"would be mixed with this one's. Choose another output_dir, {resume}or pass "
            "overwrite_output_dir=True."
        )


def remove_checkpoints(output_dir: str) -> None:
    """Remove a run's checkpoints: to resume from the last would take them, were they further."""
    for checkpoint in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdigit() and checkpoint.is_dir() and not checkpoint.is_symlink():
            shutil.rmtree(checkpoint)
