"""`kdnlp export`: a fine-tuned model for another runtime or in fewer bits, checked against it."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdnlp.cli.options import DataOptions, ExportOptions
from kdnlp.cli.parsing import parse_arguments
from kdnlp.cli.steps import load_task
from kdnlp.compression.export import FORMATS, check_target, export_model
from kdnlp.compression.settings import ExportSettings
from kdnlp.data.preparation import prepare
from kdnlp.hub.origin import model_name
from kdnlp.loading import load_tokenizer
from kdnlp.models.pretrained import in_model_order, load_as_saved, load_finetuned
from kdnlp.uploads.export_section import equality_words
from kdnlp.weights import EXPORT_JSON

DESCRIPTION = (
    "Export a fine-tuned model: to an ONNX graph for any batch size and length, in float32 or "
    "int8, or to a smaller transformers model. What was written is loaded again, here and in a "
    "process without kdnlp, and compared with the model on real rows; if it differs, nothing of it "
    "is kept and an earlier export stays as it was. OUTPUT_DIR then holds the model, its "
    "configuration and tokenizer, and export.json."
)


def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options, settings, data = parse_arguments(
        (ExportOptions, ExportSettings, DataOptions),
        named_model(argv),
        prog=f"kdnlp {command}",
        description=DESCRIPTION,
    )
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("kdnlp").setLevel(logging.INFO)
    FORMATS[settings.format].require()
    check_output_dir(options)
    model, tokenizer, rows = load_rows(options, data)
    name = model_name(options.model)
    facts = export_model(model, tokenizer, options.output_dir, settings, name=name, **rows)
    print_facts(facts)
    Console().print(f"Model, tokenizer and {EXPORT_JSON} are in {options.output_dir}.")
    attention = "sdpa" if model._supports_sdpa else "eager"
    latency = latency_command(options.model, settings, attention)
    if latency is not None:
        Console().print(f"For its latency beside the model's:\n{latency}", soft_wrap=True)


def named_model(argv: Sequence[str]) -> list[str]:
    """The arguments with `--model` before a model that stands first without it.

    >>> named_model(["out/mrpc", "--format", "onnx"])
    ['--model', 'out/mrpc', '--format', 'onnx']
    """
    return [*(["--model"] if argv and not argv[0].startswith("-") else []), *argv]


def check_output_dir(options: ExportOptions) -> None:
    """Raise `ValueError` if the export would take the place of the model or of other files."""
    target, model = Path(options.output_dir).resolve(), Path(options.model).resolve()
    if target in (model, *model.parents):
        raise ValueError(
            f"--output_dir {options.output_dir} must not hold --model {options.model}. An export "
            "replaces its whole folder, the model with it. Choose another --output_dir."
        )
    check_target(target)


def load_rows(
    options: ExportOptions, data: DataOptions
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """The model, its tokenizer, and the rows as `export_model` takes them."""
    loading = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    if options.texts:
        if data.task is not None or data.train_file is not None:
            raise ValueError(
                "Expected --texts or a task with its rows, got both. One of them would be ignored; "
                "leave --texts out to measure the task's metric too."
            )
        return (*load_any(options.model, **loading), {"texts": options.texts})
    task, raw = load_task(data, seed=0)
    model, tokenizer = load_finetuned(options.model, task, **loading)
    task = in_model_order(task, model.config)
    # Nothing is trained: of the training rows, `prepare` is given one to find its columns in.
    raw[task.train_split] = raw[task.train_split].select([0])
    splits = prepare(raw, task, tokenizer, data.max_length)
    return model, tokenizer, {"splits": splits, "task": task}


def load_any(name: str, **loading: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with the head that its configuration names, and its tokenizer.

    Raises:
        ValueError: if it names none, or the weights lack a part of it.
    """
    model = load_as_saved(name, **loading)
    if model.base_model is model:
        raise ValueError(
            f"Expected {name} to name a class of transformers with a head in its configuration, "
            f"got {', '.join(model.config.architectures or ['none'])}. Nothing says what its "
            "weights are. Pass the --task that it is for."
        )
    return model, load_tokenizer(name, **loading)


def print_facts(facts: dict[str, Any]) -> None:
    """Print what an export cost and gained."""
    table = Table("", "original", "export", title=f"{facts['format']}, {facts['precision']}")
    for column in table.columns[1:]:
        column.justify = "right"
    metrics = facts.get("metrics", {"original": {}})
    for split, values in metrics["original"].items():
        for metric, value in values.items():
            ours = metrics["export"][split][metric]
            table.add_row(f"{split} {metric}, %", f"{100 * value:.1f}", f"{100 * ours:.1f}")
    for key, label in (
        ("size_mb", "weights, MB"),
        ("evaluation_seconds", "evaluation, once, s"),
    ):
        if key in facts:
            table.add_row(label, *(f"{facts[key][name]:.1f}" for name in ("original", "export")))
    Console().print(table)
    Console().print(f"{equality_words(facts['gate'])}.")


def latency_command(model: str, settings: ExportSettings, attention: str = "sdpa") -> str | None:
    """What to type for the latency of a graph beside its model's; `None` for other formats."""
    if settings.format != "onnx":
        return None
    graphs = "onnx" if settings.quantize is None else "onnx,onnx-int8"
    return shlex.join(["kdnlp", "profile", model, "--runtimes", f"{attention},{graphs}"])
