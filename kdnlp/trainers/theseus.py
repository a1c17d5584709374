"""BERT-of-Theseus: the successor's blocks replace the predecessor's while it runs.

Xu et al. 2020, "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing", EMNLP.
"""

import logging
from collections.abc import Mapping
from itertools import accumulate, chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from kdnlp.arguments import CompressionTrainingArguments, TheseusTrainingArguments
from kdnlp.arguments.values import parse_slot_sizes
from kdnlp.losses import DistillationLoss
from kdnlp.losses.mapped import MappedLoss
from kdnlp.models.layers import find_layers
from kdnlp.models.theseus import (
    TheseusLayers,
    attach,
    detach,
    draw_replaced,
    resolve_slot_sizes,
)
from kdnlp.trainers.base import UNUSED_PARAMETERS, CompressionTrainer
from kdnlp.trainers.sharding import first_elements

logger = logging.getLogger(__name__)


class TheseusTrainer(CompressionTrainer):
    """Train a successor by running its blocks inside a frozen predecessor.

    Each optimizer step draws which slots are replaced; the rate rises to 1, and the rest of the
    run fine-tunes the successor alone. Embeddings and head are the predecessor's and stay frozen
    (see `unfreeze_after_replacement`). Evaluation and checkpoints concern the successor only, and
    the best checkpoint is looked for once the rate has reached 1.

    Example:
        ```python
        successor = build_student(predecessor, num_layers=6)
        trainer = TheseusTrainer(successor, predecessor, args, train_dataset=train)
        trainer.train()
        ```

    Args:
        model: the successor; leave it out with `model_init`.
        predecessor: the fine-tuned model.
        args: the training arguments.
        losses: optional distillation losses by name; their teacher is the predecessor itself, in
            eval mode, on the same batch.
        **kwargs: everything else that `Trainer` takes.

    Raises:
        ValueError: if the two models cannot be mixed block by block.
    """

    args: TheseusTrainingArguments
    arguments_class = TheseusTrainingArguments
    method = "theseus"
    citation = """@inproceedings{xu2020bert,
  title={{BERT}-of-{T}heseus: Compressing {BERT} by Progressive Module Replacing},
  author={Xu, Canwen and Zhou, Wangchunshu and Ge, Tao and Wei, Furu and Zhou, Ming},
  booktitle={Proceedings of EMNLP},
  pages={7859--7869},
  year={2020}
}"""

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        predecessor: PreTrainedModel | None = None,
        args: TheseusTrainingArguments | None = None,
        losses: Mapping[str, DistillationLoss] | None = None,
        **kwargs: Any,
    ) -> None:
        if predecessor is None:
            raise TypeError(
                "TheseusTrainer needs a predecessor: TheseusTrainer(successor, predecessor, args, "
                "...)."
            )
        self.stack: str | None = kwargs.pop("stack", None)
        self.layers: TheseusLayers | None = None
        self._sharing: PreTrainedModel | None = None
        self.shared: dict[str, bool] = {}
        self._gated: list[nn.Parameter] | None = None
        self._block_parameters: dict[nn.Module, list[nn.Parameter]] = {}
        super().__init__(model, args, partner=predecessor, losses=losses, **kwargs)
        self.add_callback(_StepCallback(self))

    @property
    def predecessor(self) -> PreTrainedModel:
        """The frozen predecessor."""
        assert self.partner is not None
        return self.partner

    def join(self, model: PreTrainedModel) -> None:
        """Put the predecessor's blocks behind the successor's and freeze what the two share."""
        self.layers = self._attach(model)
        blocks, parameters = set(self.layers.parameters()), dict(model.named_parameters())
        self.shared = {n: p.requires_grad for n, p in parameters.items() if p not in blocks}
        self._gated = None
        if not self.args.unfreeze_after_replacement:
            for name in self.shared:
                parameters[name].requires_grad_(False)
        self._prepare_blocks(self.layers)
        self._announce(self.layers)
        super().join(model)
        self.predecessor.train(self.args.predecessor_dropout)

    def part(self, model: PreTrainedModel) -> None:
        """Leave the successor a plain model whose parameters can all be trained further."""
        if self.layers is not None and self.args.compile_blocks:
            for block in _blocks(self.layers):
                block._compiled_call_impl = None
        detach(model)
        parameters = dict(model.named_parameters())
        for name, required_grad in self.shared.items():
            parameters[name].requires_grad_(required_grad)
        self.layers, self.shared, self._gated = None, {}, None
        self._block_parameters = {}
        self.predecessor.eval()
        super().part(model)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Take the path of this optimizer step, the same for every micro-batch and process."""
        assert self.layers is not None
        replaced = draw_replaced(
            self.args.seed, self.state.global_step, self.replacing_rate(), len(self.layers)
        )
        self.layers.replaced = replaced
        self.record({"replaced_fraction": sum(replaced) / len(replaced)})
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and self.replacing_rate() < 1.0:
            # Before the norm is taken: what does not train yet is no part of it.
            for parameter in self.gated_parameters():
                parameter.grad = None
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the losses; every successor block has a gradient, zero if skipped."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and self.layers is not None:
            # One element is enough to put a parameter in the graph; its gradient is zeros. DDP
            # then needs no search for unused parameters, and an empty draw has a backward pass.
            skipped = self.skipped_parameters()
            if skipped:
                loss = loss + 0.0 * first_elements(skipped)
        return (loss, outputs) if return_outputs else loss

    def partner_outputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The predecessor's outputs without dropout, as the teacher of this step."""
        self.predecessor.eval()
        try:
            return super().partner_outputs(inputs)
        finally:
            self.predecessor.train(self.args.predecessor_dropout)

    def replacing_rate(self) -> float:
        """The probability in [0, 1] that a slot is replaced at this step."""
        return self.args.replacing_rate_at(self.progress)

    def scheduled_values(self) -> dict[str, float]:
        """The replacing rate, beside the temperature where there are losses."""
        return {**super().scheduled_values(), "replacing_rate": self.replacing_rate()}

    def skipped_parameters(self) -> list[nn.Parameter]:
        """The parameters of the successor's blocks that are not on the path of this step."""
        blocks = [] if self.layers is None else self.layers.skipped()
        return [p for block in blocks for p in self._parameters_of(block)]

    def _parameters_of(self, block: nn.Module) -> list[nn.Parameter]:
        if self.uses_fsdp:  # those of a gathered block are other ones than when it is sharded
            return list(block.parameters())
        if block not in self._block_parameters:
            self._block_parameters[block] = list(block.parameters())
        return self._block_parameters[block]

    def gated_parameters(self) -> list[nn.Parameter]:
        """Embeddings and head where they train once the rate is 1: they rest until then."""
        if self._gated is None:  # found once the run has begun, for FSDP makes other ones
            parameters = dict(self.student.named_parameters())
            self._gated = [parameters[n] for n in self.shared if parameters[n].requires_grad]
        return self._gated

    def _attach(self, model: PreTrainedModel) -> TheseusLayers:
        # Once: embeddings and head that have trained in a second stage are the successor's own.
        share = self._sharing is not model
        self._sharing = model
        sizes = parse_slot_sizes(self.args.slot_sizes)
        return attach(model, self.predecessor, sizes, self.stack, share_weights=share)

    def _prepare_blocks(self, layers: TheseusLayers) -> None:
        if self.args.gradient_checkpointing:
            given = dict(self.args.gradient_checkpointing_kwargs or {})  # type: ignore[arg-type]
            kwargs = {"use_reentrant": False, **given}
            enable = getattr(self.predecessor, "activation_checkpointing_enable", None)
            (enable or self.predecessor.gradient_checkpointing_enable)(
                {k: v for k, v in kwargs.items() if k not in ("every_n_layers", "offload")}
            )
        if self.args.compile_blocks:
            for block in _blocks(layers):
                block.compile()

    def _announce(self, layers: TheseusLayers) -> None:
        logger.info(
            "Theseus: slots of %s predecessor blocks; %s replacing rate from %g, 1 after %g%% of "
            "the optimizer steps.",
            [len(slot) for slot in layers.slots],
            self.args.replacing_schedule,
            self.args.initial_replacing_rate,
            100 * self.args.replacing_fraction,
        )

    def _map_slots(self, model: PreTrainedModel) -> None:
        """Let layer maps follow the cut: a successor block learns what it stands for."""
        theirs, ours = (len(find_layers(m, self.stack).layers) for m in (self.predecessor, model))
        sizes = resolve_slot_sizes(theirs, ours, parse_slot_sizes(self.args.slot_sizes))
        ends = [0, *accumulate(sizes)]
        for name, loss in self.losses.items():
            if isinstance(loss, MappedLoss):
                loss.slot_ends = ends[1:]
                loss.prepare(model.config, self.predecessor.config, self.task)
                loss.slot_ends = None  # another trainer that it is given to has no slots
                other = {i: j for i, j in loss.mapped.items() if ends[i] != j}
                if other:
                    logger.warning(
                        "The loss %s maps layers %s, where the slots end at %s: with nothing "
                        "replaced it is not 0, and pulls against the replacement.",
                        name,
                        other,
                        ends[1:],
                    )

    def _check_model(self, model: PreTrainedModel) -> None:
        super()._check_model(model)
        self._map_slots(model)
        self._attach(model)
        detach(model)

    def _check_arguments(self, args: CompressionTrainingArguments) -> None:
        super()._check_arguments(args)
        if args.ddp_find_unused_parameters:
            raise ValueError(UNUSED_PARAMETERS.format("The zero gradient of skipped blocks"))
        if isinstance(args, TheseusTrainingArguments) and args.max_steps > 0:
            args.check_last_rate(args.max_steps)
        if args.use_cache:
            raise ValueError(
                "use_cache=True keeps keys and values by the position of a block, which shifts "
                "with the sampled path. Leave it off for Theseus."
            )
        if (
            isinstance(args, TheseusTrainingArguments)
            and args.compile_blocks
            and any(loss.needs - {"logits"} for loss in self.losses.values())
        ):
            raise ValueError(
                "compile_blocks=True hides what happens inside a block, which a loss on its layers "
                "reads. Leave it off, or use losses on logits alone."
            )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Look for the best checkpoint only once the successor runs alone."""
        if self.replacing_rate() < 1.0:
            return self.preemption.stopping
        return super()._determine_best_metric(metrics, trial)


def _blocks(layers: TheseusLayers) -> list[nn.Module]:
    """The successor's, then the predecessor's."""
    return [*layers.children(), *chain.from_iterable(layers.slots)]


class _StepCallback(TrainerCallback):
    """Says what the ramp is in the paper's terms, and withholds gradients from the optimizer."""

    def __init__(self, trainer: TheseusTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.check_last_rate(state.max_steps)
        rate, name = self.trainer.replacing_rate(), "replacing_rate"
        before = next((entry[name] for entry in state.log_history[::-1] if name in entry), rate)
        if state.global_step and rate < before:
            logger.warning(
                "The resumed run has %d optimizer steps, and its ramp with them: the replacing "
                "rate falls from %g to %.3g, and what was replaced is mixed with the predecessor "
                "again. To train a finished successor further, fine-tune it instead.",
                state.max_steps,
                before,
                rate,
            )
        steps, base = args.replacing_fraction * state.max_steps, args.initial_replacing_rate
        if args.replacing_schedule == "linear":
            logger.info(
                "The ramp takes %.0f of %d optimizer steps: in the paper's terms b = %g, k = %.3g.",
                steps,
                state.max_steps,
                base,
                (1 - base) / steps,
            )

    def on_pre_optimizer_step(self, args: Any, *others: Any, **kwargs: Any) -> None:
        if args.skipped_gradients == "none":  # so that the optimizer leaves them, momentum included
            for parameter in self.trainer.skipped_parameters():
                parameter.grad = None
