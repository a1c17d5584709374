"""Fine-tune a pretrained encoder on a GLUE task: the predecessor or teacher of the other recipes.

python recipes/glue_finetune.py --config recipes/configs/mrpc.yaml \
    --model google-bert/bert-base-uncased --output_dir out/mrpc
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import DataCollatorWithPadding, set_seed

from kdnlp import (
    GLUE_TASKS,
    CompressionReport,
    CompressionTrainer,
    CompressionTrainingArguments,
    build_compute_metrics,
    evaluate_model,
    load_for_finetuning,
    load_glue,
    parse_arguments,
    publish_results,
)


@dataclass(kw_only=True)
class Script:
    model: str = field(metadata={"help": "Folder or Hub id of a pretrained encoder."})
    task: str = field(metadata={"help": "A GLUE task.", "choices": list(GLUE_TASKS)})
    data_dir: str | None = field(default=None, metadata={"help": "GLUE folder; default the Hub."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens an example has."})


def main(argv: list[str] | None = None) -> CompressionReport | None:
    script, args = parse_arguments((Script, CompressionTrainingArguments), argv, "finetune")
    set_seed(args.seed)  # before the model is built: its head starts at random

    task = GLUE_TASKS[script.task]
    task = replace(task, max_length=script.max_length or task.max_length)
    model, tokenizer = load_for_finetuning(script.model, task)
    data = load_glue(task, tokenizer, script.data_dir)

    trainer = CompressionTrainer(
        model,
        args,
        train_dataset=data["train"],
        eval_dataset=data[task.eval_splits[0]],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=build_compute_metrics(task),
    )
    trainer.train(resume_from_checkpoint=args.checkpoint_to_resume())
    trainer.save_model()

    metrics = {"model": evaluate_model(trainer.student, args, data, task, tokenizer)}
    models = {"model": trainer.student}
    report = publish_results(trainer, models, metrics, task, script.model)
    if report is not None:  # on the main process
        print(Path(args.output_dir, "report.md").read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    main()
