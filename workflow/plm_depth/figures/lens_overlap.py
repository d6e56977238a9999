"""Figure: how many of the final five favourite residues an early read-out already names (metrics C2)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Level, Row, profile_figure
from plm_depth.figures.select import Model, Study, profile_numbers

TITLE = "Logit lens: top-5 residues shared with the final read-out, above chance"
ROWS = (Row("ov5_cc", "top-5 overlap\n0: chance, 1: equal", references=(Level(0.0), Level(1.0)), limits=(0.0, 1.02)),)


def numbers(study: Study) -> pl.DataFrame:
    """Return the chance-corrected top-5 overlap of each layer's read-out with the final one."""
    return profile_numbers(study, table="lens", quantities=["ov5_cc"])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    return profile_figure(numbers, models, title=TITLE, rows=ROWS)


STAGE = FigureStage("lens_overlap", TITLE, ["profiles"], numbers, draw, is_of_residues=True)

if __name__ == "__main__":
    run(STAGE)
