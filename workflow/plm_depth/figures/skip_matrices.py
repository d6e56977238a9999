"""Figure: what silencing one block changes in the update of every later block, trained and untrained (metrics B1)."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import columns_of
from plm_depth.figures.select import Effect, Model, Study, effect_numbers
from plm_depth.figures.sheet import LINE, MARGIN, Sheet, count_notes, lines_of, position_notes, toy_warning
from plm_depth.figures.style import (
    GREY,
    LIGHT_GREY,
    WIDTH,
    darker,
    effect_norm,
    family_colours,
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
NETWORKS = ("trained", "untrained")
LARGEST_PANEL = 2.6  # inches
LEFT, BETWEEN, RIGHT = 0.5, 0.1, 0.12  # inches beside the two panels of a model, and between them
FOOT = 0.45  # inches below a panel: ticks and their label
NARROW = 0.15  # inches of a cell; in narrower ones its number is not centred
SCALE = 1.4  # inches of the colour scale
HEAD = 0.55  # inches above all panels: the colour scale


def numbers(study: Study) -> pl.DataFrame:
    """Return the effect of every block on itself and every later block."""
    return effect_numbers(study, effects=[Effect("effect")])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: two panels a model, families together, shallow models before deep ones."""
    ordered = [model for members in columns_of(models).values() for model in members]
    n_columns = next(n for most, n in ((1, 1), (2, 2), (9, 3), (math.inf, 4)) if len(models) <= most)
    panel = ((WIDTH - 2 * MARGIN) / n_columns - LEFT - BETWEEN - RIGHT) / 2
    panel = min(panel, LARGEST_PANEL)
    pair = LEFT + 2 * panel + BETWEEN + RIGHT
    width = 2 * MARGIN + max(n_columns * pair, _scale_places()[-1])

    names, inputs = {}, {}
    for model in ordered:
        own = numbers.filter(pl.col("model") == model.model)
        names[model.model] = wrapped(name_of(model), 2 * panel + BETWEEN, weight="bold")
        inputs[model.model] = wrapped(objective_words(own["objective"][0], own["noise_t"][0]), 2 * panel + BETWEEN)
    rows = [ordered[start : start + n_columns] for start in range(0, len(ordered), n_columns)]
    heads = [LINE * (max(lines_of(names[m.model]) + lines_of(inputs[m.model]) for m in row) + 1) + 0.08 for row in rows]
    sheet = Sheet(
        width=width,
        body=HEAD + sum(heads) + len(rows) * (panel + FOOT) + 0.12 * (len(rows) - 1),
        title=TITLE,
        key=(),
        notes=[*count_notes(numbers, models), *position_notes(numbers), *_notes(numbers)],
        warning=toy_warning(models),
    )
    _draw_scale(sheet)
    colours = family_colours(models)
    y = sheet.top + HEAD
    for row, head in zip(rows, heads, strict=True):
        for place, model in enumerate(row):
            x = MARGIN + place * pair + LEFT
            colour = darker(colours[model.family], 0.15)
            sheet.text(x, y, names[model.model], va="top", color=colour, fontweight="bold")
            sheet.text(x, y + LINE * lines_of(names[model.model]), inputs[model.model], va="top", color=GREY)
            for n, network in enumerate(NETWORKS):
                at = x + n * (panel + BETWEEN)
                sheet.text(at, y + head - 0.05, network, va="bottom")
                own = numbers.filter((pl.col("model") == model.model) & (pl.col("network") == network))
                if own.is_empty():
                    sheet.text(at, y + head + 0.05, wrapped("not measured", panel), va="top", color=GREY)
                    continue
                axes = sheet.axes(at, y + head, panel, panel)
                _draw_matrix(axes, own, model.n_blocks)
                axes.set_xlabel("target block", labelpad=1)
                axes.tick_params(left=n == 0, labelleft=n == 0)
                if panel / model.n_blocks < NARROW:  # labels within the panel: the next panel's begin beside it
                    first, *_, last = axes.get_xticklabels()
                    first.set_ha("left")
                    last.set_ha("right")
            sheet.text(x - 0.38, y + head + panel / 2, "source block", va="center", ha="center", rotation=90)
        y += head + panel + FOOT + 0.12
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
    axes = sheet.axes(MARGIN + scale, y, SCALE, 0.14)
    axes.imshow(
        np.linspace(0, 1, 256)[None], cmap=COLOURS, norm=effect_norm(), extent=(0, 1, 0, 1), aspect="auto",
        interpolation="none",
    )  # fmt: skip
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1 or more"])
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
