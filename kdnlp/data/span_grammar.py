"""Tasks about parts of a text: who did it, to whom and when, in sentences of the event grammar.

The words alone do not tell the parts: "the judge called the pilot" and "the judge was called by the
pilot" differ in who acts, and either may be the main clause or the other one.
"""

from random import Random
from typing import Any

from kdnlp.data import event_grammar
from kdnlp.data.event_grammar import PEOPLE, RELATIONS, TIMES, Meaning

TAGS = ("O", "B-AGENT", "I-AGENT", "B-PATIENT", "I-PATIENT", "B-TIME", "I-TIME")
QUESTIONS = {
    "agent": "who acts",
    "patient": "whom does it concern",
    "time": "when is it",
    "other": "what else is said",
}
"""What may be asked about the main clause, and about the other one."""

Span = tuple[int, int]
"""The first word of a part of a sentence, and its last word + 1."""


def draw_tagged_sentence(rng: Random) -> tuple[list[str], list[str]]:
    """A sentence's words, and their tags out of `TAGS`: who acts, on whom, and when."""
    meaning = event_grammar.draw_meaning(rng)
    words = event_grammar.word(rng, meaning).split()
    parts = {
        "AGENT": [*_persons(words, meaning.agent), *_persons(words, meaning.other_agent)],
        "PATIENT": _persons(words, meaning.patient),
        "TIME": [_time(words, meaning)],
    }
    tags = ["O"] * len(words)
    for part, spans in parts.items():
        for start, end in spans:
            tags[start:end] = [f"B-{part}", *[f"I-{part}"] * (end - start - 1)]
    return words, tags


def draw_question(rng: Random) -> dict[str, Any]:
    """A sentence and a question about it, in SQuAD's columns.

    The patient stands in both clauses: the main one's is the first answer, and both are right.
    """
    meaning = event_grammar.draw_meaning(rng)
    words = event_grammar.word(rng, meaning).split()
    main, other = _clauses(words)
    patients = _persons(words, meaning.patient)
    spans = {
        "agent": _persons(words, meaning.agent),
        "patient": sorted(patients, key=lambda span: not main[0] <= span[0] < main[1]),
        "time": [_time(words, meaning)],
        "other": [other],
    }
    asked = rng.choice(list(QUESTIONS))
    return {
        "context": " ".join(words),
        "question": QUESTIONS[asked],
        "answers": {
            "text": [" ".join(words[start:end]) for start, end in spans[asked]],
            "answer_start": [len(" ".join([*words[:start], ""])) for start, _ in spans[asked]],
        },
    }


def words() -> set[str]:
    """Every word that these texts and questions can hold."""
    return event_grammar.words() | set(" ".join(QUESTIONS.values()).split())


def _clauses(words: list[str]) -> tuple[Span, Span]:
    """The main clause and the other one, without the relation and the comma."""
    cut = next(at for at, word in enumerate(words) if any(word in names for names in RELATIONS))
    if cut > 0:
        return (0, cut), (cut + 1, len(words))
    comma = words.index(",")
    return (comma + 1, len(words)), (1, comma)


def _persons(words: list[str], person: int) -> list[Span]:
    """Every "the doctor", under any of the person's names."""
    return [(at - 1, at + 1) for at, word in enumerate(words) if word in PEOPLE[person]]


def _time(words: list[str], meaning: Meaning) -> Span:
    """The "at dawn", in any wording; all are of two words."""
    phrases = [phrase.split() for phrase in TIMES[meaning.time]]
    return next((at, at + 2) for at in range(len(words)) if words[at : at + 2] in phrases)
