"""The examples in docstrings, which the reference shows, run with tiny models under their names."""

import importlib
import sys
from pathlib import Path

import pytest
from code_blocks import find_blocks
from settings import arguments, pad_rows, tiny_batch, tiny_dataset, tiny_model
from stand_ins import be_brief

import kdnlp
from kdnlp.data.synthetic import build_tokenizer

sys.path.append(str(Path(__file__).parents[2] / "tools"))

from docs_insertions import package


def walk(member):
    """A module, class or function and all below it that are not imported."""
    yield member
    for below in member.members.values():
        if not below.is_alias and not below.is_attribute:
            yield from walk(below)


def examples():
    """Every Python block of a docstring of the package, by the path of what it describes."""
    described = [member for member in walk(package()) if member.docstring]
    return {
        member.path: blocks
        for member in described
        if (blocks := find_blocks(member.path, member.docstring.value))
    }


EXAMPLES = examples()


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the examples do not define."""
    be_brief(monkeypatch, tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    teacher, student = tiny_model("bert", 6), tiny_model("bert", 2, seed=1)
    prefixes = ("teacher_", "teacher_roberta_")
    train = tiny_dataset()
    for prefix in prefixes:
        for column in ("input_ids", "attention_mask"):
            train = train.add_column(prefix + column, train[column][:])
    scores = {"validation": {"f1": 0.5, "accuracy": 0.5, "score": 0.5, "loss": 0.7}}
    return {
        **{name: getattr(kdnlp, name) for name in kdnlp.__all__},
        "args": arguments("DistillationTrainer", tmp_path / "out", max_steps=2),
        "batch": tiny_batch(),
        "bert": tiny_model("bert", 2),
        "collate": pad_rows,
        "metrics": {"predecessor": scores, "successor": scores},
        "model": tiny_model("bert", 4),
        "predecessor": teacher,
        "roberta": tiny_model("roberta", 2),
        "student": student,
        "student_tokenizer": build_tokenizer(),
        "successor": student,
        "teacher": teacher,
        "teacher_tokenizer": build_tokenizer(),
        "train": train,
    }


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_runs(path, names):
    if path.endswith("TheseusTrainer"):
        names["args"] = arguments("TheseusTrainer", names["args"].output_dir, max_steps=4)
    namespace = {**vars(importlib.import_module(path.rpartition(".")[0])), **names}
    for block in EXAMPLES[path]:
        assert block.language == "python", block.place
        exec(compile(block.text, path, "exec"), namespace)


def test_the_trainers_are_shown_in_use():
    assert {"DistillationTrainer", "TheseusTrainer"} <= {p.rpartition(".")[2] for p in EXAMPLES}
