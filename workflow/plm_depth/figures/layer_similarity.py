"""Figure: how alike the stream is at every two layers, by angle and by CKA, trained and untrained (metrics F1, F2)."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.panel_pairs import BETWEEN, SCALE, PanelPairs
from plm_depth.figures.select import Geometry, Model, Study, geometry_name, geometry_numbers
from plm_depth.figures.sheet import MARGIN, Sheet, count_notes, toy_warning
from plm_depth.figures.style import GREY, name_of, text_width, wrapped

TITLE = "Similarity of the residual stream at every two layers"
ANGLE, CKA = Geometry("angular", other="all"), Geometry("cka", other="all")
# What is shown: its heading, colours (bright: alike) and their ends.
SHOWN = {
    geometry_name(ANGLE): ("angular distance", "viridis_r", (0.0, 0.5)),
    geometry_name(CKA): ("debiased CKA", "viridis", (0.0, 1.0)),
}


def numbers(study: Study) -> pl.DataFrame:
    """Return angular distance and CKA of every two layers: of residues, else of proteins."""
    kinds = set() if study.geometries.is_empty() else set(study.geometries["points"])
    points = "residue" if "residue" in kinds else "pooled"
    wanted = [Geometry(one.quantity, points, one.other) for one in (ANGLE, CKA)]
    return geometry_numbers(study, wanted=wanted)


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: two panels a model, trained above the diagonal, untrained below it."""
    shown = [model for model in models if model.model in set(numbers["model"])]
    pairs = PanelPairs(shown, _captions, least_width=2 * _scale_width())
    sheet = Sheet(
        width=pairs.width,
        body=pairs.body,
        title=TITLE,
        key=(),
        notes=["Above the diagonal: trained; below it: untrained.", *count_notes(numbers, shown), *_notes(numbers)],
        warning=toy_warning(shown),
    )
    _draw_scales(sheet)
    for model, x, y in pairs.places(sheet, "layer", models):
        own = numbers.filter(pl.col("model") == model.model)
        for n, (name, (heading, _, _)) in enumerate(_shown(numbers).items()):
            at = x + n * (pairs.panel + BETWEEN)
            sheet.text(at, y - 0.05, heading if pairs.panel > 1.1 else heading.split()[-1], va="bottom")
            axes = pairs.axes(sheet, at, y)
            _draw_matrix(axes, own.filter(pl.col("quantity") == name), model.n_blocks, SHOWN_AS[heading])
            pairs.label(axes, "layer", n_cells=model.n_blocks + 1, is_first=n == 0)
    return sheet.figure


def _captions(model: Model, width: float) -> tuple[str, str]:
    return wrapped(name_of(model), width, weight="bold"), ""


SHOWN_AS = {heading: (colours, ends) for heading, colours, ends in SHOWN.values()}


def _shown(numbers: pl.DataFrame) -> dict[str, tuple]:
    """Return what is shown by the names of these numbers, whose points may be proteins."""
    return dict(zip(dict.fromkeys(numbers["quantity"]), SHOWN.values()))


def matrix_of(cells: pl.DataFrame, n_blocks: int) -> np.ndarray:
    """Return trained values above and on the diagonal, untrained ones below, (n_blocks + 1, n_blocks + 1)."""
    matrix = np.full((n_blocks + 1, n_blocks + 1), np.nan)
    for network, (rows, columns) in {
        "untrained": ("other_layer", "layer"),
        "trained": ("layer", "other_layer"),
    }.items():
        one = cells.filter(pl.col("network") == network)
        matrix[one[rows].to_numpy(), one[columns].to_numpy()] = one["value"].to_numpy()
    return matrix


def _draw_matrix(axes: Axes, cells: pl.DataFrame, n_blocks: int, look: tuple[str, tuple[float, float]]) -> None:
    colours, ends = look
    edge = n_blocks + 0.5
    # "none": viewers show the cells as they are, with sharp edges, and the file holds one point a cell.
    axes.imshow(
        matrix_of(cells, n_blocks), cmap=colours, norm=Normalize(*ends, clip=True), extent=(-0.5, edge, edge, -0.5),
        interpolation="none", aspect="auto",
    )  # fmt: skip
    axes.plot([-0.5, edge], [-0.5, edge], color="white", linewidth=1.2)
    axes.set_xlim(-0.5, edge)
    axes.set_ylim(edge, -0.5)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_xticks([0, n_blocks])
    axes.set_yticks([0, n_blocks])


def _scale_width() -> float:
    return max(text_width(heading) for heading in SHOWN_AS) + 0.2 + SCALE + 0.5


def _draw_scales(sheet: Sheet) -> None:
    """Draw what the colours mean, in a line above the panels."""
    y = sheet.top + 0.08
    for place, (heading, (colours, (lowest, highest))) in enumerate(SHOWN_AS.items()):
        x = MARGIN + place * _scale_width()
        sheet.text(x, y + 0.07, heading, va="center_baseline", color=GREY)
        ticks = {end: f"{end:g}" for end in (lowest, highest)}
        sheet.colour_scale(x + text_width(heading) + 0.2, SCALE, ticks, ends=(lowest, highest), cmap=colours)


def _notes(numbers: pl.DataFrame) -> list[str]:
    points = numbers.filter(pl.col("network") == "trained")["n_points"]
    kind = "residues" if "residue" in numbers["points"] else "means over proteins"
    notes = [f"At most {points.max():,} {kind} a model, the same for all layers; intervals stand in the table."]
    beyond = 0
    for name, (_, _, (lowest, highest)) in _shown(numbers).items():
        values = numbers.filter(pl.col("quantity") == name)["value"].fill_nan(None).drop_nulls()
        beyond += ((values < lowest - 1e-9) | (values > highest + 1e-9)).sum()
    if beyond:
        notes.append(
            f"{beyond:,} of {numbers.height:,} values lie beyond a colour scale and have the colour of its end."
        )
    undefined = numbers.filter(pl.col("value").is_nan()).height
    if undefined:
        notes.append(f"{undefined:,} are undefined and white.")
    return notes


STAGE = FigureStage("layer_similarity", TITLE, ["geometries"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
