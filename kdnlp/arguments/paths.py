"""Where a run may write: below its own folder."""

import os
from pathlib import Path


def check_below(folder: str | os.PathLike[str], path: str | os.PathLike[str], what: str) -> None:
    """Raise `ValueError` if a path leads out of a folder, by `..`, by a link or by itself.

    Args:
        folder: the run's.
        path: what is to lie in it.
        what: how the message calls the path.
    """
    root, place = Path(folder).resolve(), Path(path).resolve()
    if root == place or not place.is_relative_to(root):
        raise ValueError(
            f"{what} must lie below output_dir ({folder}), got {path}, which is {place}. What is "
            "there is overwritten, and may be another's. Choose a folder below, and let no link "
            "lead out of it."
        )
