"""Figure: which layer of a shallow model tells most about each layer of a deep one (metrics F7)."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.select import Geometry, Model, Study, geometry_numbers
from plm_depth.figures.sheet import LINE, MARGIN, Sheet, count_notes, lines_of, toy_warning
from plm_depth.figures.style import GREY, WIDTH, darker, family_colours, text_width, wrapped

TITLE = "Linear maps from every layer of a shallow model to every layer of a deep one"
COLOURS = "viridis_r"
SCALE_LABEL = "held-out error of the map"
NETWORKS = ("trained", "untrained")
LARGEST_PANEL = 2.2  # inches
LEFT, BETWEEN, RIGHT = 0.62, 0.1, 0.15  # inches beside the two panels of a pair, and between them
FOOT = 0.45 + 2 * LINE  # inches below a panel: ticks, their label, and two lines of text
SCALE = 1.4  # inches of the colour scale
HEAD = 0.55  # inches above all panels: the colour scale


def numbers(study: Study) -> pl.DataFrame:
    """Return the errors of all maps and the distances from the diagonal: of residues, else of proteins."""
    kinds = set() if study.pairs.is_empty() else set(study.pairs["points"])
    points = "residue" if "residue" in kinds else "pooled"
    wanted = [Geometry("map_error", points, "all")]
    wanted += [Geometry(name, points, "no") for name in ("map_diagonal", "map_diagonal_random")]
    return geometry_numbers(study, wanted=wanted, kind="pairs")


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: two panels a pair of models."""
    by_name = {model.model: model for model in models}
    pairs = numbers.select("model", "other_model").unique(maintain_order=True).rows()
    shown = [model for model in models if any(model.model in pair for pair in pairs)]
    n_columns = min(len(pairs), 2)
    panel = min(((WIDTH - 2 * MARGIN) / n_columns - LEFT - BETWEEN - RIGHT) / 2, LARGEST_PANEL)
    width = LEFT + 2 * panel + BETWEEN + RIGHT
    heads = {
        pair: wrapped(" \N{RIGHTWARDS ARROW} ".join(by_name[name].display_name for name in pair), width - LEFT,
                      weight="bold")
        for pair in pairs
    }  # fmt: skip
    rows = [pairs[start : start + n_columns] for start in range(0, len(pairs), n_columns)]
    heights = [LINE * (max(lines_of(heads[pair]) for pair in row) + 1) + 0.08 for row in rows]
    sheet = Sheet(
        width=max(2 * MARGIN + n_columns * width, text_width(SCALE_LABEL) + SCALE + 3.2),
        body=HEAD + sum(heights) + len(rows) * (panel + FOOT) + 0.12 * (len(rows) - 1),
        title=TITLE,
        key=(),
        notes=[*count_notes(numbers, [by_name[one] for one, _ in pairs]), *_notes(numbers)],
        warning=toy_warning(shown),
    )
    _draw_scale(sheet)
    colours = family_colours(models)
    y = sheet.top + HEAD
    for row, head in zip(rows, heights, strict=True):
        for place, pair in enumerate(row):
            x = MARGIN + place * width + LEFT
            one, other = (by_name[name] for name in pair)
            colour = darker(colours[one.family], 0.15)
            sheet.text(x, y, heads[pair], va="top", color=colour, fontweight="bold")
            sheet.text(x - 0.5, y + head + panel / 2, "layer of the shallow", va="center", ha="center", rotation=90)
            for n, network in enumerate(NETWORKS):
                at = x + n * (panel + BETWEEN)
                sheet.text(at, y + head - 0.05, network, va="bottom")
                own = numbers.filter(
                    (pl.col("model") == one.model)
                    & (pl.col("other_model") == other.model)
                    & (pl.col("network") == network)
                )
                if own.is_empty():
                    sheet.text(at, y + head + 0.05, wrapped("not measured", panel), va="top", color=GREY)
                    continue
                axes = sheet.axes(at, y + head, panel, panel)
                _draw_map(axes, own, one.n_blocks, other.n_blocks)
                axes.set_xlabel("layer of the deep", labelpad=1)
                axes.tick_params(left=n == 0, labelleft=n == 0)
                sheet.text(at, y + head + panel + 0.38, _distance(own), va="top", color=GREY)
        y += head + panel + FOOT + 0.12
    return sheet.figure


def matrix_of(cells: pl.DataFrame, n_blocks: int, n_deep: int) -> np.ndarray:
    """Return the errors of one network, layers of the shallow model down, of the deep one across."""
    matrix = np.full((n_blocks + 1, n_deep + 1), np.nan)
    matrix[cells["layer"].to_numpy(), cells["other_layer"].to_numpy()] = cells["value"].to_numpy()
    return matrix


def _draw_map(axes: Axes, rows: pl.DataFrame, n_blocks: int, n_deep: int) -> None:
    matrix = matrix_of(rows.filter(pl.col("layer").is_not_null()), n_blocks, n_deep)
    right, bottom = n_deep + 0.5, n_blocks + 0.5
    # "none": viewers show the cells as they are, with sharp edges, and the file holds one point a cell.
    axes.imshow(
        matrix, cmap=COLOURS, norm=Normalize(0, 1, clip=True), extent=(-0.5, right, bottom, -0.5),
        interpolation="none", aspect="auto",
    )  # fmt: skip
    axes.plot([0, n_deep], [0, n_blocks], color="white", linewidth=1.2, linestyle=(0, (4, 2)))
    known = np.flatnonzero(~np.isnan(matrix).any(0))
    best = matrix[:, known].argmin(0)
    axes.plot(known, best, linestyle="none", marker="o", markersize=4, markerfacecolor="white", markeredgecolor="black",
              markeredgewidth=0.7)  # fmt: skip
    axes.set_xlim(-0.5, right)
    axes.set_ylim(bottom, -0.5)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_xticks([0, n_deep])
    axes.set_yticks([0, n_blocks])
    first, last = axes.get_xticklabels()
    first.set_ha("left")
    last.set_ha("right")


def _distance(rows: pl.DataFrame) -> str:
    """Return how far the best sources are from the diagonal, and how far random ones would be, in two lines."""
    values = {row["quantity"].split(":")[0]: row for row in rows.iter_rows(named=True) if row["layer"] is None}
    one, random = values["map_diagonal"], values["map_diagonal_random"]
    bounds = "" if math.isnan(one["lo"]) else f" [{max(one['lo'], 0):.2f}, {one['hi']:.2f}]"
    return f"off diagonal {one['value']:.2f}{bounds}\nat random {random['value']:.2f}"


def _draw_scale(sheet: Sheet) -> None:
    """Draw what colours, points and line mean, above the panels."""
    y = sheet.top + 0.08
    sheet.text(MARGIN, y + 0.07, SCALE_LABEL, va="center_baseline", color=GREY)
    x = MARGIN + text_width(SCALE_LABEL) + 0.2
    sheet.colour_scale(x, SCALE, {0.0: "0", 0.5: "0.5", 1.0: "1 or more"}, cmap=COLOURS)


def _notes(numbers: pl.DataFrame) -> list[str]:
    kind = "residues" if "residue" in numbers["points"] else "proteins"
    maps = numbers.filter(pl.col("quantity").str.starts_with("map_error"))
    points = maps["n_points"].unique()
    notes = [
        f"Errors on {' or '.join(f'{n:,}' for n in sorted(points))} {kind} of clusters that no map was fitted on.",
        "Points: best layer of the shallow model; dashed: equal relative depth.",
    ]
    clipped = maps.filter(pl.col("value").is_not_nan() & (pl.col("value") > 1)).height
    if clipped:
        notes.append(f"{clipped:,} of {maps.height:,} errors are larger than 1 and shown as 1.")
    return notes


STAGE = FigureStage("layer_maps", TITLE, ["pairs"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
