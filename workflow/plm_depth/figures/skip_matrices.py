"""Figure: what silencing one block changes in the update of every later block, trained and untrained (metrics B1)."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.panel_pairs import BETWEEN, SCALE, PanelPairs
from plm_depth.figures.select import Effect, Model, Study, effect_numbers
from plm_depth.figures.sheet import MARGIN, Sheet, count_notes, position_notes, toy_warning
from plm_depth.figures.style import (
    GREY,
    LIGHT_GREY,
    effect_norm,
    name_of,
    objective_words,
    text_width,
    wrapped,
)

TITLE = "Effect of silencing one block on the update of every later block"
COLOURS = "viridis"
FLOOR_SHARE = 0.5  # a cell is grey if more proteins than this are below the noise floor
FLOOR_LABEL = "most proteins below three times the noise floor"
SCALE_LABEL = "relative change of the update"
TICKS = {0.0: "0", 0.5: "0.5", 1.0: "1 or more"}
NETWORKS = ("trained", "untrained")


def numbers(study: Study) -> pl.DataFrame:
    """Return the effect of every block on itself and every later block."""
    return effect_numbers(study, effects=[Effect("effect")])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: two panels a model, families together, shallow models before deep ones."""

    def captions(model: Model, width: float) -> tuple[str, str]:
        first = numbers.filter(pl.col("model") == model.model).row(0, named=True)
        words = objective_words(first["objective"], first["noise_t"])
        return wrapped(name_of(model), width, weight="bold"), wrapped(words, width)

    pairs = PanelPairs(models, captions, least_width=_scale_places()[-1])
    sheet = Sheet(
        width=pairs.width,
        body=pairs.body,
        title=TITLE,
        key=(),
        notes=[*count_notes(numbers, models), *position_notes(numbers), *_notes(numbers)],
        warning=toy_warning(models),
    )
    _draw_scale(sheet)
    for model, x, y in pairs.places(sheet, "source block", models):
        for n, network in enumerate(NETWORKS):
            at = x + n * (pairs.panel + BETWEEN)
            sheet.text(at, y - 0.05, network, va="bottom")
            own = numbers.filter((pl.col("model") == model.model) & (pl.col("network") == network))
            if own.is_empty():
                sheet.text(at, y + 0.05, wrapped("not measured", pairs.panel), va="top", color=GREY)
                continue
            axes = pairs.axes(sheet, at, y)
            _draw_matrix(axes, own, model.n_blocks)
            pairs.label(axes, "target block", n_cells=model.n_blocks, is_first=n == 0)
    return sheet.figure


def matrix_of(cells: pl.DataFrame, column: str, n_blocks: int) -> np.ndarray:
    """Return one column of the cells of one network as a matrix, source down, target across; NaN where none is."""
    matrix = np.full((n_blocks, n_blocks), np.nan)
    matrix[cells["source"].to_numpy() - 1, cells["target"].to_numpy() - 1] = cells[column].to_numpy()
    return matrix


def is_below_floor() -> pl.Expr:
    """Return which cells are grey; an effect of a block on itself is zero by construction, not by lack of precision."""
    return (pl.col("below_floor") > FLOOR_SHARE) & (pl.col("source") < pl.col("target"))


def _draw_matrix(axes: Axes, cells: pl.DataFrame, n_blocks: int) -> None:
    extent = (0.5, n_blocks + 0.5, n_blocks + 0.5, 0.5)
    # "none": viewers show the cells as they are, with sharp edges, and the file holds one point a cell.
    style = {"extent": extent, "interpolation": "none", "aspect": "auto"}
    axes.imshow(matrix_of(cells, "value", n_blocks), cmap=COLOURS, norm=effect_norm(), **style)
    floor = matrix_of(cells.with_columns(grey=pl.when(is_below_floor()).then(1.0)), "grey", n_blocks)
    axes.imshow(floor, cmap=ListedColormap([LIGHT_GREY]), vmin=0, vmax=1, **style)
    axes.spines[["top", "right"]].set_visible(True)
    ticks = sorted({1, n_blocks})
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)


def _scale_places() -> tuple[float, float, float, float]:
    """Return where the colour scale, the grey box, its label and the end of this stand, inches from the margin."""
    scale = text_width(SCALE_LABEL) + 0.2
    box = scale + SCALE + 0.55
    label = box + 0.22
    return scale, box, label, label + text_width(FLOOR_LABEL)


def _draw_scale(sheet: Sheet) -> None:
    """Draw what the colours mean, in a line above the panels."""
    scale, box, label, _ = _scale_places()
    y = sheet.top + 0.08
    sheet.text(MARGIN, y + 0.07, SCALE_LABEL, va="center_baseline", color=GREY)
    sheet.colour_scale(MARGIN + scale, SCALE, TICKS, cmap=COLOURS, norm=effect_norm())
    sheet.box(MARGIN + box, y, 0.14, 0.14, facecolor=LIGHT_GREY)
    sheet.text(MARGIN + label, y + 0.07, FLOOR_LABEL, va="center_baseline", color=GREY)


def _notes(numbers: pl.DataFrame) -> list[str]:
    notes = ["Cells are means; their intervals stand in the table."]
    clipped = numbers.filter(pl.col("value").is_not_nan() & (pl.col("value") > 1)).height
    if clipped:
        notes.append(f"{clipped:,} of {numbers.height:,} cells are larger than 1 and shown as 1.")
    undefined = numbers.filter(pl.col("value").is_nan()).height
    if undefined:
        notes.append(f"{undefined:,} cells are undefined and white.")
    return notes


STAGE = FigureStage("skip_matrices", TITLE, ["skips"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
