"""The losses as a table for readers, made from what each says of itself."""

import re

from kdnlp.losses import LOSSES
from kdnlp.losses.base import ALL_TASKS, DistillationLoss

_SHORT = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi-label",
    "question_answering": "questions",
    "multiple_choice": "multiple choice",
    "token_classification": "tokens",
    "masked_lm": "masked LM",
    "causal_lm": "causal LM",
    "seq2seq_lm": "seq2seq LM",
}


def losses_markdown() -> str:
    """A row for each loss of `LOSSES`: its name, idea, paper, what it reads, and its tasks."""
    rows = [
        (f"`{name}`", _idea(loss), cite(loss.citation), _needs(name), _tasks(loss))
        for name, loss in LOSSES.items()
    ]
    header = ("name", "what the student learns", "paper", "reads", "tasks")
    rule = (":--",) * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def cite(bibtex: str) -> str:
    """First author and year of the first entry, as in a text.

    >>> cite("@article{x, author={Xu, Canwen and Wei, Furu}, year={2020}}")
    'Xu et al. 2020'
    """
    authors, year = (re.search(rf"{f}=\{{(.*?)\}}", bibtex, re.DOTALL) for f in ("author", "year"))
    assert authors is not None
    assert year is not None
    names = re.split(r"\s+and\s+", authors[1].strip())
    others = " et al." if len(names) > 1 else ""
    return f"{names[0].partition(',')[0]}{others} {year[1]}"


def _idea(loss: type[DistillationLoss]) -> str:
    """The first paragraph of the docstring, without the functions that it names."""
    assert loss.__doc__ is not None
    text = " ".join(loss.__doc__.strip().split("\n\n")[0].split())
    return re.sub(r",? by `\w+`(?:(?:,| or) `\w+`)*", "", text)


def _needs(name: str) -> str:
    fields = sorted(LOSSES[name]().needs)
    return ", ".join(fields) + ("" if LOSSES[name].needs_teacher else "; no teacher")


def _tasks(loss: type[DistillationLoss]) -> str:
    left_out = [short for task, short in _TASKS if task not in loss.tasks]
    return "all" if not left_out else f"all but {', '.join(left_out)}"


_TASKS = [(task, _SHORT.get(task, task)) for task in sorted(ALL_TASKS)]
