"""The licence of a model: asked for, or that of the model it was made from, with its text."""

import logging
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, constants, hf_hub_download

from kdnlp.uploads.card_check import CARD, check_license, license_link, read_metadata
from kdnlp.uploads.publishable import LICENSE_FILES
from kdnlp.uploads.send import CONNECTION_ERROR

logger = logging.getLogger(__name__)

FIELDS = ("license", "license_name", "license_link")
"""What the metadata of a card say of a licence."""

_URL = re.compile(r"https?://")


@dataclass(frozen=True)
class License:
    """A licence as a card names it.

    Attributes:
        license: its id on the Hub, or `other`.
        license_name: of one that is `other`.
        license_link: where its text is: an address, or a name out of `LICENSE_FILES`.
        file: the text on this machine, where it is to lie beside the card.
    """

    license: str
    license_name: str | None = None
    license_link: str | None = None
    file: Path | None = None

    @property
    def fields(self) -> dict[str, str]:
        """What stands in the metadata of a card."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {name: value for name, value in values.items() if value}

    def put_into(self, folder: Path) -> None:
        """Copy its text beside the card, where the card says that it lies there."""
        if self.file is not None and self.license_link is not None:
            target = folder / self.license_link
            if not target.exists() or not target.samefile(self.file):
                shutil.copyfile(self.file, target)

    def stands_in(self, card: ModelCard) -> bool:
        """Whether it is the one that a card names."""
        return all(card.data.get(name) == self.fields.get(name) for name in FIELDS)

    def add_to(self, card: ModelCard) -> None:
        """Write it into the metadata of a card, in place of what stands there."""
        for name in FIELDS:
            card.data[name] = None
        for name, value in self.fields.items():
            card.data[name] = value


def as_license(license: "License | str") -> License:
    """A licence by its id on the Hub, or as it is.

    Raises:
        ValueError: if the Hub knows no such id.
    """
    return license if isinstance(license, License) else License(check_license(license))


def find_license(place: str, revision: str | None = None) -> License | None:
    """The licence in the card of a model, so that one that is made from it can have it too.

    A relative link leads to the text in the model's own repository or folder, and is led there.

    Args:
        place: a Hub id, or a folder; empty for none.
        revision: the commit that was loaded from the Hub.

    Returns:
        `None` where the card names no licence, or one whose text cannot be handed on.
    """
    if not place:
        return None
    folder = Path(place) if os.path.isdir(place) else None
    path = folder / CARD if folder else _card_on_hub(place, revision)
    data = read_metadata(path) if path is not None and path.is_file() else {}
    fields = {name: data[name] for name in FIELDS if isinstance(data.get(name), str)}
    if not fields.get("license"):
        return None
    link = license_link(fields)
    if not link or _URL.match(link):
        return License(**fields)
    if folder is None:
        fields["license_link"] = (
            f"{constants.ENDPOINT}/{place}/blob/{revision or 'main'}/{link.removeprefix('/')}"
        )
        return License(**fields)
    if link not in LICENSE_FILES or not (folder / link).is_file():
        logger.warning(
            "The licence of %s is not inherited: its text, %s, is not there or is not called %s.",
            folder.name, link, " or ".join(LICENSE_FILES),
        )  # fmt: skip
        return None
    fields["license_link"] = link
    return License(**fields, file=folder / link)


def check_stated(card: ModelCard, folder: Path) -> None:
    """Raise `ValueError` unless a card that is to be published names a licence that can be read."""
    path = folder / CARD
    if not card.data.get("license"):
        raise ValueError(f"Expected a licence in {path}, found none: {NO_LICENSE}")
    link = license_link(card.data)
    if link and not _URL.match(link) and not (link in LICENSE_FILES and (folder / link).is_file()):
        raise ValueError(
            f"Expected the text of the licence where {path} links to, got {link}, which does not "
            f"go along. A reader could not tell what is allowed. Put it into a file beside the "
            f"card called {' or '.join(LICENSE_FILES)}, or link to its address."
        )


def with_own_license(files: Iterable[Path], card: ModelCard, folder: Path) -> list[Path]:
    """The files without the text of a licence to which the card does not link.

    It may be that of a licence which was replaced, and nobody could tell which of the two holds.
    """
    files, own = list(files), license_link(card.data)
    others = {folder / name for name in LICENSE_FILES if name != own} & set(files)
    for path in sorted(others):
        logger.warning(
            "%s is not published: the card there does not link to it, and it may be the text of "
            "another licence. If it is that of this one, write license_link: %s into %s.",
            path, path.name, CARD,
        )  # fmt: skip
    return [path for path in files if path not in others]


NO_LICENSE = (
    "that of the model it was made from is not known. Without one nobody may use the model. On "
    "the command line pass --license, such as apache-2.0 or mit; in Python set trainer.license. "
    "Mind what that of the original allows."
)
"""Why a model is not published, and what to do."""


def _card_on_hub(repo_id: str, revision: str | None) -> Path | None:
    """The card of a model on the Hub; `None` where there is none, or no way to it."""
    try:
        return Path(hf_hub_download(repo_id, CARD, revision=revision))
    except (CONNECTION_ERROR, OSError, ValueError) as error:
        logger.info("No card of %s, so its licence is not inherited: %s", repo_id, error)
        return None
