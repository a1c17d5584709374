"""`kdnlp finetune`: a pretrained encoder becomes a predecessor or teacher."""

from collections.abc import Sequence

from transformers import set_seed

from kdnlp.arguments import CompressionTrainingArguments
from kdnlp.cli.options import DataOptions, FinetuneOptions
from kdnlp.cli.parsing import parse_arguments, without_config
from kdnlp.cli.shown_command import command_line
from kdnlp.cli.steps import (
    license_of,
    load_task,
    print_report,
    releases_output_dir,
    start,
    trainer_inputs,
)
from kdnlp.evaluation.evaluate import evaluate_model
from kdnlp.hub.publish import publish_results
from kdnlp.models.pretrained import load_for_finetuning
from kdnlp.trainers.base import CompressionTrainer

DESCRIPTION = (
    "Fine-tune a pretrained encoder on a task. OUTPUT_DIR then holds a plain model and tokenizer, "
    "a report and a model card; pass it to `kdnlp theseus` or `kdnlp distill`."
)


_DATACLASSES = (FinetuneOptions, DataOptions, CompressionTrainingArguments)


@releases_output_dir
def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options, data, args = parse_arguments(
        _DATACLASSES,
        argv,
        section=command,
        prog=f"kdnlp {command}",
        description=DESCRIPTION,
    )
    checkpoint = start(args)
    license = license_of(args, options.license, options.model, options.revision)
    set_seed(args.seed)
    task, rows = load_task(data, args.seed)
    model, tokenizer = load_for_finetuning(
        options.model,
        task,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    splits, inputs = trainer_inputs(rows, task, tokenizer, data, args)
    trainer = CompressionTrainer(model, args, **inputs)
    trainer.license = license
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    metrics = evaluate_model(trainer.student, args, splits, task, tokenizer)
    report = publish_results(
        trainer,
        {"model": trainer.student},
        {"model": metrics},
        task,
        base_model=options.model,
        command=command_line(command, without_config(_DATACLASSES, argv, command)),
    )
    print_report(report, str(args.output_dir))
