"""Balancing the losses of a run while it goes: `BALANCERS` maps the argument to the class."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

Reduce = Callable[[torch.Tensor], torch.Tensor]


class LossBalancer(nn.Module):
    """Factors on the losses of a step, beside the weights that the arguments give.

    Attributes:
        learning_rate: of its own parameters, at the start; `None` if it has none.

    Args:
        names: the losses of the run.
    """

    citation: ClassVar[str] = ""
    learning_rate: ClassVar[float | None] = None

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)

    def forward(
        self,
        losses: Mapping[str, torch.Tensor],
        weights: Mapping[str, float],
        reference: Sequence[nn.Parameter],
        reduce: Reduce,
        scale: torch.Tensor | float = 1.0,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Add up the losses of a micro-batch.

        Args:
            losses: scalars by name.
            weights: the weight of each, which the factors multiply.
            reference: parameters of the student that every loss reaches.
            reduce: the mean of a tensor over all processes.
            scale: of the sum when its gradient is taken: fp16's, over the micro-batches of a step.
                Without it gradients would underflow, or overflow, where those of the step do not.

        Returns:
            The sum, and the factors by name, detached.
        """
        raise NotImplementedError


class UncertaintyBalancer(LossBalancer):
    """`sum of w * (exp(-s) * L + s)`, with one learned `s` a loss, which starts at 0.

    The `s` have a learning rate of their own, `learning_rate`, and no weight decay: at that of a
    fine-tuning they would hardly move. At the minimum over `s` the factor `exp(-s)` is one over the
    loss: what is still large counts less. Losses must be at least 0, and one that reaches 0 takes
    its factor to infinity.

    Source: Kendall, Gal, Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for
    Scene Geometry and Semantics", CVPR, arXiv 1705.07115, section 3.2, without the constant 1/2.
    """

    citation = """@inproceedings{kendall2018multitask,
  title={Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics},
  author={Kendall, Alex and Gal, Yarin and Cipolla, Roberto},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2018}
}"""

    learning_rate = 1e-2

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        # Of one element and not of none: FSDP shards no scalars.
        self.log_variances = nn.ParameterDict({n: nn.Parameter(torch.zeros(1)) for n in names})

    def forward(
        self,
        losses: Mapping[str, torch.Tensor],
        weights: Mapping[str, float],
        reference: Sequence[nn.Parameter],
        reduce: Reduce,
        scale: torch.Tensor | float = 1.0,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of one micro-batch; see the class."""
        variances = {name: self.log_variances[name].squeeze() for name in self.names}
        terms = [
            weights[name] * ((-variances[name]).exp() * loss + variances[name])
            for name, loss in losses.items()
        ]
        # A loss that a batch does not have still holds its parameter in the graph, as DDP asks.
        absent = [0.0 * variances[name] for name in self.names if name not in losses]
        factors = {name: (-variances[name]).exp().detach() for name in losses}
        return torch.stack([*terms, *absent]).sum(), factors


class GradientNormBalancer(LossBalancer):
    """`sum of w * L * mean norm / norm of L`: gradients of one size at the reference parameters.

    The norms are measured in every micro-batch, at the price of a backward pass a loss. They are
    of the micro-batch, so that gradient accumulation may change the factors.

    Source: Chen, Badrinarayanan, Lee, Rabinovich 2018, "GradNorm: Gradient Normalization for
    Adaptive Loss Balancing in Deep Multitask Networks", ICML, arXiv 1711.02257. The paper moves
    its factors towards this point by gradient steps and keeps their sum; here, with its alpha at 0,
    they are there, and it is the mean norm that is kept.
    """

    citation = """@inproceedings{chen2018gradnorm,
  title={{GradNorm}: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks},
  author={Chen, Zhao and Badrinarayanan, Vijay and Lee, Chen-Yu and Rabinovich, Andrew},
  booktitle={International Conference on Machine Learning},
  year={2018}
}"""

    def forward(
        self,
        losses: Mapping[str, torch.Tensor],
        weights: Mapping[str, float],
        reference: Sequence[nn.Parameter],
        reduce: Reduce,
        scale: torch.Tensor | float = 1.0,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of one micro-batch; see the class."""
        # One that weighs nothing would set a scale for the others, and cost a backward pass.
        weighed = {n: loss for n, loss in losses.items() if weights[n] > 0} or losses
        scales = {n: scale * (weights[n] if weights[n] > 0 else 1.0) for n in weighed}
        measured = [_norm(weighed[n] * s, reference) / s for n, s in scales.items()]
        norms = reduce(torch.stack(measured))
        # A loss without a gradient has nothing to balance, and a factor of 1.
        known = (norms > 0) & norms.isfinite()
        mean = torch.where(known, norms, 0.0).sum() / known.sum().clamp(min=1)
        ratios = torch.where(known, mean / norms.clamp(min=torch.finfo(norms.dtype).tiny), 1.0)
        ones = {name: loss.new_ones(()) for name, loss in losses.items()}
        factors = {**ones, **dict(zip(weighed, ratios, strict=True))}
        total = torch.stack([weights[n] * factors[n] * loss for n, loss in losses.items()]).sum()
        return total, factors


def _norm(loss: torch.Tensor, reference: Sequence[nn.Parameter]) -> torch.Tensor:
    """The norm of a loss's gradient at the reference parameters; in float32."""
    gradients = torch.autograd.grad(loss, reference, retain_graph=True, allow_unused=True)
    squares = [g.float().square().sum() for g in gradients if g is not None]
    return torch.stack(squares).sum().sqrt() if squares else loss.new_zeros(())


BALANCERS: dict[str, type[LossBalancer]] = {
    "uncertainty": UncertaintyBalancer,
    "gradient_norm": GradientNormBalancer,
}
