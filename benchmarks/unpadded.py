"""What padding costs a model's forward pass and training step, and what doing without it gains.

PYTHONPATH=. python benchmarks/unpadded.py --repeats 5
"""

import argparse
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.floors import build_teacher, glue_lengths, random_rows
from benchmarks.interleave import in_turns, timed
from kdnlp.models.unpadded import Unpadded

PADDED, UNPADDED = "padded", "unpadded"
GROUPED, BOTH = "grouped by length", "grouped, unpadded"
FORWARD, STEP = "forward", "training step"


def main(argv: list[str] | None = None) -> dict[tuple[str, str], float]:
    """Print the table; returns how many times faster than padded random batches each variant is."""
    options = parse(argv)
    torch.manual_seed(0)
    model = build_teacher(options)
    number = options.batches * options.batch_size
    lengths = glue_lengths(number, options.median_length, options.spread, options.max_length)
    rows = [np.array(ids) for ids in random_rows(lengths)["input_ids"]]
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    random = make_batches(rows, range(len(rows)), options.batch_size)
    grouped = make_batches(rows, order, options.batch_size)
    variants = {
        PADDED: (random, False),
        UNPADDED: (random, True),
        GROUPED: (grouped, False),
        BOTH: (grouped, True),
    }
    print(
        f"{options.batches} batches of {options.batch_size}, {torch.get_num_threads()} threads, "
        f"real tokens: {real_share(random):.0%} of random batches, {real_share(grouped):.0%} of "
        f"batches grouped by length; logits differ by up to {difference(model, random[0]):.1e}"
    )
    return report(measure(model, variants, options))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The sizes and repeats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6, dest="teacher_layers")
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=8, help="timed together, per repeat")
    parser.add_argument("--median_length", type=float, default=22.0, help="tokens a row")
    parser.add_argument("--spread", type=float, default=0.57, help="of the logarithm of the length")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(argv)


def make_batches(rows: list[np.ndarray], order, size: int) -> list[dict[str, torch.Tensor]]:
    """Padded to the longest row of each batch, as a collator does."""
    order, batches = list(order), []
    for start in range(0, len(order), size):
        chosen = [rows[row] for row in order[start : start + size]]
        width = max(map(len, chosen))
        ids = np.stack([np.pad(row, (0, width - len(row))) for row in chosen])
        tensors = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(ids > 0).long()}
        batches.append({**tensors, "labels": torch.arange(len(chosen)) % 2})
    return batches


def real_share(batches: list[dict[str, torch.Tensor]]) -> float:
    """The share of the tokens that are no padding."""
    masks = [batch["attention_mask"] for batch in batches]
    return sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)


def difference(model, batch: dict[str, torch.Tensor]) -> float:
    """Between the logits with padding and without."""
    model.eval()
    with torch.no_grad():
        padded = model(**batch).logits
        with without_padding(model, True):
            return float((model(**batch).logits - padded).abs().max())


@contextmanager
def without_padding(model, wanted: bool):
    """The model unpadded, where that is wanted."""
    unpadded = Unpadded(model) if wanted else None
    try:
        yield
    finally:
        if unpadded is not None:
            unpadded.remove()


def measure(model, variants: dict, options: argparse.Namespace) -> dict:
    """Seconds of wall clock and processor of every repeat; the variants take turns."""
    seconds = {(work, name): [] for work in (FORWARD, STEP) for name in variants}
    for name in in_turns(variants, options.repeats + 1):
        batches, unpadded = variants[name]
        with without_padding(model, unpadded):
            for work in (FORWARD, STEP):
                taken = timed(lambda batches=batches, work=work: run(model, batches, work))
                seconds[work, name].append(taken)
    # The first ones warm up.
    return {key: np.array(values[1:]) for key, values in seconds.items()}


def run(model, batches: list[dict[str, torch.Tensor]], work: str) -> None:
    """One pass over the batches."""
    model.train(work == STEP)
    for batch in batches:
        if work == STEP:
            model(**batch).loss.backward()
            model.zero_grad()
        else:
            with torch.no_grad():
                model(**batch)


def report(seconds: dict) -> dict[tuple[str, str], float]:
    """Print the table; returns the ratios."""
    ratios = {}
    for (work, name), values in seconds.items():
        # By repeat: what slows the machine down for a while slows all variants down.
        gains = seconds[work, PADDED] / values
        ratios[work, name] = float(np.median(gains[:, 0]))
        low, high = gains[:, 0].min(), gains[:, 0].max()
        print(
            f"{work:14} {name:18} {np.median(values[:, 0]) * 1e3:8.0f} ms  "
            f"{ratios[work, name]:.2f}x ({low:.2f} to {high:.2f}), "
            f"{np.median(gains[:, 1]):.2f}x by processor time"
        )
    return ratios


if __name__ == "__main__":
    main()
