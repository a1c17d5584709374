"""What `--losses` says: names, or JSON with the settings of each loss."""

import inspect
import json
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from kdnlp.losses import LOSSES, DistillationLoss


def resolve_losses(text: str | None) -> dict[str, DistillationLoss] | None:
    """Losses by name, from text such as `logits,hidden` or JSON with the settings of each.

    >>> resolve_losses('{"hidden": {"layer_map": "skip"}}')["hidden"].config()["layer_map"]
    'skip'

    Raises:
        ValueError: if a name is not in `LOSSES`, a setting is none of the loss's, or its value is
            of another type or out of range.
    """
    if text is None:
        return None
    wanted = _named_settings(text)
    unknown = [name for name in wanted if name not in LOSSES]
    if unknown:
        raise ValueError(
            f"--losses names {', '.join(unknown)}; expected names out of {', '.join(LOSSES)}. The "
            "loss on the labels, `task`, is always there; weigh it with --loss_weights."
        )
    return {name: _build_loss(name, settings) for name, settings in wanted.items()}


def _named_settings(text: str) -> dict[str, dict[str, Any]]:
    if not text.lstrip().startswith("{"):
        return {name.strip(): {} for name in text.split(",")}
    try:
        return {name: dict(settings or {}) for name, settings in json.loads(text).items()}
    except (ValueError, TypeError) as error:
        raise ValueError(
            "--losses must read like logits,hidden or, with settings, be JSON such as "
            f'{{"logits": {{}}, "hidden": {{"layer_map": "skip"}}}}, got {text!r}.'
        ) from error


def _build_loss(name: str, settings: dict[str, Any]) -> DistillationLoss:
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    # Those of a class without settings are `*args, **kwargs`, which nn.Module passes on to nobody.
    known = {p.name: p.annotation for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"--losses gives {name} the settings {', '.join(unknown)}, which it does not have; it "
            f"has {', '.join(known) or 'none'}."
        )
    for setting, value in settings.items():
        if not _fits(value, known[setting]):
            raise ValueError(
                f"--losses gives {name} {setting}={json.dumps(value)}; expected "
                f"{inspect.formatannotation(known[setting])}. It would be read as something else, "
                "or fail once all is loaded. In JSON, numbers, true, false and null have no quotes."
            )
    try:
        return LOSSES[name](**settings)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--losses gives {name} the settings {json.dumps(settings)}, which it cannot take: "
            f"{error}"
        ) from error


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value out of JSON is what an annotation says; unusual annotations allow all."""
    origin, inside = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Literal:  # which of them there are, the loss says better
        return type(value) in {type(choice) for choice in inside}
    if origin is Sequence:
        return isinstance(value, list | str) and all(_fits(item, inside[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(
            _fits(_number(key), inside[0]) and _fits(item, inside[1]) for key, item in value.items()
        )
    if expected is float:
        return type(value) in (int, float)
    return type(value) is expected if expected in (int, bool, str, type(None)) else True


def _number(key: str) -> int | str:
    """A key as the number that it stands for: JSON has only text there."""
    return int(key) if key.removeprefix("-").isdecimal() else key
