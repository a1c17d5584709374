"""From SQuAD-shaped rows to a small reader: fine-tune a teacher, distil it, account for it.

python recipes/question_answering.py --model google-bert/bert-base-uncased --num_layers 6 \
    --train_file train.json --validation_file dev.json --output_dir out/answers
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
        metadata={"help": "A .json, .jsonl or .parquet file; default generated questions."},
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "The same; default a tenth of the training rows."}
    )
    num_layers: int = field(default=6, metadata={"help": "Blocks of the student."})
    max_length: int = field(default=384, metadata={"help": "Tokens of a window."})
    stride: int | None = field(
        default=None, metadata={"help": "Tokens that two windows share; default a third."}
    )
    max_answer_length: int = field(default=30, metadata={"help": "Most tokens of an answer."})
    num_generated: int = field(default=12_000, metadata={"help": "Questions to generate."})


def main(argv: list[str] | None = None) -> CompressionReport | None:
    script, args = parse_arguments((Script, DistillationTrainingArguments), argv, "distill")
    set_seed(args.seed)

    # Rows as SQuAD has them: question, context, and answers with text and answer_start.
    if script.train_file is None:
        rows = generate("synthetic_answers", script.num_generated)
    else:
        rows = read_tables(script.train_file, script.validation_file)
    name = Path(script.train_file or "synthetic_answers").stem
    task = infer_task(rows, ["question", "context"], "answers", name)
    task = replace(
        task,
        max_length=script.max_length,
        stride=script.stride,
        max_answer_length=script.max_answer_length,
    )
    teacher, tokenizer = load_for_finetuning(script.model, task)
    build_student(teacher, script.num_layers)  # refuses a depth that it has not
    data = prepare(rows, task, tokenizer)  # a row a window; long contexts become several

    common = {
        "train_dataset": data["train"],
        "eval_dataset": data["validation"],
        "processing_class": tokenizer,
        "data_collator": build_collator(task, tokenizer),
        # Logits are positions; with the windows that were evaluated they become answers.
        "compute_metrics": build_compute_metrics(task, data["validation"]),
    }
    # 1. The teacher: plain fine-tuning.
    teacher_args = args.for_baseline(str(Path(args.output_dir, "_teacher")))
    first = CompressionTrainer(teacher, teacher_args, **common)
    first.train()
    first.save_model()

    # 2. The student learns where the answers are and where the teacher looks for them; and what
    # plain fine-tuning makes of the same initial model with the same budget.
    student = build_student(teacher, script.num_layers)
    initial = copy.deepcopy(student)
    losses = {"logits": LogitsLoss()}
    trainer = DistillationTrainer(student, teacher, args, losses, **common)
    trainer.train(resume_from_checkpoint=args.checkpoint_to_resume())
    trainer.save_model()
    baseline_args = args.for_baseline(str(Path(args.output_dir, "_baseline")))
    baseline = CompressionTrainer(initial, baseline_args, **common)
    baseline.train()

    # 3. What it cost and gained, in answers.
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
