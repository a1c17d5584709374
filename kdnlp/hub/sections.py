"""The parts of a model card that are sentences: what was gained, what is known, what is not."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kdnlp.data.glue import HUB_DATASET
from kdnlp.data.preparation import KINDS
from kdnlp.data.synthetic import SYNTHETIC_TASKS
from kdnlp.evaluation.fidelity import BASELINE
from kdnlp.evaluation.one_answer import one_answer_text
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.rows import p_value
from kdnlp.evaluation.speed import speedup_words
from kdnlp.hub.origin import origin_text

_PLACE = re.compile(r"<[a-z_]+(?: \d+)?>")
"""What stands in a command for a place on the machine of the run."""

METHODS = {
    "theseus": "BERT-of-Theseus module replacement",
    "distillation": "knowledge distillation",
    "theseus-then-distillation": "BERT-of-Theseus module replacement, then knowledge distillation",
    "fine-tuning": "fine-tuning a shallower model",
}


def summary(report: CompressionReport, name: str) -> str:
    """What the model is, what it keeps of the original's score and how much faster it is."""
    run, model, original = report.run, report[name], report.original
    alike = one_answer_text(report, name)
    but = f"But it {alike} " if alike else ""
    if model is original:
        return f"{origin_text(run)} fine-tuned on {report.task}. {but}".strip()
    kept, ratios = report.retention(name), report.ratios(name)
    agreements = {row.batch_size: found for n, row, found in report.agreements() if n == name}
    speeds = ", and ".join(
        speedup_words(
            row, ratios[f"latency_batch_{row.batch_size}"], agreements.get(row.batch_size)
        )
        for row in model.latency
    )
    quality = "" if kept is None else f"It keeps {kept:.1f}% of the {original.name}'s score. "
    made = (
        f"{origin_text(run)}, fine-tuned on {report.task} and compressed by "
        f"{METHODS[run['method']]} from {original.num_layers} to {model.num_layers} "
        "transformer blocks."
    )
    if "student_origin" in run:
        made = (
            f"{origin_text(run['student_origin'])}, trained on {report.task} by "
            f"{METHODS[run['method']]} from {origin_text(run)}: {model.num_layers} transformer "
            f"blocks in place of {original.num_layers}."
        )
    return (
        f"{made} {quality}{but}It takes {ratios['flops']:.2f}x fewer FLOPs; the "
        f"measured speed-up is {speeds}, on {_where(report)}.{_several_teachers(run)}"
    )


def scores(report: CompressionReport, name: str) -> str:
    """Of which split the scores are, how the checkpoint was chosen, and what the baseline says."""
    run, splits = report.run, list(report[name].metrics)
    plural = "s" if len(splits) > 1 else ""
    parts = [
        f"The scores are of the split{plural} {', '.join(splits)}, measured once, with seed "
        f"{run['seed']}."
    ]
    if run["selected_on"]:
        on = (
            f"on {run.get('selected_on_split') or 'one of them'}" if plural else "on the same split"
        )
        parts.append(f"The checkpoint was chosen by {run['selected_on']} {on}, which flatters it.")
    if any(model.name == BASELINE for model in report.models) and name != BASELINE:
        own, plain = (100 * report[model].score for model in (name, BASELINE))
        parts.append(
            f"`{BASELINE}` is what plain fine-tuning makes of the same initial model in the same "
            f"number of steps: {plain:.1f}% against {own:.1f}%. {_gain(report, name)}"
        )
    return " ".join(parts)


def _gain(report: CompressionReport, name: str) -> str:
    """What a model gained over the baseline, and whether that is more than chance."""
    method = METHODS[report.run["method"]]
    test = next((t for t in report.tests if (t.model, t.against) == (name, BASELINE)), None)
    if test is None:
        gain = 100 * (report[name].score - report[BASELINE].score)
        return (
            f"That is {gain:+.1f} points for the {method}; whether it is more than chance was not "
            "tested."
        )
    equals = "" if test.p_bootstrap < 0.001 else "= "
    facts = (
        f"95% interval {100 * test.low:+.1f} to {100 * test.high:+.1f}, p {equals}"
        f"{p_value(test.p_bootstrap)}, by the paired bootstrap over rows"
    )
    points = f"{abs(100 * test.difference):.1f} points"
    if test.low > 0:
        return f"The {method} gained {points} over it ({facts})."
    if test.high < 0:
        return f"The {method} lost {points} to it ({facts})."
    return (
        f"The {method}'s {100 * test.difference:+.1f} points over it are not told apart from "
        f"chance ({facts})."
    )


def origin_rows(report: CompressionReport) -> Iterator[tuple[str, str]]:
    """Method and origin with its revision, then data and licence, as rows of a table."""
    run, original = report.run, report.original.name
    yield "method", METHODS[run["method"]]
    yield "base model" if original == "model" else original, _place_of(run)
    if "student_origin" in run:
        yield "student", _place_of(run["student_origin"])
    rows = run.get("train_rows")
    data = f"`{run['dataset']}`, {report.task}" if run["dataset"] else report.task
    yield "data", f"{data}, {rows} rows for training" if rows else data


def _place_of(origin: Mapping[str, Any]) -> str:
    revision = origin.get("base_model_revision")
    if origin["base_model_on_hub"]:
        at = f"at revision `{revision}`" if revision else "(revision not recorded)"
        return f"`{origin['base_model']}` on the Hub, {at}"
    made_from = ", ".join(f"`{name}`" for name in origin.get("base_model_from", []))
    return f"`{origin['base_model']}`, a local folder" + (
        f", made from {made_from}" if made_from else ", not on the Hub"
    )


def limits(report: CompressionReport, name: str) -> Iterator[str]:
    """What the run does not show, in sentences."""
    run = report.run
    yield (
        f"It was trained for {report.task} alone. On other tasks, domains and kinds of text it was "
        "not measured."
    )
    yield _language(report)
    if run["task_kind"] == "question_answering":
        yield f"A context is read in windows of {run['max_length']} tokens, question included."
    else:
        yield f"In training, what stands beyond {run['max_length']} tokens was cut off."
    if run["dataset"] == HUB_DATASET:
        yield "The scores are of GLUE's development rows, not of its test server."
    yield (
        f"It is one run, with seed {run['seed']}: how far the score spreads over seeds is not "
        "known."
    )
    yield (
        f"Latency was measured on {_where(report)}; on other hardware, batch sizes and lengths "
        "the speed-up is another."
    )
    if report[name] is not report.original:
        yield (
            "A mean score can hide more loss on rare cases than on others (Hooker et al. 2020, "
            f"arXiv:2010.03058), and what the {report.original.name} has learned of prejudice may "
            "have been learned too."
        )


def reproduce(report: CompressionReport) -> str:
    """The command, or how the run was made without one, with seed and versions.

    And what others lack to run it: a folder or file of this machine has `<flag>` in its place.
    """
    run = report.run
    versions = ", ".join(f"{library} {version}" for library, version in run["versions"].items())
    if run.get("command"):
        made = f"```sh\n{run['command']}\n```\n\n{_unpublished(run['command'])}"
    else:
        made = "The run was made from Python, with the arguments above. "
        if not run["base_model_on_hub"]:
            made += (
                f"{origin_text(run)} is a local folder that is not published with this model: "
                "others cannot repeat the run without it. "
            )
    processes = "1 process" if run["processes"] == 1 else f"{run['processes']} processes"
    return f"{made}Seed {run['seed']}, {processes} on {run['device']}; {versions}."


def _unpublished(command: str) -> str:
    places = [f"`{place}`" for place in dict.fromkeys(_PLACE.findall(command))]
    if not places:
        return ""
    what = f"{places[0]} is" if len(places) == 1 else f"{' and '.join(places)} are"
    them = "it" if len(places) == 1 else "them"
    return (
        f"{what} on the machine of the run and not published with this model: others cannot run "
        f"the command without {them}. "
    )


def how_to_call(run: dict[str, Any]) -> str:
    """The columns that the tokenizer takes, how, and how an answer is read."""
    kind = KINDS[run["task_kind"]]
    columns = " and ".join(f"`{column}`" for column in run["text_columns"])
    two_texts = len(run["text_columns"]) == 2
    call = kind.call or ("tokenizer(first, second)" if two_texts else "tokenizer(text)")
    cut = f"Input: {columns}, as `{call}`, cut at {run['max_length']} tokens in training."
    return f"{cut} {kind.answer}".strip()


def _language(report: CompressionReport) -> str:
    if report.run["dataset"] == HUB_DATASET:
        return "Its data are English."
    if report.task in SYNTHETIC_TASKS:
        return "Its data are English sentences made by a small grammar: it knows no other words."
    return "The language of its data was not recorded; assume that it works in that one alone."


def _where(report: CompressionReport) -> str:
    setting = report.setting
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    return f"{setting.device}, {threads}" if setting.device.startswith("CPU") else setting.device


def _several_teachers(run: dict[str, Any]) -> str:
    """Whose answers were learned, where they are not those of the base model alone."""
    together = run.get("ensemble_metrics")
    if not together:
        return ""
    others = ", ".join(f"`{name}`" for name in run.get("more_teachers", []))
    score = 100 * sum(values["score"] for values in together.values()) / len(together)
    with_them = f", `{run['base_model']}` and {others}," if others else ""
    return f" It learned the mean answer of several teachers{with_them} which scores {score:.1f}%."
