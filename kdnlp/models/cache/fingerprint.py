"""Hashes of what decides a teacher's outputs: its weights and configuration, and the rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.distributed.tensor import DTensor

from kdnlp.data.columns import column_parts, number_columns

# Where a model came from, and what its user may switch without changing a number.
_UNRELATED = {
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "problem_type",
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
}


def fingerprint_model(model: nn.Module) -> str:
    """SHA-256 over the model's class, its configuration, every tensor of its state and its buffers.

    Equal models give equal fingerprints wherever they were loaded from; another weight, dtype or
    configuration gives another one. Names, paths and versions do not count, and neither does the
    precision of a surrounding autocast, which is no part of a model.

    Args:
        model: any module; its configuration is read from `model.config` if it has one. What else
            decides its outputs, and is no tensor, is read from `model.output_settings`: plain
            values, such as `TeacherEnsemble.output_settings`.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: if the model's state holds no tensor. Every such model would look the same.
    """
    state = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    if not state:
        raise ValueError(
            f"Expected a model with weights in its state_dict, got {type(model).__name__} with "
            "none. Two different ones could not be told apart, and one would be given the "
            "other's outputs. Register its modules, or combine the fingerprints of its parts."
        )
    # The state leaves out the buffers that are not saved, which the outputs depend on all the same.
    tensors = {**dict(model.named_buffers(remove_duplicate=False)), **state}
    config: Any = getattr(model, "config", None)
    settings = _settings(config.to_dict() if hasattr(config, "to_dict") else config)
    own = _settings(getattr(model, "output_settings", None))
    text = json.dumps([type(model).__name__, settings, own], sort_keys=True, default=str)
    return combine(text, fingerprint_tensors(tensors))


def fingerprint_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if isinstance(tensor, DTensor):  # sharded; every process asks for the whole
            tensor = tensor.full_tensor()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_rows(dataset: Dataset, columns: Sequence[str] | None = None) -> str:
    """SHA-256 over the rows' values, in order.

    Equal rows give equal fingerprints however the dataset was built: its chunks, its index, its
    format, the order of its columns and the width of its integers do not count. The tokenizer and
    the length at which it cut do, as they decide the token ids.

    Args:
        dataset: tokenised rows.
        columns: what to hash. `None` takes every column of numbers or lists of numbers, the labels
            too: a decoder reads them.

    Returns:
        64 hexadecimal digits.
    """
    names = sorted(number_columns(dataset) if columns is None else columns)
    parts = [f"{name} {_fingerprint_column(dataset, name)}" for name in names]
    return combine(str(len(dataset)), *parts)


def combine(*parts: str) -> str:
    """SHA-256 over several texts, told apart by their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def _settings(config: Any) -> Any:
    if isinstance(config, Mapping):
        # Keys are text, as they are after a round trip through JSON.
        return {str(k): _settings(v) for k, v in config.items() if k not in _UNRELATED}
    if isinstance(config, (list, tuple)):
        return [_settings(value) for value in config]
    return config


def _fingerprint_column(dataset: Dataset, column: str) -> str:
    """A hash for each depth of list and one of the numbers, over all parts as if they were one."""
    digests: dict[str, Any] = {}
    for lengths, values in column_parts(dataset, column):
        named = {f"depth {depth}": numbers for depth, numbers in enumerate(lengths)}
        for name, numbers in {**named, str(values.dtype): values}.items():
            digests.setdefault(name, hashlib.sha256()).update(numbers.data)
    return combine(*(f"{name} {digest.hexdigest()}" for name, digest in sorted(digests.items())))
