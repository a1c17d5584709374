"""A smaller model of the same family: fewer blocks, and the teacher's weights where they fit."""

import copy
import logging
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kdnlp.models.layers import LayerStack, find_layers

logger = logging.getLogger(__name__)

InitLayers = Literal["first", "last", "spaced"] | Sequence[int]

PER_LAYER_FIELDS = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Configuration lists with one entry a block, which must follow the blocks that are kept."""

LABEL_FIELDS = ("id2label", "label2id", "problem_type")


def build_student(
    teacher: PreTrainedModel,
    num_layers: int | None = None,
    init_layers: InitLayers = "first",
    config: PretrainedConfig | None = None,
    stack: str | None = None,
) -> PreTrainedModel:
    """Build a plain model of the teacher's class with fewer blocks, embeddings and head copied.

    Serves students and Theseus successors alike. What only the teacher's first block has (T5's
    relative position bias, say) goes to the student's first block, whichever block it copies.

    Args:
        teacher: the model to start from; it is not changed.
        num_layers: blocks of the student, from 1 to the teacher's count. Not needed with `config`.
        init_layers: the teacher's blocks to copy: `"first"` (the paper's choice), `"last"`,
            `"spaced"` (evenly, from the bottom), or their indices.
        config: a configuration of the same family, for another width. With another hidden size
            every weight is fresh, and a warning says so; else all that fits is copied.
        stack: `"encoder"` or `"decoder"`, for models that have both.

    Returns:
        A model in training mode with the teacher's dtype, device and label names.

    Raises:
        ValueError: if the layers asked for do not exist, or `config` is of another family.
    """
    layer_stack = find_layers(teacher, stack)
    available = len(layer_stack.layers)
    if config is not None:
        _check_family(teacher.config, config)
        num_layers = getattr(config, layer_stack.count_key) if num_layers is None else num_layers
    source = select_layers(num_layers, available, init_layers)
    student_config = _student_config(teacher, layer_stack, source, config)
    student: PreTrainedModel = type(teacher)(student_config)
    nn.Module.to(student, device=teacher.device, dtype=teacher.dtype)
    if teacher.can_generate():
        student.generation_config = copy.deepcopy(teacher.generation_config)
    not_copied = _copy_weights(teacher, student, layer_stack.path, source)
    if not_copied:
        logger.warning(
            f"{len(not_copied)} of the student's tensors could not be copied from the teacher and "
            f"start fresh: {_shorten(not_copied)}."
        )
    return student.train()


def select_layers(num_layers: int | None, available: int, init_layers: InitLayers) -> list[int]:
    """Indices of the teacher's blocks that the student starts from, bottom first.

    >>> select_layers(3, 6, "spaced")
    [0, 2, 4]
    >>> select_layers(2, 6, "last")
    [4, 5]

    Args:
        num_layers: how many; `None` takes the length of `init_layers`.
        available: how many blocks the teacher has.
        init_layers: see `build_student`.

    Raises:
        ValueError: if the count or an index is out of range, or the two disagree.
    """
    if not isinstance(init_layers, str):
        indices = [int(i) for i in init_layers]
        if num_layers not in (None, len(indices)) or not all(0 <= i < available for i in indices):
            raise ValueError(
                f"init_layers={indices} must list {num_layers or 'at least one'} block(s) from 0 "
                f"to {available - 1}, the teacher's blocks. Each student block copies one of them."
            )
        num_layers = len(indices)
    if num_layers is None or not 1 <= num_layers <= available:
        raise ValueError(
            f"num_layers must lie between 1 and the teacher's {available} blocks, got "
            f"{num_layers}. Fewer would be no transformer, more no compression."
        )
    if not isinstance(init_layers, str):
        return indices
    if init_layers not in ("first", "last", "spaced"):
        raise ValueError(
            f'init_layers must be "first", "last", "spaced" or a list of indices, got '
            f"{init_layers!r}."
        )
    if init_layers == "spaced":
        return [i * available // num_layers for i in range(num_layers)]
    start = 0 if init_layers == "first" else available - num_layers
    return list(range(start, start + num_layers))


def _student_config(
    teacher: PreTrainedModel,
    layer_stack: LayerStack,
    source: list[int],
    config: PretrainedConfig | None,
) -> PretrainedConfig:
    student_config = copy.deepcopy(config or teacher.config)
    setattr(student_config, layer_stack.count_key, len(source))
    for name in PER_LAYER_FIELDS:
        per_layer = getattr(teacher.config, name, None)
        if per_layer is not None and len(per_layer) == len(layer_stack.layers):
            setattr(student_config, name, [per_layer[i] for i in source])
    for name in LABEL_FIELDS:
        setattr(student_config, name, copy.copy(getattr(teacher.config, name)))
    return student_config


@torch.no_grad()
def _copy_weights(
    teacher: PreTrainedModel, student: PreTrainedModel, path: str, source: list[int]
) -> list[str]:
    """Copy every tensor that fits; return the names of those that do not."""
    if student.config.hidden_size != teacher.config.hidden_size:
        return list(student.state_dict())
    teacher_state = teacher.state_dict()
    not_copied = []
    for name, tensor in student.state_dict().items():
        candidates = [teacher_state.get(n) for n in _source_names(name, path, source)]
        match = next((t for t in candidates if t is not None and t.shape == tensor.shape), None)
        if match is None:
            not_copied.append(name)
        else:
            tensor.copy_(match)
    return not_copied


def _source_names(name: str, path: str, source: list[int]) -> list[str]:
    if not name.startswith(f"{path}."):
        return [name]
    index, _, rest = name[len(path) + 1 :].partition(".")
    names = [f"{path}.{source[int(index)]}.{rest}"]
    return [*names, f"{path}.0.{rest}"] if index == "0" else names


def _check_family(teacher: PretrainedConfig, config: PretrainedConfig) -> None:
    if config.model_type != teacher.model_type:
        raise ValueError(
            f"config must be of the teacher's family {teacher.model_type!r}, got "
            f"{config.model_type!r}: the student is a model of the teacher's class. For another "
            "family, create the student yourself and give it to DistillationTrainer."
        )
    if config.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"config.vocab_size must be the teacher's {teacher.vocab_size}, got "
            f"{config.vocab_size}: with other token ids the two would read different texts."
        )


def _shorten(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
