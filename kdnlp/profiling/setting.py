"""The circumstances of a profile, without which its numbers mean nothing."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedModel

from kdnlp.profiling.latency import shared_attention, shared_dtype
from kdnlp.profiling.placed import device_name

_LIBRARIES = ("torch", "transformers", "onnxruntime", "numpy")


@dataclass(frozen=True)
class ProfileSetting:
    """What a profile was measured on, and how.

    Attributes:
        device: where the models ran, as `device_name` calls it.
        processor: the model of the CPU, which launches the operations of a GPU too.
        dtype: of the weights and the arithmetic; by model where they differ.
        threads: CPU threads for one operation.
        attention: attention implementation; by model where they differ.
        versions: of Python, torch, transformers, numpy, CUDA where it is used, and of ONNX Runtime
            where it is installed.
    """

    device: str
    processor: str
    dtype: str
    threads: int
    attention: str
    versions: dict[str, str]


def describe_profile(
    models: Mapping[str, PreTrainedModel], device: torch.device, dtype: torch.dtype | None
) -> ProfileSetting:
    """The circumstances of a profile of these models that is measured now."""
    versions = {"python": platform.python_version(), **_installed()}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
    return ProfileSetting(
        device=device_name(device),
        processor=processor_name(),
        dtype=shared_dtype(models, dtype),
        threads=torch.get_num_threads(),
        attention=shared_attention(models),
        versions=versions,
    )


def _installed() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES if find_spec(name) is not None}


def processor_name() -> str:
    """The processor's model name; Linux tells it in a file, where Python does not look."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
