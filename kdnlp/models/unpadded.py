"""Running a model's blocks on the real tokens of a batch alone.

Embeddings, heads and whatever watches the blocks see padded tensors as always.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from kdnlp.models.heads import TOKEN_TASKS, task_kind
from kdnlp.models.layers import find_layers, lets_attention_be_chosen
from kdnlp.models.modes import evaluating
from kdnlp.models.token_layout import TokenLayout, find_layout
from kdnlp.models.unpadded_attention import UNPADDED_ATTENTION

_BY_POSITION = ("hidden_states", "position_embeddings", "position_ids")
"""What blocks are given token by token: (batch, length, ...), or (1, length, ...) for all rows."""

_PROBE_LENGTHS = (9, 1, 6, 6)


class Unpadded:
    """A model whose blocks compute nothing for padding, until `remove`.

    Each block takes the real tokens, as `attention_mask` names them, out of its input and puts its
    output back, with zeros for padding. Sequences see themselves alone. In between, tensors are
    (1, tokens, hidden); hooks on the blocks see (batch, length, hidden).

    Example:
        ```python
        unpadded = Unpadded(model)
        model(**batch)
        unpadded.remove()
        ```

    Outputs at real tokens are the padded model's up to rounding: 1e-6 of their size in float32.
    Those at padding are others, and so is what a head makes of them. With attention dropout the
    draws are others than the padded model's.

    Args:
        model: a model whose attention comes through transformers' attention interface, which BERT,
            RoBERTa, XLM-R, ELECTRA, DistilBERT, ModernBERT, GPT-2 and Llama do.
        stack: `"encoder"` or `"decoder"`, for models that have both.

    Raises:
        ValueError: if the model's attention is out of reach, its head reads padding, or its
            outputs for a padded batch are not the padded model's: its scores hold more than the
            products of queries and keys, or a block mixes positions outside the attention. While it
            is used, if a row has no real token, a key-value cache is passed, or a row begins with
            padding where the head reads the first position.
    """

    def __init__(self, model: PreTrainedModel, stack: str | None = None) -> None:
        _check_family(model)
        self.model = model
        # The children of a Theseus path are the successor's; iterating would give the path.
        self._blocks = list(find_layers(model, stack).layers.children())
        self._before: list[tuple[nn.Module, Any, Callable[..., Any]]] = []
        self._attention = model.config._attn_implementation or "eager"
        self._use_cache = getattr(model.config, "use_cache", None)
        expected, starts_late = _probe(model), _probe(model, left=True)
        try:
            self._switch_on()
            _check_equal(model, expected)
            if not _close(_probe(model, left=True), starts_late):
                self._replace_forwards(starts_late=False)
        except BaseException:
            self.remove()
            raise

    def _switch_on(self) -> None:
        self.model.set_attn_implementation(UNPADDED_ATTENTION)
        # A cache would keep keys of the flat batch, which no later token finds its own in.
        if self._use_cache is not None:
            self.model.config.use_cache = False
        self._before = [(b, vars(b).get("forward"), b.forward) for b in self._blocks]
        self._replace_forwards(starts_late=True)

    def _replace_forwards(self, starts_late: bool) -> None:
        for block, _, forward in self._before:
            # On the block itself: every hook sees padded tensors, whichever came first.
            block.forward = partial(_without_padding, forward, starts_late)

    def remove(self) -> None:
        """Leave the model as it was."""
        for block, before, _ in self._before:
            if before is None:
                del block.forward
            else:
                block.forward = before
        self._before = []
        self.model.set_attn_implementation(self._attention)
        if self._use_cache is not None:
            self.model.config.use_cache = self._use_cache


def _without_padding(
    forward: Callable[..., Any], starts_late: bool, *args: Any, **kwargs: Any
) -> Any:
    """A block's forward on the real tokens of its input.

    Args:
        forward: the block's own.
        starts_late: whether the head does not mind padding before a row's first token.
        *args: what the block is given.
        **kwargs: the same.
    """
    layout = find_layout(args, kwargs)
    if layout is None:
        return forward(*args, **kwargs)
    if any(isinstance(x, Cache) for x in (*args, *kwargs.values())):
        raise ValueError(
            "Expected no key-value cache in an unpadded model, got one. It would keep the keys of "
            "all rows as if they were one text. Pass use_cache=False, or generate with the padded "
            "model."
        )
    if layout.late and not starts_late:
        raise ValueError(
            f"Expected rows that begin with a real token, got {layout.late} of {layout.batch} with "
            "padding before it. The head reads the first position, where an unpadded model has "
            "nothing to say. Use a tokenizer with padding_side='right', or set unpadded=False."
        )
    first = (_gathered(args[0], layout),) if args else ()
    rest = {k: _gathered(v, layout) if k in _BY_POSITION else v for k, v in kwargs.items()}
    output = forward(*first, *args[1:], **rest)
    if isinstance(output, torch.Tensor):
        return layout.scatter(output)
    return (layout.scatter(output[0]), *output[1:])


def _gathered(value: Any, layout: TokenLayout) -> Any:
    if isinstance(value, tuple):
        return tuple(_gathered(x, layout) for x in value)
    return layout.gather(value) if isinstance(value, torch.Tensor) else value


def _check_family(model: PreTrainedModel) -> None:
    """Refuse what is known not to work, with the reason."""
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise ValueError(
            f"unpadded=True is for models with one stack and no attention to another, got {name}: "
            "its decoder reads the encoder's padded states. Set unpadded=False."
        )
    if not lets_attention_be_chosen(model):
        raise ValueError(
            f"{name} does not let its attention function be chosen, as a rule because its scores "
            "hold terms by relative position. An attention of sequence by sequence would leave "
            "them out. Set unpadded=False; batches of one length "
            "(train_sampling_strategy=group_by_length) have little padding."
        )
    if task_kind(model) == "question_answering":
        raise ValueError(
            f"The classes of {name} are positions, padding among them, and its loss reads what "
            "the model says there: without padding it would be another loss. Set unpadded=False."
        )


def _check_equal(model: PreTrainedModel, expected: torch.Tensor) -> None:
    name = type(model).__name__
    try:
        got = _probe(model)
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{name} cannot run without padding: it computes with its attention mask itself "
            f"({error}). Set unpadded=False."
        ) from error
    if not _close(got, expected):
        difference = float((got - expected).abs().max())
        raise ValueError(
            f"{name} gives other outputs without padding: they must equal the padded model's to "
            f"{_tolerance(expected):g} and differ by up to {difference:.3g}. Its "
            "scores hold more than products of queries and keys, a block mixes positions outside "
            "its attention, or its head reads padding. It would train another model than the one "
            "that is used; set unpadded=False."
        )


def _close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = _tolerance(expected)
    return torch.allclose(got, expected, rtol=tolerance, atol=tolerance * float(expected.std()))


def _tolerance(expected: torch.Tensor) -> float:
    return 1e-4 if expected.dtype == torch.float32 else 5e-2


@torch.no_grad()
def _probe(model: PreTrainedModel, left: bool = False) -> torch.Tensor:
    """The outputs for a batch with padding on the right or left, those at padding left out."""
    width = max(_PROBE_LENGTHS)
    ids = torch.arange(3, 3 + width * len(_PROBE_LENGTHS), device=model.device)
    ids = (ids % model.config.vocab_size).view(-1, width)
    lengths = torch.tensor(_PROBE_LENGTHS, device=model.device)
    mask = (torch.arange(width, device=model.device) < lengths[:, None]).long()
    mask = mask.flip(1) if left else mask
    padding = model.config.pad_token_id
    ids = torch.where(mask == 1, ids, padding if isinstance(padding, int) else 0)
    # Without a padding token there is no head that could find the end of a row.
    probed = model if isinstance(padding, int) else model.base_model
    task = task_kind(model)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if task == "multiple_choice":
        inputs = {name: values[:, None] for name, values in inputs.items()}
    with evaluating(model):
        # The class's own forward: accelerate wraps the instance's in autocast.
        output: torch.Tensor = type(probed).forward(probed, **inputs)[0]
    by_token = task in TOKEN_TASKS or probed is not model or output.shape[:2] == ids.shape
    return output[mask == 1] if by_token else output
