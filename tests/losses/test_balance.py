"""Balancers multiply the weights as their papers say."""

import math

import pytest
import torch
from settings import TrainerRow, build_trainer
from torch import nn

from kdnlp.arguments import DistillationTrainingArguments, TheseusTrainingArguments
from kdnlp.losses.balance import BALANCERS, GradientNormBalancer, UncertaintyBalancer
from kdnlp.models.layers import find_layers
from kdnlp.trainers.step import lowest_trained

WEIGHTS = {"task": 0.5, "logits": 2.0}


def losses(parameter):
    """Two losses whose gradients at the parameter have the norms 2 and 30."""
    return {"task": (2 * parameter).sum() + 1, "logits": (30 * parameter).sum() + 4}


def same(tensor):
    return tensor


def test_uncertainty_starts_at_the_plain_sum():
    parameter = nn.Parameter(torch.zeros(1))
    total, factors = UncertaintyBalancer(WEIGHTS)(losses(parameter), WEIGHTS, [parameter], same)
    assert total.item() == pytest.approx(0.5 * 1 + 2.0 * 4)
    assert {name: factor.item() for name, factor in factors.items()} == {"task": 1, "logits": 1}


def test_uncertainty_settles_at_one_over_the_loss():
    balancer, fixed = UncertaintyBalancer(WEIGHTS), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        total, factors = balancer(losses(fixed), WEIGHTS, [fixed], same)
        total.backward()
        optimizer.step()
    assert factors["task"].item() == pytest.approx(1.0, rel=1e-3)
    assert factors["logits"].item() == pytest.approx(1 / 4, rel=1e-3)
    assert total.item() == pytest.approx(0.5 + 2.0 * (1 + math.log(4)), rel=1e-3)


def test_uncertainty_keeps_an_absent_loss_in_the_graph():
    balancer, parameter = UncertaintyBalancer(WEIGHTS), nn.Parameter(torch.zeros(1))
    only = {"task": losses(parameter)["task"]}
    balancer(only, WEIGHTS, [parameter], same)[0].backward()
    assert balancer.log_variances["logits"].grad.item() == 0.0
    assert balancer.log_variances["task"].grad.item() == pytest.approx(0.5 * (1 - 1))


def test_gradient_norms_become_equal_and_keep_their_mean():
    parameter = nn.Parameter(torch.zeros(1))
    total, factors = GradientNormBalancer(WEIGHTS)(losses(parameter), WEIGHTS, [parameter], same)
    assert factors["task"].item() * 2 == pytest.approx(16)
    assert factors["logits"].item() * 30 == pytest.approx(16)
    total.backward()
    assert parameter.grad.item() == pytest.approx(0.5 * 16 + 2.0 * 16)


def test_a_loss_that_does_not_reach_the_reference_keeps_its_weight():
    parameter, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))
    both = {"task": losses(parameter)["task"], "logits": (3 * other).sum()}
    total, factors = GradientNormBalancer(WEIGHTS)(both, WEIGHTS, [parameter], same)
    assert {name: factor.item() for name, factor in factors.items()} == {"task": 1, "logits": 1}
    assert total.item() == pytest.approx(0.5 + 6)


def test_processes_balance_by_the_mean_of_their_norms():
    parameter = nn.Parameter(torch.zeros(1))
    seen = []

    def reduce(norms):
        seen.append(norms.tolist())
        return torch.tensor([10.0, 10.0])

    _, factors = GradientNormBalancer(WEIGHTS)(losses(parameter), WEIGHTS, [parameter], reduce)
    assert seen == [[2.0, 30.0]]
    assert [factor.item() for factor in factors.values()] == [1.0, 1.0]


@pytest.mark.parametrize("name", BALANCERS)
def test_a_balancer_cites_its_paper(name):
    assert BALANCERS[name].citation.startswith("@inproceedings")


def test_an_unknown_balancer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="loss_balancing must be one of none, uncertainty"):
        DistillationTrainingArguments(str(tmp_path), loss_balancing="pareto", use_cpu=True)


def test_theseus_refuses_to_measure_where_it_skips(tmp_path):
    with pytest.raises(ValueError, match="first block, which Theseus skips"):
        TheseusTrainingArguments(str(tmp_path), loss_balancing="gradient_norm", use_cpu=True)


def test_gradient_norms_refuse_a_compiled_student(tmp_path):
    with pytest.raises(ValueError, match="torch_compile frees what a second backward pass reads"):
        DistillationTrainingArguments(
            str(tmp_path), loss_balancing="gradient_norm", torch_compile=True, use_cpu=True
        )


def test_gradients_that_half_precision_would_lose_are_measured_at_a_scale():
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float16))
    tiny = {name: (loss * 1e-8).sum() for name, loss in half_losses(parameter).items()}
    for scale, known in ((1.0, False), (65536.0, True), (2.0**40, False)):
        _, factors = GradientNormBalancer(WEIGHTS)(tiny, WEIGHTS, [parameter], same, scale)
        ratio = factors["task"].item() / factors["logits"].item()
        assert ratio == pytest.approx(15 if known else 1, rel=0.1)


def test_gradients_are_measured_at_the_size_that_they_have_in_the_step():
    parameter, weights = (
        nn.Parameter(torch.zeros(1, dtype=torch.float16)),
        {"task": 0.5, "logits": 1e-3},
    )
    both = half_losses(parameter)  # 30 * 4096 is more than half precision holds
    _, factors = GradientNormBalancer(weights)(both, weights, [parameter], same, 4096.0)
    assert factors["task"].item() / factors["logits"].item() == pytest.approx(15, rel=0.01)


def half_losses(parameter):
    """Those of `losses`, in float32 behind a parameter in half precision, as under autocast."""
    return losses(parameter.float())


@pytest.mark.parametrize("frozen", [1, 2])
def test_gradient_norms_are_measured_where_something_trains(frozen, tmp_path):
    row = TrainerRow("DistillationTrainer", {"loss_balancing": "gradient_norm"}, of_the_batch=True)
    trainer = build_trainer(row, tmp_path, max_steps=2)
    blocks = find_layers(trainer.student).layers
    next(blocks[0].parameters()).requires_grad_(False)
    for block in blocks[: frozen - 1]:
        block.requires_grad_(False)
    expected = [p for p in blocks[frozen - 1].parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(lowest_trained(trainer.student), expected, strict=True))
    trainer.train()
    factors = [e for e in trainer.state.log_history if "factor_logits" in e]
    assert any(e["factor_logits"] != 1 for e in factors)
    blocks.requires_grad_(False)
    with pytest.raises(ValueError, match="all blocks of the student are frozen"):
        trainer.train()


def test_a_loss_of_weight_0_sets_no_scale_for_the_others():
    parameter = nn.Parameter(torch.zeros(1))
    weights = {"task": 0.0, "logits": 1.0}
    total, factors = GradientNormBalancer(weights)(losses(parameter), weights, [parameter], same)
    assert factors["logits"].item() == pytest.approx(1.0)
    assert total.item() == pytest.approx(4.0)


def test_uncertainty_moves_at_the_learning_rate_of_a_fine_tuning(tmp_path):
    row = TrainerRow("DistillationTrainer", {"loss_balancing": "uncertainty", "weight_decay": 0.1})
    trainer = build_trainer(row, tmp_path, learning_rate=2e-5, max_steps=6)
    trainer.train()
    groups = [(g["initial_lr"], g["weight_decay"]) for g in trainer.optimizer.param_groups]
    assert groups[-1] == (UncertaintyBalancer.learning_rate, 0.0)
    assert sum(len(g["params"]) for g in trainer.optimizer.param_groups) == len(
        {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    )
    factors = [e["factor_logits"] for e in trainer.state.log_history if "factor_logits" in e]
    assert factors[-1] > 1.02
