"""BERT-of-Theseus: a block list that runs the predecessor's or the successor's block, slot by slot.

Xu et al. 2020, "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing", EMNLP.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from kdnlp.models.layers import LayerStack, find_layers


class TheseusLayers(nn.ModuleList):
    """The successor's blocks, with the predecessor's standing in where a slot is not replaced.

    Children, length and integer indexing are the successor's, so the state dict and the optimizer
    never see the predecessor. Iterating gives the path of the step: per slot the successor's block
    where `replaced` says so, else the slot's predecessor blocks in order. A slice selects slots.
    In eval mode the path is the successor.

    Args:
        successor_blocks: one block a slot.
        predecessor_blocks: all blocks of the predecessor, bottom first.
        slot_sizes: how many predecessor blocks each slot holds; they sum to their number.

    Attributes:
        configs_with_cache: configurations whose `use_cache` is off while this list is attached.
    """

    def __init__(
        self,
        successor_blocks: Sequence[nn.Module],
        predecessor_blocks: Sequence[nn.Module],
        slot_sizes: Sequence[int],
    ) -> None:
        super().__init__(successor_blocks)
        ends = np.cumsum(slot_sizes)
        # A tuple is no module container: these blocks stay out of the state dict, DDP and `.to`.
        self.slots = tuple(
            tuple(predecessor_blocks[end - size : end])
            for end, size in zip(ends, slot_sizes, strict=True)
        )
        self.replaced: tuple[bool, ...] = (True,) * len(slot_sizes)
        self.configs_with_cache: list[PretrainedConfig] = []

    def path(self, slots: slice = slice(None)) -> list[nn.Module]:
        """The blocks that a forward pass runs now, for all slots or a slice of them."""
        successor = list(self._modules.values())[slots]
        if not self.training:
            return successor
        blocks: list[nn.Module] = []
        for block, slot, replaced in zip(
            successor, self.slots[slots], self.replaced[slots], strict=True
        ):
            blocks.extend([block] if replaced else slot)
        return blocks

    def skipped(self) -> list[nn.Module]:
        """The successor's blocks that are not on the path of this step."""
        return [
            block
            for block, replaced in zip(self._modules.values(), self.replaced, strict=True)
            if not replaced
        ]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.path())

    def __getitem__(self, index: int | slice) -> Any:
        return self.path(index) if isinstance(index, slice) else super().__getitem__(index)


def draw_replaced(seed: int, step: int, rate: float, num_slots: int) -> tuple[bool, ...]:
    """One Bernoulli draw a slot, as a function of the seed and the optimizer step alone.

    All processes agree without talking, a resumed run needs no saved state, and every micro-batch
    of a step takes the same path.

    Args:
        seed: the run's seed, at least 0.
        step: the optimizer step, from 0.
        rate: the probability in [0, 1] that a slot is replaced.
        num_slots: how many to draw.
    """
    uniform = np.random.default_rng([seed, step]).random(num_slots)
    return tuple(bool(u < rate) for u in uniform)


@torch.no_grad()
def attach(
    successor: PreTrainedModel,
    predecessor: PreTrainedModel,
    slot_sizes: Sequence[int] | None = None,
    stack: str | None = None,
    share_weights: bool = True,
) -> TheseusLayers:
    """Let the predecessor's blocks stand in for the successor's while it trains.

    The successor takes over the predecessor's embeddings and head, its own blocks stay as they
    are, and its block list becomes a `TheseusLayers`. Nothing of the predecessor is registered
    in the successor, and its key-value cache is turned off. `detach` puts a plain list back.

    Args:
        successor: the smaller model, of the predecessor's class and width.
        predecessor: the fine-tuned model; it is not changed.
        slot_sizes: predecessor blocks per successor block, bottom first; `None` cuts evenly.
        stack: `"encoder"` or `"decoder"`, for models that have both.
        share_weights: `False` leaves the successor's embeddings and head as they are.

    Returns:
        The list that now stands in the successor.

    Raises:
        ValueError: if the two do not fit together, the slots do not add up, or the architecture's
            forward does not run the path that the list gives it.
    """
    theirs, ours = find_layers(predecessor, stack), find_layers(successor, stack)
    check_successor(theirs, ours)
    sizes = resolve_slot_sizes(len(theirs.layers), len(ours.layers), slot_sizes)
    shared = _shared_weights(theirs, ours)
    layers = TheseusLayers(list(ours.layers), list(theirs.layers), sizes)
    # A key-value cache is indexed by the block's position, which shifts with the path.
    # An encoder-decoder's stacks have configurations of their own.
    owners = [module for module in successor.modules() if isinstance(module, PreTrainedModel)]
    configs = {id(module.config): module.config for module in owners}.values()
    layers.configs_with_cache = [
        config for config in configs if getattr(config, "use_cache", False)
    ]
    for config in layers.configs_with_cache:
        config.use_cache = False
    ours.replace(layers)
    # Hidden states are captured by hooks, which predecessor blocks on the path need too.
    for module in predecessor.modules():
        if isinstance(module, PreTrainedModel):
            maybe_install_capturing_hooks(module)
    layers.train(successor.training)
    try:
        _verify_path(successor, predecessor, layers)
    except BaseException:
        detach(successor)
        raise
    if share_weights:
        for tensor, source in shared:
            tensor.copy_(source)
    return layers


def detach(successor: PreTrainedModel) -> None:
    """Put a plain list of the successor's own blocks back; does nothing where there is none."""
    for name, module in list(successor.named_modules()):
        if isinstance(module, TheseusLayers):
            plain = nn.ModuleList(list(module._modules.values()))
            LayerStack(successor, name, "").replace(plain.train(module.training))
            for config in module.configs_with_cache:
                config.use_cache = True


def resolve_slot_sizes(
    num_predecessor: int, num_successor: int, slot_sizes: Sequence[int] | None = None
) -> list[int]:
    """How many predecessor blocks each successor block stands for, bottom first.

    Without `slot_sizes` the cut is even; what does not divide goes to the top slots, since the
    bottom blocks are the hardest to replace (Xu et al. 2020, table 5).

    >>> resolve_slot_sizes(12, 5)
    [2, 2, 2, 3, 3]

    Raises:
        ValueError: if there are more successor than predecessor blocks, or the sizes do not fit.
    """
    if not 1 <= num_successor <= num_predecessor:
        raise ValueError(
            f"The successor has {num_successor} blocks and the predecessor {num_predecessor}. "
            "Every successor block must stand for at least one predecessor block; use fewer, and "
            "at least one."
        )
    if slot_sizes is None:
        small, rest = divmod(num_predecessor, num_successor)
        return [small] * (num_successor - rest) + [small + 1] * rest
    sizes = list(slot_sizes)
    if len(sizes) != num_successor or sum(sizes) != num_predecessor or min(sizes) < 1:
        raise ValueError(
            f"slot_sizes={sizes} must have {num_successor} entries of at least 1, one for each "
            f"successor block, that add up to the predecessor's {num_predecessor} blocks; got "
            f"{len(sizes)} that add up to {sum(sizes)}. Blocks would be skipped or run twice."
        )
    return sizes


def check_successor(predecessor: LayerStack, successor: LayerStack) -> None:
    """Raise `ValueError` if the blocks, shapes or labels of the two models cannot be mixed."""
    ours, theirs = successor.model.config, predecessor.model.config
    facts = {
        "model type": (theirs.model_type, ours.model_type),
        "class": (type(predecessor.model).__name__, type(successor.model).__name__),
        "hidden size": (theirs.hidden_size, ours.hidden_size),
        "block class": (_block_class(predecessor), _block_class(successor)),
        "vocabulary size": (theirs.vocab_size, ours.vocab_size),
        "label names": (theirs.id2label, ours.id2label),
        "dtype": (predecessor.model.dtype, successor.model.dtype),
        "attention implementation": (theirs._attn_implementation, ours._attn_implementation),
        "kinds of block": _block_kinds(predecessor.model, successor.model),
    }
    for fact, (expected, got) in facts.items():
        if expected != got:
            raise ValueError(
                f"The successor must share the predecessor's {fact}: expected {expected}, got "
                f"{got}. Its blocks run inside the predecessor's path, between the predecessor's "
                "embeddings and head. Build the successor with build_student(predecessor, "
                "num_layers=...), or use DistillationTrainer for a student of another shape."
            )
    _refuse_indexed_loops(successor)


def _block_class(stack: LayerStack) -> str:
    """The class of the blocks; sharding derives another one from it."""
    return type(stack.layers[0]).__name__.removeprefix("FSDP")


def _block_kinds(predecessor: PreTrainedModel, successor: PreTrainedModel) -> tuple[Any, Any]:
    """Masks and rotary tables are made once per kind of block in the successor's configuration."""
    kinds = [getattr(m.config, "layer_types", None) or [] for m in (predecessor, successor)]
    return sorted(set(kinds[0])), sorted(set(kinds[1]))


def _refuse_indexed_loops(stack: LayerStack) -> None:
    source = inspect.getsource(inspect.unwrap(type(stack.parent).forward))
    if re.search(r"\.layer_types\[", source):
        raise ValueError(
            f"{type(stack.parent).__name__}.forward looks up layer_types by the position of the "
            "block in its loop. On a path of mixed length the positions shift, and blocks would "
            "run with another block's mask. This architecture is not supported by Theseus; use "
            "DistillationTrainer."
        )


def _shared_weights(
    predecessor: LayerStack, successor: LayerStack
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every tensor of the successor outside its blocks, and the predecessor's of that name."""
    theirs = predecessor.model.state_dict()
    shared = []
    for name, tensor in successor.model.state_dict().items():
        if name.startswith(f"{successor.path}."):
            continue
        if name not in theirs or theirs[name].shape != tensor.shape:
            got = tuple(theirs[name].shape) if name in theirs else "nothing"
            raise ValueError(
                f"The successor's {name} has shape {tuple(tensor.shape)}, the predecessor offers "
                f"{got}. Embeddings and head are the predecessor's; build the successor with "
                "build_student(predecessor, num_layers=...)."
            )
        shared.append((tensor, theirs[name]))
    return shared


@torch.no_grad()
def _verify_path(
    successor: PreTrainedModel, predecessor: PreTrainedModel, layers: TheseusLayers
) -> None:
    """Nothing replaced must give the predecessor's logits exactly, or the forward is not ours."""
    modes = successor.training, predecessor.training
    inputs = _probe_inputs(predecessor)
    try:
        # The class's own forward: accelerate wraps the instance's in autocast.
        expected = type(predecessor).forward(predecessor.eval(), **inputs)[0]
        successor.eval()
        # The list alone in training mode: the path is sampled, dropout is off.
        layers.training, layers.replaced = True, (False,) * len(layers)
        with _borrowed_weights(successor, predecessor, layers):
            got = type(successor).forward(successor, **inputs)[0]
    finally:
        layers.replaced = (True,) * len(layers)
        successor.train(modes[0])
        predecessor.train(modes[1])
    if not torch.equal(expected, got):
        raise ValueError(
            f"{type(successor).__name__} does not run the sampled path: with nothing replaced its "
            "outputs must equal the predecessor's and do not. Its forward reaches its blocks in "
            "another way than by iterating or slicing the list, so Theseus would train a "
            "different model than it reports; use DistillationTrainer."
        )


@contextmanager
def _borrowed_weights(
    successor: PreTrainedModel, predecessor: PreTrainedModel, layers: TheseusLayers
) -> Iterator[None]:
    """Let the successor's embeddings and head read the predecessor's own memory.

    Equal weights do not give equal bits: a checkpoint that is mapped from disk is aligned
    otherwise than a copy of it, and matrix products on the CPU then round otherwise.
    """
    theirs = dict(predecessor.named_parameters(remove_duplicate=False))
    blocks = set(layers.parameters())
    own = {
        name: parameter
        for name, parameter in successor.named_parameters(remove_duplicate=False)
        if parameter not in blocks
    }
    copies = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            parameter.data = theirs[name].data
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = copies[name]


def _probe_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Token ids that end in the end-of-sequence token that some heads look for, once padded."""
    ids = torch.arange(3, 11, device=model.device) % model.config.vocab_size
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int):
        ids[-1] = end
    rows, mask = ids[None], torch.ones_like(ids)[None]
    if isinstance(model.config.pad_token_id, int) and not model.config.is_encoder_decoder:
        # A padded row: a block that misreads its mask differs only there.
        rows, mask = rows.repeat(2, 1), mask.repeat(2, 1)
        rows[1, 5:], mask[1, 5:] = model.config.pad_token_id, 0
    inputs = {"input_ids": rows, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = rows
    return inputs
