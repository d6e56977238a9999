"""Figure: every effective depth side by side, because definitions disagree by construction (metrics I)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Statistic, dot_figure
from plm_depth.figures.select import Model, Study, statistic_name, summary_numbers

TITLE = "Effective depth, by definition"
# Statistic and profile, heading (with its threshold, as it is or in percent), axis.
STATISTICS = (
    ("depth_score", "rel_u", "centre of mass of contributions", "relative depth"),
    ("cosine_depth", "cos", "mean cosine turns positive", "relative depth"),
    ("kl_depth", "kl_0", "lens KL stays below {percent:g} % of layer 0", "relative depth"),
    ("overlap_depth", "ov5_cc", "top-5 overlap stays above {threshold:g}", "relative depth"),
    ("settling", "kl_lf", "median residue stays within {threshold:g} nats", "relative depth"),
    ("settling", "top1", "median residue keeps its top residue", "relative depth"),
    ("kl_area", "kl_lf", "area under lens KL over that of layer 0", "area"),
    ("overlap_area", "ov5_cc", "area under top-5 overlap above chance", "area"),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return every effective-depth statistic of every model, at every threshold."""
    return summary_numbers(study, statistics=[(stat, profile) for stat, profile, _, _ in STATISTICS])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    panels = []
    for stat, profile, label, x_label in STATISTICS:
        name = statistic_name(stat, profile)
        for threshold in numbers.filter(pl.col("quantity") == name)["parameter"].unique().sort(descending=True):
            heading = label.format(threshold=threshold, percent=100 * threshold)
            panels.append(Statistic(name, threshold, heading, x_label))
    return dot_figure(numbers, models, title=TITLE, statistics=panels)


STAGE = FigureStage("depth_summary", TITLE, ["summaries"], numbers, draw, is_of_residues=True)

if __name__ == "__main__":
    run(STAGE)
