"""Figure: how much each block changes later ones and depends on earlier ones, and both halves compared (metrics B4)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Points, Row, profile_figure
from plm_depth.figures.select import HALVES, Effect, Model, Study, effect_numbers
from plm_depth.figures.sheet import position_notes

TITLE = "Influence of blocks on later ones, and dependence on earlier ones"
ROWS = (
    Row("influence", "influence on later\nblocks (mean effect)", limits=(0.0, 0.0)),
    Row("dependence", "dependence on earlier\nblocks (mean effect)", limits=(0.0, 0.0)),
)
POINTS = Points({name: name for name in HALVES}, "mean effect\nbetween halves", "halves")


def numbers(study: Study) -> pl.DataFrame:
    """Return influence and dependence of every block, and the mean effects within and between both halves."""
    return effect_numbers(study, effects=[Effect(quantity) for quantity in ("influence", "dependence", *HALVES)])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    notes = [
        *position_notes(numbers),
        "EE: within the early half; EL: from the early on the late half; LL: within the late half.",
    ]
    undefined = numbers.filter(pl.col("quantity").is_in(HALVES) & pl.col("value").is_nan()).height
    if undefined:
        notes.append(f"{undefined} of these means are undefined (fewer than four blocks) and have no point.")
    return profile_figure(numbers, models, title=TITLE, rows=ROWS, points=POINTS, notes=notes)


STAGE = FigureStage("block_influence", TITLE, ["skips"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
