"""Rows of about one length together, so that batches hold little padding."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler

from kdnlp.data.columns import column_parts, number_columns

POOL = 50
"""How many optimizer steps are sorted together; which rows these are is drawn at random."""


class LengthGroupedSampler(Sampler[int]):
    """Every row once an epoch, the rows of an optimizer step of about one length.

    The rows are shuffled, sorted by length in pools of 50 steps, cut into steps, and the steps
    shuffled. The step with the longest rows comes first, since what does not fit into memory should
    fail at once; rows that fill no step come last.

    The order depends on the seed and the epoch alone, so that a resumed run finds it again, and all
    processes share it.

    Args:
        lengths: of every row, in tokens.
        step_size: rows of an optimizer step, on all processes and of all micro-batches.
        seed: at least 0.
    """

    def __init__(self, lengths: np.ndarray, step_size: int, seed: int) -> None:
        self.lengths = lengths
        self.step_size = step_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = rng.permutation(len(self.lengths))
        whole = len(rows) // self.step_size * self.step_size
        steps: list[np.ndarray] = []
        for start in range(0, whole, POOL * self.step_size):
            pool = rows[start : min(start + POOL * self.step_size, whole)]
            pool = pool[np.argsort(-self.lengths[pool], kind="stable")]
            steps.extend(pool.reshape(-1, self.step_size))
        order = rng.permutation(len(steps))
        if steps:
            longest = max(order, key=lambda step: self.lengths[steps[step]].max())
            order = np.concatenate([[longest], order[order != longest]])
        for step in order:
            yield from steps[step].tolist()
        rest = rows[whole:]
        yield from rest[np.argsort(-self.lengths[rest], kind="stable")].tolist()


def row_lengths(
    dataset: Any, column: str = "input_ids", counted: str | None = None
) -> np.ndarray | None:
    """The tokens of every row, of its longest list where a row has several (multiple choice).

    Args:
        dataset: the rows.
        column: of token ids.
        counted: a column that says how many they are, which is read where there is one.

    Returns:
        `None` where they are not known without reading every row: for other classes than
        `datasets.Dataset`, and without a column of that name that holds lists.
    """
    if not isinstance(dataset, Dataset):
        return None
    numbers = number_columns(dataset)
    if counted in numbers:
        return np.concatenate([values for _, values in column_parts(dataset, str(counted))])
    if column not in numbers:
        return None
    parts = []
    for depths, _ in column_parts(dataset, column):
        if not depths:
            return None
        *outer, lengths = depths
        for counts in reversed(outer):
            ends = np.cumsum(counts)
            lists = zip(ends - counts, ends, strict=True)
            lengths = np.array([lengths[a:b].max(initial=0) for a, b in lists])
        parts.append(lengths)
    return np.concatenate(parts) if parts else None
