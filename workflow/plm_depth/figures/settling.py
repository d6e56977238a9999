"""Figure: the layer from which on a read-out no longer changes, residue by residue (metrics C4, I10)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Statistic, dot_figure
from plm_depth.figures.select import Model, Study, statistic_name, summary_numbers

TITLE = "Settling: the depth from which on the read-out keeps its prediction"
THRESHOLDS = (0.5, 0.1)


def numbers(study: Study) -> pl.DataFrame:
    """Return the median settling layer over residues, as a share of the depth."""
    return summary_numbers(study, statistics=[("settling", "kl_lf", threshold) for threshold in THRESHOLDS])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    panels = [
        Statistic(
            statistic_name("settling", "kl_lf"),
            threshold,
            f"median; KL stays below {threshold:g} nats",
            "relative depth",
        )
        for threshold in THRESHOLDS
    ]
    return dot_figure(numbers, models, title=TITLE, statistics=panels)


STAGE = FigureStage("settling", TITLE, ["summaries"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
