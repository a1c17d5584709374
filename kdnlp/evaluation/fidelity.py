"""What the models of a report answered, compared with each other: behaviour and tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdnlp.evaluation.behaviour import absent_figures, class_accuracy, describe_behaviour
from kdnlp.evaluation.kept import LIMIT_MB, Evaluation, Predictions
from kdnlp.evaluation.significance import Answers, PairedTest, can_resample, paired_tests

BASELINE = "baseline"
"""What a report calls the model that plain fine-tuning makes with the same budget."""

WITHOUT_PREDICTIONS = (
    "the metrics came without predictions; kdnlp.evaluate_model returns both, and a report of an "
    "earlier version has none"
)


@dataclass(frozen=True)
class Fidelity:
    """What predictions tell of the models of a report.

    Attributes:
        behaviour: by model and split, figures by name; see `describe_behaviour`.
        classes: by model, split and class; see `class_accuracy`.
        tests: of every model against the original, and against the baseline.
        absent: by name, why a figure is not there.
        predictions: by model and split, to be kept beside the report.
    """

    behaviour: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    classes: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=dict)
    tests: tuple[PairedTest, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)
    predictions: dict[str, dict[str, Predictions]] = field(default_factory=dict)


def compare_answers(
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]], metric_names: Sequence[str]
) -> Fidelity:
    """Compare the models' answers with the original's and the baseline's.

    Args:
        metrics: by model, the original first; what `evaluate_model` returned holds predictions.
        metric_names: the task's metrics.

    Returns:
        What could be compared; `absent` says of the rest why it could not.
    """
    predictions = {
        name: values.predictions
        for name, values in metrics.items()
        if isinstance(values, Evaluation) and values.predictions
    }
    original, *_ = metrics
    if set(predictions) != set(metrics):
        return Fidelity(absent={"behaviour": WITHOUT_PREDICTIONS})
    absent = absent_figures(next(iter(predictions[original].values())).kind)
    others = {n: s for n, s in predictions.items() if n != original}
    alike = {n: s for n, s in others.items() if _same_rows(s, predictions[original])}
    if len(alike) < len(others):
        absent["comparison"] = (
            f"{', '.join(sorted(set(others) - set(alike)))} did not answer the rows of the "
            f"{original} one by one, as where two tokenizers cut texts at different words"
        )
    tests = _tests({original: predictions[original], **alike}, metric_names, absent)
    size = sum(p.size_mb for splits in predictions.values() for p in splits.values())
    if size > LIMIT_MB:
        absent["kept predictions"] = (
            f"they take {size:.0f} MB, and {LIMIT_MB} is the limit; runs cannot be tested against "
            "each other row by row"
        )
    return Fidelity(
        {
            name: {
                split: describe_behaviour(
                    own, predictions[original][split] if name in alike else None
                )
                for split, own in splits.items()
            }
            for name, splits in predictions.items()
        },
        {n: {s: class_accuracy(own) for s, own in by.items()} for n, by in predictions.items()},
        tuple(tests),
        absent,
        predictions if size <= LIMIT_MB else {},
    )


def _tests(
    models: Mapping[str, Answers], metric_names: Sequence[str], absent: dict[str, str]
) -> list[PairedTest]:
    original, *others = models
    baseline = [BASELINE] if BASELINE in others else []
    made = [name for name in others if name != BASELINE]
    pairs = [(name, reference) for reference in baseline for name in made]
    pairs += [(name, original) for name in others]
    if made and not baseline:
        absent["test against a baseline"] = "no baseline was trained or measured"
    if not pairs:
        return []
    if not can_resample(next(iter(models[original].values())), metric_names):
        absent["tests"] = f"{', '.join(metric_names)} cannot be resampled for this kind of task"
        return []
    return paired_tests(models, metric_names, pairs)


def _same_rows(first: Answers, second: Answers) -> bool:
    return list(first) == list(second) and all(
        own.same_rows(second[split]) for split, own in first.items()
    )
