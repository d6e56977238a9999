"""Figure: what each layer says of residues and of their structures, hidden from the model or shown to it (C1-C4)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.select import Model, Study, structure_head_numbers

TITLE = "Both heads read out at every layer: residues, structures that are hidden, and structures that are shown"
ROWS = (
    Row("kl_lf: residue", "residue:\nKL(layer || last), nats", limits=(0.0, 0.0)),
    Row("kl_lf: structure", "hidden structure:\nKL, nats", limits=(0.0, 0.0)),
    Row("kl_lf: structure shown", "shown structure\n(a copy): KL, nats", limits=(0.0, 0.0)),
    Row("acc1: residue", "residue:\nshare right", limits=(0.0, 0.1)),
    Row("acc1: structure", "hidden structure:\nshare right", limits=(0.0, 0.1)),
    Row("acc1: structure shown", "shown structure\n(a copy): share right", limits=(0.0, 0.1)),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return lens KL and accuracy of both heads per model and condition ("model condition") and layer."""
    return structure_head_numbers(study, quantities=["kl_lf", "acc1"])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers; rows of which there is no number are left out."""
    drawn, quantities = set(numbers["model"]), set(numbers["quantity"])
    return profile_figure(
        numbers,
        [model for model in models if model.model in drawn],
        title=TITLE,
        rows=[row for row in ROWS if row.quantity in quantities],
        notes=["A structure that was shown could be copied: no prediction."],
    )


STAGE = FigureStage(
    *("structure_heads", TITLE, ["profiles", "structure_heads"], numbers, draw),
    is_of_residues=True,
    is_by_condition=True,
)

if __name__ == "__main__":
    run(STAGE)
