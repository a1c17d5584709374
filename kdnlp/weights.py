"""Which weights a folder holds, and whether an export beside them was made of these."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnlp.files import WEIGHTS

if TYPE_CHECKING:
    import torch

EXPORT_JSON = "export.json"
"""What an export says of itself; it lies beside the model."""

SOURCE_DIGEST = "source_digest"
"""The key there for `weights_digest` of the model that was exported."""

SINGLE_FILE = "model.safetensors"
"""The weights where they are one file, which transformers takes before any shards."""


def weights_digest(tensors: Iterable["torch.Tensor"]) -> str:
    """A digest of a model's real numbers: `sha256:` and 64 hexadecimal digits.

    It is equal for a model in memory and the files that hold it. So names, which differ between
    the two where weights are tied, do not count, nor does the dtype where float32 holds every
    value; integers are positions and the like, which files may leave out.

    Args:
        tensors: of any shape, on any device; in any order, and tied ones once or several times.
    """
    import torch

    parts = set()
    for tensor in tensors:
        if tensor.is_floating_point():
            part = hashlib.sha256(str(tuple(tensor.shape)).encode())
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            part.update(values.numpy().tobytes())
            parts.add(part.digest())
    return f"sha256:{hashlib.sha256(b''.join(sorted(parts))).hexdigest()}"


def folder_digest(folder: Path) -> str | None:
    """`weights_digest` of the safetensors in a model's folder; `None` where there are none."""
    files = weight_files(folder)
    return weights_digest(_tensors(files)) if files else None


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights of a folder from."""
    single = folder / SINGLE_FILE
    if single.is_file():
        return [single]
    names = (path for path in folder.glob("model-*.safetensors") if WEIGHTS.fullmatch(path.name))
    return sorted(names)


def read_export(folder: Path) -> dict[str, Any]:
    """What the export in a folder says of itself; empty where it says nothing that can be read."""
    try:
        facts = json.loads((folder / EXPORT_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def is_export_of(export: Path, model: Path) -> bool:
    """Whether the folder `export` says that it was made of the weights in the folder `model`."""
    said = read_export(export).get(SOURCE_DIGEST)
    return said is not None and said == folder_digest(model)


def _tensors(files: Iterable[Path]) -> Iterator["torch.Tensor"]:
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                yield opened.get_tensor(name)
