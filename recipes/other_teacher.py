"""Distil a teacher with its own tokenizer into a student of another family, on your own table.

With `--teacher_columns text summary` the teacher reads a column more, which the student never sees
and which need not exist once it is deployed. Either way the teacher must have been fine-tuned on
what it reads, by `kdnlp finetune` with these columns as its `--text_columns`.

python recipes/other_teacher.py --train_file reviews.csv --text_columns text \
    --label_column sentiment --teacher out/roberta-reviews \
    --student google-bert/bert-base-uncased --num_layers 6 --output_dir out/reviews-distilled
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
    TeacherInputsCollator,
    add_teacher_inputs,
    build_compute_metrics,
    build_student,
    evaluate_model,
    in_model_order,
    infer_task,
    load_finetuned,
    load_for_finetuning,
    parse_arguments,
    prepare,
    publish_results,
    read_tables,
)


@dataclass(kw_only=True)
class Script:
    teacher: str = field(metadata={"help": "Folder or Hub id of a model fine-tuned on the table."})
    student: str = field(metadata={"help": "Folder or Hub id of a pretrained encoder."})
    num_layers: int | None = field(
        default=None, metadata={"help": "Blocks of the student; default all of its encoder's."}
    )
    train_file: str = field(metadata={"help": "A .csv, .tsv, .json, .jsonl or .parquet file."})
    validation_file: str | None = field(
        default=None, metadata={"help": "The same; default a tenth of the training rows."}
    )
    text_columns: list[str] = field(metadata={"help": "What the student reads: one or two."})
    teacher_columns: list[str] | None = field(
        default=None, metadata={"help": "What the teacher reads: one or two; default the same."}
    )
    label_column: str = field(default="label", metadata={"help": "Classes, ids or real numbers."})
    max_length: int = field(default=128, metadata={"help": "Most tokens an example has."})


def main(argv: list[str] | None = None) -> CompressionReport | None:
    script, args = parse_arguments((Script, DistillationTrainingArguments), argv, "distill")
    set_seed(args.seed)

    # One task, which teacher and student read in two ways.
    rows = read_tables(script.train_file, script.validation_file)
    task = infer_task(rows, script.text_columns, script.label_column)
    task = replace(task, name=Path(script.train_file).stem, max_length=script.max_length)
    teacher, teacher_tokenizer = load_finetuned(script.teacher, task)
    task = in_model_order(task, teacher.config)
    teacher_columns = tuple(script.teacher_columns or script.text_columns)
    student, tokenizer = load_for_finetuning(script.student, task)
    if script.num_layers is not None:
        student = build_student(student, script.num_layers)
    initial = copy.deepcopy(student)

    # The training rows carry the teacher's token ids beside the student's, as teacher_input_ids.
    data = prepare(rows, task, tokenizer)
    train = add_teacher_inputs(
        data["train"],
        rows["train"],
        teacher_tokenizer,
        teacher_columns,
        max_length=min(script.max_length, teacher_tokenizer.model_max_length),
        label_column=script.label_column,
    )
    common = {
        "eval_dataset": data["validation"],
        "processing_class": tokenizer,
        "data_collator": TeacherInputsCollator({"": tokenizer, "teacher_": teacher_tokenizer}),
        "compute_metrics": build_compute_metrics(task),
    }
    losses = {"logits": LogitsLoss()}
    trainer = DistillationTrainer(student, teacher, args, losses, train_dataset=train, **common)
    trainer.train(resume_from_checkpoint=args.checkpoint_to_resume())
    trainer.save_model()

    baseline_args = args.for_baseline(str(Path(args.output_dir, "_baseline")))
    baseline = CompressionTrainer(initial, baseline_args, train_dataset=data["train"], **common)
    baseline.train()

    # Each is evaluated on what it reads.
    theirs = prepare(rows, replace(task, text_columns=teacher_columns), teacher_tokenizer)
    models = {"teacher": teacher, "student": trainer.student, "baseline": baseline.student}
    metrics = {
        "teacher": evaluate_model(teacher, args, theirs, task, teacher_tokenizer),
        "student": evaluate_model(trainer.student, args, data, task, tokenizer),
        "baseline": evaluate_model(baseline.student, args, data, task, tokenizer),
    }
    report = publish_results(
        trainer, models, metrics, task, script.student, teacher_columns=list(teacher_columns)
    )
    if report is not None:  # on the main process
        print(Path(args.output_dir, "report.md").read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    main()
