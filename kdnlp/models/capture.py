"""Keeping chosen tensors of a forward pass: hidden states, attention, queries, keys and values.

A model that is asked for its hidden states keeps all of them; hooks keep those that a loss reads.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from kdnlp.models.layers import find_layers, lets_attention_be_chosen
from kdnlp.models.theseus import TheseusLayers
from kdnlp.models.token_layout import TokenLayout, find_layout

ATTENTION_FIELDS = frozenset({"attentions", "scores"})
"""Fields that only the attention function itself sees."""

RECORDED_ATTENTION = "kdnlp_recorded"
"""The attention implementation that models run with while one of `ATTENTION_FIELDS` is needed."""

_VECTORS = {
    "queries": ("query", "q_lin", "query_proj", "q_proj", "q"),
    "keys": ("key", "k_lin", "key_proj", "k_proj", "k"),
    "values": ("value", "v_lin", "value_proj", "v_proj", "v"),
}
"""What the linear maps are called in BERT's kin, DistilBERT, DeBERTa, Llama's kin, MPNet and T5."""

_FUSED = ("Wqkv", "c_attn")
"""One linear map for all three, whose output is their concatenation: ModernBERT, GPT-2."""

_ORDER = tuple(_VECTORS)

_Keep = Callable[[Mapping[str, torch.Tensor]], None]
_RECORDERS: WeakKeyDictionary[nn.Module, list[_Keep]] = WeakKeyDictionary()
"""Who is shown the attention of a module."""


@contextmanager
def hooks_noticed() -> Iterator[None]:
    """Let code that is compiled in the block ask which hooks a module has, whenever it runs.

    By default torch does not: a model without hooks would leave code behind that others of its
    class run too, and what a loss reads would not be kept, or the other way round.
    """
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        yield


class LayerOutputs(dict[int, torch.Tensor]):
    """Tensors by layer; a negative index counts from the last layer of the model.

    >>> LayerOutputs(2, {2: "top"})[-1]
    'top'
    """

    def __init__(self, num_layers: int, values: Mapping[int, Any] | None = None) -> None:
        super().__init__(values or {})
        self.num_layers = num_layers

    def __getitem__(self, layer: int) -> torch.Tensor:
        return super().__getitem__(layer if layer >= 0 else self.num_layers + 1 + layer)


class Capture:
    """Hooks on a model that keep chosen tensors while it is used as a context.

    Layer i of `hidden_states` is the output of block i, counted from 1, and 0 what enters the
    first block; layer i of any other field belongs to block i. Where a `TheseusLayers` stands, it
    is that of the slot: the last block that ran in it.

    Example:
        ```python
        capture = Capture(model, {"hidden_states": [0, 2], "values": [3]})
        with capture as kept:
            model(**batch)
        kept["hidden_states"][2]
        capture.remove()
        ```

    Args:
        model: the model whose forward is watched.
        layers: by field, which layers to keep; `None` keeps all.
        stack: `"encoder"` or `"decoder"`, for models that have both.

    Raises:
        ValueError: if a layer does not exist, a block has no queries, keys or values to be found,
            or the model computes its attention out of reach.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Mapping[str, Collection[int] | None],
        stack: str | None = None,
    ) -> None:
        self.kept: dict[str, LayerOutputs] = {}
        self.active = False
        self.num_layers = 0
        self._fields: dict[str, set[int]] = {}
        self._layouts: dict[int, TokenLayout | None] = {}
        self._flat: list[tuple[str, int]] = []
        self._handles: list[RemovableHandle] = []
        self._recorded: list[tuple[nn.Module, _Keep]] = []
        self._model_name = type(model).__name__
        if not layers:
            return
        self._width = model.config.hidden_size
        blocks = find_layers(model, stack).layers
        self.num_layers = len(blocks)
        self._fields = {
            field: _check_layers(self._model_name, field, wanted, len(blocks))
            for field, wanted in layers.items()
        }
        if ATTENTION_FIELDS & set(layers):
            check_attention(model)
        try:
            self._watch_all(blocks)
            if set(layers) & set(_VECTORS):
                self._hook(model.base_model, lambda _: self._pad_vectors())
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> dict[str, LayerOutputs]:
        self.kept = {field: LayerOutputs(self.num_layers) for field in self._fields}
        self.active = True
        return self.kept

    def __exit__(self, *exception: Any) -> None:
        # What is recomputed for gradient checkpointing passes the hooks again.
        self.active, self.kept = False, {}
        self._layouts, self._flat = {}, []

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        for module, keep in self._recorded:
            _RECORDERS[module].remove(keep)
        self._handles, self._recorded = [], []

    def keep(self, field: str, layer: int, tensor: torch.Tensor) -> None:
        """Keep the first tensor of a field and layer: DeBERTa projects its positions later on."""
        if self.active:
            self.kept[field].setdefault(layer, tensor)

    def _watch_all(self, blocks: nn.ModuleList) -> None:
        if 0 in self._fields.get("hidden_states", ()):
            for block in _alternatives(blocks, 0, first=True):
                self._watch_embeddings(block)
        for index in range(len(blocks)):
            for block in _alternatives(blocks, index):
                self._watch(block, index + 1)

    def _watch(self, block: nn.Module, layer: int) -> None:
        wanted = {field for field, layers in self._fields.items() if layer in layers}
        if "hidden_states" in wanted:
            self._hook(block, lambda out: self.keep("hidden_states", layer, _first(out)))
        if wanted & set(_VECTORS):
            self._watch_vectors(block, layer, wanted & set(_VECTORS))
        if wanted & ATTENTION_FIELDS:
            self._watch_attention(block, layer, wanted & ATTENTION_FIELDS)

    def _watch_embeddings(self, block: nn.Module) -> None:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.keep("hidden_states", 0, args[0] if args else kwargs["hidden_states"])

        self._handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))

    def _hook(self, module: nn.Module, keep: Callable[[Any], None]) -> None:
        self._handles.append(module.register_forward_hook(lambda _, args, output: keep(output)))

    def _watch_vectors(self, block: nn.Module, layer: int, fields: Collection[str]) -> None:
        self._watch_layout(block, layer)
        leaves = {name.rpartition(".")[2]: m for name, m in reversed(list(block.named_modules()))}
        fused = next((leaves[name] for name in _FUSED if name in leaves), None)
        if fused is not None and _width_of(fused) != 3 * self._width:
            fused = None  # keys and values are narrower there, and no thirds
        for field in fields:
            module = next((leaves[name] for name in _VECTORS[field] if name in leaves), fused)
            if module is None:
                raise ValueError(
                    f"No {field} found in {type(block).__name__}: expected a linear map called "
                    f"{', '.join(_VECTORS[field])}, or one for all three called "
                    f"{', '.join(_FUSED)}. Losses on {field} cannot be used with "
                    f"{self._model_name}; use one on hidden states or logits."
                )
            part = _ORDER.index(field) if module is fused else None
            self._hook(module, partial(self._keep_vectors, field, layer, part))

    def _keep_vectors(self, field: str, layer: int, part: int | None, output: torch.Tensor) -> None:
        self.keep(field, layer, output if part is None else output.chunk(3, dim=-1)[part])
        if self.active and self._layouts.get(layer) is not None:
            self._flat.append((field, layer))

    def _watch_layout(self, block: nn.Module, layer: int) -> None:
        """Note where the real tokens lie: inside an unpadded block there are no rows."""

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.active:
                self._layouts[layer] = find_layout(args, kwargs)

        self._handles.append(block.register_forward_pre_hook(note, with_kwargs=True))

    def _pad_vectors(self) -> None:
        # After the last block: what is recomputed for checkpointing must do as it did before.
        for field, layer in dict.fromkeys(self._flat):
            layout = self._layouts[layer]
            assert layout is not None
            self.kept[field][layer] = layout.scatter(self.kept[field][layer])
        self._flat = []

    def _watch_attention(self, block: nn.Module, layer: int, fields: Collection[str]) -> None:
        def keep(shown: Mapping[str, torch.Tensor]) -> None:
            for field in fields:
                self.keep(field, layer, shown[field])

        # Which of them is the attention module shows when it calls `recorded_attention`.
        for module in block.modules():
            _RECORDERS.setdefault(module, []).append(keep)
            self._recorded.append((module, keep))


def recorded_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention, step by step, that shows its scores and probabilities.

    The models' own eager attention returns what dropout has left of the probabilities, in which no
    row sums to 1; here they are shown before it.

    Args:
        module: the attention module that calls this.
        query: shape (batch, heads, length, head_size), after any rotary embedding.
        key: the same, with fewer heads where queries share them.
        value: as `key`.
        attention_mask: added to the scores.
        scaling: what the scores are multiplied with; default one over the root of `head_size`.
        dropout: the probability with which an entry of the probabilities is dropped.
        **kwargs: what other implementations take.

    Returns:
        The output, shape (batch, length, heads, head_size), and the probabilities.
    """
    groups = query.size(1) // key.size(1)
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.size(-1) ** -0.5 if scaling is None else scaling)
    masked = scores if attention_mask is None else scores + attention_mask
    exact = masked.softmax(-1, dtype=torch.float32)
    probabilities = exact.to(query.dtype)
    for keep in _RECORDERS.get(module, ()):
        # Rounded to half precision they would not sum to 1, and a divergence could fall below 0.
        keep({"scores": scores, "attentions": exact})
    dropped = F.dropout(probabilities, p=dropout, training=module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(RECORDED_ATTENTION, recorded_attention)
AttentionMaskInterface.register(RECORDED_ATTENTION, eager_mask)


def check_attention(model: PreTrainedModel) -> None:
    """Raise `ValueError` if a model does not let its attention function be chosen.

    `show_attention` checks that the chosen one is the model's own.
    """
    if not lets_attention_be_chosen(model):
        raise ValueError(
            f"{type(model).__name__} computes its attention in its own forward, out of reach of "
            "transformers' attention interface, and adds position terms there. Its scores and "
            "probabilities cannot be read; use a loss on hidden states, or RelationLoss on "
            "queries, keys and values."
        )


@torch.no_grad()
def show_attention(model: PreTrainedModel) -> str:
    """Let a model run with `recorded_attention` from now on.

    Returns:
        The implementation that it had.

    Raises:
        ValueError: if its outputs are others then: its attention is more than scores and a mask.
    """
    own = model.config._attn_implementation or "eager"
    training = model.training
    inputs = {"input_ids": torch.arange(3, 11, device=model.device)[None] % model.config.vocab_size}
    try:
        expected = model.base_model.eval()(**inputs)[0]
        model.set_attn_implementation(RECORDED_ATTENTION)
        got = model.base_model(**inputs)[0]
    finally:
        model.train(training)
    tolerance = 1e-3 if expected.dtype == torch.float32 else 5e-2
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance * float(expected.std())):
        model.set_attn_implementation(own)
        raise ValueError(
            f"{type(model).__name__} does more in its attention than the softmax of scores and a "
            "mask (soft capping or sinks, say): run step by step, its outputs are others. A loss "
            "on attention would train another model than the one that is used; use a loss on "
            "hidden states, or RelationLoss on queries, keys and values."
        )
    return own


def combine_layers(
    wishes: Collection[Mapping[str, Collection[int] | None]],
) -> dict[str, set[int] | None]:
    """The layers that several losses read, by field; `None`, all layers, wins."""
    combined: dict[str, set[int] | None] = {}
    for wish in wishes:
        for field, layers in wish.items():
            before = combined.get(field, set())
            combined[field] = None if layers is None or before is None else before | set(layers)
    return combined


def _alternatives(blocks: nn.ModuleList, index: int, first: bool = False) -> list[nn.Module]:
    """The blocks of which one is the last (or first) to run as a layer: several under Theseus."""
    alternatives = [blocks._modules[str(index)]]
    if isinstance(blocks, TheseusLayers):
        alternatives.append(blocks.slots[index][0 if first else -1])
    return alternatives


def _width_of(linear: nn.Module) -> Any:
    """How many numbers a linear map gives; transformers' Conv1D calls them `nf`."""
    return getattr(linear, "out_features", getattr(linear, "nf", None))


def _first(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def _check_layers(
    model: str, field: str, wanted: Collection[int] | None, num_layers: int
) -> set[int]:
    first = 0 if field == "hidden_states" else 1
    known = range(first, num_layers + 1)
    if wanted is None:
        return set(known)
    if not set(wanted) <= set(known):
        raise ValueError(
            f"Layers of {field} must lie in {first}..{num_layers} for {model}, got "
            f"{sorted(wanted)}. Block i has the layer i, counted from 1; 0 are the embeddings."
        )
    return set(wanted)
