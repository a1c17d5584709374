"""From a trained model to a folder for another runtime, checked before it gets its name."""

import copy
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

import kdnlp
from kdnlp.compression.gate import check_equal, check_plain_folder
from kdnlp.compression.quantize import load_int8, require_torchao
from kdnlp.compression.settings import AGREEMENTS, TOLERANCES, ExportSettings
from kdnlp.data.inputs import input_columns
from kdnlp.data.preparation import KINDS, build_collator
from kdnlp.data.task import Task
from kdnlp.evaluation.logits import LogitsOf, model_logits, score_logits, token_batches
from kdnlp.files import replace_folder, replace_text
from kdnlp.loading import forget_lengths, has_own_code, load_model
from kdnlp.models.alignment import input_names
from kdnlp.models.heads import task_kind
from kdnlp.models.onnx_graph import (
    DEFAULT_OPSET,
    ONNX_FILE,
    ONNX_PACKAGES,
    OnnxModel,
    check_exportable,
    export_onnx,
    quantize_onnx,
    require_onnx,
)
from kdnlp.profiling.forward import max_positions
from kdnlp.profiling.size import BYTES_PER_MB, weights_size_mb
from kdnlp.weights import EXPORT_JSON, SOURCE_DIGEST, read_export, weights_digest

logger = logging.getLogger(__name__)

_GATE_SIZES = (1, 7, 2, 16)
"""Rows in the batches of the gate, in turn: a size that the graph had kept fixed would show."""

_WEIGHTS = (".safetensors", ".onnx", ".data")


@dataclass(frozen=True)
class Source:
    """What is exported, and the rows that it is checked on.

    Attributes:
        model: in float32, in eval mode.
        tokenizer: its own.
        rows: the gate's, tokenised.
        task: `None` where there are no labels to measure on.
        splits: by name, the tokenised splits that the task evaluates.
        name: what the report calls it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Dataset
    task: Task | None
    splits: Mapping[str, Dataset]
    name: str

    @property
    def kind(self) -> str:
        """Its kind of task."""
        return self.task.kind if self.task else task_kind(self.model)

    @property
    def auto_class(self) -> Any:
        """The class of transformers that loads it."""
        if self.kind in KINDS:
            return getattr(transformers, KINDS[self.kind].auto_class)
        return transformers.AutoModelForMaskedLM

    def batches(self) -> list[dict[str, Any]]:
        """The inputs of the gate's rows."""
        collator = (
            build_collator(self.task, self.tokenizer)
            if self.task
            else DataCollatorWithPadding(self.tokenizer)
        )
        accepted = input_names(self.model)
        return [
            {name: value for name, value in inputs.items() if name in accepted}
            for inputs, _ in token_batches(self.rows, collator, _GATE_SIZES)
        ]


@dataclass(frozen=True)
class Format:
    """One format: what it needs, how it is written and how it is read again.

    Attributes:
        require: raises `ImportError` for packages that are missing, before anything is done.
        write: from the source to files in a folder; returns what else the report should say.
        load: from the folder to its logits.
        packages: whose versions the report names.
        plain: whether transformers loads it.
    """

    require: Callable[[], None]
    write: Callable[[Source, Path, ExportSettings], dict[str, Any]]
    load: Callable[[Source, Path], LogitsOf]
    packages: tuple[str, ...] = ()
    plain: bool = True


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | os.PathLike[str],
    settings: ExportSettings | None = None,
    *,
    splits: Mapping[str, Dataset] | None = None,
    task: Task | None = None,
    texts: Sequence[str] | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Export a model, and keep what was written only if it is the same model.

    The gate loads what was written, here and in a process without kdnlp, compares its logits with
    the model's on real rows, and reads its files. Then both are evaluated on the whole splits.

    Args:
        model: for a kind of task out of `kdnlp.models.onnx_graph.EXPORTABLE`; it is left as it is.
        tokenizer: its own.
        output_dir: a folder that is new, empty or holds an export, which is replaced.
        settings: the format, and what the gate lets pass; by default a float32 graph of ONNX.
        splits: the task's tokenised data, as `kdnlp.data.preparation.prepare` returns it.
        task: what the model was fine-tuned on, in its order of labels; needed with `splits`.
        texts: in place of both: texts to compare logits on, with no metric.
        name: what the report calls the model; it must name no folder.

    Returns:
        What `export.json` beside the model says.

    Raises:
        ExportMismatch: if the export is another model; an older export is left as it was.
        ImportError: if a package of the format is missing.
        ValueError: if the model cannot be exported, there are no rows, or the folder holds
            something else.
    """
    settings = settings or ExportSettings()
    form, target = FORMATS[settings.format], Path(output_dir).resolve()
    form.require()
    check_exportable(model)
    if has_own_code(model):
        raise ValueError(
            f"{type(model).__name__} brings Python code of its own, and an export is to load "
            "without any. Export a model whose code is part of transformers."
        )
    check_target(target)
    source = _source(model, tokenizer, settings, splits, task, texts, name)
    partial = target.with_name(f"_partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        facts = _write_checked(source, partial, form, settings)
        replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return facts


def check_target(target: Path) -> None:
    """Raise `ValueError` if a folder holds anything that is no export's: it would be replaced."""
    old = target.with_name(f"_partial-{target.name}.old")
    if old.exists() and target.exists():
        shutil.rmtree(old)  # an export that was killed while it removed the older one
    elif old.exists():
        os.replace(old, target)  # an export that was killed while it took the older one's place
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"output_dir {target} must be a folder, got a file. Choose another name.")
    there = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    others = sorted(there - _files_of_export(target))
    if others:
        raise ValueError(
            f"output_dir {target} must be new, empty or an earlier export, got a folder with "
            f"{', '.join(others[:3])}. An export replaces its whole folder, and that would be "
            "lost. Choose another output_dir."
        )


def _files_of_export(folder: Path) -> set[str]:
    """What an export wrote into a folder, by its own account; nothing where that is not one."""
    files = read_export(folder).get("files")
    return {EXPORT_JSON, *map(str, files)} if isinstance(files, list) else set()


def _write_checked(
    source: Source, folder: Path, form: Format, settings: ExportSettings
) -> dict[str, Any]:
    """Write an export with its report into a folder, or raise."""
    more = form.write(source, folder, settings)
    forget_lengths(source.tokenizer)
    source.tokenizer.save_pretrained(folder)
    original, exported = model_logits(source.model), form.load(source, folder)
    batches = source.batches()
    found = check_equal(
        original,
        exported,
        batches,
        source.kind,
        settings.largest_share,
        settings.least_agreement,
    )
    logger.info("The export answers as the model does. %s.", found.words)
    auto_class = source.auto_class.__name__ if form.plain else None
    check_plain_folder(
        folder, source.model, source.tokenizer, auto_class, batches[1 % len(batches)], exported
    )
    facts = {
        "model": source.name,
        "architecture": type(source.model).__name__,
        SOURCE_DIGEST: weights_digest(source.model.state_dict().values()),
        "format": settings.format,
        "precision": settings.precision,
        **more,
        "gate": {
            "tolerance": settings.largest_share,
            "min_agreement": settings.least_agreement,
            **found.to_dict(),
        },
        **_scores(source, original, exported, settings),
        "size_mb": {"original": weights_size_mb(source.model), "export": _weights_mb(folder)},
        "versions": {"kdnlp": kdnlp.__version__, **{n: version(n) for n in form.packages}},
    }
    names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    facts["files"] = sorted({*names, EXPORT_JSON})
    replace_text(folder / EXPORT_JSON, f"{json.dumps(facts, indent=2)}\n")
    return facts


def _scores(
    source: Source, original: LogitsOf, exported: LogitsOf, settings: ExportSettings
) -> dict[str, Any]:
    """What both score on the whole splits, and how long their logits took there, in one pass."""
    if source.task is None:
        return {}
    metrics, seconds = {}, {}
    for name, logits_of in (("original", original), ("export", exported)):
        metrics[name], seconds[name] = score_logits(
            logits_of, source.splits, source.task, source.tokenizer, settings.batch_size
        )
    return {
        "task": source.task.name,
        "metrics": metrics,
        "evaluation_seconds": seconds,
        "evaluation_passes": 1,
        "threads": torch.get_num_threads(),
    }


def _source(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: ExportSettings,
    splits: Mapping[str, Dataset] | None,
    task: Task | None,
    texts: Sequence[str] | None,
    name: str | None,
) -> Source:
    if (splits is None) != (task is None) or (splits is None) == (not texts):
        raise ValueError(
            "Expected splits with their task, or texts alone, got "
            f"{'splits' if splits is not None else 'no splits'}, "
            f"{'a task' if task else 'no task'} and {len(texts or [])} texts. Without rows "
            "nothing tells whether the export is the model."
        )
    if task is not None and splits is not None:
        rows = splits[task.eval_splits[0]]
    else:
        room = max_positions(model) or tokenizer.model_max_length
        most = room if room < tokenizer.model_max_length else None  # the tokenizer's own
        encoded = tokenizer(list(texts or []), truncation=True, max_length=most)
        rows = Dataset.from_dict({name: encoded[name] for name in input_columns(tokenizer)})
    count = min(settings.num_rows, len(rows))
    spread = rows.select([number * len(rows) // count for number in range(count)])
    return Source(model, tokenizer, spread, task, splits or {}, name or type(model).__name__)


def _write_onnx(source: Source, folder: Path, settings: ExportSettings) -> dict[str, Any]:
    """The graph, and the configuration that says what its logits mean."""
    opset, plain = settings.opset or DEFAULT_OPSET, folder / "_float32"
    accepted = input_names(source.model)
    inputs = [name for name in input_columns(source.tokenizer) if name in accepted]
    config = copy.deepcopy(source.model.config)
    config.architectures = [type(source.model).__name__]
    config.save_pretrained(folder)
    if settings.quantize is None:
        export_onnx(source.model, folder / ONNX_FILE, opset, inputs)
        return {"quantize": None, "opset": opset}
    plain.mkdir()
    graph = export_onnx(source.model, plain / ONNX_FILE, opset, inputs)
    # Else an error of the graph would pass as one of rounding, which is allowed far more.
    before = check_equal(
        model_logits(source.model),
        _graph(graph),
        source.batches(),
        source.kind,
        TOLERANCES["float32"],
        AGREEMENTS["float32"],
    )
    quantize_onnx(graph, folder / ONNX_FILE)
    shutil.rmtree(plain)
    return {
        "quantize": settings.quantize,
        "opset": opset,
        "before_quantization": before.to_dict(),
    }


def _write_safetensors(source: Source, folder: Path, settings: ExportSettings) -> dict[str, Any]:
    dtype = getattr(torch, settings.precision)
    copy.deepcopy(source.model).to(dtype).save_pretrained(folder)
    return {}


def _write_int8(source: Source, folder: Path, settings: ExportSettings) -> dict[str, Any]:
    plain = folder / "_float32"
    source.model.save_pretrained(plain)
    load_int8(source.auto_class, plain).save_pretrained(folder)
    shutil.rmtree(plain)
    return {"quantize": "int8 weights"}


def _load_onnx(source: Source, folder: Path) -> LogitsOf:
    return _graph(folder / ONNX_FILE)


def _graph(path: Path) -> OnnxModel:
    # As many threads as the model has: their times stand beside each other.
    return OnnxModel(path, threads=torch.get_num_threads())


def _load_model(source: Source, folder: Path) -> LogitsOf:
    model, _ = load_model(source.auto_class, os.fspath(folder))
    return model_logits(model.eval())


def _weights_mb(folder: Path) -> float:
    files = [path for path in folder.iterdir() if path.suffix in _WEIGHTS]
    return sum(path.stat().st_size for path in files) / BYTES_PER_MB


_TORCH = ("torch", "transformers")

FORMATS: dict[str, Format] = {
    "onnx": Format(
        require_onnx,
        _write_onnx,
        _load_onnx,
        (*_TORCH, *ONNX_PACKAGES),
        plain=False,
    ),
    "safetensors": Format(lambda: None, _write_safetensors, _load_model, _TORCH),
    "pytorch-int8": Format(require_torchao, _write_int8, _load_model, (*_TORCH, "torchao")),
}
"""What a model can be exported to, by the name that `ExportSettings.format` takes."""
