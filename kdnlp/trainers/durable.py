"""Nothing is lost when a machine dies: one run a folder, whole checkpoints, a stop that saves."""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from kdnlp.arguments import CompressionTrainingArguments
from kdnlp.checkpoints import SETTINGS, TRAINER_STATE, find_checkpoint, recorded_settings
from kdnlp.files import PARTIAL, model_written_whole, replace_folder
from kdnlp.loading import forget_lengths
from kdnlp.trainers.output_dir import (
    check_output_dir,
    check_space,
    decided_by_main_process,
    output_dir_held,
    remove_checkpoints,
    remove_other_report,
    remove_unfinished,
    set_aside_damaged,
    writing_to,
)
from kdnlp.trainers.preemption import Preemption, ignore_sigterm
from kdnlp.trainers.resuming import check_resume_files
from kdnlp.trainers.step import WeightedLossTrainer
from kdnlp.trainers.stream import StreamPlace

logger = logging.getLogger(__name__)

_PLACE = "place in the stream"
"""The key of `StreamPlace.to_resume` among the settings that a checkpoint records."""

_TORCH_WRITES = ("PytorchStreamWriter", "inline_container")
"""What a `RuntimeError` of `torch.save` that could not write speaks of."""


class DurableTrainer(WeightedLossTrainer):
    """A `WeightedLossTrainer` whose run can be killed at any moment and resumed.

    A checkpoint, or the model at the end, is written beside its place and moved there when every
    file is on the disk; older checkpoints are removed after that.
    """

    method = ""

    def __init__(self, args: CompressionTrainingArguments, **kwargs: Any) -> None:
        if args.should_save:
            with writing_to(str(args.output_dir)):
                Path(str(args.output_dir)).mkdir(parents=True, exist_ok=True)
        self.preemption = Preemption()
        self._partial: Path | None = None
        self._owns_output_dir = False
        self._holds_other_run = False
        super().__init__(args=args, **kwargs)
        self.add_callback(self.preemption)

    @contextmanager
    def owned(self, wish: str | bool | None) -> Iterator[str | None]:
        """Hold the run's folder while the block trains in it.

        Args:
            wish: what `train` is asked to resume from.

        Yields:
            The checkpoint to resume from, which is whole.
        """
        with ExitStack() as held:
            checkpoint = decided_by_main_process(partial(self._claim, wish, held))
            overwrites = self.args.overwrite_output_dir and checkpoint is None
            # Still so where an earlier start was refused before it took a step.
            still = self._holds_other_run or not self._owns_output_dir
            self._holds_other_run = overwrites and still
            self._owns_output_dir = True
            if checkpoint is not None:
                self._warn_of_changes(recorded_settings(Path(checkpoint)))
            yield checkpoint

    def _claim(self, wish: str | bool | None, held: ExitStack) -> str | None:
        """Lock the folder, and refuse whatever would stop the run, or lose it, later.

        It is called on the main process alone, which decides for all.
        """
        args, folder = self.args, str(self.args.output_dir)
        held.enter_context(output_dir_held(folder))
        checkpoint = find_checkpoint(str(wish) if wish else None, folder)
        if wish is True and checkpoint is None:
            raise ValueError(f"resume_from_checkpoint=True, and {folder} has no whole checkpoint.")
        if not (checkpoint or self._owns_output_dir or args.overwrite_output_dir):
            check_output_dir(folder)
        remove_unfinished(folder)
        if self.model is not None:  # there is none between the trials of a search
            check_space(folder, sum(p.nbytes for p in self.student.parameters()))
        if checkpoint is not None:
            check_resume_files(checkpoint)
            set_aside_damaged(checkpoint)
        return checkpoint

    def _init_training_state(
        self, max_steps: int, num_steps: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """The epochs that were trained before, and the micro-batches of the one that goes on."""
        trained = super()._init_training_state(max_steps, num_steps, num_epochs, checkpoint, trial)
        if num_epochs < sys.maxsize:  # what the stock trainer says of data without a length
            self.place = None
            return trained
        before = recorded_settings(Path(checkpoint)).get(_PLACE) if checkpoint else None
        passes, steps = before or (0, self.state.global_step)
        self.place = StreamPlace(passes, 0 if self.args.ignore_data_skip else steps)
        return passes, self.place.steps * self.args.gradient_accumulation_steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Take no step beyond the last one: a run that is resumed at its end is done."""
        cast(dict[str, Any], self.state.stateful_callbacks)[SETTINGS] = self._settings()
        if self.place is not None:
            self.place.begin(kwargs["epoch"])
        if self._holds_other_run:
            # Only now: nothing can refuse this run any more.
            self._holds_other_run = False
            if self.is_world_process_zero():
                remove_checkpoints(str(self.args.output_dir))
            self.accelerator.wait_for_everyone()
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            if self._grouped is not None:
                # Of a resumed run on several processes accelerate does not reach the sampler.
                self._grouped.set_epoch(kwargs["epoch"])
            super()._run_epoch(*args, **kwargs)

    def _settings(self) -> dict[str, Any]:
        """What decides which rows a step sees and what it does with them."""
        args = self.args
        return {
            "method": self.method,
            "losses": sorted(self.losses),
            "seed": args.seed,
            "data_seed": args.data_seed,
            "processes": args.world_size,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "train_sampling_strategy": str(args.train_sampling_strategy),
            "train_rows": getattr(self.train_dataset, "num_rows", None),
        }

    def _warn_of_changes(self, before: dict[str, Any]) -> None:
        now = self._settings()
        changed = [
            f"{name} (was {before[name]!r}, is {now[name]!r})"
            for name in now
            if name in before and before[name] != now[name]
        ]
        if changed:
            logger.warning(
                "The resumed run was set up otherwise: %s. It goes on, but not as it would have: "
                "rows may be repeated or left out, or learned otherwise.",
                ", ".join(changed),
            )

    # Writing.

    def _get_output_dir(self, trial: Any) -> str:
        """Where the run's checkpoints go; while one is written, the folder of what is partial."""
        return str(self._partial or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint and move it to its place, then remove old ones."""
        args, folder = self.args, Path(super()._get_output_dir(trial))
        target = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._partial = folder / PARTIAL
        if self.place is not None:
            recorded = cast(dict[str, Any], self.state.stateful_callbacks)
            recorded[SETTINGS][_PLACE] = self.place.to_resume()
        save_only_model = args.save_only_model
        # Who is told to stop wants to go on later.
        args.save_only_model = save_only_model and not self.preemption.stopping
        try:
            with _explained(target):
                super()._save_checkpoint(model, trial)
                self._name_best(folder)
                # The random states of all processes are part of it.
                self.accelerator.wait_for_everyone()
                self._move(self._partial / target.name, target)
                if args.should_save:
                    remove_unfinished(str(folder))
                # Another process may save again at once, into the folder that was just removed.
                self.accelerator.wait_for_everyone()
        except BaseException:
            if args.should_save:
                remove_unfinished(str(folder))
            raise
        finally:
            self._partial, args.save_only_model = None, save_only_model
        self.preemption.saved = str(target)
        if args.push_to_hub:
            self._push_from_checkpoint(str(target))
        if args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder), args.save_total_limit, best, use_mtime=True)

    def _name_best(self, folder: Path) -> None:
        """Call the best checkpoint by the place where it will be, in the state on the disk too."""
        state, before = self.state, self.state.best_model_checkpoint
        best, this = (
            f"{PREFIX_CHECKPOINT_DIR}-{step}"
            for step in (state.best_global_step, state.global_step)
        )
        if best == this or (folder / best).is_dir():
            state.best_model_checkpoint = str(folder / best)
        if state.best_model_checkpoint != before and self.args.should_save:
            state.save_to_json(str(folder / PARTIAL / this / TRAINER_STATE))

    def _move(self, partial: Path, target: Path) -> None:
        """Give a checkpoint its name.

        Whoever has written the model does it, and nobody looks whether it is still to be done: a
        network's file system may show another node the folder for a while after it was moved.
        """
        if self.args.should_save:
            replace_folder(partial, target)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the model, each file whole or not at all."""
        folder = Path(output_dir or str(self.args.output_dir))
        forget_lengths(self.processing_class)
        if self._partial is not None or not self.args.should_save:
            super()._save(str(folder), state_dict)
            return
        with _explained(folder), model_written_whole(folder) as partial:
            super()._save(str(partial), state_dict)
            remove_other_report(folder, partial)

    # Stopping.

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """End the run; a signal that came after the last step saves it, on all processes."""
        told = torch.tensor(float(self.preemption.requested), device=self.args.device)
        if float(self.accelerator.reduce(told, reduction="sum")):
            self.preemption.stopping = True
            self._save_checkpoint(self.model_wrapped, trial)
            self.preemption.on_save(self.args, self.state, self.control)
        return super()._finalize_training(trial, *args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether to save, where save_strategy asks for the best only: the last step too."""
        is_best = super()._determine_best_metric(metrics, trial)
        return is_best or self.preemption.stopping

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The stock data loader, whose workers do not end at a signal to the whole job.

        One to evaluate with has every row of the given dataset: the stock one drops a last batch
        that is not full, and with persistent workers gives the first dataset again for any other.
        """
        with nullcontext() if kwargs.get("is_training") else _reading_whole(self.args):
            loader = super()._get_dataloader(*args, **kwargs)
        if loader.num_workers:
            loader.worker_init_fn = partial(ignore_sigterm, loader.worker_init_fn)
        return loader


@contextmanager
def _reading_whole(args: CompressionTrainingArguments) -> Iterator[None]:
    """Let data loaders that are made meanwhile read every row of what they are made for."""
    given = args.dataloader_drop_last, args.dataloader_persistent_workers
    args.dataloader_drop_last = args.dataloader_persistent_workers = False
    try:
        yield
    finally:
        args.dataloader_drop_last, args.dataloader_persistent_workers = given


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Say of a failure to write what is safe, and how to go on."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(p in str(error) for p in _TORCH_WRITES):
            raise
        raise OSError(
            f"{target} could not be written ({error}). Checkpoints from before are whole. Make "
            "room on the disk, and go on from the newest with resume_from_checkpoint=last."
        ) from error
