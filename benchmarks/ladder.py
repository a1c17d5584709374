"""What a ladder costs: several students of one teacher, whose answers are cached once.

Beside one bare pass of the teacher and as many bare fine-tunings, which run in turns with it: a
bare step after each of its own, a bare batch before each of the cache's.

PYTHONPATH=. python benchmarks/ladder.py
"""

import argparse
import copy
import tempfile

from benchmarks.floors import (
    BERT_BASE,
    COLLATE,
    InferencePass,
    batches,
    build_teacher,
    glue_lengths,
    plain_loop,
    random_rows,
    settings,
)
from benchmarks.interleave import Beside, Spread, build_parser, report, set_up, timed, train_beside
from kdnlp import DistillationTrainer, DistillationTrainingArguments, build_student
from kdnlp.cli.ladder import parse_depths

MOST = 1.03


def main(argv: list[str] | None = None) -> float:
    """Print the table; returns the fine-tunings' ratio, the teacher's pass taken off."""
    options = parse(argv)
    set_up()
    teacher = build_teacher(options)
    rows = random_rows(glue_lengths(options.rows))
    depths = parse_depths(options.depths, options.teacher_layers)
    whole, training = [], []
    for _ in range(options.repeats):
        ladder, once, plain = measure(teacher, rows, depths, options)
        print(f"ladder {ladder:.1f} s; bare: pass {once:.1f} s, fine-tunings {plain:.1f} s")
        whole.append((once + MOST * plain) / ladder)
        training.append((ladder - once) / plain)
    report(f"ladder of {options.depths}: speed to its bound's", Spread.of(whole), least=1.0)
    text = "without the teacher's pass: time to bare fine-tunings'"
    return report(text, Spread.of(training), most=MOST)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The sizes and repeats."""
    parser = build_parser(__doc__, 1, rows=256, batch_size=16, epochs=3, **BERT_BASE)
    parser.add_argument("--depths", default="6,4,3", help="blocks of each student")
    return parser.parse_args(argv)


def measure(teacher, rows, depths: list[int], options: argparse.Namespace):
    """The seconds of a ladder, of a bare pass and of bare fine-tunings; no step is left out."""
    bare = InferencePass(teacher, rows, options.batch_size)
    ladder = plain = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for depth in depths:
            student = build_student(teacher, depth)
            data = batches(rows, options.batch_size)
            loop = plain_loop(copy.deepcopy(student), data)
            beside = Beside({"bare": loop}, warmup=0)
            before = bare.nested
            with bare.beside(teacher):
                taken = timed(
                    lambda student=student, beside=beside: climb(
                        student, teacher, rows, options, folder, beside
                    )
                )
            bare_steps = beside.seconds["bare"][:, 0]
            plain += bare_steps.sum()
            ladder += taken[0] - bare_steps.sum() - (bare.nested - before)
    bare.finish()
    return ladder, bare.seconds, plain


def climb(student, teacher, rows, options: argparse.Namespace, folder: str, beside: Beside) -> None:
    """Train one student, as `kdnlp ladder` does."""
    steps = options.epochs * len(rows) // options.batch_size
    args = DistillationTrainingArguments(
        **settings(f"{folder}/run", steps, options.batch_size),
        cache_teacher_outputs=True,
        teacher_cache_dir=f"{folder}/cache",
        per_device_eval_batch_size=options.batch_size,
    )
    inputs = {"train_dataset": rows, "data_collator": COLLATE}
    train_beside(DistillationTrainer(student, teacher, args, **inputs), beside)


if __name__ == "__main__":
    main()
