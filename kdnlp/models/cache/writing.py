"""Writing a cache: under another name, by several processes, and renamed when it is whole."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from kdnlp.models.cache.fields import Field
from kdnlp.models.cache.numbers import STORED_TYPES
from kdnlp.models.cache.store import FORMAT, META, Layout, TeacherCache, array_file

logger = logging.getLogger(__name__)

_PARTIAL, _LOCK = ".partial", ".lock"
_OURS = re.compile(r"[0-9a-f]{32}" + re.escape(_PARTIAL))


@contextmanager
def reserved(target: Path, layout: Layout) -> Iterator[None]:
    """Hold the right to write `target`, with its files made; or find it there.

    What was written is removed where the block fails.

    Raises:
        OSError: if the disk has not enough space.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    if is_whole(target):
        yield
        return
    partial = partial_folder(target)
    with _locked(target):
        # Another run may have finished while this one waited.
        if not is_whole(target):
            for rest in (partial, target):
                if rest.exists():
                    logger.warning("%s was not finished or is damaged; writing it anew.", rest)
                    shutil.rmtree(rest)
            _check_space(target.parent, layout.nbytes)
            allocate(partial, layout)
        try:
            yield
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def partial_folder(target: Path) -> Path:
    """Where a cache is until it is whole."""
    return target.with_name(target.name + _PARTIAL)


def is_whole(target: Path) -> bool:
    """Whether a cache is there and can be read."""
    try:
        TeacherCache(target)
    except ValueError:
        return False
    return True


def commit(target: Path, layout: Layout) -> None:
    """Make the partial folder, all of whose rows are written, the cache."""
    partial = partial_folder(target)
    _finish(partial, layout)
    try:
        os.rename(partial, target)
    except OSError:
        # Where the file system keeps no locks, another run may have been first.
        if not is_whole(target):
            raise
        shutil.rmtree(partial)


class CacheWriter:
    """Writes rows into the files of `allocate`, in any order; several processes may at once."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.layout = layout
        self._stack = ExitStack()
        self._files: dict[str, tuple[BinaryIO, int, np.ndarray]] = {}
        for field in layout.fields:
            path = array_file(folder, field.name)
            start = np.load(path, mmap_mode="r", allow_pickle=False).offset
            file = self._stack.enter_context(path.open("r+b"))
            self._files[field.name] = file, start, layout.offsets(field)

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *error: object) -> None:
        with self._stack:
            for file, _, _ in self._files.values():
                file.flush()
                os.fsync(file.fileno())

    def write(self, field: Field, rows: np.ndarray, flat: np.ndarray) -> None:
        """Write rows of one field.

        A file is written and not mapped: a full disk is then an error, and not a signal.

        Args:
            field: which one.
            rows: their numbers.
            flat: their units one after the other, in the stored type.
        """
        file, start, offsets = self._files[field.name]
        counts = offsets[rows + 1] - offsets[rows]
        ends = np.cumsum(counts)
        if flat.shape != (ends[-1], *field.shape):
            raise ValueError(
                f"Expected {field.name} of the shape {(int(ends[-1]), *field.shape)} without "
                f"padding, got {flat.shape}. It would be written over other rows. The teacher "
                "must give every batch outputs of one kind."
            )
        for row, end, count in zip(rows, ends, counts, strict=True):
            file.seek(start + int(offsets[row]) * field.unit_bytes)
            file.write(flat[end - count : end].tobytes())


def allocate(folder: Path, layout: Layout) -> None:
    """Make a folder with files of the right size, that take no space until they are written."""
    folder.mkdir()
    for field in layout.fields:
        shape = layout.units(field), *field.shape
        path = array_file(folder, field.name)
        np.lib.format.open_memmap(path, "w+", STORED_TYPES[field.dtype], shape)


def _finish(folder: Path, layout: Layout) -> None:
    """Write what makes the folder a cache; last, when all rows are."""
    for name, lengths in layout.lengths.items():
        with _durable(folder / f"lengths.{name}.npy") as file:
            np.save(file, lengths, allow_pickle=False)
    meta = {
        "format": FORMAT,
        "labels": layout.labels,
        "lengths": list(layout.lengths),
        "fields": [asdict(field) for field in layout.fields],
    }
    with _durable(folder / META) as file:
        file.write(json.dumps(meta, indent=1).encode())


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    lock = FileLock(f"{target}{_LOCK}")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Another run is writing %s; waiting for it.", target)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_abandoned(folder: Path) -> None:
    """Remove what dead processes left: the partial folders of keys whose locks are free.

    The folder may hold what others keep there under such names. A run makes its lock before its
    partial folder, so that one without a lock is a stranger's.
    """
    for partial in folder.glob(f"*{_PARTIAL}"):
        lock = partial.with_suffix(_LOCK)
        if not _OURS.fullmatch(partial.name) or not lock.is_file():
            continue
        with suppress(Timeout), FileLock(lock, timeout=0):
            shutil.rmtree(partial, ignore_errors=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"The teacher's outputs take {human_size(needed)}, and the disk of {folder} has "
            f"{human_size(free)} left. It would be full before the first step. Choose a folder on "
            "another disk, or cache less: fewer layers, the logits alone, top_k, or a dtype of 16 "
            "bits."
        )


def human_size(size: float) -> str:
    """Bytes in the largest unit that they fill, of powers of 1000."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"


@contextmanager
def _durable(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk, and not only on its way, when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
