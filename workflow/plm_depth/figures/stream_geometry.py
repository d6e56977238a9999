"""Figure: how many dimensions the stream fills, how it is oriented and whose neighbours it keeps (metrics F3-F6)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Geometry, Model, Study, geometry_name, geometry_numbers

TITLE = "Shape of the residual stream, layer by layer"
# What is shown, its axis, and what the axis must at least show.
SHOWN = (
    (Geometry("two_nn_mle"), "intrinsic dimension\nof residues", (0.0, 0.0)),
    (Geometry("two_nn_mle", "pooled"), "intrinsic dimension\nof proteins", (0.0, 0.0)),
    (Geometry("effective_rank"), "effective rank\nof residues", (0.0, 0.0)),
    (Geometry("anisotropy"), "mean cosine\nof two residues", (0.0, 1.0)),
    (Geometry("overlap", other="next"), "neighbours kept\nto the next layer", (0.0, 1.0)),
    (Geometry("overlap", other="last"), "neighbours kept\nto the last layer", (0.0, 1.0)),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return every quantity of the figure that was measured."""
    return geometry_numbers(study, wanted=[wanted for wanted, _, _ in SHOWN])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers; values that rest on fewer than half of the points are not drawn."""
    is_sound = pl.col("n_points") >= pl.col("n_nan")
    hidden = numbers.filter(~is_sound).height
    measured = [name for name in dict.fromkeys(numbers["quantity"])]
    rows = [
        Row(geometry_name(wanted), label, limits=limits)
        for wanted, label, limits in SHOWN
        if geometry_name(wanted) in measured
    ]
    notes = []
    if hidden:
        notes.append(
            f"{hidden} values rest on fewer than half of the points, because vectors coincide (at layer 0 those of "
            "equal residues); they stand in the table only."
        )
    shown = [model for model in models if model.model in set(numbers["model"])]
    return profile_figure(numbers.filter(is_sound), shown, title=TITLE, rows=rows, notes=notes)


STAGE = FigureStage("stream_geometry", TITLE, ["geometries"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
