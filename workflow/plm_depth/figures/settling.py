"""Figure: how many residues have settled on the final prediction by each layer (metrics C4)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import DOTTED, Level, Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers

TITLE = "Settling: share of residues whose read-out keeps its prediction from a layer on"
HALF = (Level(0.5, "half of the residues", DOTTED),)
ROWS = (
    Row("settled_0.5", "share with KL\n0.5 nats or less", references=HALF, limits=(0.0, 1.0)),
    Row("settled_0.1", "share with KL\n0.1 nats or less", references=HALF, limits=(0.0, 1.0)),
    Row("settled_top1", "share with the\nfinal top residue", references=HALF, limits=(0.0, 1.0)),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return, per model and layer, the share of read positions settled from that layer on."""
    return profile_numbers(study, table="lens", quantities=[row.quantity for row in ROWS])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    return profile_figure(numbers, models, title=TITLE, rows=ROWS)


STAGE = FigureStage("settling", TITLE, ["profiles"], numbers, draw, is_of_residues=True)

if __name__ == "__main__":
    run(STAGE)
