"""From tagged sentences to a small tagger: fine-tune a teacher, distil it, account for it.

python recipes/token_classification.py --model google-bert/bert-base-cased --num_layers 6 \
    --train_file train.json --validation_file dev.json --output_dir out/entities
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import set_seed

from kdnlp import (
    CompressionReport,
    CompressionTrainer,
    DistillationTrainer,
    DistillationTrainingArguments,
    LogitsLoss,
    build_collator,
    build_compute_metrics,
    build_student,
    evaluate_model,
    generate,
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
    train_file: str | None = field(
        default=None,
        metadata={"help": "A .json, .jsonl or .parquet file; default generated sentences."},
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "The same; default a tenth of the training rows."}
    )
    words_column: str = field(default="tokens", metadata={"help": "Lists of words."})
    tags_column: str = field(default="tags", metadata={"help": "Lists of tags, a tag a word."})
    label_all_subwords: bool = field(
        default=False, metadata={"help": "Train on every part of a word, not only its first."}
    )
    num_layers: int = field(default=6, metadata={"help": "Blocks of the student."})
    max_length: int = field(default=128, metadata={"help": "Most tokens a sentence has."})
    num_generated: int = field(default=12_000, metadata={"help": "Sentences to generate."})


def main(argv: list[str] | None = None) -> CompressionReport | None:
    script, args = parse_arguments((Script, DistillationTrainingArguments), argv, "distill")
    set_seed(args.seed)

    # Rows of words and tags, as {"tokens": ["Ada", "came"], "tags": ["B-PER", "O"]}.
    if script.train_file is None:
        rows = generate("synthetic_entities", script.num_generated)
    else:
        rows = read_tables(script.train_file, script.validation_file)
    name = Path(script.train_file or "synthetic_entities").stem
    task = infer_task(rows, [script.words_column], script.tags_column, name)
    task = replace(task, max_length=script.max_length, label_all_subwords=script.label_all_subwords)
    teacher, tokenizer = load_for_finetuning(script.model, task)
    build_student(teacher, script.num_layers)  # refuses a depth that it has not
    data = prepare(rows, task, tokenizer)

    common = {
        "train_dataset": data["train"],
        "eval_dataset": data["validation"],
        "processing_class": tokenizer,
        "data_collator": build_collator(task, tokenizer),
        "compute_metrics": build_compute_metrics(task),
    }
    # 1. The teacher: plain fine-tuning.
    teacher_args = args.for_baseline(str(Path(args.output_dir, "_teacher")))
    first = CompressionTrainer(teacher, teacher_args, **common)
    first.train()
    first.save_model()

    # 2. The student learns the tags and the teacher's answers, word by word; and what plain
    # fine-tuning makes of the same initial model with the same budget.
    student = build_student(teacher, script.num_layers)
    initial = copy.deepcopy(student)
    losses = {"logits": LogitsLoss()}
    trainer = DistillationTrainer(student, teacher, args, losses, **common)
    trainer.train(resume_from_checkpoint=args.checkpoint_to_resume())
    trainer.save_model()
    baseline_args = args.for_baseline(str(Path(args.output_dir, "_baseline")))
    baseline = CompressionTrainer(initial, baseline_args, **common)
    baseline.train()

    # 3. What it cost and gained, in whole entities.
    models = {"teacher": teacher, "student": trainer.student, "baseline": baseline.student}
    metrics = {
        name: evaluate_model(model, args, data, task, tokenizer) for name, model in models.items()
    }
    report = publish_results(trainer, models, metrics, task, script.model)
    if report is not None:  # on the main process
        print(Path(args.output_dir, "report.md").read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    main()
