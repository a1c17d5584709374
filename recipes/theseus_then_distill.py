"""Compress a GLUE model by BERT-of-Theseus, then let the successor learn from it with all it has.

First the replacing rate rises to 1 and the successor's blocks alone are trained (Xu et al. 2020,
arXiv 2002.02925); then embeddings and head learn too, from soft answers as well (Hinton et al.
2015, arXiv 1503.02531). --replacing_fraction is not read; each stage warms up by
--warmup_steps, which is best a share. One process. As benchmarks/glue ran it, but for the epochs:

python recipes/theseus_then_distill.py --config recipes/configs/minilm.yaml --task mrpc \
    --predecessor out/mrpc --num_layers 3 --output_dir out/mrpc-both
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from transformers import DataCollatorWithPadding, TrainerState, set_seed

from kdnlp import (
    GLUE_TASKS,
    CompressionReport,
    CompressionTrainer,
    CompressionTrainingArguments,
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
from kdnlp.trainers.output_dir import check_output_dir


@dataclass(kw_only=True)
class Script:
    predecessor: str = field(metadata={"help": "Folder or Hub id of a model fine-tuned on --task."})
    task: str = field(metadata={"help": "A GLUE task.", "choices": list(GLUE_TASKS)})
    data_dir: str | None = field(default=None, metadata={"help": "GLUE folder; default the Hub."})
    num_layers: int = field(default=6, metadata={"help": "Blocks of the successor."})
    init_layers: str = field(default="first", metadata={"help": "first, last or spaced."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens an example has."})
    first_share: float = field(default=0.5, metadata={"help": "Share that replaces, in (0, 1)."})


def main(argv: list[str] | None = None) -> CompressionReport | None:
    script, args = parse_arguments((Script, TheseusTrainingArguments), argv, section="theseus")
    theseus_args, rest_args = stages(args, script.first_share)
    checkpoint = args.checkpoint_to_resume()
    resumes = str(args.resume_from_checkpoint).lower() not in ("none", "false")
    if not (resumes or args.overwrite_output_dir):
        check_output_dir(args.output_dir)
    set_seed(args.seed)

    task = GLUE_TASKS[script.task]
    predecessor, tokenizer = load_finetuned(script.predecessor, task)
    task = in_model_order(task, predecessor.config)  # it may number the labels in its own way
    task = replace(task, max_length=script.max_length or task.max_length)
    data = load_glue(task, tokenizer, script.data_dir)
    successor = build_student(predecessor, script.num_layers, script.init_layers)
    common = {
        "train_dataset": data["train"],
        "eval_dataset": data[task.eval_splits[0]],
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
        "compute_metrics": build_compute_metrics(task),
    }
    # A checkpoint of the second stage has the successor as it is by then.
    if checkpoint is None:
        theseus = TheseusTrainer(successor, predecessor, theseus_args, **common)
        theseus.train(resume_from_checkpoint=theseus_args.checkpoint_to_resume())
        theseus.save_model()
        theseus.save_state()
        successor = theseus.student  # all of it can be trained further
    state = Path(theseus_args.output_dir, "trainer_state.json")
    before = TrainerState.load_from_json(str(state)).global_step

    losses = {"logits": LogitsLoss()}
    trainer = DistillationTrainer(successor, predecessor, rest_args, losses, **common)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()  # a plain transformers model; nothing of the predecessor is in it

    # The same initial model, fine-tuned plainly for the steps of both.
    initial = build_student(predecessor, script.num_layers, script.init_layers)
    baseline_args = args.for_baseline(str(Path(args.output_dir, "_baseline")))
    baseline = CompressionTrainer(initial, baseline_args, **common)
    baseline.train()

    names = ("predecessor", "successor", "baseline")
    models = dict(zip(names, (predecessor, trainer.student, baseline.student), strict=True))
    metrics = {n: evaluate_model(m, rest_args, data, task, tokenizer) for n, m in models.items()}
    whole: dict[str, Any] = {
        "method": "theseus-then-distillation",
        "first_share": script.first_share,
        "replacing": [args.replacing_schedule, args.initial_replacing_rate, args.slot_sizes],
        "citations": [TheseusTrainer.citation, DistillationTrainer.citation],
        "optimizer_steps": before + trainer.state.global_step,
        "epochs": None if args.max_steps > 0 else args.num_train_epochs,
    }
    report = publish_results(trainer, models, metrics, task, script.predecessor, **whole)
    if report is not None:  # on the main process
        print(Path(args.output_dir, "report.md").read_text(encoding="utf-8"))
    return report


def stages(args: TheseusTrainingArguments, share: float) -> tuple[Any, Any]:
    """The arguments of Theseus and of distillation, each with its part of the steps or epochs."""
    first, epochs = round(args.max_steps * share), args.num_train_epochs
    if not 0 < share < 1 or (args.max_steps > 0 and not 0 < first < args.max_steps):
        said = f"a part of the run, got {share} of max_steps={args.max_steps}"
        raise ValueError(f"--first_share must leave both stages {said}.")
    if args.unfreeze_after_replacement:
        raise ValueError("--unfreeze_after_replacement: the second stage trains everything anyway.")
    common = {f.name for f in fields(CompressionTrainingArguments)}
    distilling = {f.name for f in fields(DistillationTrainingArguments)}
    values: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(args) if f.init}
    replacing = {n: v for n, v in values.items() if n not in distilling - common} | {
        "output_dir": str(Path(args.output_dir, "_theseus")),
        "overwrite_output_dir": True,
        "push_to_hub": False,
        "load_best_model_at_end": False,  # before the rate is 1 there is no whole successor
        "replacing_fraction": 1.0,
        "allow_incomplete_replacement": True,
        "num_train_epochs": epochs * share,
    }
    rest = {n: v for n, v in values.items() if n in distilling}
    rest["num_train_epochs"] = epochs * (1 - share)
    if args.max_steps > 0:
        replacing["max_steps"], rest["max_steps"] = first, args.max_steps - first
    return TheseusTrainingArguments(**replacing), DistillationTrainingArguments(**rest)


if __name__ == "__main__":
    main()
