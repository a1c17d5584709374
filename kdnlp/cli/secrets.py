"""Tokens stay out of what is printed and written."""

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"\bhf_\w+")
"""The tokens of the Hub, wherever they stand."""

_HIDDEN = "***"


def hide_tokens(text: str) -> str:
    """The text without the Hub's tokens in it.

    >>> hide_tokens("no access to https://me:hf_abcdef@host/model")
    'no access to https://me:***@host/model'
    """
    return _TOKEN.sub(_HIDDEN, text)


def hide_values(parts: Sequence[str]) -> list[str]:
    """Parts of a command line without the values of flags that may be meant to take a token.

    >>> hide_values(["--hub_tokn", "secret", "--api-token=secret", "--sed", "1"])
    ['--hub_tokn', '***', '--api-token=***', '--sed', '1']
    """
    shown, follows = [], False
    for part in parts:
        flag, equals, _ = part.partition("=")
        is_flag = flag.startswith("-")
        meant = is_flag and "tok" in flag.lower()
        if follows and not is_flag:
            part = _HIDDEN
        elif meant and equals:
            part = f"{flag}={_HIDDEN}"
        shown.append(part)
        follows = meant and not equals
    return shown
