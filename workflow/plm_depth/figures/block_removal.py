"""Figure: what is lost when one block is removed, or exchanged with its neighbour (metrics D2, D4)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.ablated import among, not_ablated
from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Level, Row, profile_figure
from plm_depth.figures.select import Model, Study, ablation_numbers

TITLE = "What one block is worth: removed, or exchanged with the next one"
ROWS = (
    Row("dnll: remove", "removed: growth\nof the loss (nats)", references=(Level(0.0),)),
    Row("flip1: remove", "removed: share of\npredictions that change", limits=(0.0, 0.0)),
    Row("dnll: swap_adj", "exchanged: growth\nof the loss (nats)", references=(Level(0.0),)),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return loss and changed predictions of every removed block, and the loss of every exchange of neighbours."""
    n_covered = pl.when(pl.col("op") == "swap_adj").then(2).otherwise(1)
    return ablation_numbers(
        study,
        wanted=((pl.col("op") == "remove") & pl.col("quantity").is_in(["dnll", "flip1"]))
        | ((pl.col("op") == "swap_adj") & (pl.col("quantity") == "dnll")),
        depth=(pl.col("start") + n_covered / 2) / pl.col("n_blocks"),
    )


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers; what was not measured has no row."""
    lines = numbers.with_columns(quantity=pl.concat_str("quantity", "op", separator=": "))
    return profile_figure(
        lines,
        among(models, numbers),
        title=TITLE,
        rows=[row for row in ROWS if row.quantity in lines["quantity"]],
        notes=[
            "Loss: negative log-likelihood of the residue.",
            "A block stands in the middle of its depth, two neighbours where they meet.",
            *not_ablated(models, numbers),
        ],
    )


STAGE = FigureStage("block_removal", TITLE, ["ablations"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
