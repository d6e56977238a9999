"""Figure: every effective depth side by side, because definitions disagree by construction (metrics I)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Statistic, dot_figure
from plm_depth.figures.select import Model, Study, statistic_name, summary_numbers

TITLE = "Effective depth, by definition"
STATISTICS = (
    ("depth_score", "rel_u", None, "depth score of contributions", "relative depth"),
    ("kl_depth_first", "kl_0", 0.5, "lens KL first below 50 % of layer 0", "relative depth"),
    ("kl_depth", "kl_0", 0.5, "lens KL stays below 50 % of layer 0", "relative depth"),
    ("kl_depth", "kl_0", 0.1, "lens KL stays below 10 % of layer 0", "relative depth"),
    ("overlap_depth", "ov5_cc", 0.3, "top-5 overlap stays above 0.3", "relative depth"),
    ("cosine_depth", "cos", None, "mean cosine turns positive", "relative depth"),
    ("kl_area", "kl_lf", None, "area under lens KL / KL of layer 0", "area"),
    ("overlap_area", "ov5_cc", None, "area under top-5 overlap", "area"),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return every effective-depth statistic of every model."""
    return summary_numbers(study, statistics=[(stat, profile, param) for stat, profile, param, _, _ in STATISTICS])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    panels = [
        Statistic(statistic_name(stat, profile), param, label, x_label)
        for stat, profile, param, label, x_label in STATISTICS
    ]
    return dot_figure(numbers, models, title=TITLE, statistics=panels)


STAGE = FigureStage("depth_summary", TITLE, ["summaries"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
