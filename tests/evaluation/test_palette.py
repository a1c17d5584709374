"""A role looks alike in every plot, and no two models of one do."""

import pytest

from kdnlp.evaluation.palette import OTHERS, ROLES, looks_of

ORIGINAL, MADE, BASELINE = ROLES.values()


@pytest.mark.parametrize(
    ("names", "looks"),
    [
        (["predecessor", "successor", "baseline"], [ORIGINAL, MADE, BASELINE]),
        (["teacher", "baseline", "student"], [ORIGINAL, BASELINE, MADE]),
        (["model"], [ORIGINAL]),
        (["successor (theseus: logits); beside=baseline", "baseline"], [MADE, BASELINE]),
        (
            ["predecessor", "Theseus successor", "distilled student", "baseline"],
            [ORIGINAL, MADE, OTHERS[0], BASELINE],
        ),
        (["teacher", "6 layers", "3 layers"], [ORIGINAL, MADE, OTHERS[0]]),
        (["small", "predecessor", "smaller"], [MADE, ORIGINAL, OTHERS[0]]),
    ],
)
def test_a_role_has_one_look_wherever_it_stands(names, looks):
    assert looks_of(names) == looks


def test_many_models_are_told_apart_without_their_colours():
    looks = looks_of(["teacher", "student", "baseline", *(f"student-{i}" for i in range(4))])
    assert len(set(looks)) == len({look.marker for look in looks}) == 7
    assert len(looks_of([f"student-{i}" for i in range(30)])) == 30
