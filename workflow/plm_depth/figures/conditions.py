"""Figure: what models do with their depth when they are shown the structure, too (claim K5)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers

TITLE = "The same proteins and masks, shown by sequence, with structure, and by structure alone"
ROWS = (
    Row("rel_u", "block update,\nrelative to the stream", is_log=True),
    Row("kl_lf", "KL(layer || final), nats", limits=(0.0, 0.0)),
    Row("nll", "negative log-likelihood\nof hidden residues, nats"),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return update sizes, lens KL and likelihood per model under each condition ("model condition") and layer."""
    return pl.concat(
        [
            profile_numbers(study, table="contributions", quantities=["rel_u"]),
            profile_numbers(study, table="lens", quantities=["kl_lf", "nll"]),
        ]
    )


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    return profile_figure(numbers, models, title=TITLE, rows=ROWS)


STAGE = FigureStage("conditions", TITLE, ["profiles"], numbers, draw, is_of_residues=True, is_by_condition=True)

if __name__ == "__main__":
    run(STAGE)
