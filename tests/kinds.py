"""A small task of every kind that data can be prepared for, and an encoder for all of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import BertModel, PreTrainedModel

from kdnlp.data.preparation import KINDS
from kdnlp.data.synthetic import SYNTHETIC_TASKS, build_config, build_tokenizer, generate
from kdnlp.data.task import Task
from kdnlp.models.pretrained import head_config

TINY = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 24}
SUBJECTS = ("acting", "film", "plot", "music")

_OF_KIND = {
    "single_label_classification": SYNTHETIC_TASKS["synthetic_sentiment"],
    "multi_label_classification": Task(
        "subjects", ("sentence",), SUBJECTS, ("f1_micro", "f1_macro", "subset_accuracy"),
        label_column="subjects", kind="multi_label_classification", max_length=48,
    ),
    "regression": SYNTHETIC_TASKS["synthetic_similarity"],
    "token_classification": replace(
        SYNTHETIC_TASKS["synthetic_entities"], metrics=("f1", "precision", "recall", "accuracy")
    ),
    # Windows are short, so that most contexts have several.
    "question_answering": replace(SYNTHETIC_TASKS["synthetic_answers"], max_length=18, stride=4),
}  # fmt: skip
assert set(_OF_KIND) == set(KINDS)


def kind_task(kind: str) -> Task:
    """The task of a kind."""
    return _OF_KIND[kind]


def kind_rows(kind: str, num_train: int = 24, num_validation: int = 20) -> DatasetDict:
    """A few rows of it, as text."""
    if kind != "multi_label_classification":
        return generate(_OF_KIND[kind].name, num_train, num_validation)
    splits = generate("synthetic_sentiment", num_train, num_validation)
    return DatasetDict({split: _with_subjects(rows) for split, rows in splits.items()})


def plain_rows(rows: Dataset) -> list[dict[str, Any]]:
    """Rows as a user's JSON file has them: tags by name."""
    if "tags" not in rows.column_names:
        return list(rows)
    names = rows.features["tags"].feature.names
    return [{**row, "tags": [names[tag] for tag in row["tags"]]} for row in rows]


def tiny_head(kind: str, num_layers: int = 2, seed: int = 0) -> PreTrainedModel:
    """A tiny random model with the head of the kind, in eval mode."""
    torch.manual_seed(seed)
    config = build_config(num_layers, **TINY)
    config.update(head_config(_OF_KIND[kind]))
    name = KINDS[kind].auto_class.replace("AutoModel", "Bert")
    return getattr(transformers, name)(config).eval()


def save_encoder(folder: Path, num_layers: int = 4) -> Path:
    """A tiny pretrained encoder and its tokenizer."""
    torch.manual_seed(0)
    BertModel(build_config(num_layers, **TINY)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def _with_subjects(rows: Dataset) -> Dataset:
    def subjects(row: dict[str, Any]) -> list[str]:
        return [subject for subject in SUBJECTS if subject in row["sentence"].split()]

    columns = {"sentence": rows["sentence"][:], "subjects": [subjects(row) for row in rows]}
    return Dataset.from_dict(columns)
