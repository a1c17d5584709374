"""Torch's profiler, without the lines that it prints from below Python whenever it starts."""

import os
from typing import Any

from torch.profiler import profile


def quiet_profile(**options: Any) -> profile:
    """A `torch.profiler.profile`; its library reads how much to say when the first one starts."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    return profile(**options)
