"""The ways in which a trainer can run, and what each trainer does in each: the table in docs/.

`tests/trainers/test_modes.py` runs every cell, or names the test that does, and compares the table.
"""

from dataclasses import dataclass, field
from typing import Any

from settings import CHECKPOINTING

TRAINERS = {
    "fine-tuning": "finetuning",
    "distillation": "distillation",
    "distillation, cached teacher": "distillation-cached",
    "Theseus": "theseus",
}
"""A row of the table, and the row of `TRAINER_ROWS` that stands for it."""

ON_CPU = "tested on CPU"
UNTRIED = "refused on CPU: it would be float32; the GPU test has not run"


@dataclass(frozen=True)
class Mode:
    """One column of the table.

    Attributes:
        settings: the training arguments that ask for it.
        own: other arguments for a trainer that asks for it in its own way, by row.
        refused: what a trainer says that will not run so, and the reason in a few words, by row.
        close: how far the loss of the first step may be from that of the plain run, relatively;
            `None` where the first batch is another one.
        streams: whether the rows come from an `IterableDataset`.
        slow: whether it takes a compiler and minutes.
        needs_gpu: whether CPUs have no such mode.
        shown_by: the test that runs it, where that is not `test_modes.py`.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    close: float | None = 1e-5
    streams: bool = False
    slow: bool = False
    needs_gpu: bool = False
    shown_by: str = ""


ZERO = ("runs under DDP and FSDP2, got DeepSpeed", "the gradients are the engine's; use FSDP2")

MODES = {
    "DDP": Mode(shown_by="tests/distributed/test_two_processes.py"),
    "FSDP2": Mode(shown_by="tests/distributed/test_fsdp.py"),
    "ZeRO": Mode(
        refused=dict.fromkeys(TRAINERS.values(), ZERO), shown_by="tests/trainers/test_bad_input.py"
    ),
    "bf16": Mode({"bf16": True}, close=2e-2),
    "fp16": Mode({"fp16": True}, close=5e-3, needs_gpu=True),
    "checkpointing": Mode({CHECKPOINTING: True}),
    "compile": Mode(
        {"torch_compile": True},
        own={"theseus": {"compile_blocks": True}},
        close=1e-4,
        slow=True,
    ),
    "accumulation": Mode(
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, close=1e-4
    ),
    "streaming": Mode(
        streams=True,
        close=None,
        refused={
            "distillation-cached": ("A cache is by row", "a cache is by row, a stream has none")
        },
    ),
    "grouped by length": Mode({"train_sampling_strategy": "group_by_length"}, close=None),
    "unpadded": Mode({"unpadded": True}),
    "auto_find_batch_size": Mode({"auto_find_batch_size": True}),
    "resume": Mode(shown_by="tests/trainers/test_contract.py"),
}


def what_runs_where() -> str:
    """The table in Markdown."""
    lines = [
        "| | " + " | ".join(TRAINERS) + " |",
        "| :-- | " + " | ".join(":--" for _ in TRAINERS) + " |",
    ]
    for name, mode in MODES.items():
        cells = [_cell(mode, row) for row in TRAINERS.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(mode: Mode, row: str) -> str:
    if row in mode.refused:
        return f"refused: {mode.refused[row][1]}"
    return UNTRIED if mode.needs_gpu else ON_CPU
