"""Entities are counted whole, by their tags, where labels count."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from transformers import EvalPrediction

from kdnlp.data.task import Task
from kdnlp.evaluation.entity_metrics import find_entities
from kdnlp.evaluation.metrics import KIND_METRICS, build_compute_metrics, compute

KIND = "token_classification"
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TASK = Task("ner", ("tokens",), TAGS, ("f1", "precision", "recall", "accuracy"), kind=KIND)

# Worked by hand from the definition of CoNLL-2003's script, whose default mode seqeval follows.
SENTENCES = {
    "": [],
    "O O": [],
    "B-PER I-PER O": [(0, 2, "PER")],
    "O B-PER": [(1, 2, "PER")],
    "B-PER B-PER": [(0, 1, "PER"), (1, 2, "PER")],
    "B-PER I-LOC": [(0, 1, "PER"), (1, 2, "LOC")],
    "B-PER O I-PER": [(0, 1, "PER"), (2, 3, "PER")],
    "I-PER I-PER I-LOC": [(0, 2, "PER"), (2, 3, "LOC")],
    "I-LOC B-LOC I-LOC": [(0, 1, "LOC"), (1, 3, "LOC")],
    "B-PER I-PER E-PER S-LOC": [(0, 3, "PER"), (3, 4, "LOC")],
    "S-PER I-PER": [(0, 1, "PER"), (1, 2, "PER")],
    "B-PER E-PER E-PER": [(0, 2, "PER"), (2, 3, "PER")],
    "B-film-title I-film-title": [(0, 2, "film-title")],
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_entities_are_those_that_a_person_finds(sentence):
    assert find_entities(sentence.split()) == SENTENCES[sentence]


def spans_by_search(tags):
    """Every span that begins as an entity, goes on inside and stops: a search, not a scan."""

    def begins(i):
        place, _, kind = tags[i].partition("-")
        before = tags[i - 1] if i else "O"
        return place == "B" or (place == "I" and before.partition("-")[2] != kind)

    def goes_on(i):
        return i < len(tags) and tags[i][0] == "I" and not begins(i)

    found = []
    for start, stop in itertools.combinations(range(len(tags) + 1), 2):
        inside = all(goes_on(i) for i in range(start + 1, stop))
        if tags[start] != "O" and begins(start) and inside and not goes_on(stop):
            found.append((start, stop, tags[start][2:]))
    return found


def test_all_short_sentences_are_read_as_a_search_reads_them():
    for length in range(1, 6):
        for sentence in itertools.product(TAGS, repeat=length):
            assert find_entities(sentence) == spans_by_search(sentence)


def ids(*sentences):
    return [[TAGS.index(tag) for tag in sentence.split()] for sentence in sentences]


def test_metrics_of_a_worked_case():
    true = ids("B-PER I-PER O B-LOC", "O B-LOC I-LOC O")
    predicted = ids("B-PER I-PER O B-PER", "O B-LOC O B-LOC")
    # Four are found and 1 of 3 is right: a wrong type or end is no hit, and nothing is half right.
    expected = {"precision": 1 / 4, "recall": 1 / 3, "f1": 2 / 7, "accuracy": 5 / 8}
    values = compute(TASK, predicted, true)
    score = values.pop("score")
    assert values == pytest.approx(expected)
    assert score == pytest.approx(np.mean(list(expected.values())))


def test_positions_that_do_not_count_neither_help_nor_hurt_nor_part_an_entity():
    true = [[-100, 1, -100, 2, -100], [-100, 0, 3, -100, -100]]
    predicted = [[4, 1, 3, 2, 1], [2, 0, 3, 4, 0]]
    assert set(compute(TASK, predicted, true).values()) == {1.0}
    # The same tags, with the parts of words taken out beforehand.
    assert compute(TASK, [[1, 2], [0, 3]], [[1, 2], [0, 3]])["f1"] == 1.0


def test_the_trainers_hook_reads_logits_of_padded_batches():
    true = np.array([[-100, 1, 2, -100], [-100, 3, -100, -100]])
    logits = np.eye(5)[np.where(true >= 0, true, 0)] * 2 - 3
    padded = logits.copy()
    padded[1, 3] = -100  # as the Trainer pads logits of a shorter batch
    for values in (logits, padded, (padded, np.zeros((2, 4, 8)))):
        assert set(build_compute_metrics(TASK)(EvalPrediction(values, true)).values()) == {1.0}
    logits[0, 2] = [0, 9, 0, 0, 0]
    assert build_compute_metrics(TASK)(EvalPrediction(logits, true))["f1"] == pytest.approx(2 / 5)


@pytest.mark.parametrize("name", KIND_METRICS[KIND])
def test_the_evaluate_interface_takes_tags_by_name(name):
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    predicted = [["B-PER", "I-PER", "O", "O"], ["O", "B-LOC"]]
    padded = [[TAGS.index(t) for t in row] + [-100] * (4 - len(row)) for row in true]
    guesses = [[TAGS.index(t) for t in row] + [0] * (4 - len(row)) for row in predicted]
    expected = compute(TASK, guesses, padded)[name]
    assert KIND_METRICS[KIND][name]().compute(predictions=predicted, references=true) == {
        name: expected
    }


def test_no_entities_at_all_score_zero_without_a_warning():
    values = compute(TASK, ids("O O"), ids("O O"))
    assert (values["f1"], values["precision"], values["recall"], values["accuracy"]) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([[0, 1]], [[0, 1, 2]], r"\(1, 2\) and \(1, 3\)"),
        ([0, 1], [0, 1], r"of one shape \(examples, length\)"),
        ([[0, 5]], [[0, 1]], r"predictions that are ids in 0\.\.4, got 5 in row 0"),
        ([[0, 0]], [[0, -1]], r"references that are ids in 0\.\.4, got -1 in row 0"),
        ([[0, 0]], [[-100, -100]], "at least one tag that counts"),
    ],
)
def test_values_that_would_measure_something_else_are_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        compute(TASK, predicted, true)


def test_logits_of_another_shape_or_without_a_number_are_refused():
    hook = build_compute_metrics(TASK)
    with pytest.raises(ValueError, match=r"\(examples, length, 5\), got \(2, 5\)"):
        hook(EvalPrediction(np.zeros((2, 5)), np.zeros((2, 5))))
    with pytest.raises(ValueError, match="NaN in row 1"):
        hook(EvalPrediction(np.where(np.arange(2)[:, None, None] == 1, np.nan, np.zeros((2, 3, 5))),
                            np.zeros((2, 3))))  # fmt: skip


def test_tags_that_mark_no_entities_have_no_entity_metrics():
    words = replace(TASK, label_names=("NOUN", "VERB"))
    with pytest.raises(ValueError, match=r"tags that begin with B- and I-.*'NOUN'"):
        build_compute_metrics(words)
    assert compute(replace(words, metrics=("accuracy",)), [[0, 1]], [[0, 0]])["accuracy"] == 0.5
