"""Which layer of the student learns from which layer of the teacher."""

from collections.abc import Mapping, Sequence

NAMED_MAPS = ("uniform", "skip", "last")

LayerMap = str | Mapping[int, int]


def resolve_layer_map(
    layer_map: LayerMap,
    num_student: int,
    num_teacher: int,
    first: int = 1,
    slot_ends: Sequence[int] | None = None,
) -> dict[int, int]:
    """The teacher's layer for each of the student's that learns.

    Layers are counted from 1; 0 are the embeddings, where `first` is 0.

    - `"uniform"`: layer i of M learns from layer i * N / M of N, rounded (Jiao et al. 2020); the
      last from the last, the embeddings from the embeddings.
    - `"skip"`: the same without embeddings and last layer (Sun et al. 2019, PKD-Skip).
    - `"last"`: the layers before the last learn from those before the teacher's last (PKD-Last).
    - a mapping from the student's layers to the teacher's.

    >>> resolve_layer_map("uniform", 3, 6, first=0)
    {0: 0, 1: 2, 2: 4, 3: 6}
    >>> resolve_layer_map("skip", 6, 12)
    {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}
    >>> resolve_layer_map("last", 6, 12)
    {1: 7, 2: 8, 3: 9, 4: 10, 5: 11}

    Args:
        layer_map: a name or a mapping.
        num_student: blocks of the student, M.
        num_teacher: blocks of the teacher, N.
        first: the lowest layer that there is: 0 for hidden states, 1 for what is inside a block.
        slot_ends: under BERT-of-Theseus, the predecessor's block at which each slot ends: what a
            successor block stands for, and so what it learns by `"uniform"` and `"skip"`.

    Raises:
        ValueError: if the name is unknown, or a layer does not exist, or none is left.
    """
    if isinstance(layer_map, str):
        resolved = _named(layer_map, num_student, num_teacher, first)
        if slot_ends is not None and layer_map != "last":
            resolved = {i: slot_ends[i - 1] if i else 0 for i in resolved}
    else:
        resolved = {int(ours): int(theirs) for ours, theirs in layer_map.items()}
    wrong = {
        ours: theirs
        for ours, theirs in resolved.items()
        if not first <= ours <= num_student or not first <= theirs <= num_teacher
    }
    if wrong or not resolved:
        raise ValueError(
            f"layer_map={layer_map!r} must map layers {first}..{num_student} of the student to "
            f"layers {first}..{num_teacher} of the teacher, got {wrong or 'no layer at all'}. The "
            "loss would compare with nothing. A student of one block has no layer but its last: "
            f"layer_map={{{num_student}: {num_teacher}}} names it."
        )
    return resolved


def _named(name: str, num_student: int, num_teacher: int, first: int) -> dict[int, int]:
    if name not in NAMED_MAPS:
        raise ValueError(
            f"layer_map must be one of {', '.join(NAMED_MAPS)}, or map layers of the student to "
            f"layers of the teacher, such as {{1: 2, 2: 4}}, got {name!r}."
        )
    if name == "last":
        return {i: max(1, num_teacher - num_student + i) for i in range(1, num_student)}
    layers = range(first, num_student + 1) if name == "uniform" else range(1, num_student)
    return {i: round(i * num_teacher / num_student) for i in layers}
