"""The command of a run as its report and card show it: to be run by others, giving nothing away."""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdnlp.cli.secrets import hide_tokens

MODEL_FLAGS = ("model", "predecessor", "teacher", "more_teachers", "student")
"""What may be a Hub id, which everyone has, or a folder, which is on this machine alone."""

FILE_FLAGS = ("train_file", "validation_file")

WRITTEN_FLAGS = ("output_dir", "teacher_cache_dir", "logging_dir")
"""Folders that a run makes: by any name it is the same run."""

LEFT_OUT = (
    *("hub_token", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"),
    *("hub_always_push", "hub_revision", "resume_from_checkpoint", "data_dir"),
)
"""What changes no model: secrets, where it is published, where it went on, a copy of GLUE.

Without the last, the Hub's is read.
"""


def command_line(command: str, argv: Sequence[str]) -> str:
    """The command, with `<flag>` for each place on this machine that a run reads."""
    parts = [part for group in flag_groups(argv) for part in _shown(group)]
    return shlex.join(["kdnlp", command, *map(hide_tokens, parts)])


def flag_groups(argv: Sequence[str]) -> list[list[str]]:
    """Every flag with its values; what stands before the first flag is a group too.

    >>> flag_groups(["--more_teachers", "a", "b", "--seed=1"])
    [['--more_teachers', 'a', 'b'], ['--seed=1']]
    """
    groups: list[list[str]] = []
    for part in argv:
        if part.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(part)
    return groups


def flag_name(group: Sequence[str]) -> str:
    """The name of a group's flag, as a field of the options spells it; empty where it has none.

    >>> flag_name(["--hub-token=x"]), flag_name(["out/mrpc"])
    ('hub_token', '')
    """
    flag = group[0].partition("=")[0]
    return flag[2:].replace("-", "_") if flag.startswith("--") else ""


def _shown(group: Sequence[str]) -> Iterator[str]:
    name = flag_name(group)
    if name in LEFT_OUT:
        return
    several = len(group) > 2
    for number, part in enumerate(group):
        flag, equals, value = part.partition("=") if name and number == 0 else ("", "", part)
        if (flag and not equals) or not _is_local(name, value):
            yield part
        elif name in WRITTEN_FLAGS:
            yield f"{flag}{equals}{Path(value).name or value}"
        else:
            yield f"{flag}{equals}<{name or 'path'}{f' {number}' if several else ''}>"


def _is_local(name: str, value: str) -> bool:
    """Whether a value leads to a place on this machine, rather than to one on the Hub."""
    if name in FILE_FLAGS or (name in MODEL_FLAGS and os.path.isdir(value)):
        return True
    if value.startswith(("{", "[")) or "://" in value:
        return False
    leads = os.path.isabs(value) or value.startswith(("~", "./", "../"))
    # A Hub id has one slash at most; a folder of the same name comes before it.
    return leads or value.rstrip("/").count("/") > 1 or ("/" in value and os.path.exists(value))
