"""Figure: growth of the stream's variance with depth, and how fast (metrics A4)."""

import math
from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers, statistic_name, summary_numbers

TITLE = "Variance of the residual stream"
BETA, GAMMA, _ = GROWTH = (("growth_beta", "var_h"), ("growth_gamma", "var_h"), ("growth_delta_aicc", "var_h"))
NBSP = "\N{NO-BREAK SPACE}"
ROWS = (Row("var_h", "variance of the coordinates\nactivation units squared", is_log=True),)


def numbers(study: Study) -> pl.DataFrame:
    """Return the mean variance per model and layer, and the exponents of both growth laws with their comparison."""
    profile = profile_numbers(study, table="contributions", quantities=["var_h"])
    return pl.concat([profile, summary_numbers(study, statistics=GROWTH)])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    trained = numbers.filter(pl.col("network") == "trained")
    remarks = {}
    for model in models:
        exponents = []
        for symbol, statistic, digits in (("β", BETA, 2), ("γ", GAMMA, 3)):
            is_it = (pl.col("model") == model.model) & (pl.col("quantity") == statistic_name(*statistic))
            value = trained.filter(is_it)["value"].item()
            text = "undefined" if math.isnan(value) else f"{value:.{digits}f}"
            exponents.append(f"{symbol}{NBSP}={NBSP}{text}")
        remarks[model.model] = f"; {', '.join(exponents)}"
    return profile_figure(
        numbers.filter(pl.col("quantity") == "var_h"),
        models,
        title=TITLE,
        rows=ROWS,
        notes=["Fits from layer 2 on: variance grows as layer to the power β, or as exp(γ layer)."],
        remarks=remarks,
    )


STAGE = FigureStage("variance", TITLE, ["profiles", "summaries"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
