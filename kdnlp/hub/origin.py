"""Where a model came from: what it is called, and at which revision."""

import os
import re
from pathlib import Path
from typing import Any

from kdnlp.uploads.card_check import CARD, read_metadata

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def describe_origin(place: str, revision: str | None = None) -> dict[str, Any]:
    """Plain values for the report and the card about the model that another was made from.

    Args:
        place: a Hub id, or a folder, of which only the last part is told.
        revision: the commit that was loaded from the Hub.

    Returns:
        `base_model` and `base_model_on_hub`; `base_model_revision` where it is known; and of a
        folder `base_model_from`, what its own card says that it was made from on the Hub.
    """
    on_hub = not os.path.isdir(place)
    facts: dict[str, Any] = {"base_model": model_name(place), "base_model_on_hub": on_hub}
    if on_hub and revision is not None:
        facts["base_model_revision"] = revision
    if not on_hub and Path(place, CARD).is_file():
        facts |= _made_from(Path(place, CARD))
    return facts


def model_name(place: str) -> str:
    """A model's id on the Hub, or the last part of the folder that it lies in."""
    return Path(place).resolve().name if os.path.isdir(place) else place


def _made_from(card: Path) -> dict[str, Any]:
    named = read_metadata(card).get("base_model")
    names = [named] if isinstance(named, str) else named
    found = [name for name in names or [] if isinstance(name, str) and _HUB_ID.fullmatch(name)]
    return {"base_model_from": found} if found else {}
