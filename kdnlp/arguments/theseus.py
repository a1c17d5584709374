"""Arguments of BERT-of-Theseus: how fast the successor's blocks take the predecessor's place."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from kdnlp.arguments.distillation import DistillationTrainingArguments
from kdnlp.arguments.values import check_schedule, checkpoints_reentrantly, parse_slot_sizes
from kdnlp.schedules import build_schedule

ReplacingSchedule = Literal["constant", "linear", "cosine", "step", "anti"]


@dataclass(repr=False)
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
        if self.teacher_precision != "run" or self.compile_teacher:
            raise ValueError(
                "teacher_precision and compile_teacher are for a teacher without gradients, got "
                f"{self.teacher_precision} and {self.compile_teacher}: gradients flow through the "
                "predecessor's blocks, which run among the successor's. Use bf16=True and "
                "compile_blocks=True, which are for both."
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

    def check_last_rate(self, num_steps: int) -> None:
        """Raise `ValueError` if the rate is below 1 in the last of `num_steps` optimizer steps."""
        last = self.replacing_rate_at((num_steps - 1) / num_steps)
        if last < 1.0 and not self.allow_incomplete_replacement:
            raise ValueError(
                f"The replacing rate of the last of {num_steps} optimizer steps must be 1, got "
                f"{last:.3g}: the successor would never be trained as it will be deployed. Train "
                "longer, use a smaller replacing_fraction, or allow_incomplete_replacement=True if "
                "that is what you want."
            )

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
