"""Two processes of one thread against one process of two, and of one, by examples a second.

All are started by `accelerate launch` and train on the same rows with the same batch of a step: a
student on a cached teacher's answers, or a Theseus successor. They take turns, run by run. The
scaling efficiency is the rate of two processes over twice that of one, a thread each.

PYTHONPATH=. python benchmarks/processes.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from benchmarks.floors import BERT_BASE, COLLATE, build_teacher, glue_lengths, random_rows, settings
from benchmarks.interleave import (
    Beside,
    Spread,
    build_parser,
    in_turns,
    report,
    set_up,
    train_beside,
)
from kdnlp import (
    DistillationTrainer,
    DistillationTrainingArguments,
    TheseusTrainer,
    TheseusTrainingArguments,
    build_student,
)
from kdnlp.trainers.base import CompressionTrainer

LEAST = 0.9
WARMUP = 2

TRAINERS = ("distillation", "theseus")
LAYOUTS = {"1 process of 2 threads": (1, 2), "2 processes": (2, 1), "1 process": (1, 1)}
"""Processes, and the threads of each."""


def main(argv: list[str] | None = None) -> dict[str, float] | None:
    """Print the ratios; returns the scaling efficiencies by trainer."""
    options = parse(argv)
    set_up()
    if options.worker:
        return work(options)
    return {name: compare(name, options) for name in options.trainers}


def compare(trainer: str, options: argparse.Namespace) -> float:
    """Print one trainer's rates and ratios; returns its scaling efficiency."""
    rates: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for layout in in_turns(list(LAYOUTS), options.repeats):
            rates[layout].append(launch(trainer, *LAYOUTS[layout], options, folder))
    for layout, values in rates.items():
        report(f"{trainer}: examples/s of {layout}", Spread.of(values))
    one_of_two, two, one = (np.array(rates[layout]) for layout in LAYOUTS)
    text = f"{trainer}, two processes: speed to one's of two threads"
    report(text, Spread.of(two / one_of_two), least=LEAST)
    return report(f"{trainer}: scaling efficiency", Spread.of(two / (2 * one)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The sizes and repeats."""
    parser = build_parser(__doc__, 3, steps=8, batch_size=32, accumulation=1, **BERT_BASE)
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument("--worker", help="folder of a run in a process of its own")
    return parser.parse_args(argv)


def launch(
    trainer: str, processes: int, threads: int, options: argparse.Namespace, folder: str
) -> float:
    """Examples a second of a run."""
    # --cpu would leave several processes to MPI; --multi_gpu starts them by torchrun, and the
    # variable keeps them on the CPU.
    kind = ["--multi_gpu", "--main_process_port=0"] if processes > 1 else ["--cpu"]
    own = {k: v for k, v in vars(options).items() if k not in ("worker", "repeats", "trainers")}
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", *kind),
        *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
        *(f"--num_processes={processes}", f"--num_cpu_threads_per_process={threads}"),
        *(__file__, "--worker", folder, "--trainers", trainer),
        *(part for name, value in own.items() for part in (f"--{name}", str(value))),
    ]
    root = str(Path(__file__).parents[1])
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return float(json.loads(Path(folder, "rate.json").read_text(encoding="utf-8")))


def work(options: argparse.Namespace) -> None:
    """Train on this process's share, and write the rate of all."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    teacher = build_teacher(options)
    steps = options.steps + WARMUP
    rows = random_rows(glue_lengths(steps * options.batch_size * options.accumulation))
    shared = settings(
        f"{options.worker}/run",
        steps,
        options.batch_size // processes,
        train_sampling_strategy="group_by_length",
        gradient_accumulation_steps=options.accumulation,
    )
    trainer = build_trainer(options, teacher, rows, shared)
    args = trainer.args
    assert args.world_size == processes
    seconds = train_beside(trainer, Beside({}, WARMUP)).own[:, 0].sum()
    if args.process_index == 0:
        rate = options.steps * options.batch_size * options.accumulation / seconds
        Path(options.worker, "rate.json").write_text(json.dumps(rate), encoding="utf-8")
    if processes > 1:
        PartialState().destroy_process_group()


def build_trainer(
    options: argparse.Namespace, teacher: PreTrainedModel, rows: Dataset, shared: dict[str, Any]
) -> CompressionTrainer:
    """The trainer that `--trainers` names, with a student of half the blocks."""
    student = build_student(teacher, options.student_layers)
    inputs: dict[str, Any] = {"train_dataset": rows, "data_collator": COLLATE}
    if options.trainers == ["theseus"]:
        args = TheseusTrainingArguments(**shared)
        return TheseusTrainer(student, teacher, args, **inputs)
    cache = {"cache_teacher_outputs": True, "teacher_cache_dir": f"{options.worker}/cache"}
    cached = DistillationTrainingArguments(**shared, **cache)
    return DistillationTrainer(student, teacher, cached, **inputs)


if __name__ == "__main__":
    main()
