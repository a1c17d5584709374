"""What every trainer here shares: the life of a run, from its checks to a plain saved model."""

import copy
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from kdnlp.arguments import CompressionTrainingArguments, DistillationTrainingArguments
from kdnlp.arguments.values import checkpoints_reentrantly
from kdnlp.losses import DistillationLoss
from kdnlp.losses.balance import BALANCERS, GradientNormBalancer
from kdnlp.models.alignment import input_names
from kdnlp.models.capture import hooks_noticed
from kdnlp.models.heads import check_named_outputs, task_kind
from kdnlp.models.precision import restore_forward, wrapped_forward
from kdnlp.trainers.cached import check_rows, use_cache
from kdnlp.trainers.intermediate import IntermediateOutputs, layers_read
from kdnlp.trainers.learned_losses import add_learned
from kdnlp.trainers.placement import (
    check_precision,
    check_processes,
    place_partner,
    warn_of_slow_bfloat16,
)
from kdnlp.trainers.publishing import PublishingTrainer
from kdnlp.trainers.sharding import check_strategy, sharded
from kdnlp.trainers.step import TASK, lowest_trained
from kdnlp.trainers.teacher_run import TeacherRun
from kdnlp.trainers.training_data import check_training_data
from kdnlp.trainers.unpadding import Unpadding

logger = logging.getLogger(__name__)

LOSS_MODULE = "distillation_losses"
"""The reserved name under which losses with parameters are registered on the student."""

UNUSED_PARAMETERS = (
    "{} reaches parameters outside the model's forward, and ddp_find_unused_parameters=True would "
    "count their gradients twice and stop at the first step. Leave it unset."
)

BALANCER = "loss_balancer"
"""The name beside the losses of what balances them."""

REENTRANT = (
    "use_reentrant=True runs the blocks without a graph first, and what a loss reads inside them "
    "would teach the student nothing. Set activation_checkpointing_kwargs={'use_reentrant': False}."
)

_NOT_SMOOTHED = {"regression", "question_answering"}  # of several labels, the stock one warns

_HALF_PRECISION = {torch.float16, torch.bfloat16}


class CompressionTrainer(PublishingTrainer):
    """A `Trainer` whose loss is a weighted sum of named parts, one of them on the labels.

    Without a partner and losses it is plain fine-tuning, with the loss at the scale that the
    arguments say: the same for batch 8, for 2 x 4 accumulated, and for two processes of 4.

    Args:
        model: the model to train; leave it out with `model_init`.
        args: the training arguments.
        partner: the frozen teacher or predecessor. It is moved to the run's device, kept out of
            the trained model, and its parameters no longer require gradients.
        losses: losses by name, beside `task`.
        **kwargs: everything else that `Trainer` takes.

    Raises:
        ValueError: for weights that name no loss, several GPUs in one process, or a strategy other
            than DDP and FSDP2.
    """

    args: CompressionTrainingArguments
    arguments_class: ClassVar[type[CompressionTrainingArguments]] = CompressionTrainingArguments
    method = "fine-tuning"
    citation = ""

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: CompressionTrainingArguments | None = None,
        *,
        partner: PreTrainedModel | None = None,
        losses: Mapping[str, DistillationLoss] | None = None,
        **kwargs: Any,
    ) -> None:
        self.losses = _named_losses(losses)
        self.partner = partner
        self.partner_inputs = input_names(partner) if partner is not None else set()
        self.intermediate = None
        self.cache = None
        self._cached_wanted: dict[str, Any] = {}
        self._partner_config = None if partner is None else partner.config
        self.cached_layers = getattr(self._partner_config, "num_hidden_layers", 0)
        self.task = ""
        self.model_card: str | None = None
        self._recorded = {}
        self.balancer = None
        self.unpadding = Unpadding()
        self.teacher_run = TeacherRun()
        self._prepared: tuple[nn.Module, dict[str, Any]] | None = None
        self._initial_losses: dict[str, dict[str, Any]] = {}
        self.is_in_train = False  # read by call_model_init, which Trainer's constructor calls
        args = self._checked(args)
        kind = getattr(args, "loss_balancing", "none")
        self.balancer = BALANCERS[kind]([TASK, *self.losses]) if kind in BALANCERS else None
        # The stock default searches for unused parameters, and would count those that a loss
        # reaches outside the model's forward twice.
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        super().__init__(model=model, args=args, **kwargs)
        # Opting out keeps the loss a plain mean over the batch, whatever the number of processes.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        check_strategy(self)
        check_precision(self.accelerator.mixed_precision, args.device)
        self.uses_fsdp, self.is_fsdp_enabled = self.is_fsdp_enabled, False  # on while it trains
        if self.partner is not None:
            shard = self.uses_fsdp and getattr(args, "shard_teacher", False)
            self.partner = place_partner(self.partner, self.student, args.device, shard)
        self._check_model(self.student)
        # A loss may make its parameters when it sees the models.
        self._initial_losses = {
            name: copy.deepcopy(module.state_dict())
            for name, module in self._loss_modules().items()
        }

    # The model during training: what subclasses add to it is taken off again afterwards.

    def join(self, model: PreTrainedModel) -> None:
        """Register on `model` what trains beside it; `part` takes it off again."""
        check_rows(self)
        self._in_training_precision(model)
        if self.partner is not None:
            self.partner.eval()
        self.teacher_run.start(self.args, self.partner)
        self.intermediate = self._keep_layers(model)
        self.unpadding.start(self.args, self.teacher_run.model(self.partner), self.stack)
        if self.cache is None and getattr(self.args, "cache_teacher_outputs", False):
            self._use_cache()
        self.unpadding.start(self.args, model, self.stack)
        trainable = {n: m for n, m in self._loss_modules().items() if list(m.parameters())}
        if trainable:
            model.add_module(LOSS_MODULE, nn.ModuleDict(trainable).to(model.device))
        self._model_size = model.num_parameters(exclude_embeddings=True)

    def create_optimizer(self, model: Any = None) -> Any:
        """The stock optimizer or the caller's, with whatever the losses learn in it too.

        Raises:
            ValueError: if the caller's has a schedule already, which knows no further parameters.
        """
        optimizer = super().create_optimizer(model)
        made_for_it = self.lr_scheduler is not None and not self._created_lr_scheduler
        add_learned(optimizer, self.losses.values(), self.balancer, may_grow=not made_for_it)
        return optimizer

    def _check_cached_layers(self) -> None:
        """Refuse a student that reads other layers of the teacher than were cached."""
        wanted = layers_read([x for x in self.losses.values() if x.needs_teacher], 1)
        if wanted != self._cached_wanted:
            raise ValueError(
                f"The losses read the teacher's layers {wanted} for this student, but "
                f"{self._cached_wanted} were cached for an earlier one, and the teacher is gone. "
                "Search over students of one depth, or without cache_teacher_outputs."
            )

    def _keep_layers(self, model: PreTrainedModel) -> IntermediateOutputs:
        losses = list(self.losses.values())
        if self.cache is None:
            teacher = self.teacher_run.model(self.partner)
            return IntermediateOutputs(losses, model, teacher, self.stack)
        return IntermediateOutputs(losses, model, None, self.stack, cached=True)

    def _use_cache(self) -> None:
        """Read the partner's outputs from disk from now on."""
        if any(loss.needs_teacher for loss in self.losses.values()):
            self.cache = use_cache(self)
            self._note_cached_layers()

    def _note_cached_layers(self) -> None:
        self._cached_wanted = layers_read([x for x in self.losses.values() if x.needs_teacher], 1)

    def _loss_modules(self) -> dict[str, nn.Module]:
        """The losses, and what balances them, by the names under which a checkpoint holds them."""
        balancer = {} if self.balancer is None else {BALANCER: self.balancer}
        return {**self.losses, **balancer}

    def part(self, model: PreTrainedModel) -> None:
        """Leave `model` a plain transformers model, in its own precision."""
        if wrapped_forward(model):
            self._prepared = model, wrapped_forward(model)
        restore_forward(model, {})
        self._model_size = 0
        self.unpadding.stop()
        if self.intermediate is not None:
            self.intermediate.remove()
            self.intermediate = None
        self.teacher_run.stop()
        if hasattr(model, LOSS_MODULE):
            delattr(model, LOSS_MODULE)

    def _in_training_precision(self, model: nn.Module) -> bool:
        """Put back what `part` took off, which accelerate would not put on a model twice."""
        if self._prepared is None or self._prepared[0] is not model or wrapped_forward(model):
            return False
        restore_forward(model, self._prepared[1])
        return True

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate in the precision of training, after it too."""
        put_back = self._in_training_precision(self.student)
        try:
            with self.unpadding.during(self.args, self.student, self.stack):
                return super().evaluation_loop(*args, **kwargs)
        finally:
            if put_back:
                restore_forward(self.student, {})

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """Build the model of a trial and check it as the constructor's is checked."""
        model = cast(PreTrainedModel, super().call_model_init(trial))
        if self.is_in_train:
            nn.Module.to(model, self.args.device)
            self._check_model(model)
            self.position_limits = check_training_data(self, model)
            for name, module in self._loss_modules().items():
                _reset(module, self._initial_losses[name])
            self.join(model)
        return model

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; see `transformers.Trainer.train`.

        SIGTERM ends the run after the step that it is in, with a checkpoint; where this runs in
        the main thread.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or `True`, `"last"` or `"last_whole"`;
                see `kdnlp.checkpoints.find_checkpoint`.
            trial: the trial of a hyperparameter search.
            ignore_keys_for_eval: outputs that evaluations leave out.

        Raises:
            Preempted: after SIGTERM. It is a `SystemExit` with status 143 and names the checkpoint.
            ValueError: if an argument changed since construction is out of range, `output_dir`
                holds another run and neither resuming nor overwriting was asked for, another
                process trains there, the checkpoint is damaged or holds more than numbers, or the
                rows cannot be learned from.
            OSError: if nothing can be written to `output_dir`, or the disk is full.
        """
        self._check_arguments(self.args)
        if self.args.should_log:
            warn_of_slow_bfloat16(self.accelerator.mixed_precision, self.args.device)
        if self.model_init is None:
            self.position_limits = check_training_data(self, self.student)  # type: ignore[unreachable]
        self.model_card = None  # one of before is of other weights
        self._signature_columns = None  # may be those of an earlier dataset
        self._recorded = {}
        compiling = hooks_noticed() if self.args.compiles else nullcontext()
        with self.owned(resume_from_checkpoint) as checkpoint, self._trained_model(), compiling:
            try:
                if self.model_init is None:
                    self.join(self.student)  # type: ignore[unreachable]
                with self.preemption.listening(self.args.world_size):
                    return super().train(checkpoint, trial, ignore_keys_for_eval)
            finally:
                self.part(self.student)

    def _trained_model(self) -> AbstractContextManager[None]:
        """The model itself, or under FSDP a copy that is sharded."""
        if not self.uses_fsdp:
            return nullcontext()
        whole: PreTrainedModel = self.student
        self.model = self.model_wrapped = copy.deepcopy(whole)
        return sharded(self, whole)

    def _hp_search_setup(self, trial: Any) -> None:
        """Check a trial's arguments, and join its model again: they are set after it was built."""
        super()._hp_search_setup(trial)
        if self.model_init is not None:
            self._check_arguments(self.args)
            self.part(self.student)
            self.join(self.student)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a plain model or none: checkpoints hold the losses' parameters too."""
        if hasattr(self.student, LOSS_MODULE):
            logger.warning("A loss with parameters trains along; the model is pushed at the end.")
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a plain model; checkpoints also hold the losses' parameters, to resume from."""
        modules = self.student._modules
        losses = modules.pop(LOSS_MODULE, None) if self._partial is None else None
        try:
            super().save_model(output_dir, _internal_call=_internal_call)
        finally:
            if losses is not None:
                modules[LOSS_MODULE] = losses

    # Checks, some of which subclasses extend.

    def _checked(self, args: Any) -> CompressionTrainingArguments:
        if not isinstance(args, self.arguments_class):
            raise TypeError(
                f"{type(self).__name__} needs its training arguments, "
                f"{self.arguments_class.__name__}, got {type(args).__name__}. Its settings are "
                f"fields of them: {type(self).__name__}(..., args)."
            )
        taught = [name for name, loss in self.losses.items() if loss.needs_teacher]
        if taught and self.partner is None:
            raise ValueError(
                f"The losses {', '.join(taught)} compare the model with a partner, got none. "
                "Pass a partner, or use DistillationTrainer."
            )
        check_processes(args)
        self._check_arguments(args)
        return args

    def _check_arguments(self, args: CompressionTrainingArguments) -> None:
        args.check()
        if checkpoints_reentrantly(args) and (
            self.balancer is not None or any(x.needs - {"logits"} for x in self.losses.values())
        ):
            raise ValueError(REENTRANT)
        if args.ddp_find_unused_parameters and any(
            list(module.parameters()) for module in self._loss_modules().values()
        ):
            raise ValueError(UNUSED_PARAMETERS.format("A loss with parameters"))
        if isinstance(args, DistillationTrainingArguments):
            args.check_loss_names([TASK, *self.losses])
            if not self.losses:
                args.check_unread()

    def _check_model(self, model: PreTrainedModel) -> None:
        half = {p.dtype for p in model.parameters() if p.requires_grad} & _HALF_PRECISION
        if half:
            logger.warning(
                "The trained model's weights are %s: most updates are smaller than its rounding, "
                "and are lost. Load it with dtype=torch.float32, and use bf16=True for speed.",
                ", ".join(map(str, half)),
            )
        check_named_outputs(model, self.partner)
        features = getattr(self.train_dataset, "features", None) or {}
        self.task = task_kind(model, features.get("labels"))
        if self.args.label_smoothing_factor and self.task in _NOT_SMOOTHED:
            raise ValueError(
                f"label_smoothing_factor must be 0 for {self.task}, got "
                f"{self.args.label_smoothing_factor}. It spreads a label over the classes, which "
                "these labels are not of: it would spoil the loss, or not be read. Leave it out."
            )
        for loss in self.losses.values():
            loss.prepare(model.config, self._partner_config, self.task)
        # What cannot be read is refused now, not when training starts.
        self.unpadding.check(self.args, (model, self.partner), self.losses, self.stack)
        self.teacher_run.check(self.args, self.partner, self.losses)
        self._keep_layers(model).remove()
        if self.cache is not None:
            self._check_cached_layers()
        if isinstance(self.balancer, GradientNormBalancer):
            lowest_trained(model)


def _named_losses(losses: Mapping[str, DistillationLoss] | None) -> dict[str, DistillationLoss]:
    for name, loss in (losses or {}).items():
        if name in (TASK, BALANCER) or not isinstance(loss, DistillationLoss):
            raise ValueError(
                f"losses must map names other than {TASK!r} and {BALANCER!r} to DistillationLoss "
                f"objects, got {name!r}: {type(loss).__name__}. {TASK!r} is the loss on the labels."
            )
    return dict(losses or {})


def _reset(module: nn.Module, state: dict[str, Any]) -> None:
    """Start a loss afresh: from its first state, or, for a student of another shape, anew."""
    now = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if now == {name: tensor.shape for name, tensor in state.items()}:
        module.load_state_dict(state)
    else:
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.reset_parameters()
