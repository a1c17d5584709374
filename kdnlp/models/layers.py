"""Where a model keeps its stack of transformer blocks."""

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

LAYER_PATHS: dict[str, str] = {}
"""Dotted path of the block list below `base_model`, by `config.model_type`.

Only for architectures whose stack `find_layers` cannot find by itself; none of those tested needs
a row.
"""

SHARED_PARAMETERS = {
    "albert": "ALBERT applies one set of block parameters at every layer, so fewer layers make it "
    "faster but no smaller, and there is no separate block to replace. Distil it into another "
    "architecture, such as a BERT of few layers.",
}


@dataclass(frozen=True)
class LayerStack:
    """A model's list of transformer blocks and the names that lead to it.

    Attributes:
        model: the model that holds the list.
        path: dotted name of the list from the model's root, such as `bert.encoder.layer`.
        count_key: the configuration field that says how many blocks there are.
    """

    model: PreTrainedModel
    path: str
    count_key: str

    @property
    def layers(self) -> nn.ModuleList:
        """The list that stands in the model now."""
        layers = self.model.get_submodule(self.path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def parent(self) -> nn.Module:
        """The module whose forward iterates the list."""
        return self.model.get_submodule(self.path.rpartition(".")[0])

    def replace(self, layers: nn.ModuleList) -> None:
        """Put `layers` in the place of the list."""
        setattr(self.parent, self.path.rpartition(".")[2], layers)


def find_layers(model: PreTrainedModel, stack: str | None = None) -> LayerStack:
    """Find the outermost `nn.ModuleList` of `num_hidden_layers` blocks of one class.

    Args:
        model: any transformers model, with or without a head.
        stack: `"encoder"` or `"decoder"`, for models that have both.

    Returns:
        The stack; nothing is changed.

    Raises:
        ValueError: if the architecture shares its blocks' parameters, if no stack is found, or if
            there are two and `stack` does not name one.
    """
    model_type = model.config.model_type
    if model_type in SHARED_PARAMETERS:
        raise ValueError(SHARED_PARAMETERS[model_type])
    candidates = _candidates(model)
    if stack is not None:
        candidates = [c for c in candidates if stack in c.path.split(".")]
    if len(candidates) == 1:
        return candidates[0]
    class_name = type(model).__name__
    if not candidates:
        raise ValueError(
            f"No stack of blocks found in {class_name}: expected one nn.ModuleList below "
            f"base_model{f' under {stack!r}' if stack else ''} with as many blocks of one class "
            f"as its configuration counts. If the model has one, name its path: "
            f"kdnlp.models.layers.LAYER_PATHS[{model_type!r}] = 'path.below.base_model'."
        )
    raise ValueError(
        f"{class_name} has {len(candidates)} stacks of blocks: "
        f"{', '.join(c.path for c in candidates)}. Say which one: "
        f"stack={' or stack='.join(repr(c.path.split('.')[-2]) for c in candidates)}."
    )


def find_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks of all stacks of a model, each once: of one, or of encoder and decoder.

    Raises:
        ValueError: as `find_layers`, if there are none.
    """
    if model.config.model_type in SHARED_PARAMETERS:
        groups = model.base_model.get_submodule("encoder.albert_layer_groups")
        lists = [group.get_submodule("albert_layers") for group in groups.children()]
        return [block for blocks in lists for block in blocks.children()]
    candidates = _candidates(model)
    if model.config.is_encoder_decoder and len(candidates) > 1:
        return [block for stack in candidates for block in stack.layers]
    return list(find_layers(model).layers)


def count_blocks(model: PreTrainedModel, stack: str | None = None) -> int:
    """How many blocks a forward pass runs, of one stack or of all; shared ones count every time.

    Raises:
        ValueError: as `find_layers`, if there are none.
    """
    if model.config.model_type in SHARED_PARAMETERS:
        return int(model.config.num_hidden_layers) * int(model.config.inner_group_num)
    return len(find_blocks(model) if stack is None else find_layers(model, stack).layers)


def count_key(config: PretrainedConfig, path: str) -> str:
    """The configuration field that counts the blocks of the stack at `path`.

    DistilBERT calls it `n_layers` and GPT-2 `n_layer`; the decoder of T5 has a count of its own.
    """
    for part, key in (("decoder", "num_decoder_layers"), ("decoder", "decoder_layers")):
        if part in path.split(".") and getattr(config, key, None) is not None:
            return key
    return config.attribute_map.get("num_hidden_layers", "num_hidden_layers")


def lets_attention_be_chosen(model: PreTrainedModel) -> bool:
    """Whether a model's attention goes through transformers' attention interface."""
    return any(
        getattr(module, "_supports_attention_backend", False)
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
    )


def _candidates(model: PreTrainedModel) -> list[LayerStack]:
    base = model.base_model
    prefix = next(name for name, module in model.named_modules() if module is base)
    below = LAYER_PATHS.get(model.config.model_type)
    named = [(below, base.get_submodule(below))] if below else list(base.named_modules())
    found: list[LayerStack] = []
    for name, module in named:
        path = f"{prefix}.{name}".strip(".")
        key = count_key(model.config, path)
        inside = any(path.startswith(f"{stack.path}.") for stack in found)
        if not inside and _is_stack(module, getattr(model.config, key, None)):
            found.append(LayerStack(model, path, key))
    return found


def _is_stack(module: nn.Module, num_layers: int | None) -> bool:
    return (
        isinstance(module, nn.ModuleList)
        and len(module) == num_layers
        and len({type(block) for block in module}) == 1
    )
