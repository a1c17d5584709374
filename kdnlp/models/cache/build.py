"""A teacher's outputs, computed once: written to disk by row, and added to batches as they come."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from datasets.utils import tqdm

from kdnlp.models.alignment import TEACHER_PREFIX
from kdnlp.models.cache.fields import LABELS, TOKENS, batch_masks, pack
from kdnlp.models.cache.fingerprint import combine
from kdnlp.models.cache.numbers import encode
from kdnlp.models.cache.plan import Batch, Collator, Predict, TeacherPass, plan_cache
from kdnlp.models.cache.rows import ROW_COLUMN, check_dataset, without_row_numbers
from kdnlp.models.cache.store import Layout, TeacherCache
from kdnlp.models.cache.writing import (
    CacheWriter,
    commit,
    human_size,
    is_whole,
    partial_folder,
    reserved,
)

logger = logging.getLogger(__name__)

TEACHER_OUTPUTS = f"{TEACHER_PREFIX}outputs"
"""Where a batch holds the teacher's outputs."""

DTYPES = ("float32", "float16", "bfloat16")
MASKS = (TOKENS, LABELS)


class CachedCollator:
    """Adds the teacher's outputs of its rows to every batch, as `batch["teacher_outputs"]`.

    Their numbers stay beside them, as `batch["teacher_row"]`.

    Rows without a number, as in evaluation, are only collated. Top-k logits are added as they are
    stored; `cache.dense` spreads them, best after the batch was moved to its device.

    Args:
        collator: makes the batch; it never sees the number.
        cache: the outputs. It goes along to the workers of a data loader.
    """

    def __init__(self, collator: Collator, cache: TeacherCache) -> None:
        self.collator = collator
        self.cache = cache

    def __call__(self, features: list[dict[str, Any]]) -> Batch:
        """The batch of some rows, and what the teacher says about them."""
        if ROW_COLUMN not in features[0]:
            return self.collator(features)
        rows = [int(feature[ROW_COLUMN]) for feature in features]
        batch = self.collator([_without_number(feature) for feature in features])
        outputs = self.cache.read(rows, batch, dense=False)
        return {**batch, ROW_COLUMN: torch.tensor(rows), TEACHER_OUTPUTS: outputs}


def cache_teacher(
    predict: Predict,
    dataset: Dataset,
    collator: Collator,
    folder: str | os.PathLike[str],
    *,
    teacher_key: str,
    batch_size: int = 32,
    top_k: int | None = None,
    limit_gb: float = 10.0,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    logits_mask: Literal["attention_mask", "labels"] = "attention_mask",
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] | None = None,
    disable_tqdm: bool = False,
) -> TeacherCache:
    """Write a teacher's outputs for every row to `folder/<key>`, or open what is there already.

    The key is a hash of the teacher, the rows, how the collator makes inputs of them, the fields
    that `predict` gives, `top_k` and `dtype`. Another one of them makes another folder; a whole
    cache is never written again, and one that was damaged is.

    A cache is written under the name `<key>.partial` and renamed when it is whole, so that a
    killed process leaves none that could be read. While it writes it holds the lock
    `<key>.lock`, which the operating system releases when it dies: the partial folder of a key
    whose lock is there and free is a dead process's, and is removed. Where another run holds it,
    this one waits and takes what that run wrote. Nothing else is ever removed from `folder`.

    Args:
        predict: gives the frozen teacher's outputs for a collated batch, in eval mode: `logits`
            (also `start_logits`, `end_logits`) as a tensor (batch, labels) or (batch, length,
            labels), `hidden_states`, `queries`, `keys` and `values` as `{layer: (batch, length,
            width)}`, `attentions` and `scores` as `{layer: (batch, heads, length, length)}`.
        dataset: tokenised, in the order that `with_row_numbers` counted.
        collator: the run's own. It must give the same inputs for the same rows at all times.
        folder: where caches are kept; one that all processes share.
        teacher_key: decides what `predict` gives: `fingerprint_model(teacher)`, joined with the
            precision that it computes in, if that is not the model's own.
        batch_size: rows that the teacher sees at once, the longest first.
        top_k: store the largest logits and the mass of the others; see `TeacherCache.dense`.
        limit_gb: the most that may be written, in GB of 10^9 bytes.
        dtype: of the stored numbers; `None` is float32.
        logits_mask: which tokens logits of three dimensions are of. `"labels"`, those whose label
            is not -100, for an encoder-decoder's.
        rank: of this process. Every process writes its share of the rows.
        world_size: how many processes call this together.
        barrier: waits for all of them; only for several.
        disable_tqdm: whether to show no progress bar; only rank 0 has one.

    Returns:
        The cache, open.

    Raises:
        TypeError: if the dataset is no `datasets.Dataset`.
        ValueError: if an argument is out of range, the collator draws at random, the outputs have
            other shapes than these, or they would exceed `limit_gb`.
        OSError: if the disk has not enough space.
    """
    dtype = dtype or "float32"
    _check_request(batch_size, limit_gb, dtype, logits_mask)
    _check_barrier(world_size, barrier)
    check_dataset(dataset)
    asked = TeacherPass(predict, without_row_numbers(dataset), collator, top_k)
    layout, key = plan_cache(asked, dtype, logits_mask)
    target = Path(folder, combine(key, teacher_key)[:32])
    if not is_whole(target):
        _check_size(layout, limit_gb)
    wait = barrier or _no_barrier
    with ExitStack() as stack:
        if rank == 0:
            stack.enter_context(reserved(target, layout))
        wait()
        if not target.exists():
            part = np.array_split(np.arange(layout.rows), world_size)[rank]
            quiet = disable_tqdm or rank > 0
            with _explained(target):
                _write(asked, partial_folder(target), layout, part, batch_size, quiet)
                wait()
                if rank == 0:
                    commit(target, layout)
        wait()
    return TeacherCache(target)


def _write(
    asked: TeacherPass,
    folder: Path,
    layout: Layout,
    rows: np.ndarray,
    batch_size: int,
    disable_tqdm: bool,
) -> None:
    """Write the outputs of `rows`, in order of length so that little is padded."""
    _check_shared(folder)
    order = rows[np.argsort(-layout.lengths[TOKENS][rows], kind="stable")]
    text = f"Caching the teacher's outputs, {human_size(layout.nbytes)}"
    with (
        CacheWriter(folder, layout) as writer,
        tqdm(total=len(rows), desc=text, unit="row", disable=disable_tqdm) as bar,
    ):
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = asked.collate(part)
            masks = batch_masks(batch)
            layout.check_rows(part, masks)
            tensors = asked.stored(batch)
            for field in layout.fields:
                flat = encode(pack(tensors[field.name], field, masks), field.dtype)
                writer.write(field, part, flat)
            bar.update(len(part))


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"The teacher's outputs could not be written to {target} ({error}). What was written "
            "of them is no cache, and is removed. Make room on that disk, or choose a folder on "
            "another one."
        ) from error


def _check_size(layout: Layout, limit_gb: float) -> None:
    size = human_size(layout.nbytes)
    largest = max(layout.fields, key=layout.nbytes_of)
    logger.info(
        "The teacher's outputs for %d rows take %s on disk, %s of it for %s.",
        layout.rows,
        size,
        human_size(layout.nbytes_of(largest)),
        largest.name,
    )
    if layout.nbytes > limit_gb * 1e9:
        raise ValueError(
            f"Expected teacher outputs of at most limit_gb={limit_gb:g} GB, got {size} for "
            f"{layout.rows} rows, {human_size(layout.nbytes_of(largest))} of it for "
            f"{largest.name}. They would fill the disk, and be read back at every epoch. Cache "
            "fewer layers or the logits alone, set top_k where labels are many, or a dtype of 16 "
            "bits; or raise limit_gb."
        )


def _check_request(batch_size: int, limit_gb: float, dtype: str, logits_mask: str) -> None:
    if batch_size < 1 or not limit_gb > 0:
        raise ValueError(
            f"Expected a batch_size of at least 1 and a limit_gb above 0, got {batch_size} and "
            f"{limit_gb}. Nothing could be written."
        )
    for name, value, known in (("dtype", dtype, DTYPES), ("logits_mask", logits_mask, MASKS)):
        if value not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(known)}, got {value!r}. The outputs would be "
                "read back as other numbers, or other tokens'."
            )


def _check_barrier(world_size: int, barrier: Callable[[], None] | None) -> None:
    if world_size > 1 and barrier is None:
        raise ValueError(
            f"Expected a barrier for {world_size} processes, got none. The cache would be opened "
            "before all have written their rows. Pass accelerator.wait_for_everyone."
        )


def _check_shared(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder {folder}, which rank 0 has made. Its rows and this process's would be in "
            "two caches. Choose a folder on a file system that all processes share."
        )


def _without_number(feature: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in feature.items() if name != ROW_COLUMN}


def _no_barrier() -> None:
    """One process has nobody to wait for."""
