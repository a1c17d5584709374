"""What the benchmarks share to measure: variants that take turns step by step, and their ratios."""

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from datasets import disable_progress_bars
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.utils import logging


def now() -> np.ndarray:
    """Seconds on the wall and of this process's processors, once the device has done its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


class Beside(TrainerCallback):
    """Runs a step of other loops after each of a trainer's, and keeps the seconds of all.

    What slows the machine down for a while slows all of them down, and leaves their ratios alone.
    A step of the trainer is timed from the end of the one before: with its data, its callbacks and
    its logs.

    Args:
        others: a step of each loop, by name.
        warmup: steps before the clock counts.
    """

    def __init__(self, others: Mapping[str, Callable[[], object]], warmup: int = 2) -> None:
        self.others = others
        self.warmup = warmup
        self._own: list[np.ndarray] = []
        self._others: dict[str, list[np.ndarray]] = {name: [] for name in others}

    @property
    def own(self) -> np.ndarray:
        """The seconds of the trainer's steps, on the wall and of the processors: (steps, 2)."""
        return np.array(self._own)

    @property
    def seconds(self) -> dict[str, np.ndarray]:
        """The same of the others' steps, by name."""
        return {name: np.array(values) for name, values in self._others.items()}

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.begun = self.before = now()

    def on_step_end(self, args, state, control, **kwargs):
        """Note the trainer's seconds, and let the others do a step."""
        own = now() - self.before
        others = {name: timed(step) for name, step in self.others.items()}
        if state.global_step > self.warmup:
            self._own.append(own)
            for name, taken in others.items():
                self._others[name].append(taken)
        self.before = now()


def timed(call: Callable[[], object]) -> np.ndarray:
    """The seconds that a call takes."""
    start = now()
    call()
    return now() - start


def train_beside(trainer: Trainer, beside: Beside) -> Beside:
    """Train, with a step of the others after each step."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(beside)
    trainer.train()
    return beside


def in_turns(names: Iterable[str], repeats: int) -> Iterable[str]:
    """Every name `repeats` times, each round begun by another one."""
    names = list(names)
    for repeat in range(repeats):
        shift = repeat % len(names)
        yield from names[shift:] + names[:shift]


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of something that was measured many times."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of some values."""
        return cls(*np.quantile(np.asarray(list(values)), [0.25, 0.5, 0.75]).tolist())

    def text(self, digits: int = 3) -> str:
        """For a table."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def report(
    name: str,
    spread: Spread,
    least: float | None = None,
    most: float | None = None,
    unit: str = "",
    note: str = "",
) -> float:
    """Print a line with the target and whether it is met; returns the median."""
    target = ""
    if least is not None or most is not None:
        met = (least is None or spread.median >= least) and (most is None or spread.median <= most)
        bound = f">= {least:g}" if least is not None else f"<= {most:g}"
        target = f"  target {bound}{unit}: {'met' if met else 'MISSED'}"
    print(f"{name:58} {spread.text()}{unit}{note}{target}", flush=True)
    return spread.median


def build_parser(doc: str, repeats: int, **sizes: int) -> argparse.ArgumentParser:
    """A parser with `--repeats` and a flag for each size."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=repeats, help=f"default {repeats}")
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    return parser


def set_up() -> None:
    """Quiet, and the same random numbers in every run."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    torch.manual_seed(0)
