"""How long a text a model's table of positions has room for."""

from torch import nn

_TABLES = ("position_embeddings", "wpe", "embed_positions", "position_embedding")


def position_limit(model: nn.Module) -> int | None:
    """The most tokens that the model has positions for; `None` if it computes them.

    Of several tables, such as those of an ensemble's members, the shortest one counts.
    """
    tables = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding)
    ]
    return min(map(_room, tables), default=None)


def _room(table: nn.Embedding) -> int:
    """The rows of the table but for those that some families keep in front of position 0."""
    padding = table.padding_idx
    before = getattr(table, "offset", 0 if padding is None else padding + 1)
    return table.num_embeddings - int(before)
