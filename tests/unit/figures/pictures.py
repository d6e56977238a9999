"""Figures drawn for a test: as the door draws them, without a file."""

import matplotlib
import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage
from plm_depth.figures.select import Study
from plm_depth.figures.style import RC


def picture(stage: FigureStage, study: Study) -> tuple[pl.DataFrame, Figure]:
    """Return the numbers of a figure and its picture."""
    numbers = stage.numbers(study)
    with matplotlib.rc_context(RC):
        return numbers, stage.draw(numbers, study.models)
