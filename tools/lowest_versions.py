"""Print the lowest version of every dependency that kdnlp admits, as constraints for pip.

`python tools/lowest_versions.py torch=2.13.0` prints that version of torch in place of its lowest.
"""

import re
import sys
from collections.abc import Sequence
from importlib.metadata import requires


def lowest_versions(requirements: Sequence[str], instead: dict[str, str]) -> list[str]:
    """`name==version` of every requirement that is no extra's.

    Args:
        requirements: as `importlib.metadata.requires` lists them.
        instead: versions by name to take in place of the lowest.

    Raises:
        ValueError: if a requirement says no lowest version, or `instead` names none of them.
    """
    lowest = {}
    for requirement in (text for text in requirements if "extra ==" not in text):
        found = re.match(r"([\w.-]+).*>=([\w.]+)", requirement)
        if found is None:
            raise ValueError(
                f"Expected a requirement with a lowest version, got {requirement!r}. What no run "
                "tests cannot be promised. Write name>=version in pyproject.toml."
            )
        lowest[found[1]] = found[2]
    if not instead.keys() <= lowest.keys():
        raise ValueError(f"Expected names out of {', '.join(lowest)}, got {', '.join(instead)}.")
    return [f"{name}=={version}" for name, version in {**lowest, **instead}.items()]


if __name__ == "__main__":
    given = dict(argument.split("=") for argument in sys.argv[1:])
    print("\n".join(lowest_versions(requires("kdnlp") or [], given)))
