"""Where a model came from: what it is called, and at which revision."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdnlp.uploads.card_check import CARD, read_metadata

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HEADING = re.compile(r"\A(?:---\n.*?\n---\n)?\s*# ([\w.-]+)\s*$", re.DOTALL | re.MULTILINE)


def describe_origin(place: str, revision: str | None = None) -> dict[str, Any]:
    """Plain values for the report and the card about the model that another was made from.

    Args:
        place: a Hub id, or a folder, of which only the last part is told.
        revision: the commit that was loaded from the Hub.

    Returns:
        `base_model` and `base_model_on_hub`; `base_model_revision` where it is known; and of a
        folder what its own card says: `base_model_from`, what it was made from on the Hub, and
        `base_model_title`, the name above the card, where that is another than the folder's.
    """
    on_hub = _is_hub_id(place)
    facts: dict[str, Any] = {"base_model": model_name(place), "base_model_on_hub": on_hub}
    if on_hub and revision is not None:
        facts["base_model_revision"] = revision
    if not on_hub and Path(place, CARD).is_file():
        facts |= {**_made_from(Path(place, CARD)), **_title(Path(place, CARD))}
    return facts


def origin_text(origin: Mapping[str, Any]) -> str:
    """What a model came from, in a sentence; a folder by the name that its own card bears.

    >>> origin_text({"base_model": "mrpc", "base_model_from": ["google-bert/bert-base-uncased"]})
    '`mrpc` (made from `google-bert/bert-base-uncased`)'
    """
    made_from = ", ".join(f"`{name}`" for name in origin.get("base_model_from", ()))
    name = origin.get("base_model_title", origin["base_model"])
    return f"`{name}`{f' (made from {made_from})' if made_from else ''}"


def model_name(place: str) -> str:
    """A model's id on the Hub, or the last part of the folder that it lies in, or lay in.

    >>> model_name("google-bert/bert-base-uncased"), model_name("/gone/runs/mrpc")
    ('google-bert/bert-base-uncased', 'mrpc')
    """
    return place if _is_hub_id(place) else Path(place).resolve().name


def _is_hub_id(place: str) -> bool:
    return not os.path.isdir(place) and _HUB_ID.fullmatch(place) is not None


def _title(card: Path) -> dict[str, Any]:
    """The heading of a card that is a name, as every `model` or `final` may bear it."""
    heading = _HEADING.search(card.read_text(encoding="utf-8", errors="replace"))
    if heading is None or heading[1] == model_name(str(card.parent)):
        return {}
    return {"base_model_title": heading[1]}


def _made_from(card: Path) -> dict[str, Any]:
    named = read_metadata(card).get("base_model")
    names = [named] if isinstance(named, str) else named
    found = [name for name in names or [] if isinstance(name, str) and _HUB_ID.fullmatch(name)]
    return {"base_model_from": found} if found else {}
