"""Undoing what mixed precision leaves on a model after training."""

from typing import Any

from torch import nn

_WRAPPED = ("forward", "_original_forward")


def wrapped_forward(model: nn.Module) -> dict[str, Any]:
    """What accelerate has put on the model in place of its class's `forward`, if anything."""
    return {name: vars(model)[name] for name in _WRAPPED if name in vars(model)}


def restore_forward(model: nn.Module, wrapped: dict[str, Any]) -> None:
    """Put back an earlier state of `wrapped_forward`; an empty one is the class's own forward.

    Preparing a model for mixed precision replaces its `forward` by one under autocast, for good: a
    model that is trained in bf16 would go on computing in bf16 while its weights say float32.
    """
    for name in _WRAPPED:
        vars(model).pop(name, None)
    vars(model).update(wrapped)
