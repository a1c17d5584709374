"""From your own table to a small model: fine-tune, compress by Theseus, account for it.

python recipes/own_dataset.py --model google-bert/bert-base-uncased --train_file reviews.csv \
    --text_columns text --label_column sentiment --num_layers 6 --output_dir out/reviews
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import set_seed

from kdnlp import (
    CompressionReport,
    CompressionTrainer,
    TheseusTrainer,
    TheseusTrainingArguments,
    build_collator,
    build_compute_metrics,
    build_student,
    evaluate_model,
    infer_task,
    load_for_finetuning,
    parse_arguments,
    prepare,
    publish_results,
    read_tables,
)


@dataclass(kw_only=True)
class Script:
    model: str = field(metadata={"help": "Folder or Hub id of a pretrained encoder."})
    train_file: str = field(metadata={"help": "A .csv, .tsv, .json, .jsonl or .parquet file."})
    validation_file: str | None = field(
        default=None, metadata={"help": "The same; default a tenth of the training rows."}
    )
    text_columns: list[str] = field(metadata={"help": "One column, or two for a pair of texts."})
    label_column: str = field(
        default="label",
        metadata={
            "help": "Classes, ids, real numbers, lists of classes, or columns a,b,c of 0, 1."
        },
    )
    num_layers: int = field(default=6, metadata={"help": "Blocks of the successor."})
    max_length: int = field(default=128, metadata={"help": "Most tokens an example has."})


def main(argv: list[str] | None = None) -> CompressionReport | None:
    script, args = parse_arguments((Script, TheseusTrainingArguments), argv, section="theseus")
    set_seed(args.seed)

    # A table says by itself what its task is: a class, several classes, or a number to predict. For
    # a task that no table holds, build a kdnlp.Task and any DatasetDict with its columns.
    rows = read_tables(script.train_file, script.validation_file)
    task = infer_task(rows, script.text_columns, script.label_column)
    task = replace(task, name=Path(script.train_file).stem, max_length=script.max_length)
    predecessor, tokenizer = load_for_finetuning(script.model, task)
    build_student(predecessor, script.num_layers)  # refuses a depth that it has not
    data = prepare(rows, task, tokenizer)

    common = {
        "train_dataset": data["train"],
        "eval_dataset": data["validation"],
        "processing_class": tokenizer,
        "data_collator": build_collator(task, tokenizer),
        "compute_metrics": build_compute_metrics(task, data["validation"]),
    }
    # 1. The predecessor: plain fine-tuning.
    first_args = args.for_baseline(str(Path(args.output_dir, "_predecessor")))
    first = CompressionTrainer(predecessor, first_args, **common)
    first.train()
    first.save_model()

    # 2. The successor, with the same budget again, and what plain fine-tuning would make of it.
    successor = build_student(predecessor, script.num_layers)
    trainer = TheseusTrainer(successor, predecessor, args, **common)
    trainer.train(resume_from_checkpoint=args.checkpoint_to_resume())
    trainer.save_model()
    baseline_args = args.for_baseline(str(Path(args.output_dir, "_baseline")))
    baseline = CompressionTrainer(
        build_student(predecessor, script.num_layers), baseline_args, **common
    )
    baseline.train()

    # 3. What it cost and gained.
    models = {
        "predecessor": predecessor,
        "successor": trainer.student,
        "baseline": baseline.student,
    }
    metrics = {
        name: evaluate_model(model, args, data, task, tokenizer) for name, model in models.items()
    }
    report = publish_results(trainer, models, metrics, task, script.model)
    if report is not None:  # on the main process
        print(Path(args.output_dir, "report.md").read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    main()
