"""Figure: how far an early read-out is from the model's own prediction (metrics C1)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers

TITLE = "Logit lens: distance of each layer's read-out from the final one"
ROWS = (Row("kl_lf", "KL(layer || final), nats", limits=(0.0, 0.0)),)


def numbers(study: Study) -> pl.DataFrame:
    """Return the mean KL(layer || final) over the 20 canonical residues, in nats, per model and layer."""
    return profile_numbers(study, table="lens", quantities=["kl_lf"])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    return profile_figure(numbers, models, title=TITLE, rows=ROWS)


STAGE = FigureStage("lens_kl", TITLE, ["profiles"], numbers, draw, is_of_residues=True)

if __name__ == "__main__":
    run(STAGE)
