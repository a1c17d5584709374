"""The folder of a run: who may write there, whose results are in it, what overwriting means."""

import logging
import os
import shutil
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from kdnlp.checkpoints import find_damage, list_checkpoints
from kdnlp.files import PARTIAL
from kdnlp.uploads.card_check import CARD
from kdnlp.uploads.plain_folder import REPORT
from kdnlp.uploads.publishable import PUBLISHABLE
from kdnlp.weights import folder_digest

RESULTS = ("model.safetensors", "model.safetensors.index.json", REPORT)

LOCK = "_run.lock"
"""Held by the main process of a run; the operating system releases it when that dies."""

_WRITTEN = ("model", "tokenizer", "card", "report")
"""Of what may be published, what a run leaves in its folder."""

_OWN_NAMES = ("_", ".", "runs")
"""How the names begin of what kdnlp works with and what tools keep, and TensorBoard's folder."""

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@contextmanager
def output_dir_held(output_dir: str) -> Iterator[None]:
    """Make the folder, and let no other process hold it while the block runs.

    A process may hold it several times. A folder in which nothing was written is gone afterwards.

    Raises:
        ValueError: if another process holds it.
        OSError: if nothing can be written there.
    """
    path = Path(output_dir, LOCK)
    is_new = not path.parent.exists()
    with writing_to(output_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock: BaseFileLock = FileLock(path, is_singleton=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"output_dir {output_dir} is in use by {_holder(path)}. "
                "Two runs would replace each other's checkpoints. Wait for it, end it, or choose "
                "another output_dir."
            ) from None
        if not isinstance(lock, SoftFileLock):  # which has a record of its own in the file
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            path.unlink(missing_ok=True)
        lock.release()
        if is_new:
            with suppress(OSError):
                path.parent.rmdir()


def _holder(path: Path) -> str:
    with suppress(OSError):  # it may let go just now
        return path.read_text() or "another process"
    return "another process"


@contextmanager
def writing_to(output_dir: str) -> Iterator[None]:
    """Say of an `OSError` in the block what it means for a run that would write there."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"output_dir {output_dir} cannot be written ({error}). The run would be lost at its "
            "first checkpoint. Choose a folder in which this user may make files, on a disk that "
            "is neither full nor read-only."
        ) from error


def decided_by_main_process(decide: Callable[[], Answer]) -> Answer:
    """What `decide` returns, or the error that it raises, on the main process: here and everywhere.

    A process that is refused alone would leave the others waiting for it.
    """
    state = PartialState()
    outcome: list[tuple[Answer | None, Exception | None]] = [(None, None)]
    if state.is_main_process:
        try:
            outcome = [(decide(), None)]
        except Exception as error:  # raised below, on every process
            outcome = [(None, error)]
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    answer, refusal = outcome[0]
    if refusal is not None:
        raise refusal
    return cast(Answer, answer)


def check_output_dir(output_dir: str) -> None:
    """Raise `ValueError` if `output_dir` already holds the results of a run."""
    folder = Path(output_dir)
    traces = [name for name in RESULTS if (folder / name).exists()]
    checkpoints = list_checkpoints(output_dir)
    traces += [path.name for path in checkpoints[:1]]
    if traces:
        resume = "go on with resume_from_checkpoint, " if checkpoints else ""
        raise ValueError(
            f"output_dir {output_dir} already holds another run ({', '.join(traces)}). Its results "
            f"would be mixed with this one's. Choose another output_dir, {resume}or pass "
            "overwrite_output_dir=True."
        )


def check_other_files(output_dir: str) -> None:
    """Say that what lies in a folder without a run stays there.

    Raises:
        ValueError: if the run would replace some of it, such as a README.md with the model's card.
    """
    folder = Path(output_dir)
    patterns = (p for part in _WRITTEN for p in PUBLISHABLE[part])
    replaced = sorted(str(path.relative_to(folder)) for p in patterns for path in folder.glob(p))
    if replaced:
        raise ValueError(
            f"output_dir {output_dir} holds no run, but {', '.join(replaced[:3])}, which a run "
            "writes too. What is there would be lost. Choose another output_dir, or pass "
            "overwrite_output_dir=True."
        )
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith(_OWN_NAMES))
    if others:
        logger.warning(
            "output_dir %s holds other files already (%s). They stay as they are, among those of "
            "the run.",
            output_dir,
            ", ".join(others[:3]) + (", ..." if len(others) > 3 else ""),
        )


def check_space(output_dir: str, needed: int) -> None:
    """Raise `OSError` if the disk cannot take `needed` bytes, those of the trained model."""
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise OSError(
            f"The trained model takes {needed / 1e6:.1f} MB, and the disk of {output_dir} has "
            f"{free / 1e6:.1f} MB left. All training would be lost at its end. Make room, or "
            "choose an output_dir on another disk; a checkpoint takes about three times as much."
        )


def remove_unfinished(output_dir: str) -> None:
    """Remove what a killed run was writing, and put back what had just made way for it."""
    for old in Path(output_dir, PARTIAL).glob(f"{PREFIX_CHECKPOINT_DIR}-*.old"):
        target = Path(output_dir, old.name.removesuffix(".old"))
        if not target.exists():
            os.replace(old, target)
    shutil.rmtree(Path(output_dir, PARTIAL), ignore_errors=True)


def set_aside_damaged(checkpoint: str) -> None:
    """Rename damaged checkpoints that are newer than the one that is resumed.

    They would be refused again at the next start, and count as the newest where old ones are
    removed.
    """
    newer = list_checkpoints(Path(checkpoint).parent)
    if Path(checkpoint) in newer:
        for path in newer[: newer.index(Path(checkpoint))]:
            if find_damage(path):
                target = path.with_name(f"_damaged-{path.name}")
                shutil.rmtree(target, ignore_errors=True)
                path.rename(target)


def remove_other_report(folder: Path, written: Path) -> None:
    """Remove card and report in a folder if they are not of the weights that are written there.

    Args:
        folder: where the weights go. A README.md without a report is not a run's, and stays.
        written: the folder that holds them until they are whole.
    """
    report = folder / REPORT
    if not report.is_file():
        return
    try:
        before = folder_digest(folder)
    except (OSError, SafetensorError):
        before = ""  # damaged weights, which are about to be replaced
    if before is not None and before != folder_digest(written):
        names = (CARD, *PUBLISHABLE["report"])
        # The report last: whatever stops this, the next run finds that it is to be done.
        for path in sorted((folder / name for name in names), key=lambda path: path == report):
            path.unlink(missing_ok=True)


def remove_checkpoints(output_dir: str, keep: Collection[Path] = ()) -> None:
    """Remove a run's checkpoints: to resume from the last would take them, were they further."""
    for checkpoint in list_checkpoints(output_dir):
        if not checkpoint.is_symlink() and checkpoint not in keep:
            shutil.rmtree(checkpoint)
