"""Figure: what linear probes read off each layer, and how much of it is the residues themselves (metrics G)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import Points, Row, profile_figure
from plm_depth.figures.probed import (
    CONTROL,
    SHALLOWEST,
    Probed,
    chances,
    fact_notes,
    headings_of,
    levels_of,
    probe_numbers,
)
from plm_depth.figures.select import FigureError, Model, Study
from plm_depth.figures.sheet import count_notes
from plm_depth.figures.style import name_of

TITLE = "Linear probes: what can be read off each layer"
WANTED = (
    Probed("ss3", "accuracy", "logistic", "ss3", "secondary structure,\naccuracy", "ss3"),
    Probed("rsa", "spearman", "ridge", "rsa", "solvent accessibility,\nSpearman", "rsa"),
    Probed("exposed", "auroc", "logistic", "exposed", "exposed at 25 %,\nAUROC", "exp."),
    Probed("hse", "spearman", "ridge", "hse", "half-sphere exposure,\nSpearman", "hse"),
    Probed("homology", "top1", "retrieval", "homology", "homology, nearest\nis kin, share", "hom."),
)


def numbers(study: Study) -> pl.DataFrame:
    """Return, per model, task and layer, the test score of the probe, its controls, and the shallowest best layer.

    Raises:
        FigureError: no task of this figure was probed.
    """
    found = probe_numbers(study, WANTED)
    if found.filter(pl.col("network") == "trained").is_empty():
        raise FigureError(
            "--probes hold none of the tasks ss3, rsa, exposed, hse and homology, or too few proteins for it; probe "
            "one of them or do without this figure"
        )
    chance = chances(study, WANTED)
    return found.with_columns(parameter=pl.col("quantity").replace_strict(chance, default=pl.col("parameter")))


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    probed = set(numbers.filter(pl.col("network") == "trained")["model"])
    shown = [model for model in models if model.model in probed]
    missing = [name_of(model) for model in models if model not in shown]
    tasks = [one for one in WANTED if one.quantity in set(numbers["quantity"])]
    has_control = set(numbers.filter(pl.col("aggregate") == CONTROL)["quantity"])
    chance = {row["quantity"]: row["parameter"] for row in numbers.iter_rows(named=True) if row["layer"] is not None}
    rows = [
        Row(
            one.quantity,
            one.words,
            references=levels_of(numbers, one.quantity, chance),
            also=CONTROL if one.quantity in has_control else None,
            also_label="probe of random labels of 3-mers, where training holds them",
        )
        for one in tasks
    ]
    notes = ["Scores on proteins of held-out clusters. Inputs: nothing hidden.", *fact_notes(numbers, WANTED)]
    if missing:
        notes.append(f"Not probed: {'; '.join(missing)}.")
    points = Points({SHALLOWEST + one.quantity: one.tick for one in tasks}, "shallowest of the\nbest layers", "task")
    return profile_figure(
        numbers,
        shown,
        title=TITLE,
        rows=rows,
        points=points,
        notes=notes,
        counts=count_notes(numbers.filter(pl.col("network") != "none"), shown),
        headings=headings_of(numbers, shown),
    )


STAGE = FigureStage("probes", TITLE, ["probes"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
