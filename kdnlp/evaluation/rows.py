"""The rows of a report: a label, a cell for every model, and how the figures were measured."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kdnlp.evaluation.behaviour import CALIBRATION_BINS
from kdnlp.evaluation.fidelity import BASELINE
from kdnlp.evaluation.metrics import KIND_METRICS
from kdnlp.evaluation.report import CompressionReport, ModelAccount
from kdnlp.evaluation.significance import PairedTest
from kdnlp.evaluation.speed import PERCENTILES_NOTE, mark, shown_percentiles

MOST_CLASSES = 20
"""Of more, the table shows those with the most rows; `report.json` has all."""

MISSING = "-"


@dataclass(frozen=True)
class ReportRow:
    """One row of a report.

    Attributes:
        label: what it is, with its unit.
        cells: a cell for every model, in the report's order.
        how: how the figures were measured, in a sentence or two.
    """

    label: str
    cells: tuple[str, ...]
    how: str


def rows_of(report: CompressionReport) -> list[ReportRow]:
    """All rows of a report but those of single classes.

    A ratio in brackets says how many times less than the original a model takes.
    """
    rows = [_row(report, "blocks", lambda m: str(m.num_layers), "Transformer blocks, counted.")]
    rows += [*_scores(report), *_behaviour(report)]
    for against in (BASELINE, report.original.name):
        rows += _tests(report, against)
    return [*rows, *_costs(report), *_latencies(report)]


def class_rows(report: CompressionReport, split: str) -> list[tuple[str, ...]]:
    """The accuracy of every class on a split, as cells: class, its rows, then a cell per model."""
    by_model = [model.classes.get(split, {}) for model in report.models]
    # Cut at another place, a model's sentences may have a class that the original's lack.
    counts = {name: int(value["rows"]) for own in reversed(by_model) for name, value in own.items()}
    shown = sorted(counts, key=lambda name: -counts[name])[:MOST_CLASSES]
    return [
        (
            name,
            str(counts[name]),
            *(f"{100 * own[name]['accuracy']:.1f}" if name in own else MISSING for own in by_model),
        )
        for name in counts
        if name in shown
    ]


def class_note(report: CompressionReport, split: str) -> str:
    """What the accuracies of the classes are shares of, and which are left out."""
    count = len({name for model in report.models for name in model.classes.get(split, {})})
    of = "the rows of a class that were given it"
    if report.run.get("task_kind") == "multi_label_classification":
        of = "all rows, on which having the label or not was decided rightly"
    if _is_tagging(report):
        of = "the words with a tag that were given it"
    left_out = f" The {MOST_CLASSES} of {count} classes with the most rows."
    return f"Percent of {of}.{left_out if count > MOST_CLASSES else ''}"


def absent_lines(report: CompressionReport) -> list[str]:
    """What is not in the report, with the reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in report.absent.items():
        by_reason.setdefault(reason, []).append(name.replace("_", " "))
    return [f"No {', no '.join(names)}: {reason}." for reason, names in by_reason.items()]


def _row(
    report: CompressionReport, label: str, cell: Callable[[ModelAccount], str], how: str
) -> ReportRow:
    return ReportRow(label, tuple(cell(model) for model in report.models), how)


def _scores(report: CompressionReport) -> Iterator[ReportRow]:
    for split, values in report.original.metrics.items():
        for name in (name for name in report.metric_names if name in values):
            what = _what_a_metric_is(report, name)
            yield _row(
                report,
                f"{name}, %{_of_split(report, split)}",
                lambda m, s=split, n=name: f"{100 * m.metrics[s][n]:.1f}",  # type: ignore[misc]
                f"{what} {_measured_on(report, split)}",
            )
    if len(report.metric_names) * len(report.original.metrics) > 1:
        how = "The plain mean of the metrics above."
        yield _row(report, "score, % (mean)", lambda m: f"{100 * m.score:.1f}", how)
    if len(report.models) > 1:
        how = f"The score as percent of the {report.original.name}'s."
        yield _row(report, "score kept, %", lambda m: _percent(report, m), how)


def _what_a_metric_is(report: CompressionReport, name: str) -> str:
    positive = report.run.get("positive_class")
    if name == "f1" and positive is not None:
        return f"F1 of the class {positive}."
    metrics = KIND_METRICS.get(report.run.get("task_kind", ""), {})
    return metrics[name].description_text if name in metrics else "The task's metric."


def _measured_on(report: CompressionReport, split: str) -> str:
    rows = report.original.behaviour.get(split, {}).get("rows")
    what = "words with a tag" if _is_tagging(report) else "labelled rows"
    count = "" if rows is None else f"{rows:.0f} {what} of the "
    seed = report.run.get("seed")
    which = "" if seed is None else f", seed {seed}"
    return f"On the {count}{split} split, once{which}{_flattered(report, split)}."


def _flattered(report: CompressionReport, split: str) -> str:
    chosen, splits = report.run.get("selected_on"), list(report.original.metrics)
    if not chosen:
        return ""
    on = splits[0] if len(splits) == 1 else report.run.get("selected_on_split")
    if on is None:
        return f"; the checkpoint was chosen by {chosen} on one of the splits, which flatters it"
    if on != split:
        return f"; the checkpoint was chosen on {on}"
    return f"; the checkpoint was chosen by {chosen} on it, which flatters it"


def _is_tagging(report: CompressionReport) -> bool:
    return report.run.get("task_kind") == "token_classification"


_FIGURES = {
    "agreement": (
        "agreement with the {original}, %",
        100,
        "{:.1f}",
        "The share of {items} that the model answers as the {original} does, rightly or wrongly.",
    ),
    "kl_divergence": (
        "KL from the {original}, nats",
        1,
        "{:.3f}",
        "Kullback-Leibler divergence of the model's predicted probabilities from the {original}'s "
        "at temperature 1, the mean over {items}, and over labels where a row has several.",
    ),
    "correlation": (
        "correlation with the {original}",
        1,
        "{:.3f}",
        "Pearson's correlation of the model's numbers with the {original}'s.",
    ),
    "mean_difference": (
        "distance to the {original}",
        1,
        "{:.3f}",
        "The mean absolute difference of the model's numbers and the {original}'s, in the unit of "
        "the labels.",
    ),
    "calibration_error": (
        "calibration error (ECE), %",
        100,
        "{:.1f}",
        f"Expected calibration error over {CALIBRATION_BINS} bins of equal width (Guo et al. 2017) "
        "of the probability of the answer given, at temperature 1; 0 is best.",
    ),
}
"""Label, factor, format and how it is measured, by the name in `ModelAccount.behaviour`."""


def _behaviour(report: CompressionReport) -> Iterator[ReportRow]:
    words = {"original": report.original.name, "items": "words" if _is_tagging(report) else "rows"}
    for split in report.original.metrics:
        for name, (label, factor, form, how) in _FIGURES.items():
            found = [model.behaviour.get(split, {}) for model in report.models]
            if any(name in figures for figures in found):
                yield ReportRow(
                    f"{label.format(**words)}{_of_split(report, split)}",
                    tuple(form.format(factor * f[name]) if name in f else MISSING for f in found),
                    f"{how.format(**words)} {_measured_on(report, split)}",
                )


def _tests(report: CompressionReport, against: str) -> list[ReportRow]:
    tests = {test.model: test for test in report.tests if test.against == against}
    if not tests:
        return []
    first = next(iter(tests.values()))
    units = "sentences" if _is_tagging(report) else "rows"
    bootstrap = (
        f"{first.resamples} draws of the {first.rows} {units} with replacement, the same for both, "
        f"seed {first.seed}"
    )
    rows = [
        ReportRow(
            f"score above the {against}, points [95%]",
            tuple(_difference(tests.get(model.name)) for model in report.models),
            f"Score minus the {against}'s, in percentage points; in brackets the 95% interval of "
            f"the paired bootstrap (Efron and Tibshirani 1993): {bootstrap}. It tells what other "
            f"{units} might have given, not what another seed would.",
        )
    ]
    mcnemar = any(test.p_mcnemar is not None for test in tests.values())
    both = " / McNemar" if mcnemar else ""
    exact = (
        "; and of McNemar's exact test (1947) on the rows that only one of the two got right"
        if mcnemar
        else ""
    )
    rows.append(
        ReportRow(
            f"p against the {against}: bootstrap{both}",
            tuple(_p_values(tests.get(model.name)) for model in report.models),
            f"Two-sided p-values: of that bootstrap{exact}. Not corrected for the number of tests.",
        )
    )
    return rows


def _difference(test: PairedTest | None) -> str:
    if test is None:
        return MISSING
    return f"{100 * test.difference:+.1f} [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"


def _p_values(test: PairedTest | None) -> str:
    if test is None:
        return MISSING
    return " / ".join(p_value(p) for p in (test.p_bootstrap, test.p_mcnemar) if p is not None)


def p_value(p: float) -> str:
    """A p-value with what digits it is worth.

    >>> p_value(0.0004), p_value(0.0312), p_value(0.5)
    ('<0.001', '0.031', '0.50')
    """
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _costs(report: CompressionReport) -> Iterator[ReportRow]:
    tokens = report.setting.sequence_length
    costs: tuple[tuple[str, str, Callable[[ModelAccount], str], str], ...] = (
        ("parameters", "parameters", lambda m: _count(m.parameters), "All, shared ones once."),
        (
            "parameters_without_embeddings",
            "outside embeddings",
            lambda m: _count(m.parameters_without_embeddings),
            "Parameters outside the tables of embeddings, which fewer blocks do not shrink.",
        ),
        (
            "size_mb",
            "on disk, MB",
            lambda m: _megabytes(m.size_mb),
            "The weights as they are saved, each in its own type, in 10^6 bytes.",
        ),
        (
            "flops",
            "GFLOPs / example",
            lambda m: f"{m.flops / 1e9:.3g}",
            f"Counted in one forward pass of an example of {tokens} tokens without padding: "
            "matrix products, 2 per multiply-add.",
        ),
    )
    for quantity, label, value, how in costs:
        yield ReportRow(label, _with_ratio(report, quantity, value), how)


def _latencies(report: CompressionReport) -> Iterator[ReportRow]:
    setting = report.setting
    marks = {(n, row.batch_size): mark(a, row.speedup) for n, row, a in report.agreements()}
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    turns = ", the models taking turns" if len(report.models) > 1 else ""
    for position, latency in enumerate(report.original.latency):
        repeats = min(model.latency[position].repeats for model in report.models)
        yield ReportRow(
            f"batch {latency.batch_size}: p50 / p90 / p99, ms",
            _with_ratio(
                report,
                f"latency_batch_{latency.batch_size}",
                lambda m, at=position: _latency(m, at),  # type: ignore[misc]
                {
                    name: found
                    for (name, size), found in marks.items()
                    if size == latency.batch_size
                },
            ),
            f"Median, 90th and 99th percentile of at least {repeats} forward passes after warm-up"
            f"{turns}, {setting.sequence_length} tokens without padding, on {setting.device}, "
            f"{threads}, {setting.dtype}, {setting.attention} attention. {PERCENTILES_NOTE}"
            f"{_rounds(report, position)}",
        )


def _rounds(report: CompressionReport, position: int) -> str:
    """How the speed-ups were measured, with their intervals."""
    found = [
        f"{model.name} {speedup.low:.2f} to {speedup.high:.2f} ({speedup.confidence:.0%})"
        for model in report.models
        if (speedup := model.latency[position].speedup) is not None
    ]
    if not found:
        return ""
    return (
        f" Times faster: the median over rounds of the {report.original.name}'s time over the "
        f"model's; intervals by bootstrap over the rounds: {', '.join(found)}. With a !: not what "
        "the FLOPs promise; with a ?: too noisy to tell."
    )


def _with_ratio(
    report: CompressionReport,
    quantity: str,
    value: Callable[[ModelAccount], str],
    marks: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    cells = []
    for model in report.models:
        ratio = f"{report.ratios(model.name)[quantity]:.2f}x{(marks or {}).get(model.name, '')}"
        cells.append(value(model) if model is report.original else f"{value(model)} ({ratio})")
    return tuple(cells)


def _of_split(report: CompressionReport, split: str) -> str:
    return f" ({split})" if len(report.original.metrics) > 1 else ""


def _percent(report: CompressionReport, model: ModelAccount) -> str:
    kept = report.retention(model.name)
    return MISSING if kept is None else f"{kept:.1f}"


def _latency(model: ModelAccount, position: int) -> str:
    row = model.latency[position]
    high = (MISSING if ms is None else f"{ms:.1f}" for ms in shown_percentiles(row))
    return " / ".join([f"{row.p50_ms:.1f}", *high])


def _megabytes(size: float) -> str:
    return f"{size:.1f}" if size >= 1 else f"{size:.3f}"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f}M" if number >= 1_000_000 else f"{number / 1e3:.0f}k"
