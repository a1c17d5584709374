"""Reading and checking single values of the arguments: weights, slots, temperatures, schedules."""

import json
from typing import Any

from kdnlp.schedules import SCHEDULES

MAX_WEIGHT = 1e6
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e4


def parse_weights(value: dict[str, float] | str | None, argument: str) -> dict[str, float] | None:
    """Weights by loss name from a dict, JSON, or text such as `task=0.5,logits=0.5`.

    >>> parse_weights("task=0.5,logits=2", "loss_weights")
    {'task': 0.5, 'logits': 2.0}

    Raises:
        ValueError: if the text does not parse, names no loss, or a weight is negative or not
            finite.
    """
    if value is None:
        return None
    try:
        weights = {str(k): float(v) for k, v in as_dict(value).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{argument} must read like task=0.5,logits=0.5 or be JSON, got {value!r}."
        ) from error
    if not weights:
        raise ValueError(
            f"{argument} must name at least one loss, got none. Nothing would train; leave it out "
            "for its default."
        )
    for name, weight in weights.items():
        if not 0.0 <= weight < float("inf"):
            raise ValueError(
                f"{argument}: the weight of {name!r} must be finite and at least 0, got {weight}. "
                "A negative weight would push the student away from its target."
            )
        if weight > MAX_WEIGHT:
            raise ValueError(
                f"{argument}: the weight of {name!r} must be at most {MAX_WEIGHT:g}, got {weight}. "
                "The gradient would leave the range of float32. Only their ratios and the learning "
                "rate matter: make all of them smaller."
            )
    return weights


def parse_slot_sizes(value: Any) -> list[int] | None:
    """Slot sizes from a list or text such as `1,1,2,2`.

    >>> parse_slot_sizes("1,1,2,2")
    [1, 1, 2, 2]

    Raises:
        ValueError: if an entry is not a whole number of at least 1.
    """
    if value is None:
        return None
    try:
        entries = value.strip("[] ").split(",") if isinstance(value, str) else list(value)
        sizes = [int(str(entry).strip()) for entry in entries]
    except (ValueError, TypeError) as error:
        raise ValueError(f"slot_sizes must read like 1,1,2,2, got {value!r}.") from error
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"slot_sizes must be whole numbers of at least 1, got {value!r}. A successor block "
            "that stands for no predecessor block has nothing to replace."
        )
    return sizes


def as_dict(value: dict[str, float] | str) -> dict[str, Any]:
    """Names and values from a dict, JSON, or text such as `task=0.5,logits=0.5`."""
    if isinstance(value, dict):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = [[part.strip() for part in item.split("=")] for item in value.split(",")]
    if len({pair[0] for pair in pairs}) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def check_temperature(argument: str, value: float) -> None:
    """Raise `ValueError` unless the value is above 0 and finite."""
    if not 0.0 < value < float("inf"):
        raise ValueError(
            f"{argument} must be above 0 and finite, got {value}. Logits are divided by it; values "
            "from 1 to 10 are usual."
        )
    if not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        raise ValueError(
            f"{argument} must lie in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}], got {value}. "
            "Beyond it probabilities are all 0 and 1 or all the same, and what is left of the "
            "difference is rounding. Values from 1 to 10 are usual."
        )


def check_schedule(argument: str, value: str, choices: Any) -> None:
    """Raise `ValueError` unless the value is one of the choices of a `Literal`."""
    if value not in choices.__args__ or value not in SCHEDULES:
        raise ValueError(f"{argument} must be one of {', '.join(choices.__args__)}, got {value!r}.")


def checkpoints_reentrantly(args: Any) -> bool:
    """Whether training arguments ask for reentrant checkpointing, by its new or its old name."""
    names = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
    given = [getattr(args, name, None) for name in names]
    return any(isinstance(k, dict) and bool(k.get("use_reentrant")) for k in given)
