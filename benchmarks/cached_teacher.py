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

from benchmarks.floors import COLLATE, build_teacher, glue_lengths, random_rows
from benchmarks.interleave import Beside, in_turns, now, set_up, train_beside
from kdnlp import CompressionTrainer, DistillationTrainer, DistillationTrainingArguments
from kdnlp.models.cache import TeacherCache
from kdnlp.models.student import build_student

PLAIN, CACHED, LIVE = "plain fine-tuning", "cached teacher", "live teacher"


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the table; returns the ratios to plain fine-tuning."""
    options = parse(argv)
    set_up()
    teacher = build_teacher(options)
    student = build_student(teacher, options.student_layers)
    number = options.batch_size * (options.warmup + options.steps)
    rows = random_rows(glue_lengths(number, longest=options.max_length), teacher.config.vocab_size)
    data = {"train_dataset": rows, "data_collator": COLLATE}
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


def measure(builders: dict, options: argparse.Namespace, folder: str) -> tuple[dict, dict, float]:
    """Steps per second of every repeat, and the mean losses, by variant; they take turns.

    By the wall clock, and by the processor's, which other work on the machine does not disturb.
    Then the seconds that the first run with a cache took to begin: it writes it.
    """
    speeds: dict[str, list[np.ndarray]] = {name: [] for name in builders}
    losses: dict[str, float] = {}
    begin: dict[str, float] = {}
    for number, name in enumerate(in_turns(builders, options.repeats)):
        trainer = builders[name](arguments(options, Path(folder, str(number))))
        start, beside = now(), train_beside(trainer, Beside({}, options.warmup))
        speeds[name].append(options.steps / beside.own.sum(0))
        losses[name] = trainer.state.log_history[-1]["train_loss"]
        begin.setdefault(name, float((beside.begun - start)[0]))
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
        train_sampling_strategy="random",
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
