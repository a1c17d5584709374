"""What a checkpoint holds before training goes on from it: numbers and plain values, no code."""

import os
import pickle
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers.trainer_pt_utils import safe_globals

NEVER_READ = ("training_args.bin",)
"""A pickle of the arguments, which transformers writes and neither it nor kdnlp opens."""


def check_resume_files(folder: str | os.PathLike[str]) -> None:
    """Raise `ValueError` if a file to resume from would run code, or is no file of torch's.

    The stock trainer reads them with `weights_only=True`, which runs none either, but its error
    does not say which file it is, and advises to trust it.

    Args:
        folder: the checkpoint, which is whole; see `kdnlp.checkpoints`.
    """
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".pt", ".pth", ".bin") and path.name not in NEVER_READ:
            _check_file(path)


def _check_file(path: Path) -> None:
    try:
        with safe_globals():  # the random states hold numpy arrays
            found = get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"Expected {path} to be a file that torch.save has written, got something else, or a "
            f"part of one ({str(error).splitlines()[0]}). {_FIX}"
        ) from error
    if found:
        raise ValueError(
            f"Expected numbers and plain values in {path}, got a pickle that calls "
            f"{', '.join(sorted(found)[:4])}. Read without care it would run code; a checkpoint "
            f"that a trainer wrote has no such thing. {_FIX}"
        )


_FIX = "Resume from another checkpoint, and take none from a place that you do not trust."
