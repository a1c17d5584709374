"""What only the Theseus trainer does: the path, its gradients, its two stages, its teacher."""

import re

import numpy as np
import pytest
import torch
from settings import (
    CHECKPOINTING,
    NO_DROPOUT,
    TRAINER_ROWS,
    TrainerRow,
    arguments,
    build_trainer,
    tiny_model,
)
from transformers import EarlyStoppingCallback, TrainerCallback

from kdnlp.losses import AttentionScoresLoss, HiddenLoss, LogitsLoss
from kdnlp.models.student import build_student
from kdnlp.models.theseus import TheseusLayers, draw_replaced

CONSTANT = {"lr_scheduler_type": "constant"}


def theseus(folder, partner=None, model=None, losses=None, callbacks=(), **overrides):
    """A Theseus trainer of four blocks and two, on the tiny data."""
    row = TrainerRow("TheseusTrainer", losses=losses)
    return build_trainer(row, folder, partner, model, {"callbacks": list(callbacks)}, **overrides)


def at(event, action):
    """A callback that calls `action(global_step)` at one event of the training loop."""
    run = {event: lambda self, args, state, control, **kwargs: action(state.global_step)}
    return type("At", (TrainerCallback,), run)()


def fix_draws(monkeypatch, *draws):
    """Let step number i take the i-th of `draws`, whatever the rate says."""
    monkeypatch.setattr(
        "kdnlp.trainers.theseus.draw_replaced", lambda seed, step, rate, slots: draws[step]
    )


def record_calls(trainer):
    """(step, block) of every block that runs during training, s0 and s1 for the successor's."""
    calls = []

    def watch(step):
        blocks = {f"s{i}": b for i, b in enumerate(trainer.student.bert.encoder.layer.children())}
        theirs = trainer.predecessor.bert.encoder.layer
        blocks |= {f"p{i}": b for i, b in enumerate(theirs)}
        for name, block in blocks.items():
            # Inside the block, where checkpointing recomputes, and early, since it may stop midway.
            block.attention.register_forward_pre_hook(
                lambda *_, name=name: (
                    calls.append((trainer.state.global_step, name))
                    if trainer.student.training
                    else None
                )
            )

    trainer.add_callback(at("on_train_begin", watch))
    return calls


def blocks_of(student):
    return [p for block in student.bert.encoder.layer.children() for p in block.parameters()]


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# What trains, and when.


@pytest.mark.parametrize("skipped", ["zero", "none"])
def test_every_successor_block_moves_and_nothing_else_does(skipped, tmp_path):
    partner = tiny_model("bert", 4)
    trainer = theseus(tmp_path, partner, skipped_gradients=skipped, weight_decay=0.1)
    theirs, before = snapshot(partner), snapshot(trainer.student)
    trainer.train()
    after = trainer.student.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(torch.equal(theirs[name], partner.state_dict()[name]) for name in theirs)
    assert moved
    assert all(name.startswith("bert.encoder.layer.") for name in moved)
    for name in set(before) - moved:
        if not name.startswith("bert.encoder.layer."):
            assert torch.equal(after[name], theirs[name])
    for i in range(2):
        assert any(name.startswith(f"bert.encoder.layer.{i}.") for name in moved)


def test_the_optimizer_holds_the_successors_blocks_and_no_frozen_copy(tmp_path):
    trainer = theseus(tmp_path)
    trainer.train()
    held = {p for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == set(blocks_of(trainer.student))
    assert set(trainer.optimizer.state) == held


def test_neither_weight_decay_nor_momentum_moves_the_shared_weights_before_the_rate_is_1(tmp_path):
    rate, decay = 1e-2, 0.5
    gradients, shared_in_state, unmoved = {}, {}, {}

    def before_step(step):
        if trainer.replacing_rate() == 1.0 and not gradients:
            gradients.update({n: p.grad.clone() for n, p in shared.items()})

    def after_step(step):
        shared_in_state[step] = any(p in trainer.optimizer.state for p in shared.values())
        unmoved[step] = all(torch.equal(p, start[n]) for n, p in shared.items())
        if step == 4:
            first.update({n: p.detach().clone() for n, p in shared.items()})

    trainer = theseus(
        tmp_path,
        callbacks=[at("on_pre_optimizer_step", before_step), at("on_step_end", after_step)],
        unfreeze_after_replacement=True,
        replacing_fraction=0.5,
        weight_decay=decay,
        learning_rate=rate,
        **CONSTANT,
    )
    blocks, first = set(blocks_of(trainer.student)), {}
    shared = {n: p for n, p in trainer.student.named_parameters() if p not in blocks}
    start = {n: p.detach().clone() for n, p in shared.items()}
    decayed = trainer.get_decay_parameter_names(trainer.student)
    trainer.train()
    # Steps 0, 1 and 2 have a rate below 1; the step that ends as number 4 is the first with 1.
    assert unmoved == {1: True, 2: True, 3: True, 4: False, 5: False, 6: False}
    assert shared_in_state == {1: False, 2: False, 3: False, 4: True, 5: True, 6: True}
    for name, gradient in gradients.items():
        # The first step of a fresh AdamW is the gradient's sign: nothing had been accumulated.
        kept = start[name] * (1 - rate * decay * (name in decayed))
        expected = kept - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unfreeze", [False, True])
def test_the_norm_for_clipping_is_of_the_blocks_alone_until_the_rate_is_1(unfreeze, tmp_path):
    of_blocks, of_all = [], []

    def norm(parameters):
        gradients = [p.grad.norm() for p in parameters if p.grad is not None]
        return torch.stack(gradients).norm().item()

    def before_step(step):
        of_blocks.append(norm(blocks_of(trainer.student)))
        of_all.append(norm(trainer.student.parameters()))

    trainer = theseus(
        tmp_path,
        callbacks=[at("on_pre_optimizer_step", before_step)],
        unfreeze_after_replacement=unfreeze,
        replacing_fraction=0.5,
        max_grad_norm=0.0,  # the norm is still logged, and the gradients stay as they are
    )
    trainer.train()
    logged = history(trainer, "grad_norm")
    assert logged == pytest.approx(of_all, rel=1e-5)
    assert logged[:3] == pytest.approx(of_blocks[:3], rel=1e-5)
    later = np.array(logged[3:]) / of_blocks[3:]
    assert np.all(later > 1.01) if unfreeze else later == pytest.approx(np.ones(3), rel=1e-5)


# Skipped blocks: two algorithms.


def adam_path(gradients, learning_rate):
    """Where Adam (Kingma and Ba 2015, algorithm 1) takes a value from 0; `None` is no step."""
    position = mean = square = steps = 0.0
    path = []
    for gradient in gradients:
        if gradient is not None:
            steps += 1
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            size = np.sqrt(square / (1 - 0.999**steps)) + 1e-8
            position = position - learning_rate * mean / (1 - 0.9**steps) / size
        path.append(position)
    return path


def test_the_reference_travels_the_published_distances():
    assert adam_path([1.0, None] * 4, 0.01)[-1] == pytest.approx(-0.0400, abs=5e-5)
    assert adam_path([1.0, 0.0] * 4, 0.01)[-1] == pytest.approx(-0.0604, abs=5e-5)


@pytest.mark.parametrize("skipped", ["zero", "none"])
def test_a_skipped_block_coasts_on_momentum_or_rests_as_asked(skipped, tmp_path, monkeypatch):
    fix_draws(monkeypatch, (True, True), (False, True), (True, True), (False, False))
    gradients, positions = [], []
    trainer = theseus(
        tmp_path,
        callbacks=[
            at("on_pre_optimizer_step", lambda step: gradients.append(weight.grad.clone())),
            at("on_step_end", lambda step: positions.append(weight.detach().clone())),
        ],
        skipped_gradients=skipped,
        max_steps=4,
        **CONSTANT,
    )
    weight = trainer.student.bert.encoder.layer[0].output.dense.weight
    start = weight.detach().clone()
    trainer.train()
    used = [gradients[0].double().numpy(), gradients[2].double().numpy()]
    assert all(np.abs(g).max() > 1e-5 for g in used)
    assert not gradients[1].any()
    assert not gradients[3].any()
    rest = None if skipped == "none" else np.zeros_like(used[0])
    expected = adam_path([used[0], rest, used[1], rest], trainer.args.learning_rate)
    for position, path in zip(positions, expected, strict=True):
        np.testing.assert_allclose((position - start).double().numpy(), path, atol=2e-6)
    for skipped_step in (1, 3):
        resting = torch.equal(positions[skipped_step], positions[skipped_step - 1])
        assert resting == (skipped == "none")


@pytest.mark.parametrize("skipped", ["zero", "none"])
@pytest.mark.parametrize("unfreeze", [False, True])
def test_a_step_with_nothing_replaced_is_legal_and_moves_nothing(skipped, unfreeze, tmp_path):
    gradients, after_first = [], []

    def before_step(step):
        gradients.append([p.grad for p in blocks_of(trainer.student)])

    trainer = theseus(
        tmp_path,
        callbacks=[
            at("on_pre_optimizer_step", before_step),
            at("on_step_end", lambda step: after_first.append(snapshot(trainer.student))),
        ],
        max_steps=2,
        initial_replacing_rate=0.0,
        allow_incomplete_replacement=True,
        skipped_gradients=skipped,
        unfreeze_after_replacement=unfreeze,
        gradient_accumulation_steps=2,
    )
    start = snapshot(trainer.student)
    trainer.train()
    assert history(trainer, "replaced_fraction")[0] == 0.0
    assert all(g is not None and torch.equal(g, torch.zeros_like(g)) for g in gradients[0])
    assert history(trainer, "grad_norm")[0] == 0.0
    assert np.all(np.isfinite(history(trainer, "loss")))
    assert all(torch.equal(after_first[0][name], start[name]) for name in start)


# The path.


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_micro_batches_of_a_step_and_the_recomputation_run_one_path(checkpointing, tmp_path):
    replaced = []
    trainer = theseus(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        initial_replacing_rate=0.4,
        replacing_fraction=0.9,
        allow_incomplete_replacement=True,
        **{CHECKPOINTING: checkpointing},
    )
    trainer.student.bert.encoder.register_forward_pre_hook(
        lambda module, _: (
            replaced.append((trainer.state.global_step, trainer.layers.replaced))
            if module.training
            else None
        )
    )
    calls = record_calls(trainer)
    trainer.train()
    assert len(replaced) == 6 * 4
    drawn = {
        step: draw_replaced(3, step, trainer.args.replacing_rate_at(step / 6), 2)
        for step in range(6)
    }
    assert all(path == drawn[step] for step, path in replaced)
    assert len(set(drawn.values())) >= 3
    for step, (first, second) in drawn.items():
        expected = (["s0"] if first else ["p0", "p1"]) + (["s1"] if second else ["p2", "p3"])
        seen = [name for at_step, name in calls if at_step == step]
        assert set(seen) == set(expected)
        if not checkpointing:
            assert seen == expected * 4
        elif any(name.startswith("s") for name in expected):
            assert len(seen) > 4 * len(expected)  # the backward pass ran blocks again


def test_checkpointing_changes_no_weight_even_with_dropout_on(tmp_path):
    ends = []
    for checkpointing in (False, True):
        trainer = theseus(
            tmp_path / str(checkpointing),
            tiny_model("bert", 4),
            **{CHECKPOINTING: checkpointing},
        )
        trainer.train()
        ends.append(snapshot(trainer.student))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_slots_of_1_1_and_2_run_the_blocks_that_they_say(tmp_path, monkeypatch):
    fix_draws(monkeypatch, (False, False, False), (True, False, False), (False, True, True))
    partner = tiny_model("bert", 4, **NO_DROPOUT)
    trainer = theseus(
        tmp_path,
        partner,
        build_student(partner, 3),
        slot_sizes="1,1,2",
        max_steps=3,
    )
    calls = record_calls(trainer)
    trainer.train()
    paths = [[name for at_step, name in calls if at_step == step] for step in range(3)]
    assert paths == [["p0", "p1", "p2", "p3"], ["s0", "p1", "p2", "p3"], ["p0", "s1", "s2"]]


def test_evaluation_in_mid_training_runs_no_predecessor_block(tmp_path):
    trainer = theseus(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=2,
        initial_replacing_rate=0.0,
        allow_incomplete_replacement=True,
    )
    ran_in_training = []

    def watch(step):
        for block in trainer.predecessor.bert.encoder.layer:
            block.register_forward_hook(lambda *_: ran_in_training.append(trainer.student.training))

    trainer.add_callback(at("on_train_begin", watch))
    trainer.train()
    assert len(history(trainer, "eval_loss")) == 2
    assert len(ran_in_training) >= 4
    assert all(ran_in_training)


# The rate and what is logged.


@pytest.mark.parametrize("base", [0.1, 0.3])
def test_the_logged_rate_is_min_1_kt_plus_b_with_the_announced_k_and_b(base, tmp_path, caplog):
    trainer = theseus(
        tmp_path,
        max_steps=10,
        replacing_fraction=0.5,
        initial_replacing_rate=base,
        per_device_train_batch_size=1,
    )
    with caplog.at_level("INFO", logger="kdnlp"):
        trainer.train()
    announced = re.search(r"b = ([\d.]+), k = ([\d.e-]+)\.", caplog.text)
    b, k = float(announced[1]), float(announced[2])
    assert (b, k) == (base, pytest.approx((1 - base) / 5))
    entries = [entry for entry in trainer.state.log_history if "replacing_rate" in entry]
    for entry in entries:
        assert entry["replacing_rate"] == pytest.approx(min(1.0, k * entry["step"] + b), rel=1e-3)
    assert [e["replacing_rate"] for e in entries][4:] == [1.0] * 6


def test_the_announced_k_is_the_slope_where_the_ramp_ends_between_two_steps(tmp_path, caplog):
    trainer = theseus(tmp_path, max_steps=4, replacing_fraction=0.6)  # 2.4 steps
    with caplog.at_level("INFO", logger="kdnlp"):
        trainer.train()
    k = float(re.search(r"k = ([\d.e-]+)\.", caplog.text)[1])
    rates = history(trainer, "replacing_rate")
    assert rates[1] - rates[0] == pytest.approx(k, rel=1e-2)


@pytest.mark.parametrize("every", [1, 2])
def test_the_logged_fraction_is_the_mean_of_what_was_drawn(every, tmp_path):
    trainer = theseus(tmp_path, logging_steps=every, gradient_accumulation_steps=2)
    trainer.train()
    rates = [trainer.args.replacing_rate_at(step / 6) for step in range(6)]
    drawn = np.array([np.mean(draw_replaced(3, i, rate, 2)) for i, rate in enumerate(rates)])
    expected = drawn.reshape(-1, every).mean(1)
    assert history(trainer, "replaced_fraction") == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_what_came_after_the_last_log_is_not_counted_in_the_next_run(tmp_path):
    trainer = theseus(tmp_path, logging_steps=4)
    first = []
    for _ in range(2):
        trainer.train()
        first.append(history(trainer, "replaced_fraction")[0])
    assert first[0] == first[1]


@pytest.mark.parametrize("dropout", [NO_DROPOUT, {}], ids=["no dropout", "dropout"])
def test_a_rate_of_1_throughout_is_plain_finetuning_of_the_same_successor(dropout, tmp_path):
    partner = tiny_model("bert", 4, **dropout)
    trainer = theseus(tmp_path / "theseus", partner, initial_replacing_rate=1.0, weight_decay=0.1)
    trainer.train()
    plain = build_student(partner, 2)
    for parameter in set(plain.parameters()) - set(blocks_of(plain)):
        parameter.requires_grad_(False)
    row = TRAINER_ROWS["finetuning"]
    finetuning = build_trainer(row, tmp_path / "plain", partner, plain, weight_decay=0.1)
    finetuning.train()
    for key in ("loss", "grad_norm"):
        assert history(trainer, key) == history(finetuning, key)
    ours, theirs = trainer.student.state_dict(), finetuning.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_patience_is_not_spent_while_the_successor_is_half_replaced(tmp_path):
    scores = iter([0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1])
    trainer = build_trainer(
        TRAINER_ROWS["theseus"],
        tmp_path,
        trainer_options={
            "callbacks": [EarlyStoppingCallback(2)],
            "compute_metrics": lambda _: {"score": next(scores)},
        },
        max_steps=8,
        replacing_fraction=0.5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    trainer.train()
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (4, 0.5)
    assert trainer.state.global_step == 6


# The predecessor.


@pytest.mark.parametrize("losses", [None, lambda: {"logits": LogitsLoss()}], ids=["none", "logits"])
@pytest.mark.parametrize("dropout", [True, False])
def test_the_predecessors_dropout_is_on_or_off_as_asked(dropout, losses, tmp_path):
    modes = []
    trainer = theseus(
        tmp_path,
        tiny_model("bert", 4),
        predecessor_dropout=dropout,
        eval_strategy="steps",  # which puts the student, and nothing else, in eval mode
        eval_steps=1,
        losses=losses,
    )

    def watch(step):
        for block in trainer.predecessor.bert.encoder.layer:
            for module in block.modules():
                module.register_forward_hook(
                    lambda module, *_: modes.append((on_path[-1], module.training))
                )

    on_path = [False]
    trainer.student.bert.encoder.register_forward_pre_hook(lambda *_: on_path.append(True))
    trainer.student.bert.encoder.register_forward_hook(lambda *_: on_path.append(False))
    trainer.add_callback(at("on_train_begin", watch))
    trainer.train()
    assert {mode for path, mode in modes if path} == {dropout}
    as_teacher = {mode for path, mode in modes if not path}
    assert as_teacher == ({False} if losses else set())
    assert not trainer.predecessor.training


def test_the_predecessors_dropout_changes_what_is_learnt(tmp_path):
    losses = []
    for dropout in (True, False):
        partner = tiny_model("bert", 4, hidden_dropout_prob=0.3)
        folder = tmp_path / str(dropout)
        trainer = theseus(folder, partner, predecessor_dropout=dropout, initial_replacing_rate=0.0)
        trainer.train()
        losses.append(history(trainer, "loss"))
    assert losses[0][0] != losses[1][0]


class RecordingLoss(LogitsLoss):
    """Keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, student, teacher, batch):
        inputs = {name: batch[name].clone() for name in ("input_ids", "attention_mask")}
        self.seen.append((inputs, teacher["logits"].clone()))
        assert not teacher["logits"].requires_grad
        return super().forward(student, teacher, batch)


@pytest.mark.parametrize("dropout", [True, False])
def test_the_teacher_of_a_step_is_the_whole_predecessor_without_dropout(dropout, tmp_path):
    partner = tiny_model("bert", 4, hidden_dropout_prob=0.4)
    loss, modes = RecordingLoss(), []
    trainer = theseus(
        tmp_path,
        partner,
        losses=lambda: {"logits": loss},
        predecessor_dropout=dropout,
        callbacks=[at("on_step_end", lambda step: modes.append(partner.training))],
    )
    trainer.train()
    assert len(loss.seen) == 6
    with torch.no_grad():
        for inputs, logits in loss.seen:
            assert torch.equal(partner.eval()(**inputs).logits, logits)
    assert modes == [dropout] * 6


# Compilation.


def compiled_run(folder, compile_blocks):
    """Five paths of two slots, some of them new ones in every step."""
    trainer = theseus(
        folder, max_steps=5, initial_replacing_rate=0.5, compile_blocks=compile_blocks
    )
    trainer.train()
    return history(trainer, "loss")


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Dynamo looks at `.grad` of every tensor it sees.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_blocks_are_compiled_one_by_one_so_that_new_paths_are_no_new_graphs(
    tmp_path, monkeypatch, fresh_dynamo
):
    graphs, compiled = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compile_with_backend(self, original=torch.nn.Module.compile):
        compiled.append(self)
        original(self, backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with_backend)
    eager = compiled_run(tmp_path / "eager", False)
    assert not compiled
    assert compiled_run(tmp_path / "compiled", True) == pytest.approx(eager, rel=1e-5)
    assert len(set(compiled)) == 2 + 4
    assert {type(module).__name__ for module in compiled} == {"BertLayer"}
    assert all(module._compiled_call_impl is None for module in compiled)  # plain once more
    # Seven blocks and modes share the graphs of one class: with gradients, and without.
    assert 1 <= len(graphs) <= 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, inside the compiler
def test_compiled_blocks_train_as_eager_ones(tmp_path, fresh_dynamo):
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        pytest.skip("torch.compile on the CPU needs a C++ compiler")
    eager = compiled_run(tmp_path / "eager", False)
    assert compiled_run(tmp_path / "compiled", True) == pytest.approx(eager, rel=1e-4)


# What is refused.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"use_cache": True}, "use_cache=True keeps keys and values by the position"),
        ({"ddp_find_unused_parameters": True}, "ddp_find_unused_parameters=True"),
        ({"torch_compile": True}, "Use compile_blocks=True instead"),
    ],
)
def test_settings_that_would_train_wrongly_are_refused(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        theseus(tmp_path, **overrides)


def test_reentrant_checkpointing_that_drops_the_first_blocks_gradient_is_refused(tmp_path):
    with pytest.raises(ValueError, match="non-reentrant"):
        arguments(
            "TheseusTrainer",
            tmp_path,
            **{CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}},
        )


def refused_models(monkeypatch, tmp_path):
    """A successor whose forward bypasses the list, and both models as they were before."""
    partner, successor = tiny_model("bert", 4), tiny_model("bert", 2, seed=5).train()
    successor.config.use_cache = True
    before = snapshot(partner), snapshot(successor)

    def by_index(self, hidden_states, attention_mask=None, **kwargs):
        for i in range(len(self.layer)):
            hidden_states = self.layer[i](hidden_states, attention_mask)
        return type("Output", (), {"last_hidden_state": hidden_states, "past_key_values": None})()

    monkeypatch.setattr(type(successor.bert.encoder), "forward", by_index)
    with pytest.raises(ValueError, match="does not run the sampled path"):
        theseus(tmp_path, partner, successor)
    return (partner, successor), before


def test_a_predecessor_whose_attention_reads_other_masks_is_refused(tmp_path):
    partner = tiny_model("bert", 4)
    successor = build_student(partner, 2)
    partner.set_attn_implementation("eager")
    successor.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="attention implementation"):
        theseus(tmp_path, partner, successor)


def test_a_refused_architecture_leaves_the_successor_a_plain_model_in_its_mode(
    tmp_path, monkeypatch
):
    (partner, successor), (theirs, _) = refused_models(monkeypatch, tmp_path)
    assert not any(isinstance(module, TheseusLayers) for module in successor.modules())
    assert all(module.training for module in successor.modules())
    assert all(p.requires_grad for p in successor.parameters())
    assert all(torch.equal(partner.state_dict()[name], theirs[name]) for name in theirs)


def test_a_refused_architecture_leaves_the_successors_weights(tmp_path, monkeypatch):
    (_, successor), (_, ours) = refused_models(monkeypatch, tmp_path)
    assert all(torch.equal(successor.state_dict()[name], ours[name]) for name in ours)


def test_a_run_that_fails_while_joining_leaves_a_plain_model(tmp_path):
    partner = tiny_model("mpnet", 4)  # which has no activation checkpointing
    trainer = theseus(tmp_path, partner, **{CHECKPOINTING: True})
    with pytest.raises(ValueError, match=r"does not support (activation|gradient) checkpointing"):
        trainer.train()
    assert not any(isinstance(module, TheseusLayers) for module in trainer.student.modules())
    assert all(p.requires_grad for p in trainer.student.parameters())


@pytest.mark.parametrize(
    ("layers", "slot_sizes", "ends"),
    [((4, 2), None, [2, 4]), ((4, 3), None, [1, 2, 4]), ((6, 4), "1,1,2,2", [1, 2, 4, 6]),
     ((12, 5), None, [2, 4, 6, 9, 12])],
)  # fmt: skip
def test_a_successor_block_learns_the_block_at_which_its_slot_ends(
    layers, slot_sizes, ends, tmp_path
):
    """With nothing replaced every hidden state is the predecessor's own, and the loss is 0."""
    predecessor = tiny_model("bert", layers[0], **NO_DROPOUT)
    row = TrainerRow(
        "TheseusTrainer",
        {"initial_replacing_rate": 0.0, "replacing_fraction": 0.99},
        losses=lambda: {"hidden": HiddenLoss(), "scores": AttentionScoresLoss()},
    )
    student = build_student(predecessor, layers[1])
    with torch.no_grad():
        for parameter in student.bert.encoder.layer.parameters():
            parameter.add_(0.2)
    trainer = build_trainer(
        row, tmp_path, predecessor, student, slot_sizes=slot_sizes, max_steps=1,
        allow_incomplete_replacement=True,
    )  # fmt: skip
    assert trainer.losses["scores"].mapped == dict(enumerate(ends, start=1))
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["replaced_fraction"] == 0.0
    assert entry["loss_hidden"] == pytest.approx(0.0, abs=1e-9)
    assert entry["loss_scores"] == pytest.approx(0.0, abs=1e-9)


def test_a_loss_that_is_used_again_elsewhere_forgets_the_slots(tmp_path):
    predecessor, loss = tiny_model("bert", 6, **NO_DROPOUT), HiddenLoss()
    row = TrainerRow("TheseusTrainer", losses=lambda: {"hidden": loss})
    build_trainer(row, tmp_path, predecessor, build_student(predecessor, 3), slot_sizes="1,1,4")
    assert loss.mapped == {0: 0, 1: 1, 2: 2, 3: 6}
    row = TrainerRow("DistillationTrainer", losses=lambda: {"hidden": loss})
    build_trainer(row, tmp_path, predecessor, build_student(predecessor, 3))
    assert loss.mapped == {0: 0, 1: 2, 2: 4, 3: 6}


def test_a_ramp_that_falls_back_because_the_run_grew_is_said(tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 1}
    theseus(tmp_path, max_steps=4, **settings).train()
    theseus(tmp_path, max_steps=4, **settings).train(resume_from_checkpoint="last")
    assert "rate falls" not in caplog.text
    theseus(tmp_path, max_steps=20, **settings).train(resume_from_checkpoint="last")
    assert "has 20 optimizer steps, and its ramp with them: the replacing rate falls from 1 to" in (
        caplog.text
    )


def test_a_layer_map_that_pulls_against_the_slots_is_said(tmp_path, caplog):
    row = TrainerRow("TheseusTrainer", losses=lambda: {"hidden": HiddenLoss({1: 1, 2: 4})})
    build_trainer(row, tmp_path)
    assert "hidden maps layers {1: 1}, where the slots end at [2, 4]" in caplog.text


@pytest.mark.parametrize("skipped_gradients", ["zero", "none"])
def test_no_gradient_is_stored_for_a_frozen_weight_at_any_step(skipped_gradients, tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            blocks = set(trainer.layers.parameters())
            shared = [p for p in trainer.student.parameters() if p not in blocks]
            frozen = [*shared, *trainer.predecessor.parameters()]
            seen.append([p.grad for p in frozen if p.grad is not None])

    trainer = build_trainer(
        TrainerRow("TheseusTrainer"),
        tmp_path,
        trainer_options={"callbacks": [Look()]},
        skipped_gradients=skipped_gradients,
    )
    trainer.train()
    assert seen == [[]] * 6
