"""Figure: what the prediction is worth when the model stops early, trained and untrained (metrics D1)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.ablated import among, background_ends, not_ablated
from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Model, Study, ablation_numbers

TITLE = "Prediction read out early: the model without its last blocks"
COMPOSITION = "composition of other proteins, no model"
ROWS = (
    Row("nll", "negative log-likelihood\nof the residue (nats)", also="background", also_label=COMPOSITION),
    Row("acc1", "share of residues\nrecovered", also="background", limits=(0.0, 0.0)),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return likelihood and recovery of the early exit at every layer, and of the composition of other proteins."""
    found = ablation_numbers(
        study,
        wanted=pl.col("op").is_in(["exit", "background"]) & pl.col("quantity").is_in(["nll", "acc1"]),
        depth=pl.col("start") / pl.col("n_blocks"),
    )
    return background_ends(found)


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    return profile_figure(
        numbers,
        among(models, numbers),
        title=TITLE,
        rows=ROWS,
        notes=["Depth 0 is the embedding, depth 1 the whole model.", *not_ablated(models, numbers)],
        x_label="relative depth of the exit",
    )


STAGE = FigureStage("early_exit", TITLE, ["ablations"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
