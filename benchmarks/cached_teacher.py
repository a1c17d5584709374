"""What a live teacher costs a student's training, and what a cached one does.

PYTHONPATH=. python benchmarks/cached_teacher.py --repeats 5 --steps 10
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

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
from kdnlp.models.cache import TEACHER_OUTPUTS, CachedCollator, cache_teacher
from kdnlp.models.cache.fingerprint import fingerprint_model
from kdnlp.models.cache.rows import with_row_numbers
from kdnlp.models.student import build_student

PLAIN, CACHED, LIVE = "plain fine-tuning", "cached teacher", "live teacher"


class CachedDistillation(DistillationTrainer):
    """A student whose teacher's outputs are in the batch."""

    def partner_outputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the batch brought along."""
        return inputs[TEACHER_OUTPUTS]


class Clock(TrainerCallback):
    """When the first few steps, and when all of them, were done."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.start = self.end = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time, after what the device still has to do."""
        if state.global_step in (self.warmup, state.max_steps):
            if args.device.type != "cpu":
                torch.accelerator.synchronize(args.device)
            self.start, self.end = self.end, time.perf_counter()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the table; returns the ratios to plain fine-tuning."""
    options = parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    teacher = build_teacher(options)
    student = build_student(teacher, options.student_layers)
    rows = with_row_numbers(random_rows(options, teacher.config.vocab_size))
    collator = DataCollatorWithPadding(build_tokenizer())
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cache = write_cache(teacher, rows, collator, folder, options.batch_size)
        print(
            f"cache of {len(rows)} rows: {cache.nbytes / 1e3:.1f} kB, "
            f"{time.perf_counter() - start:.1f} s to write"
        )
        common = {"train_dataset": rows, "data_collator": CachedCollator(collator, cache)}
        live = {"train_dataset": rows.remove_columns("teacher_row"), "data_collator": collator}
        builders = {
            PLAIN: lambda args: CompressionTrainer(copy.deepcopy(student), args, **live),
            CACHED: lambda args: CachedDistillation(
                copy.deepcopy(student), teacher, args, **common
            ),
            LIVE: lambda args: DistillationTrainer(copy.deepcopy(student), teacher, args, **live),
        }
        speeds, losses = measure(builders, options, folder)
        reading = time_reading(cache, rows, collator, options)
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


def write_cache(teacher, rows: Dataset, collator, folder: str, batch_size: int):
    """The teacher's logits for all rows."""
    device = DistillationTrainingArguments(f"{folder}/none").device
    teacher.to(device)

    def predict(batch):
        inputs = {k: batch[k].to(device) for k in ("input_ids", "attention_mask")}
        return {"logits": teacher(**inputs).logits}

    options = {"teacher_key": fingerprint_model(teacher), "batch_size": batch_size}
    return cache_teacher(predict, rows, collator, Path(folder, "cache"), **options)


def measure(builders: dict, options: argparse.Namespace, folder: str) -> tuple[dict, dict]:
    """Steps per second of every repeat, and the last losses, by variant; they take turns."""
    speeds: dict[str, list[float]] = {name: [] for name in builders}
    losses: dict[str, float] = {}
    for repeat in range(options.repeats):
        shift = repeat % len(builders)
        names = [*builders][shift:] + [*builders][:shift]
        for name in names:
            clock = Clock(options.warmup)
            trainer = builders[name](arguments(options, Path(folder, name, str(repeat))))
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(clock)
            trainer.train()
            speeds[name].append(options.steps / (clock.end - clock.start))
            losses[name] = trainer.state.log_history[-1]["train_loss"]
    return speeds, losses


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
        batch = collator(rows.remove_columns("teacher_row").__getitems__(numbers))
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
    # By repeat: what slows the machine down for a while slows all variants down.
    ratios = {
        name: float(np.median(np.divide(values, speeds[PLAIN]))) for name, values in speeds.items()
    }
    for name, values in speeds.items():
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:18} {np.median(values):7.3f} steps/s  ({spread})  {ratios[name]:6.3f}x")
    share = reading * float(np.median(speeds[CACHED]))
    print(f"reading a batch: {reading * 1e6:.0f} us, {share:.3%} of a step with a cached teacher")
    print(f"mean loss: cached {losses[CACHED]:.7f}, live {losses[LIVE]:.7f}")
    return ratios


if __name__ == "__main__":
    main()
