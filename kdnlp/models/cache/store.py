"""The folder of a cache: numpy files without padding, and a `meta.json` that describes them."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from kdnlp.models.cache.fields import INDICES, Field, batch_masks, join_outputs, unpack
from kdnlp.models.cache.numbers import STORED_TYPES, decode, dense_logits

FORMAT = 1
META = "meta.json"


@dataclass(frozen=True)
class Layout:
    """What a cache holds.

    Attributes:
        fields: the stored arrays.
        lengths: by kind of mask, how many tokens of each row count, shape (rows,).
        labels: of top-k logits, how many there are; 0 where all logits are stored.
    """

    fields: tuple[Field, ...]
    lengths: Mapping[str, np.ndarray]
    labels: int = 0

    @property
    def rows(self) -> int:
        """How many rows the cache has."""
        return len(next(iter(self.lengths.values())))

    @property
    def nbytes(self) -> int:
        """The size of all arrays on disk, in bytes."""
        lengths = sum(lengths.nbytes for lengths in self.lengths.values())
        return lengths + sum(self.nbytes_of(field) for field in self.fields)

    def nbytes_of(self, field: Field) -> int:
        """The size of one array on disk, in bytes."""
        return self.units(field) * field.unit_bytes

    def units(self, field: Field) -> int:
        """How many rows, tokens, or two tokens of one row an array has."""
        return int(self.offsets(field)[-1])

    def offsets(self, field: Field) -> np.ndarray:
        """Where each row starts, and the last one ends: shape (rows + 1,)."""
        if not field.axes:
            return np.arange(self.rows + 1)
        return np.concatenate([[0], np.cumsum(self.lengths[field.mask].astype(int) ** field.axes)])

    def check_rows(self, rows: np.ndarray, masks: Mapping[str, torch.Tensor]) -> None:
        """Raise `ValueError` unless `rows` are stored, with as many tokens as the masks count."""
        if rows.min() < 0 or rows.max() >= self.rows:
            raise ValueError(
                f"Expected rows from 0 to {self.rows - 1}, got {rows.min()} to {rows.max()}. The "
                "cache was written for another dataset; write one for this."
            )
        for kind, lengths in self.lengths.items():
            got = masks[kind].cpu().numpy().reshape(len(rows), -1).sum(1)
            if not np.array_equal(got, lengths[rows]):
                wrong = int(np.flatnonzero(got != lengths[rows])[0])
                raise ValueError(
                    f"Row {rows[wrong]} has {got[wrong]} tokens in the batch ({kind}), and "
                    f"{lengths[rows[wrong]]} where the cache is from. It would be taught other "
                    "tokens' outputs. Either the cache belongs to other rows, or the collator "
                    "cuts some or adds some: do that by dataset.map."
                )


class TeacherCache:
    """A teacher's outputs on disk, memory-mapped, by row.

    Opening reads the lengths of the rows and maps the rest; nothing else is loaded. It can be sent
    to other processes, such as the workers of a data loader, which map the same files.

    Args:
        folder: one that `cache_teacher` has written.

    Attributes:
        dataset: the numbered rows that a trainer reads it for; it stays in this process.

    Raises:
        ValueError: if the folder is not a whole cache of this format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.dataset: Dataset | None = None
        try:
            self.layout = _read_layout(self.folder)
            self._arrays = {field.name: self._map(field) for field in self.layout.fields}
            files = [array_file(self.folder, field.name) for field in self.layout.fields]
            self._sizes = {file: file.stat().st_size for file in files}
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Expected a teacher cache of format {FORMAT} in {self.folder}, got one that is "
                f"damaged or of another format ({error}). Its rows would be other rows' outputs. "
                "Delete the folder; cache_teacher writes it anew."
            ) from error
        self._offsets = {f.name: self.layout.offsets(f) for f in self.layout.fields if f.axes}

    def __len__(self) -> int:
        return self.layout.rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self.folder),)

    @property
    def nbytes(self) -> int:
        """The size on disk, in bytes."""
        return self.layout.nbytes

    def read(
        self, rows: Sequence[int], batch: Mapping[str, torch.Tensor], dense: bool = True
    ) -> dict[str, Any]:
        """The outputs of some rows, as the teacher would give them for `batch`.

        Args:
            rows: their numbers, in the order of the batch.
            batch: the rows after collation; its masks say how long the batch is, and where in it
                each row's tokens are.
            dense: whether top-k logits are spread over all labels, as `dense` does. Where labels
                are many, that is better done after the batch was moved to its device.

        Returns:
            `logits` as a tensor, other fields as `{layer: tensor}`; float32, zero where there is
            padding.

        Raises:
            ValueError: if a row is not in the cache, or has another number of tokens in it.
            OSError: if a file was removed or cut since the cache was opened.
        """
        self._check_files()
        masks = batch_masks(batch)
        numbers = np.asarray(rows)
        self.layout.check_rows(numbers, masks)
        tensors = {}
        for field in self.layout.fields:
            flat = decode(self._gather(field, numbers), field.dtype)
            tensors[field.name] = unpack(flat, field, masks, self.layout.labels)
        outputs = join_outputs(tensors)
        return self.dense(outputs) if dense else outputs

    def dense(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Outputs with logits of every label; those that were read without `dense`.

        Top-k logits keep the k largest and the mass of the others, which is spread evenly. At
        temperature 1 the k labels have the teacher's probability, to the rounding of the stored
        type. Above 1 an even rest weighs more than the teacher's uneven one, so the k labels have
        less than theirs: choose k such that the rest is small at the temperature of the run.
        """
        if INDICES not in outputs:
            return outputs
        others = {k: v for k, v in outputs.items() if k != INDICES}
        kept = dense_logits(outputs["logits"], outputs[INDICES], self.layout.labels)
        return {**others, "logits": kept}

    def _check_files(self) -> None:
        """Mapped memory beyond the end of a cut file ends the process by SIGBUS, without a word."""
        for file, size in self._sizes.items():
            found = file.stat().st_size if file.is_file() else 0
            if found < size:
                raise OSError(
                    f"Expected {size} bytes in {file}, got {found}: the teacher's outputs were "
                    "removed or cut while a run read them. The next start writes them anew; go on "
                    "from the newest checkpoint with resume_from_checkpoint=last."
                )

    def _gather(self, field: Field, rows: np.ndarray) -> np.ndarray:
        array = self._arrays[field.name]
        if not field.axes:
            return array[rows]
        offsets = self._offsets[field.name]
        ranges = zip(offsets[rows], offsets[rows + 1], strict=True)
        return np.concatenate([array[start:stop] for start, stop in ranges])

    def _map(self, field: Field) -> np.ndarray:
        array = np.load(array_file(self.folder, field.name), mmap_mode="r", allow_pickle=False)
        expected = (self.layout.units(field), *field.shape), STORED_TYPES[field.dtype]
        if (array.shape, array.dtype) != expected:
            raise ValueError(f"{field.name} is {array.dtype} {array.shape}")
        return np.asarray(array)  # indexing a memmap costs twice as much


def _read_layout(folder: Path) -> Layout:
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']}")
    fields = tuple(Field(**{**f, "shape": tuple(f["shape"])}) for f in meta["fields"])
    lengths = {
        name: np.load(folder / f"lengths.{name}.npy", allow_pickle=False)
        for name in meta["lengths"]
    }
    return Layout(fields, lengths, meta["labels"])


def array_file(folder: Path, name: str) -> Path:
    """Where an array is."""
    return folder / f"{name}.npy"
