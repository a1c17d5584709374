"""A teacher in another precision or compiled: measured, undone, and never another one's cache."""

import copy
import logging

import pytest
import torch
from settings import NO_DROPOUT, TrainerRow, arguments, build_trainer, tiny_model

from kdnlp.losses import HiddenLoss, LogitsLoss, RelationLoss
from kdnlp.models.ensemble import TeacherEnsemble
from kdnlp.models.student import build_student
from kdnlp.trainers.teacher_run import compare_logits

EFFECTS = ["teacher_agreement", "teacher_logits_max_difference", "teacher_logits_mean_difference"]
ALL_LOSSES = {"logits": LogitsLoss, "hidden": HiddenLoss, "relation": RelationLoss}


def distil(folder, teacher=None, losses=("logits",), **settings):
    """A trained trainer, and its log."""
    teacher = teacher or tiny_model("bert", 4, **NO_DROPOUT)
    row = TrainerRow("DistillationTrainer", losses=lambda: {n: ALL_LOSSES[n]() for n in losses})
    trainer = build_trainer(row, folder, teacher, max_steps=2, **settings)
    trainer.train()
    return trainer


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize(("precision", "most"), [("float32", 0.0), ("bfloat16", 0.2), ("int8", 1)])
def test_what_a_precision_does_to_the_logits_is_logged_once(precision, most, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="kdnlp")
    trainer = distil(tmp_path, teacher_precision=precision)
    (largest,), (mean,), (agreement,) = (
        history(trainer, name) for name in sorted(EFFECTS)[1:] + EFFECTS[:1]
    )
    assert 0 <= mean <= largest <= most
    assert (largest > 0) == (precision != "float32")
    assert 0.5 <= agreement <= 1
    assert f"teacher_precision={precision}. On the first batch: " in caplog.text


def test_nothing_is_measured_where_nothing_was_asked_for(tmp_path):
    teacher, seen = tiny_model("bert", 4, **NO_DROPOUT), []
    teacher.register_forward_hook(lambda *_: seen.append(1))
    trainer = distil(tmp_path, teacher)
    assert not any(history(trainer, name) for name in EFFECTS)
    assert len(seen) == 2


def test_bfloat16_is_the_teachers_alone(tmp_path):
    teacher, seen = tiny_model("bert", 4, **NO_DROPOUT), []
    student = build_student(teacher, 2)
    for model in (teacher, student):
        model.classifier.register_forward_hook(lambda m, _, out: seen.append((m, out.dtype)))
    row = TrainerRow("DistillationTrainer")
    build_trainer(
        row, tmp_path, teacher, student, max_steps=1, teacher_precision="bfloat16"
    ).train()
    of_teacher = [dtype for module, dtype in seen if module is teacher.classifier]
    # The second one is the float32 that it is compared with.
    assert of_teacher == [torch.bfloat16, torch.float32]
    assert {d for m, d in seen if m is student.classifier} == {torch.float32}


@pytest.mark.filterwarnings("error")
def test_an_int8_teacher_shows_its_layers_and_leaves_the_callers_alone(tmp_path):
    teacher, seen = tiny_model("bert", 4, **NO_DROPOUT), []
    before = copy.deepcopy(teacher.state_dict())
    losses = ("logits", "hidden", "relation")
    plain = distil(tmp_path / "plain", teacher, losses)
    handle = teacher.register_forward_hook(lambda module, *_: seen.append(module is teacher))
    quantized = distil(tmp_path / "int8", teacher, losses, teacher_precision="int8")
    handle.remove()
    assert sum(seen) == 1  # for the comparison; the hook is on the copy too
    assert quantized.teacher is teacher
    assert quantized.teacher_run.model(teacher) is teacher
    for name in losses:
        expected, got = history(plain, f"loss_{name}"), history(quantized, f"loss_{name}")
        assert got == pytest.approx(expected, rel=0.3)
        assert got != expected
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_several_teachers_run_in_int8_as_one(tmp_path):
    members = [tiny_model("bert", 4, seed, **NO_DROPOUT) for seed in (0, 1)]
    trainer = distil(
        tmp_path,
        TeacherEnsemble(members),
        model=build_student(members[0], 2),
        teacher_precision="int8",
    )
    assert history(trainer, "teacher_logits_max_difference")[0] > 0


def test_compiled_blocks_teach_the_same_and_are_the_callers_again(tmp_path, monkeypatch):
    compiled = []

    def compile_eagerly(self, dynamic, original=torch.nn.Module.compile):
        compiled.append(self)
        original(self, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    teacher = tiny_model("bert", 4, **NO_DROPOUT)
    eager = distil(tmp_path / "eager", teacher)
    assert not compiled
    trainer = distil(tmp_path / "compiled", teacher, compile_teacher=True)
    assert history(trainer, "loss") == pytest.approx(history(eager, "loss"), rel=1e-5)
    assert compiled == list(teacher.bert.encoder.layer)
    assert all(block._compiled_call_impl is None for block in compiled)
    assert history(trainer, "teacher_agreement") == [1.0]


def test_every_way_to_run_the_teacher_has_a_cache_of_its_own(tmp_path):
    teacher, folder = tiny_model("bert", 4, **NO_DROPOUT), tmp_path / "cache"
    common = {"cache_teacher_outputs": True, "teacher_cache_dir": str(folder)}
    for precision in ("run", "float32", "bfloat16", "int8", "int8"):
        row = TrainerRow("DistillationTrainer")
        trainer = build_trainer(
            row, tmp_path / "run", teacher, max_steps=1, overwrite_output_dir=True,
            teacher_precision=precision, **common,
        )  # fmt: skip
        trainer.train()
        measured = bool(history(trainer, "teacher_logits_max_difference"))
        assert measured == (precision != "run")
    assert len(list(folder.glob("*/meta.json"))) == 4


def test_a_compiled_teacher_hides_its_layers_from_losses(tmp_path):
    with pytest.raises(ValueError, match=r"compile_teacher=True hides .* losses hidden read"):
        distil(tmp_path, losses=("logits", "hidden"), compile_teacher=True)


def test_a_teacher_without_linear_maps_is_not_said_to_be_int8(tmp_path):
    teacher = tiny_model("gpt2", 4, resid_pdrop=0.0)
    with pytest.raises(ValueError, match="GPT2ForSequenceClassification have none of it"):
        distil(tmp_path, teacher, teacher_precision="int8")


@pytest.mark.parametrize(
    ("trainer", "settings", "message"),
    [
        ("DistillationTrainer", {"teacher_precision": "int4"}, "must be one of run, .*got 'int4'"),
        (
            "DistillationTrainer",
            {"teacher_precision": "int8", "shard_teacher": True},
            "shard_teacher=True gathers",
        ),
        ("DistillationTrainer", {"compile_teacher": True, "unpadded": True}, "unpadded=True gives"),
        ("TheseusTrainer", {"teacher_precision": "bfloat16"}, "gradients flow through"),
        ("TheseusTrainer", {"compile_teacher": True}, "gradients flow through"),
    ],
)
def test_what_would_not_run_so_is_refused(trainer, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(trainer, tmp_path, **settings)


def test_differences_are_those_of_all_logits_and_agreement_that_of_the_largest():
    got = {"logits": torch.tensor([[1.0, 2.0], [3.0, 1.0]])}
    expected = {"logits": torch.tensor([[1.5, 2.0], [0.0, 1.0]])}
    assert compare_logits(got, expected) == {
        "teacher_logits_max_difference": 3.0,
        "teacher_logits_mean_difference": 0.875,
        "teacher_agreement": 0.5,
    }
    regression = {"logits": torch.ones(3, 1)}
    assert "teacher_agreement" not in compare_logits(regression, regression)
