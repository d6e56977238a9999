"""Figure: how well each layer of each model ranks the variants of each assay (metrics H)."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import columns_of
from plm_depth.figures.fitness import BASELINE, NOTHING, READ_OUT, heading_of, networks, shown_rows, with_depth
from plm_depth.figures.fitness import NUMBERS as MEANS
from plm_depth.figures.select import Model, Study
from plm_depth.figures.sheet import LINE, MARGIN, Sheet, lines_of, span, toy_warning
from plm_depth.figures.style import GREY, LIGHT_GREY, WIDTH, darker, family_colours, name_of, text_width, wrapped

TITLE = "Zero-shot fitness of every assay: rank correlation of each layer's scores with measured variants"
COLOURS = "RdBu_r"
SCALE_LABEL = "Spearman, scores of the read-out"
FEW = 30  # assays that have their names beside the panels; more have only their class
LEAST = 0.4  # correlation at which the colour scale may end
NUMBERS = {
    **{name: kind for name, kind in MEANS.items() if name not in ("n_assay", "n_uniprot", "aggregate")},
    "assay_id": pl.String,
    "uniprot_id": pl.String,
    "category": pl.String,
}
MATRIX = 0.16  # inches of the column of the substitution matrix, beside the panel
SCALE, HEAD, FOOT = 1.6, 0.55, 0.5  # inches: the colour scale, what stands above all panels, ticks and their label


def numbers(study: Study) -> pl.DataFrame:
    """Return the correlation of every assay, layer and model, and that of the substitution matrix, trained only."""
    rows = shown_rows(study, level="assay").filter(
        pl.col("quantity").is_in([READ_OUT, BASELINE]) & (pl.col("null_model") == "trained")
    )
    keys = ["model_id", "direction", "noise_t", "quantity", "scorer", "folds", "layer", "assay_id", "uniprot_id",
            "category"]  # fmt: skip
    return (
        with_depth(networks(rows, keys), study.models)
        .sort("place", "category", "assay_id", "network", "layer", descending=[False] * 3 + [True, False])
        .select(pl.col(column).cast(kind) for column, kind in NUMBERS.items())
    )


def order_of(numbers: pl.DataFrame) -> pl.DataFrame:
    """Return the assays from top to bottom, (category, assay_id): by class, then by the mean over models of the last
    layer's correlation, the highest first; the same for every model."""
    last = numbers.filter((pl.col("quantity") == READ_OUT) & (pl.col("layer") == pl.col("n_blocks")))
    return (
        last.group_by("category", "assay_id")
        .agg(pl.col("value").fill_nan(None).mean())
        .sort("category", "value", "assay_id", descending=[False, True, False], nulls_last=True)
        .select("category", "assay_id")
    )


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: a panel a model, a row an assay, a column a layer."""
    read_out = numbers.filter(pl.col("quantity") == READ_OUT)
    with_scores = set(read_out["model"])
    ordered = [m for members in columns_of(models).values() for m in members if m.model in with_scores]
    if not ordered:
        return Sheet(width=WIDTH, body=0.1, title=TITLE, key=(), notes=[NOTHING], warning=toy_warning(models)).figure
    assays = order_of(numbers)
    names = assays["assay_id"].to_list()
    are_named = len(names) <= FEW
    labels = _labels(assays, are_named)
    left = max(text_width(text) for _, text in labels) + 0.25
    n_columns = next(n for most, n in ((1, 1), (2, 2), (6, 3), (math.inf, 4)) if len(ordered) <= most)
    gap = 0.25
    panel = (WIDTH - 2 * MARGIN - left - n_columns * (MATRIX + 0.06) - (n_columns - 1) * gap) / n_columns
    panel = min(panel, 3.0)
    height = max(len(names) * LINE * 1.1 if are_named else 2.8, 2 * LINE)
    width = max(2 * MARGIN + left + n_columns * (panel + MATRIX + 0.06 + gap), 7.5)

    titles = {m.model: wrapped(name_of(m), panel, weight="bold") for m in ordered}
    inputs = {m.model: wrapped(heading_of(numbers, [m]), panel) for m in ordered}
    rows = [ordered[start : start + n_columns] for start in range(0, len(ordered), n_columns)]
    heads = [LINE * max(lines_of(titles[m.model]) + lines_of(inputs[m.model]) for m in row) + 0.08 for row in rows]
    limit = max(LEAST, math.ceil(10 * np.nanmax(np.abs(numbers["value"].to_numpy()), initial=0)) / 10)
    sheet = Sheet(
        width=width,
        body=HEAD + sum(heads) + len(rows) * (height + FOOT),
        title=TITLE,
        key=(),
        notes=_notes(numbers, models, are_named),
        warning=toy_warning(models),
    )
    norm = Normalize(vmin=-limit, vmax=limit)
    _draw_scale(sheet, norm)
    colours = family_colours(models)
    y = sheet.top + HEAD
    for row, head in zip(rows, heads, strict=True):
        for text_y, text in labels:
            sheet.text(MARGIN, y + head + height * text_y, text, va="center")
        for place, model in enumerate(row):
            x = MARGIN + left + place * (panel + MATRIX + 0.06 + gap)
            colour = darker(colours[model.family], 0.15)
            sheet.text(x, y, titles[model.model], va="top", color=colour, fontweight="bold")
            sheet.text(x, y + LINE * lines_of(titles[model.model]), inputs[model.model], va="top", color=GREY)
            own = numbers.filter(pl.col("model") == model.model)
            axes = sheet.axes(x, y + head, panel, height)
            cells = own.filter(pl.col("quantity") == READ_OUT)
            _draw_cells(axes, matrix_of(cells, names, model.n_blocks + 1), norm, assays)
            axes.set_xlabel("relative depth", labelpad=2)
            axes.set_xticks([0, 0.5, 1])
            axes.set_xticklabels(["0", "0.5", "1"])
            beside = sheet.axes(x + panel + 0.06, y + head, MATRIX, height)
            matrix = own.filter(pl.col("quantity") == BASELINE).with_columns(layer=pl.lit(0))
            _draw_cells(beside, matrix_of(matrix, names, 1), norm, assays)
            beside.set_xticks([])
            beside.set_xlabel("M", labelpad=4)
        y += head + height + FOOT
    return sheet.figure


def matrix_of(cells: pl.DataFrame, names: Sequence[str], n_layers: int) -> np.ndarray:
    """Return the correlations of one model, assays down, layers across; NaN where there is none."""
    place = {name: i for i, name in enumerate(names)}
    matrix = np.full((len(names), n_layers), np.nan)
    rows = [place[name] for name in cells["assay_id"]]
    matrix[rows, cells["layer"].to_numpy()] = cells["value"].to_numpy()
    return matrix


def _draw_cells(axes: Axes, matrix: np.ndarray, norm: Normalize, assays: pl.DataFrame) -> None:
    n, n_layers = matrix.shape
    half = 0.5 / max(n_layers - 1, 1)  # a cell is centred on its layer's depth
    axes.set_facecolor(LIGHT_GREY)
    axes.imshow(matrix, cmap=COLOURS, norm=norm, extent=(-half, 1 + half, n, 0), interpolation="none", aspect="auto")
    categories = assays["category"].to_list()
    for row in range(1, n):
        if categories[row] != categories[row - 1]:
            axes.axhline(row, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_yticks([])


def _labels(assays: pl.DataFrame, are_named: bool) -> list[tuple[float, str]]:
    """Return where the texts beside the panels stand, as shares of a panel's height, and what they say."""
    n = assays.height
    if are_named:
        return [((row + 0.5) / n, f"{assay} ({category})") for row, (category, assay) in enumerate(assays.rows())]
    found, start = [], 0
    for category, count in assays.group_by("category", maintain_order=True).len().rows():
        found.append(((start + count / 2) / n, f"{category} ({count})"))
        start += count
    return found


def _draw_scale(sheet: Sheet, norm: Normalize) -> None:
    """Draw what the colours mean, in a line above the panels."""
    x, y = MARGIN + text_width(SCALE_LABEL) + 0.25, sheet.top + 0.08
    sheet.text(MARGIN, y + 0.07, SCALE_LABEL, va="center_baseline", color=GREY)
    axes = sheet.axes(x, y, SCALE, 0.14)
    extent = (norm.vmin, norm.vmax, 0, 1)
    line = np.linspace(norm.vmin, norm.vmax, 256)[None]
    axes.imshow(line, cmap=COLOURS, norm=norm, extent=extent, aspect="auto", interpolation="none")
    axes.set_yticks([])
    axes.set_xticks([norm.vmin, 0, norm.vmax], [f"{norm.vmin:g}".replace("-", "\N{MINUS SIGN}"), "0", f"{norm.vmax:g}"])
    sheet.text(
        x + SCALE + 0.35, y + 0.07, "M: substitution matrix (BLOSUM62), no model", va="center_baseline", color=GREY
    )


def _notes(numbers: pl.DataFrame, models: Sequence[Model], are_named: bool) -> list[str]:
    notes = [
        f"n = {numbers['assay_id'].n_unique():,} assays of {numbers['uniprot_id'].n_unique():,} proteins, "
        f"{span(numbers['n_var'])} variants each; intervals stand in the table.",
        "A row is one assay, the same in all panels"
        + ("." if are_named else "; black lines part the function classes, each from high to low."),
    ]
    undefined = numbers.filter(pl.col("value").is_nan()).height
    if undefined:
        notes.append(f"{undefined:,} correlations are undefined (all scores are equal) and grey.")
    missing = [name_of(model) for model in models if model.model not in set(numbers["model"])]
    return [*notes, f"Without scores: {'; '.join(missing)}."] if missing else notes


STAGE = FigureStage("fitness_assays", TITLE, ["fitness"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
