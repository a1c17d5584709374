"""Compress a GLUE model by BERT-of-Theseus, then let the successor learn from it with all it has.

In the first stage the replacing rate rises to 1 and the successor's blocks alone are trained (Xu et
al. 2020, arXiv 2002.02925). In the second the successor is a student like any other: embeddings and
head learn too, from labels and soft answers (Hinton et al. 2015, arXiv 1503.02531), with a
learning rate that warms up again. Both together take the steps that the arguments say.

python recipes/theseus_then_distill.py --config recipes/configs/mrpc.yaml \
    --predecessor out/mrpc --num_layers 6 --output_dir out/mrpc-both
"""

import copy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from transformers import DataCollatorWithPadding, set_seed

from kdnlp import (
    GLUE_TASKS,
    CompressionReport,
    CompressionTrainer,
    DistillationTrainer,
    DistillationTrainingArguments,
    LogitsLoss,
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
    first_share: float = field(
        default=0.5, metadata={"help": "Share of the run that replaces, in (0, 1)."}
    )


def main(argv: list[str] | None = None) -> CompressionReport | None:
    script, args = parse_arguments((Script, TheseusTrainingArguments), argv, section="theseus")
    if not 0 < script.first_share < 1:
        raise ValueError(
            f"--first_share must lie in (0, 1), got {script.first_share}. It is the share of the "
            "run that replaces; without a part of either, use `kdnlp theseus` or `kdnlp distill`."
        )
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
    # A checkpoint of the second stage has the successor as it is by then.
    checkpoint = args.checkpoint_to_resume()
    if checkpoint is None:
        own = first_stage(args, script.first_share)
        theseus = TheseusTrainer(successor, predecessor, own, **common)
        theseus.train(resume_from_checkpoint=own.checkpoint_to_resume())
        theseus.save_model()
        successor = theseus.student  # all of it can be trained further

    rest = second_stage(args, 1 - script.first_share)
    trainer = DistillationTrainer(successor, predecessor, rest, {"logits": LogitsLoss()}, **common)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()  # a plain transformers model; nothing of the predecessor is in it

    # The same initial model, fine-tuned plainly for the steps of both stages.
    baseline_args = args.for_baseline(str(Path(args.output_dir, "_baseline")))
    baseline = CompressionTrainer(initial, baseline_args, **common)
    baseline.train()

    students = {"successor": trainer.student, "baseline": baseline.student}
    models = {"predecessor": predecessor, **students}
    metrics = {
        name: evaluate_model(model, rest, data, task, tokenizer) for name, model in models.items()
    }
    report = publish_results(
        trainer, models, metrics, task, script.predecessor, first_share=script.first_share
    )
    if report is not None:  # on the main process
        print(Path(args.output_dir, "report.md").read_text(encoding="utf-8"))
    return report


def first_stage(args: TheseusTrainingArguments, share: float) -> TheseusTrainingArguments:
    """A share of the run in a folder of its own; the rate is 1 where it ends."""
    own = copy.copy(args)
    own.output_dir = str(Path(args.output_dir, "_theseus"))
    own.overwrite_output_dir, own.push_to_hub = True, False
    own.resume_from_checkpoint = args.resume_from_checkpoint and args.newest_checkpoint_wish()
    own.replacing_fraction, own.allow_incomplete_replacement = 1.0, True
    own.loss_weights = None  # these are the second stage's
    own.num_train_epochs *= share
    if args.max_steps > 0:
        own.max_steps = max(1, round(args.max_steps * share))
    return own


def second_stage(args: TheseusTrainingArguments, share: float) -> DistillationTrainingArguments:
    """The rest of the run, as arguments of distillation."""
    names = [f.name for f in fields(DistillationTrainingArguments) if f.init]
    rest = DistillationTrainingArguments(**{name: getattr(args, name) for name in names})
    rest.num_train_epochs *= share
    if args.max_steps > 0:
        rest.max_steps = max(1, args.max_steps - round(args.max_steps * (1 - share)))
    return rest


if __name__ == "__main__":
    main()
