"""Is a folder a plain model of transformers, whole, and the one that its files say it is?"""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from kdnlp.loading import load_model
from kdnlp.uploads.publishable import (
    EXPORT_FOLDER,
    check_for_secrets,
    publishable_files,
)
from kdnlp.weights import weight_files

logger = logging.getLogger(__name__)

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
REPORT = "report.json"

_SHOWN = 3
"""How many names of a kind a message lists."""

_GENERIC_LABEL = re.compile(r"LABEL_\d+")


def check_complete(folder: Path) -> list[Path]:
    """The files of a plain model that may go to the Hub.

    Raises:
        ValueError: if `folder` holds no whole model in safetensors with its tokenizer, a part of it
            is a link that leads out, its configuration describes another one or leads to kdnlp, or
            a token stands in a text.
    """
    if not folder.is_dir():
        raise ValueError(f"Expected the folder of a model, got {folder}, where there is none.")
    there = (("config.json", (folder / CONFIG).is_file()), ("weights", weight_files(folder)))
    lacking = " and ".join(what for what, found in there if not found)
    if lacking:
        raise ValueError(
            f"Expected a plain model in {folder}, with config.json and model.safetensors, got a "
            f"folder without {lacking}. Nobody could load it. Name the output_dir of a run that "
            "has ended, or a folder that save_pretrained wrote."
        )
    faults = [*plain_faults(folder), *_class_faults(folder)] or [*_weight_faults(folder)]
    faults += _label_faults(folder)
    if faults:
        raise ValueError(
            f"Expected a plain model of transformers in {folder}, got one in which "
            f"{'; '.join(faults)}. Whoever downloads it would run another model, or none. Save "
            "model and tokenizer there again with save_pretrained; a trainer saves the tokenizer "
            "that it is given as processing_class."
        )
    files = publishable_files(folder)
    links = [path for path in _parts(folder) if path.is_symlink() and path not in files]
    if links:
        raise ValueError(
            f"Expected the files of the model in {folder}, got {', '.join(p.name for p in links)} "
            "as links that lead out of it. Such a link is not followed, and the model would be "
            "published without the file. Put copies in their place (cp -L)."
        )
    export = folder / EXPORT_FOLDER
    if any(export.glob("*.onnx")) and not any(export in path.parents for path in files):
        logger.warning(
            "%s is not published: its export.json does not say that it was made of the weights "
            "in %s. Export them again, with --output_dir %s.",
            export,
            folder,
            export,
        )
    check_for_secrets(files)
    return files


def _parts(folder: Path) -> list[Path]:
    """The files that every model has, links among them, and the index of shards."""
    names = (CONFIG, TOKENIZER_CONFIG, "tokenizer.json", "*.index.json")
    return [*weight_files(folder), *(path for name in names for path in folder.glob(name))]


def plain_faults(folder: Path) -> list[str]:
    """What keeps the files beside the weights from being those of a plain model, in words."""
    names = (CONFIG, TOKENIZER_CONFIG)
    faults = [f"{name} is missing" for name in names if not (folder / name).is_file()]
    config, tokenizer = (read_json(folder / name) for name in names)
    faults += [f"{key} leads to kdnlp" for key in (*_named(config), *_named(tokenizer))]
    return [*faults, *_vocabulary_faults(folder, tokenizer)]


def read_json(path: Path) -> dict[str, Any]:
    """The values in a file of JSON; empty where there is none.

    Raises:
        ValueError: if it cannot be read as an object.
    """
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Expected an object of JSON in {path}, got {error}. transformers could not read it "
            "either. Save the model and its tokenizer again."
        ) from error


def _named(values: Any, key: str = "") -> Iterator[str]:
    """The keys under which anything is called kdnlp."""
    if isinstance(values, dict):
        yield from (name for name in values if "kdnlp" in str(name))
        for name, value in values.items():
            yield from _named(value, name)
    elif isinstance(values, list):
        for value in values:
            yield from _named(value, key)
    elif isinstance(values, str) and "kdnlp" in values:
        yield key


def _vocabulary_faults(folder: Path, settings: dict[str, Any]) -> list[str]:
    """That a tokenizer has no words, unless its class needs none or comes along as code."""
    import transformers

    own_class = getattr(transformers, str(settings.get("tokenizer_class")), None)
    if own_class is None and settings.get("auto_map"):
        return []
    names = dict(getattr(own_class, "vocab_files_names", {"tokenizer_file": "tokenizer.json"}))
    if not names or any((folder / name).is_file() for name in ("tokenizer.json", *names.values())):
        return []
    return [f"the tokenizer has no vocabulary file ({', '.join(names.values())})"]


def _class_faults(folder: Path) -> list[str]:
    config = read_json(folder / CONFIG)
    if config.get("auto_map") or _architecture(config) is not None:
        return []
    return [f"architectures is {config.get('architectures')}, which names no class of transformers"]


def _architecture(config: dict[str, Any]) -> Any:
    """The class of transformers that a configuration names; `None` where it names none, or two."""
    import transformers

    names = config.get("architectures")
    one = isinstance(names, list) and len(names) == 1
    return getattr(transformers, str(names[0]), None) if names and one else None


def _weight_faults(folder: Path) -> Iterator[str]:
    """Where the configuration describes other weights than there are; nothing of them is read.

    Of a model with code of its own, which would have to run, and of quantized weights, which have
    other names and shapes, nothing can be told.
    """
    config = read_json(folder / CONFIG)
    if config.get("auto_map") or config.get("quantization_config"):
        return
    try:
        _, found = load_model(
            _architecture(config), str(folder), device_map="meta", ignore_mismatched_sizes=True
        )
    except (SafetensorError, OSError) as error:
        yield f"the weights cannot be read ({error})"
        return
    described = f"architectures={config['architectures']}"
    if "num_hidden_layers" in config:
        described += f" and num_hidden_layers={config['num_hidden_layers']}"
    other = [name for name, *_ in found["mismatched_keys"]]
    for names, what in (
        (found["missing_keys"], "lack"),
        (found["unexpected_keys"], "have beyond it"),
        (other, "have in other shapes"),
    ):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN])
            yield f"the weights {what} what {described} describes ({shown}; {len(names)} in all)"


def _label_faults(folder: Path) -> Iterator[str]:
    """Where the configuration names other labels than the report beside it, in whatever order."""
    run = read_json(folder / REPORT).get("run") or {}
    reported = sorted(str(name).casefold() for name in run.get("label_names") or ())
    own = [str(name) for name in (read_json(folder / CONFIG).get("id2label") or {}).values()]
    generic = all(map(_GENERIC_LABEL.fullmatch, own))
    if reported and not generic and sorted(map(str.casefold, own)) != reported:
        yield f"id2label names {own}, and {REPORT} {run['label_names']}"
