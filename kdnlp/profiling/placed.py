"""Models on the device where they are measured, and back again."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from kdnlp.models.modes import evaluating


@contextmanager
def placed(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None = None
) -> Iterator[PreTrainedModel]:
    """The model on `device`, in eval mode, and back again afterwards.

    Args:
        model: it is left as it was: device, dtype and mode.
        device: where to put it.
        dtype: of the weights; another one than the model's own is given to a copy.

    Raises:
        ValueError: if the model is spread over several devices.
    """
    _check_one_device(model)
    home = model.device
    with evaluating(model):
        if dtype is not None and dtype != model.dtype:
            # Casting back would not restore the bits that a narrower dtype drops.
            yield nn.Module.to(copy.deepcopy(model), device=device, dtype=dtype)
            return
        if device == home:
            yield model  # torchao's quantized weights cannot be set anew under inference mode
            return
        try:
            yield nn.Module.to(model, device)
        finally:
            nn.Module.to(model, home)


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with the model's own weights, whose configuration and modules can be changed."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=weights)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    """The hardware's name, such as `NVIDIA H200`; of a CPU the vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return device.type


def _check_one_device(model: PreTrainedModel) -> None:
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise ValueError(
            f"Expected a model on one device, got {type(model).__name__} on "
            f"{', '.join(devices)}. Moving it to be timed would undo the split, and its latency "
            "would be mostly transfer. Load it without device_map."
        )
