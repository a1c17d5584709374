"""Generations of students, each taught by the last, and one that is taught by all of them.

Born-again networks (Furlanello, Lipton, Tschannen, Itti, Anandkumar 2018, arXiv 1805.04770) are as
large as their teacher and start afresh; here every generation starts from the pretrained encoder,
with a head of its own. `--num_layers` makes them smaller.

python recipes/born_again.py --config recipes/configs/mrpc.yaml --teacher out/mrpc \
    --model google-bert/bert-base-uncased --generations 2 --output_dir out/mrpc-born-again
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import DataCollatorWithPadding, PreTrainedModel, set_seed

from kdnlp import (
    GLUE_TASKS,
    CompressionReport,
    DistillationTrainer,
    DistillationTrainingArguments,
    LogitsLoss,
    Task,
    TeacherEnsemble,
    build_compute_metrics,
    build_student,
    evaluate_model,
    in_model_order,
    load_finetuned,
    load_for_finetuning,
    load_glue,
    parse_arguments,
    publish_results,
)


@dataclass(kw_only=True)
class Script:
    teacher: str = field(metadata={"help": "Folder or Hub id of a model fine-tuned on --task."})
    model: str = field(metadata={"help": "Folder or Hub id of the pretrained encoder."})
    task: str = field(metadata={"help": "A GLUE task.", "choices": list(GLUE_TASKS)})
    data_dir: str | None = field(default=None, metadata={"help": "GLUE folder; default the Hub."})
    generations: int = field(default=2, metadata={"help": "Students before the last one."})
    num_layers: int | None = field(
        default=None, metadata={"help": "Blocks of every student; default all of the encoder's."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Most tokens an example has."})


def main(argv: list[str] | None = None) -> CompressionReport | None:
    script, args = parse_arguments((Script, DistillationTrainingArguments), argv, "distill")
    set_seed(args.seed)

    task = GLUE_TASKS[script.task]
    teacher, tokenizer = load_finetuned(script.teacher, task)
    task = in_model_order(task, teacher.config)
    task = replace(task, max_length=script.max_length or task.max_length)
    data = load_glue(task, tokenizer, script.data_dir)
    common = {
        "train_dataset": data["train"],
        "eval_dataset": data[task.eval_splits[0]],
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
        "compute_metrics": build_compute_metrics(task),
    }

    # Each generation learns from the one before it, the first from the teacher.
    models = {"teacher": teacher}
    for number in range(1, script.generations + 1):
        own = copy.copy(args)
        own.output_dir = str(Path(args.output_dir, f"_generation_{number}"))
        own.overwrite_output_dir, own.push_to_hub = True, False
        own.seed = args.seed + number
        student = newborn(script, task, own.seed)
        last = list(models.values())[-1]
        trainer = DistillationTrainer(student, last, own, {"logits": LogitsLoss()}, **common)
        trainer.train()
        trainer.save_model()
        models[f"generation {number}"] = trainer.student

    # All of them together teach the last student. To the losses they are one teacher.
    ensemble = TeacherEnsemble([m for name, m in models.items() if name != "teacher"])
    student = newborn(script, task, args.seed)
    trainer = DistillationTrainer(student, ensemble, args, {"logits": LogitsLoss()}, **common)
    trainer.train(resume_from_checkpoint=args.checkpoint_to_resume())
    trainer.save_model()
    models["student"] = trainer.student

    metrics = {
        name: evaluate_model(model, args, data, task, tokenizer) for name, model in models.items()
    }
    # The ensemble is no model to deploy: its scores stand in report.json, beside the table.
    of_ensemble = evaluate_model(ensemble, args, data, task, tokenizer)
    report = publish_results(
        trainer, models, metrics, task, script.model, ensemble_metrics=of_ensemble
    )
    if report is not None:  # on the main process
        print(Path(args.output_dir, "report.md").read_text(encoding="utf-8"))
        print(f"The ensemble of {script.generations} generations: {of_ensemble}")
    return report


def newborn(script: Script, task: Task, seed: int) -> PreTrainedModel:
    """The pretrained encoder with a fresh head."""
    set_seed(seed)
    encoder, _ = load_for_finetuning(script.model, task)
    return encoder if script.num_layers is None else build_student(encoder, script.num_layers)


if __name__ == "__main__":
    main()
