"""One row per architecture, loss and trainer; the suites that run over all of them read it here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
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
    CorrelationLoss,
    DecoupledLoss,
    DistillationLoss,
    HiddenCosineLoss,
    HiddenLoss,
    JensenShannonLoss,
    LogitsLoss,
    ReverseKLLoss,
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


LOSS_ROWS = {
    "logits": LossRow(LogitsLoss),
    "reverse_kl": LossRow(ReverseKLLoss),
    "jensen_shannon": LossRow(JensenShannonLoss),
    "total_variation": LossRow(TotalVariationLoss),
    "decoupled": LossRow(DecoupledLoss),
    "correlation": LossRow(CorrelationLoss, of_the_batch=True),
    "hidden": LossRow(HiddenLoss),
    "hidden_cosine": LossRow(HiddenCosineLoss),
    "attention": LossRow(AttentionLoss),
    "attention_scores": LossRow(AttentionScoresLoss),
}
assert set(LOSS_ROWS) == set(LOSSES), "Every loss in LOSSES needs a row in tests/settings.py"


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
    "theseus": TrainerRow("TheseusTrainer"),
    "theseus-none": TrainerRow(
        "TheseusTrainer", {"skipped_gradients": "none", "initial_replacing_rate": 0.1}
    ),
    "theseus-unfreeze": TrainerRow(
        "TheseusTrainer",
        {"unfreeze_after_replacement": True, "replacing_fraction": 0.5, "weight_decay": 0.1},
    ),
    "theseus-checkpointing": TrainerRow("TheseusTrainer", {"activation_checkpointing": True}),
    "theseus-logits": TrainerRow("TheseusTrainer", losses=lambda: {"logits": LogitsLoss()}),
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


def tiny_dataset(rows: int = 32, length: int = 6, seed: int = 0) -> datasets.Dataset:
    """Token ids of one length, labelled by whether the first id is above the middle."""
    ids = np.random.default_rng(seed).integers(5, VOCAB_SIZE, (rows, length))
    return datasets.Dataset.from_dict(
        {
            "input_ids": ids.tolist(),
            "attention_mask": np.ones_like(ids).tolist(),
            "labels": (ids[:, 0] > (VOCAB_SIZE + 5) // 2).astype(int).tolist(),
        }
    )


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
    args = arguments(row.trainer, folder, **{**row.arguments, **overrides})
    options = {
        "train_dataset": tiny_dataset(),
        "eval_dataset": tiny_dataset(8, seed=1),
        "losses": row.losses() if row.losses else None,
        **(trainer_options or {}),
    }
    if row.trainer == "CompressionTrainer":
        return CompressionTrainer(model, args, **options)
    return getattr(kdnlp, row.trainer)(model, partner, args, **options)


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
