"""How long a batch of random rows takes to read: numpy memmap, Arrow column, shuffled Arrow.

PYTHONPATH=. python benchmarks/cache_storage.py --rows 200000 --batch_size 32
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value, disable_progress_bars, load_from_disk

from kdnlp.models.cache import cache_teacher


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the medians; returns them in microseconds, by way of storing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--labels", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args(argv)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(options.rows, options.labels)).astype(np.float32)
        readers = build_readers(logits, Path(folder))
        batches = rng.integers(0, options.rows, (options.repeats, options.batch_size))
        for name, read in readers.items():
            right = np.array_equal(read(batches[0]), logits[batches[0]])
            assert right == ("shuffled" not in name), name
        medians = measure(readers, batches)
    print(f"batch of {options.batch_size} from {options.rows} rows of {options.labels} logits")
    for name, median in medians.items():
        print(f"{name:30} {median:8.1f} us  {median / medians['numpy memmap']:6.1f}x")
    return medians


def build_readers(logits: np.ndarray, folder: Path) -> dict:
    """For each way of storing, what reads rows into a tensor."""
    np.save(folder / "logits.npy", logits)
    memmap = np.load(folder / "logits.npy", mmap_mode="r")
    features = Features({"logits": Sequence(Value("float32"), length=logits.shape[1])})
    Dataset.from_dict({"logits": logits}, features=features).save_to_disk(folder / "arrow")
    arrow = load_from_disk(folder / "arrow").with_format("torch")
    shuffled = arrow.shuffle(seed=0)
    cache = write_cache(logits, folder)
    token = torch.ones(1, 1)
    return {
        "numpy memmap": lambda rows: torch.from_numpy(memmap[rows]),
        "cache (memmap, rows checked)": lambda rows: cache.read(
            rows, {"attention_mask": token.expand(len(rows), 1)}
        )["logits"],
        "Arrow column": lambda rows: arrow[rows]["logits"],
        "Arrow column, shuffled": lambda rows: shuffled[rows]["logits"],
    }


def write_cache(logits: np.ndarray, folder: Path):
    """The logits as a teacher's, of rows of one token."""
    numbers = np.arange(len(logits))
    rows = Dataset.from_dict({"input_ids": numbers[:, None]})

    def predict(batch):
        return {"logits": torch.from_numpy(logits)[batch["input_ids"][:, 0]]}

    def collate(features):
        return {"input_ids": torch.tensor([feature["input_ids"] for feature in features])}

    options = {"teacher_key": "benchmark", "batch_size": 4096}
    return cache_teacher(predict, rows, collate, folder / "cache", **options)


def measure(readers: dict, batches: np.ndarray) -> dict[str, float]:
    """Median microseconds by reader; they take turns, batch by batch."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for rows in batches:
        for name, read in readers.items():
            start = time.perf_counter()
            read(rows)
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) * 1e6 for name, values in times.items()}


if __name__ == "__main__":
    main()
