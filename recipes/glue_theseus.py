"""Compress a fine-tuned GLUE model by BERT-of-Theseus, and account for it.

python recipes/glue_theseus.py --config recipes/configs/mrpc.yaml \
    --predecessor out/mrpc --num_layers 6 --output_dir out/mrpc-theseus
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import DataCollatorWithPadding, set_seed

from kdnlp import (
    GLUE_TASKS,
    CompressionReport,
    CompressionTrainer,
    TheseusTrainer,
    TheseusTrainingArguments,
    build_compute_metrics,
    build_student,
    evaluate_model,
    in_model_order,
    load_finetuned,
    load_glue,
    parse_arguments,
    publish_results,
)


@dataclass(kw_only=True)
class Script:
    predecessor: str = field(metadata={"help": "Folder or Hub id of a model fine-tuned on --task."})
    task: str = field(metadata={"help": "A GLUE task.", "choices": list(GLUE_TASKS)})
    data_dir: str | None = field(default=None, metadata={"help": "GLUE folder; default the Hub."})
    num_layers: int = field(default=6, metadata={"help": "Blocks of the successor."})
    init_layers: str = field(default="first", metadata={"help": "first, last or spaced."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens an example has."})


def main(argv: list[str] | None = None) -> CompressionReport | None:
    script, args = parse_arguments((Script, TheseusTrainingArguments), argv, section="theseus")
    set_seed(args.seed)

    # The predecessor is a model that was fine-tuned on this task; anything else is refused here.
    task = GLUE_TASKS[script.task]
    predecessor, tokenizer = load_finetuned(script.predecessor, task)
    task = in_model_order(task, predecessor.config)  # it may number the labels in its own way
    task = replace(task, max_length=script.max_length or task.max_length)
    data = load_glue(task, tokenizer, script.data_dir)

    # The successor: the same model with fewer blocks, copied from the predecessor's.
    successor = build_student(predecessor, script.num_layers, script.init_layers)
    initial = copy.deepcopy(successor)

    common = {
        "train_dataset": data["train"],
        "eval_dataset": data[task.eval_splits[0]],
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
        "compute_metrics": build_compute_metrics(task),
    }
    trainer = TheseusTrainer(successor, predecessor, args, **common)
    trainer.train(resume_from_checkpoint=args.checkpoint_to_resume())
    trainer.save_model()  # a plain transformers model; nothing of the predecessor is in it

    # The same initial model, fine-tuned plainly with the same budget: what Theseus must beat.
    baseline_args = args.for_baseline(str(Path(args.output_dir, "_baseline")))
    baseline = CompressionTrainer(initial, baseline_args, **common)
    baseline.train()

    models = {
        "predecessor": predecessor,
        "successor": trainer.student,
        "baseline": baseline.student,
    }
    metrics = {
        name: evaluate_model(model, args, data, task, tokenizer) for name, model in models.items()
    }
    report = publish_results(trainer, models, metrics, task, script.predecessor)
    if report is not None:  # on the main process
        print(Path(args.output_dir, "report.md").read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    main()
