"""Which block of a model a loss reads."""

from transformers import PretrainedConfig


def choose_layer(config: PretrainedConfig, layer: int | None, name: str, lowest: int = 1) -> int:
    """The layer that was asked for, or the model's last.

    Args:
        config: of the model that has the layer.
        layer: from `lowest` to the number of blocks; `None` is the last.
        name: of the argument, for the error.
        lowest: 1, or 0 where the embeddings count as a layer.

    Returns:
        The layer's number.

    Raises:
        ValueError: if the model has no such layer.
    """
    last = config.num_hidden_layers
    if layer is None:
        return last
    if not lowest <= layer <= last:
        raise ValueError(
            f"{name} must lie between {lowest} and {last}, the number of blocks of this "
            f"{config.model_type} model, got {layer}. There is no such layer to learn from; blocks "
            "are counted from 1, and None takes the last."
        )
    return layer
