"""How long a text a model's table of positions has room for."""

from collections.abc import Mapping
from typing import Any

from torch import nn

_TABLES = ("position_embeddings", "wpe", "embed_positions", "position_embedding")


def position_limit(model: nn.Module, decoder: bool = False) -> int | None:
    """The most tokens that the model has positions for; `None` if it computes them.

    Of several tables, such as those of an ensemble's members, the shortest one counts.

    Args:
        model: any model.
        decoder: of a model with encoder and decoder, ask for what the decoder reads, which are the
            labels, and not for `input_ids`.
    """
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    tables = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _TABLES
        and isinstance(module, nn.Embedding)
        and (not both or decoder == ("decoder" in name.split(".")))
        and not hasattr(module, "make_weight")  # FSMT's grows as texts do
    ]
    return min(map(_room, tables), default=None)


def _room(table: nn.Embedding) -> int:
    """The rows of the table but for those that some families keep in front of position 0."""
    padding = table.padding_idx
    before = getattr(table, "offset", 0 if padding is None else padding + 1)
    return table.num_embeddings - int(before)


def check_positions(batch: Mapping[str, Any], limits: Mapping[str, int], where: str) -> None:
    """Raise `ValueError` if the texts of a batch are longer than a limit, by column.

    It asks for their shape alone, and waits for no device.
    """
    for column, limit in limits.items():
        if f"{column.removesuffix('input_ids')}position_ids" in batch:
            continue  # packed texts: a row is longer than its highest position
        if column in batch and batch[column].size(-1) > limit:
            raise too_long(where, column, limit, batch[column].size(-1))


def too_long(where: str, column: str, limit: int, length: int) -> ValueError:
    """The error for a text that is longer than a model's table of positions."""
    return ValueError(
        f"{where}: expected at most {limit} tokens in {column}, for which the model has positions, "
        f"got {length}. The others have none, and the device would stop at them. Tokenise with "
        f"truncation=True, max_length={limit}, or use a model with a longer table."
    )
