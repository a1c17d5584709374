"""Two-sentence tasks from one idea: what is meant is data, and one meaning has many wordings.

A meaning is two events and the relation between them. Synonyms, the voice of the verb, the place of
an adjunct and the order of the clauses are free, so two wordings of one meaning share its words
loosely; a changed meaning may share every word ("the judge called the pilot", roles swapped).
"""

from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

PEOPLE: tuple[tuple[str, ...], ...] = (
    ("doctor", "physician"),
    ("lawyer", "attorney"),
    ("teacher", "instructor"),
    ("author", "writer"),
    ("manager", "boss"),
    ("child", "kid"),
    ("pilot",),
    ("judge",),
    ("farmer",),
    ("sailor",),
)
ACTIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("help", "helped"), ("assist", "assisted")),
    (("call", "called"), ("phone", "phoned")),
    (("praise", "praised"), ("commend", "commended")),
    (("criticize", "criticized"), ("blame", "blamed")),
    (("trust", "trusted"), ("believe", "believed")),
    (("answer", "answered"),),
    (("follow", "followed"),),
    (("invite", "invited"),),
)
"""Per action its verbs as (base, past); the past form is the participle too."""
TIMES: tuple[tuple[str, ...], ...] = (
    ("at dawn", "at sunrise"),
    ("at dusk", "at sunset"),
    ("at noon", "at midday"),
    ("on monday",),
    ("on friday",),
)
RELATIONS: tuple[tuple[str, ...], ...] = (("because", "since"), ("although", "though"))


@dataclass(frozen=True)
class Meaning:
    """What a sentence says; every field is the index of a concept, or a truth value.

    Attributes:
        agent: who acts in the main clause, an index into `PEOPLE`.
        action: an index into `ACTIONS`.
        patient: whom the main clause is about, another index into `PEOPLE`.
        negated: whether the main clause is denied.
        time: when it happened, an index into `TIMES`.
        relation: how the second clause bears on the first, an index into `RELATIONS`.
        other_agent: who acts in the second clause; the main clause's patient is whom they act on.
        other_action: what they did, an index into `ACTIONS`.
    """

    agent: int
    action: int
    patient: int
    negated: bool
    time: int
    relation: int
    other_agent: int
    other_action: int


SLOTS = tuple(field.name for field in fields(Meaning))
PERSON_SLOTS = ("agent", "patient", "other_agent")


def draw_meaning(rng: Random) -> Meaning:
    """A random meaning whose three persons differ and whose two actions differ."""
    agent, patient, other_agent = rng.sample(range(len(PEOPLE)), 3)
    action, other_action = rng.sample(range(len(ACTIONS)), 2)
    time, relation = rng.randrange(len(TIMES)), rng.randrange(len(RELATIONS))
    negated = rng.random() < 0.5
    return Meaning(agent, action, patient, negated, time, relation, other_agent, other_action)


def change(rng: Random, meaning: Meaning, slots: tuple[str, ...]) -> Meaning:
    """The meaning with each of `slots` replaced by something else, all else kept."""
    for slot in slots:
        value = getattr(meaning, slot)
        changed: dict[str, Any] = {
            slot: rng.choice([o for o in _options(meaning, slot) if o != value])
        }
        meaning = replace(meaning, **changed)
    return meaning


def swap_roles(meaning: Meaning) -> Meaning:
    """The meaning with agent and patient exchanged: the same words, another event."""
    return replace(meaning, agent=meaning.patient, patient=meaning.agent)


def shared_slots(first: Meaning, second: Meaning) -> float:
    """The share of slots, in [0, 1], in which two meanings agree."""
    return sum(getattr(first, s) == getattr(second, s) for s in SLOTS) / len(SLOTS)


def word(rng: Random, meaning: Meaning) -> str:
    """One of the meaning's wordings, as lower-case words and commas."""
    main = _adjoin(rng, _main_clause(rng, meaning), rng.choice(TIMES[meaning.time]))
    other = (
        f"the {rng.choice(PEOPLE[meaning.other_agent])} "
        f"{rng.choice(ACTIONS[meaning.other_action])[1]} the {rng.choice(PEOPLE[meaning.patient])}"
    )
    relation = rng.choice(RELATIONS[meaning.relation])
    return rng.choice((f"{main} {relation} {other}", f"{relation} {other} , {main}"))


def words() -> set[str]:
    """Every word that a sentence of this grammar can hold."""
    phrases = [phrase for concepts in (PEOPLE, TIMES, RELATIONS) for c in concepts for phrase in c]
    forms = [form for action in ACTIONS for verb in action for form in verb]
    return {
        word for phrase in [*phrases, *forms, "the did not was by ,"] for word in phrase.split()
    }


def _main_clause(rng: Random, meaning: Meaning) -> str:
    agent, patient = rng.choice(PEOPLE[meaning.agent]), rng.choice(PEOPLE[meaning.patient])
    base, past = rng.choice(ACTIONS[meaning.action])
    if rng.random() < 0.5:
        return f"the {patient} was {'not ' if meaning.negated else ''}{past} by the {agent}"
    return f"the {agent} {f'did not {base}' if meaning.negated else past} the {patient}"


def _adjoin(rng: Random, clause: str, time: str) -> str:
    return rng.choice((f"{time} {clause}", f"{clause} {time}"))


def _options(meaning: Meaning, slot: str) -> list[int]:
    """Values for a slot that keep the persons, and the actions, different from each other."""
    if slot == "negated":
        return [False, True]
    if slot in PERSON_SLOTS:
        taken = {getattr(meaning, s) for s in PERSON_SLOTS if s != slot}
        return [index for index in range(len(PEOPLE)) if index not in taken]
    if slot in ("action", "other_action"):
        taken = {meaning.action, meaning.other_action} - {getattr(meaning, slot)}
        return [index for index in range(len(ACTIONS)) if index not in taken]
    return list(range(len({"time": TIMES, "relation": RELATIONS}[slot])))
