"""Arguments that every trainer shares: checked before anything is loaded or trained."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from kdnlp.checkpoints import LAST_WHOLE, find_checkpoint


@dataclass(repr=False)
class CompressionTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what every trainer here shares.

    A class derived from it is a `dataclass(repr=False)`: the text that dataclass makes would show
    the Hub's token, which that of `TrainingArguments` hides.
    """

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
        metadata={
            "help": "A checkpoint's folder, or `last` for the newest one in output_dir, which is "
            "refused where it is damaged; `last_whole` takes the newest that is not."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Log the mean of earlier losses in the place of one that is not finite, and "
            "wait for the device in every step to find it. Off: such a loss stops the run."
        },
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "How training rows are drawn: batches of rows of like lengths, which hold "
            "little padding, or random ones.",
            "choices": ["random", "sequential", "group_by_length", "batch_rebalance"],
        },
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

    @property
    def compiles(self) -> bool:
        """Whether any model of the run is compiled."""
        own = (getattr(self, name, False) for name in ("compile_blocks", "compile_teacher"))
        return bool(self.torch_compile or any(own))

    def check(self) -> None:
        """Raise `ValueError` for a setting that would train wrongly.

        Called at construction and again when training starts, since a hyperparameter search sets
        fields on a finished object.
        """
        self._check_numbers()
        if self.unpadded and self.compiles:
            raise ValueError(
                "unpadded=True gives the blocks another number of tokens in every batch, and "
                "compiled ones would be compiled anew until the recompile limit stops it. Use "
                "either, not both."
            )
        resumes = str(self.resume_from_checkpoint).lower() not in ("none", "false")
        if self.save_only_model and resumes:
            raise ValueError(
                "save_only_model=True writes checkpoints without the optimizer's state, and "
                f"resume_from_checkpoint={self.resume_from_checkpoint} wants to go on from one: "
                "the optimizer's moments would start again at zero, and the run end elsewhere. "
                "Leave save_only_model out, or start anew."
            )
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint=True saves in the middle of a step, seconds after SIGTERM "
                "and on each process by itself; what resumes from there is another run. Leave it "
                "out: SIGTERM ends a step, saves on all processes and exits, without it."
            )
        strategy = HubStrategy(self.hub_strategy)
        if self.push_to_hub and strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"Expected hub_strategy=end or every_save, got {strategy.value}. It would publish "
                "optimizer and random states, and training_args.bin, which is a pickle with the "
                "paths of this machine. every_save publishes the model of every checkpoint, and "
                "each stays at its commit."
            )

    def _check_numbers(self) -> None:
        sizes = [f"per_device_{split}_batch_size" for split in ("train", "eval")]
        least = dict.fromkeys((*sizes, "gradient_accumulation_steps"), 1)
        for name, low in {**least, "learning_rate": 0, "weight_decay": 0, "seed": 0}.items():
            value = getattr(self, name)
            if not low <= value < math.inf:
                raise ValueError(
                    f"{name} must be a number of at least {low}, got {value}. The run would fail "
                    "after its models were loaded, or move away from what it is to learn."
                )
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise ValueError(
                f"num_train_epochs must be above 0, got {self.num_train_epochs}, and max_steps "
                f"{self.max_steps}. Nothing would be trained, and reported as if it were. Set one."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the Hub's token: `training_args.bin` is pushed with the model."""
        return {**vars(self), "hub_token": None}

    def for_baseline(self, output_dir: str) -> "CompressionTrainingArguments":
        """The same budget for plain fine-tuning into another folder, never pushed to the Hub.

        Its learning rate is `baseline_learning_rate`, where that is given.

        Args:
            output_dir: a folder below this run's. What is in it is overwritten, since this run's
                own folder is the one that is guarded.
        """
        names = [f.name for f in fields(CompressionTrainingArguments) if f.init]
        values = {name: getattr(self, name) for name in names}
        own = {"output_dir": output_dir, "overwrite_output_dir": True}
        rate = getattr(self, "baseline_learning_rate", None)
        values |= {} if rate is None else {"learning_rate": rate}
        never_pushed = {"push_to_hub": False, "hub_model_id": None, "hub_token": None}
        return CompressionTrainingArguments(**{**values, **own, **never_pushed})

    def newest_checkpoint_wish(self) -> str:
        """How a part of this run, in a folder of its own, asks for its newest checkpoint."""
        return LAST_WHOLE if str(self.resume_from_checkpoint).lower() == LAST_WHOLE else "last"

    def checkpoint_to_resume(self) -> str | None:
        """The checkpoint that `resume_from_checkpoint` asks for, for `train()`.

        `None` starts from the beginning, as `"last"` does for a run that was killed before its
        first checkpoint; see `kdnlp.checkpoints.find_checkpoint`.
        """
        return find_checkpoint(self.resume_from_checkpoint, str(self.output_dir))
