"""Logits become the best span of any window, and answers are compared as SQuAD compares them."""

import pickle

import numpy as np
import pytest
from datasets import Dataset
from transformers import EvalPrediction

from kdnlp.data.task import Task
from kdnlp.evaluation.answer_metrics import answer_words
from kdnlp.evaluation.answers import Answer, find_answers, references_of
from kdnlp.evaluation.metrics import KIND_METRICS, build_compute_metrics, compute

KIND = "question_answering"
TASK = Task("qa", ("question", "context"), None, ("exact_match", "f1"), kind=KIND)

# Worked by hand after section 6.1 of the paper: best reference of each, mean over questions.
ANSWERS = {
    ("the Cat!", ("cat",)): (1, 1),
    ("cat", ("dog", "a  CAT.")): (1, 1),
    ("black cat", ("cat",)): (0, 2 / 3),
    ("the black cat sat", ("cat sat down",)): (0, 2 / 3),
    ("cat", ("cat cat cat", "black cat")): (0, 2 / 3),
    ("cat cat", ("cat",)): (0, 2 / 3),
    ("well-known", ("wellknown",)): (1, 1),
    ("well-known", ("well known",)): (0, 0),
    ("dog", ("cat",)): (0, 0),
    ("", ("cat",)): (0, 0),
    # Nothing is left of either: equal, and yet without a shared word.
    ("the", ("a",)): (1, 0),
    ("theory", ("the ory",)): (0, 0),
    ("Anna", ("anna an",)): (1, 1),
    ("5,000 km²", ("5000 km²",)): (1, 1),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "references"), ANSWERS)
def test_an_answer_scores_what_squad_gives_it(answer, references):
    exact, overlap = ANSWERS[answer, references]
    values = compute(TASK, [answer], [list(references)])
    assert values == pytest.approx(
        {"exact_match": exact, "f1": overlap, "score": (exact + overlap) / 2}
    )


def test_metrics_are_means_over_questions_as_fractions():
    values = compute(TASK, ["cat", "black dog"], [["cat"], ["dog"]])
    assert (values["exact_match"], values["f1"]) == (0.5, pytest.approx(5 / 6))


def test_articles_go_as_words_and_punctuation_as_characters():
    assert answer_words("An apple, the-end A.B. banana") == ["apple", "theend", "ab", "banana"]
    assert answer_words("¿Qué?") == ["¿qué"]  # only ASCII punctuation, as in SQuAD's script


@pytest.mark.parametrize("name", KIND_METRICS[KIND])
def test_the_evaluate_interface_gives_the_same_number(name):
    predicted, true = ["the cat", "black dog"], [["cat"], ["a dog", "dog black"]]
    expected = compute(TASK, predicted, true)[name]
    assert KIND_METRICS[KIND][name]().compute(predictions=predicted, references=true) == {
        name: pytest.approx(expected)
    }


CONTEXT = "ab cd ef gh ij"


def window(example, first, last, before=2, context=CONTEXT, answers=("cd",)):
    """A window over words `first` to `last` - 1 of a context, behind some tokens of a question."""
    starts = [3 * word for word in range(first, last)]
    return {
        "example": example,
        "char_starts": [-1] * before + starts + [-1],
        "char_ends": [-1] * before + [start + 2 for start in starts] + [-1],
        "context": context,
        "answers": list(answers),
        "start_positions": before,
        "end_positions": before,
    }


FEATURES = Dataset.from_list([
    window(0, 0, 3), window(0, 2, 5), window(1, 0, 4, before=1, context="kl mn op qr"),
])  # fmt: skip


def search(starts, ends, features, most):
    """The best spans of each question by comparing all characters of all windows, slowly."""
    best: dict[int, dict] = {}
    for row, start, end in zip(features, starts, ends, strict=True):
        for i in range(len(row["char_starts"])):
            for j in range(i, min(i + most, len(row["char_starts"]))):
                if row["char_starts"][i] >= 0 and row["char_starts"][j] >= 0:
                    span = (row["char_starts"][i], row["char_ends"][j])
                    spans = best.setdefault(row["example"], {})
                    spans[span] = max(spans.get(span, -np.inf), start[i] + end[j])
    return [
        sorted(((score, *span) for span, score in best[example].items()), key=lambda a: -a[0])
        for example in sorted(best)
    ]


@pytest.mark.parametrize("most", [1, 2, 30])
def test_the_best_answers_are_those_of_a_search_over_all_spans_of_all_windows(most):
    generator = np.random.default_rng(most)
    for _ in range(20):
        starts, ends = generator.normal(size=(2, 3, 7)).astype(np.float32)
        found = find_answers(starts, ends, FEATURES, max_answer_length=most)
        expected = search(starts, ends, FEATURES, most)
        for ours, theirs in zip(found, expected, strict=True):
            assert [(a.start, a.end) for a in ours] == [(a, b) for _, a, b in theirs[:20]]
            assert [a.score for a in ours] == pytest.approx([s for s, _, _ in theirs[:20]])
        assert all(a.text == CONTEXT[a.start : a.end] for a in found[0])


def logits(windows=3, length=7, **peaks):
    """Logits of -5, and 5 at (window, position) places."""
    values = np.full((windows, length), -5.0, dtype=np.float32)
    for place in peaks.values():
        values[place] = 5.0
    return values


def test_the_question_the_padding_and_the_end_before_the_start_are_no_answers():
    starts, ends = logits(a=(0, 3)), logits(a=(0, 4))
    starts[:, 0] = ends[:, 0] = 50  # the question
    starts[:, 6] = ends[:, 6] = 50  # padding, as the Trainer puts it there
    starts[0, 4] = ends[0, 2] = 6  # a span that would end before it starts
    (best, *_), _ = find_answers(starts, ends, FEATURES)
    assert best == Answer("ef", 11.0, 6, 8)


def test_an_answer_that_two_windows_hold_counts_once_with_its_best_score():
    starts, ends = logits(a=(0, 4), b=(1, 2)), logits(a=(0, 4), b=(1, 2))
    starts[1, 2] = 7
    found, _ = find_answers(starts, ends, FEATURES)
    assert found[0] == Answer("ef", 12.0, 6, 8)
    assert len({(answer.start, answer.end) for answer in found}) == len(found)
    assert len(find_answers(starts, ends, FEATURES, n_best=2)[0]) == 2


def test_a_question_whose_windows_hold_no_context_has_no_answer():
    empty = Dataset.from_list([{**window(0, 0, 2), "char_starts": [-1] * 5, "char_ends": [-1] * 5}])
    assert find_answers(np.zeros((1, 5)), np.zeros((1, 5)), empty) == [[]]


def test_references_are_those_of_each_question_once():
    rows = [window(0, 0, 3), window(0, 2, 5), window(1, 0, 4, answers=("x", "y"))]
    assert references_of(Dataset.from_list(rows)) == [["cd"], ["x", "y"]]


def test_the_trainers_hook_goes_from_logits_to_scores():
    starts, ends = logits(a=(0, 3), c=(2, 1)), logits(a=(0, 3), c=(2, 2))
    labels = (np.array([2, 2, 1]), np.array([2, 2, 1]))
    rows = [*FEATURES.select([0, 1]), {**FEATURES[2], "answers": ["kl"]}]
    features = Dataset.from_list(rows)
    hook = build_compute_metrics(TASK, features)
    values = hook(EvalPrediction((starts, ends), labels))
    assert values == pytest.approx({"exact_match": 0.5, "f1": 5 / 6, "score": 2 / 3})
    hidden = np.zeros((3, 7, 4))
    assert hook(EvalPrediction((starts, ends, hidden), labels)) == values
    assert pickle.loads(pickle.dumps(hook))(EvalPrediction((starts, ends), labels)) == values


def test_predictions_on_another_split_are_refused():
    hook = build_compute_metrics(TASK, FEATURES)
    ends = logits()
    with pytest.raises(ValueError, match=r"in their order, got others.*group_by_length"):
        hook(EvalPrediction((ends, ends), (np.array([1, 2, 3]), np.array([1, 2, 3]))))
    with pytest.raises(ValueError, match=r"one shape \(3, length\), got \(2, 7\)"):
        hook(EvalPrediction((ends[:2], ends[:2]), None))
    with pytest.raises(ValueError, match="logits for 6 tokens, the longest window, got 5"):
        find_answers(ends[:, :5], ends[:, :5], FEATURES)


def test_what_gives_no_answer_is_refused():
    values = logits()
    with pytest.raises(ValueError, match="expected the evaluated split"):
        build_compute_metrics(TASK)
    with pytest.raises(ValueError, match="the columns example, char_starts"):
        find_answers(values, values, FEATURES.remove_columns("char_starts"))
    for counts in ({"n_best": 0}, {"max_answer_length": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            find_answers(values, values, FEATURES, **counts)
    with pytest.raises(ValueError, match="1 answers and 2 lists"):
        compute(TASK, ["cat"], [["cat"], ["dog"]])
    with pytest.raises(ValueError, match="some empty"):
        compute(TASK, ["cat"], [[]])


def test_a_diverged_model_is_refused_and_padding_is_not_looked_at():
    values, broken = logits(), logits()
    broken[1, 6] = np.nan
    find_answers(broken, values, FEATURES)
    broken[1, 4] = np.nan
    with pytest.raises(ValueError, match="NaN in window 1"):
        find_answers(broken, values, FEATURES)
