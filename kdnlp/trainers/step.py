"""One optimizer step: named losses, weighed and added up at the scale that the arguments say."""

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import nn
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import PreTrainedModel, Trainer

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.data.collation import KnownColumnsCollator
from kdnlp.data.columns import column_names
from kdnlp.data.length_grouping import LengthGroupedSampler, row_lengths
from kdnlp.losses.answers import answer_cross_entropy
from kdnlp.losses.balance import GradientNormBalancer, LossBalancer
from kdnlp.models.alignment import TEACHER_PREFIX, split_inputs
from kdnlp.models.cache import ROW_COLUMN, TEACHER_OUTPUTS, TeacherCache
from kdnlp.models.capture import LayerOutputs
from kdnlp.models.heads import UNITS, as_items, count_items, with_some_label
from kdnlp.models.layers import find_blocks
from kdnlp.trainers.guarded import TASK, GuardedTrainer
from kdnlp.trainers.intermediate import IntermediateOutputs
from kdnlp.trainers.preemption import Preemption
from kdnlp.trainers.stream import StreamPlace
from kdnlp.trainers.teacher_run import TeacherRun

logger = logging.getLogger(__name__)

CACHED = TEACHER_OUTPUTS.removeprefix(TEACHER_PREFIX)

_TEXT = ("string", "large_string")


class WeightedLossTrainer(GuardedTrainer):
    """A `Trainer` whose loss is the weighted sum of losses by name; `CompressionTrainer` runs it.

    Attributes:
        balancer: what multiplies their weights from step to step, if anything.
        partner: the frozen model that they compare with, if any.
        partner_inputs: the inputs that its forward names.
        teacher_run: how it computes, where that is not as the trained model does.
        stack: `"encoder"` or `"decoder"`, for models that have both.
        cache: the partner's outputs on disk, where they are read instead of computed.
        cached_layers: how many layers the partner has.
        intermediate: what keeps the layers that the losses read, while a run lasts.
        preemption: what stops the run, on all processes at once, where one is told to.
        place: where a run is in a stream; `None` where the data have a length.
    """

    stack: str | None = None
    balancer: LossBalancer | None
    partner: PreTrainedModel | None
    partner_inputs: set[str]
    teacher_run: TeacherRun
    intermediate: IntermediateOutputs | None
    cache: TeacherCache | None
    cached_layers: int
    preemption: Preemption
    place: StreamPlace | None = None
    _grouped: LengthGroupedSampler | None = None
    _model_size = 0
    _columns: tuple[Any, list[str]] | None = None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of an optimizer step, and what one of each of `UNITS` weighs in it.

        There are none where a stream ends before they are enough: the loop would add their gradient
        to the next pass's first step.
        """
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.place is not None:
            if 0 < len(samples) < num_batches:
                self._leave_out(len(samples), num_batches)
                samples = []
            self.place.take(bool(samples))
        if not samples:
            return samples, torch.zeros(len(UNITS), device=device)
        self.finite.begin_step(self.state.global_step)
        samples = [self.with_sound_labels(batch, i) for i, batch in enumerate(samples)]
        counts = torch.stack([count_items(split_inputs(b)[0], self.task) for b in samples])
        counts = torch.cat([counts.sum(0).to(device), self.finite.flag()])
        shared = self.preemption.beside(counts)
        totals = self.preemption.agreed(self.accelerator.reduce(shared, reduction="sum"))
        if self.finite.reads_steps:
            self.finite.heed(totals[-1])
        # The backward pass averages over micro-batches and processes whatever they hold.
        return samples, len(samples) * self.args.world_size / totals[:-1].clamp(min=1)

    def _leave_out(self, found: int, expected: int) -> None:
        """Warn of the end of a stream that makes no whole step; a stream without one is refused."""
        if not self.state.global_step:
            raise ValueError(
                f"Expected at least the {expected} micro-batches of an optimizer step "
                f"(gradient_accumulation_steps), got {found} in the whole stream. Nothing would be "
                "trained. Use a smaller batch, fewer accumulation steps, or more rows."
            )
        logger.warning(
            "The last %d micro-batches of the stream are fewer than gradient_accumulation_steps=%d "
            "and are left out of this pass. Shuffle it, so that they are others in every pass.",
            found,
            expected,
        )

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
            # Counted first: label smoothing takes the labels out of the batch it is given.
            counts = count_items(ours, self.task)[UNITS.index("items")] > 0
            loss, outputs = self._task_loss(model, ours)
            # NaN, which the mean leaves out, as the models' own losses are over nothing.
            loss = loss.masked_fill(~counts, torch.nan)
            self._evaluates_badly = self._evaluates_badly | (counts & ~loss.isfinite().all())
            return (loss, outputs) if return_outputs else loss
        self.batch_shape = {n: tuple(v.shape) for n, v in inputs.items() if hasattr(v, "shape")}
        components, outputs, teacher = self._components(model, inputs)
        self.finite.watch_losses(
            components, first_logits(outputs), teacher.get("logits"), inputs.get(ROW_COLUMN)
        )
        if num_items_in_batch is not None:
            shares = count_items(ours, self.task) * num_items_in_batch
            for name, component in components.items():
                unit = UNITS[1] if name == TASK else self.losses[name].unit
                components[name] = component * shares[UNITS.index(unit)].to(component)
        total = self._weighted_sum(components)
        if TASK not in components and not any("logits" in x.needs for x in self.losses.values()):
            # Head and upper blocks are in the graph all the same, as DDP asks, and learn nothing.
            total = total + 0.0 * first_logits(outputs).flatten()[0]
        # In half precision the sum of a few hundred values would stop growing.
        self.record({f"loss_{name}": loss.detach().float() for name, loss in components.items()})
        if self.compute_loss_func is not None and not hasattr(Trainer, "loss_is_scaled_for_ga"):
            # transformers 5.17 cannot be told that such a loss is a mean over the micro-batch.
            total = total / self.current_gradient_accumulation_steps
        return (total, outputs) if return_outputs else total

    def _weighted_sum(self, components: Mapping[str, torch.Tensor]) -> torch.Tensor:
        weights = self.loss_weights()
        if self.balancer is None:
            return torch.stack([weights[name] * loss for name, loss in components.items()]).sum()
        reference: list[nn.Parameter] = []
        share = 1 / self.current_gradient_accumulation_steps
        scale: torch.Tensor | float = share
        if isinstance(self.balancer, GradientNormBalancer):
            reference = lowest_trained(self.student)
            if self.accelerator.scaler is not None:  # whose own number would have to be waited for
                scale = self.accelerator.scaler.scale(
                    torch.full((), share, device=self.args.device)
                )
        mean = partial(self.accelerator.reduce, reduction="mean")
        total, factors = self.balancer(components, weights, reference, mean, scale)
        self.record({f"factor_{name}": factor.float() for name, factor in factors.items()})
        return total

    def _components(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[dict[str, torch.Tensor], Any, dict[str, Any]]:
        """The losses by name, each a mean over this micro-batch, and both models' outputs."""
        ours, _ = split_inputs(inputs)
        components = {}
        (task_loss, outputs), layers = self._forward(model, ours)
        if task_loss is not None:
            components[TASK] = task_loss
        if not self.losses:
            return components, outputs, {}
        self._check_labels(ours)
        student, batch = as_items({**outputs, **layers}, ours, self.task)
        teacher: dict[str, Any] = {}
        if any(loss.needs_teacher for loss in self.losses.values()):
            teacher, _ = as_items(self.partner_outputs(inputs), ours, self.task)
        for name, loss in self.losses.items():
            loss.temperature = self.temperature()
            components[name] = loss(student, teacher, batch)
        return components, outputs, teacher

    def _check_labels(self, batch: Mapping[str, Any]) -> None:
        labels = batch.get("labels")
        real = labels is not None and labels.is_floating_point()
        if real and self.task == "single_label_classification":
            raise ValueError(
                "Expected class ids as labels, got real numbers, and the model's configuration "
                "does not say what they are for. The losses would take a softmax over labels that "
                "do not exclude each other. Set config.problem_type to "
                "'multi_label_classification', or cast the labels to integers."
            )

    def _forward(self, model: nn.Module, ours: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The loss on the labels, if there are any, with the outputs; and the layers kept."""
        watched = self._watched()
        if any(name in ours for name in self.label_names):
            # A copy: label smoothing takes the labels out of the batch it is given.
            batch = with_some_label(ours, self.task)
            return watched.of_student(lambda: self._task_loss(model, batch))
        if self.loss_weights().get(TASK):
            raise ValueError(
                f"The batch has none of the label columns {self.label_names}, but the task loss "
                f"weighs {self.loss_weights()[TASK]}. Give the data labels, or set "
                "loss_weights without task to train on the other losses alone."
            )
        return watched.of_student(lambda: (None, model(**ours)))

    def _task_loss(self, model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """The loss on the labels, a mean over this batch's items, and the model's outputs."""
        loss, outputs = super().compute_loss(model, batch, True)
        if self.task == "question_answering" and self.compute_loss_func is None:
            items, batch = as_items(outputs, batch, self.task)
            loss = answer_cross_entropy(items["logits"], batch["labels"], batch["item_mask"])
        return loss, outputs

    def _watched(self) -> IntermediateOutputs:
        """What keeps the layers that losses read; of no layers, outside a run."""
        return self.intermediate or IntermediateOutputs((), self.student, None)

    @torch.no_grad()
    def partner_outputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the frozen partner says about the batch, with the layers that the losses read."""
        ours, theirs = split_inputs(inputs)
        if self.cache is not None and CACHED in theirs:
            depth, outputs = self.cached_layers, self.cache.dense(theirs[CACHED])
            return {
                n: LayerOutputs(depth, v) if isinstance(v, dict) else v for n, v in outputs.items()
            }
        partner = self.partner
        assert partner is not None
        given = theirs if "input_ids" in theirs else {**ours, **theirs}
        known = {k: v for k, v in given.items() if k in self.partner_inputs}
        if self.task != "seq2seq_lm":  # whose labels are also what the decoder reads
            known = {k: v for k, v in known.items() if k not in self.label_names}
        # Preparing the partner would wrap its forward for good; it is the caller's model.
        running = self.teacher_run.model(partner)
        with self.teacher_run.autocast(self.accelerator):
            outputs, layers = self._watched().of_teacher(lambda: running(**known))
        outputs = convert_to_fp32(outputs)
        self.record(self.teacher_run.effect(outputs, lambda: partner(**known), self.accelerator))
        return {**outputs, **layers}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate on the student's inputs alone."""
        return super().prediction_step(model, split_inputs(inputs)[0], *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows of like lengths together, where that is asked for and their lengths are known."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(rows)
        if not hasattr(rows, "__len__"):
            return None
        lengths = row_lengths(rows, counted=self.args.length_column_name)
        if lengths is None:
            logger.warning("The rows' lengths are not known; they are drawn at random.")
            return RandomSampler(rows)
        size = self._train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._grouped = LengthGroupedSampler(lengths, size * self.args.world_size, seed)
        return self._grouped

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In order, however training rows are drawn: answers are looked up row by row."""
        return SequentialSampler(eval_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the teacher's columns of the training data, besides those that the model names."""
        known = self._signature_columns
        super()._set_signature_columns_if_needed()
        if known is None:
            columns = getattr(self.train_dataset, "column_names", None) or []
            # Not those of text, which no collator could put into a batch.
            kinds = getattr(self.train_dataset, "features", None) or {}
            text = {n for n, f in kinds.items() if getattr(f, "dtype", None) in _TEXT}
            teachers = [n for n in columns if n.startswith(TEACHER_PREFIX) and n not in text]
            self._signature_columns = [*(self._signature_columns or []), *teachers]  # type: ignore[assignment]

    def _get_collator_with_removed_columns(
        self, data_collator: Any, description: str | None = None
    ) -> Any:
        """Keep the teacher's columns also of rows that do not say which they have."""
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return KnownColumnsCollator(data_collator, self._signature_columns or [])

    def train_columns(self) -> list[str]:
        """The columns of the rows to train on, as far as they are known; looked up once."""
        if self._columns is None or self._columns[0] is not self.train_dataset:
            self._columns = self.train_dataset, column_names(self.train_dataset)
        return self._columns[1]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The stock estimate; it counts the model's parameters once a run, not at every step."""
        tokens = inputs.get(self.student.main_input_name)
        if tokens is None or not self._model_size:
            return super().floating_point_ops(inputs)
        return 6 * tokens.numel() * self._model_size

    @property
    def progress(self) -> float:
        """The share of the optimizer steps that are done, in [0, 1]."""
        return min(1.0, self.state.global_step / max(1, self.state.max_steps))

    def temperature(self) -> float:
        """The temperature of this step."""
        if isinstance(self.args, DistillationTrainingArguments):
            return self.args.temperature_at(self.progress)
        return 1.0

    def loss_weights(self, progress: float | None = None) -> dict[str, float]:
        """The weight of every loss at this step, or at another share of the run in [0, 1]."""
        progress = self.progress if progress is None else progress
        names = [TASK, *self.losses]
        if isinstance(self.args, DistillationTrainingArguments):
            return self.args.loss_weights_at(progress, names)
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
            stacked = torch.cat([stacked, self.finite.flag()])
            *values, flags = self.accelerator.reduce(stacked, reduction="mean").tolist()
            self.finite.heed(flags)
            logs.update(zip(names, values, strict=True))
            logs.update(self.scheduled_values())
            self._recorded = {}
        super().log(logs, start_time)

    def scheduled_values(self) -> dict[str, float]:
        """The values that follow a schedule, for the log."""
        return {"temperature": self.temperature()} if self.losses else {}


def lowest_trained(model: PreTrainedModel) -> list[nn.Parameter]:
    """What trains in the lowest block of which anything does: most losses have gradients there.

    Raises:
        ValueError: if all blocks are frozen.
    """
    for block in find_blocks(model):
        if trained := [p for p in block.parameters() if p.requires_grad]:
            return trained
    raise ValueError(
        "loss_balancing=gradient_norm measures the losses' gradients at the lowest block that is "
        "trained, and all blocks of the student are frozen. Train one, or leave it out."
    )


def first_logits(outputs: Mapping[str, Any]) -> torch.Tensor:
    """The logits, or the first of two."""
    return outputs["logits"] if "logits" in outputs else outputs["start_logits"]
