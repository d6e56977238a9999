"""Figure: every definition of effective depth of every model, side by side (metrics I1-I10)."""

import math
import re
from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import columns_of, dot_look
from plm_depth.figures.select import FigureError, Model, Study, depth_numbers
from plm_depth.figures.sheet import LINE, MARGIN, Key, Sheet, count_notes, lines_of, toy_warning
from plm_depth.figures.style import (
    GREY,
    LIGHT_GREY,
    WIDTH,
    darker,
    family_colours,
    model_looks,
    name_of,
    objective_words,
    text_width,
    wrapped,
)

TITLE = "Effective depth by every definition"
# Definitions that are drawn, by their name, and what they are called; {0} is the parameter, as it is or in percent.
WORDS = {
    r"depth_score rel_u": "centre of contributions",
    r"depth_score influence": "centre of effects on later blocks",
    r"depth_score l2": "centre of output changes",
    r"depth_score dnll": "centre of losses when silenced",
    r"depth_score dnll_remove": "centre of losses when removed",
    r"depth_score gate_logp": "centre of gate attributions",
    r"kl_depth kl_0 (\S+)": "lens KL below {percent} % of layer 0",
    r"overlap_depth ov5_cc (\S+)": "top-5 overlap above {0}",
    r"retention_depth nll_background 0\.95": "early exit keeps 95 % of its gain",
    r"retention_depth fitness_(mask|wt|ar) 0\.95": "fitness ({0}) keeps 95 % of its gain",
    r"retention_depth probe_ss3_logistic_pca\d+_accuracy_chance 0\.95": "probe of SS3 keeps 95 % of its gain",
    r"retention_depth probe_homology_retrieval_centred_top1_chance 0\.95": "retrieval of kin keeps 95 % of its gain",
    r"cosine_depth cos": "mean cosine turns positive",
    r"kl_area kl_lf": "mean depth of the lens KL",
    r"overlap_area ov5_cc": "mean depth of the top-5 overlap",
    r"half_contrast influence": "late share of effects on later blocks",
    r"half_contrast l2": "late share of output changes",
    r"half_contrast dnll": "late share of losses when silenced",
    r"half_contrast gate_logp": "late share of gate attributions",
    r"settling kl_lf (\S+)": "median residue within {0} nats",
    r"settling top1": "median residue keeps its top residue",
    r"erasure_depth position_l2": "last layer where erasure matters",
    r"n80 influence": "80 % of effects on later blocks",
    r"n80 l2": "80 % of output changes",
    r"n80 dnll": "80 % of losses when silenced",
    r"n80 dnll_remove": "80 % of losses when removed",
    r"n80 gate_logp": "80 % of gate attributions",
    r"removable_fraction angular_nll 0\.95": "blocks needed for 95 % of the gain",
}
NOT_DRAWN = (r"settling kl_lf 0\.5",)  # nearly the same as another one; what has no words is not drawn either
KINDS = {"where": "relative depth", "amount": "share of blocks in use"}
ROW = 0.2  # inches of a definition
MOST = 5  # families beside each other


def words_of(definition: str) -> str | None:
    """Return what a definition is called in figures, None for one that is not drawn."""
    if any(re.fullmatch(pattern, definition) for pattern in NOT_DRAWN):
        return None
    for pattern, words in WORDS.items():
        found = re.fullmatch(pattern, definition)
        if found:
            number = found.groups()[-1] if found.groups() else ""
            percent = f"{100 * float(number):g}" if re.fullmatch(r"[\d.]+", number) else ""
            return words.format(*found.groups(), percent=percent)
    return None


def shown_of(definitions: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return the definitions that are drawn, of (index, kind, definition): places first, then amounts, by number."""
    kinds = list(KINDS)
    known = [row for row in dict.fromkeys(definitions) if words_of(row[2]) is not None]
    ordered = sorted(known, key=lambda row: (kinds.index(row[1]), row[0][0] != "I", int(row[0][1:]), row[2]))
    return [definition for _, _, definition in ordered]


def numbers(study: Study) -> pl.DataFrame:
    """Return every definition that is drawn."""
    rows = [] if study.depths.is_empty() else study.depths.select("index", "kind", "definition").rows()
    shown = shown_of(rows)
    if not shown:
        raise FigureError("--depths: none of the definitions that this figure draws; run metrics.depths again")
    return depth_numbers(study, definitions=shown)


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: a column of points a family, a row a definition."""
    columns, looks, colours = columns_of(models), model_looks(models), family_colours(models)
    rows = shown_of(numbers.select("index", "kind", "quantity").rows())
    kind_of = dict(numbers.select("quantity", "kind").rows())
    labels = {row: words_of(row) for row in rows}
    places, y = {}, 0.0  # inches from the top of a panel
    for place, row in enumerate(rows):
        if place and kind_of[row] != kind_of[rows[place - 1]]:
            y += LINE + 0.1
        places[row] = y + ROW / 2
        y += ROW
    height = y
    left = MARGIN + max(map(text_width, labels.values())) + 0.15
    families = list(columns)
    n_folds = -(-len(families) // MOST)
    n_columns = -(-len(families) // n_folds)
    gap = 0.18
    panel = min((WIDTH - left - MARGIN - (n_columns - 1) * gap) / n_columns, 2.6)
    heads = {
        family: wrapped(
            objective_words(*numbers.filter(pl.col("family") == family).select("objective", "noise_t").row(0)), panel
        )
        for family in families
    }
    head = LINE * (1 + max(map(lines_of, heads.values()))) + LINE + 0.1
    legends = {model.model: wrapped(name_of(model), panel - 0.2) for model in models}
    legend_heights = [sum(lines_of(legends[m.model]) * LINE + 0.03 for m in members) for members in columns.values()]
    folds = [families[start : start + n_columns] for start in range(0, len(families), n_columns)]
    fold_heights = [head + height + 0.3 + max(legend_heights[families.index(f)] for f in fold) + 0.15 for fold in folds]
    undefined = numbers.filter(pl.col("value").is_nan()).height
    sheet = Sheet(
        width=max(left + n_columns * panel + (n_columns - 1) * gap + MARGIN, 7.0),
        body=sum(fold_heights),
        title=TITLE,
        key=_key(numbers),
        notes=[
            *count_notes(numbers, models),
            *([f"{undefined} are undefined and have no point."] if undefined else []),
        ],
        warning=toy_warning(models),
    )
    y = sheet.top
    for fold, fold_height in zip(folds, fold_heights, strict=True):
        for column, family in enumerate(fold):
            x = left + column * (panel + gap)
            colour = darker(colours[family], 0.15)
            sheet.text(x, y, columns[family][0].family_name, va="top", color=colour, fontweight="bold")
            sheet.text(x, y + LINE, heads[family], va="top", color=GREY)
            axes = sheet.axes(x, y + head, panel, height)
            _draw_points(axes, numbers, columns[family], looks, places, height)
            for kind, words in KINDS.items():
                first = next((row for row in rows if kind_of[row] == kind), None)
                if column == 0 and first is not None:
                    at = y + head + places[first] - ROW / 2
                    sheet.text(MARGIN, at - 0.03, words, va="bottom", color=GREY, fontweight="bold")
            if column == 0:
                for row, at in places.items():
                    sheet.text(left - 0.1, y + head + at, labels[row], va="center", ha="right")
            at = y + head + height + 0.3
            for model in columns[family]:
                shade, marker = looks[model.model]
                sheet.line([x + 0.08], at + LINE / 2, color=shade, marker=marker, markersize=5.5, linestyle="none")
                sheet.text(x + 0.2, at, legends[model.model], va="top")
                at += lines_of(legends[model.model]) * LINE + 0.03
        y += fold_height
    return sheet.figure


def _draw_points(
    axes: Axes,
    numbers: pl.DataFrame,
    members: Sequence[Model],
    looks: dict[str, tuple[str, str]],
    places: dict[str, float],
    height: float,
) -> None:
    for y in places.values():
        axes.axhline(y, color=LIGHT_GREY, linewidth=0.5, zorder=0)
    step = min(0.12 / max(len(members), 1), 0.04)
    for number, model in enumerate(members):
        colour, marker = looks[model.model]
        shift = step * (number - (len(members) - 1) / 2)
        for row in numbers.filter(pl.col("model") == model.model).iter_rows(named=True):
            if math.isnan(row["value"]):
                continue
            is_trained = row["network"] == "trained"
            line, face, size, weight = dot_look(colour, is_trained=is_trained)
            y = places[row["quantity"]] + shift
            axes.plot([row["lo"], row["hi"]], [y, y], color=line, linewidth=weight * 0.7, zorder=3, clip_on=False)
            axes.plot(
                [row["value"]], [y], linestyle="none", marker=marker, markersize=size - 1, markerfacecolor=face,
                markeredgecolor=line, markeredgewidth=0.9, zorder=4 if is_trained else 2, clip_on=False,
            )  # fmt: skip
    axes.set_ylim(height, 0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _key(numbers: pl.DataFrame) -> list[Key]:
    key = [Key("trained, 95 % interval", linewidth=2.2, marker="o")]
    if "untrained" in numbers["network"]:
        key.append(Key("untrained, range over seeds", linewidth=1.2, marker="o", is_filled=False))
    return key


STAGE = FigureStage("depth_definitions", TITLE, ["depths"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
