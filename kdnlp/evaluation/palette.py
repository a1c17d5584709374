"""The looks of every plot: a colour and a marker for each role, the same in all of them.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart; no plot tells
anything by colour alone.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from kdnlp.evaluation.fidelity import BASELINE


class Look(NamedTuple):
    """How a model or a curve is drawn."""

    colour: str
    marker: str


ROLES = {
    "original": Look("#0072B2", "o"),
    "made": Look("#D55E00", "s"),
    "baseline": Look("#009E73", "D"),
}
"""What was compressed, what was made of it, and what plain fine-tuning makes of the same start."""

OTHERS = (
    Look("#CC79A7", "^"),
    Look("#E69F00", "v"),
    Look("#56B4E9", "P"),
    Look("#000000", "X"),
)
"""Further models of a role, and what is no model: losses and rates."""

COLOURS = tuple(look.colour for look in (*ROLES.values(), *OTHERS))
MARKERS = "osD^vPX*"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")

_ROLE_OF = {
    **dict.fromkeys(("predecessor", "teacher", "model"), "original"),
    **dict.fromkeys(("successor", "student"), "made"),
    BASELINE: "baseline",
}


def looks_of(names: Sequence[str]) -> list[Look]:
    """A look for each model of a plot, no two alike while there are enough.

    The first of a role has that role's; of names that tell none, the first is taken for the
    original and the next for what was made of it, unless others are.

    Args:
        names: as a report or a comparison calls them: `successor`, `baseline`,
            `student (distillation); seed=1`.
    """
    roles = [_role(name) for name in names]
    for role in ("original", "made"):
        if role not in roles and None in roles:
            roles[roles.index(None)] = role
    taken: set[str] = set()
    looks: list[Look] = []
    further = 0
    for own in roles:
        if own is None or own in taken:
            looks.append(_further(further))
            further += 1
        else:
            looks.append(ROLES[own])
            taken.add(own)
    return looks


def _role(name: str) -> str | None:
    words = re.findall(r"\w+", re.split(r"[(;]", name)[0])
    return next((_ROLE_OF[word] for word in words if word in _ROLE_OF), None)


def _further(number: int) -> Look:
    if number < len(OTHERS):
        return OTHERS[number]
    return Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
