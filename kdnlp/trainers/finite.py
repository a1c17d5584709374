"""NaN and infinity: noted on the device where they arise, and read before anything is saved.

To ask a GPU after every step whether its numbers are still finite would make it wait. So what is
wrong first is kept there, and read when the run talks to the device anyway: for the log, before an
evaluation, a checkpoint and the end. On a CPU it is read in every step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator

LABELS, TEACHER, GRADIENT = "labels", "teacher logits", "gradient"
MAX_ROWS = 8
"""How many rows an error names."""

NEVER = 2**62  # a power of two, for it passes through floating point

_FIXES = {
    LABELS: "Correct or drop these rows; -100 takes what has no label out of every loss over "
    "predictions",
    TEACHER: "Look at what the teacher reads there; one that overflows in float16 does not in "
    "bfloat16 or float32",
    GRADIENT: "Use a lower learning_rate or more warmup_steps; where losses and weights are small, "
    "look for the slope of a square root or a logarithm at 0",
}
_FIX_LOSS = (
    "Use a lower learning_rate or more warmup_steps, bf16 in the place of fp16, and look at these "
    "rows"
)


class FiniteGuard:
    """Remembers the first thing in a run that was not what a model can learn from.

    Every process has one. They agree to stop, and all say the same: what went wrong first, on
    whichever of them it was.

    Attributes:
        parts: what may be wrong, in the order in which it would be found within a micro-batch.
        reads_steps: whether each step is read, which costs nothing on a CPU.

    Args:
        accelerator: through which the processes talk.
        losses: the names of the losses.
    """

    def __init__(self, accelerator: Accelerator, losses: Sequence[str]) -> None:
        self.accelerator = accelerator
        self.parts = [LABELS, TEACHER, *map(loss_part, losses), GRADIENT]
        self.reads_steps = accelerator.device.type == "cpu"
        self.begin_run()

    def begin_run(self) -> None:
        """Forget what an earlier run left."""
        size = (3 + 2 * MAX_ROWS,)
        # The optimizer step, the micro-batch, the part; rows of the batch, and of the dataset.
        self._first = torch.full(size, NEVER, device=self.accelerator.device)
        self._unread = False
        self.begin_step(0)

    def begin_step(self, step: int) -> None:
        """Count micro-batches anew; `step` optimizer steps are done."""
        self.step, self.micro_batch = step, 0

    def watch(
        self,
        bad: Mapping[str, torch.Tensor],
        micro_batch: int,
        numbers: torch.Tensor | None = None,
    ) -> None:
        """Note the first part that is bad anywhere, unless something was noted before.

        Args:
            bad: by part, which rows of the micro-batch are bad: boolean, shape (rows,).
            micro_batch: which one of the optimizer step.
            numbers: the rows' numbers in the dataset, shape (rows,), where they are known.
        """
        self._unread = True
        if self.reads_steps and not any(rows.any() for rows in bad.values()):
            return  # to look costs less than to note
        device = self.accelerator.device
        good = torch.zeros_like(next(iter(bad.values())))
        table = torch.stack([bad.get(part, good) for part in self.parts]).to(device)
        # No indexing by a tensor of no dimensions here, which would wait for the device.
        part = table.any(1).int().argmax().view(1)
        rows = torch.arange(table.size(1), device=device)
        rows = rows.masked_fill(~table.index_select(0, part)[0], NEVER).sort().values[:MAX_ROWS]
        known = torch.full_like(rows, NEVER)
        if numbers is not None:
            there = numbers.to(device).index_select(0, rows.clamp(max=table.size(1) - 1))
            known = torch.where(rows < NEVER, there, known)
        when = [torch.full((1,), n, device=device) for n in (self.step, micro_batch)]
        missing = (0, MAX_ROWS - len(rows))
        named = [F.pad(places, missing, value=NEVER) for places in (rows, known)]
        is_first = table.any() & (self._first[0] == NEVER)
        self._first = torch.where(is_first, torch.cat([*when, part, *named]), self._first)
        if self.reads_steps and self.accelerator.num_processes == 1:
            self.check()

    def watch_losses(
        self,
        losses: Mapping[str, torch.Tensor],
        logits: torch.Tensor,
        teacher: torch.Tensor | None,
        numbers: torch.Tensor | None,
    ) -> None:
        """Note losses of a micro-batch, and logits of the teacher's, that are not finite.

        Args:
            losses: scalars by name.
            logits: the student's, shape (rows, ...): a loss is blamed on rows where these are not
                finite, and on all if there are none.
            teacher: the teacher's logits, shape (rows, ...), where there are any.
            numbers: see `watch`.
        """
        bad = {loss_part(n): ~loss.detach().isfinite().view(1) for n, loss in losses.items()}
        if teacher is not None:
            bad[TEACHER] = not_finite(teacher)
        if not self.reads_steps or any(rows.any() for rows in bad.values()):
            suspects = not_finite(logits.detach())
            suspects = suspects | ~suspects.any()
            bad = {part: rows if part == TEACHER else suspects & rows for part, rows in bad.items()}
        self.watch(bad, self.micro_batch, numbers)
        self.micro_batch += 1

    def watch_gradient(self, norm: Any) -> None:
        """Note a gradient whose norm is not finite, unless fp16 is at work.

        There the gradient scaler is looking for the largest scale without an overflow, and leaves
        out the steps of those that had one.
        """
        if isinstance(norm, torch.Tensor) and self.accelerator.scaler is None:
            norm = cast(Any, norm).to_local() if hasattr(norm, "to_local") else norm
            # After every micro-batch, and no row's more than another's.
            self.watch({GRADIENT: ~norm.detach().isfinite().view(1)}, NEVER - 1)

    def flag(self) -> torch.Tensor:
        """Whether this process has noted something, shape (1,): 0.0 or 1.0, on the device."""
        return (self._first[:1] != NEVER).float()

    def heed(self, flags: torch.Tensor | float) -> None:
        """Raise if `flag`, added up over all processes, says that one of them noted something."""
        self._unread = False
        if flags > 0:
            raise self._error()

    def check(self) -> None:
        """Raise on every process if one of them has noted something.

        Raises:
            ValueError: for labels that no model could learn.
            FloatingPointError: for NaN or infinity in what was computed.
        """
        if self._unread:
            self.heed(self.accelerator.reduce(self.flag(), reduction="sum"))

    def _error(self) -> Exception:
        notes = self.accelerator.gather(self._first[None]).tolist()
        process = min(range(len(notes)), key=lambda p: notes[p][:3])
        step, micro_batch, number, *rows = notes[process]
        part = self.parts[number]
        where = f"Optimizer step {step + 1}"
        if part != GRADIENT:
            where += f", micro-batch {micro_batch + 1} on process {process}"
            where += _named_rows(rows[:MAX_ROWS], rows[MAX_ROWS:])
        expected = f"expected finite {part}" if part in (TEACHER, GRADIENT) else f"expected {part}"
        if part == LABELS:
            expected += " that the model has an output for"
        elif part not in (TEACHER, GRADIENT):
            expected += " to be finite"
        got = "others" if part == LABELS else "NaN or infinity"
        kind = ValueError if part == LABELS else FloatingPointError
        return kind(
            f"{where}: {expected}, got {got}. The weights would become NaN, or learn what is not "
            f"there. {_FIXES.get(part, _FIX_LOSS)}. Nothing was saved since that step: earlier "
            "checkpoints are whole, and resume_from_checkpoint goes on from them."
        )


def loss_part(name: str) -> str:
    """What an error calls a loss."""
    return f"the loss {name!r}"


def not_finite(values: torch.Tensor) -> torch.Tensor:
    """Which rows of a tensor (rows, ...) hold NaN or infinity: boolean, shape (rows,).

    Told by their sums, so that large logits are read once and nothing of their size is made.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    return ~values.reshape(len(values), -1).sum(1, dtype=wide).isfinite()


def _named_rows(rows: list[int], numbers: list[int]) -> str:
    named = [row for row in rows if row < NEVER]
    known = [number for number in numbers if number < NEVER]
    more = " and perhaps more" if len(named) == MAX_ROWS else ""
    text = f", rows {', '.join(map(str, named))}{more} of it"
    if known:
        text += f" (rows {', '.join(map(str, known))} of the dataset)"
    return text
