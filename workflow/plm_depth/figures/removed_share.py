"""Figure: what the prediction is worth when more and more blocks in a row are removed, by policy (metrics D3)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.ablated import among, background_ends, not_ablated
from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.early_exit import COMPOSITION
from plm_depth.figures.select import Model, Study, ablation_numbers

TITLE = "Prediction after the removal of blocks in a row"
POLICIES = {
    "angular": "closest in angle",
    "deepest": "deepest, last one kept",
    "tail": "last ones",
    "random": "at random",
}


def numbers(study: Study) -> pl.DataFrame:
    """Return the likelihood after removal of every number of blocks by every policy, of the whole model, and of none.

    The whole model stands under every policy, as nothing removed.
    """
    found = ablation_numbers(
        study,
        wanted=(pl.col("quantity") == "nll")
        & (pl.col("op").is_in(["full", "background"]) | pl.col("policy").is_in(list(POLICIES))),
        depth=pl.col("length") / pl.col("n_blocks"),
    )
    shown = [policy for policy in POLICIES if policy in found["policy"]]
    whole = found.filter(pl.col("policy") == "none")
    parts = [pl.concat([whole.with_columns(policy=pl.lit(p)), found.filter(pl.col("policy") == p)]) for p in shown]
    return background_ends(pl.concat(parts))


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: a row a policy."""
    lines = numbers.with_columns(quantity=pl.concat_str("quantity", "policy", separator=": "))
    rows = [
        Row(
            f"nll: {policy}",
            f"removed:\n{words}",
            also="background",
            also_label=COMPOSITION,
        )
        for policy, words in POLICIES.items()
        if policy in numbers["policy"]
    ]
    return profile_figure(
        lines,
        among(models, numbers),
        title=TITLE,
        rows=rows,
        notes=[
            "Values are the negative log-likelihood of the residue in nats.",
            "Spans closest in angle were chosen on other proteins, each half of the clusters for the other.",
            *not_ablated(models, numbers),
        ],
        x_label="share of blocks removed",
    )


STAGE = FigureStage("removed_share", TITLE, ["ablations"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
