"""What a training command leaves in its folder when it is interrupted, and how to go on from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdnlp.arguments import CompressionTrainingArguments
from kdnlp.checkpoints import TRAINER_STATE, list_checkpoints
from kdnlp.cli.interruption import NOTHING_KEPT
from kdnlp.cli.rungs import RUNG_JSON
from kdnlp.files import WEIGHTS

Found = dict[Path, int]
"""Files that say what is kept, and when each was written, in nanoseconds."""


@contextmanager
def remains_told(args: CompressionTrainingArguments) -> Iterator[None]:
    """Have a `KeyboardInterrupt` say what the run has left that the block makes."""
    before = _find(args)
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(describe_remains(args, before)) from stop


def describe_remains(args: CompressionTrainingArguments, before: Found) -> str:
    """What was kept of a run, and how to go on.

    Args:
        args: of the run.
        before: what was in its folder when it started; where that is overwritten, an earlier
            run's.
    """
    begins = str(args.resume_from_checkpoint).lower() in ("none", "false")
    anew = args.overwrite_output_dir and begins
    folder, now = Path(str(args.output_dir)), _find(args)
    kept = [path for path, time in now.items() if not anew or before.get(path) != time]
    if any(path.name == RUNG_JSON for path in kept):
        change = " without --overwrite_output_dir" if args.overwrite_output_dir else ""
        return (
            f"students that are done and checkpoints are kept in {folder}. The same command"
            f"{change} goes on from there."
        )
    checkpoints = [path.parent for path in kept if path.name == TRAINER_STATE]
    if checkpoints and args.save_only_model:
        return (
            f"the last checkpoint, {checkpoints[0]}, is kept. It holds the model alone "
            "(--save_only_model), and no run can go on from it."
        )
    if checkpoints:
        return (
            f"the last checkpoint, {checkpoints[0]}, is kept. The same command with "
            "--resume_from_checkpoint last goes on from there."
        )
    if kept:
        return f"the trained model is kept in {folder}, without its report."
    return NOTHING_KEPT


def _find(args: CompressionTrainingArguments) -> Found:
    """The newest checkpoint comes first."""
    folder = Path(str(args.output_dir))
    paths = [
        *(checkpoint / TRAINER_STATE for checkpoint in list_checkpoints(folder)),
        *folder.glob(f"*/{RUNG_JSON}"),
        *(path for path in folder.glob("model*") if WEIGHTS.fullmatch(path.name)),
    ]
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}
