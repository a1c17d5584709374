"""After training: the report and the card beside the model, and all of it to the Hub if asked."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kdnlp.data.task import Task
from kdnlp.evaluation.report import CompressionReport, Metrics
from kdnlp.evaluation.run import describe_run, hub_source
from kdnlp.hub.card import build_card
from kdnlp.hub.origin import describe_origin
from kdnlp.profiling.forward import max_positions
from kdnlp.trainers.base import CompressionTrainer
from kdnlp.uploads.license import as_license


def publish_results(
    trainer: CompressionTrainer,
    models: Mapping[str, PreTrainedModel],
    metrics: Mapping[str, Metrics],
    task: Task,
    base_model: str,
    sequence_length: int | None = None,
    max_seconds: float | None = 60.0,
    license: str | None = None,
    student: str | None = None,
    **run: Any,
) -> CompressionReport | None:
    """Write the report and the card into the run's folder; push it where the arguments say so.

    Every process must call this; one of them measures and writes.

    Args:
        trainer: has trained and saved its model.
        models: what the report compares by name, the original first, the trained one among them.
        metrics: what each scored; see `kdnlp.evaluation.evaluate.evaluate_model`.
        task: what they were trained for.
        base_model: Hub id or folder of the model that the trained one came from or learned from.
            Of a folder only the last part is told.
        sequence_length: tokens per example of latency and FLOPs; `None` is the task's length.
        max_seconds: what measuring the latencies may take, roughly.
        license: the model's licence by its Hub id; `None` is `trainer.license`, or that of the
            model which its weights came from, where the card there says one.
        student: Hub id or folder of the model that the trained one's weights came from, where that
            is not `base_model`, its teacher.
        **run: further plain values for the report, such as the `command`.

    Returns:
        The report, on the main process; `None` on the others.
    """
    args, report = trainer.args, None
    if license is not None:
        trainer.license = as_license(license)
    name = next((name for name, model in models.items() if model is trainer.student), None)
    if name is None:
        raise ValueError(
            f"Expected the trained model among {', '.join(models)}, got others. The card is about "
            "trainer.student; pass it under a name."
        )
    # What the tokenizer cut is what the model has seen, whatever the task allows.
    limits = [getattr(trainer.processing_class, "model_max_length", None)]
    limits += [max_positions(model) for model in models.values()]
    length = min([task.max_length, *(limit for limit in limits if limit)])
    task = replace(task, max_length=length)
    if trainer.is_world_process_zero():
        original = next(iter(models.values()))
        origin = _origin(trainer, original, base_model, student)
        facts = describe_run(trainer, task, **origin, **run)
        # A teacher whose outputs are cached has left the run's device.
        report = CompressionReport.measure(
            models,
            metrics,
            task,
            sequence_length,
            max_seconds=max_seconds,
            run=facts,
            device=args.device,
            history=trainer.state.log_history,
        )
        report.save(str(args.output_dir))
        own_name = Path(str(args.output_dir)).resolve().name
        repo_id = getattr(trainer, "hub_model_id", None) or args.hub_model_id or own_name
        trainer.model_card = str(build_card(report, name, repo_id))
    trainer.accelerator.wait_for_everyone()
    trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_to_hub()
    return report


def _origin(
    trainer: CompressionTrainer, original: PreTrainedModel, base_model: str, student: str | None
) -> dict[str, Any]:
    """What a model was made from, and the licence of whatever its weights came from."""
    revision = getattr(original.config, "_commit_hash", None)
    origin = describe_origin(base_model, revision)
    if student is not None:
        own = describe_origin(student, getattr(trainer.student.config, "_commit_hash", None))
        origin |= {"student": hub_source(own) or own["base_model"], "student_origin": own}
        base_model, revision = student, own.get("base_model_revision")
    known = trainer.find_license(base_model, revision)
    return origin if known is None else {**origin, "license": known.fields}
