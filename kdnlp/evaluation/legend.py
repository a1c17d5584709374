"""A legend that is inside its picture, however long its names are."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Legend:
    """A legend below a figure, in as many columns as its names leave room for.

    Args:
        names: the labels of the panel's artists, in the order to show.
    """

    line, characters = 0.19, 95
    """Inches of a line, and the characters that fit beside each other."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.texts = [textwrap.fill(name, self.characters - 10) for name in names]
        widest = max(len(line) for text in self.texts for line in text.splitlines())
        most = max(1, min(4, self.characters // (widest + 7)))
        # As many in every line.
        self.columns = -(-len(self.texts) // -(-len(self.texts) // most))

    @property
    def height(self) -> float:
        """What it takes of the figure, in inches."""
        lines = sum(text.count("\n") + 1 for text in self.texts)
        return self.line * -(-lines // self.columns)

    def draw(self, figure: "Figure", panel: "Axes") -> None:
        """Put it below the panels of a figure, all of which show the same artists."""
        from matplotlib.container import ErrorbarContainer

        handles, labels = panel.get_legend_handles_labels()
        # Bars of no length would hide the shape of a point.
        points = [h[0] if isinstance(h, ErrorbarContainer) else h for h in handles]
        artists = dict(zip(labels, points, strict=True))
        figure.legend(
            [artists[name] for name in self.names],
            self.texts,
            loc="outside lower center",
            ncols=self.columns,
            frameon=False,
        )
