"""What the figures of depth ablations share: models that were ablated, and the line of the composition."""

from collections.abc import Sequence

import polars as pl

from plm_depth.figures.select import Model
from plm_depth.figures.style import name_of


def among(models: Sequence[Model], numbers: pl.DataFrame) -> list[Model]:
    """Return the models that the numbers are about."""
    measured = set(numbers["model"])
    return [model for model in models if model.model in measured]


def not_ablated(models: Sequence[Model], numbers: pl.DataFrame) -> list[str]:
    """Return the sentence that names the models without numbers, if there are any."""
    missing = [name_of(model) for model in models if model.model not in set(numbers["model"])]
    return [f"Not ablated: {'; '.join(missing)}."] if missing else []


def background_ends(numbers: pl.DataFrame) -> pl.DataFrame:
    """Return the numbers with the trained background as an aggregate of its own, at depths 0 and 1: a level line."""
    is_background = pl.col("op") == "background"
    level = numbers.filter(is_background & (pl.col("network") == "trained")).with_columns(
        aggregate=pl.lit("background")
    )
    ends = [level.with_columns(relative_depth=pl.lit(depth)) for depth in (0.0, 1.0)]
    return pl.concat([numbers.filter(~is_background), *ends])
