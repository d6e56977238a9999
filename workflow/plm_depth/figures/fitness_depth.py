"""Figure: from which layer on scores of variants rank as well as those of the last one (metrics I4)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Statistic, dot_figure
from plm_depth.figures.fitness import NOTHING, READ_OUT, at_shown_inputs, with_depth
from plm_depth.figures.select import NUMBERS, FigureError, Model, Study, networks
from plm_depth.figures.sheet import Sheet, span, toy_warning
from plm_depth.figures.style import WIDTH, name_of

TITLE = "Zero-shot fitness: from which layer on variants are ranked as by the last one"
STATISTICS = ("retention_depth", "best_layer")
PREFIX = "fitness_"


def numbers(study: Study) -> pl.DataFrame:
    """Return retention depths and best layers of the read-out's scores of every model that has them.

    Raises:
        FigureError: a model stands twice.
    """
    table = study.fitness_summaries.filter(pl.col("stat").is_in(STATISTICS) & pl.col("profile").str.starts_with(PREFIX))
    table = at_shown_inputs(table.with_columns(scorer=pl.col("profile").str.strip_prefix(PREFIX)))
    table = table.filter(pl.col("quantity") == READ_OUT)
    if table.select("model_id", "null_model", "null_seed", "stat", "param").is_duplicated().any():
        raise FigureError("fitness_summaries: a row stands twice; give the table of each model once")
    rows = table.with_columns(
        quantity=pl.col("stat"), parameter=pl.col("param"), aggregate=pl.lit("statistic"), layer=pl.lit(-1)
    )
    keys = ["model_id", "direction", "noise_t", "quantity", "parameter", "aggregate", "layer"]
    return (
        with_depth(networks(rows, keys), study.models)
        .sort("place", "quantity", "parameter", "network", descending=[False, True, False, False], maintain_order=True)
        .select(pl.col(column).cast(kind) for column, kind in NUMBERS.items())
    )


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    shown = [model for model in models if model.model in set(numbers["model"])]
    if not shown:
        return Sheet(width=WIDTH, body=0.1, title=TITLE, key=(), notes=[NOTHING], warning=toy_warning(models)).figure
    own = numbers.filter(pl.col("quantity") == "retention_depth")
    panels = [
        Statistic(
            "retention_depth", y, f"{100 * y:g} % of what the last layer has above layer 0 stays", "relative depth"
        )
        for y in own["parameter"].unique().sort()
    ]
    panels.append(Statistic("best_layer", float("nan"), "layer with the highest correlation", "relative depth"))
    return dot_figure(numbers, shown, title=TITLE, statistics=panels, counts=_counts(numbers, models))


def _counts(numbers: pl.DataFrame, models: Sequence[Model]) -> list[str]:
    trained = numbers.filter(pl.col("network") == "trained")
    notes = [
        f"Of the mean over function classes of the correlations of the read-out's scores, n = {span(trained['n_seq'])} "
        "proteins. Intervals: 95 %, of the resamples in which the statistic is defined: the last layer above layer 0."
    ]
    untrained = numbers.filter(pl.col("network") == "untrained")
    if not untrained.is_empty():
        notes.append(
            f"Untrained: same architecture, random weights, mean and range of seeds (n = {span(untrained['n_seeds'])})."
        )
    missing = [name_of(model) for model in models if model.model not in set(numbers["model"])]
    return [*notes, f"Without scores: {'; '.join(missing)}."] if missing else notes


STAGE = FigureStage("fitness_depth", TITLE, ["fitness_summaries"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
