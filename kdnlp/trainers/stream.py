"""Where a run is in a stream, whose passes have no length that is known before they end."""

from dataclasses import dataclass


@dataclass
class StreamPlace:
    """How far a run has come; the stock trainer resumes a stream as if it were one long pass.

    Attributes:
        passes: those that are done.
        steps: the optimizer steps taken in the one that goes on.
    """

    passes: int = 0
    steps: int = 0
    _is_over: bool = False

    def begin(self, number: int) -> None:
        """Begin a pass, counted from 0, or go on in it."""
        if number != self.passes:
            self.passes, self.steps = number, 0
        self._is_over = False

    def take(self, has_batches: bool) -> None:
        """Note that the stream was asked for a step's micro-batches, and whether it had them."""
        self.steps += has_batches
        self._is_over = not has_batches

    def to_resume(self) -> tuple[int, int]:
        """`passes` and `steps` from which to go on: of the next pass, if this one is over."""
        return (self.passes + 1, 0) if self._is_over else (self.passes, self.steps)
