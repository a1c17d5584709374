"""Plain values as JSON that readers in every language take."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(values: Any) -> str:
    """Values as indented JSON that ends in a line break; what is not finite is `null`.

    NaN and infinity are no JSON, and one metric that has no value must not cost the file that holds
    all others.

    >>> print(json_text({"loss": float("inf"), "score": 0.5}), end="")
    {
      "loss": null,
      "score": 0.5
    }
    """
    return f"{json.dumps(_finite(values), indent=2, allow_nan=False)}\n"


def not_a_number(values: Any) -> Any:
    """What was read from JSON, with NaN where `json_text` wrote `null`.

    >>> not_a_number({"loss": None, "score": 0.5})
    {'loss': nan, 'score': 0.5}
    """
    if isinstance(values, Mapping):
        return {key: not_a_number(value) for key, value in values.items()}
    return math.nan if values is None else values


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
