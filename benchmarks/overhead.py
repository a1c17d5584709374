"""Milliseconds that a trainer adds to a step of a model so small that nothing hides them.

Beside bare loops that do the same: the stock Trainer on plain fine-tuning, then what kdnlp adds.

PYTHONPATH=. python benchmarks/overhead.py
"""

import argparse
import copy
import tempfile
from collections import defaultdict

import torch
from transformers import Trainer, TrainingArguments

from benchmarks.floors import (
    COLLATE,
    SEED,
    BareLoop,
    batches,
    build_teacher,
    cached_loop,
    glue_lengths,
    plain_loop,
    random_rows,
    settings,
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
    CompressionTrainer,
    CompressionTrainingArguments,
    DistillationTrainer,
    DistillationTrainingArguments,
    TheseusTrainer,
    TheseusTrainingArguments,
    build_student,
)

STOCK, PLAIN, CACHED, THESEUS = "stock Trainer", "plain fine-tuning", "cached teacher", "Theseus"
MOST = {CACHED: 1.2, THESEUS: 1.2}
RATE = 0.5


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the table; returns the milliseconds by name."""
    options = parse(argv)
    set_up()
    added = defaultdict(list)
    for name in in_turns([STOCK, PLAIN, CACHED, THESEUS], options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            trainer, floor = build(name, options, folder)
            beside = train_beside(trainer, Beside({"bare": floor}, options.warmup))
        bare = beside.seconds["bare"]
        added[name] += (1e3 * (beside.own - bare)[:, 0]).tolist()
        added[f"{name}, bare step"] += (1e3 * bare[:, 0]).tolist()
    return {
        name: report(name, Spread.of(values), most=MOST.get(name), unit=" ms")
        for name, values in added.items()
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The sizes and repeats."""
    # Few words: a step is that of the blocks, and not the optimizer's over the embeddings.
    sizes = {"teacher_layers": 4, "student_layers": 2, "hidden_size": 128, "vocab_size": 2000}
    return build_parser(__doc__, 6, steps=100, warmup=10, batch_size=8, **sizes).parse_args(argv)


def build(name: str, options: argparse.Namespace, folder: str) -> tuple[Trainer, BareLoop]:
    """A trainer and the bare loop beside it."""
    teacher = build_teacher(options)
    student = build_student(teacher, options.student_layers)
    steps = options.warmup + options.steps
    rows = random_rows(glue_lengths(steps * options.batch_size), options.vocab_size)
    args = settings(f"{folder}/run", steps, options.batch_size)
    inputs = {"train_dataset": rows, "data_collator": COLLATE}
    ours, theirs = copy.deepcopy((student, teacher))
    data = batches(rows, options.batch_size)
    if name == STOCK:
        del args["overwrite_output_dir"]
        return Trainer(student, TrainingArguments(**args), **inputs), plain_loop(ours, data)
    if name == PLAIN:
        arguments = CompressionTrainingArguments(**args)
        return CompressionTrainer(student, arguments, **inputs), plain_loop(ours, data)
    if name == CACHED:
        cache = {"cache_teacher_outputs": True, "teacher_cache_dir": f"{folder}/cache"}
        arguments = DistillationTrainingArguments(**args, **cache)
        trainer = DistillationTrainer(student, teacher, arguments, **inputs)
        return trainer, cached_loop(ours, data, torch.randn(len(rows), 2))
    arguments = TheseusTrainingArguments(
        **args,
        replacing_schedule="constant",
        initial_replacing_rate=RATE,
        replacing_fraction=1.0,
        allow_incomplete_replacement=True,
    )
    trainer = TheseusTrainer(student, teacher, arguments, **inputs)
    return trainer, theseus_loop(ours, theirs, data, RATE, SEED)


if __name__ == "__main__":
    main()
