"""Generated tags and answers are what the sentence says, as another reader finds them."""

from collections import Counter

import pytest

from kdnlp.data.preparation import check_dataset
from kdnlp.data.span_grammar import words
from kdnlp.data.synthetic import SYNTHETIC_TASKS, build_tokenizer, generate

TIME_WORDS = {"dawn", "sunrise", "dusk", "sunset", "noon", "midday", "monday", "friday"}
RELATIONS = {"because", "since", "although", "though"}
SAME = {
    "physician": "doctor", "attorney": "lawyer", "instructor": "teacher", "writer": "author",
    "boss": "manager", "kid": "child",
    "helped": "help", "assist": "help", "assisted": "help", "called": "call", "phone": "call",
    "phoned": "call", "praised": "praise", "commend": "praise", "commended": "praise",
    "criticized": "blame", "criticize": "blame", "blamed": "blame", "trusted": "trust",
    "believe": "trust", "believed": "trust", "answered": "answer", "followed": "follow",
    "invited": "invite",
}  # fmt: skip
VERBS = {"help", "call", "praise", "blame", "trust", "answer", "follow", "invite"}
PERSONS = {
    "doctor", "lawyer", "teacher", "author", "manager", "child", "pilot", "judge", "farmer",
    "sailor",
}  # fmt: skip


def clauses(sentence):
    """The words of each clause, cut at the comma or at the relation between the two."""
    if sentence[0] in RELATIONS:
        cut = sentence.index(",")
        return sentence[1:cut], sentence[cut + 1 :]
    cut = next(i for i, word in enumerate(sentence) if word in RELATIONS)
    return sentence[:cut], sentence[cut + 1 :]


def read_clause(clause):
    """Who acts, what is done, on whom, and when, from the voice of the verb."""
    plain = [SAME.get(word, word) for word in clause]
    first, second = (position for position, word in enumerate(plain) if word in PERSONS)
    agent, patient = (second, first) if "was" in plain else (first, second)
    verb = next(word for word in plain if word in VERBS)
    time = next((i for i, word in enumerate(clause) if word in TIME_WORDS), None)
    return {
        "agent": clause[agent - 1 : agent + 1],
        "verb": verb,
        "patient": clause[patient - 1 : patient + 1],
        "time": None if time is None else clause[time - 1 : time + 1],
        "negated": "not" in clause,
    }


def tagged(words, names, part):
    """The word groups of one type, collected tag by tag."""
    found = []
    for word, name in zip(words, names, strict=True):
        if name == f"B-{part}":
            found.append([word])
        elif name == f"I-{part}":
            found[-1].append(word)
    return found


LITERAL = {
    "since the kid phoned the boss , the boss was not helped by the doctor at dusk": (
        ("the kid", "call", "the boss", None, False),
        ("the doctor", "help", "the boss", "at dusk", True),
    ),
    "at noon the judge did not trust the child although the boss followed the kid": (
        ("the judge", "trust", "the child", "at noon", True),
        ("the boss", "follow", "the kid", None, False),
    ),
}


@pytest.mark.parametrize("sentence", LITERAL)
def test_the_reader_that_checks_the_parts_reads_as_a_person_does(sentence):
    for clause, expected in zip(clauses(sentence.split()), LITERAL[sentence], strict=True):
        read = read_clause(clause).values()
        joined = tuple(" ".join(part) if isinstance(part, list) else part for part in read)
        assert joined == expected


def test_tags_mark_who_acts_on_whom_and_when():
    rows = generate("synthetic_entities", 500, 10)["train"]
    names = rows.features["tags"].feature.names
    for row in rows:
        tags = [names[tag] for tag in row["tags"]]
        read = [read_clause(clause) for clause in clauses(row["tokens"])]
        for part, field in (("AGENT", "agent"), ("PATIENT", "patient"), ("TIME", "time")):
            expected = [clause[field] for clause in read if clause[field]]
            assert tagged(row["tokens"], tags, part) == expected
        assert sum(tag != "O" for tag in tags) == 10


def test_the_same_word_acts_in_one_sentence_and_suffers_in_another():
    rows = generate("synthetic_entities", 300, 10)["train"]
    roles = {
        tag for row in rows for word, tag in zip(row["tokens"], row["tags"], strict=True)
        if word == "pilot"
    }  # fmt: skip
    names = rows.features["tags"].feature.names
    assert {names[tag] for tag in roles} == {"I-AGENT", "I-PATIENT"}


def read_answers(question, context):
    """The answers to a question, in the main clause's order of precedence."""
    first, second = clauses(context.split())
    main, other = (second, first) if context.split()[0] in RELATIONS else (first, second)
    read = [read_clause(main), read_clause(other)]
    answers = {
        "who acts": [read[0]["agent"]],
        "whom does it concern": [read[0]["patient"], read[1]["patient"]],
        "when is it": [read[0]["time"]],
        "what else is said": [other],
    }
    return [" ".join(answer) for answer in answers[question]]


def test_answers_are_what_the_sentence_says_and_stand_where_they_are_said_to():
    rows = generate("synthetic_answers", 600, 10)["train"]
    for row in rows:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        assert texts == read_answers(row["question"], row["context"])
        assert len(set(starts)) == len(texts)
        for text, start in zip(texts, starts, strict=True):
            # At a word's beginning: a model could not point into the middle of one.
            assert f" {row['context']}"[start : start + len(text) + 1] == f" {text}"
    asked = Counter(row["question"] for row in rows)
    assert len(asked) == 4
    assert min(asked.values()) > 100


@pytest.mark.parametrize("name", ["synthetic_entities", "synthetic_answers"])
def test_the_rows_are_what_the_task_says(name):
    check_dataset(generate(name, 50, 20), SYNTHETIC_TASKS[name])


def test_the_tokenizer_knows_every_word():
    tokenizer = build_tokenizer()
    assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(sorted(words()))
    rows = generate("synthetic_answers", 500, 10)["train"]
    lengths = map(len, tokenizer(rows["question"][:], rows["context"][:])["input_ids"])
    assert max(lengths) <= SYNTHETIC_TASKS["synthetic_answers"].max_length
