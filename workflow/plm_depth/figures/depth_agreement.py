"""Figure: whether two definitions of effective depth order the models alike, Kendall's tau (metrics I)."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from plm_depth.figures.depth_definitions import shown_of, words_of
from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.select import FigureError, Model, Study
from plm_depth.figures.sheet import MARGIN, Sheet, toy_warning
from plm_depth.figures.style import GREY, LIGHT_GREY, text_width

TITLE = "Do definitions of effective depth order the models alike?"
COLOURS = "RdBu"
CELL = 0.27  # inches
SCALE = 1.4  # inches of the colour scale
HEAD = 0.55  # inches above the matrix: the colour scale
NUMBERS = 0.25  # inches above the matrix: the numbers of the columns


def numbers(study: Study) -> pl.DataFrame:
    """Return Kendall's tau between every two definitions that figures draw, in their order.

    Raises:
        FigureError: none of them stands in both tables, or a pair is missing.
    """
    shown = shown_of([] if study.depths.is_empty() else study.depths.select("index", "kind", "definition").rows())
    place = {name: i for i, name in enumerate(shown)}
    rows = study.taus.filter(pl.col("definition").is_in(shown) & pl.col("other").is_in(shown))
    n = len(shown)
    if not n or rows.height != n * (n + 1) // 2:
        raise FigureError(
            f"--taus: {rows.height} pairs of {n} definitions; expected each pair once. Give both tables of one run of "
            "metrics.depths"
        )
    return (
        rows.with_columns(
            a=pl.col("definition").replace_strict(place).cast(pl.Int64),
            b=pl.col("other").replace_strict(place).cast(pl.Int64),
        )
        .with_columns(
            quantity=pl.when(pl.col("a") <= pl.col("b")).then("definition").otherwise("other"),
            other=pl.when(pl.col("a") <= pl.col("b")).then("other").otherwise("definition"),
            low=pl.min_horizontal("a", "b"),
            high=pl.max_horizontal("a", "b"),
        )
        .sort("low", "high")
        .select(
            pl.lit(None, pl.String).alias("model"), "quantity", "other", pl.col("tau").alias("value"), "p_value",
            pl.col("n_models").cast(pl.Int64),
        )
    )  # fmt: skip


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: one symmetric matrix."""
    names = list(dict.fromkeys(numbers["quantity"]))
    n = len(names)
    labels = [f"{words_of(name)}  {i}" for i, name in enumerate(names, start=1)]
    left = MARGIN + max(map(text_width, labels)) + 0.12
    side = n * CELL
    sheet = Sheet(
        width=max(left + side + MARGIN, 6.5),
        body=HEAD + NUMBERS + side + 0.1,
        title=TITLE,
        key=(),
        notes=_notes(numbers),
        warning=toy_warning(models),
    )
    y = sheet.top + 0.08
    label = "Kendall's tau"
    sheet.text(MARGIN, y + 0.07, label, va="center_baseline", color=GREY)
    ticks = {-1.0: "\N{MINUS SIGN}1", 0.0: "0", 1.0: "1"}
    sheet.colour_scale(MARGIN + text_width(label) + 0.2, SCALE, ticks, ends=(-1.0, 1.0), cmap=COLOURS)
    y = sheet.top + HEAD + NUMBERS
    axes = sheet.axes(left, y, side, side)
    matrix = matrix_of(numbers, names)
    axes.set_facecolor("white")
    axes.imshow(matrix, cmap=COLOURS, norm=Normalize(-1, 1), extent=(0, n, n, 0), interpolation="none", aspect="auto")
    for i in range(n):
        for j in range(n):
            if not math.isnan(matrix[i, j]):
                dark = abs(matrix[i, j]) > 0.65
                axes.text(j + 0.5, i + 0.5, _short(matrix[i, j]), ha="center", va="center_baseline", fontsize=6.5,
                          color="white" if dark else "black")  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(LIGHT_GREY)
    for i, name in enumerate(labels):
        sheet.text(left - 0.08, y + (i + 0.5) * CELL, name, va="center", ha="right")
        sheet.text(left + (i + 0.5) * CELL, y - 0.05, str(i + 1), va="bottom", ha="center")
    return sheet.figure


def matrix_of(numbers: pl.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Return tau as a symmetric matrix, NaN where it is undefined."""
    place = {name: i for i, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for one, other, value in numbers.select("quantity", "other", "value").iter_rows():
        matrix[place[one], place[other]] = matrix[place[other], place[one]] = value
    return matrix


def _short(value: float) -> str:
    return f"{value:.1f}".replace("-0.0", "0.0").replace("-", "\N{MINUS SIGN}").replace("0.", ".")


def _notes(numbers: pl.DataFrame) -> list[str]:
    counts = numbers["n_models"]
    low, high = counts.min(), counts.max()
    notes = [f"Trained models, n = {low if low == high else f'{low} to {high}'}; p values stand in the table."]
    undefined = numbers.filter(pl.col("value").is_nan()).height
    if undefined:
        notes.append(f"{undefined} of {numbers.height} are undefined and white: fewer than 3 models, or all alike.")
    notes.append("Models of one family are no independent cases: nothing here is a test.")
    return notes


STAGE = FigureStage("depth_agreement", TITLE, ["depths", "taus"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
