"""What every trainer promises, run over every row of the settings table."""

import json
import math

import pytest
import torch
from settings import TRAINER_ROWS, ProjectedHidden, build_trainer, tiny_batch, tiny_model
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

from kdnlp.models.student import build_student
from kdnlp.trainers.base import LOSS_MODULE

ROWS = pytest.mark.parametrize("row", TRAINER_ROWS.values(), ids=TRAINER_ROWS)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@ROWS
def test_training_moves_the_student_and_leaves_the_partner_bit_identical(row, tmp_path):
    partner = tiny_model("bert", 4)
    trainer = build_trainer(row, tmp_path, partner)
    before, theirs = weights(trainer.student), weights(partner)
    trainer.train()
    assert not equal(before, weights(trainer.student))
    assert equal(theirs, weights(partner))
    if row.trainer != "CompressionTrainer":
        assert all(p.grad is None and not p.requires_grad for p in partner.parameters())


@ROWS
def test_accumulation_changes_neither_the_loss_nor_the_gradient_norm(row, tmp_path):
    if row.of_the_batch:
        pytest.skip("the loss relates the items of a batch to each other")
    runs = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = build_trainer(
            row,
            tmp_path / str(batch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
        )
        if "distillation-parameters" in TRAINER_ROWS and row.losses:
            torch.manual_seed(0)
        trainer.train()
        runs.append(trainer)
    for key in ("loss", "grad_norm", "loss_task"):
        one, accumulated = (history(trainer, key) for trainer in runs)
        assert len(one) == 6
        assert one == pytest.approx(accumulated, rel=1e-4, abs=1e-6), (
            f"{key}: check the loss's mask and unit, or set of_the_batch=True in LOSS_ROWS"
        )
    assert max(history(runs[0], "grad_norm")) > 1e-3


@pytest.mark.parametrize("name", ["finetuning", "distillation", "theseus-logits"])
@pytest.mark.parametrize("old", [False, True])
def test_accumulation_changes_nothing_under_a_loss_function_of_one_s_own(
    name, old, tmp_path, monkeypatch
):
    def own_loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels)

    if old:  # as in transformers 5.17, which divides no loss of a function by the accumulation
        monkeypatch.delattr(Trainer, "loss_is_scaled_for_ga", raising=False)
    histories = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = build_trainer(
            TRAINER_ROWS[name],
            tmp_path / str(batch),
            trainer_options={"compute_loss_func": own_loss},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
        )
        if old:
            trainer.loss_is_scaled_for_ga = True
        trainer.train()
        histories.append([history(trainer, "loss"), history(trainer, "grad_norm")])
    for one, accumulated in zip(*histories, strict=True):
        assert one == pytest.approx(accumulated, rel=1e-4, abs=1e-6)


class KilledError(Exception):
    pass


class KillAtStep(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KilledError


@ROWS
def test_a_run_killed_between_checkpoints_and_resumed_is_bit_equal(row, tmp_path):
    def build(folder, **options):
        partner = tiny_model("bert", 4)  # with dropout, so that random state matters
        torch.manual_seed(11)
        return build_trainer(
            row, tmp_path / folder, partner, save_strategy="steps", save_steps=2, **options
        )

    whole = build("whole")
    whole.train()
    killed = build("killed", trainer_options={"callbacks": [KillAtStep(3)]})
    with pytest.raises(KilledError):
        killed.train()
    resumed = build("killed")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert equal(weights(whole.student), weights(resumed.student))
    for loss, again in zip(whole.losses.values(), resumed.losses.values(), strict=True):
        assert equal(weights(loss), weights(again))


@ROWS
def test_the_saved_model_is_plain_and_gives_the_trainers_logits(row, tmp_path):
    trainer = build_trainer(row, tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    trainer.save_model()
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 2
    batch = tiny_batch()
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, trainer.student.eval()(**batch).logits)


@ROWS
def test_a_student_is_a_plain_model_again_after_training(row, tmp_path):
    trainer = build_trainer(row, tmp_path)
    plain = build_student(tiny_model("bert", 4), 2)
    trainer.train()
    assert list(trainer.student.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in trainer.student.modules()] == [type(m) for m in plain.modules()]
    assert all(p.requires_grad for p in trainer.student.parameters())


@ROWS
def test_a_student_is_a_plain_model_again_after_a_crash(row, tmp_path):
    trainer = build_trainer(row, tmp_path, trainer_options={"callbacks": [KillAtStep(2)]})
    with pytest.raises(KilledError):
        trainer.train()
    plain = build_student(tiny_model("bert", 4), 2)
    assert [type(m) for m in trainer.student.modules()] == [type(m) for m in plain.modules()]


@ROWS
def test_evaluation_in_mid_training_is_of_the_student_alone(row, tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(torch.as_tensor(prediction.predictions))
        return {}

    trainer = build_trainer(
        row,
        tmp_path,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        trainer_options={"compute_metrics": metrics},
    )
    trainer.train()
    checkpoint = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-3")
    batch = trainer.eval_dataset.with_format("torch")[:]
    with torch.no_grad():
        expected = checkpoint.eval()(**batch).logits
    assert torch.allclose(seen[0], expected, atol=1e-6)
    keys = {key for entry in trainer.state.log_history for key in entry if key.startswith("eval_")}
    assert not {key for key in keys if key not in ("eval_loss",) and "per_second" not in key} - {
        "eval_runtime"
    }


@ROWS
def test_every_component_is_logged_and_they_add_up_to_the_loss(row, tmp_path):
    trainer = build_trainer(row, tmp_path)
    trainer.train()
    for step, entry in enumerate(e for e in trainer.state.log_history if "loss" in e):
        args, names = trainer.args, ["task", *trainer.losses]
        shares = (
            args.loss_weights_at(step / 6, names)
            if hasattr(args, "loss_weights_at")
            else {"task": 1.0}
        )
        factors = {name: entry.get(f"factor_{name}", 1.0) for name in names}
        total = sum(shares[name] * factors[name] * entry[f"loss_{name}"] for name in names)
        if getattr(args, "loss_balancing", "none") == "uncertainty":
            total -= sum(shares[name] * math.log(factors[name]) for name in names)
        assert total == pytest.approx(entry["loss"], rel=1e-5)
        assert ("temperature" in entry) == bool(trainer.losses)
        assert ("replacing_rate" in entry) == ("theseus" in trainer.method)


@ROWS
def test_training_twice_goes_on_with_the_same_trainer(row, tmp_path):
    trainer = build_trainer(row, tmp_path)
    trainer.train()
    first = weights(trainer.student)
    trainer.train()
    assert not equal(first, weights(trainer.student))


@ROWS
def test_an_output_folder_with_another_run_is_refused_unless_asked_for(row, tmp_path):
    trainer = build_trainer(row, tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    trainer.save_model()
    saved = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"already holds another run \(model\.safetensors, check"):
        build_trainer(row, tmp_path).train()
    assert (tmp_path / "model.safetensors").read_bytes() == saved
    build_trainer(row, tmp_path, overwrite_output_dir=True).train()


@ROWS
def test_several_gpus_in_one_process_are_refused(row, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="accelerate launch --num_processes 2"):
        build_trainer(row, tmp_path)


@ROWS
def test_a_model_init_builds_the_trained_model(row, tmp_path):
    partner = tiny_model("bert", 4)
    trainer = build_trainer(
        row, tmp_path, partner, trainer_options={"model_init": lambda: build_student(partner, 2)}
    )
    trainer.train()
    plain = build_student(partner, 2)
    assert list(trainer.student.state_dict()) == list(plain.state_dict())
    assert not equal(weights(plain), weights(trainer.student))


def test_loss_parameters_train_and_stay_out_of_the_export(tmp_path):
    loss = ProjectedHidden()
    before = weights(loss)
    row = TRAINER_ROWS["distillation-parameters"]
    trainer = build_trainer(
        row, tmp_path, save_strategy="steps", save_steps=3, trainer_options={"losses": {"h": loss}}
    )
    trainer.train()
    assert not equal(before, weights(loss))
    assert not hasattr(trainer.student, LOSS_MODULE)
    from safetensors.torch import load_file

    checkpoint = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert any(key.startswith(LOSS_MODULE) for key in checkpoint)


def test_the_best_checkpoint_is_looked_for_once_the_successor_runs_alone(tmp_path):
    trainer = build_trainer(
        TRAINER_ROWS["theseus"],
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        replacing_fraction=0.6,
    )
    trainer.train()
    assert trainer.state.best_global_step >= 4
    losses = history(trainer, "eval_loss")[3:]
    assert trainer.state.best_metric == min(losses)
