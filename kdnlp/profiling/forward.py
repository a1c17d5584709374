"""What profiling runs a model on: an input without padding."""

import inspect

import torch
from transformers import PretrainedConfig, PreTrainedModel

from kdnlp.models.heads import task_kind
from kdnlp.models.positions import position_limit

_SPECIAL_IDS = ("pad", "bos", "eos", "cls", "sep", "decoder_start")


def example_inputs(
    model: PreTrainedModel, batch_size: int, sequence_length: int
) -> dict[str, torch.Tensor]:
    """Token ids that fill every position, so that no kernel can skip padding.

    Args:
        model: says which ids are ordinary words, and which inputs its forward takes.
        batch_size: examples, at least 1.
        sequence_length: tokens per example, special ones included; a model with a decoder gets as
            many decoder tokens.

    Returns:
        `input_ids`, `attention_mask` and `decoder_input_ids`, as far as the model takes them, each
        of shape `(batch_size, sequence_length)`, on the model's device; for multiple choice
        `(batch_size, 1, sequence_length)`, an example being one choice.

    Raises:
        ValueError: if a size is below 1 or the sequence exceeds the model's positions.
    """
    _check_sizes(model, batch_size, sequence_length)
    ids = _word_ids(model.config, sequence_length).to(model.device).repeat(batch_size, 1)
    if task_kind(model) == "multiple_choice":
        ids = ids[:, None]
    accepted = inspect.signature(model.forward).parameters
    candidates = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": ids,
    }
    return {name: tensor for name, tensor in candidates.items() if name in accepted}


def _word_ids(config: PretrainedConfig, length: int) -> torch.Tensor:
    special = {id_ for name in _SPECIAL_IDS for id_ in _special_ids(config, name)}
    words = [id_ for id_ in range(config.vocab_size) if id_ not in special][:length]
    ids = torch.tensor(words).repeat(length // len(words) + 1)[:length]
    # T5's and BART's sequence heads read the state at the one end-of-sequence token.
    end = _special_ids(config, "eos")
    if config.is_encoder_decoder and end:
        ids[-1] = end[0]
    return ids


def _special_ids(config: PretrainedConfig, name: str) -> list[int]:
    value = getattr(config, f"{name}_token_id", None)
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_sizes(model: PreTrainedModel, batch_size: int, sequence_length: int) -> None:
    if batch_size < 1 or sequence_length < 1:
        raise ValueError(
            f"batch_size and sequence_length must be at least 1, got {batch_size} and "
            f"{sequence_length}. An empty batch costs nothing and says nothing."
        )
    limit = max_positions(model)
    if limit is not None and sequence_length > limit:
        raise ValueError(
            f"sequence_length must be at most {limit}, the positions that "
            f"{type(model).__name__} has, got {sequence_length}. No real input of the model is "
            f"that long. Pass sequence_length={limit} or less."
        )


def max_positions(model: PreTrainedModel) -> int | None:
    """The most tokens that the model has positions for; `None` where there is no such limit."""
    tables = [position_limit(model, decoder) for decoder in (False, True)]
    if rooms := [room for room in tables if room is not None]:
        return min(rooms)
    if getattr(model.config, "relative_attention", False):
        return None  # DeBERTa's distances are of any length; its configuration has a number anyway
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if limit and limit > 0 else None
