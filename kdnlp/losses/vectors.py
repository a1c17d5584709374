"""Steps on vectors that the losses on embeddings and relations share."""

import torch


def unit_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """`x / |x|` along the last dimension; a vector of zeros stays zero and gets no gradient.

    Dividing by the norm plus a small number instead would give such a vector, and the difference
    of two equal ones, a gradient as large as that number is small.

    Args:
        vectors: shape (..., width).

    Returns:
        The same shape, every vector of length 1 or 0.
    """
    squared = vectors.square().sum(-1, keepdim=True)
    present = squared > 0
    inverse = torch.where(present, squared, torch.ones_like(squared)).rsqrt()
    return torch.where(present, vectors, torch.zeros_like(vectors)) * inverse


def full_precision(vectors: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, for differences that its rounding would drown; others as is."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def check_rows(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Raise `ValueError` unless both are (batch, width) with one row per example of one batch."""
    if student.dim() != 2 or teacher.dim() != 2 or student.size(0) != teacher.size(0):
        raise ValueError(
            "Student and teacher embeddings must have shapes (batch, width) of one batch, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}. Their relations would be those of "
            "different examples; pool the positions of each example first."
        )
