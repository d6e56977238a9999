"""The sheet a figure is drawn on: title and key above, notes below, panels between, all placed in inches.

Places are inches from the left and from the top. Text is measured before the sheet is sized, so nothing is clipped,
whatever the names and however many models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from plm_depth.figures.select import Model
from plm_depth.figures.style import FONT_SIZE, GREY, TITLE_SIZE, name_of, text_width, wrapped

LINE = FONT_SIZE * 1.3 / 72  # inches from one line of text to the next
MARGIN = 0.15
UNIT = np.linspace(0, 1, 256)  # what a colour scale shows
TOY_NOTE = "Toy models: no evidence about real ones."
POSITION_NOTES = {
    "prefix": "Autoregressive models: silenced at the residues before a cut, read from the cut on.",
    "other": "Masked and diffusion models: silenced at a random half of the residues, read at the others.",
}


@dataclass(frozen=True)
class Key:
    """One entry of the key under the title: a line style (and band) and what it stands for."""

    label: str
    linestyle: object = "-"
    linewidth: float = 1.7
    marker: str = ""
    is_band: bool = False
    is_filled: bool = True


@dataclass
class Sheet:
    """A figure with its head and foot written, and room of ``body`` inches between them, from ``top`` downwards."""

    width: float
    body: float
    title: str
    key: Sequence[Key]
    notes: Sequence[str]
    warning: str = ""
    figure: Figure = field(init=False)
    top: float = field(init=False)

    def __post_init__(self) -> None:
        title = wrapped(self.title, self.width - 2 * MARGIN, TITLE_SIZE, "bold")
        title_height = lines_of(title) * TITLE_SIZE * 1.3 / 72
        places = self._key_places()
        key_height = (max((line for _, line in places), default=-1) + 1) * LINE * 1.15
        self.top = 0.1 + title_height + key_height + 0.1
        foot = wrapped(" ".join(self.notes), self.width - 2 * MARGIN)
        warning = wrapped(self.warning, self.width - 2 * MARGIN, weight="bold")
        foot_height = 0.06 + LINE * ((lines_of(foot) if foot else 0) + (lines_of(warning) if warning else 0)) + 0.08
        self.height = self.top + self.body + foot_height
        self.figure = Figure(figsize=(self.width, self.height))

        self.text(MARGIN, 0.1, title, va="top", fontsize=TITLE_SIZE, fontweight="bold")
        for entry, (x, line) in zip(self.key, places, strict=True):
            self._draw_key(entry, MARGIN + x, 0.1 + title_height + LINE * (0.65 + 1.15 * line))
        y = self.top + self.body + 0.06
        if warning:
            self.text(MARGIN, y, warning, va="top", fontweight="bold")
            y += LINE * lines_of(warning)
        if foot:
            self.text(MARGIN, y, foot, va="top", color=GREY)

    def axes(self, x: float, y: float, width: float, height: float, *, sharey: Axes | None = None) -> Axes:
        """Return axes whose upper left corner lies at (x, y)."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box, sharey=sharey)

    def colour_scale(
        self,
        x: float,
        width: float,
        ticks: Mapping[float, str],
        *,
        values: np.ndarray = UNIT,
        ends: tuple[float, float] = (0.0, 1.0),
        **look: object,
    ) -> None:
        """Draw a colour scale in the line above the panels.

        Args:
            ticks: labels by their place, between the ``ends`` of the axis.
            values: whose colours are shown, evenly spaced; ``look`` (cmap, norm) says which these are.
        """
        axes = self.axes(x, self.top + 0.08, width, 0.14)
        axes.imshow(values[None], extent=(*ends, 0, 1), aspect="auto", interpolation="none", **look)
        axes.set_yticks([])
        axes.set_xticks(list(ticks), list(ticks.values()))

    def text(self, x: float, y: float, text: str, **style: object) -> None:
        """Write text at (x, y)."""
        self.figure.text(*self._point(x, y), text, **{"ha": "left", "linespacing": 1.3, **style})

    def line(self, x: Sequence[float], y: float, **style: object) -> None:
        """Draw a level line through the given x."""
        points = [self._point(one, y) for one in x]
        self.figure.add_artist(Line2D([p[0] for p in points], [p[1] for p in points], **style))

    def box(self, x: float, y: float, width: float, height: float, **style: object) -> None:
        """Draw a rectangle whose upper left corner lies at (x, y)."""
        corner = self._point(x, y + height)
        size = (width / self.width, height / self.height)
        self.figure.add_artist(Rectangle(corner, *size, **{"linewidth": 0, **style}))

    def _point(self, x: float, y: float) -> tuple[float, float]:
        return x / self.width, 1 - y / self.height

    def _key_places(self) -> list[tuple[float, int]]:
        """Return where each entry of the key starts: inches from the margin, and its line."""
        places, x, line = [], 0.0, 0
        for entry in self.key:
            width = 0.42 + text_width(entry.label) + 0.28
            if x > 0 and x + width > self.width - 2 * MARGIN:
                x, line = 0.0, line + 1
            places.append((x, line))
            x += width
        return places

    def _draw_key(self, entry: Key, x: float, y: float) -> None:
        if entry.is_band:
            self.box(x, y - 0.055, 0.34, 0.11, facecolor=GREY, alpha=0.2)
        self.line(
            [x, x + 0.17, x + 0.34],
            y,
            color=GREY,
            linewidth=entry.linewidth,
            linestyle=entry.linestyle,
            marker=entry.marker,
            markevery=[1],
            markersize=5,
            markerfacecolor=GREY if entry.is_filled else "white",
        )
        self.text(x + 0.42, y, entry.label, va="center_baseline", color=GREY)


def lines_of(text: str) -> int:
    """Return the number of lines of a text."""
    return text.count("\n") + 1


def count_notes(numbers: pl.DataFrame, models: Sequence[Model]) -> list[str]:
    """Return the sentences that say what stands behind the numbers: proteins, clusters, resamples, untrained seeds."""
    trained = numbers.filter(pl.col("network") == "trained")
    untrained = numbers.filter(pl.col("network") == "untrained")
    notes = [f"n = {span(trained['n_seq'])} proteins in {span(trained['n_cluster'])} similarity clusters."]
    resamples = trained.filter(pl.col("interval") == "bootstrap")["n_boot"]
    if len(resamples):
        notes.append(f"Intervals: 95 %, bootstrap over clusters, {span(resamples)} resamples.")
    if "standard error" in trained["interval"]:
        notes.append("Intervals: 95 %, 1.96 standard errors over similarity clusters.")
    if untrained.is_empty():
        return [*notes, "No untrained network was measured."]
    notes.append(
        f"Untrained: same architecture, random weights, mean and range of seeds (n = {span(untrained['n_seeds'])})."
    )
    missing = [name_of(model) for model in models if model.model not in set(untrained["model"])]
    return [*notes, f"Not measured untrained: {'; '.join(missing)}."] if missing else notes


def position_notes(numbers: pl.DataFrame) -> list[str]:
    """Return the sentences that say where blocks were silenced and read, of ``select.EFFECT_NUMBERS``."""
    return [note for pos_set, note in POSITION_NOTES.items() if pos_set in numbers["pos_set"]]


def span(counts: pl.Series) -> str:
    """Return counts as one number, or as "a to b" where they differ."""
    lowest, highest = counts.min(), counts.max()
    return f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"


def toy_warning(models: Sequence[Model]) -> str:
    """Return what must stand under a figure that shows toy models, naming them if others are shown too; else ""."""
    toys = [model for model in models if model.is_toy]
    if not toys or len(toys) == len(models):
        return TOY_NOTE if toys else ""
    return f"{TOY_NOTE[:-1]}: {', '.join(dict.fromkeys(model.display_name for model in toys))}."
