"""One row per architecture, loss and trainer; the suites that run over all of them read it here."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

import kdnlp
from kdnlp.arguments import (
    CompressionTrainingArguments,
    DistillationTrainingArguments,
    TheseusTrainingArguments,
)
from kdnlp.losses import (
    LOSSES,
    AttentionLoss,
    AttentionScoresLoss,
    ContrastLoss,
    CorrelationLoss,
    DecoupledLoss,
    DistillationLoss,
    HiddenCosineLoss,
    HiddenLoss,
    JensenShannonLoss,
    LabelSmoothingLoss,
    LogitsCosineLoss,
    LogitsLoss,
    LogitsMSELoss,
    MiniLMLoss,
    PatientLoss,
    RelationalAngleLoss,
    RelationalDistanceLoss,
    RelationLoss,
    ReverseKLLoss,
    SimilarityLoss,
    TeacherFreeLoss,
    TotalVariationLoss,
)
from kdnlp.models.student import build_student
from kdnlp.trainers.base import CompressionTrainer

VOCAB_SIZE = 40
LABELS = {0: "no", 1: "yes"}


@dataclass(frozen=True)
class Architecture:
    """How to make a tiny model of a family, and which stack of it is cut."""

    model_type: str
    model_class: str
    config: dict[str, Any]
    layer_key: str = "num_hidden_layers"
    stack: str | None = None
    path: str = ""


SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
CAUSAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

ARCHITECTURES = {
    "bert": Architecture("bert", "BertForSequenceClassification", SMALL, path="bert.encoder.layer"),
    "roberta": Architecture(
        "roberta", "RobertaForSequenceClassification", SMALL, path="roberta.encoder.layer"
    ),
    "xlm-roberta": Architecture(
        "xlm-roberta", "XLMRobertaForSequenceClassification", SMALL, path="roberta.encoder.layer"
    ),
    "electra": Architecture(
        "electra",
        "ElectraForSequenceClassification",
        {**SMALL, "embedding_size": 8},
        path="electra.encoder.layer",
    ),
    "distilbert": Architecture(
        "distilbert",
        "DistilBertForSequenceClassification",
        {"dim": 16, "n_heads": 2, "hidden_dim": 24},
        layer_key="n_layers",
        path="distilbert.transformer.layer",
    ),
    "deberta-v2": Architecture(
        "deberta-v2",
        "DebertaV2ForSequenceClassification",
        {
            **SMALL,
            "pooler_hidden_size": 16,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "conv_kernel_size": 3,
        },
        path="deberta.encoder.layer",
    ),
    "mpnet": Architecture(
        "mpnet", "MPNetForSequenceClassification", SMALL, path="mpnet.encoder.layer"
    ),
    "modernbert": Architecture(
        "modernbert",
        "ModernBertForSequenceClassification",
        {
            **SMALL,
            "global_attn_every_n_layers": 2,
            "local_attention": 4,
            **CAUSAL,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        path="model.layers",
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2ForSequenceClassification",
        {"n_embd": 16, "n_head": 2, **CAUSAL},
        layer_key="n_layer",
        path="transformer.h",
    ),
    "llama": Architecture(
        "llama",
        "LlamaForSequenceClassification",
        {**SMALL, "num_key_value_heads": 2, **CAUSAL},
        path="model.layers",
    ),
    "t5-encoder": Architecture(
        "t5",
        "T5ForTokenClassification",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, **CAUSAL},
        layer_key="num_layers",
        stack="encoder",
        path="transformer.encoder.block",
    ),
}


def tiny_model(
    name: str = "bert", num_layers: int = 4, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A tiny random model of an architecture, in eval mode, with named labels."""
    row = ARCHITECTURES[name]
    settings = {
        "vocab_size": VOCAB_SIZE,
        "id2label": dict(LABELS),
        "label2id": {v: k for k, v in LABELS.items()},
        row.layer_key: num_layers,
        **row.config,
        **overrides,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(row.model_type, **settings)
    model = getattr(transformers, row.model_class)(config).eval()
    # Fresh weights are so small that blocks hardly differ; spread them to make mistakes show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tiny_batch(batch_size: int = 3, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token ids without padding or special ids, and binary labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB_SIZE, (batch_size, length), generator=generator)
    labels = torch.randint(0, 2, (batch_size,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@dataclass(frozen=True)
class LossRow:
    """How to build a loss."""

    build: Callable[[], Any]
    of_the_batch: bool = False  # relates items to each other, so that accumulation changes it
    same_heads: bool = False  # refuses a student with another number of attention heads


LOSS_ROWS = {
    "logits": LossRow(LogitsLoss),
    "reverse_kl": LossRow(ReverseKLLoss),
    "jensen_shannon": LossRow(JensenShannonLoss),
    "total_variation": LossRow(TotalVariationLoss),
    "decoupled": LossRow(DecoupledLoss),
    "correlation": LossRow(CorrelationLoss, of_the_batch=True),
    "hidden": LossRow(HiddenLoss),
    "hidden_cosine": LossRow(HiddenCosineLoss),
    "patient": LossRow(PatientLoss),
    "attention": LossRow(AttentionLoss, same_heads=True),
    "attention_scores": LossRow(AttentionScoresLoss, same_heads=True),
    "relation": LossRow(RelationLoss),
    "minilm": LossRow(MiniLMLoss, same_heads=True),
    "relational_distance": LossRow(RelationalDistanceLoss, of_the_batch=True),
    "relational_angle": LossRow(RelationalAngleLoss, of_the_batch=True),
    "similarity": LossRow(SimilarityLoss, of_the_batch=True),
    "contrast": LossRow(ContrastLoss, of_the_batch=True),
    "logits_mse": LossRow(LogitsMSELoss),
    "logits_cosine": LossRow(LogitsCosineLoss),
    "label_smoothing": LossRow(LabelSmoothingLoss),
    "teacher_free": LossRow(TeacherFreeLoss),
}
assert set(LOSS_ROWS) == set(LOSSES), (
    f"{set(LOSS_ROWS) ^ set(LOSSES)}: in LOSSES (kdnlp/losses/__init__.py) or in LOSS_ROWS (here), "
    "and not in the other"
)


class ProjectedHidden(DistillationLoss):
    """A loss with parameters, as an intermediate-layer loss across widths has them."""

    needs = frozenset({"hidden_states"})

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(width, width)

    def forward(self, student: Any, teacher: Any, batch: Any) -> torch.Tensor:
        projected = self.projection(student["hidden_states"][-1])
        return (projected - teacher["hidden_states"][-1]).square().mean()


@dataclass(frozen=True)
class TrainerRow:
    """How to build a trainer around a tiny student, for the tests every trainer must pass."""

    trainer: str
    arguments: dict[str, Any] = field(default_factory=dict)
    losses: Callable[[], dict[str, DistillationLoss]] | None = None
    of_the_batch: bool = False
    padded: bool = False  # rows of several lengths


CHECKPOINTING = next(
    field.name
    for field in fields(transformers.TrainingArguments)
    if field.name in ("activation_checkpointing", "gradient_checkpointing")
)
"""Its first name is the present one; transformers 5.17 has the second alone."""


TRAINER_ROWS = {
    "finetuning": TrainerRow("CompressionTrainer"),
    "distillation": TrainerRow(
        "DistillationTrainer",
        {"temperature": 3.0, "final_temperature": 1.0, "loss_weights": "task=0.3,logits=0.7"},
    ),
    **{
        f"distillation-{name}": TrainerRow(
            "DistillationTrainer",
            losses=lambda build=row.build: {"loss": build()},
            of_the_batch=row.of_the_batch,
        )
        for name, row in LOSS_ROWS.items()
        if name != "logits"
    },
    "distillation-parameters": TrainerRow(
        "DistillationTrainer", losses=lambda: {"hidden": ProjectedHidden()}
    ),
    "distillation-cached": TrainerRow(
        "DistillationTrainer",
        {"cache_teacher_outputs": True},
        losses=lambda: {"logits": LogitsLoss(), "hidden": HiddenLoss({2: 4})},
    ),
    "distillation-dynamic-map": TrainerRow(
        "DistillationTrainer", losses=lambda: {"loss": HiddenLoss("dynamic")}, of_the_batch=True
    ),
    "distillation-uncertainty": TrainerRow(
        "DistillationTrainer", {"loss_balancing": "uncertainty"}
    ),
    "distillation-gradient-norm": TrainerRow(
        "DistillationTrainer", {"loss_balancing": "gradient_norm"}, of_the_batch=True
    ),
    "finetuning-unpadded": TrainerRow("CompressionTrainer", {"unpadded": True}, padded=True),
    "distillation-unpadded": TrainerRow(
        "DistillationTrainer",
        {"unpadded": True},
        losses=lambda: {"logits": LogitsLoss(), "hidden": HiddenLoss(), "relation": RelationLoss()},
        padded=True,
    ),
    "distillation-unpadded-cached": TrainerRow(
        "DistillationTrainer", {"unpadded": True, "cache_teacher_outputs": True}, padded=True
    ),
    "theseus-unpadded": TrainerRow(
        "TheseusTrainer",
        {"unpadded": True},
        losses=lambda: {"logits": LogitsLoss(), "hidden": HiddenLoss()},
        padded=True,
    ),
    "theseus": TrainerRow("TheseusTrainer"),
    "theseus-none": TrainerRow(
        "TheseusTrainer", {"skipped_gradients": "none", "initial_replacing_rate": 0.1}
    ),
    "theseus-unfreeze": TrainerRow(
        "TheseusTrainer",
        {"unfreeze_after_replacement": True, "replacing_fraction": 0.5, "weight_decay": 0.1},
    ),
    "theseus-checkpointing": TrainerRow("TheseusTrainer", {CHECKPOINTING: True}),
    "theseus-logits": TrainerRow("TheseusTrainer", losses=lambda: {"logits": LogitsLoss()}),
    "theseus-cached": TrainerRow(
        "TheseusTrainer",
        {"cache_teacher_outputs": True},
        losses=lambda: {"logits": LogitsLoss()},
    ),
    "theseus-layers": TrainerRow(
        "TheseusTrainer",
        losses=lambda: {"hidden": HiddenLoss(projection=True), "scores": AttentionScoresLoss()},
    ),
}
ARGUMENTS = {
    "CompressionTrainer": CompressionTrainingArguments,
    "DistillationTrainer": DistillationTrainingArguments,
    "TheseusTrainer": TheseusTrainingArguments,
}

STEP_DEFAULTS: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 3,
}


def tiny_dataset(
    rows: int = 32, length: int = 6, seed: int = 0, padded: bool = False
) -> datasets.Dataset:
    """Token ids of one length, labelled by whether the first id is above the middle."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCAB_SIZE, (rows, length))
    mask = np.ones_like(ids)
    if padded:
        mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(int)
        ids = np.where(mask == 1, ids, 0)
    return datasets.Dataset.from_dict(
        {
            "input_ids": ids.tolist(),
            "attention_mask": mask.tolist(),
            "labels": (ids[:, 0] > (VOCAB_SIZE + 5) // 2).astype(int).tolist(),
        }
    )


def pad_rows(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of rows of several lengths."""
    width = max(len(row["input_ids"]) for row in rows)
    padded = {
        name: torch.tensor([row[name] + [0] * (width - len(row[name])) for row in rows])
        for name in ("input_ids", "attention_mask")
    }
    return {**padded, "labels": torch.tensor([row["labels"] for row in rows])}


def arguments(trainer: str, folder: Any, **overrides: Any) -> CompressionTrainingArguments:
    """Arguments for a few steps on the CPU."""
    return ARGUMENTS[trainer](output_dir=str(folder), **{**STEP_DEFAULTS, **overrides})


def build_trainer(
    row: TrainerRow,
    folder: Any,
    partner: PreTrainedModel | None = None,
    model: PreTrainedModel | None = None,
    trainer_options: dict[str, Any] | None = None,
    **overrides: Any,
) -> CompressionTrainer:
    """The row's trainer on tiny data: a predecessor of four blocks, a student of two."""
    partner = partner or tiny_model("bert", 4, **NO_DROPOUT)
    if model is None and "model_init" not in (trainer_options or {}):
        model = build_student(partner, 2)
    if row.arguments.get("cache_teacher_outputs"):
        overrides.setdefault("teacher_cache_dir", f"{folder}-teacher")
    args = arguments(row.trainer, folder, **{**row.arguments, **overrides})
    options = {
        "train_dataset": tiny_dataset(padded=row.padded),
        "eval_dataset": tiny_dataset(8, seed=1, padded=row.padded),
        "losses": row.losses() if row.losses else None,
        **(trainer_options or {}),
    }
    if row.trainer == "CompressionTrainer":
        return CompressionTrainer(model, args, **options)
    return getattr(kdnlp, row.trainer)(model, partner, args, **options)


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


# Tasks: one row a kind, with labels of which some do not count.


@dataclass(frozen=True)
class TaskRow:
    """A tiny model with the task's head, and the label columns of rows of token ids."""

    model_class: str
    columns: Callable[[np.ndarray, np.ndarray, np.random.Generator], dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    family: str = "bert"
    stack: str | None = None


def _some_positions(ids: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels for about half of the attended positions, and for none in every third row."""
    labels = np.where((rng.random(ids.shape) < 0.5) & (mask == 1), ids, -100)
    labels[::3] = -100
    return labels


def _answers(ids: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Answers of which some ends are cut off, more in some micro-batches than in others."""
    start = rng.integers(0, 2, len(ids))
    end = start + rng.integers(0, 2, len(ids))
    end[::3] = ids.shape[1] + 3
    return {"start_positions": start, "end_positions": end}


def _choices(ids: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    both = {"input_ids": (ids, ids[:, ::-1]), "attention_mask": (mask, np.ones_like(mask))}
    stacked = {name: np.stack(two, axis=1) for name, two in both.items()}
    return {**stacked, "labels": (ids[:, 0] > 20).astype(int)}


TASK_ROWS = {
    "single_label_classification": TaskRow(
        "BertForSequenceClassification",
        lambda ids, mask, rng: {"labels": ids[:, 0] % 3},
        {"num_labels": 3},
    ),
    "multi_label_classification": TaskRow(
        "BertForSequenceClassification",
        lambda ids, mask, rng: {"labels": (ids[:, :3] > 20).astype(np.float32)},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "regression": TaskRow(
        "BertForSequenceClassification",
        lambda ids, mask, rng: {"labels": (ids[:, 0] / VOCAB_SIZE).astype(np.float32)},
        {"num_labels": 1, "problem_type": "regression"},
    ),
    "token_classification": TaskRow(
        "BertForTokenClassification",
        lambda ids, mask, rng: {
            "labels": np.where((labels := _some_positions(ids, mask, rng)) < 0, -100, labels % 4)
        },
        {"num_labels": 4},
    ),
    "question_answering": TaskRow("BertForQuestionAnswering", _answers),
    "multiple_choice": TaskRow("BertForMultipleChoice", _choices),
    "masked_lm": TaskRow(
        "BertForMaskedLM", lambda ids, mask, rng: {"labels": _some_positions(ids, mask, rng)}
    ),
    "causal_lm": TaskRow(
        "GPT2LMHeadModel",
        lambda ids, mask, rng: {"labels": _some_positions(ids, mask, rng)},
        {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
        family="gpt2",
    ),
    "seq2seq_lm": TaskRow(
        "T5ForConditionalGeneration",
        lambda ids, mask, rng: {"labels": _some_positions(ids, mask, rng)},
        {"dropout_rate": 0.0, "decoder_start_token_id": 0},
        family="t5-encoder",
        stack="encoder",
    ),
}


def task_model(task: str, num_layers: int = 4, seed: int = 0) -> PreTrainedModel:
    """A tiny random model with the task's head, without dropout."""
    row = TASK_ROWS[task]
    base = ARCHITECTURES[row.family]
    dropout = NO_DROPOUT if row.family == "bert" else {}
    settings = {"vocab_size": VOCAB_SIZE, base.layer_key: num_layers, **base.config, **dropout}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(base.model_type, **{**settings, **row.config})
    model = getattr(transformers, row.model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def task_dataset(task: str, rows: int = 24, length: int = 6, seed: int = 0) -> datasets.Dataset:
    """Padded rows of several lengths; the labels that count lie unevenly among them."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCAB_SIZE, (rows, length))
    mask = (np.arange(length) < rng.integers(3, length + 1, (rows, 1))).astype(int)
    ids = np.where(mask == 1, ids, 0)
    columns = {"input_ids": ids, "attention_mask": mask}
    columns |= TASK_ROWS[task].columns(ids, mask, rng)
    return datasets.Dataset.from_dict({name: value.tolist() for name, value in columns.items()})


def build_cell(loss: str, task: str, folder: Any, **overrides: Any) -> CompressionTrainer:
    """A distillation trainer of one loss on one task, from four blocks to two."""
    teacher = task_model(task)
    return kdnlp.DistillationTrainer(
        build_student(teacher, 2, stack=TASK_ROWS[task].stack),
        teacher,
        arguments("DistillationTrainer", folder, **{"max_steps": 3, **overrides}),
        {"loss": LOSS_ROWS[loss].build()},
        train_dataset=task_dataset(task),
    )


CELLS = [(loss, task) for loss in LOSSES for task in TASK_ROWS]
SENSIBLE_CELLS = [(loss, task) for loss, task in CELLS if task in LOSSES[loss].tasks]

FEW_CELLS = [
    (loss, tasks[number % len(tasks)])
    for number, loss in enumerate(LOSSES)
    for tasks in [[task for task in TASK_ROWS if task in LOSSES[loss].tasks]]
]
"""Every loss on one kind of task, and every kind of task with some loss."""


def few_of(items: Any, few: Any, parts: tuple[str, str] = ("few", "rest")) -> list[Any]:
    """Parameters, each with the part of a launch that it stands in; the rest is for slow tests."""
    return [
        pytest.param(item, parts[0], id=str(item))
        if item in few
        else pytest.param(item, parts[1], id=str(item), marks=pytest.mark.slow)
        for item in items
    ]
