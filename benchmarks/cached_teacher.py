"""What a live teacher costs a student's training, and what a cached one does.

PYTHONPATH=. python benchmarks/cached_teacher.py --repeats 5 --steps 10
"""

import argparse
import copy
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DataCollatorWithPadding,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils import logging

from kdnlp import CompressionTrainer, DistillationTrainer, DistillationTrainingArguments
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.models.cache import TeacherCache
from kdnlp.models.student import build_student

PLAIN, CACHED, LIVE = "plain fine-tuning", "cached teacher", "live teacher"


class Clock(TrainerCallback):
    """When training began, when the first few steps were done, and when all of them."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.created = self.begun = time.perf_counter()
        self.times: list[tuple[float, float]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        """Note the time: the cache is there."""
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time, after what the device still has to do."""
        if state.global_step in (self.warmup, state.max_steps):
            if args.device.type != "cpu":
                torch.accelerator.synchronize(args.device)
            self.times.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> np.ndarray:
        """Between the two: on the wall, and of the processor."""
        return np.subtract(self.times[1], self.times[0])


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the table; returns the ratios to plain fine-tuning."""
    options = parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    teacher = build_teacher(options)
    student = build_student(teacher, options.student_layers)
    rows = random_rows(options, teacher.config.vocab_size)
    data = {"train_dataset": rows, "data_collator": DataCollatorWithPadding(build_tokenizer())}
    with tempfile.TemporaryDirectory() as folder:
        builders = {
            PLAIN: lambda args: CompressionTrainer(copy.deepcopy(student), args, **data),
            CACHED: lambda args: DistillationTrainer(
                copy.deepcopy(student),
                teacher,
                replace(args, cache_teacher_outputs=True, teacher_cache_dir=f"{folder}/cache"),
                **data,
            ),
            LIVE: lambda args: DistillationTrainer(copy.deepcopy(student), teacher, args, **data),
        }
        speeds, losses, first = measure(builders, options, folder)
        (path,) = (meta.parent for meta in Path(folder, "cache").glob("*/meta.json"))
        cache = TeacherCache(path)
        print(f"cache of {len(rows)} rows: {cache.nbytes / 1e3:.1f} kB, {first:.1f} s to write")
        reading = time_reading(cache, rows, data["data_collator"], options)
    return report(speeds, losses, reading, options)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The sizes and repeats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or Hub id of a fine-tuned teacher")
    parser.add_argument("--teacher_layers", type=int, default=6, help="without --model")
    parser.add_argument("--hidden_size", type=int, default=384, help="without --model")
    parser.add_argument("--student_layers", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="timed ones, per repeat")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock counts")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(argv)


def build_teacher(options: argparse.Namespace):
    """The model that was named, or one of MiniLM's size with random weights."""
    if options.model is not None:
        return AutoModelForSequenceClassification.from_pretrained(
            options.model, dtype=torch.float32
        )
    config = BertConfig(
        hidden_size=options.hidden_size,
        num_hidden_layers=options.teacher_layers,
        num_attention_heads=options.hidden_size // 32,
        intermediate_size=4 * options.hidden_size,
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


def random_rows(options: argparse.Namespace, vocab_size: int) -> Dataset:
    """Rows of a quarter of the longest length and up."""
    rng = np.random.default_rng(0)
    number = options.batch_size * (options.warmup + options.steps)
    lengths = rng.integers(options.max_length // 4, options.max_length + 1, number)
    ids = [rng.integers(5, vocab_size, length).tolist() for length in lengths]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": rng.integers(0, 2, number).tolist(),
        }
    )


def measure(builders: dict, options: argparse.Namespace, folder: str) -> tuple[dict, dict, float]:
    """Steps per second of every repeat, and the mean losses, by variant; they take turns.

    By the wall clock, and by the processor's, which other work on the machine does not disturb.
    Then the seconds that the first run with a cache took to begin: it writes it.
    """
    speeds: dict[str, list[np.ndarray]] = {name: [] for name in builders}
    losses: dict[str, float] = {}
    begin: dict[str, float] = {}
    for repeat in range(options.repeats):
        shift = repeat % len(builders)
        names = [*builders][shift:] + [*builders][:shift]
        for name in names:
            trainer = builders[name](arguments(options, Path(folder, name, str(repeat))))
            clock = Clock(options.warmup)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(clock)
            trainer.train()
            speeds[name].append(options.steps / clock.seconds())
            losses[name] = trainer.state.log_history[-1]["train_loss"]
            begin.setdefault(name, clock.begun - clock.created)
    return speeds, losses, begin[CACHED]


def arguments(options: argparse.Namespace, folder: Path) -> DistillationTrainingArguments:
    """The same for all variants; equal seeds give cached and live training equal batches."""
    return DistillationTrainingArguments(
        output_dir=str(folder),
        max_steps=options.warmup + options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=5e-5,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
        seed=0,
    )


def time_reading(cache, rows: Dataset, collator, options: argparse.Namespace) -> float:
    """Median seconds for reading a batch of the cache, beyond its collation."""
    rng = np.random.default_rng(1)
    times = []
    for _ in range(200):
        numbers = rng.integers(0, len(rows), options.batch_size).tolist()
        batch = collator(rows.__getitems__(numbers))
        start = time.perf_counter()
        cache.read(numbers, batch)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def report(speeds: dict, losses: dict, reading: float, options) -> dict[str, float]:
    """Print the table; returns the ratios."""
    print(
        f"batch {options.batch_size}, up to {options.max_length} tokens, "
        f"{torch.get_num_threads()} threads, medians of {options.repeats} x {options.steps} steps"
    )
    on_cpu = not torch.accelerator.is_available()
    clocks = {name: np.array(values) for name, values in speeds.items()}
    # By repeat: what slows the machine down for a while slows all variants down.
    ratios = {name: np.median(values / clocks[PLAIN], axis=0) for name, values in clocks.items()}
    for name, values in clocks.items():
        wall = values[:, 0]
        spread = f"({wall.min():.3f} to {wall.max():.3f})"
        by_processor = f", {ratios[name][1]:.3f}x by processor time" if on_cpu else ""
        print(
            f"{name:18} {np.median(wall):7.3f} steps/s {spread}  {ratios[name][0]:.3f}x"
            f"{by_processor}"
        )
    share = reading * float(np.median(clocks[CACHED][:, 0]))
    print(f"reading a batch: {reading * 1e6:.0f} us, {share:.3%} of a step with a cached teacher")
    print(f"mean loss: cached {losses[CACHED]:.7f}, live {losses[LIVE]:.7f}")
    return {name: float(ratio[0]) for name, ratio in ratios.items()}


if __name__ == "__main__":
    main()
