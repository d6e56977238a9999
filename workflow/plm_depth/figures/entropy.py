"""Figure: how sure and how right each layer's read-out is (metrics C3)."""

import math
from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import DOTTED, Level, Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers

TITLE = "Logit lens: entropy of each layer's read-out and its loss on the true residue"
UNIFORM_NATS = math.log(20)
BACKGROUND_NATS = 2.89  # entropy of the amino-acid composition of UniProtKB/Swiss-Prot
REFERENCES = (
    Level(UNIFORM_NATS, "ln 20", (0, (6, 2, 1, 2))),
    Level(BACKGROUND_NATS, f"Swiss-Prot composition, {BACKGROUND_NATS:g}", DOTTED),
)
ROWS = (
    Row("entropy", "entropy, nats", references=REFERENCES),
    Row("nll", "loss (NLL), nats", references=REFERENCES),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return mean entropy and mean negative log-likelihood of each layer's read-out, in nats."""
    return profile_numbers(study, table="lens", quantities=[row.quantity for row in ROWS])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    return profile_figure(numbers, models, title=TITLE, rows=ROWS)


STAGE = FigureStage("entropy", TITLE, ["profiles"], numbers, draw, is_of_residues=True)

if __name__ == "__main__":
    run(STAGE)
