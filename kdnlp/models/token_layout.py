"""Where the real tokens of a padded batch lie, and how to take them out and put them back."""

from collections.abc import Callable
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import torch
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

MaskFunction = Callable[..., Any]
"""What transformers makes masks of: (batch, head, query, key) indices -> may the query look."""


class Group(NamedTuple):
    """The sequences of one length, which lie side by side among the flat tokens."""

    start: int
    rows: int
    length: int


class TokenLayout:
    """The real tokens of a padded batch as one flat sequence, shortest rows first.

    It takes the place of the attention mask on the way to the blocks, which hand it on to the
    attention function without looking at it. The order lets rows of equal length share a call.

    The lengths are read on the host. On a GPU that is one synchronisation a mask, in the place of
    the one in which transformers asks whether the mask can be left out.

    Args:
        mask: True where a token is real, shape (batch, length).
        mask_function: which of the other tokens a token may look at, padding aside.
        local_size: how far a token sees, in tokens, if not over the whole text.

    Attributes:
        lengths: the number of real tokens of every row, shortest first.
        late: how many rows begin with padding.
        is_causal: whether a token sees only those before it.

    Raises:
        ValueError: if a row has no real token.
    """

    def __init__(
        self,
        mask: torch.Tensor,
        mask_function: MaskFunction = bidirectional_mask_function,
        local_size: int | None = None,
    ) -> None:
        self.mask = mask
        self.batch, self.length = mask.shape
        if local_size is not None and self.length < local_size:
            mask_function = bidirectional_mask_function
        self.is_causal = mask_function is causal_mask_function
        self._mask_function = mask_function
        counts = mask.sum(1)
        late = mask[:, 0].logical_not().sum()
        *lengths, self.late = torch.cat([counts, late[None]]).tolist()
        self.lengths: list[int] = sorted(lengths)
        if not self.lengths[0]:
            raise ValueError(
                f"Expected at least one real token in every row, got {self.lengths.count(0)} of "
                f"{self.batch} rows whose attention_mask is all 0. Without tokens there is nothing "
                "to run, and the padded model would answer from padding alone. Remove these rows, "
                "or set unpadded=False."
            )
        self._rows = torch.argsort(counts, stable=True)

    @property
    def tokens(self) -> int:
        """How many tokens are real."""
        return sum(self.lengths)

    @property
    def is_full(self) -> bool:
        """Whether there is no padding."""
        return self.tokens == self.batch * self.length

    @cached_property
    def groups(self) -> list[Group]:
        """The sequences, those of one length together."""
        groups, start = [], 0
        for length, rows in groupby(self.lengths):
            groups.append(Group(start, len(list(rows)), length))
            start += groups[-1].rows * length
        return groups

    @cached_property
    def index(self) -> torch.Tensor:
        """Where each flat token lies in (batch * length), shape (tokens,)."""
        places = torch.arange(self.mask.numel(), device=self.mask.device).view_as(self.mask)
        padding = (~self.mask[self._rows]).flatten().to(torch.uint8)
        # A stable sort puts the real tokens first and asks the device for no count.
        first = torch.argsort(padding, stable=True)[: self.tokens]
        return places[self._rows].flatten().index_select(0, first)

    @cached_property
    def cumulative(self) -> torch.Tensor:
        """Where each sequence begins and the last one ends, int32, shape (batch + 1,)."""
        lengths = self.mask.sum(1)[self._rows]
        return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)

    @property
    def has_window(self) -> bool:
        """Whether some tokens are out of sight, other than those that come later."""
        return not self.is_causal and self._mask_function is not bidirectional_mask_function

    def gather(self, padded: torch.Tensor) -> torch.Tensor:
        """The real tokens of (batch, length, ...), or of (1, length, ...), as (1, tokens, ...)."""
        if padded.size(0) != self.batch:
            return padded[0].index_select(0, self.index % self.length)[None]
        return padded.flatten(0, 1).index_select(0, self.index)[None]

    def scatter(self, flat: torch.Tensor) -> torch.Tensor:
        """(1, tokens, ...) as (batch, length, ...), with zeros for padding."""
        empty = flat.new_zeros(self.batch * self.length, *flat.shape[2:])
        return empty.index_copy(0, self.index, flat[0]).unflatten(0, (self.batch, self.length))

    @cached_property
    def visible(self) -> torch.Tensor:
        """Which tokens each token may look at, padding aside: (batch, 1, length, length)."""
        visible = sdpa_mask(
            batch_size=self.batch,
            q_length=self.length,
            kv_length=self.length,
            mask_function=self._mask_function,
            allow_is_causal_skip=False,
            device=self.mask.device,
        )
        assert visible is not None
        return visible

    @cached_property
    def rectangle(self) -> torch.Tensor:
        """Which real tokens each token may look at: (batch, 1, length, length).

        Padding looks at itself: a softmax over nothing is not a number.
        """
        own = torch.eye(self.length, dtype=torch.bool, device=self.mask.device)
        return (self.visible & self.mask[:, None, None]) | own

    @cached_property
    def windows(self) -> list[torch.Tensor | None]:
        """By group, which of their tokens the sequences' tokens see, where that is not all."""
        return [self._window(group) if self.has_window else None for group in self.groups]

    def _window(self, group: Group) -> torch.Tensor:
        """(rows, 1, length, length) by the places that the tokens have in their padded rows."""
        index = self.index[group.start : group.start + group.rows * group.length]
        places = index.view(group.rows, group.length)
        rows, places = places[:, :1, None] // self.length, places % self.length
        return self.visible[rows, 0, places[:, :, None], places[:, None, :]][:, None]


def find_layout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> TokenLayout | None:
    """The layout among a block's arguments, in the place of its mask; `None` without padding."""
    return next((x for x in (*args, *kwargs.values()) if isinstance(x, TokenLayout)), None)
