"""Sentences whose sentiment is composed: flips multiply along a clause, contrast picks the clause.

A clause's polarity is the sign of its adjective, times -1 for every negation in front of it, times
-1 for every holder or verb of attribution that turns it round ("nobody", "denied"). A sentence's
polarity is that of the clause its conjunctions make the main one; the others are noise. No single
word, and no bag of words, decides.
"""

from dataclasses import dataclass
from random import Random

ADJECTIVES: dict[str, int] = {
    "brilliant": 1, "charming": 1, "clever": 1, "funny": 1,
    "gripping": 1, "lively": 1, "moving": 1, "superb": 1,
    "awful": -1, "boring": -1, "clumsy": -1, "dull": -1,
    "hollow": -1, "messy": -1, "tedious": -1, "weak": -1,
}  # fmt: skip
NEGATIONS: dict[str, int] = {
    "": 1,
    "not": -1,
    "never": -1,
    "hardly": -1,
    "far from": -1,
    "not far from": 1,
}
HOLDERS: dict[str, int] = {"everyone": 1, "the critics": 1, "my friends": 1, "nobody": -1}
ATTRIBUTIONS: dict[str, int] = {"said": 1, "agreed": 1, "thought": 1, "denied": -1}
SUBJECTS = (
    "acting", "camera", "cast", "dialogue", "drama", "ending",
    "film", "humour", "music", "plot", "script", "story",
)  # fmt: skip
COPULAS = ("was", "is")
INTENSIFIERS = ("", "", "really", "very")


@dataclass(frozen=True)
class Join:
    """How clauses make a sentence.

    Attributes:
        template: the sentence, with one `{}` per clause.
        main: positions of the clauses that carry the sentence's polarity; they agree.
        weight: how often it is drawn, relative to the others.
    """

    template: str
    main: tuple[int, ...]
    weight: int

    @property
    def num_clauses(self) -> int:
        """The number of clauses that the template takes."""
        return self.template.count("{}")


JOINS = (
    Join("{}", (0,), 4),
    Join("{} and {}", (0, 1), 2),
    Join("{} but {}", (1,), 3),
    Join("although {} , {}", (1,), 3),
    Join("{} although {}", (0,), 3),
)


@dataclass(frozen=True)
class Clause:
    """One statement about one subject.

    Attributes:
        attributions: (holder, verb) of each "... said that", the outermost first.
        subject: a word of `SUBJECTS`.
        copula: a word of `COPULAS`.
        negation: a key of `NEGATIONS`.
        intensifier: a word of `INTENSIFIERS`; it never changes the polarity.
        adjective: a key of `ADJECTIVES`.
    """

    attributions: tuple[tuple[str, str], ...]
    subject: str
    copula: str
    negation: str
    intensifier: str
    adjective: str

    @property
    def text(self) -> str:
        """The clause in words, separated by single spaces."""
        frames = [f"{holder} {verb} that" for holder, verb in self.attributions]
        words = ("the", self.subject, self.copula, self.negation, self.intensifier, self.adjective)
        return " ".join([*frames, *filter(None, words)])

    @property
    def polarity(self) -> int:
        """-1 or +1: the product of the signs on the path to the adjective."""
        sign = ADJECTIVES[self.adjective] * NEGATIONS[self.negation]
        for holder, verb in self.attributions:
            sign *= HOLDERS[holder] * ATTRIBUTIONS[verb]
        return sign


def sentence_polarity(join: Join, clauses: tuple[Clause, ...]) -> int:
    """-1 or +1: the polarity of the clauses that `join` makes the main ones.

    Raises:
        ValueError: the main clauses disagree, so that the sentence has no one polarity.
    """
    polarities = {clauses[position].polarity for position in join.main}
    if len(polarities) != 1:
        raise ValueError(
            f"expected the main clauses {join.main} of {join.template!r} to agree, got both "
            "polarities: the label would be arbitrary; draw clauses that agree"
        )
    return polarities.pop()


def draw_sentence(rng: Random, polarity: int) -> str:
    """A sentence of the asked polarity (-1 or +1), as lower-case words and commas."""
    join = rng.choices(JOINS, weights=[join.weight for join in JOINS])[0]
    clauses = tuple(
        draw_clause(rng, polarity if position in join.main else rng.choice((-1, 1)))
        for position in range(join.num_clauses)
    )
    assert sentence_polarity(join, clauses) == polarity
    return join.template.format(*(clause.text for clause in clauses))


def draw_clause(rng: Random, polarity: int) -> Clause:
    """A clause of the asked polarity: every flip is drawn freely, then an adjective that fits."""
    attributions = tuple(
        (rng.choice(list(HOLDERS)), rng.choice(list(ATTRIBUTIONS)))
        for _ in range(rng.choices((0, 1, 2), weights=(30, 9, 1))[0])
    )
    negation = rng.choice(list(NEGATIONS)) if rng.random() < 0.45 else ""
    draft = Clause(
        attributions,
        rng.choice(SUBJECTS),
        rng.choice(COPULAS),
        negation,
        rng.choice(INTENSIFIERS),
        rng.choice([word for word, sign in ADJECTIVES.items() if sign == 1]),
    )
    if draft.polarity == polarity:
        return draft
    opposite = rng.choice([word for word, sign in ADJECTIVES.items() if sign == -1])
    return Clause(attributions, draft.subject, draft.copula, negation, draft.intensifier, opposite)


def words() -> set[str]:
    """Every word that a sentence of this grammar can hold."""
    phrases = [
        *ADJECTIVES, *NEGATIONS, *HOLDERS, *ATTRIBUTIONS, *SUBJECTS, *COPULAS, *INTENSIFIERS,
        *(join.template.replace("{}", "") for join in JOINS),
        "the that",
    ]  # fmt: skip
    return {word for phrase in phrases for word in phrase.split()}
