"""Figure: growth of the stream's variance with depth, and how fast (metrics A4)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers, summary_numbers

TITLE = "Variance of the residual stream"
POWER, EXPONENTIAL, DELTA_AICC = ("growth_beta", "growth_gamma", "growth_delta_aicc")
ROWS = (Row("var_h", "variance of the coordinates\nactivation units squared", is_log=True),)


def numbers(study: Study) -> pl.DataFrame:
    """Return the mean variance per model and layer, and the exponents of both growth laws."""
    profile = profile_numbers(study, table="contributions", quantities=["var_h"])
    growth = summary_numbers(study, statistics=[(stat, "var_h", None) for stat in (POWER, EXPONENTIAL, DELTA_AICC)])
    return pl.concat([profile, growth])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    remarks = {}
    for model in models:
        own = numbers.filter((pl.col("model") == model.model) & (pl.col("network") == "trained"))
        beta, gamma = (own.filter(pl.col("quantity") == f"{s}: var_h")["value"][0] for s in (POWER, EXPONENTIAL))
        remarks[model.model] = (
            f"; β\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{beta:.2f}, γ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{gamma:.3f}"
        )
    note = "Exponents of fits from layer 2 on: layer to the power β, exp(γ layer)."
    return profile_figure(
        numbers.filter(pl.col("quantity") == "var_h"), models, title=TITLE, rows=ROWS, notes=[note], remarks=remarks
    )


STAGE = FigureStage("variance", TITLE, ["profiles", "summaries"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
