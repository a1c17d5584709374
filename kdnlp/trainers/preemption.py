"""A run that is told to stop: SIGTERM ends the step, saves a checkpoint and ends the process."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

EXIT_STATUS = 128 + signal.SIGTERM
"""143: what a shell shows for every process that SIGTERM ends."""


class Preempted(SystemExit):
    """Training was told to stop by SIGTERM, and has saved a checkpoint of the step that it ended.

    Left alone it ends the process with status 143; no `except Exception` takes it for a failure
    of one trial and goes on. A launcher has a status of its own: that of `accelerate launch` is 1,
    and it kills its processes 30 seconds after it passed the signal on.

    Attributes:
        checkpoint: the folder to resume from.
    """

    def __init__(self, checkpoint: str) -> None:
        super().__init__(EXIT_STATUS)
        self.checkpoint = checkpoint


class Preemption(TrainerCallback):
    """Listens for SIGTERM while a run lasts, and stops all of its processes after the same step.

    One process stops at the end of the step in which the signal came. Several have to agree: how
    many were told to stop travels with the counts of items that they add up before every step
    anyway, and the number is read when that step ends. No further exchange is needed, nor does the
    device wait: a signal to one process ends all of them one step later.

    Attributes:
        stopping: whether the next checkpoint is the last.
        saved: the newest checkpoint's folder.
    """

    saved = ""

    def __init__(self) -> None:
        self._reset(1)

    def _reset(self, processes: int) -> None:
        self._processes = processes
        self.requested = self.stopping = False
        self._told: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    @contextmanager
    def listening(self, processes: int) -> Iterator[None]:
        """Take SIGTERM as a wish to stop, in the main thread: Python allows handlers in no other.

        A signal that came too late for a step has its usual effect once training is over.

        Args:
            processes: how many run together.
        """
        self._reset(processes)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        except Preempted:
            self.requested = False
            raise
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
            if self.requested:
                signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: Any) -> None:
        self.requested = True

    def beside(self, counts: torch.Tensor) -> torch.Tensor:
        """The counts of this process and, of several, whether it was told to stop."""
        if self._processes == 1:
            return counts
        return torch.cat([counts, counts.new_full((1,), float(self.requested))])

    def agreed(self, totals: torch.Tensor) -> torch.Tensor:
        """The counts of all processes; how many were told is read when the step has ended."""
        if self._processes == 1:
            return totals
        told = totals[-1:]
        self._told = torch.empty_like(told, device="cpu", pin_memory=told.is_cuda)
        self._told.copy_(told, non_blocking=True)
        if told.is_cuda:
            # The step's own work is queued after this: waiting for it is no wait for the step.
            self._copied = torch.cuda.Event()
            self._copied.record()
        return totals[:-1]

    def _is_told(self) -> bool:
        if self._processes == 1:
            return self.requested
        if self._copied is not None:
            self._copied.synchronize()
        return self._told is not None and bool(self._told)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save now, or where an epoch or the run ends, once what else happens then has happened."""
        ends = control.should_training_stop or float(state.epoch or 0).is_integer()
        if not ends:
            self._save_if_told(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save after the evaluation that ends an epoch: resuming would not make up for it."""
        self._save_if_told(control)

    def _save_if_told(self, control: TrainerControl) -> None:
        if self._is_told():
            self.stopping = control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the run, now that its last step is on the disk."""
        if self.stopping:
            if state.is_world_process_zero:
                logger.warning(
                    "Stopped by SIGTERM: step %d is saved in %s. The same command with "
                    "--resume_from_checkpoint last goes on from there.",
                    state.global_step,
                    self.saved,
                )
            raise Preempted(self.saved)


def ignore_sigterm(then: Callable[[int], None] | None, worker: int) -> None:
    """Start a data loader's worker so that a signal to all processes of a job leaves it at work.

    Its death would be an error in the step that its process is about to finish.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if then is not None:
        then(worker)
