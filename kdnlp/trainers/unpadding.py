"""Running the trained model and its frozen partner without padding, where that is asked for."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from kdnlp.losses import DistillationLoss
from kdnlp.models.capture import ATTENTION_FIELDS
from kdnlp.models.unpadded import Unpadded


class Unpadding:
    """The models of a run that are unpadded now: the trained one, and the members of the partner.

    Without `args.unpadded` it does nothing.
    """

    def __init__(self) -> None:
        self._models: list[Unpadded] = []

    def start(self, args: Any, model: Any, stack: str | None = None) -> None:
        """Unpad a model, the members of a `TeacherEnsemble`, or nothing where there is no model."""
        if args.unpadded and model is not None:
            for member in getattr(model, "members", [model]):
                self._models.append(Unpadded(member, stack))

    def stop(self) -> None:
        """Leave the models as they were."""
        while self._models:
            # The last first: two models may have one configuration.
            self._models.pop().remove()

    @contextmanager
    def during(self, args: Any, model: nn.Module, stack: str | None = None) -> Iterator[None]:
        """Unpad the model, unless a run that is on has done so."""
        if self._models:
            yield
            return
        try:
            self.start(args, model, stack)
            yield
        finally:
            self.stop()

    def check(
        self,
        args: Any,
        models: Iterable[Any],
        losses: Mapping[str, DistillationLoss],
        stack: str | None,
    ) -> None:
        """Raise `ValueError` if a model cannot run without padding, or a loss reads attention."""
        readers = [name for name, loss in losses.items() if loss.needs & ATTENTION_FIELDS]
        if args.unpadded and readers:
            raise ValueError(
                f"unpadded=True runs an attention that keeps no scores, and the losses "
                f"{', '.join(readers)} read {' and '.join(sorted(ATTENTION_FIELDS))}: there would "
                "be nothing to compare. Set unpadded=False, or use losses on hidden states, or "
                "RelationLoss on queries, keys and values."
            )
        try:
            for model in models:
                self.start(args, model, stack)
        finally:
            self.stop()
