"""Two square panels side by side for every model, models in rows: what figures of matrices share. Lengths in inches."""

import math
from collections.abc import Callable, Iterator, Sequence

from matplotlib.axes import Axes

from plm_depth.figures.draw import columns_of
from plm_depth.figures.select import Model
from plm_depth.figures.sheet import LINE, MARGIN, Sheet, lines_of
from plm_depth.figures.style import GREY, WIDTH, darker, family_colours

LARGEST_PANEL = 2.6
LEFT, BETWEEN, RIGHT = 0.5, 0.1, 0.12  # beside the two panels of a model, and between them
FOOT = 0.45  # below a panel: ticks and their label
NARROW = 0.15  # of a cell; in narrower ones its number is not centred
SCALE = 1.4  # of a colour scale
HEAD = 0.55  # above all panels: the colour scales
APART = 0.12  # between rows


class PanelPairs:
    """Where the panels stand.

    Attributes:
        panel: side of a panel.
        width, body: of the sheet that holds them, ``body`` with the colour scales above them.
    """

    def __init__(
        self, models: Sequence[Model], captions: Callable[[Model, float], tuple[str, str]], *, least_width: float
    ):
        """Lay out the models, families together, shallow ones before deep ones.

        Args:
            captions: given a model and a width, its name and what stands below it ("": nothing), broken to that width.
            least_width: between the margins.
        """
        ordered = [model for members in columns_of(models).values() for model in members]
        n_columns = next(n for most, n in ((1, 1), (2, 2), (9, 3), (math.inf, 4)) if len(ordered) <= most)
        self.panel = min(((WIDTH - 2 * MARGIN) / n_columns - LEFT - BETWEEN - RIGHT) / 2, LARGEST_PANEL)
        self.pair = LEFT + 2 * self.panel + BETWEEN + RIGHT
        self.width = 2 * MARGIN + max(n_columns * self.pair, least_width)
        self.captions = {model.model: captions(model, 2 * self.panel + BETWEEN) for model in ordered}
        self.rows = [ordered[start : start + n_columns] for start in range(0, len(ordered), n_columns)]
        self.heads = [
            LINE * (max(lines_of("\n".join(filter(None, self.captions[m.model]))) for m in row) + 1) + 0.08
            for row in self.rows
        ]
        n = len(self.rows)
        self.body = HEAD + sum(self.heads) + n * (self.panel + FOOT) + APART * (n - 1)

    def places(self, sheet: Sheet, label: str, models: Sequence[Model]) -> Iterator[tuple[Model, float, float]]:
        """Write captions and the label beside the panels; yield models, each with the upper left corner of its panels.

        Args:
            models: whose families have colours.
        """
        colours = family_colours(models)
        y = sheet.top + HEAD
        for row, head in zip(self.rows, self.heads, strict=True):
            for place, model in enumerate(row):
                x = MARGIN + place * self.pair + LEFT
                name, more = self.captions[model.model]
                sheet.text(x, y, name, va="top", color=darker(colours[model.family], 0.15), fontweight="bold")
                if more:
                    sheet.text(x, y + LINE * lines_of(name), more, va="top", color=GREY)
                yield model, x, y + head
                sheet.text(x - 0.38, y + head + self.panel / 2, label, va="center", ha="center", rotation=90)
            y += head + self.panel + FOOT + APART

    def axes(self, sheet: Sheet, x: float, y: float) -> Axes:
        """Return the axes of a panel whose upper left corner is (x, y)."""
        return sheet.axes(x, y, self.panel, self.panel)

    def label(self, axes: Axes, label: str, *, n_cells: int, is_first: bool) -> None:
        """Label a drawn panel of ``n_cells`` cells a side: below, and beside it if it is the first of its model."""
        axes.set_xlabel(label, labelpad=1)
        axes.tick_params(left=is_first, labelleft=is_first)
        if self.panel / n_cells < NARROW:  # labels within the panel: the next panel's begin beside it
            first, *_, last = axes.get_xticklabels()
            first.set_ha("left")
            last.set_ha("right")
