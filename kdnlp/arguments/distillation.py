"""Arguments of distillation: temperature, weights and balance of the losses, teacher cache."""

import math
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from kdnlp.arguments.common import CompressionTrainingArguments
from kdnlp.arguments.values import as_dict, check_schedule, check_temperature, parse_weights
from kdnlp.schedules import build_schedule

ScheduleName = Literal["constant", "linear", "cosine", "step"]


@dataclass(repr=False)
class DistillationTrainingArguments(CompressionTrainingArguments):
    """Arguments of `DistillationTrainer`: temperature and loss weights, each with a schedule.

    The weights default to equal shares that sum to 1, the temperature to 2, the low end of what
    Hinton et al. (2015) found useful for small students.
    """

    group_title: ClassVar[str] = "distillation"

    temperature: float = field(
        default=2.0,
        metadata={"help": "Softmax temperature of the soft targets, above 0."},
    )
    final_temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature at the end of the run; without it, it stays the same."},
    )
    temperature_schedule: ScheduleName = field(
        default="linear",
        metadata={"help": "How the temperature moves to final_temperature."},
    )
    loss_weights: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Weight of each loss by name, as task=0.5,logits=0.5 or as JSON; `task` is the "
            "loss on the labels, and weighs 0 where it is left out. Default: equal shares."
        },
    )
    final_loss_weights: dict[str, float] | str | None = field(
        default=None,
        metadata={"help": "Weights at the end of the run; without it, they stay the same."},
    )
    loss_weights_schedule: ScheduleName = field(
        default="linear",
        metadata={"help": "How the weights move to final_loss_weights."},
    )

    loss_balancing: Literal["none", "uncertainty", "gradient_norm"] = field(
        default="none",
        metadata={
            "help": "What multiplies the weights as the run goes: a learned uncertainty of each "
            "loss (Kendall et al. 2018), or the inverse norm of its gradient at the first block "
            "(Chen et al. 2018), which costs a backward pass a loss."
        },
    )

    baseline_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of what is fine-tuned plainly beside the run: its baseline, and "
            "a teacher that a recipe makes. Default: learning_rate, which may be the better one "
            "for the method and the worse one for them."
        },
    )

    shard_teacher: bool = field(
        default=False,
        metadata={
            "help": "Under FSDP, shard the frozen teacher's or predecessor's blocks too; without "
            "it every process holds the whole of it."
        },
    )

    teacher_precision: Literal["run", "float32", "bfloat16", "int8"] = field(
        default="run",
        metadata={
            "help": "Precision of the teacher's forward pass: the run's own, float32 or bfloat16 "
            "under autocast, or a copy with linear maps in int8 (on CPUs). What it does to the "
            "logits of the first batch is logged."
        },
    )
    compile_teacher: bool = field(
        default=False,
        metadata={
            "help": "torch.compile the teacher's blocks, once for batches of all lengths. For "
            "losses on logits."
        },
    )

    cache_teacher_outputs: bool = field(
        default=False,
        metadata={
            "help": "Compute the teacher's outputs once, write them to disk, and read them beside "
            "every batch; a teacher then leaves the accelerator, a predecessor stays. Later runs "
            "find them."
        },
    )
    teacher_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the teacher's outputs, one that all processes share; without it, "
            "one beside the Hub's cache."
        },
    )
    teacher_cache_limit_gb: float = field(
        default=10.0,
        metadata={"help": "Most GB that may be written; hidden states are large, logits are not."},
    )
    teacher_cache_dtype: Literal["float32", "float16", "bfloat16"] = field(
        default="float32", metadata={"help": "Type in which the numbers are stored."}
    )
    teacher_cache_top_k: int | None = field(
        default=None,
        metadata={"help": "Store that many of the largest logits alone, for large vocabularies."},
    )

    def check(self) -> None:
        """Check temperatures, weights and schedules; parse weights given as text."""
        super().check()
        self._check_cache()
        self._check_teacher_run()
        if self.loss_balancing not in ("none", "uncertainty", "gradient_norm"):
            raise ValueError(
                "loss_balancing must be one of none, uncertainty, gradient_norm, got "
                f"{self.loss_balancing!r}."
            )
        if self.loss_balancing == "gradient_norm" and self.torch_compile:
            raise ValueError(
                "loss_balancing=gradient_norm takes each loss's gradient before that of their sum, "
                "and torch_compile frees what a second backward pass reads. The first step would "
                "fail. Leave one of the two out."
            )
        rate = self.baseline_learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(
                f"baseline_learning_rate must be above 0, got {rate}. The baseline would learn "
                "nothing, and the method be compared with that. Leave it out for learning_rate."
            )
        self.loss_weights = parse_weights(self.loss_weights, "loss_weights")
        self.final_loss_weights = parse_weights(self.final_loss_weights, "final_loss_weights")
        check_temperature("temperature", self.temperature)
        if self.final_temperature is not None:
            check_temperature("final_temperature", self.final_temperature)
        check_schedule("temperature_schedule", self.temperature_schedule, ScheduleName)
        check_schedule("loss_weights_schedule", self.loss_weights_schedule, ScheduleName)
        for name in ("temperature", "loss_weights"):
            if getattr(self, f"final_{name}") is not None and (
                getattr(self, f"{name}_schedule") == "constant"
            ):
                raise ValueError(
                    f"{name}_schedule=constant never reaches final_{name}, got "
                    f"{getattr(self, f'final_{name}')}. It would be ignored; choose another "
                    f"schedule, or leave final_{name} out."
                )
        if self.final_loss_weights is not None and self.loss_weights is None:
            raise ValueError(
                "final_loss_weights needs loss_weights as the values to start from, got none. "
                "Give both, with the same names."
            )

    def _check_cache(self) -> None:
        if self.teacher_cache_dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(
                "teacher_cache_dtype must be one of float32, float16, bfloat16, got "
                f"{self.teacher_cache_dtype!r}."
            )
        for name in ("teacher_cache_limit_gb", "teacher_cache_top_k"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}: nothing could be stored.")
        changed = {f.name: getattr(self, f.name) for f in fields(DistillationTrainingArguments)}
        idle = [n for n in ("teacher_cache_dir", "teacher_cache_top_k") if changed[n] is not None]
        if idle and not self.cache_teacher_outputs:
            raise ValueError(
                f"{', '.join(idle)} needs cache_teacher_outputs=True, got False. Nothing would be "
                "written or read there; set it, or leave the other out."
            )

    def _check_teacher_run(self) -> None:
        known = ("run", "float32", "bfloat16", "int8")
        if self.teacher_precision not in known:
            raise ValueError(
                f"teacher_precision must be one of {', '.join(known)}, got "
                f"{self.teacher_precision!r}."
            )
        if self.shard_teacher and (self.teacher_precision != "run" or self.compile_teacher):
            raise ValueError(
                "shard_teacher=True gathers the teacher's weights block by block, in the run's "
                f"precision; got teacher_precision={self.teacher_precision}, compile_teacher="
                f"{self.compile_teacher} beside it. Leave one of the two out."
            )

    def temperature_at(self, progress: float) -> float:
        """The temperature at `progress` in [0, 1] of the run."""
        end = self.temperature if self.final_temperature is None else self.final_temperature
        return build_schedule(self.temperature_schedule, self.temperature, end)(progress)

    def loss_weights_at(self, progress: float, names: list[str]) -> dict[str, float]:
        """The weight of each loss in `names` at `progress` in [0, 1] of the run."""
        if self.loss_weights is None:
            return dict.fromkeys(names, 1.0 / len(names))
        start = as_dict(self.loss_weights)
        end = as_dict(self.final_loss_weights or self.loss_weights)
        return {
            name: build_schedule(
                self.loss_weights_schedule, start.get(name, 0.0), end.get(name, 0.0)
            )(progress)
            for name in names
        }

    def check_loss_names(self, names: list[str]) -> None:
        """Raise `ValueError` if weights and losses do not fit, or nothing is left to train on.

        A weight must name a loss, and a loss have a weight; that of the labels, `task`, is first in
        `names` and weighs 0 where none is given.
        """
        for argument in ("loss_weights", "final_loss_weights"):
            weights = getattr(self, argument)
            unknown = sorted(set(weights or {}) - set(names))
            if unknown:
                raise ValueError(
                    f"{argument} names {', '.join(unknown)}, but the losses of this run are "
                    f"{', '.join(names)}. The weight would be ignored; correct the name or add "
                    "the loss."
                )
        if self.loss_weights is not None and not any(
            self.loss_weights_at(progress, names)[name] for progress in (0.0, 1.0) for name in names
        ):
            raise ValueError(
                f"loss_weights gives no weight to any of {', '.join(names)}: nothing would train."
            )
        given = {**as_dict(self.loss_weights or {}), **as_dict(self.final_loss_weights or {})}
        idle = [name for name in names[1:] if name not in given]
        if self.loss_weights is not None and idle:
            raise ValueError(
                f"loss_weights has no weight for {', '.join(idle)}, got {given}. The loss would be "
                "computed and named in report and card, and teach nothing. Give it a weight, or "
                "leave the loss out; a weight of 0 says that it is only to be watched."
            )

    def check_unread(self) -> None:
        """Raise `ValueError` if a temperature is given; for a run without losses."""
        defaults = {f.name: f.default for f in fields(self)}
        names = ("temperature", "final_temperature")
        unread = [name for name in names if getattr(self, name) != defaults[name]]
        if unread:
            raise ValueError(
                f"{', '.join(unread)}: expected a loss that reads it, got none beside the labels. "
                'The run would be the same without it. Add one, as losses={"logits": LogitsLoss()} '
                "or --losses logits, or leave it out."
            )
