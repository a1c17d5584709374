"""What an export must show before it gets its name: the model's answers, as a plain folder."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdnlp.evaluation.logits import LogitsOf
from kdnlp.models.heads import MASKED_LOGIT, as_items
from kdnlp.uploads.export_section import equality_words
from kdnlp.uploads.plain_folder import CONFIG, TOKENIZER_CONFIG, plain_faults, read_json

PROBE = "A plain folder needs nothing but its own files."
"""What both tokenizers must read alike."""

_CODE = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_FRESH_SECONDS = 600


class ExportMismatch(RuntimeError):  # noqa: N818 - the name says what happened
    """What was written does not stand for the model; nothing of it is left."""


@dataclass(frozen=True)
class Equality:
    """How far the logits of two models lie apart on the same rows.

    Attributes:
        rows: compared.
        largest_difference: of a logit.
        largest_logit: of the original, in absolute value.
        agreement: the share of equal predictions; `None` for real numbers.
    """

    rows: int
    largest_difference: float
    largest_logit: float
    agreement: float | None

    @property
    def share(self) -> float:
        """The largest difference as a share of the largest logit; as it is where all are 0."""
        return self.largest_difference / (self.largest_logit or 1.0)

    def passes(self, tolerance: float, min_agreement: float) -> bool:
        """Whether neither bound is broken; what is not a number breaks both."""
        agrees = self.agreement is None or self.agreement >= min_agreement
        return bool(self.share <= tolerance and agrees)

    @property
    def words(self) -> str:
        """The same as a sentence without its full stop."""
        return equality_words(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def check_equal(
    original: LogitsOf,
    exported: LogitsOf,
    batches: Iterable[Mapping[str, Any]],
    kind: str,
    tolerance: float,
    min_agreement: float,
) -> Equality:
    """Compare what two models answer, position by position where they answer for each.

    Args:
        original: the model.
        exported: what was made of it.
        batches: what the tokenizer made of real rows; padding does not count.
        kind: the kind of task, out of `kdnlp.models.heads.TASK_KINDS`.
        tolerance: the largest difference that passes, as a share of the largest logit.
        min_agreement: the least share of equal predictions that passes.

    Raises:
        ExportMismatch: if one of the two is broken, or a shape differs.
        ValueError: if the original's own logits are not finite, or there is no row.
    """
    differences, largest, same, rows = [0.0], [0.0], [], 0
    for batch in batches:
        ours, theirs = original(batch), exported(batch)
        shapes = [{name: value.shape for name, value in x.items()} for x in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ExportMismatch(
                f"Expected logits of the shapes {shapes[0]}, got {shapes[1]} from the export. It "
                "answers another question than the model. Please report the architecture."
            )
        expected, got = (_items(values, batch, kind) for values in (ours, theirs))
        if not np.isfinite(expected).all():
            raise ValueError(
                "Expected finite logits from the model itself, got others. Nothing can be compared "
                "with them. Look for what made it diverge; train it anew."
            )
        rows += len(next(iter(ours.values())))
        differences.append(float(np.abs(expected - got).max(initial=0.0)))
        largest.append(float(np.abs(expected[expected > MASKED_LOGIT]).max(initial=0.0)))
        same.append(_equal_predictions(expected, got, kind))
    if not rows:
        raise ValueError("Expected at least one row to compare logits on, got none.")
    # max() would pass over what is no number.
    found = Equality(
        rows,
        float(np.max(differences)),
        max(largest),
        None if kind == "regression" else float(np.concatenate(same).mean()),
    )
    if not found.passes(tolerance, min_agreement):
        raise ExportMismatch(
            f"Expected the export to answer as the model does, within {tolerance:g} of its largest "
            f"logit and with {min_agreement:.1%} of its predictions, got a difference of "
            f"{found.largest_difference:.3g} where the largest is {found.largest_logit:.3g} "
            f"({found.share:.3g} of it), and {_percent(found.agreement)} on {found.rows} rows. It "
            "is another model. Nothing of it is kept; a milder format, or a larger tolerance "
            "where this is what rounding costs, may pass."
        )
    return found


def check_plain_config(folder: Path, model: PreTrainedModel) -> None:
    """Raise `ExportMismatch` unless the files of a folder describe the model, and nothing else.

    That is: what `plain_faults` asks of any folder; no file that runs code; and in `config.json`
    the class, the number of blocks and the names of the labels.
    """
    faults = [f"{p.name} may run code" for p in folder.rglob("*") if p.suffix in _CODE]
    faults += plain_faults(folder)
    config, own = (read_json(folder / name) for name in (CONFIG, TOKENIZER_CONFIG))
    if config.get("auto_map") or own.get("auto_map"):
        faults.append("auto_map leads to code beside the model")
    if config.get("architectures") != [type(model).__name__]:
        faults.append(
            f"architectures is {config.get('architectures')}, not {[type(model).__name__]}"
        )
    if not faults:
        faults += _config_faults(type(model.config).from_dict(config), model)
    if faults:
        raise ExportMismatch(
            f"Expected a plain folder of transformers for {type(model).__name__}, got one in which "
            f"{'; '.join(faults)}. It would load as another model, or nowhere else. Nothing of it "
            "is kept."
        )


def check_plain_folder(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    auto_class: str | None,
    batch: Mapping[str, torch.Tensor],
    exported: LogitsOf,
) -> None:
    """Load a folder in a process that cannot import kdnlp, and compare what it says there.

    Args:
        folder: what was written.
        model: what it was made of.
        tokenizer: the model's own.
        auto_class: the class of transformers that loads it; `None` for an ONNX graph, which is run
            where torch cannot be imported either.
        batch: what the tokenizer made of some rows.
        exported: the same export as it was loaded here.

    Raises:
        ExportMismatch: if its files are not those of `check_plain_config`, it does not load, loads
            with weights missing or left over, or answers otherwise than here.
    """
    check_plain_config(folder, model)
    job = {
        "folder": str(folder.resolve()),
        "auto_class": auto_class,
        "batch": {name: value.tolist() for name, value in batch.items()},
        "probe": PROBE,
        "threads": torch.get_num_threads(),
    }
    found, there = _run_afresh(job)
    faults = [f"{k} is {found[k]}" for k in ("missing", "unexpected", "kdnlp") if found[k]]
    if found["class"] not in (None, type(model).__name__):
        faults.append(f"it loads as {found['class']}")
    if found["probe_ids"] != tokenizer(PROBE)["input_ids"]:
        faults.append("the tokenizer reads a text otherwise")
    here = exported(batch)
    far = [n for n in here if not np.allclose(here[n], there.get(n, np.nan), rtol=1e-3, atol=1e-4)]
    faults += [f"its {name} are others than here" for name in far]
    if faults:
        raise ExportMismatch(
            f"Expected the export to load without kdnlp as it does here, got: {'; '.join(faults)}. "
            "Whoever downloads it would run another model. Nothing of it is kept."
        )


def _run_afresh(job: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What a process without kdnlp finds, and its logits by name."""
    script = Path(__file__).with_name("fresh_process.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder, "answers.npz")
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps({**job, "answers": str(answers)}),
            capture_output=True,
            text=True,
            timeout=_FRESH_SECONDS,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        if done.returncode != 0:
            raise ExportMismatch(
                "Expected the export to load in a process without kdnlp, got an error there: "
                f"{done.stderr.strip()[-1500:]}\nNothing of it is kept."
            )
        with np.load(answers, allow_pickle=False) as logits:
            return json.loads(done.stdout.splitlines()[-1]), dict(logits)


def _items(
    outputs: Mapping[str, NDArray[Any]], batch: Mapping[str, Any], kind: str
) -> NDArray[Any]:
    """The logits of the predictions that count, shape (items, labels); of answers, by position."""
    tensors = {name: torch.as_tensor(value).float() for name, value in outputs.items()}
    found, own = as_items(tensors, batch, kind)
    logits, mask = found["logits"], own.get("item_mask")
    logits = logits if mask is None else logits[mask]
    return np.asarray(logits.reshape(-1, logits.size(-1)))


def _equal_predictions(expected: NDArray[Any], got: NDArray[Any], kind: str) -> NDArray[np.bool_]:
    if kind == "multi_label_classification":
        return ((expected > 0) == (got > 0)).ravel()
    return np.asarray(expected.argmax(-1) == got.argmax(-1))


def _percent(agreement: float | None) -> str:
    return "no predictions to compare" if agreement is None else f"{agreement:.1%} equal"


def _config_faults(config: PretrainedConfig, model: PreTrainedModel) -> list[str]:
    faults = []
    if config.id2label != model.config.id2label:
        faults.append(f"id2label is {config.id2label}, not {model.config.id2label}")
    if config.problem_type != model.config.problem_type:
        faults.append(f"problem_type is {config.problem_type}, not {model.config.problem_type}")
    with torch.device("meta"):
        described = set(type(model)(config).state_dict())
    other = sorted(described ^ set(model.state_dict()))
    if other:
        layers = getattr(config, "num_hidden_layers", None)
        faults.append(
            f"num_hidden_layers={layers} and the rest describe other weights ({other[0]}, "
            f"{len(other)} in all)"
        )
    return faults
