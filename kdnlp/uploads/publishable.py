"""Which files of a model's folder may go to the Hub; whatever is not named here stays."""

import json
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from kdnlp.weights import EXPORT_JSON, is_export_of

LICENSE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
"""What the text of a licence may be called."""

PLOT_NAMES = ("report", "training", "module_time", "pareto")
"""The pictures of a run, each as PNG and SVG; any other picture in its folder is somebody's own."""

EXPORT_FOLDER = "onnx"
"""Where an export lies below the folder of the model that it was made of."""

_MODEL = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-[0-9]*-of-[0-9]*.safetensors",
    "model.safetensors.index.json",
)
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja", "processor_config.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "dict.txt", "emoji.json"),
    *("spiece.model", "spm.model", "spm_char.model", "tokenizer.model", "sentencepiece.model"),
    *("sentencepiece.bpe.model", "source.spm", "target.spm", "prophetnet.tokenizer"),
    *("vocab-src.json", "vocab-tgt.json", "target_vocab.json", "entity_vocab.json"),
    *("byte_maps.json", "normalizer.json", "tekken.json"),
    *("word_shape.json", "word_pronunciation.json"),
)

PUBLISHABLE: dict[str, tuple[str, ...]] = {
    "model": _MODEL,
    "tokenizer": _TOKENIZER,
    "card": ("README.md", *LICENSE_FILES),
    "report": (
        *("report.json", "report.md", "report.html"),
        *(f"{name}.{suffix}" for name in PLOT_NAMES for suffix in ("png", "svg")),
    ),
    "export": tuple(
        f"{EXPORT_FOLDER}/{name}"
        for name in (
            "*.onnx",
            "*.onnx_data",
            "*.onnx.data",
            EXPORT_JSON,
            "config.json",
            *_TOKENIZER,
        )
        if "/" not in name
    ),
}
"""What may go, as patterns below the folder; a `*` stands for a part of one name.

Python code is not among them: only modules that a model's own `auto_map` needs are added.
"""

_OF_THE_WEIGHTS = ("model", "report", "export")
"""What is wrong beside other weights than those that it came with."""

_SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
"""The Hub's tokens."""

_READ_FOR_SECRETS = {".json", ".md", ".html", ".svg", ".py", ".jinja"}


def publishable_files(folder: Path) -> list[Path]:
    """The files below `folder` that may go to the Hub, in the order of their names.

    Hidden names, names that start with an underscore, and links that lead out of the folder are
    left out, whatever they are called; so is an export of other weights than those in the folder.
    """
    root = folder.resolve()
    parts = dict(PUBLISHABLE)
    if _has_foreign_export(folder):
        del parts["export"]
    found = {path for patterns in parts.values() for p in patterns for path in folder.glob(p)}
    found |= set(_own_code(folder))
    return sorted(path for path in found if path.is_file() and _is_plain(path, folder, root))


def files_left_out(folder: Path, files: Iterable[Path]) -> list[Path]:
    """The files and folders in `folder` of which nothing is among `files`."""
    taken = {path.relative_to(folder).parts[0] for path in files}
    return sorted(path for path in folder.iterdir() if path.name not in taken)


def stale_files(there: Iterable[str], sent: Iterable[str]) -> list[str]:
    """The files of a repository that belong to weights, or a tokenizer, that others replace.

    Args:
        there: the names in the repository.
        sent: the names that replace them or are added. Where no file of a tokenizer is among
            them, the repository's stays.
    """
    sent = set(sent)
    kinds = list(_OF_THE_WEIGHTS)
    if any(_is_of(name, "tokenizer") for name in sent):
        kinds.append("tokenizer")
    return [n for n in there if n not in sent and any(_is_of(n, kind) for kind in kinds)]


def _is_of(name: str, part: str) -> bool:
    return any(
        fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
        for pattern in PUBLISHABLE[part]
    )


def check_for_secrets(files: list[Path]) -> None:
    """Raise `ValueError` if a token of the Hub stands in a text that would be published."""
    for path in files:
        if path.suffix in _READ_FOR_SECRETS and _SECRET.search(path.read_bytes()):
            raise ValueError(
                f"{path} holds what looks like a token of the Hub (hf_...). Whoever reads it could "
                "write to your repositories. Take it out of the file, and revoke the token if it "
                "was ever shared."
            )


def _has_foreign_export(folder: Path) -> bool:
    """Whether a graph below `folder` does not say that it was made of the weights there."""
    export = folder / EXPORT_FOLDER
    return any(export.glob("*.onnx")) and not is_export_of(export, folder)


def _is_plain(path: Path, folder: Path, root: Path) -> bool:
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith((".", "_")) for part in parts if part != "__init__.py")
    return not hidden and path.resolve().is_relative_to(root)


def _own_code(folder: Path) -> Iterator[Path]:
    """The modules that the model and the tokenizer say they are made by, and what those import."""
    from transformers.dynamic_module_utils import get_relative_import_files

    for name in ("config.json", "tokenizer_config.json"):
        for module in _modules(folder / name):
            path = folder / f"{module}.py"
            if path.is_file():
                yield path
                yield from map(Path, get_relative_import_files(path))


def _modules(config: Path) -> Iterator[str]:
    """The modules beside a configuration that its `auto_map` names; `owner/name--module` is not."""
    if not config.is_file():
        return
    values = json.loads(config.read_text(encoding="utf-8"))
    names = values.get("auto_map") or {}
    classes = names.values() if isinstance(names, dict) else [names]
    for entry in classes:
        for name in [entry] if isinstance(entry, str) else entry:
            if name and "--" not in name and re.fullmatch(r"\w+(\.\w+)+", name):
                yield name.rpartition(".")[0].replace(".", "/")
