"""Figure: how much attention, MLP and whole block add to the stream, relative to what is there (metrics A2)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers

TITLE = "Relative contribution to the residual stream"
ROWS = (
    Row("rel_a", "attention\n|a| / |h|", is_log=True),
    Row("rel_m", "MLP\n|m| / |h + a|", is_log=True),
    Row("rel_u", "whole block\n|u| / |h|", is_log=True),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return the mean relative contributions of attention, MLP and block, per model and block."""
    return profile_numbers(study, table="contributions", quantities=[row.quantity for row in ROWS])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    return profile_figure(numbers, models, title=TITLE, rows=ROWS)


STAGE = FigureStage("contributions", TITLE, ["profiles"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
