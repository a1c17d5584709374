"""Which part of a model a module or a parameter belongs to, found by structure in every family."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from kdnlp.models.layers import find_blocks

EMBEDDINGS, ATTENTION, FEED_FORWARD, OTHER = "embeddings", "attention", "feed_forward", "other"
PARTS = (EMBEDDINGS, ATTENTION, FEED_FORWARD, OTHER)
OVERHEAD = "overhead"
"""What takes time and belongs to no part: launching operations, and what lies between them."""

PART_NAMES = {
    EMBEDDINGS: "embeddings",
    ATTENTION: "attention",
    FEED_FORWARD: "feed-forward",
    OTHER: "other",
    OVERHEAD: "launch overhead",
}
"""What the parts are called in text."""


@dataclass(frozen=True)
class ParameterParts:
    """Where the parameters of a model lie, tied ones counted once; the parts sum to the total.

    Attributes:
        total: all parameters, trainable or not.
        embeddings: in `nn.Embedding` tables, wherever they stand, with what is tied to one.
        blocks: in the transformer blocks, the encoder of BERT: what fewer blocks shrink.
        head: outside the base model: what was trained for the task.
        other: the rest: norms outside the blocks, poolers, projections of the embeddings.
    """

    total: int
    embeddings: int
    blocks: int
    head: int
    other: int


def count_parts(model: PreTrainedModel) -> ParameterParts:
    """Count a model's parameters by part; nothing is run.

    Raises:
        ValueError: as `find_layers`, if the model has no stack of blocks.
    """
    tables = _sizes(*(m for m in model.modules() if isinstance(m, nn.Embedding)))
    blocks = _without(_sizes(*find_blocks(model)), tables)
    base = _sizes(model.base_model)
    everything = _sizes(model)
    head = _without(everything, base, tables)
    other = _without(everything, tables, blocks, head)
    return ParameterParts(
        total=sum(everything.values()),
        embeddings=sum(tables.values()),
        blocks=sum(blocks.values()),
        head=sum(head.values()),
        other=sum(other.values()),
    )


def find_parts(model: PreTrainedModel) -> list[tuple[nn.Module, str]]:
    """The modules whose forward passes make up the parts of a model; none is inside another.

    - `embeddings`: outside the blocks, the largest modules with an `nn.Embedding` and no block.
    - `attention`: in a block, the largest modules whose class calls itself attention, as all of
      transformers' do; with the norm and the residual sum that some of them hold.
    - `feed_forward`: in a block with attention, what else holds a matrix.

    What is in none of them is the rest: norms, residual sums, masks, poolers and heads.

    Returns:
        Pairs of module and part.

    Raises:
        ValueError: as `find_layers`, if the model has no stack of blocks.
    """
    blocks = find_blocks(model)
    parts = [(module, EMBEDDINGS) for module in _embeddings(model.base_model, set(blocks))]
    for block in blocks:
        parts += _parts_of_block(block)
    return parts


def _embeddings(module: nn.Module, blocks: set[nn.Module]) -> list[nn.Module]:
    if module in blocks:
        return []
    inside = set(module.modules())
    if not any(isinstance(m, nn.Embedding) for m in inside):
        return []
    if not inside & blocks:
        return [module]
    return [found for child in module.children() for found in _embeddings(child, blocks)]


def _parts_of_block(block: nn.Module) -> list[tuple[nn.Module, str]]:
    attention = _attention(block)
    if not attention:
        return []
    rest = _beside(block, set(attention))
    return [(m, ATTENTION) for m in attention] + [(m, FEED_FORWARD) for m in rest if _multiplies(m)]


def _attention(module: nn.Module) -> list[nn.Module]:
    """The largest submodules that are attention."""
    found: list[nn.Module] = []
    for child in module.children():
        found += [child] if "attention" in type(child).__name__.lower() else _attention(child)
    return found


def _beside(module: nn.Module, attention: set[nn.Module]) -> list[nn.Module]:
    """The largest submodules that hold no attention, and can be called: no list of modules is."""
    found: list[nn.Module] = []
    for child in module.children():
        if child in attention:
            continue
        split = isinstance(child, nn.ModuleList) or bool(set(child.modules()) & attention)
        found += _beside(child, attention) if split else [child]
    return found


def _multiplies(module: nn.Module) -> bool:
    """Whether it holds a matrix: of `nn.Linear`, GPT-2's `Conv1D`, a convolution."""
    return any(parameter.dim() >= 2 for parameter in module.parameters())


def _sizes(*modules: nn.Module) -> dict[int, int]:
    """Numbers of elements by the identity of the parameter."""
    return {id(p): p.numel() for module in modules for p in module.parameters()}


def _without(sizes: dict[int, int], *others: dict[int, int]) -> dict[int, int]:
    return {key: n for key, n in sizes.items() if not any(key in other for other in others)}
