"""Running out of memory: what to do about it, and a fresh start with a smaller batch."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from kdnlp.checkpoints import list_checkpoints
from kdnlp.trainers.output_dir import remove_checkpoints

if TYPE_CHECKING:
    from kdnlp.trainers.guarded import GuardedTrainer

logger = logging.getLogger(__name__)

_WORDS = ("out of memory", "not enough memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU's allocator had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)
    )


@contextmanager
def explained_memory(trainer: "GuardedTrainer") -> Iterator[None]:
    """Add to an error of memory what would use less; its type stays, and is raised on."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            # Python 3.10 knows no notes.
            getattr(error, "add_note", logger.error)(_advice(trainer))
        raise


@contextmanager
def undone_if_too_large(trainer: "GuardedTrainer") -> Iterator[None]:
    """Under `auto_find_batch_size`, take back what an attempt that ran out of memory has trained.

    The next attempt begins at step 0, with the weights, the optimizer and the random numbers that
    the run was given. Otherwise the steps before the large batch would have been trained twice.
    Its checkpoints go: were the next attempt killed before it has written one, it would be resumed
    from them.
    """
    if not trainer.args.auto_find_batch_size:
        yield
        return
    model = trainer.student
    weights = {n: t.detach().to("cpu", copy=True) for n, t in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    own = None if trainer.optimizer is None else _Optimizer(trainer.optimizer)
    rates: Any = trainer.lr_scheduler
    schedule = None if rates is None else copy.deepcopy(rates.state_dict())
    random = torch.get_rng_state()
    device = trainer.args.device
    theirs = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    folder = str(trainer.args.output_dir)
    before = list_checkpoints(folder)
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            model.load_state_dict(weights)
            for name, module in model.named_modules():
                module.training = modes.get(name, module.training)
            model.zero_grad()
            trainer.optimizer = None if own is None else own.restored()
            tries_again = should_reduce_batch_size(error) and trainer._train_batch_size > 1
            if tries_again and trainer.is_world_process_zero():
                remove_checkpoints(folder, keep=before)
            trainer._recorded = {}
            if schedule is not None and not trainer._created_lr_scheduler:
                rates.load_state_dict(schedule)
            torch.set_rng_state(random)
            if theirs is not None:
                torch.cuda.set_rng_state(theirs, device)
        raise


class _Optimizer:
    """A caller's optimizer as it was, its groups too: the losses' parameters are added to them."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.state = copy.deepcopy(optimizer.state_dict())
        self.groups = [[*group["params"]] for group in optimizer.param_groups]

    def restored(self) -> torch.optim.Optimizer:
        groups = self.optimizer.param_groups
        del groups[len(self.groups) :]
        for group, parameters in zip(groups, self.groups, strict=True):
            group["params"] = [*parameters]
        self.optimizer.load_state_dict(self.state)
        return self.optimizer


def _advice(trainer: "GuardedTrainer") -> str:
    args = trainer.args
    shape = trainer.batch_shape.get("input_ids")
    batch = "before its first batch" if shape is None else f"with input_ids of the shape {shape}"
    less = [
        f"a smaller per_device_train_batch_size (it is {args.per_device_train_batch_size}) with as "
        f"much more gradient_accumulation_steps (it is {args.gradient_accumulation_steps}), which "
        "trains the same"
    ]
    ways = {
        "gradient_checkpointing": "gradient_checkpointing=True, which keeps fewer activations",
        "auto_find_batch_size": "auto_find_batch_size=True, which looks for a batch that fits",
        "unpadded": "unpadded=True, where texts differ in length",
    }
    less += [text for name, text in ways.items() if not getattr(args, name, False)]
    return f"kdnlp: memory ran out {batch}. To need less: {'; '.join(less)}."
