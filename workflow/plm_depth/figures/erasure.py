"""Figure: how long the output needs the states of other residues (metric E3)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Points, Row, profile_figure
from plm_depth.figures.select import Attributed, Model, Study, attribution_numbers

TITLE = "Change of the output when the states of other residues are erased after a layer"
POSITION, PREFIX = Attributed("erase_position", "l2", "mean"), Attributed("erase_prefix", "l2", "mean")
DEPTHS = {
    Attributed("erase_position", "l2", "erasure_depth"): "one residue",
    Attributed("erase_prefix", "l2", "erasure_depth"): "all before a point",
}
ROWS = (
    Row(POSITION.name, "one residue\nL2 of probabilities", is_log=True),
    Row(PREFIX.name, "all before a point\nL2 of probabilities", is_log=True),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return the change at other positions per layer, and the erasure depth, of single residues and prefixes."""
    optional = [Attributed(one.object, one.target, one.quantity, is_optional=True) for one in (PREFIX, *DEPTHS)]
    found = attribution_numbers(study, wanted=[POSITION, *optional])
    # The last state of a position is read at no other position: zero by construction.
    return found.filter(pl.col("layer").is_null() | (pl.col("layer") < pl.col("n_blocks")))


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers; what no model was measured for has no row."""
    found = set(numbers["quantity"])
    depths = {one.name: text for one, text in DEPTHS.items() if one.name in found}
    return profile_figure(
        numbers,
        [model for model in models if model.model in set(numbers["model"])],
        title=TITLE,
        rows=[row for row in ROWS if row.quantity in found],
        points=Points(depths, "erasure depth\nrelative depth", "what is erased") if depths else None,
        notes=[
            "Erased states are replaced by their mean over a reference sample. After the last layer the change is zero."
        ],
    )


STAGE = FigureStage("erasure", TITLE, ["attributions"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
