"""Models that have learned nothing but one answer, whose score may look as good as any."""

from kdnlp.evaluation.report import CompressionReport


def one_answer_lines(report: CompressionReport) -> list[str]:
    """A sentence for every model of a report that answers all rows of a split alike."""
    found = ((model.name, one_answer_text(report, model.name)) for model in report.models)
    return [f"{name} {text}" for name, text in found if text]


def one_answer_text(report: CompressionReport, name: str) -> str:
    """What a model does that answers all rows of a split alike, as a sentence without its subject.

    Nothing where it gives several answers, or there is one class only, and where a report does not
    tell.
    """
    model = report[name]
    splits = [
        split
        for split, figures in model.behaviour.items()
        if "one_answer" in figures and figures["rows"] > 1
        if len(model.classes.get(split, {})) != 1
    ]
    if not splits:
        return ""
    unit = "word" if report.run.get("task_kind") == "token_classification" else "row"
    answers = dict.fromkeys(
        label
        for split in splits
        for label, own in model.classes.get(split, {}).items()
        if own["accuracy"] == 1 and report.run.get("task_kind") != "multi_label_classification"
    )
    which = f", {', '.join(answers)}" if answers else ""
    return (
        f"gives every {unit} of {', '.join(splits)} the same answer{which}: it tells no {unit}s "
        "apart, and its score is what that answer gets without a model."
    )
