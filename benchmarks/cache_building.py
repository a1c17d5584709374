"""What building a teacher's cache costs beside a bare inference pass in order of length.

Both run the same batches of the same model, in turns: the bare pass takes a batch before each of
the cache's. What is left of the time is the cache's: the teacher, hashes of weights and rows, and
the disk.

PYTHONPATH=. python benchmarks/cache_building.py
"""

import argparse
import tempfile

import numpy as np
import torch

from benchmarks.floors import (
    BERT_BASE,
    COLLATE,
    InferencePass,
    build_teacher,
    glue_lengths,
    random_rows,
    settings,
)
from benchmarks.interleave import Spread, build_parser, report, set_up, timed
from kdnlp import DistillationTrainer, DistillationTrainingArguments, build_student
from kdnlp.trainers.cached import use_cache

MOST = 1.05


def main(argv: list[str] | None = None) -> float:
    """Print the ratio, which it returns."""
    options = parse(argv)
    set_up()
    teacher = build_teacher(options)
    rows = random_rows(glue_lengths(options.rows))
    ratios = []
    for _ in range(options.repeats):
        bare = InferencePass(teacher, rows, options.batch_size)
        whole = float(timed(lambda bare=bare: build(teacher, rows, options, bare))[0])
        bare.finish()
        ratios.append((whole - bare.nested) / bare.seconds)
        print(
            f"{len(rows)} rows: bare pass {bare.seconds:.2f} s, cache {whole - bare.nested:.2f} s"
        )
    return report("building the cache: time to a bare pass's", Spread.of(ratios), most=MOST)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The sizes and repeats."""
    return build_parser(__doc__, 3, rows=768, batch_size=32, **BERT_BASE).parse_args(argv)


def build(teacher, rows, options: argparse.Namespace, bare: InferencePass) -> None:
    """Write a cache, as the first step of training would."""
    with tempfile.TemporaryDirectory() as folder:
        common = settings(f"{folder}/run", 1, options.batch_size)
        args = DistillationTrainingArguments(
            **common,
            cache_teacher_outputs=True,
            teacher_cache_dir=f"{folder}/cache",
            per_device_eval_batch_size=options.batch_size,
        )
        student = build_student(teacher, 1)
        inputs = {"train_dataset": rows, "data_collator": COLLATE}
        trainer = DistillationTrainer(student, teacher, args, **inputs)
        with bare.beside(teacher):
            cache = use_cache(trainer)
        numbers = np.arange(min(len(rows), 8))
        written = cache.read(numbers, COLLATE([rows[int(n)] for n in numbers]))["logits"]
        assert torch.allclose(written, bare.logits_of(numbers), atol=1e-4)


if __name__ == "__main__":
    main()
