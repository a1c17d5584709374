"""Is a model card whole? Metadata that the Hub's own classes take, and no field left open."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

CARD = "README.md"

LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
"""How the Hub writes a licence: `apache-2.0`, `mit`, `cc-by-sa-4.0`."""

_REQUIRED = ("library_name", "pipeline_tag", "tags")
_OPEN_VALUES = {"", "None", "nan", "NaN", "inf", "-inf", "null", "undefined", "[]", "{}", "..."}
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{%|more information needed|\[needs? more", re.IGNORECASE)
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_REVISION = re.compile(r',\s*revision="[^"]*"')
_OWN_ID = re.compile(r"<!-- repo_id: (.+?) -->")
_RULE = re.compile(r":?-+:?")


def check_card(content: str, where: str = CARD) -> ModelCard:
    """The card, if the Hub's classes take it and nothing in it is left open.

    Args:
        content: the text of the file, metadata first.
        where: how messages call it.

    Raises:
        ValueError: if the metadata cannot be read, lack `library_name`, `pipeline_tag` or `tags`,
            change when they are written and read again, or a field of the text is open. It says
            which.
    """
    try:
        card = ModelCard(content)
        again = ModelCard(str(card))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{where}: expected metadata that the Hub takes, got {error}. The Hub would refuse the "
            "whole commit. Correct the YAML between the two lines of ---."
        ) from error
    missing = [name for name in _REQUIRED if not card.data.get(name)]
    if missing:
        raise ValueError(
            f"{where}: expected metadata with {', '.join(_REQUIRED)}, got none for "
            f"{', '.join(missing)}. Nobody would find the model, or know what loads it. Add them "
            "between the two lines of --- at the top."
        )
    if again.data.to_dict() != card.data.to_dict():
        raise ValueError(
            f"{where}: the metadata change when they are written and read again. The Hub would "
            "show other results than the card. Write plain numbers and words."
        )
    open_fields = list(find_open_fields(card))
    if open_fields:
        raise ValueError(
            f"{where}: expected every field filled, got {'; '.join(open_fields[:5])}. A reader "
            "cannot tell what was forgotten from what is unknown. Fill them in, or take them out."
        )
    return card


def find_open_fields(card: ModelCard) -> list[str]:
    """What a card leaves open: empty cells, None, NaN, placeholders, empty metadata."""
    found = [f"{name}: {value!r}" for name, value in card.data.to_dict().items() if _is_open(value)]
    for line in _FENCE.sub("", card.text).splitlines():
        cells = line.strip().removeprefix("|").removesuffix("|").split("|")
        is_row = line.lstrip().startswith("|") and not all(
            _RULE.fullmatch(cell.strip()) for cell in cells
        )
        # The first cell is a name, and a class may be called None.
        empty = is_row and any(cell.strip(" `*") in _OPEN_VALUES for cell in cells[1:])
        if empty or _PLACEHOLDER.search(line):
            found.append(repr(line.strip()))
    return found


def check_license(license: str) -> str:
    """The licence; raise `ValueError` unless it is written as the Hub writes one."""
    if not LICENSE.fullmatch(license) or license == "other":
        raise ValueError(
            f"Expected a licence's id on the Hub, such as apache-2.0 or mit, got {license!r}. The "
            "Hub would refuse the card. The ids are listed at "
            "https://huggingface.co/docs/hub/repositories-licenses; one that is not among them "
            f"needs license: other, license_name and license_link, written into {CARD}."
        )
    return license


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a card; empty where they cannot be read."""
    try:
        return dict(ModelCard.load(path, ignore_metadata_errors=True).data.to_dict())
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):
        return {}


def license_link(metadata: Any) -> str:
    """Where the metadata of a card say that the text of the licence is; empty where they do not.

    >>> license_link({"license": "other", "license_link": "./LICENSE"})
    'LICENSE'
    """
    return str(metadata.get("license_link") or "").removeprefix("./")


def own_id_line(repo_id: str) -> str:
    """What says in the text of a card, unseen, which of the models named there it is about."""
    return f"<!-- repo_id: {repo_id} -->"


def own_id_of(card: ModelCard) -> str | None:
    """What `own_id_line` says in a card; `None` where nothing does."""
    said = _OWN_ID.search(card.text)
    return None if said is None else said[1]


def for_repo(card: ModelCard, repo_id: str) -> ModelCard:
    """The card of the same model in another repository, where the card says what it is called.

    >>> text = own_id_line("my run") + ' load("my run").from_pretrained("my run")'
    >>> for_repo(ModelCard(text + ', from_pretrained("base")'), "me/small").text
    '<!-- repo_id: me/small --> load("my run").from_pretrained("me/small"), from_pretrained("base")'
    """
    said = _OWN_ID.search(card.text)
    if said is None:
        return card
    own = re.escape(said[1])
    text = re.sub(rf'(\bfrom_pretrained\()"{own}"', lambda call: f'{call[1]}"{repo_id}"', str(card))
    return ModelCard(text.replace(said[0], own_id_line(repo_id)))


def on_branch(card: ModelCard, branch: str | None) -> ModelCard:
    """The card of a model on a branch of its repository, where the card loads it.

    Whatever revision stood there goes: on `main`, `None`, the card names none.

    >>> text = own_id_line("me/small") + ' from_pretrained("me/small"), from_pretrained("base")'
    >>> on_branch(ModelCard(text), "int8").text.partition(" ")[2].rpartition("> ")[2]
    'from_pretrained("me/small", revision="int8"), from_pretrained("base")'
    """
    own = own_id_of(card)
    if own is None:
        return card
    named = "" if branch in (None, "main") else f', revision="{branch}"'

    def loading(call: re.Match[str]) -> str:
        return call[1] + named + _REVISION.sub("", call[2])

    calls = rf'(\b(?:from_pretrained|snapshot_download)\("{re.escape(own)}")([^()]*\))'
    return ModelCard(re.sub(calls, loading, str(card)))


def _is_open(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return not value or any(_is_open(item) for item in value)
    if isinstance(value, dict):
        return not value or any(_is_open(item) for item in value.values())
    return value is None or str(value).strip() in _OPEN_VALUES
