"""Two processes of one thread against one process of two, by examples a second.

Both are started by `accelerate launch` and distil the same rows from a cached teacher with the same
batch of an optimizer step; they take turns, run by run.

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

import torch
from accelerate import PartialState

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
from kdnlp import DistillationTrainer, DistillationTrainingArguments, build_student

LEAST = 0.9
WARMUP = 2


def main(argv: list[str] | None = None) -> float | None:
    """Print the ratio, which it returns."""
    options = parse(argv)
    set_up()
    if options.worker:
        return work(options)
    rates: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for name in in_turns(["1", "2"], options.repeats):
            rates[name].append(launch(int(name), options, folder))
    for name, values in rates.items():
        report(f"examples/s of {name} process(es)", Spread.of(values))
    ratios = [two / one for one, two in zip(rates["1"], rates["2"], strict=True)]
    return report("two processes: speed to one's of two threads", Spread.of(ratios), least=LEAST)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The sizes and repeats."""
    parser = build_parser(__doc__, 3, steps=8, batch_size=32, accumulation=1, **BERT_BASE)
    parser.add_argument("--worker", help="folder of a run in a process of its own")
    return parser.parse_args(argv)


def launch(processes: int, options: argparse.Namespace, folder: str) -> float:
    """Examples a second of a run."""
    # --cpu would leave several processes to MPI; --multi_gpu starts them by torchrun, and the
    # variable keeps them on the CPU.
    kind = ["--multi_gpu", "--main_process_port=0"] if processes > 1 else ["--cpu"]
    own = {k: v for k, v in vars(options).items() if k not in ("worker", "repeats")}
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", *kind),
        *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
        *(f"--num_processes={processes}", f"--num_cpu_threads_per_process={2 // processes}"),
        *(__file__, "--worker", folder),
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
    assert torch.get_num_threads() == 2 // processes
    teacher = build_teacher(options)
    steps = options.steps + WARMUP
    rows = random_rows(glue_lengths(steps * options.batch_size * options.accumulation))
    args = DistillationTrainingArguments(
        **settings(
            f"{options.worker}/run",
            steps,
            options.batch_size // processes,
            train_sampling_strategy="group_by_length",
            gradient_accumulation_steps=options.accumulation,
            cache_teacher_outputs=True,
            teacher_cache_dir=f"{options.worker}/cache",
        )
    )
    assert args.world_size == processes
    student = build_student(teacher, options.student_layers)
    inputs = {"train_dataset": rows, "data_collator": COLLATE}
    trainer = DistillationTrainer(student, teacher, args, **inputs)
    seconds = train_beside(trainer, Beside({}, WARMUP)).own[:, 0].sum()
    if args.process_index == 0:
        rate = options.steps * options.batch_size * options.accumulation / seconds
        Path(options.worker, "rate.json").write_text(json.dumps(rate), encoding="utf-8")
    if processes > 1:
        PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
