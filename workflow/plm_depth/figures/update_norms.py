"""Figure: size of the stream and of what attention and MLP add to it, mean and largest (metrics A1)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers

TITLE = "Norms of the residual stream and of its updates"
ROWS = (
    Row("norm_h", "stream\n|h|, activation units", is_log=True, also="max"),
    Row("norm_a", "attention\n|a|, act. units", is_log=True, also="max"),
    Row("norm_m", "MLP\n|m|, act. units", is_log=True, also="max"),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return mean norms per model and layer, and the largest norms of the trained networks."""
    both = profile_numbers(
        study, table="contributions", quantities=[row.quantity for row in ROWS], aggregates=("mean", "max")
    )
    # The largest of an untrained network is not drawn: five lines a model could not be told apart.
    return both.filter((pl.col("aggregate") == "mean") | (pl.col("network") == "trained"))


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    return profile_figure(numbers, models, title=TITLE, rows=ROWS)


STAGE = FigureStage("update_norms", TITLE, ["profiles"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
