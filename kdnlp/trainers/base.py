"""What every trainer here shares: a frozen partner, honest loss scales, and component logging."""

import copy
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate.utils import convert_to_fp32
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from kdnlp.arguments import CompressionTrainingArguments, DistillationTrainingArguments
from kdnlp.losses import DistillationLoss
from kdnlp.models.alignment import TEACHER_PREFIX, input_names, split_inputs
from kdnlp.models.heads import UNITS, as_items, count_items, task_kind, with_some_label
from kdnlp.models.precision import restore_forward, wrapped_forward
from kdnlp.trainers.intermediate import IntermediateOutputs
from kdnlp.trainers.output_dir import check_output_dir, remove_checkpoints

logger = logging.getLogger(__name__)

LOSS_MODULE = "distillation_losses"
"""The reserved name under which losses with parameters are registered on the student."""

UNUSED_PARAMETERS = (
    "{} reaches parameters outside the model's forward, and ddp_find_unused_parameters=True would "
    "count their gradients twice and stop at the first step. Leave it unset."
)

_HALF_PRECISION = {torch.float16, torch.bfloat16}

TASK = "task"
"""The name of the loss on the labels."""


class CompressionTrainer(Trainer):
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
        ValueError: for weights that name no loss, several GPUs in one process, or a strategy that
            shards the model.
    """

    args: CompressionTrainingArguments
    arguments_class: ClassVar[type[CompressionTrainingArguments]] = CompressionTrainingArguments
    method = "fine-tuning"
    citation = ""
    stack: str | None = None

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
        self.intermediate: IntermediateOutputs | None = None
        self.task = ""
        self.model_card: str | None = None
        self._recorded: dict[str, tuple[torch.Tensor | float, int]] = {}
        self._owns_output_dir = False
        self._holds_other_run = False
        self._prepared: tuple[nn.Module, dict[str, Any]] | None = None
        self._initial_losses: dict[str, dict[str, Any]] = {}
        self.is_in_train = False  # read by call_model_init, which Trainer's constructor calls
        args = self._checked(args)
        # The stock default searches for unused parameters, and would count those that a loss
        # reaches outside the model's forward twice.
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        super().__init__(model=model, args=args, **kwargs)
        # Opting out keeps the loss a plain mean over the batch, whatever the number of processes.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"{type(self).__name__} runs under DDP; FSDP and DeepSpeed are not supported yet: "
                "the frozen partner would not be sharded with the model. Use a DDP configuration."
            )
        if self.partner is not None:
            self.partner.requires_grad_(False)
            nn.Module.to(self.partner.eval(), self.args.device)
        self._check_model(self.student)
        # A loss may make its parameters when it sees the models.
        self._initial_losses = {n: copy.deepcopy(x.state_dict()) for n, x in self.losses.items()}

    @property
    def student(self) -> PreTrainedModel:
        """The model that is trained and saved, without any wrapper."""
        return cast(PreTrainedModel, self.model)

    # The model during training: what subclasses add to it is taken off again afterwards.

    def join(self, model: PreTrainedModel) -> None:
        """Register on `model` what trains beside it; `part` takes it off again."""
        self._in_training_precision(model)
        if self.partner is not None:
            self.partner.eval()
        self.intermediate = IntermediateOutputs(
            self.losses.values(), model, self.partner, self.stack
        )
        trainable = {n: loss for n, loss in self.losses.items() if list(loss.parameters())}
        if trainable:
            model.add_module(LOSS_MODULE, nn.ModuleDict(trainable).to(model.device))

    def part(self, model: PreTrainedModel) -> None:
        """Leave `model` a plain transformers model, in its own precision."""
        if wrapped_forward(model):
            self._prepared = model, wrapped_forward(model)
        restore_forward(model, {})
        if self.intermediate is not None:
            self.intermediate.remove()
            self.intermediate = None
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
            for name, loss in self.losses.items():
                loss.load_state_dict(self._initial_losses[name])
            self.join(model)
        return model

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; see `transformers.Trainer.train`.

        Raises:
            ValueError: if an argument changed since construction is out of range, or
                `output_dir` holds another run and neither resuming nor overwriting was asked for.
        """
        self._check_arguments(self.args)
        if not (resume_from_checkpoint or self._owns_output_dir or self.args.overwrite_output_dir):
            check_output_dir(str(self.args.output_dir))
        overwrites = self.args.overwrite_output_dir and not resume_from_checkpoint
        self._holds_other_run = overwrites and not self._owns_output_dir
        self._owns_output_dir = True
        self._recorded = {}
        try:
            if self.model_init is None:
                self.join(self.student)  # type: ignore[unreachable]
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.part(self.student)

    def _hp_search_setup(self, trial: Any) -> None:
        """Check a trial's arguments, and join its model again: they are set after it was built."""
        super()._hp_search_setup(trial)
        if self.model_init is not None:
            self._check_arguments(self.args)
            self.part(self.student)
            self.join(self.student)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Take no step beyond the last one: a run that is resumed at its end is done."""
        if self._holds_other_run:
            # Only now: nothing can refuse this run any more.
            self._holds_other_run = False
            if self.is_world_process_zero():
                remove_checkpoints(str(self.args.output_dir))
            self.accelerator.wait_for_everyone()
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a plain model or none: checkpoints hold the losses' parameters too."""
        if hasattr(self.student, LOSS_MODULE):
            logger.warning("A loss with parameters trains along; the model is pushed at the end.")
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a plain model; checkpoints also hold the losses' parameters, to resume from."""
        modules = self.student._modules
        losses = None if _internal_call else modules.pop(LOSS_MODULE, None)
        try:
            super().save_model(output_dir, _internal_call=_internal_call)
        finally:
            if losses is not None:
                modules[LOSS_MODULE] = losses

    # The loss.

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of an optimizer step, and what one of each of `UNITS` weighs in it."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, torch.zeros(len(UNITS), device=device)
        counts = torch.stack([count_items(split_inputs(b)[0], self.task) for b in samples])
        totals = self.accelerator.reduce(counts.sum(0).to(device), reduction="sum")
        # The backward pass averages over micro-batches and processes whatever they hold.
        return samples, len(samples) * self.args.world_size / totals.clamp(min=1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the losses in training, the task loss alone in evaluation.

        Each is a mean over the valid items of the whole optimizer step, however they lie in
        micro-batches and on processes: `num_items_in_batch` has what one of each of `UNITS` weighs.
        """
        ours, _ = split_inputs(inputs)
        if not model.training:
            return super().compute_loss(model, ours, return_outputs)
        components, outputs = self._components(model, inputs)
        if num_items_in_batch is not None:
            shares = count_items(ours, self.task) * num_items_in_batch
            for name, component in components.items():
                unit = UNITS[1] if name == TASK else self.losses[name].unit
                components[name] = component * shares[UNITS.index(unit)].to(component)
        weights = self.loss_weights()
        total = torch.stack([weights[name] * loss for name, loss in components.items()]).sum()
        # In half precision the sum of a few hundred values would stop growing.
        self.record({f"loss_{name}": loss.detach().float() for name, loss in components.items()})
        return (total, outputs) if return_outputs else total

    def _components(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[dict[str, torch.Tensor], Any]:
        """The losses by name, each a mean over this micro-batch, and the model's outputs."""
        ours, _ = split_inputs(inputs)
        components = {}
        (task_loss, outputs), layers = self._forward(model, ours)
        if task_loss is not None:
            components[TASK] = task_loss
        if not self.losses:
            return components, outputs
        student, batch = as_items({**outputs, **layers}, ours, self.task)
        teacher: dict[str, Any] = {}
        if any(loss.needs_teacher for loss in self.losses.values()):
            teacher, _ = as_items(self.partner_outputs(inputs), ours, self.task)
        for name, loss in self.losses.items():
            loss.temperature = self.temperature()
            components[name] = loss(student, teacher, batch)
        return components, outputs

    def _forward(self, model: nn.Module, ours: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The loss on the labels, if there are any, with the outputs; and the layers kept."""
        watched = self._watched()
        if any(name in ours for name in self.label_names):
            # A copy: label smoothing takes the labels out of the batch it is given.
            batch = with_some_label(ours, self.task)
            loss = super().compute_loss
            return watched.of_student(lambda: loss(model, batch, True))
        if self.loss_weights().get(TASK):
            raise ValueError(
                f"The batch has none of the label columns {self.label_names}, but the task loss "
                f"weighs {self.loss_weights()[TASK]}. Give the data labels, or set "
                "loss_weights without task to train on the other losses alone."
            )
        return watched.of_student(lambda: (None, model(**ours)))

    def _watched(self) -> IntermediateOutputs:
        """What keeps the layers that losses read; of no layers, outside a run."""
        return self.intermediate or IntermediateOutputs((), self.student, None)

    @torch.no_grad()
    def partner_outputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the frozen partner says about the batch, with the layers that the losses read."""
        assert self.partner is not None
        partner, (ours, theirs) = self.partner, split_inputs(inputs)
        given = theirs if "input_ids" in theirs else {**ours, **theirs}
        known = {k: v for k, v in given.items() if k in self.partner_inputs}
        for name in self.label_names:
            known.pop(name, None)
        # Preparing the partner would wrap its forward for good; it is the caller's model.
        with self.accelerator.autocast():
            outputs, layers = self._watched().of_teacher(lambda: partner(**known))
        return {**convert_to_fp32(outputs), **layers}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate on the student's inputs alone."""
        return super().prediction_step(model, split_inputs(inputs)[0], *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the teacher's columns of the training data, besides those that the model names."""
        known = self._signature_columns
        super()._set_signature_columns_if_needed()
        if known is None:
            columns = getattr(self.train_dataset, "column_names", None) or []
            teachers = [name for name in columns if name.startswith(TEACHER_PREFIX)]
            self._signature_columns = [*(self._signature_columns or []), *teachers]  # type: ignore[assignment]

    @property
    def progress(self) -> float:
        """The share of the optimizer steps that are done, in [0, 1]."""
        return min(1.0, self.state.global_step / max(1, self.state.max_steps))

    def temperature(self) -> float:
        """The temperature of this step."""
        if isinstance(self.args, DistillationTrainingArguments):
            return self.args.temperature_at(self.progress)
        return 1.0

    def loss_weights(self) -> dict[str, float]:
        """The weight of every loss at this step."""
        names = [TASK, *self.losses]
        if isinstance(self.args, DistillationTrainingArguments):
            return self.args.loss_weights_at(self.progress, names)
        return dict.fromkeys(names, 1.0 / len(names))

    # Logging.

    def record(self, values: Mapping[str, torch.Tensor | float]) -> None:
        """Note values of this batch; their means since the last log appear in the next one."""
        for name, value in values.items():
            previous, count = self._recorded.get(name, (0.0, 0))
            self._recorded[name] = (previous + value, count + 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the recorded means over all processes, and the scheduled values of this step."""
        if "loss" in logs and self._recorded:
            names = sorted(self._recorded)
            means = [total / count for total, count in (self._recorded[n] for n in names)]
            stacked = torch.stack([torch.as_tensor(m, device=self.args.device) for m in means])
            stacked = self.accelerator.reduce(stacked, reduction="mean")
            logs.update(zip(names, stacked.tolist(), strict=True))
            logs.update(self.scheduled_values())
            self._recorded = {}
        super().log(logs, start_time)

    def scheduled_values(self) -> dict[str, float]:
        """The values that follow a schedule, for the log."""
        return {"temperature": self.temperature()} if self.losses else {}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write `model_card` where one was set, else transformers' card with our tags."""
        if self.model_card is None:
            kwargs.setdefault("tags", ["kdnlp", self.method])
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            readme = Path(str(self.args.output_dir), "README.md")
            readme.write_text(self.model_card, encoding="utf-8")

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
        _check_processes(args)
        self._check_arguments(args)
        return args

    def _check_arguments(self, args: CompressionTrainingArguments) -> None:
        args.check()
        if args.ddp_find_unused_parameters and any(
            list(loss.parameters()) for loss in self.losses.values()
        ):
            raise ValueError(UNUSED_PARAMETERS.format("A loss with parameters"))
        if isinstance(args, DistillationTrainingArguments):
            args.check_loss_names([TASK, *self.losses])

    def _check_model(self, model: PreTrainedModel) -> None:
        half = {p.dtype for p in model.parameters() if p.requires_grad} & _HALF_PRECISION
        if half:
            logger.warning(
                "The trained model's weights are %s: most updates are smaller than its rounding, "
                "and are lost. Load it with dtype=torch.float32, and use bf16=True for speed.",
                ", ".join(map(str, half)),
            )
        self.task = task_kind(model)
        theirs = None if self.partner is None else self.partner.config
        for loss in self.losses.values():
            loss.prepare(model.config, theirs, self.task)
        # What cannot be read is refused now, not when training starts.
        IntermediateOutputs(self.losses.values(), model, self.partner, self.stack).remove()


def _named_losses(losses: Mapping[str, DistillationLoss] | None) -> dict[str, DistillationLoss]:
    for name, loss in (losses or {}).items():
        if name == TASK or not isinstance(loss, DistillationLoss):
            raise ValueError(
                f"losses must map names other than {TASK!r} to DistillationLoss objects, got "
                f"{name!r}: {type(loss).__name__}. {TASK!r} is the loss on the labels."
            )
    return dict(losses or {})


def _check_processes(args: CompressionTrainingArguments) -> None:
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs and would train with DataParallel, which copies "
            "the model without its frozen partner. Start one process per GPU: "
            f"accelerate launch --num_processes {args.n_gpu} ..., or set CUDA_VISIBLE_DEVICES."
        )
