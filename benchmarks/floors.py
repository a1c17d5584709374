"""Bare training loops in plain torch: what is measured is how little a trainer adds to them.

Each does for one method what its trainer does, and nothing else: AdamW and clipping as in the
trainer, no log, no callbacks, no schedule.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
)

from benchmarks.interleave import now, timed
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.models.theseus import draw_replaced

SEED = 0
TEMPERATURE = 2.0
LEARNING_RATE = 5e-5
COLLATE = DataCollatorWithPadding(build_tokenizer())

BERT_BASE = {"teacher_layers": 12, "student_layers": 6, "hidden_size": 768}
"""Sizes of the models, as flags."""


def build_teacher(options: argparse.Namespace):
    """The model that is named, or a BERT of those sizes with random weights; in eval mode."""
    if getattr(options, "model", None) is not None:
        return AutoModelForSequenceClassification.from_pretrained(
            options.model, dtype=torch.float32
        ).eval()
    width = options.hidden_size
    config = BertConfig(
        vocab_size=getattr(options, "vocab_size", 30522),
        hidden_size=width,
        num_hidden_layers=options.teacher_layers,
        num_attention_heads=width // (64 if width > 384 else 32),  # as BERT, and as MiniLM
        intermediate_size=4 * width,
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


def glue_lengths(
    number: int, median: float = 22.0, spread: float = 0.57, longest: int = 128
) -> np.ndarray:
    """Log-normal lengths from 4 tokens; random batches of 32 are real to 37%, as GLUE's are."""
    lengths = np.random.default_rng(0).lognormal(np.log(median), spread, number)
    return np.clip(np.round(lengths), 4, longest).astype(int)


def random_rows(lengths: np.ndarray, vocab_size: int = 30522) -> Dataset:
    """Rows of token ids of those lengths, with labels of 0 and 1."""
    rng = np.random.default_rng(1)
    ids = [rng.integers(5, vocab_size, length).tolist() for length in lengths]
    labels = rng.integers(0, 2, len(ids)).tolist()
    masks = [[1] * len(row) for row in ids]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": labels})


def batches(rows: Dataset, size: int, shuffle: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches of the rows without end, in their order unless they are shuffled."""
    loader = DataLoader(rows, size, shuffle=shuffle, collate_fn=COLLATE)  # type: ignore[arg-type]
    while True:
        yield from loader


class BareLoop:
    """A plain training loop; a call is a step.

    Args:
        model: what trains, on the CPU.
        data: batches without end.
        loss: of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterator[dict[str, torch.Tensor]],
        loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
        zero_gradients: bool = False,
    ) -> None:
        model.train()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.data, self.loss, self.zero_gradients = data, loss, zero_gradients
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        if zero_gradients:
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)

    def __call__(self) -> None:
        """Take a step."""
        loss = self.loss(next(self.data))
        if loss.requires_grad:  # else none of the successor's blocks was drawn
            loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.zero_gradients)


def plain_loop(model: nn.Module, data: Iterator[dict[str, torch.Tensor]]) -> BareLoop:
    """Floor A: fine-tuning."""
    return BareLoop(model, data, lambda batch: model(**batch).loss)


def teacher_loop(
    model: nn.Module, teacher: nn.Module, data: Iterator[dict[str, torch.Tensor]]
) -> BareLoop:
    """Floor B: a live teacher, and its soft targets beside the labels."""
    teacher.requires_grad_(False)

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            wanted = teacher(**inputs).logits
        outputs = model(**batch)
        return 0.5 * outputs.loss + 0.5 * soft_targets(outputs.logits, wanted)

    return BareLoop(model, data, loss)


def cached_loop(model: nn.Module, data: Iterator[Any], logits: torch.Tensor) -> BareLoop:
    """Distillation from logits in memory, a row of them for every row of a batch."""
    rows = iter(_numbers(len(logits)))

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs = model(**batch)
        wanted = logits[[next(rows) for _ in batch["labels"]]]
        return 0.5 * outputs.loss + 0.5 * soft_targets(outputs.logits, wanted)

    return BareLoop(model, data, loss)


def soft_targets(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Hinton's loss, on logits of shape (batch, labels)."""
    log_probabilities = F.log_softmax(student / TEMPERATURE, -1)
    wanted = F.softmax(teacher / TEMPERATURE, -1)
    return F.kl_div(log_probabilities, wanted, reduction="batchmean") * TEMPERATURE**2


def theseus_loop(
    successor: BertForSequenceClassification,
    predecessor: BertForSequenceClassification,
    data: Iterator[dict[str, torch.Tensor]],
    rate: float,
    seed: int,
    zero_gradients: bool = True,
) -> BareLoop:
    """Theseus's floor: the successor's blocks within the predecessor, which is frozen.

    It takes the paths that a `TheseusTrainer` of that seed takes.
    """
    model = copy.copy(predecessor.requires_grad_(False))
    ours, theirs = list(successor.bert.encoder.layer), list(predecessor.bert.encoder.layer)
    size, steps = len(theirs) // len(ours), iter(_numbers())

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        replaced = draw_replaced(seed, next(steps), rate, len(ours))
        path: list[nn.Module] = []
        for slot, chosen in enumerate(replaced):
            path += [ours[slot]] if chosen else theirs[slot * size : (slot + 1) * size]
        model.bert.encoder.layer = nn.ModuleList(path)
        return model(**batch).loss

    predecessor.train()
    return BareLoop(nn.ModuleList(ours), data, loss, zero_gradients)


def _numbers(end: int | None = None) -> Iterator[int]:
    """0, 1, 2 and so on, from the start again at `end`."""
    number = 0
    while True:
        yield number
        number = number + 1 if end is None else (number + 1) % end


def settings(folder: str | Path, steps: int, batch_size: int, **others: Any) -> dict[str, Any]:
    """Training arguments under which a trainer does what the loops here do."""
    return {
        "output_dir": str(folder),
        "overwrite_output_dir": True,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": LEARNING_RATE,
        "train_sampling_strategy": "sequential",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "seed": SEED,
        **others,
    }


class InferencePass:
    """A bare pass over rows, the longest first; a call is a batch.

    Attributes:
        seconds: what its batches took.
        nested: the same, of those that ran inside of something else that is timed.
    """

    def __init__(self, model: nn.Module, rows: Dataset, batch_size: int) -> None:
        self.model, self.rows = model, rows
        lengths = np.array([len(ids) for ids in rows["input_ids"]])
        order = np.argsort(-lengths, kind="stable")
        self.parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.logits: list[torch.Tensor] = []
        self.seconds = self.nested = 0.0
        self.runs = False

    def __call__(self) -> None:
        """Run the next batch, if there is one left."""
        if len(self.logits) == len(self.parts):
            return
        start = now()
        rows = self.rows.select(self.parts[len(self.logits)])
        batch = COLLATE([{k: v for k, v in row.items() if k != "labels"} for row in rows])
        with torch.no_grad():
            self.logits.append(self.model(**batch).logits)
        self.seconds += float((now() - start)[0])

    def finish(self) -> None:
        """Run what is left."""
        while len(self.logits) < len(self.parts):
            self()

    @contextmanager
    def beside(self, model: nn.Module) -> Iterator[None]:
        """Run a batch whenever the model is about to run one for somebody else."""

        def take_turn(*_: Any) -> None:
            if not self.runs:
                self.runs = True
                self.nested += float(timed(self)[0])
                self.runs = False

        handle = model.register_forward_pre_hook(take_turn)
        try:
            yield
        finally:
            handle.remove()

    def logits_of(self, numbers: np.ndarray) -> torch.Tensor:
        """The logits of some rows, once all are there."""
        self.finish()
        order = np.argsort(np.concatenate(self.parts))
        return torch.cat(self.logits)[order[numbers]]
