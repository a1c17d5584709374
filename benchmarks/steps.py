"""What the trainers add to a training step, and what Theseus's memory is, against bare loops.

Speeds are ratios to the bare loop beside it (above 1 is faster): of a live teacher to a teacher's
forward and a student's step, of Theseus to the sampled path with the predecessor frozen, at the
same draws. Rows with another precision of the teacher say what is gained over the first bare loop.

PYTHONPATH=. python benchmarks/steps.py
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from datasets import Dataset

from benchmarks.floors import (
    BERT_BASE,
    COLLATE,
    SEED,
    BareLoop,
    batches,
    build_teacher,
    glue_lengths,
    random_rows,
    settings,
    teacher_loop,
    theseus_loop,
)
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

LEAST, MOST_MEMORY = 0.98, 1.05
RATES = (0.3, 0.5, 1.0)
TEACHERS = {
    "live teacher": {},
    "live teacher in bfloat16": {"teacher_precision": "bfloat16"},
    "live teacher in int8": {"teacher_precision": "int8"},
    "live teacher compiled": {"compile_teacher": True},
}
THESEUS = {
    **{f"Theseus, rate {rate}": {"initial_replacing_rate": rate} for rate in RATES},
    "Theseus, rate 0.3, skipped blocks rest": {
        "initial_replacing_rate": 0.3,
        "skipped_gradients": "none",
    },
}
WARMUP = 2


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the table; returns the ratios by name."""
    options = parse(argv)
    set_up()
    if options.memory_of:
        return {"peak": peak_memory(options)}
    ratios = measure_speeds(options)
    results = {}
    for name, values in ratios.items():
        least = LEAST if name in THESEUS or name == "live teacher" else None
        wall, processor = np.array(values).T
        note = f", {np.median(processor):.3f} by processor time"
        spread = Spread.of(wall)
        results[name] = report(f"{name}: speed to its floor's", spread, least=least, note=note)
    results["memory"] = compare_memory(options)
    return results


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The sizes and repeats."""
    parser = build_parser(__doc__, 2, steps=6, batch_size=8, **BERT_BASE)
    parser.add_argument("--only", help="rows whose name begins so")
    parser.add_argument("--memory_of", choices=["trainer", "floor"], help="in a process of its own")
    return parser.parse_args(argv)


def measure_speeds(options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """The floor's seconds over the trainer's, on the wall and of the processors, by steps."""
    names = [n for n in {**TEACHERS, **THESEUS} if n.startswith(options.only or "")]
    ratios: dict[str, list[list[float]]] = defaultdict(list)
    for name in in_turns(names, options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            models, rows = build_models(options), build_rows(options)
            floor = build_floor(name, copy.deepcopy(models), rows, options)
            trainer = build_trainer(name, models, rows, options, folder)
            beside = train_beside(trainer, Beside({"floor": floor}, WARMUP))
        ratios[name] += (beside.seconds["floor"] / beside.own).tolist()
    return {name: ratios[name] for name in names}


def build_models(options: argparse.Namespace):
    """Student and teacher."""
    teacher = build_teacher(options)
    return build_student(teacher, options.student_layers), teacher


def build_rows(options: argparse.Namespace) -> Dataset:
    """One for every row of every step."""
    return random_rows(glue_lengths((options.steps + WARMUP) * options.batch_size))


def build_trainer(name: str, models, rows: Dataset, options: argparse.Namespace, folder: str):
    """The trainer of a row of the table."""
    common = settings(folder, options.steps + WARMUP, options.batch_size)
    inputs = {"train_dataset": rows, "data_collator": COLLATE}
    if name in TEACHERS:
        args = DistillationTrainingArguments(**common, **TEACHERS[name])
        return DistillationTrainer(*models, args, **inputs)
    constant = {
        "replacing_schedule": "constant",
        "replacing_fraction": 1.0,
        "allow_incomplete_replacement": True,
    }
    args = TheseusTrainingArguments(**common, **THESEUS[name], **constant)
    return TheseusTrainer(*models, args, **inputs)


def build_floor(name: str, models, rows: Dataset, options: argparse.Namespace) -> BareLoop:
    """The bare loop that the trainer is compared with."""
    data = batches(rows, options.batch_size)
    if name in TEACHERS:
        return teacher_loop(*models, data)
    own = THESEUS[name]
    zero = own.get("skipped_gradients", "zero") == "zero"
    return theseus_loop(*models, data, own["initial_replacing_rate"], SEED, zero)


def peak_memory(options: argparse.Namespace) -> float:
    """Most MB that this process has held after some steps of Theseus, printed as JSON."""
    name, models, rows = next(iter(THESEUS)), build_models(options), build_rows(options)
    if options.memory_of == "trainer":
        with tempfile.TemporaryDirectory() as folder:
            build_trainer(name, models, rows, options, folder).train()
    else:
        floor = build_floor(name, models, rows, options)
        for _ in range(options.steps + WARMUP):
            floor()
    # Not getrusage's, which begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps(peak))
    return peak


def compare_memory(options: argparse.Namespace) -> float:
    """The peak of a process that trains by Theseus, to that of one with the bare loop."""
    sizes = [
        part
        for name in ("steps", "batch_size", *BERT_BASE)
        for part in (f"--{name}", str(getattr(options, name)))
    ]
    peaks: dict[str, list[float]] = defaultdict(list)
    for side in in_turns(["trainer", "floor"], options.repeats):
        command = [sys.executable, __file__, "--memory_of", side, *sizes]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[side].append(json.loads(done.stdout.splitlines()[-1]))
    for side, values in peaks.items():
        report(f"Theseus, peak memory of the {side}'s process", Spread.of(values), unit=" MB")
    pairs = zip(peaks["trainer"], peaks["floor"], strict=True)
    ratio = Spread.of([trainer / floor for trainer, floor in pairs])
    return report("Theseus: peak memory to its floor's", ratio, most=MOST_MEMORY)


if __name__ == "__main__":
    main()
