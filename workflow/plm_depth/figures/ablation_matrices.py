"""Figure: what is lost when a span of blocks is removed, halved and exchanged, or reversed (metrics D3-D5)."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from plm_depth.figures.ablated import among, not_ablated
from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import columns_of, plain
from plm_depth.figures.select import Model, Study, ablation_numbers
from plm_depth.figures.sheet import LINE, MARGIN, UNIT, Sheet, count_notes, lines_of, toy_warning
from plm_depth.figures.style import (
    GREY,
    WIDTH,
    darker,
    family_colours,
    name_of,
    objective_words,
    text_width,
    wrapped,
)

TITLE = "What spans of blocks are worth: removed, halves exchanged, or reversed"
PANELS = {"removal": "removed", "exchange": "exchanged", "reversal": "reversed"}
OF_OP = {"remove": "removal", "remove_block": "removal", "swap_adj": "exchange", "swap_block": "exchange",
         "reverse": "reversal"}  # fmt: skip
NETWORKS = ("trained", "untrained")
SCALE_LABEL = "growth of the negative log-likelihood (nats)"
COLOURS = "viridis"
LARGEST_PANEL, LEFT, BETWEEN, FOOT, HEAD = 1.9, 0.5, 0.12, 0.45, 0.55  # inches
SCALE = 1.8  # inches of the colour scale


def numbers(study: Study) -> pl.DataFrame:
    """Return the loss of every span that was removed, whose halves were exchanged, or that was reversed.

    Of the removals of several blocks only those of all spans (policy exhaustive) are shown.
    """
    return ablation_numbers(
        study,
        wanted=(pl.col("quantity") == "dnll")
        & pl.col("op").is_in(list(OF_OP))
        & pl.col("policy").is_in(["none", "exhaustive"])
        # A span of one block has been removed twice: alone and among all spans.
        & ~((pl.col("op") == "remove_block") & (pl.col("length") == 1)),
        depth=pl.lit(math.nan),
    )


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: a row a model, first block of a span down, last one across."""
    cells = numbers.with_columns(
        panel=pl.col("op").replace_strict(OF_OP),
        first=pl.col("start") + 1,
        last=pl.col("start") + pl.col("length") * pl.when(pl.col("op").str.starts_with("swap")).then(2).otherwise(1),
    )
    shown = [panel for panel in PANELS if panel in cells["panel"]]
    networks = [network for network in NETWORKS if network in cells["network"]]
    ordered = [model for members in columns_of(among(models, numbers)).values() for model in members]
    n_panels = len(shown) * len(networks)
    n_pairs = 2 if n_panels <= 4 and len(ordered) > 2 else 1  # models side by side
    room = (WIDTH - 2 * MARGIN) / n_pairs - LEFT
    panel = min(room / n_panels - BETWEEN, LARGEST_PANEL)
    pair = LEFT + n_panels * (panel + BETWEEN)
    rows = [ordered[start : start + n_pairs] for start in range(0, len(ordered), n_pairs)]
    texts = {}
    for model in ordered:
        own = numbers.filter(pl.col("model") == model.model)
        words = f"{name_of(model)}; {objective_words(own['objective'][0], own['noise_t'][0])}"
        texts[model.model] = wrapped(words, pair - LEFT, weight="bold")
    heads = [LINE * (max(lines_of(texts[model.model]) for model in row) + 2) + 0.1 for row in rows]
    width = 2 * MARGIN + max(n_pairs * pair, text_width(SCALE_LABEL) + SCALE + 1.0)
    sheet = Sheet(
        width=width,
        body=HEAD + sum(heads) + len(rows) * (panel + FOOT),
        title=TITLE,
        key=(),
        notes=[*count_notes(numbers, among(models, numbers)), *_notes(cells), *not_ablated(models, numbers)],
        warning=toy_warning(ordered),
    )
    norm = norm_of(cells)
    _draw_scale(sheet, norm)
    colours = family_colours(ordered)
    y = sheet.top + HEAD
    for row, head in zip(rows, heads, strict=True):
        for place, model in enumerate(row):
            x = MARGIN + place * pair
            colour = darker(colours[model.family], 0.15)
            sheet.text(x + LEFT, y, texts[model.model], va="top", color=colour, fontweight="bold")
            columns = [(one, network) for one in shown for network in networks]
            for n, (one, network) in enumerate(columns):
                at = x + LEFT + n * (panel + BETWEEN)
                heading = f"{PANELS[one]}\n{network}"
                sheet.text(at, y + head - 0.05, heading, va="bottom", color=GREY)
                own = cells.filter(
                    (pl.col("model") == model.model) & (pl.col("network") == network) & (pl.col("panel") == one)
                )
                if own.is_empty():
                    sheet.text(at, y + head + 0.05, wrapped("not measured", panel), va="top", color=GREY)
                    continue
                axes = sheet.axes(at, y + head, panel, panel)
                _draw_matrix(axes, own, model.n_blocks, norm)
                axes.set_xlabel("last block", labelpad=1)
                axes.tick_params(left=n == 0, labelleft=n == 0)
            sheet.text(x + LEFT - 0.38, y + head + panel / 2, "first block", va="center", ha="center", rotation=90)
        y += head + panel + FOOT
    return sheet.figure


def matrix_of(cells: pl.DataFrame, n_blocks: int) -> np.ndarray:
    """Return the loss of one kind of change, first block down, last one across; NaN where none was measured."""
    matrix = np.full((n_blocks, n_blocks), np.nan)
    matrix[cells["first"].to_numpy() - 1, cells["last"].to_numpy() - 1] = cells["value"].to_numpy()
    return matrix


def norm_of(cells: pl.DataFrame) -> PowerNorm:
    """Return the colour scale: from 0 to the largest value of a trained network, finer near 0, clipped at both ends."""
    largest = cells.filter(pl.col("network") == "trained")["value"].max()
    return PowerNorm(0.5, vmin=0.0, vmax=max(largest, 1e-6), clip=True)


def _draw_matrix(axes: Axes, cells: pl.DataFrame, n_blocks: int, norm: PowerNorm) -> None:
    extent = (0.5, n_blocks + 0.5, n_blocks + 0.5, 0.5)
    # "none": viewers show the cells as they are, with sharp edges, and the file holds one point a cell.
    axes.imshow(matrix_of(cells, n_blocks), cmap=COLOURS, norm=norm, extent=extent, interpolation="none", aspect="auto")
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_xticks(sorted({1, n_blocks}))
    axes.set_yticks(sorted({1, n_blocks}))


def _draw_scale(sheet: Sheet, norm: PowerNorm) -> None:
    """Draw what the colours mean, in a line above the panels."""
    y = sheet.top + 0.08
    sheet.text(MARGIN, y + 0.07, SCALE_LABEL, va="center_baseline", color=GREY)
    ticks = {0.0: "0 or less"} | {s: plain(float(f"{norm.inverse(s):.2g}")) for s in (0.5, 1.0)}
    x = MARGIN + text_width(SCALE_LABEL) + 0.3
    sheet.colour_scale(x, SCALE, ticks, values=norm.inverse(UNIT), cmap=COLOURS, norm=norm)


def _notes(cells: pl.DataFrame) -> list[str]:
    notes = ["Cells are means; their intervals stand in the table. White: not measured."]
    below = cells.filter(pl.col("value") < 0).height
    if below:
        notes.append(f"{below:,} of {cells.height:,} changes make the prediction better and have the colour of 0.")
    largest = cells.filter(pl.col("network") == "trained")["value"].max()
    beyond = cells.filter(pl.col("value") > largest).height
    if beyond:
        notes.append(f"{beyond:,} untrained cells lie beyond the scale and have the colour of its end.")
    return notes


STAGE = FigureStage("ablation_matrices", TITLE, ["ablations"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
