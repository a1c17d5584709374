"""The model card: assembled from the report of the run, never written by hand."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kdnlp.data.glue import HUB_DATASET
from kdnlp.data.preparation import KINDS
from kdnlp.evaluation.plots import drawable
from kdnlp.evaluation.report import CompressionReport, ModelAccount
from kdnlp.evaluation.rows import absent_lines
from kdnlp.evaluation.tables import (
    class_tables,
    how_table,
    lines_below,
    markdown_table,
    report_rows,
)
from kdnlp.hub.sections import (
    how_to_call,
    limits,
    origin_rows,
    reproduce,
    scores,
    summary,
)
from kdnlp.uploads.card_check import check_card, check_license, own_id_line

TEMPLATE = Path(__file__).with_name("card_template.md")

GLUE_CITATION = """@inproceedings{wang2019glue,
  title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and
    Bowman, Samuel R.},
  booktitle={International Conference on Learning Representations},
  year={2019}
}"""


def build_card(
    report: CompressionReport, name: str, repo_id: str, license: str | None = None
) -> ModelCard:
    """The card of one model of a report.

    Args:
        report: its `run` comes from `kdnlp.evaluation.run.describe_run`, with what
            `kdnlp.hub.origin.describe_origin` says of the base model. What is not on the Hub is
            named in the text only: metadata must not point to a place that nobody else has.
        name: the model's name in the report, such as `successor`.
        repo_id: what the model is called on the Hub.
        license: the licence's Hub id; `None` is that of the base model, where it is known.

    Returns:
        A card that `check_card` has taken: whole, and with metadata that the Hub's classes take.

    Raises:
        ValueError: if `license` is no Hub id, or a value of the run is empty or not a number.
    """
    run = report.run
    card = ModelCard.from_template(
        _metadata(report, name, repo_id, license),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        model_name=repo_id.split("/")[-1],
        repo_id=repo_id,
        own_id=own_id_line(repo_id),
        summary=summary(report, name),
        table=markdown_table(("measured", *(m.name for m in report.models)), report_rows(report)),
        setting="\n\n".join(lines_below(report)),
        scores=scores(report, name),
        classes=class_tables(report, "###"),
        plots=drawable(report),
        hows=how_table(report),
        absent=absent_lines(report),
        trust=", trust_remote_code=True" if run.get("remote_code") else "",
        auto_class=KINDS[run["task_kind"]].auto_class,
        labels=run["label_names"],
        inputs=how_to_call(run),
        training=list(_training_rows(report)),
        reproduce=reproduce(report),
        limits=list(limits(report, name)),
        citations=_citations(run),
    )
    return check_card(str(card), f"The card of {repo_id}")


def _metadata(
    report: CompressionReport, name: str, repo_id: str, license: str | None
) -> ModelCardData:
    run, inherited = report.run, report.run.get("license", {})
    origin = run.get("student_origin", run)
    base = [origin["base_model"]] if origin["base_model_on_hub"] else origin.get("base_model_from")
    own = {"license": check_license(license)} if license is not None else inherited
    return ModelCardData(
        base_model=base[0] if base and len(base) == 1 else base,
        base_model_relation="finetune" if base else None,
        library_name="transformers",
        language="en" if run["dataset"] == HUB_DATASET else None,
        **own,
        pipeline_tag=KINDS[run["task_kind"]].pipeline_tag,
        tags=["kdnlp", run["method"]],
        datasets=[run["dataset"]] if run["dataset"] else None,
        metrics=list(report.metric_names),
        model_name=repo_id.split("/")[-1],
        eval_results=_eval_results(report[name], report),
    )


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


def _training_rows(report: CompressionReport) -> Iterator[tuple[str, str]]:
    """Where the model came from, then every setting that is not empty."""
    run = report.run
    yield from origin_rows(report)
    settings = list(run["arguments"].items())
    settings += [(f"loss `{name}`", config) for name, config in run["losses"].items()]
    names = ("precision", "device", "processes", "optimizer_steps", "epochs")
    for name, value in [*settings, *((name, run[name]) for name in names)]:
        shown = _shown(value)
        if shown:
            yield name, shown


def _shown(value: Any) -> str:
    """A setting in a cell of a table; settings of a setting that are not set are left out.

    >>> _shown({"temperature": 2.0, "layer_map": {"1": 2}, "mask": None})
    'temperature: 2.0, layer_map: (1: 2)'
    >>> _shown(float("inf"))
    'infinity'
    """
    if isinstance(value, dict):
        parts = [
            f"{key}: {f'({inner})' if isinstance(part, dict) else inner}"
            for key, part in value.items()
            if (inner := _shown(part))
        ]
        return ", ".join(parts) or "as it is by default"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    if value in (math.inf, -math.inf):  # as a figure it would be one that is missing
        return str(value).replace("inf", "infinity")
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _citations(run: dict[str, Any]) -> list[str]:
    return [*run["citations"], *([GLUE_CITATION] if run["dataset"] == HUB_DATASET else [])]
