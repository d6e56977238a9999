"""Figure: direction of what is added to the stream: erasing, new, or strengthening (metrics A3)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Level, Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers

TITLE = "Cosine between updates and the residual stream"
ZERO = (Level(0.0),)
ROWS = (
    Row("cos_a", "attention\ncos(a, h)", references=ZERO),
    Row("cos_m", "MLP\ncos(m, h + a)", references=ZERO),
    Row("cos_u", "whole block\ncos(u, h)", references=ZERO),
    Row("cos_io", "in and out\ncos(h, h + u)"),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return the mean cosines of attention, MLP and block to the stream, and of a block's input to its output."""
    return profile_numbers(study, table="contributions", quantities=[row.quantity for row in ROWS])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    return profile_figure(numbers, models, title=TITLE, rows=ROWS)


STAGE = FigureStage("cosines", TITLE, ["profiles"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
