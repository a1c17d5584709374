"""What runs out of memory says what to do, and auto_find_batch_size starts afresh."""

import pytest
import torch
from settings import TRAINER_ROWS, build_trainer

from kdnlp.checkpoints import list_checkpoints

NAMES = ("distillation-parameters", "theseus-unfreeze")
ROWS = pytest.mark.parametrize(
    "name",
    [n if n in NAMES else pytest.param(n, marks=pytest.mark.slow) for n in TRAINER_ROWS],
)
MESSAGE = "CUDA out of memory. Tried to allocate 20.00 GiB."


def build(name, folder, error=None, most=3, since=0, **overrides):
    """A trainer whose student has no room for more than `most` rows, from some call on."""
    overrides = {"max_steps": 4, "teacher_cache_dir": f"{folder}-t", **overrides}
    if not TRAINER_ROWS[name].arguments.get("cache_teacher_outputs"):
        del overrides["teacher_cache_dir"]
    torch.manual_seed(11)
    trainer = build_trainer(TRAINER_ROWS[name], folder, **overrides)
    calls = []

    def forward(module, args, kwargs):
        calls.append(len(kwargs["input_ids"]))
        if module.training and error and len(calls) > since and calls[-1] > most:
            raise error

    trainer.student.register_forward_pre_hook(forward, with_kwargs=True)
    return trainer, calls


@pytest.mark.parametrize("name", ["distillation", "theseus-logits"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(MESSAGE),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory"
        ),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=["device", "cpu", "linux"],
)
def test_memory_that_ran_out_is_explained_and_keeps_its_type(error, name, tmp_path):
    trainer, _ = build(name, tmp_path, error)
    with pytest.raises(type(error)) as caught:
        trainer.train()
    assert caught.value is error
    note = error.__notes__.pop()
    for words in (
        "input_ids of the shape (4, 6)", "per_device_train_batch_size (it is 4)",
        "gradient_accumulation_steps (it is 1)", "gradient_checkpointing=True",
        "auto_find_batch_size=True", "unpadded=True",
    ):  # fmt: skip
        assert words in note


def test_other_errors_get_no_advice_about_memory(tmp_path):
    trainer, _ = build("distillation", tmp_path, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as caught:
        trainer.train()
    assert not hasattr(caught.value, "__notes__")


@ROWS
def test_a_batch_that_fits_is_found_and_trains_what_it_would_have_trained_alone(name, tmp_path):
    error = torch.OutOfMemoryError(MESSAGE)
    found, calls = build(name, tmp_path / "found", error, since=2, auto_find_batch_size=True)
    found.train()
    alone, _ = build(name, tmp_path / "alone", per_device_train_batch_size=3)
    alone.train()
    # Two steps are trained before the memory runs out: they must leave nothing behind.
    assert calls[:4] == [4, 4, 4, 3]
    assert found.state.global_step == 4
    first, second = found.student.state_dict(), alone.student.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for ours, theirs in zip(found.losses.values(), alone.losses.values(), strict=True):
        weights = theirs.state_dict()
        assert all(torch.equal(v, weights[k]) for k, v in ours.state_dict().items())
    keys = ("loss", "grad_norm", "loss_task", "replaced_fraction")
    logs = [[{k: e.get(k) for k in keys} for e in t.state.log_history] for t in (found, alone)]
    assert logs[0] == logs[1]
    plain = build("distillation", tmp_path / "plain")[0].student
    assert [type(m) for m in found.student.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize("name", ["distillation-parameters", "distillation-uncertainty"])
def test_an_attempt_is_undone_in_a_caller_s_optimizer_to_which_losses_were_added(name, tmp_path):
    error, trained = torch.OutOfMemoryError(MESSAGE), []
    for folder, given in (
        ("found", {"error": error, "since": 2, "auto_find_batch_size": True}),
        ("alone", {"per_device_train_batch_size": 3}),
    ):
        trainer, _ = build(name, tmp_path / folder, **given)
        own = trainer.student.parameters()
        trainer.optimizer = torch.optim.AdamW(own, 0.01, weight_decay=0.1)
        trainer.train()
        groups = [len(group["params"]) for group in trainer.optimizer.param_groups]
        trained.append((groups, trainer.student.state_dict()))
    (groups, found), (expected, alone) = trained
    assert groups == expected
    assert len(groups) == 2
    assert all(torch.equal(found[key], alone[key]) for key in alone)


@pytest.mark.parametrize(("batch", "left"), [(2, 0), (1, 2)], ids=["another follows", "none"])
def test_the_checkpoints_of_an_attempt_go_where_another_follows(batch, left, tmp_path):
    error, saved = torch.OutOfMemoryError(MESSAGE), {"save_strategy": "steps", "save_steps": 1}
    trainer, _ = build(
        "distillation", tmp_path, error, most=0, since=2, auto_find_batch_size=True,
        per_device_train_batch_size=batch, **saved,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="No executable batch size found"):
        trainer.train()
    assert len(list_checkpoints(tmp_path)) == left


def test_where_not_even_one_row_fits_the_model_is_as_it_was(tmp_path):
    error = torch.OutOfMemoryError(MESSAGE)
    trainer, _ = build(
        "theseus",
        tmp_path,
        error,
        most=0,
        auto_find_batch_size=True,
        per_device_train_batch_size=1,
    )
    before = {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}
    with pytest.raises(RuntimeError, match="No executable batch size found"):
        trainer.train()
    after = trainer.student.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
