"""Figure: contacts within a chain that linear probes read off pairs of states of each layer (metrics G)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Row, profile_figure
from plm_depth.figures.probed import Probed, chances, fact_notes, headings_of, levels_of, probe_numbers
from plm_depth.figures.select import FigureError, Model, Study
from plm_depth.figures.style import name_of

TITLE = "Contacts: precision of the L best pairs by a linear probe of each layer"
RANGES = {"short": "6 to 11", "medium": "12 to 23", "long": "24 and more"}
OF_STATES = tuple(
    Probed("contacts", f"p_at_l_{name}", "logistic", f"p_at_l_{name}", f"{words} apart,\nprecision at L", name)
    for name, words in RANGES.items()
)
OF_MAPS = Probed("contacts", "p_at_l_long", "attention", "attention_long", "24 and more apart,\nattention maps", "maps")
WANTED = (*OF_STATES, OF_MAPS)


def numbers(study: Study) -> pl.DataFrame:
    """Return, per model, range and layer, the precision at L on held-out chains; ``parameter``: density of contacts.

    Raises:
        FigureError: contacts were not probed.
    """
    found = probe_numbers(study, WANTED)
    if found.filter(pl.col("network") == "trained").is_empty():
        raise FigureError("--probes hold no contacts; add contacts to probes.tasks or leave this figure out")
    chance = chances(study, WANTED)
    return found.with_columns(parameter=pl.col("quantity").replace_strict(chance, default=pl.col("parameter")))


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    probed = set(numbers.filter(pl.col("network") == "trained")["model"])
    shown = [model for model in models if model.model in probed]
    missing = [name_of(model) for model in models if model not in shown]
    chance = {row["quantity"]: row["parameter"] for row in numbers.iter_rows(named=True) if row["layer"] is not None}
    rows = [
        Row(one.quantity, one.words, references=levels_of(numbers, one.quantity, chance), limits=(0.0, 0.0))
        for one in WANTED
        if one.quantity in set(numbers["quantity"])
    ]
    notes = ["Scores on chains of held-out clusters. Inputs: nothing hidden.", *fact_notes(numbers, WANTED)]
    if OF_MAPS.quantity in set(numbers["quantity"]):
        notes.append(
            "Attention maps: of the heads of one block alone, at (block - 1/2) / blocks, where the family tells them."
        )
    if missing:
        notes.append(f"Not probed: {'; '.join(missing)}.")
    numbers = numbers.filter(pl.col("network") != "none")  # what is told of the chains is in the notes
    return profile_figure(numbers, shown, title=TITLE, rows=rows, notes=notes, headings=headings_of(numbers, shown))


STAGE = FigureStage("contacts", TITLE, ["probes"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
