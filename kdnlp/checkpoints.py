"""Which checkpoint of a run can be resumed: the newest, if what a resume reads of it is whole."""

import json
import logging
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

LAST, LAST_WHOLE = ("last", "true"), "last_whole"
"""What `resume_from_checkpoint` may ask for beside a folder."""

TRAINER_STATE = "trainer_state.json"
SETTINGS = "kdnlp"
"""The entry of the trainer state's `stateful_callbacks` that says how the run was set up."""

_INDEX = "model.safetensors.index.json"
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0")
"""As DDP and one process write it, FSDP with whole states, and FSDP with shards."""

_NEVER_READ = "training_args.bin"

_NO_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, ValueError, RuntimeError),
)
"""What `zipfile` raises for one, according to which byte is wrong."""


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a run's folder, whole or not, the newest first."""
    found = {
        path: int(path.name.rpartition("-")[2])
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name) and path.is_dir()
    }
    return sorted(found, key=found.__getitem__, reverse=True)


def find_checkpoint(wish: str | None, output_dir: str) -> str | None:
    """The checkpoint that `wish` asks for.

    `"last"` (or `"true"`) is the newest. A damaged one is refused by name: how many steps to lose
    is not decided silently. `"last_whole"` passes over damaged ones. Both pass over a folder
    without a trainer state, whose run was killed while it wrote it in place, and say so. Where
    nothing else is left they are `None`: a start from the beginning.

    Args:
        wish: one of these words, or a checkpoint's folder; `None` and `"false"` do not resume.
        output_dir: the folder of the run.

    Raises:
        ValueError: if the checkpoint is damaged or holds no state to resume from.
    """
    word = str(wish).lower()
    if wish is None or word == "false":
        return None
    if word not in (*LAST, LAST_WHOLE):
        check_checkpoint(Path(wish))
        return str(wish)
    for folder in list_checkpoints(output_dir):
        damage = "" if word in LAST else find_damage(folder)
        if not (folder / TRAINER_STATE).is_file():
            damage = "it was not written to its end"
        if not damage:
            if word in LAST:
                check_checkpoint(folder)
            return str(folder)
        logger.warning("%s is passed over: %s.", folder, damage)
    return None


def check_checkpoint(folder: Path) -> None:
    """Raise `ValueError` with what is wrong, and what to do instead, unless `folder` is whole."""
    damage = find_damage(folder)
    if damage:
        known = list_checkpoints(folder.parent)
        older = known[known.index(folder) + 1 :] if folder in known else []
        whole = next((path for path in older if not find_damage(path)), None)
        way_out = (
            f"resume_from_checkpoint={LAST_WHOLE} takes {whole}, the newest whole one before it."
            if whole
            else "None before it is whole; start anew with overwrite_output_dir=True."
        )
        raise ValueError(
            f"Expected a whole checkpoint in {folder}, got one that cannot be resumed: {damage}. "
            f"The run would stop while loading it, or go on as another one. {way_out}"
        )


def find_damage(folder: Path) -> str:
    """What is missing or cut off of that which a resume reads; empty where it is whole.

    Every byte of optimizer, scheduler and random states is checked against their checksums. Weights
    have none: their header is checked, and that the file is as long as it says.
    """
    if not folder.is_dir():
        return "there is no such folder"
    return next(_missing(folder), "") or next(_unreadable(folder), "")


def recorded_settings(folder: Path) -> dict[str, Any]:
    """How the run of a checkpoint was set up, as far as it says."""
    state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    return dict(state.get("stateful_callbacks", {}).get(SETTINGS, {}))


def _missing(folder: Path) -> Iterator[str]:
    if not (folder / TRAINER_STATE).is_file():
        yield f"{TRAINER_STATE}, which is written last, is missing"
    names = {path.name for path in folder.iterdir()}
    if not names & {"model.safetensors", _INDEX} and not list(folder.glob("pytorch_model_fsdp*")):
        yield "model.safetensors is missing"
    if not names.intersection(_OPTIMIZERS):
        yield (
            "optimizer.pt is missing, as save_only_model=True leaves it out, and the optimizer's "
            "moments would start again at zero"
        )
    if "scheduler.pt" not in names:
        yield "scheduler.pt is missing"
    if not list(folder.glob("rng_state*.pth")):
        yield "rng_state.pth is missing"


def _unreadable(folder: Path) -> Iterator[str]:
    try:
        settings = recorded_settings(folder)
    except (ValueError, AttributeError, TypeError) as error:
        yield f"{TRAINER_STATE} is no trainer state ({error})"
        return
    # A run of several processes says how many; older checkpoints do not.
    processes = settings.get("processes", 1)
    random = [f"rng_state_{i}.pth" for i in range(processes)] if processes > 1 else []
    yield from (f"{name} is missing" for name in random if not (folder / name).is_file())
    if (folder / _INDEX).is_file():
        yield from _missing_shards(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            yield from _bad_weights(path)
        elif path.suffix in (".pt", ".pth", ".bin") and path.name != _NEVER_READ:
            yield from _bad_archive(path)


def _missing_shards(folder: Path) -> Iterator[str]:
    try:
        shards = set(
            json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        )
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        yield f"{_INDEX} is no index ({error})"
        return
    yield from (f"{name} is missing" for name in sorted(shards) if not (folder / name).is_file())


def _bad_weights(path: Path) -> Iterator[str]:
    """Opening reads the header and compares the file's size with it."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        yield f"{path.name} is cut off or damaged ({error})"


def _bad_archive(path: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except _NO_ARCHIVE as error:
        yield f"{path.name} is cut off or damaged ({error})"
        return
    if damaged is not None:
        yield f"{path.name} is damaged (the checksum of {damaged} is another)"
