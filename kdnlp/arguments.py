"""Training arguments: flat, serialisable, checked before anything is loaded or trained."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from kdnlp.argument_values import (
    as_dict,
    check_schedule,
    check_temperature,
    checkpoints_reentrantly,
    parse_slot_sizes,
    parse_weights,
)
from kdnlp.schedules import build_schedule

TRAINER_STATE_NAME = "trainer_state.json"

ScheduleName = Literal["constant", "linear", "cosine", "step"]
ReplacingSchedule = Literal["constant", "linear", "cosine", "step", "anti"]


@dataclass
class CompressionTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what every trainer here shares."""

    group_title: ClassVar[str] = "kdnlp"

    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Train into an output_dir that already holds another run; its checkpoints are "
            "removed."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "A checkpoint's folder, or `last` for the newest one in output_dir."},
    )
    unpadded: bool = field(
        default=False,
        metadata={
            "help": "Run the blocks of the trained model and its frozen partner on the real tokens "
            "of a batch alone, with the outputs of the padded run."
        },
    )

    def __post_init__(self) -> None:
        """Check the arguments, then let transformers resolve its own."""
        self.check()
        super().__post_init__()

    def check(self) -> None:
        """Raise `ValueError` for a setting that would train wrongly.

        Called at construction and again when training starts, since a hyperparameter search sets
        fields on a finished object.
        """
        if self.unpadded and (self.torch_compile or getattr(self, "compile_blocks", False)):
            raise ValueError(
                "unpadded=True gives the blocks another number of tokens in every batch, and "
                "compiled ones would be compiled anew until the recompile limit stops it. Use "
                "either, not both."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the Hub's token: `training_args.bin` is pushed with the model."""
        return {**vars(self), "hub_token": None}

    def for_baseline(self, output_dir: str) -> "CompressionTrainingArguments":
        """The same budget for plain fine-tuning into another folder, never pushed to the Hub.

        Args:
            output_dir: a folder below this run's. What is in it is overwritten, since this run's
                own folder is the one that is guarded.
        """
        names = [f.name for f in fields(CompressionTrainingArguments) if f.init]
        values = {name: getattr(self, name) for name in names}
        own = {"output_dir": output_dir, "overwrite_output_dir": True}
        never_pushed = {"push_to_hub": False, "hub_model_id": None}
        return CompressionTrainingArguments(**{**values, **own, **never_pushed})

    def checkpoint_to_resume(self) -> str | None:
        """The checkpoint that `resume_from_checkpoint` asks for, for `train()`.

        `"last"` and `"true"` ask for the newest whole one in `output_dir`, and for a start from the
        beginning where there is none: a run that was killed before its first checkpoint. One that
        was being written when the run was killed is passed over.
        """
        wish = self.resume_from_checkpoint
        if wish is None or str(wish).lower() == "false":
            return None
        if str(wish).lower() not in ("true", "last"):
            return str(wish)
        return last_whole_checkpoint(str(self.output_dir))


@dataclass
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
            "loss on the labels. A name that is left out weighs 0. Default: equal shares."
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

    shard_teacher: bool = field(
        default=False,
        metadata={
            "help": "Under FSDP, shard the frozen teacher's or predecessor's blocks too; without "
            "it every process holds the whole of it."
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
        if self.loss_balancing not in ("none", "uncertainty", "gradient_norm"):
            raise ValueError(
                "loss_balancing must be one of none, uncertainty, gradient_norm, got "
                f"{self.loss_balancing!r}."
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
        """Raise `ValueError` if a weight names no loss, or if nothing is left to train on."""
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


@dataclass
class TheseusTrainingArguments(DistillationTrainingArguments):
    """Arguments of `TheseusTrainer` (Xu et al. 2020): how fast the successor's blocks move in.

    The replacing rate follows `replacing_schedule` over the first `replacing_fraction` of the
    optimizer steps and is 1 after that: the rest of the run fine-tunes the successor alone. The
    paper ramps over 1,000 to 30,000 steps whatever the task's size; a share of the run means the
    same curriculum on every task.
    """

    group_title: ClassVar[str] = "BERT-of-Theseus"

    replacing_schedule: ReplacingSchedule = field(
        default="linear",
        metadata={"help": "How the replacing rate rises; linear is the paper's curriculum."},
    )
    initial_replacing_rate: float = field(
        default=0.3,
        metadata={
            "help": "The schedule's start b, in [0, 1]; the paper's is 0.1 or 0.3. The schedule "
            "`anti` starts at 1 - b."
        },
    )
    replacing_fraction: float = field(
        default=0.6,
        metadata={"help": "Share of the run, in (0, 1], until the replacing rate is 1."},
    )
    allow_incomplete_replacement: bool = field(
        default=False,
        metadata={"help": "Accept a schedule whose rate never reaches 1 within the run."},
    )
    slot_sizes: list[int] | str | None = field(
        default=None,
        metadata={
            "help": "Predecessor blocks that each successor block stands for, bottom first, such "
            "as 1,1,2,2. Default: an even cut."
        },
    )
    skipped_gradients: Literal["zero", "none"] = field(
        default="zero",
        metadata={
            "help": "What a block that was not drawn gets: zero gradients, so that Adam keeps "
            "moving it as in the 2020 code, or none, so that it rests."
        },
    )
    predecessor_dropout: bool = field(
        default=True,
        metadata={"help": "Keep dropout on in the predecessor's blocks, as the 2020 code does."},
    )
    unfreeze_after_replacement: bool = field(
        default=False,
        metadata={"help": "Train embeddings and head too once the replacing rate is 1."},
    )
    compile_blocks: bool = field(
        default=False,
        metadata={"help": "torch.compile every block; the path between them stays eager."},
    )

    def __post_init__(self) -> None:
        """Check the arguments, and the checkpointing mode once transformers has resolved it."""
        super().__post_init__()
        self._check_checkpointing()

    def _check_checkpointing(self) -> None:
        if checkpoints_reentrantly(self):
            raise ValueError(
                "Theseus needs non-reentrant gradient checkpointing, got use_reentrant=True. The "
                "embeddings are frozen, so the first checkpointed block's input has no gradient "
                "and its parameters would silently not train. Set "
                'gradient_checkpointing_kwargs={"use_reentrant": false}.'
            )

    def check(self) -> None:
        """Check rate, ramp, slots and compilation; parse slots given as text."""
        super().check()
        self.slot_sizes = parse_slot_sizes(self.slot_sizes)
        check_schedule("replacing_schedule", self.replacing_schedule, ReplacingSchedule)
        if self.skipped_gradients not in ("zero", "none"):
            raise ValueError(
                f'skipped_gradients must be "zero" or "none", got {self.skipped_gradients!r}. They '
                "are two different algorithms."
            )
        if self.loss_balancing == "gradient_norm":
            raise ValueError(
                "loss_balancing=gradient_norm measures gradients at the first block, which Theseus "
                "skips in many steps: there would be nothing to measure. Use uncertainty, or set "
                "loss_weights."
            )
        if self.torch_compile:
            raise ValueError(
                "torch_compile=True compiles the whole model, and every sampled path would be a "
                "new graph until the recompile limit stops it. Use compile_blocks=True instead."
            )
        self._check_checkpointing()
        self._check_rate()

    def replacing_rate_at(self, progress: float) -> float:
        """The probability in [0, 1] that a slot is replaced, at `progress` of the run."""
        schedule = build_schedule(
            self.replacing_schedule, self.initial_replacing_rate, 1.0, self.replacing_fraction
        )
        return schedule(progress)

    def _check_rate(self) -> None:
        rate, fraction = self.initial_replacing_rate, self.replacing_fraction
        if not 0.0 <= rate <= 1.0:
            raise ValueError(
                f"initial_replacing_rate must lie in [0, 1], got {rate}. It is the probability "
                "that a successor block takes its slot; the paper starts at 0.1 or 0.3."
            )
        if not 0.0 < fraction <= 1.0:
            raise ValueError(
                f"replacing_fraction must lie in (0, 1], got {fraction}. It is the share of the "
                "run until every slot is replaced; the default is 0.6."
            )
        if (self.replacing_schedule, rate) in (("constant", 0.0), ("anti", 1.0)):
            raise ValueError(
                f"{self.replacing_schedule} from rate {rate:g} is a rate of 0 for "
                "the whole ramp: it never uses a successor block, so nothing trains "
                "until the ramp ends. Use a constant rate from 0.5 to 0.9, or anti from 0.1 or 0.3."
            )
        complete = self.replacing_rate_at(1.0) == 1.0 and (fraction < 1.0 or rate == 1.0)
        if not complete and not self.allow_incomplete_replacement:
            raise ValueError(
                "replacing_fraction=1 never reaches a replacing rate of 1 before the run ends, so "
                "the successor is never trained as it will be deployed. Use a smaller fraction, "
                "or allow_incomplete_replacement=True if that is what you want."
            )


def last_whole_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint that was written to its end: the trainer's state is its last file."""
    numbers = {
        int(path.name.rpartition("-")[2]): path
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rpartition("-")[2].isdigit() and (path / TRAINER_STATE_NAME).is_file()
    }
    return str(numbers[max(numbers)]) if numbers else None
