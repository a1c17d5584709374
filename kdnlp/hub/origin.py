"""Where a model came from: what it is called, at which revision, and under which licence."""

import logging
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from kdnlp.uploads.card_check import CARD, read_license, read_metadata
from kdnlp.uploads.send import CONNECTION_ERROR

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def describe_origin(place: str, revision: str | None = None) -> dict[str, Any]:
    """Plain values for the report and the card about the model that another was made from.

    Args:
        place: a Hub id, or a folder, of which only the last part is told.
        revision: the commit that was loaded from the Hub.

    Returns:
        `base_model` and `base_model_on_hub`; `base_model_revision` where it is known; of a folder
        `base_model_from`, what its own card says that it was made from on the Hub; and `license`,
        the licence's fields, where its card names one.
    """
    on_hub = not os.path.isdir(place)
    facts: dict[str, Any] = {"base_model": model_name(place), "base_model_on_hub": on_hub}
    path = _card_on_hub(place, revision) if on_hub else Path(place, CARD)
    if on_hub and revision is not None:
        facts["base_model_revision"] = revision
    if path is None or not path.is_file():
        return facts
    license = read_license(path)
    if license:
        facts["license"] = license
    if not on_hub:
        facts |= _made_from(path)
    return facts


def model_name(place: str) -> str:
    """A model's id on the Hub, or the last part of the folder that it lies in."""
    return Path(place).resolve().name if os.path.isdir(place) else place


def _made_from(card: Path) -> dict[str, Any]:
    named = read_metadata(card).get("base_model")
    names = [named] if isinstance(named, str) else named
    found = [name for name in names or [] if isinstance(name, str) and _HUB_ID.fullmatch(name)]
    return {"base_model_from": found} if found else {}


def _card_on_hub(repo_id: str, revision: str | None) -> Path | None:
    """The card of a model on the Hub; `None` where there is none, or no way to it."""
    try:
        return Path(hf_hub_download(repo_id, CARD, revision=revision))
    except (CONNECTION_ERROR, OSError, ValueError) as error:
        logger.info("No card of %s, so its licence is not inherited: %s", repo_id, error)
        return None
