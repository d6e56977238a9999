"""Figure: training curves of the checkpoints that this workflow trained, against a guess that ignores the context."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import DOTTED, FamilyGrid, columns_of, finish_value_axis
from plm_depth.figures.select import FigureError, Model, Study
from plm_depth.figures.sheet import Key, span
from plm_depth.figures.style import GREY, name_of

TITLE = "Training: loss on held-out proteins against the background composition"
OBJECTIVE = {"ar": "autoregressive", "mlm": "masked", "diffusion": "diffusion"}
BACKGROUND = (0, (5, 2, 1, 2))


def numbers(study: Study) -> pl.DataFrame:
    """Return the curves of every model that has one: mean nats per predicted residue, and the background's.

    Raises:
        FigureError: a toy model has no curve, a curve has no held-out loss, or a step stands twice.
    """
    parts = []
    for model in study.models:
        rows = study.losses.filter(pl.col("model_id") == model.model)
        if rows.is_empty() and not model.is_toy:
            continue  # a published checkpoint: its training is not ours to show
        if rows.filter(pl.col("split") == "valid").is_empty():
            raise FigureError(
                f"losses of {model.model}: no held-out (valid) row, but it is a toy model; give its table"
            )
        if rows.select("split", "step").is_duplicated().any():
            raise FigureError(f"losses of {model.model}: a step stands twice; give each table once")
        parts.append(
            rows.sort("split", "step", descending=[True, False]).select(
                model=pl.lit(model.model),
                display_name=pl.lit(model.display_name),
                family=pl.lit(model.family),
                objective=pl.lit(model.objective),
                n_blocks=pl.lit(model.n_blocks, pl.Int64),
                quantity=pl.col("split"),
                step=pl.col("step"),
                n_residues=pl.col("n_residues"),
                value=pl.col("nats"),
                background=pl.col("reference"),
                n=pl.col("n"),
            )
        )
    if not parts:
        raise FigureError("losses: none of a model in --models; leave this figure out of a study that trains nothing")
    return pl.concat(parts)


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers; the legend gives the last loss and says who did not beat the background."""
    held_out = numbers.filter(pl.col("quantity") == "valid")
    last = {row["model"]: row for row in held_out.iter_rows(named=True)}  # steps ascend: the last one stays
    shown = [model for model in models if model.model in last]
    worse = [model for model in shown if not last[model.model]["value"] < last[model.model]["background"]]
    notes = [
        f"Held-out loss at the end over n = {span(pl.Series([row['n'] for row in last.values()]))} residues.",
        "Background: predicting the composition of the training proteins.",
        *([] if worse else ["Every model beat it."]),
    ]
    if len(shown) < len(models):
        notes.append(f"{len(models) - len(shown)} models were not trained here and have no curve.")
    key = [Key("held-out", marker="o"), Key("training", DOTTED, 1.2), Key("background composition", BACKGROUND, 1.0)]
    grid = FamilyGrid(
        shown,
        labels=["loss per residue, nats"],
        x_labels=["residues seen"],
        title=TITLE,
        key=key if "train" in numbers["quantity"] else [key[0], key[2]],
        notes=notes,
        headings={family: OBJECTIVE[members[0].objective] for family, members in columns_of(shown).items()},
        remarks={
            model: f": {row['value']:.3f} (background\N{NO-BREAK SPACE}{row['background']:.3f})"
            + ("" if row["value"] < row["background"] else ", not below background")
            for model, row in last.items()
        },
        warning=f"Did not beat the background: {'; '.join(name_of(model) for model in worse)}." if worse else "",
    )
    for (_, family), axes in grid.panels.items():
        for model in grid.columns[family]:
            colour, marker = grid.looks[model.model]
            own = numbers.filter(pl.col("model") == model.model)
            for split, style in (
                ("train", {"linewidth": 1.0, "linestyle": DOTTED}),
                ("valid", {"linewidth": 1.7, "marker": marker, "markersize": 4.5, "markeredgecolor": "white"}),
            ):
                curve = own.filter(pl.col("quantity") == split)
                axes.plot(curve["n_residues"], curve["value"], color=colour, **style)
            curve = own.filter(pl.col("quantity") == "valid")
            axes.plot(curve["n_residues"], curve["background"], color=GREY, linewidth=1.0, linestyle=BACKGROUND)
        axes.set_xlim(left=-0.02 * numbers["n_residues"].max())
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    finish_value_axis(next(iter(grid.panels.values())))
    return grid.sheet.figure


STAGE = FigureStage("training_loss", TITLE, ["losses"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
