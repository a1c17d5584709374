"""The model card: assembled from the report of the run, never written by hand."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kdnlp.data.glue import HUB_DATASET
from kdnlp.data.preparation import KINDS
from kdnlp.evaluation.plots import drawable
from kdnlp.evaluation.report import CompressionReport, ModelAccount
from kdnlp.evaluation.rows import absent_lines
from kdnlp.evaluation.tables import how_table, markdown_table, report_rows, setting_line

TEMPLATE = Path(__file__).with_name("card_template.md")

_METHODS = {
    "theseus": "BERT-of-Theseus module replacement",
    "distillation": "knowledge distillation",
    "fine-tuning": "fine-tuning a shallower model",
}


def build_card(
    report: CompressionReport, name: str, repo_id: str, license: str | None = None
) -> ModelCard:
    """The card of one model of a report.

    Args:
        report: its `run` comes from `kdnlp.evaluation.run.describe_run`, with a `base_model` and
            `base_model_on_hub`. What is not on the Hub is named in the text only: metadata must not
            point to a place that nobody else has.
        name: the model's name in the report, such as `successor`.
        repo_id: what the model is called on the Hub.
        license: the licence's Hub id, where it is known.

    Returns:
        A card whose metadata `huggingface_hub` has validated.
    """
    run, title = report.run, repo_id.split("/")[-1]
    base_model, on_hub = str(run["base_model"]), run["base_model_on_hub"]
    data = ModelCardData(
        base_model=base_model if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        library_name="transformers",
        license=license,
        pipeline_tag=KINDS[run["task_kind"]].pipeline_tag,
        tags=["kdnlp", run["method"]],
        datasets=[run["dataset"]] if run["dataset"] else None,
        metrics=list(report.metric_names),
        model_name=title,
        eval_results=_eval_results(report[name], report),
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        model_name=title,
        repo_id=repo_id,
        summary=_summary(report, name, base_model),
        table=markdown_table(("", *(m.name for m in report.models)), report_rows(report)),
        setting=setting_line(report),
        plots=drawable(report),
        hows=how_table(report),
        absent=absent_lines(report),
        eval_splits=list(report[name].metrics),
        run=run,
        baseline="baseline" if any(m.name == "baseline" for m in report.models) else None,
        trust=", trust_remote_code=True" if run.get("remote_code") else "",
        auto_class=KINDS[run["task_kind"]].auto_class,
        labels=run["label_names"],
        inputs=_inputs(run),
        arguments=_argument_rows(run),
        versions=", ".join(f"{library} {version}" for library, version in run["versions"].items()),
        citations=run["citations"],
    )


def _summary(report: CompressionReport, name: str, origin: str) -> str:
    model, original = report[name], report.original
    if model is original:
        return f"`{origin}` fine-tuned on {report.task}."
    kept, ratios = report.retention(name), report.ratios(name)
    speeds = ", ".join(
        f"{ratios[f'latency_batch_{row.batch_size}']:.2f}x at batch size {row.batch_size}"
        for row in model.latency
    )
    quality = "" if kept is None else f"It keeps {kept:.1f}% of the {original.name}'s score. "
    return (
        f"`{origin}`, fine-tuned on {report.task} and compressed by "
        f"{_METHODS[report.run['method']]} from {original.num_layers} to {model.num_layers} "
        f"transformer blocks. {quality}It takes {ratios['flops']:.2f}x fewer FLOPs; the measured "
        f"speed-up is {speeds}.{_several_teachers(report.run)}"
    )


def _several_teachers(run: dict[str, Any]) -> str:
    """Whose answers were learned, where they are not those of the base model alone."""
    together = run.get("ensemble_metrics")
    if not together:
        return ""
    others = ", ".join(f"`{name}`" for name in run.get("more_teachers", []))
    score = 100 * sum(values["score"] for values in together.values()) / len(together)
    with_them = f", `{run['base_model']}` and {others}," if others else ""
    return f" It learned the mean answer of several teachers{with_them} which scores {score:.1f}%."


def _eval_results(model: ModelAccount, report: CompressionReport) -> list[EvalResult]:
    dataset = report.run["dataset"]
    return [
        EvalResult(
            task_type=KINDS[report.run["task_kind"]].pipeline_tag,
            dataset_type=dataset or report.task,
            dataset_name=f"GLUE {report.task}" if dataset == HUB_DATASET else report.task,
            dataset_config=report.task if dataset else None,
            dataset_split=split,
            metric_type=metric,
            metric_value=round(values[metric], 6),
        )
        for split, values in model.metrics.items()
        for metric in report.metric_names
    ]


def _argument_rows(run: dict[str, Any]) -> list[tuple[str, Any]]:
    rows = list(run["arguments"].items())
    rows += [(f"loss `{name}`", config) for name, config in run["losses"].items()]
    names = ("precision", "device", "processes", "optimizer_steps", "epochs")
    return [*rows, *((name, run[name]) for name in names)]


def _inputs(run: dict[str, Any]) -> str:
    kind = KINDS[run["task_kind"]]
    columns = " and ".join(f"`{column}`" for column in run["text_columns"])
    two_texts = len(run["text_columns"]) == 2
    call = kind.call or ("tokenizer(first, second)" if two_texts else "tokenizer(text)")
    cut = f"Input: {columns}, as `{call}`, cut at {run['max_length']} tokens in training."
    return f"{cut} {kind.answer}".strip()
