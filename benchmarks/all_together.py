"""All together: a recipe's defaults against a live teacher on padded random batches in float32.

Both distil a student of half the blocks on the same rows of GLUE, an epoch each, in turns. kdnlp
has batches of like lengths, the teacher's answers from its cache, and bfloat16 where this machine
gains by it; the writing of the cache is shared by `--epochs`. The bare loop is what the peers do by
default: the teacher runs in every step, on random batches padded to their longest row.

PYTHONPATH=. python benchmarks/all_together.py --glue_dir GLUE --model MINILM
"""

import argparse
import copy
import tempfile

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from benchmarks.floors import (
    BERT_BASE,
    COLLATE,
    batches,
    build_teacher,
    glue_lengths,
    random_rows,
    settings,
    teacher_loop,
)
from benchmarks.interleave import (
    Beside,
    Spread,
    build_parser,
    in_turns,
    now,
    report,
    set_up,
    timed,
    train_beside,
)
from kdnlp import (
    GLUE_TASKS,
    DistillationTrainer,
    DistillationTrainingArguments,
    build_student,
    load_glue,
)

LEAST, LEAST_REAL = 2.5, 0.85


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the table; returns the ratios."""
    options = parse(argv)
    set_up()
    rows, teacher = load(options)
    half = {"auto": gains_by_bfloat16(teacher), "yes": True, "no": False}[options.bf16]
    print(f"{len(rows)} rows in batches of {options.batch_size}, bf16: {half}")
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(teacher, rows, options, half, folder)
        shares = {
            "the recipes' batches": real_share(trainer.get_train_dataloader()),
            "random batches": real_share(batches(rows, options.batch_size, True), len(rows)),
        }
        for name, share in shares.items():
            least = LEAST_REAL if name.startswith("the") else None
            report(f"tokens of {name} that are real", Spread.of([share]), least=least)
        writing, own, bare = measure(teacher, rows, options, half, folder)
    steady, whole = bare / own, bare / (own + writing / options.epochs)
    report("examples/s to the bare loop's, the cache there", Spread.of(steady))
    text = f"the same with its writing, over {options.epochs} epochs"
    return {"steady": np.median(steady), "whole": report(text, Spread.of(whole), least=LEAST)}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The data, the model and the sizes."""
    parser = build_parser(__doc__, 2, rows=512, batch_size=32, epochs=5, **BERT_BASE)
    parser.add_argument("--glue_dir", help="folder of GLUE; without it, rows of its lengths")
    parser.add_argument("--task", default="mrpc", help="of GLUE; default mrpc")
    parser.add_argument("--model", help="folder or Hub id of the teacher, with its tokenizer")
    parser.add_argument("--bf16", choices=["auto", "yes", "no"], default="auto")
    return parser.parse_args(argv)


def load(options: argparse.Namespace) -> tuple[Dataset, torch.nn.Module]:
    """The first rows of a task, or random ones of such lengths; and the teacher."""
    teacher = build_teacher(options)
    if options.glue_dir is None:
        return random_rows(glue_lengths(options.rows), teacher.config.vocab_size), teacher
    if options.model is None:
        raise SystemExit("--glue_dir needs --model, for its tokenizer.")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = load_glue(GLUE_TASKS[options.task], tokenizer, options.glue_dir)["train"]
    return rows.select(range(min(options.rows, len(rows)))), teacher


def gains_by_bfloat16(model: torch.nn.Module) -> bool:
    """Whether a forward and a backward pass are faster under autocast here."""
    model = copy.deepcopy(model).train()
    ids = torch.randint(5, 1000, (8, 64))
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}

    def step(half: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            model(input_ids=ids, labels=ids[:, 0] % 2).loss.backward()

    for name in in_turns(seconds, 4):
        seconds[name].append(float(timed(lambda name=name: step(name == "bfloat16"))[0]))
    return bool(np.median(seconds["bfloat16"]) < np.median(seconds["float32"]))


def build_trainer(teacher, rows: Dataset, options: argparse.Namespace, half: bool, folder: str):
    """A trainer with the recipes' defaults and a cached teacher, for one epoch."""
    args = DistillationTrainingArguments(
        **settings(
            f"{folder}/run",
            -(-len(rows) // options.batch_size),
            options.batch_size,
            train_sampling_strategy=DistillationTrainingArguments.train_sampling_strategy,
            per_device_eval_batch_size=options.batch_size,
            bf16=half,
            cache_teacher_outputs=True,
            teacher_cache_dir=f"{folder}/cache",
        )
    )
    student = build_student(teacher, max(1, teacher.config.num_hidden_layers // 2))
    return DistillationTrainer(student, teacher, args, train_dataset=rows, data_collator=COLLATE)


def measure(teacher, rows: Dataset, options: argparse.Namespace, half: bool, folder: str):
    """Seconds: of writing the cache, and of each repeat's epoch, of kdnlp's and the bare one."""
    writing, own, bare = 0.0, [], []
    for _ in range(options.repeats):
        trainer = build_trainer(teacher, rows, options, half, folder)
        student = copy.deepcopy(trainer.student)
        loop = teacher_loop(student, teacher, batches(rows, options.batch_size, shuffle=True))
        beside = Beside({"bare": loop}, warmup=0)
        start = now()
        train_beside(trainer, beside)
        writing = writing or float((beside.begun - start)[0])  # the first one writes it
        own.append(beside.own[:, 0].sum())
        bare.append(beside.seconds["bare"][:, 0].sum())
    return writing, np.array(own), np.array(bare)


def real_share(data, number: int | None = None) -> float:
    """The share of an epoch's tokens that are no padding; `number` rows of batches without end."""
    real = seen = rows = 0
    for batch in data:
        mask = batch["attention_mask"]
        real, seen, rows = real + int(mask.sum()), seen + mask.numel(), rows + len(mask)
        if rows == number:
            break
    return real / seen


if __name__ == "__main__":
    main()
