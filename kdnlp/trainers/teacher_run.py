"""How a frozen teacher computes: as it is, or faster, with answers whose difference is measured."""

import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32
from torch import nn

from kdnlp.losses import DistillationLoss
from kdnlp.models.layers import find_blocks

logger = logging.getLogger(__name__)

_LOGITS = ("logits", "start_logits", "end_logits")


class TeacherRun:
    """The teacher of a run as `args.teacher_precision` and `args.compile_teacher` ask for it.

    By default it is the caller's model under the run's own autocast, and nothing is measured.
    """

    def __init__(self) -> None:
        self._quantized: nn.Module | None = None
        self._compiled: list[nn.Module] = []
        self._precision = "run"
        self._measures = False

    def start(self, args: Any, teacher: Any) -> None:
        """Prepare a teacher, several as one, or nothing where there is none; `stop` undoes it."""
        self.stop()
        self._precision = getattr(args, "teacher_precision", "run")
        compiles = getattr(args, "compile_teacher", False)
        self._measures = teacher is not None and (self._precision != "run" or compiles)
        if not self._measures:
            return
        if self._precision == "int8":
            self._quantized = quantize_linears(teacher)
        if compiles:
            self._compiled = _blocks(teacher)
            for block in self._compiled:
                block.compile(dynamic=True)

    def stop(self) -> None:
        """Leave the caller's teacher as it was."""
        for block in self._compiled:
            block._compiled_call_impl = None
        self._quantized, self._compiled, self._measures = None, [], False

    def model(self, teacher: Any) -> Any:
        """What runs in the teacher's place."""
        return teacher if self._quantized is None else self._quantized

    def autocast(self, accelerator: Accelerator) -> AbstractContextManager[Any]:
        """The precision of the teacher's forward pass."""
        if self._precision == "run":
            return accelerator.autocast()
        half = self._precision == "bfloat16"
        return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half)

    def effect(
        self, outputs: Mapping[str, Any], plain: Callable[[], Any], accelerator: Accelerator
    ) -> dict[str, float]:
        """At the first batch, how far the logits are from what the teacher says without all this.

        Args:
            outputs: what it says, in float32.
            plain: runs the caller's own teacher on the same batch.
            accelerator: of the run, whose precision is the teacher's by default.

        Returns:
            Largest and mean absolute difference, and the share of equal largest logits, which is
            of no meaning and left out where there is one; nothing after the first batch.
        """
        if not self._measures:
            return {}
        self._measures = False
        with torch.compiler.set_stance("force_eager"), accelerator.autocast():
            expected = convert_to_fp32(plain())
        found = compare_logits(outputs, expected)
        logger.info(
            "The teacher runs with teacher_precision=%s%s. On the first batch: %s.",
            self._precision,
            ", compiled" if self._compiled else "",
            ", ".join(f"{name} {value:.3g}" for name, value in found.items()),
        )
        return found

    def key(self) -> str:
        """What tells cached outputs apart; empty where the teacher runs as it is."""
        own = "" if self._precision == "run" else f" teacher in {self._precision}"
        return f"{own} compiled" if self._compiled else own

    def check(self, args: Any, teacher: Any, losses: Mapping[str, DistillationLoss]) -> None:
        """Raise `ValueError` if this teacher cannot run so, or a loss would not see its layers."""
        readers = [name for name, x in losses.items() if x.needs_teacher and x.needs - {"logits"}]
        if getattr(args, "compile_teacher", False) and readers:
            raise ValueError(
                "compile_teacher=True hides what happens inside the teacher's blocks, which the "
                f"losses {', '.join(readers)} read. Leave it off, or use losses on logits alone."
            )
        if teacher is None or getattr(args, "teacher_precision", "run") != "int8":
            return
        if args.device.type != "cpu":
            raise ValueError(
                "teacher_precision=int8 is torch's dynamic quantization, which runs on CPUs, got "
                f"a run on {args.device.type}. Use bfloat16 there."
            )
        if not any(type(m) is nn.Linear for block in _blocks(teacher) for m in block.modules()):
            raise ValueError(
                "teacher_precision=int8 quantizes nn.Linear, and the blocks of "
                f"{type(teacher).__name__} have none of it (GPT-2 has Conv1D; a teacher may be "
                "quantized already): it would run as it is. Use bfloat16, or leave it out."
            )


def quantize_linears(model: nn.Module) -> nn.Module:
    """A copy whose linear maps have int8 weights and quantize what they read, call by call.

    The rest computes in float32. For CPUs.
    """
    # torch announces that this moves to torchao, which would be one more dependency.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(
            model, {nn.Linear}, dtype=torch.qint8
        )
    return quantized


def _blocks(teacher: Any) -> list[nn.Module]:
    """Of one teacher, or of several as one."""
    return [b for member in getattr(teacher, "members", [teacher]) for b in find_blocks(member)]


def compare_logits(got: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """Largest and mean absolute difference of logits, and the share of equal largest ones."""
    pairs = [(got[name], expected[name]) for name in _LOGITS if name in expected]
    differences = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    found = {
        "teacher_logits_max_difference": float(differences.max()),
        "teacher_logits_mean_difference": float(differences.mean()),
    }
    if all(b.size(-1) > 1 for _, b in pairs):
        same = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in pairs])
        found["teacher_agreement"] = float(same.float().mean())
    return found
