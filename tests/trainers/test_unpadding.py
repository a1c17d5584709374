"""Training without padding follows the padded run, and says beforehand where it cannot."""

import pytest
from settings import (
    CHECKPOINTING,
    NO_DROPOUT,
    TrainerRow,
    arguments,
    build_trainer,
    task_dataset,
    task_model,
    tiny_dataset,
    tiny_model,
)

import kdnlp
from kdnlp.losses import AttentionLoss, HiddenLoss, LogitsLoss, RelationLoss
from kdnlp.models.student import build_student
from kdnlp.models.unpadded_attention import UNPADDED_ATTENTION

LOSSES = {"logits": LogitsLoss, "hidden": HiddenLoss, "relation": RelationLoss}
TRAINERS = ("CompressionTrainer", "DistillationTrainer", "TheseusTrainer")


def build(name, folder, losses=None, **arguments):
    made = {loss: LOSSES[loss]() for loss in losses or ()}
    return build_trainer(
        TrainerRow(name, losses=lambda: made, padded=True),
        folder,
        eval_strategy="epoch",
        **arguments,
    )


def history(trainer):
    return [
        {k: v for k, v in entry.items() if "loss" in k or k == "grad_norm"}
        for entry in trainer.state.log_history
    ]


def watch_tokens(model, seen):
    """Note the shape of what a model's first linear map inside a block is given."""
    linear = next(m for n, m in model.named_modules() if n.endswith("layer.0.attention.self.query"))
    linear.register_forward_hook(lambda m, args, out: seen.append(tuple(args[0].shape[:2])))


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {CHECKPOINTING: True}], ids=str)
@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_follows_the_padded_one(name, settings, tmp_path):
    losses = () if name == "CompressionTrainer" else tuple(LOSSES)
    runs = []
    for unpadded in (False, True):
        trainer = build(name, tmp_path / str(unpadded), losses, unpadded=unpadded, **settings)
        trainer.train()
        runs.append(trainer)
    rel = 2e-2 if "bf16" in settings else 1e-4
    for padded, unpadded in zip(*map(history, runs), strict=True):
        assert padded == pytest.approx(unpadded, rel=rel, abs=rel / 10)


@pytest.mark.parametrize("name", TRAINERS)
def test_student_and_partner_run_without_padding_in_training_and_evaluation(name, tmp_path):
    losses = () if name == "CompressionTrainer" else ("logits",)
    partner = tiny_model("bert", 4, **NO_DROPOUT)
    trainer = build(name, tmp_path, losses, partner=partner, unpadded=True)
    ours, theirs = [], []
    watch_tokens(trainer.student, ours)
    watch_tokens(partner, theirs)
    trainer.train()
    trained = len(ours)
    trainer.evaluate()
    # The probe alone, of four rows of nine, runs with padding too.
    assert {shape for shape in ours if shape[0] != 1} == {(4, 9)}
    assert sum(rows == 1 for rows, _ in ours[trained:]) > 1
    assert name == "CompressionTrainer" or sum(rows == 1 for rows, _ in theirs) > 6


def test_the_teacher_of_a_cache_runs_without_padding(tmp_path):
    partner, seen = tiny_model("bert", 4, **NO_DROPOUT), []
    trainer = build(
        "DistillationTrainer",
        tmp_path,
        ("logits",),
        partner=partner,
        unpadded=True,
        cache_teacher_outputs=True,
        teacher_cache_dir=str(tmp_path / "cache"),
    )
    watch_tokens(partner, seen)
    trainer.train()
    tokens = sum(map(sum, trainer.train_dataset["attention_mask"]))
    assert sum(length for rows, length in seen if rows == 1) >= tokens
    assert partner.config._attn_implementation != UNPADDED_ATTENTION


def test_models_are_as_they_were_after_a_run(tmp_path):
    partner = tiny_model("bert", 4, **NO_DROPOUT)
    trainer = build("DistillationTrainer", tmp_path, ("logits",), partner=partner, unpadded=True)
    own = partner.config._attn_implementation
    trainer.train()
    trainer.evaluate()
    for model in (partner, trainer.student):
        assert model.config._attn_implementation == own
        assert not any("forward" in vars(module) for module in model.modules())


def test_every_member_of_an_ensemble_runs_without_padding(tmp_path):
    members = [tiny_model("bert", 4, seed=seed, **NO_DROPOUT) for seed in (0, 1)]
    args = arguments("DistillationTrainer", tmp_path, unpadded=True)
    trainer = kdnlp.DistillationTrainer(
        build_student(members[0], 2),
        kdnlp.TeacherEnsemble(members),
        args,
        train_dataset=tiny_dataset(padded=True),
    )
    seen = [[], []]
    for member, shapes in zip(members, seen, strict=True):
        watch_tokens(member, shapes)
    trainer.train()
    assert all(sum(rows == 1 for rows, _ in shapes) > 6 for shapes in seen)


# What is refused before training.


def test_losses_that_read_attention_are_refused(tmp_path):
    row = TrainerRow("DistillationTrainer", losses=lambda: {"maps": AttentionLoss()})
    with pytest.raises(ValueError, match="keeps no scores, and the losses maps read"):
        build_trainer(row, tmp_path, unpadded=True)


def test_a_teacher_whose_family_cannot_is_refused_at_construction(tmp_path):
    with pytest.raises(ValueError, match="MPNetForSequenceClassification does not let"):
        build_trainer(
            TrainerRow("DistillationTrainer"),
            tmp_path,
            partner=tiny_model("mpnet", 4),
            model=tiny_model("bert", 2),
            unpadded=True,
        )


def test_question_answering_is_refused_at_construction(tmp_path):
    args = arguments("CompressionTrainer", tmp_path, unpadded=True)
    model, data = task_model("question_answering"), task_dataset("question_answering")
    with pytest.raises(ValueError, match="are positions, padding among them"):
        kdnlp.CompressionTrainer(model, args, train_dataset=data)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "compiled"),
    [("CompressionTrainer", "torch_compile"), ("TheseusTrainer", "compile_blocks")],
)
def test_compiled_blocks_are_refused(name, compiled, tmp_path):
    with pytest.raises(ValueError, match="another number of tokens in every batch"):
        arguments(name, tmp_path, unpadded=True, **{compiled: True})


def test_a_row_without_tokens_stops_the_run_with_the_reason(tmp_path):
    data = tiny_dataset(padded=True).to_dict()
    data["attention_mask"][3] = [0] * 6
    trainer = build_trainer(
        TrainerRow("CompressionTrainer"),
        tmp_path,
        unpadded=True,
        trainer_options={"train_dataset": type(tiny_dataset()).from_dict(data)},
    )
    with pytest.raises(ValueError, match="1 of 4 rows whose attention_mask is all 0"):
        trainer.train()
    assert not any("forward" in vars(module) for module in trainer.student.modules())
