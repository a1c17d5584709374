"""Arguments that every trainer shares: checked before anything is loaded or trained."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from transformers import TrainingArguments

from kdnlp.checkpoints import last_whole_checkpoint


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

    def check(self) -> None:
        """Raise `ValueError` for a setting that would train wrongly.

        Called at construction and again when training starts, since a hyperparameter search sets
        fields on a finished object.
        """
        own = (getattr(self, name, False) for name in ("compile_blocks", "compile_teacher"))
        if self.unpadded and (self.torch_compile or any(own)):
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
