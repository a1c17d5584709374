"""What cannot train rightly is refused before anything is trained or written."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from settings import (
    CHECKPOINTING,
    LABELS,
    NO_DROPOUT,
    TRAINER_ROWS,
    ProjectedHidden,
    TrainerRow,
    arguments,
    build_trainer,
    tiny_dataset,
    tiny_model,
)
from torch.distributed.fsdp import StateDictType
from transformers.trainer_utils import HPSearchBackend

import kdnlp
from kdnlp.losses import AttentionLoss, HiddenLoss, LogitsLoss, RelationLoss
from kdnlp.models.student import build_student
from kdnlp.trainers.base import CompressionTrainer


def predecessor(**overrides):
    return tiny_model("bert", 4, **{**NO_DROPOUT, **overrides})


@dataclass
class Case:
    """One mistake, and what the message must say: expected, got, why it matters, what to do."""

    trainer: str
    words: tuple[str, ...]
    model: Callable[[], Any] | None = None
    partner: Callable[[], Any] = predecessor
    losses: Callable[[], Any] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    late: dict[str, Any] = field(default_factory=dict)
    """Arguments changed between construction and training."""


BOTH = ("DistillationTrainer", "TheseusTrainer")

THESEUS = {
    "more successor than predecessor blocks": Case(
        "TheseusTrainer",
        ("at least one predecessor block", "has 4 blocks", "predecessor 2", "use fewer"),
        lambda: tiny_model("bert", 4),
        lambda: tiny_model("bert", 2),
    ),
    "slots that do not add up": Case(
        "TheseusTrainer",
        ("predecessor's 4 blocks", "2 that add up to 3", "skipped or run twice", "must have 2"),
        overrides={"slot_sizes": [1, 2]},
    ),
    "too many slots": Case(
        "TheseusTrainer",
        ("must have 2 entries", "got 3 that add up to 4", "skipped or run twice"),
        overrides={"slot_sizes": "1,1,2"},
    ),
    "slots that no longer add up": Case(
        "TheseusTrainer",
        ("predecessor's 4 blocks", "2 that add up to 5", "skipped or run twice"),
        late={"slot_sizes": [4, 1]},
    ),
    "a predecessor of another family": Case(
        "TheseusTrainer",
        ("expected roberta", "got bert", "run inside the predecessor's path", "build_student("),
        lambda: tiny_model("bert", 2),
        lambda: tiny_model("roberta", 4),
    ),
    "a predecessor of another width": Case(
        "TheseusTrainer",
        ("expected 32", "got 16", "run inside the predecessor's path", "build_student("),
        lambda: tiny_model("bert", 2),
        lambda: predecessor(hidden_size=32),
    ),
    "labels in another order": Case(
        "TheseusTrainer",
        ("label names", "expected {0: 'yes', 1: 'no'}", f"got {LABELS}", "build_student("),
        lambda: tiny_model("bert", 2),
        lambda: predecessor(id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1}),
    ),
    "another vocabulary, in Theseus": Case(
        "TheseusTrainer",
        ("vocabulary size", "expected 50", "got 40", "build_student("),
        lambda: tiny_model("bert", 2),
        lambda: predecessor(vocab_size=50),
    ),
    "a rate above 1": Case(
        "TheseusTrainer",
        ("lie in [0, 1]", "got 1.5", "probability", "starts at 0.1 or 0.3"),
        late={"initial_replacing_rate": 1.5},
    ),
    "a temperature of no loss": Case(
        "TheseusTrainer",
        ("temperature: expected a loss", "none beside the labels", "the same without", "Logits"),
        overrides={"temperature": 4.0},
    ),
    "a ramp of no length": Case(
        "TheseusTrainer",
        ("lie in (0, 1]", "got 0.0", "until every slot is replaced", "default is 0.6"),
        late={"replacing_fraction": 0.0},
    ),
    "a ramp that never arrives": Case(
        "TheseusTrainer",
        ("never reaches", "replacing_fraction=1", "as it will be deployed", "a smaller fraction"),
        late={"replacing_fraction": 1.0},
    ),
    "a run too short for its ramp": Case(
        "TheseusTrainer",
        ("last of 2 optimizer steps", "got 0.883", "as it will be deployed", "Train longer"),
        late={"max_steps": 2},
    ),
    "gradients that are neither": Case(
        "TheseusTrainer",
        ('"zero" or "none"', "got 'zeros'", "two different algorithms"),
        late={"skipped_gradients": "zeros"},
    ),
    "a cache asked for late": Case(
        "TheseusTrainer",
        ("use_cache=True", "by the position of a block", "Leave it off"),
        late={"use_cache": True},
    ),
}
DISTILLATION = {
    "other labels": Case(
        "DistillationTrainer",
        ("(good, bad)", "(no, yes)", "one class's probability as another's", "Set id2label"),
        lambda: tiny_model("bert", 2),
        lambda: predecessor(id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1}),
    ),
    "more labels": Case(
        "DistillationTrainer",
        ("the same labels", "the teacher has 3", "the student 2", "Fine-tune a teacher"),
        lambda: tiny_model("bert", 2),
        lambda: predecessor(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}),
    ),
    "another vocabulary, in distillation": Case(
        "DistillationTrainer",
        ("share a vocabulary", "teacher has 50", "student 40", "would be noise", "build_student("),
        lambda: tiny_model("bert", 2),
        lambda: predecessor(vocab_size=50),
    ),
    "inputs that the student cannot take": Case(
        "DistillationTrainer",
        ("token_type_ids", "reads", "cannot take", "would be dropped", "dataset.remove_columns"),
        lambda: tiny_model("distilbert", 2),
        options={"train_dataset": tiny_dataset().add_column("token_type_ids", [[0] * 6] * 32)},
    ),
    "a teacher whose outputs have no names": Case(
        "DistillationTrainer",
        ("outputs by name", "got return_dict=False", "find no logits", "config.return_dict = True"),
        lambda: tiny_model("bert", 2),
        lambda: predecessor(return_dict=False),
    ),
    "a student whose outputs have no names": Case(
        "DistillationTrainer",
        ("outputs by name", "got return_dict=False", "BertFor", "or in its config.json"),
        lambda: tiny_model("bert", 2, return_dict=False),
    ),
    "members of an ensemble whose outputs have no names": Case(
        "DistillationTrainer",
        ("outputs by name", "got return_dict=False", "BertFor", "or in its config.json"),
        lambda: tiny_model("bert", 2),
        lambda: kdnlp.TeacherEnsemble([predecessor(), predecessor(return_dict=False)]),
    ),
    "a loss with parameters under a search for unused ones": Case(
        "DistillationTrainer",
        ("A loss with parameters", "ddp_find_unused_parameters=True", "twice", "Leave it unset"),
        losses=lambda: {"hidden": ProjectedHidden()},
        overrides={"ddp_find_unused_parameters": True},
    ),
}
EITHER = {
    "a weight that names no loss": Case(
        "",
        ("names logit,", "losses of this run are task, logits", "ignored", "correct the name"),
        losses=lambda: {"logits": LogitsLoss()},
        overrides={"loss_weights": "task=0.5,logit=0.5"},
    ),
    "a final weight that names no loss": Case(
        "",
        ("final_loss_weights names hidden", "task, logits", "ignored", "add the loss"),
        losses=lambda: {"logits": LogitsLoss()},
        overrides={"loss_weights": "task=1", "final_loss_weights": "hidden=1"},
    ),
    "weights that train nothing": Case(
        "",
        ("no weight to any of task, logits", "nothing would train"),
        losses=lambda: {"logits": LogitsLoss()},
        overrides={"loss_weights": "task=0"},
    ),
    "a temperature of 0": Case(
        "",
        ("above 0 and finite", "got 0.0", "divided by it", "from 1 to 10"),
        late={"temperature": 0.0},
    ),
    "a final temperature below 0": Case(
        "",
        ("final_temperature", "above 0", "got -1.0", "divided by it", "from 1 to 10"),
        late={"final_temperature": -1.0},
    ),
    "a weight below 0": Case(
        "",
        ("at least 0", "got -1.0", "away from its target", "'task'"),
        late={"loss_weights": {"task": -1.0}},
    ),
    "a weight changed to one that names no loss": Case(
        "",
        ("names tsak", "losses of this run are task", "ignored", "correct the name"),
        late={"loss_weights": "tsak=1"},
    ),
    "a schedule that does not exist": Case(
        "",
        ("must be one of constant, linear", "got 'lineal'"),
        late={"temperature_schedule": "lineal"},
    ),
    "a loss called task": Case(
        "",
        ("names other than 'task'", "'task': LogitsLoss", "the loss on the labels"),
        losses=lambda: {"task": LogitsLoss()},
    ),
    "a class in the place of a loss": Case(
        "",
        ("DistillationLoss objects", "'logits': type"),
        losses=lambda: {"logits": LogitsLoss},
    ),
    "a function in the place of a loss": Case(
        "",
        ("DistillationLoss objects", "'mse': function"),
        losses=lambda: {"mse": torch.nn.functional.mse_loss},
    ),
}
CASES = {
    **THESEUS,
    **DISTILLATION,
    **{
        f"{name}, {trainer}": Case(**{**vars(case), "trainer": trainer})
        for name, case in EITHER.items()
        for trainer in BOTH
    },
}


def picture(model):
    """What must not change: weights, parts, modes and what requires gradients."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, p.requires_grad) for name, p in model.named_parameters()],
    )


def assert_unchanged(model, before, but_for_gradients=False):
    state, modules, gradients = picture(model)
    assert list(state) == list(before[0])
    assert all(torch.equal(state[name], before[0][name]) for name in state)
    assert [(name, kind) for name, kind, _ in modules] == [(n, k) for n, k, _ in before[1]]
    if not but_for_gradients:
        assert modules == before[1]
        assert gradients == before[2]


def half_frozen(model):
    """A model in training mode with frozen embeddings, as a user may have prepared it."""
    for name, parameter in model.train().named_parameters():
        parameter.requires_grad_("embeddings" not in name)
    return model


def refuse(words, row, folder, student, partner, options=None, late=None, **overrides):
    """Check that it is refused in these words, and that this leaves no trace."""
    before = picture(student), picture(partner)

    def attempt():
        trainer = build_trainer(row, folder, partner, student, options, **overrides)
        for name, value in (late or {}).items():
            setattr(trainer.args, name, value)
        trainer.train()

    with pytest.raises(ValueError, match=re.escape(words[0])) as refusal:
        attempt()
    assert_unchanged(student, before[0])
    # The partner may already have been frozen and put in eval mode, which it is in any case.
    assert_unchanged(partner, before[1], but_for_gradients=True)
    assert not [path for path in folder.rglob("*") if path.is_file()]
    for part in words:
        assert part in str(refusal.value)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_refused_in_full_sentences_and_leaves_no_trace(case, tmp_path):
    partner = case.partner()
    student = half_frozen(case.model() if case.model else build_student(partner, 2))
    refuse(
        case.words,
        TrainerRow(case.trainer, losses=case.losses),
        tmp_path,
        student,
        partner,
        case.options,
        case.late,
        **case.overrides,
    )


@pytest.mark.parametrize("row", TRAINER_ROWS.values(), ids=TRAINER_ROWS)
def test_deepspeed_is_refused(row, tmp_path, monkeypatch):
    with_strategy(monkeypatch, deepspeed=True)
    partner = predecessor()
    words = (row.trainer, "DDP and FSDP2, got DeepSpeed", "would not shard", "fsdp2.yaml")
    refuse(words, row, tmp_path, half_frozen(build_student(partner, 2)), partner)


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ({"fsdp_version": 1}, ("FSDP version 1", "fsdp_version: 2")),
        ({"cpu_ram_efficient_loading": True}, ("empty on all processes but the first",)),
        ({"activation_checkpointing": True}, ("use gradient_checkpointing=True",)),
        (
            {"state_dict_type": StateDictType.SHARDED_STATE_DICT},
            ("got sharded checkpoints", "FULL_STATE_DICT", "runs whatever code is in them"),
        ),
    ],
)
def test_settings_of_fsdp_that_would_train_wrongly_are_refused(
    plugin, words, tmp_path, monkeypatch
):
    sound = {
        "fsdp_version": 2,
        "cpu_ram_efficient_loading": False,
        "activation_checkpointing": False,
        "state_dict_type": StateDictType.FULL_STATE_DICT,
    }
    with_strategy(monkeypatch, fsdp=SimpleNamespace(**{**sound, **plugin}))
    partner = predecessor()
    row = TRAINER_ROWS["theseus"]
    refuse(words, row, tmp_path, half_frozen(build_student(partner, 2)), partner)


def with_strategy(monkeypatch, fsdp=None, deepspeed=False):
    """Let every trainer find itself under a strategy that needs GPUs or a package."""
    original = transformers.Trainer.create_accelerator_and_postprocess

    def create(self):
        original(self)
        self.is_deepspeed_enabled, self.is_fsdp_enabled = deepspeed, fsdp is not None
        if fsdp is not None:
            monkeypatch.setattr(type(self.accelerator.state), "fsdp_plugin", fsdp, raising=False)

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", create)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("missing", ["partner", "arguments", "both"])
def test_a_missing_partner_or_missing_arguments_are_refused_with_the_call(name, missing, tmp_path):
    student = half_frozen(build_student(predecessor(), 2))
    before = picture(student)
    partner = None if missing in ("partner", "both") else predecessor()
    args = None if missing in ("arguments", "both") else arguments(name, tmp_path)
    with pytest.raises(TypeError, match=rf"{name} needs .*{name}\("):
        getattr(kdnlp, name)(student, partner, args)
    assert_unchanged(student, before)
    assert not list(tmp_path.rglob("*"))


def test_finetuning_without_arguments_is_refused_and_writes_no_default_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match="needs its training arguments"):
        CompressionTrainer(build_student(predecessor(), 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", BOTH)
def test_stock_training_arguments_are_refused_with_the_class_that_is_needed(name, tmp_path):
    args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match=f"{name[:7]}.*TrainingArguments"):
        getattr(kdnlp, name)(build_student(predecessor(), 2), predecessor(), args)


def test_finetuning_arguments_do_not_pass_for_those_of_distillation(tmp_path):
    partner = predecessor()
    args = arguments("CompressionTrainer", tmp_path)
    with pytest.raises(TypeError, match="DistillationTrainingArguments"):
        kdnlp.DistillationTrainer(build_student(partner, 2), partner, args)


def test_losses_without_a_teacher_are_refused(tmp_path):
    args = arguments("CompressionTrainer", tmp_path)
    with pytest.raises(ValueError, match="partner"):
        CompressionTrainer(build_student(predecessor(), 2), args, losses={"l": LogitsLoss()})


def begin_trial(trainer, values):
    """A trial of a hyperparameter search that has drawn `values`."""
    optuna = pytest.importorskip("optuna", reason="optuna, the search's backend, is missing")
    trainer.hp_search_backend = HPSearchBackend.OPTUNA
    trainer.hp_space = lambda trial: values
    return optuna.trial.FixedTrial({})


def search(row, folder, **overrides):
    partner = predecessor()
    options = {"model_init": lambda trial: build_student(partner, 2)}
    return build_trainer(TRAINER_ROWS[row], folder, partner, None, options, **overrides)


@pytest.mark.parametrize(
    ("row", "values", "words"),
    [
        ("distillation", {"temperature": 0.0}, "got 0.0"),
        ("distillation", {"loss_weights": {"task": 0.5, "logit": 0.5}}, "names logit"),
        ("theseus", {"initial_replacing_rate": 7.0}, "got 7.0"),
        ("theseus", {"slot_sizes": [1, 4]}, "add up to 5"),
    ],
)
def test_a_trials_values_are_checked_before_it_trains(row, values, words, tmp_path):
    trainer = search(row, tmp_path)
    trial = begin_trial(trainer, values)
    with pytest.raises(ValueError, match=words):
        trainer.train(trial=trial)
    assert trainer.state.global_step == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_trial_trains_with_its_own_values_and_not_those_of_the_trial_before(tmp_path):
    trainer, seen = search("theseus", tmp_path, max_steps=2, replacing_fraction=0.5), []
    step = trainer.training_step

    def watch(*args, **kwargs):
        parameters = dict(trainer.student.named_parameters())
        trains = {parameters[name].requires_grad for name in trainer.shared}
        seen.append(([len(slot) for slot in trainer.layers.slots], trains))
        return step(*args, **kwargs)

    trainer.training_step = watch
    for slots, unfreeze in (([1, 3], True), ([3, 1], False)):
        values = {"slot_sizes": slots, "unfreeze_after_replacement": unfreeze}
        trainer.train(trial=begin_trial(trainer, values))
    assert seen == [([1, 3], {True})] * 2 + [([3, 1], {False})] * 2


@pytest.mark.parametrize(
    "late", [{"slot_sizes": [1, 2]}, {"max_steps": 2}], ids=["slots", "too short for the ramp"]
)
def test_a_refused_run_deletes_nothing_of_the_run_that_it_was_to_overwrite(late, tmp_path):
    row = TRAINER_ROWS["theseus"]
    build_trainer(row, tmp_path, save_strategy="steps", save_steps=3).train()
    trainer = build_trainer(row, tmp_path, overwrite_output_dir=True)
    for name, value in late.items():
        setattr(trainer.args, name, value)
    with pytest.raises(ValueError, match=r"add up|must be 1"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-6"]


def test_reentrant_checkpointing_would_cut_what_a_loss_reads_inside_a_block(tmp_path):
    row = TrainerRow("DistillationTrainer", losses=lambda: {"loss": RelationLoss()})
    with pytest.raises(ValueError, match=r"use_reentrant=True runs the blocks without a graph"):
        build_trainer(row, tmp_path, **{f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}})


def test_weights_that_the_student_shares_with_its_teacher_are_refused(tmp_path):
    teacher = tiny_model("bert", 4)
    student = build_student(teacher, 2)
    student.bert.embeddings = teacher.bert.embeddings
    with pytest.raises(ValueError, match=r"shares 5 of its parameters with its partner, such as"):
        build_trainer(TrainerRow("DistillationTrainer"), tmp_path, teacher, student)
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_a_constructor_that_fails_leaves_no_hook_on_the_models(tmp_path):
    teacher = tiny_model("deberta-v2", 4)
    student = build_student(teacher, 2)
    losses = {"hidden": HiddenLoss(), "attention": AttentionLoss()}
    row = TrainerRow("DistillationTrainer", losses=lambda: losses)
    with pytest.raises(ValueError, match="computes its attention in its own forward"):
        build_trainer(row, tmp_path, teacher, student)
    assert not [m for model in (teacher, student) for m in model.modules() if m._forward_hooks]
