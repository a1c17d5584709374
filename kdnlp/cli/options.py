"""The flags of the commands that no training argument covers."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.losses import LOSSES
from kdnlp.uploads.card_check import check_license


@dataclass(kw_only=True)
class DataOptions:
    """Which task, and where its rows are."""

    group_title: ClassVar[str] = "data"

    task: str | None = field(
        default=None,
        metadata={
            "help": "A GLUE task (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli), a built-in "
            "one (synthetic_sentiment, synthetic_paraphrase, synthetic_similarity, "
            "synthetic_entities, synthetic_answers), or a name for your own data."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with GLUE as parquet or official TSV; without it, the Hub's."},
    )
    train_file: str | None = field(
        default=None,
        metadata={"help": "Your own data: a .csv, .tsv, .json, .jsonl or .parquet file."},
    )
    validation_file: str | None = field(
        default=None,
        metadata={"help": "The same for validation; without it, a tenth of the training rows."},
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "One column with the text, or two for a pair. For tagging, the column with the "
            "lists of words (tokens); for question answering, question context."
        },
    )
    label_column: str = field(
        default="label",
        metadata={
            "help": "Column with class names, class ids or a number. Lists of classes make a "
            "multi-label task (genres), and so do several columns of 0 and 1 (a,b,c). Beside lists "
            "of words, lists of tags (tags); beside question and context, SQuAD's answers."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Most tokens an example may have; default the task's."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on a random part of that many rows, for a trial."}
    )


@dataclass(kw_only=True)
class ModelOptions:
    """Which revision of a model on the Hub, and whether its code may run."""

    group_title: ClassVar[str] = "model"

    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run Python code that comes with the models that are named; read it first. "
            "What is saved carries the code along."
        },
    )


@dataclass(kw_only=True)
class TrainedOptions(ModelOptions):
    """What licence the model that is trained gets."""

    group_title: ClassVar[str] = "licence"

    license: str | None = field(
        default=None,
        metadata={
            "help": "Licence of the model that is made, such as apache-2.0, for its card; default "
            "that of the model it is made from."
        },
    )

    def __post_init__(self) -> None:
        """Refuse what the Hub would refuse, before anything is trained."""
        if self.license is not None:
            check_license(self.license)


@dataclass(kw_only=True)
class FinetuneOptions(TrainedOptions):
    """What to fine-tune."""

    group_title: ClassVar[str] = "what to fine-tune"

    model: str = field(metadata={"help": "Folder or Hub id of a pretrained encoder."})


@dataclass(kw_only=True)
class ExportOptions(ModelOptions):
    """What to export, and where to."""

    group_title: ClassVar[str] = "what to export"

    model: str = field(
        metadata={
            "help": "Folder or Hub id of a fine-tuned model; standing first, it needs no flag."
        }
    )
    output_dir: str = field(
        metadata={"help": "Where the export goes; an earlier export there is replaced."}
    )
    texts: list[str] | None = field(
        default=None,
        metadata={"help": "Without a task: texts to compare logits on, with no metric."},
    )


@dataclass(kw_only=True)
class SmallerOptions(TrainedOptions):
    """What a smaller model starts from and learns, and what its report measures."""

    group_title: ClassVar[str] = "what it starts from and learns, and what the report measures"

    init_layers: str = field(
        default="first",
        metadata={"help": "Blocks it starts from: first, last, spaced, or indices such as 0,2,4."},
    )
    losses: str | None = field(
        default=None,
        metadata={
            "help": f"Distillation losses, with commas, out of {', '.join(LOSSES)}; default logits "
            "for `distill` and `ladder`, none for `theseus`. With settings, JSON: "
            '{"logits": {}, "hidden": {"layer_map": "skip"}}.'
        },
    )
    report_length: int | None = field(
        default=None,
        metadata={"help": "Tokens per example for latency and FLOPs; default the task's length."},
    )
    report_seconds: float = field(
        default=60.0, metadata={"help": "What measuring the latencies may take, roughly."}
    )


@dataclass(kw_only=True)
class CompressionOptions(SmallerOptions):
    """How small the new model is."""

    group_title: ClassVar[str] = "the smaller model"

    num_layers: int | None = field(
        default=None, metadata={"help": "Transformer blocks of the smaller model; default half."}
    )
    baseline: bool = field(
        default=True,
        metadata={"help": "Also fine-tune the same initial model with the same budget."},
    )


@dataclass(kw_only=True)
class TheseusOptions(CompressionOptions):
    """Whose blocks are replaced."""

    group_title: ClassVar[str] = "what to compress"

    predecessor: str = field(
        metadata={"help": "Folder or Hub id of a model that is fine-tuned on the task."}
    )


@dataclass(kw_only=True)
class TeacherOptions(SmallerOptions):
    """Whose answers are learned."""

    group_title: ClassVar[str] = "the teacher"

    teacher: str = field(
        metadata={"help": "Folder or Hub id of a model that is fine-tuned on the task."}
    )
    teacher_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32",
        metadata={"help": "Type of the teacher's weights; half of it halves its memory."},
    )


@dataclass(kw_only=True)
class DistillOptions(TeacherOptions, CompressionOptions):
    """Whose answers are learned, and by whom."""

    group_title: ClassVar[str] = "several teachers, or a student of another kind"

    more_teachers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Further fine-tuned models: the student learns the mean of all their "
            "probabilities. The report compares with the first teacher."
        },
    )
    student: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of another model to train, with the teacher's vocabulary; "
            "default: the teacher's own blocks, see --num_layers and --init_layers."
        },
    )

    def __post_init__(self) -> None:
        """Refuse two answers to one question."""
        super().__post_init__()
        if self.student is not None and self.num_layers is not None:
            raise ValueError(
                f"Expected --student or --num_layers, got both: {self.student} has its own number "
                "of blocks. Leave one out."
            )


@dataclass(kw_only=True)
class LadderOptions(TeacherOptions):
    """Whose answers are learned, by students of which depths."""

    group_title: ClassVar[str] = "the students"

    num_layers: str = field(
        metadata={"help": "Transformer blocks of each student, with commas, such as 6,4,3,2."}
    )


@dataclass(repr=False)
class LadderTrainingArguments(DistillationTrainingArguments):
    """The arguments of every student, with the teacher's outputs computed once for all."""

    group_title: ClassVar[str] = "the teacher's outputs"

    cache_teacher_outputs: bool = field(
        default=True,
        metadata={"help": "Compute the teacher's outputs once for all students, and write them."},
    )
