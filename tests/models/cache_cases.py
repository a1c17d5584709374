"""Rows of many lengths, a collator and teachers, for the tests of the cache and what they start."""

import datasets
import numpy as np
import torch
from settings import NO_DROPOUT, VOCAB_SIZE, tiny_model

from kdnlp.models.cache import cache_teacher

SHORTEST, LONGEST = 2, 9


def ragged_dataset(rows=30, seed=0):
    """Token ids of 2 to 9 tokens, as they come out of a tokenizer that cuts and does not pad."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(SHORTEST, LONGEST + 1, rows)
    ids = [rng.integers(5, VOCAB_SIZE, length).tolist() for length in lengths]
    return datasets.Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": rng.integers(0, 2, rows).tolist(),
        }
    )


class PaddingCollator:
    """Pads on either side and counts positions over the tokens alone, so that the side is moot."""

    def __init__(self, side="right", positions=True):
        self.side = side
        self.positions = positions

    def __call__(self, features):
        assert "teacher_row" not in features[0]
        length = max(len(feature["input_ids"]) for feature in features)
        batch = {
            name: torch.tensor([self.pad(feature[name], length) for feature in features])
            for name in ("input_ids", "attention_mask")
        }
        if self.positions:
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return {**batch, "labels": torch.tensor([feature["labels"] for feature in features])}

    def pad(self, values, length):
        zeros = [0] * (length - len(values))
        return zeros + list(values) if self.side == "left" else list(values) + zeros


class Teacher:
    """A tiny BERT that gives every field that is cached, and counts how often it was asked."""

    def __init__(self, **config):
        self.model = tiny_model("bert", 2, attn_implementation="eager", **NO_DROPOUT, **config)
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "teacher_outputs")}
        outputs = self.model(**inputs, output_hidden_states=True, output_attentions=True)
        hidden = outputs.hidden_states
        # BERT's own head reads the first column, which is padding where that is on the left.
        rows, first = torch.arange(len(hidden[2])), batch["attention_mask"].argmax(1)
        return {
            "logits": self.model.classifier(hidden[2][rows, first]),
            "hidden_states": {0: hidden[0], 2: hidden[2]},
            "attentions": {1: outputs.attentions[0], 2: outputs.attentions[1]},
            "scores": {2: outputs.attentions[1] - 1},
            "queries": {1: hidden[1][..., :6]},
            "keys": {1: hidden[1][..., 6:10]},
            "values": {2: -hidden[2]},
        }

    def logits(self, batch):
        """The logits alone."""
        return {"logits": self(batch)["logits"]}


def token_sums(batch):
    """A teacher in exact arithmetic: what it says of a row tells which row it was."""
    ids = batch["input_ids"].float()
    mask = batch["attention_mask"].float()
    return {
        "logits": torch.stack([(ids * mask).sum(1), mask.sum(1)], dim=1),
        "hidden_states": {1: torch.stack([ids, ids * 2, -ids], dim=2)},
    }


def write_cache(predict, folder, dataset=None, **options):
    """A cache with the defaults of these tests."""
    options = {"collator": PaddingCollator(), "teacher_key": "t", "disable_tqdm": True, **options}
    dataset = ragged_dataset() if dataset is None else dataset
    return cache_teacher(predict, dataset, folder=folder, **options)


def contents(folder):
    """The bytes of every file of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flattened(outputs):
    """Every tensor with its field and layer."""
    for name, value in outputs.items():
        layers = value.items() if isinstance(value, dict) else [(None, value)]
        yield from ((name, layer, tensor) for layer, tensor in layers)
