"""What losses learn beside the model, in the optimizer that trains both."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from kdnlp.losses.balance import LossBalancer


def add_learned(
    optimizer: Any, losses: Iterable[nn.Module], balancer: LossBalancer | None, may_grow: bool
) -> None:
    """Give an optimizer the parameters of the losses that it lacks.

    What balances the losses has a learning rate of its own there.

    Args:
        optimizer: the stock one holds those of the losses already, a caller's own may not.
        losses: with or without parameters.
        balancer: what multiplies their weights, if anything.
        may_grow: whether it can take another group of parameters.

    Raises:
        ValueError: if it lacks some and may not grow.
    """
    groups, missing = optimizer.param_groups, []
    if balancer is not None and balancer.learning_rate is not None:
        own = list(balancer.parameters())
        if not any(set(group["params"]) == set(own) for group in groups):
            for group in groups:
                group["params"] = [p for p in group["params"] if p not in set(own)]
            rate = balancer.learning_rate
            missing.append({"params": own, "lr": rate, "weight_decay": 0.0})
    known = {p for group in [*groups, *missing] for p in group["params"]}
    modules = [*losses, *([] if balancer is None else [balancer])]
    learned = [p for module in modules for p in module.parameters() if p.requires_grad]
    if rest := [p for p in learned if p not in known]:
        missing.append({"params": rest})
    if missing and not may_grow:
        raise ValueError(
            "Expected an optimizer that holds the parameters of the losses, got one without them "
            "and a schedule that was made for it. They would stay as they were drawn, or the "
            "schedule would fail. Pass the optimizer alone, optimizers=(optimizer, None): they are "
            "added to it, and the schedule is made after that."
        )
    for group in missing:
        optimizer.add_param_group(group)
