"""Figure: what silencing a block changes in the output, and how much of that travels (metrics B3, B5)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Level, Row, profile_figure
from plm_depth.figures.select import Effect, Model, Study, effect_numbers, statistic_name
from plm_depth.figures.sheet import position_notes
from plm_depth.figures.style import name_of

TITLE = "Change of the output when one block, or one branch of it, is silenced"
EFFECTS = (
    Effect("l2", "layer", is_everywhere=True),
    Effect("l2", "attn", is_everywhere=True, is_optional=True),
    Effect("l2", "mlp", is_everywhere=True, is_optional=True),
    Effect("locality", "layer"),
)
ROWS = (
    Row(statistic_name("l2", "layer"), "whole block\nL2 of probabilities", is_log=True),
    Row(statistic_name("l2", "attn"), "attention\nL2 of probabilities", is_log=True),
    Row(statistic_name("l2", "mlp"), "MLP\nL2 of probabilities", is_log=True),
    Row(statistic_name("locality", "layer"), "whole block: share\nbetween positions", references=(Level(0.0),),
        limits=(0.0, 1.0)),
)  # fmt: skip
BRANCHES = {"attn": "attention", "mlp": "MLP"}


def numbers(study: Study) -> pl.DataFrame:
    """Return per block the L2 distance of output probabilities, of whole blocks and branches, and the locality."""
    return effect_numbers(study, effects=EFFECTS)


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers; branches that no model was measured for have no row."""
    notes = [
        "L2: distance of output probabilities of the 20 canonical residues (0 to 1.41), silenced and read everywhere.",
        "Share between positions: read where the block is kept, over read everywhere; zero for the last block.",
        *position_notes(numbers),
    ]
    for part, word in BRANCHES.items():
        measured = set(numbers.filter(pl.col("part") == part)["model"])
        missing = [name_of(model) for model in models if model.model not in measured]
        if measured and missing:
            notes.append(f"Not measured for {word}: {'; '.join(missing)}.")
    lines = numbers.with_columns(quantity=pl.concat_str("quantity", "part", separator=": "))
    return profile_figure(
        lines,
        models,
        title=TITLE,
        rows=[row for row in ROWS if row.quantity in lines["quantity"]],
        notes=notes,
    )


STAGE = FigureStage("output_change", TITLE, ["skips"], numbers, draw, is_of_residues=True)

if __name__ == "__main__":
    run(STAGE)
