"""Figure: what each block adds to the log-probability of the true residues, trained and untrained (metric E2)."""

import math
from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import columns_of, finish_value_axis
from plm_depth.figures.select import Attributed, Model, Study, attribution_numbers
from plm_depth.figures.sheet import LINE, MARGIN, Key, Sheet, count_notes, lines_of, toy_warning
from plm_depth.figures.style import GREY, WIDTH, darker, family_colours, model_looks, name_of, objective_words, wrapped

TITLE = "What each block adds to the log-probability of the true residues"
BLOCKS, WHOLE = Attributed("gate", "logp", "signed"), Attributed("gate", "logp", "gained")
PANEL, HEIGHT, LEFT, GAP, FOOT = 1.6, 1.25, 0.7, 0.1, 0.45  # inches
UNITS = "nats per read residue"


def numbers(study: Study) -> pl.DataFrame:
    """Return the integrated gradient of every block's gate, and what all blocks add, per read residue."""
    return attribution_numbers(study, wanted=[BLOCKS, WHOLE])


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: a panel of bars a model, families together, shallow models first."""
    models = [model for model in models if model.model in set(numbers["model"])]
    ordered = [model for members in columns_of(models).values() for model in members]
    n_columns = min(len(ordered), int((WIDTH - 2 * MARGIN) // (LEFT + PANEL + GAP)))
    width = max(2 * MARGIN + n_columns * (LEFT + PANEL + GAP), 6.0)
    texts = {model.model: _heading(numbers, model) for model in ordered}
    rows = [ordered[start : start + n_columns] for start in range(0, len(ordered), n_columns)]
    heads = [LINE * max(sum(map(lines_of, texts[m.model])) for m in row) + 0.1 for row in rows]
    has_untrained = "untrained" in set(numbers["network"])
    key = [Key("trained, 95 % interval", linewidth=5.0)]
    key += [Key("untrained, range over seeds", linewidth=1.2, marker="o", is_filled=False)] if has_untrained else []
    notes = ["Integrated gradients of a gate on each block; the bars of a model add up to what all blocks add."]
    if numbers["value"].is_nan().any():
        notes.append("Undefined: the bars of every protein miss that sum by more than they may.")
    sheet = Sheet(
        width=width,
        body=sum(heads) + len(rows) * (HEIGHT + FOOT),
        title=TITLE,
        key=key,
        notes=[*count_notes(numbers, models), *notes],
        warning=toy_warning(models),
    )
    colours, looks = family_colours(models), model_looks(models)
    y = sheet.top
    for row, head in zip(rows, heads, strict=True):
        for place, model in enumerate(row):
            x = MARGIN + place * (LEFT + PANEL + GAP) + LEFT
            name, inputs = texts[model.model]
            sheet.text(x, y, name, va="top", color=darker(colours[model.family], 0.15), fontweight="bold")
            sheet.text(x, y + LINE * lines_of(name), inputs, va="top", color=GREY)
            axes = sheet.axes(x, y + head, PANEL, HEIGHT)
            own = numbers.filter((pl.col("model") == model.model) & (pl.col("quantity") == BLOCKS.name))
            _draw_bars(axes, own, looks[model.model][0])
            axes.set_xlabel("block", labelpad=1)
            if place == 0:
                sheet.text(x - LEFT + 0.05, y + head + HEIGHT / 2, UNITS, va="center", ha="center", rotation=90)
        y += head + HEIGHT + FOOT
    return sheet.figure


def _heading(numbers: pl.DataFrame, model: Model) -> tuple[str, str]:
    own = numbers.filter((pl.col("model") == model.model) & (pl.col("quantity") == WHOLE.name))
    inputs = objective_words(model.objective, own["noise_t"][0])
    gained = []
    for network in ("trained", "untrained"):
        value = own.filter(pl.col("network") == network)["value"]
        if len(value):
            text = "undefined" if math.isnan(value[0]) else f"{value[0]:+.3g}".replace("-", "\N{MINUS SIGN}")
            gained.append(f"{network} {text}")
    return wrapped(name_of(model), PANEL, weight="bold"), wrapped(f"{inputs}; all blocks: {', '.join(gained)}", PANEL)


def _draw_bars(axes: Axes, rows: pl.DataFrame, colour: str) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=3)
    n_blocks = rows["layer"].max()
    for row in rows.iter_rows(named=True):
        at = row["layer"]
        if row["network"] == "trained":
            axes.bar([at], [row["value"]], width=0.8, color=colour, zorder=2)
            axes.plot([at, at], [row["lo"], row["hi"]], color=darker(colour, 0.45), linewidth=1.1, zorder=4)
        else:
            axes.plot([at, at], [row["lo"], row["hi"]], color=GREY, linewidth=1.0, zorder=5)
            axes.plot(
                [at], [row["value"]], linestyle="none", marker="o", markerfacecolor="white", markeredgecolor=GREY,
                markersize=max(1.5, min(4.0, 60 / n_blocks)), markeredgewidth=0.8, zorder=6,
            )  # fmt: skip
    axes.set_xlim(0.4, n_blocks + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    finish_value_axis(axes)


STAGE = FigureStage("gate_attribution", TITLE, ["attributions"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
