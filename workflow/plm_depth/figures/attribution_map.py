"""Figure: where along one protein, and at which block, the prediction comes from (metric E2)."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import columns_of, plain
from plm_depth.figures.select import FigureError, Model, Study, measured_models
from plm_depth.figures.sheet import LINE, MARGIN, Sheet, toy_warning
from plm_depth.figures.style import GREY, WIDTH, darker, family_colours, name_of, objective_words, text_width
from plm_depth.tables import COMPLETE

TITLE = "What each block adds at each residue of one protein to the log-probability of the true residues"
COLOURS = "RdBu_r"
OBJECT, TARGET = "gate", "logp"
LEFT, GAP, FOOT = 0.5, 0.45, 0.5  # inches
LIMIT_SHARE = 0.99  # the scale ends where this share of the cells lies within
UNITS = "nats per read residue"
NUMBERS = {
    "model": pl.String,
    "display_name": pl.String,
    "family": pl.String,
    "objective": pl.String,
    "n_blocks": pl.Int64,
    "network": pl.String,
    "direction": pl.String,
    "noise_t": pl.Float64,
    "quantity": pl.String,
    "sequence_id": pl.String,
    "n_residues": pl.Int64,
    "layer": pl.Int64,
    "position": pl.Int64,  # 1-based, as residues are counted
    "value": pl.Float64,
    "completeness_err": pl.Float64,
}


def numbers(study: Study) -> pl.DataFrame:
    """Return the integrated gradient of each block's gate at each residue of the example protein, trained models.

    Raises:
        FigureError: no model was measured, or models show different proteins.
    """
    rows = study.attribution_maps
    models = measured_models(study.models, rows)
    if not models:
        raise FigureError("attribution_maps: no rows at primary inputs; measure at least one model by gates")
    rows = rows.filter((pl.col("object") == OBJECT) & (pl.col("target") == TARGET))
    shown = rows["sequence_id"].unique().to_list()
    if len(shown) != 1:
        raise FigureError(f"attribution_maps show the proteins {sorted(shown)}; expected one: give tables of one run")
    parts = []
    for model in models:
        own = rows.filter(pl.col("model_id") == model.model)
        cells = own.select("layer", "position")
        if own.height != model.n_blocks * own["n_residues"][0] or cells.is_duplicated().any():
            raise FigureError(
                f"attribution_maps of {model.model}: {own.height} cells, expected {model.n_blocks} blocks times "
                f"{own['n_residues'][0]} residues, each once; run metrics.attribution again"
            )
        parts.append(
            own.sort("layer", "position").with_columns(
                model=pl.lit(model.model),
                display_name=pl.lit(model.display_name),
                network=pl.lit("trained"),
                quantity=pl.lit(f"{OBJECT} {TARGET}"),
                position=pl.col("position") + 1,
            )
        )
    return pl.concat(parts).select(pl.col(column).cast(kind) for column, kind in NUMBERS.items())


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: a map a model, blocks upwards, residues from left to right."""
    models = [model for model in models if model.model in set(numbers["model"])]
    ordered = [model for members in columns_of(models).values() for model in members]
    n_columns = min(len(ordered), 2)
    panel = (WIDTH - 2 * MARGIN - n_columns * LEFT - (n_columns - 1) * GAP) / n_columns
    rows = [ordered[start : start + n_columns] for start in range(0, len(ordered), n_columns)]
    heights = [max(min(max(0.11 * model.n_blocks, 0.55), 2.2) for model in row) for row in rows]
    head = 2 * LINE + 0.08
    example, n_residues = numbers["sequence_id"][0], numbers["n_residues"][0]
    above = numbers.filter(pl.col("completeness_err") > COMPLETE)["model"].unique(maintain_order=True).to_list()
    notes = [
        f"Protein {example}, {n_residues} residues, the shortest of those measured. Red adds, blue takes away; each "
        f"map has its own scale, which ends where {100 * LIMIT_SHARE:g} % of its cells lie within. Trained models "
        "only; intervals belong to corpus values and stand in the figure of bars."
    ]
    if above:
        notes.append(f"Completeness is missed by more than {100 * COMPLETE:g} % in: {', '.join(above)}.")
    sheet = Sheet(
        width=WIDTH,
        body=sum(heights) + len(rows) * (head + FOOT),
        title=TITLE,
        key=(),
        notes=notes,
        warning=toy_warning(models),
    )
    colours = family_colours(models)
    y = sheet.top
    for row, height in zip(rows, heights, strict=True):
        for place, model in enumerate(row):
            x = MARGIN + place * (LEFT + panel + GAP) + LEFT
            own = numbers.filter(pl.col("model") == model.model)
            sheet.text(x, y, name_of(model), va="top", color=darker(colours[model.family], 0.15), fontweight="bold")
            sheet.text(x, y + LINE, objective_words(model.objective, own["noise_t"][0]), va="top", color=GREY)
            axes = sheet.axes(x, y + head, panel, height)
            limit = _draw_map(axes, own)
            text = f"scale: \N{PLUS-MINUS SIGN}{plain(float(f'{limit:.2g}'))} {UNITS}"
            sheet.text(x + panel - text_width(text), y + LINE, text, va="top", color=GREY)
            axes.set_xlabel("residue", labelpad=1)
            sheet.text(x - 0.38, y + head + height / 2, "block", va="center", ha="center", rotation=90)
        y += head + height + FOOT
    return sheet.figure


def map_of(cells: pl.DataFrame) -> np.ndarray:
    """Return the cells of one model as a matrix, (n_blocks, n_residues)."""
    matrix = np.full((cells["n_blocks"][0], cells["n_residues"][0]), np.nan)
    matrix[cells["layer"].to_numpy() - 1, cells["position"].to_numpy() - 1] = cells["value"].to_numpy()
    return matrix


def _draw_map(axes: Axes, cells: pl.DataFrame) -> float:
    """Draw one map; return the end of its scale."""
    matrix = map_of(cells)
    limit = float(np.quantile(np.abs(matrix), LIMIT_SHARE)) or 1.0
    n_blocks, n_residues = matrix.shape
    axes.imshow(
        matrix, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto", interpolation="none", origin="lower",
        extent=(0.5, n_residues + 0.5, 0.5, n_blocks + 0.5),
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_yticks(sorted({1, n_blocks}))
    return limit


STAGE = FigureStage("attribution_map", TITLE, ["attribution_maps"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
