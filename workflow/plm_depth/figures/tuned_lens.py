"""Figure: how far each layer is from the output, read as it is and through a fitted translator (metric C5)."""

import math
from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Model, Study, tuned_lens_numbers

TITLE = "Tuned lens: distance of each layer's read-out from the last one, with and without a translator"
NBSP = "\N{NO-BREAK SPACE}"
ROWS = (Row("kl_lf", "KL(layer || last)\nnats", aggregate="tuned lens", also="logit lens", is_log=True),)


def numbers(study: Study) -> pl.DataFrame:
    """Return the divergence of every layer but the last, where it is 0, under both lenses, and of the composition."""
    found = tuned_lens_numbers(study, quantity="kl_lf")
    return found.filter(pl.col("layer").is_null() | (pl.col("layer") < pl.col("n_blocks")))


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    models = [model for model in models if model.model in set(numbers["model"])]
    remarks = {}
    for model in models:
        is_it = (pl.col("model") == model.model) & (pl.col("network") == "trained") & (pl.col("quantity") == "kl_bg")
        value = numbers.filter(is_it)["value"].item()
        text = "undefined" if math.isnan(value) else f"{value:.2g}{NBSP}nats"
        remarks[model.model] = f"; composition {text}"
    return profile_figure(
        numbers.filter(pl.col("quantity") == "kl_lf"),
        models,
        title=TITLE,
        rows=ROWS,
        notes=[
            "Composition: the same distance of the residue composition, which knows nothing of the protein. The last "
            "layer's distance is zero. Untrained: tuned lens."
        ],
        remarks=remarks,
    )


STAGE = FigureStage("tuned_lens", TITLE, ["tuned_lenses"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
