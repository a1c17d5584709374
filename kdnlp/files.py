"""Files and folders that appear under their names once they are whole, and on the disk."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = "_partial"
"""The folder, beside what is being written, that holds it until it is whole.

A name that starts with an underscore is left out of what goes to the Hub.
"""

WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""The weights in the folder of a model, and the index where they are several files."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write a file, which gets its name when the block ends without an error."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        _sync(partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)
    _sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it appears under its name once it is whole."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def model_written_whole(folder: Path) -> Iterator[Path]:
    """Where to write a model, whose files go to `folder` when the block ends without an error.

    Each appears whole, the weights last. Weights of an earlier model that the new one does not have
    are removed: transformers would load one file rather than several shards, whichever is older.
    """
    partial = folder / PARTIAL / "model"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_folder(partial)
        names = [path.relative_to(partial) for path in partial.rglob("*") if path.is_file()]
        # The index after its shards: it must not name what is not there yet.
        for name in sorted(names, key=lambda name: (str(name).count(".safetensors"), str(name))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / name, folder / name)
        for path in folder.iterdir():
            if WEIGHTS.fullmatch(path.name) and path.relative_to(folder) not in names:
                path.unlink()
        _sync(folder)
    finally:
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def replace_folder(partial: Path, target: Path) -> None:
    """Give a folder whose files are all written its name; one that is there makes way."""
    sync_folder(partial)
    old = partial.with_name(f"{partial.name}.old")
    if target.exists():
        # Left by a process that was killed while it removed what had made way.
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(partial, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Wait until everything in `folder` is on the disk: a rename may get there before it."""
    for path in (folder, *folder.rglob("*")):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
