"""How numbers become a picture: profiles against relative depth, and statistics side by side, one way each."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from plm_depth.figures.select import Model
from plm_depth.figures.sheet import LINE, Key, Sheet, count_notes, lines_of, toy_warning
from plm_depth.figures.style import (
    GREY,
    LIGHT_GREY,
    WIDTH,
    by_depth,
    darker,
    family_colours,
    lighter,
    model_looks,
    name_of,
    objective_words,
    text_width,
    wrapped,
)

DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.2))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Level:
    """A level line at a value; a label, if any, stands in the key."""

    value: float
    label: str = ""
    linestyle: object = DOTTED


@dataclass(frozen=True)
class Row:
    """One quantity, drawn as a row of panels with a common axis.

    Attributes:
        quantity, aggregate: which numbers.
        label: of the axis, with the unit; may have two lines.
        is_log: whether the axis is logarithmic.
        also: a second aggregate, drawn as a thin dotted line without a band.
        also_label: what the key calls it; by default by its name.
        references: level lines.
        limits: what the axis must at least show.
    """

    quantity: str
    label: str
    aggregate: str = "mean"
    is_log: bool = False
    also: str | None = None
    also_label: str = ""
    references: Sequence[Level] = ()
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Points:
    """Quantities without a depth, drawn side by side as points with intervals, as one more row of panels.

    Attributes:
        quantities: from left to right, with the text of their ticks.
        label, x_label: of the axes.
    """

    quantities: Mapping[str, str]
    label: str
    x_label: str


def columns_of(models: Sequence[Model]) -> dict[str, list[Model]]:
    """Return the models of each family: families in order of appearance, models from shallow to deep."""
    families = dict.fromkeys(model.family for model in models)
    return {family: by_depth([model for model in models if model.family == family]) for family in families}


# ----------------------------------------------------------------------------------------------------------------
# Profiles against relative depth


def profile_figure(
    numbers: pl.DataFrame,
    models: Sequence[Model],
    *,
    title: str,
    rows: Sequence[Row],
    points: Points | None = None,
    notes: Sequence[str] = (),
    remarks: Mapping[str, str] | None = None,
    x_label: str = "relative depth",
    counts: Sequence[str] | None = None,
    headings: Mapping[str, str] | None = None,
) -> Figure:
    """Return profiles against relative depth: a column of panels a family, a row a quantity, a line a model.

    Args:
        numbers: ``select.NUMBERS`` or ``select.EFFECT_NUMBERS``; everything drawn comes from it.
        models: in the order of the study.
        title: one line at the top.
        rows: quantities from top to bottom.
        points: a last row, of quantities without a depth.
        notes: sentences for the foot of the figure.
        remarks: further text about a model in its legend.
        x_label: of the profiles, where ``relative_depth`` holds another share from 0 to 1.
        counts: sentences that say what stands behind the numbers; by default proteins and similarity clusters.
        headings: by family, what stands below its name; by default objective and primary input.
    """
    hidden = _not_on_log_axis(numbers, rows)
    if hidden:
        notes = [*notes, f"{hidden} values of 0 or less are not on the logarithmic axis, but in the table."]
    grid = FamilyGrid(
        models,
        labels=[row.label for row in rows] + ([points.label] if points else []),
        x_labels=[x_label] * len(rows) + ([points.x_label] if points else []),
        title=title,
        key=_profile_key(numbers, rows),
        notes=[*(count_notes(numbers, models) if counts is None else counts), *notes],
        headings=headings or {family: _objective_of(numbers, family) for family in columns_of(models)},
        remarks=remarks or {},
    )
    for (r, family), axes in grid.panels.items():
        if r == len(rows):
            _draw_points(axes, numbers, grid.columns[family], grid.looks, points)
            continue
        _draw_profiles(axes, numbers, grid.columns[family], grid.looks, rows[r])
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    for r, row in enumerate(rows):
        panels = [axes for (at, _), axes in grid.panels.items() if at == r]
        finish_value_axis(panels[0], is_log=row.is_log, limits=row.limits)
    if points:
        finish_value_axis(grid.panels[len(rows), next(iter(grid.columns))], limits=(0.0, 0.0))
    return grid.sheet.figure


class FamilyGrid:
    """Panels of a figure with a column a family: headings above, axes with common scales, a legend below each column.

    A row's axis is labelled where the row below has another one (``x_labels``, one a row) or there is none below. A
    single row of panels is folded into two beyond four families. Attributes: sheet; columns (models by family); looks
    (colour and marker by model); panels (axes by row and family).
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        labels: Sequence[str],
        x_labels: Sequence[str],
        title: str,
        key: Sequence[Key],
        notes: Sequence[str],
        headings: Mapping[str, str],
        remarks: Mapping[str, str],
        warning: str = "",
    ):
        self.columns, self.looks = columns_of(models), model_looks(models)
        self.panels: dict[tuple[int, str], Axes] = {}
        colours, families = family_colours(models), list(self.columns)
        is_folded = len(labels) == 1 and len(families) > 4
        n_columns = (len(families) + 1) // 2 if is_folded else len(families)

        left, right, gap_x, gap_y = 1.05, 0.2, 0.2, 0.18
        panel_width = (WIDTH - left - right - (n_columns - 1) * gap_x) / n_columns
        panel_width = min(max(panel_width, 1.4), 5.2)
        panel_height = {1: 2.1 if is_folded else 2.7, 2: 1.9, 3: 1.55}.get(len(labels), 1.3)
        width = left + right + n_columns * panel_width + (n_columns - 1) * gap_x

        headings = {family: wrapped(text, panel_width) for family, text in headings.items()}
        legends = {m.model: wrapped(name_of(m) + remarks.get(m.model, ""), panel_width - 0.36) for m in models}
        heading_height = LINE * (1 + max(map(lines_of, headings.values()))) + 0.07
        legend_heights = [
            sum(lines_of(legends[model.model]) * LINE + 0.03 for model in members) for members in self.columns.values()
        ]
        # A row shows its axis if the next one has another.
        feet = [*(one != other for one, other in itertools.pairwise(x_labels)), True]
        gaps = [0.5 if is_shown else gap_y for is_shown in feet]
        panels_height = len(labels) * panel_height + sum(gaps)
        fold_heights = [
            heading_height + panels_height + max(legend_heights[start : start + n_columns]) + 0.1
            for start in range(0, len(families), n_columns)
        ]
        self.sheet = Sheet(
            width=width,
            body=sum(fold_heights),
            title=title,
            key=key,
            notes=notes,
            warning=" ".join(filter(None, [toy_warning(models), warning])),
        )
        for place, family in enumerate(families):
            column, fold = place % n_columns, place // n_columns
            x, y = left + column * (panel_width + gap_x), self.sheet.top + sum(fold_heights[:fold])
            self.sheet.text(
                x,
                y,
                self.columns[family][0].family_name,
                va="top",
                color=darker(colours[family], 0.15),
                fontweight="bold",
            )
            self.sheet.text(x, y + LINE, headings[family], va="top", color=GREY)
            y += heading_height
            for r, label in enumerate(labels):
                shared = self.panels.get((r, families[0]))
                axes = self.sheet.axes(x, y, panel_width, panel_height, sharey=shared)
                self.panels[r, family] = axes
                axes.tick_params(labelbottom=feet[r], labelleft=column == 0)
                if feet[r]:
                    axes.set_xlabel(x_labels[r], labelpad=2)
                if column == 0:
                    self.sheet.text(0.25, y + panel_height / 2, label, va="center", ha="center", rotation=90)
                y += panel_height + gaps[r]
            for model in self.columns[family]:
                colour, marker = self.looks[model.model]
                self.sheet.line(
                    [x, x + 0.14, x + 0.28], y + LINE / 2, color=colour, linewidth=1.7, marker=marker,
                    markersize=4.5, markevery=[1], markeredgecolor="white", markeredgewidth=0.5,
                )  # fmt: skip
                self.sheet.text(x + 0.36, y, legends[model.model], va="top")
                y += lines_of(legends[model.model]) * LINE + 0.03


def _draw_profiles(
    axes: Axes, numbers: pl.DataFrame, members: Sequence[Model], looks: Mapping[str, tuple[str, str]], row: Row
) -> None:
    for level in row.references:
        axes.axhline(level.value, color=GREY, linewidth=0.8, linestyle=level.linestyle, zorder=1)
    for model in members:
        colour, marker = looks[model.model]
        own = numbers.filter((pl.col("quantity") == row.quantity) & (pl.col("model") == model.model))
        untrained = _line_of(own, "untrained", row.aggregate)
        if untrained:
            depth, value, lo, hi = untrained
            axes.fill_between(depth, lo, hi, color=colour, alpha=0.10, linewidth=0, zorder=2)
            axes.plot(depth, value, color=lighter(colour, 0.25), linewidth=1.1, linestyle=DASHED, zorder=3)
        trained = _line_of(own, "trained", row.aggregate)
        if not trained:  # a quantity that this model need not have
            continue
        depth, value, lo, hi = trained
        axes.fill_between(depth, lo, hi, color=colour, alpha=0.22, linewidth=0, zorder=4)
        axes.plot(
            depth, value, color=colour, linewidth=1.7, marker=marker, markersize=4.5, zorder=5,
            markevery=max(1, round(len(depth) / 9)), markeredgecolor="white", markeredgewidth=0.5,
        )  # fmt: skip
        also = _line_of(own, "trained", row.also) if row.also else ()
        if also:
            depth, value, _, _ = also
            axes.plot(depth, value, color=colour, linewidth=1.2, linestyle=DOTTED, zorder=4)


def _draw_points(
    axes: Axes, numbers: pl.DataFrame, members: Sequence[Model], looks: Mapping[str, tuple[str, str]], points: Points
) -> None:
    """Draw a group of points a quantity: models from left to right, the untrained network beside the trained."""
    step = min(0.8 / (2 * len(members)), 0.16)
    for place, quantity in enumerate(points.quantities):
        for number, model in enumerate(members):
            colour, marker = looks[model.model]
            own = numbers.filter((pl.col("quantity") == quantity) & (pl.col("model") == model.model))
            for row in own.iter_rows(named=True):
                is_trained = row["network"] == "trained"
                line, face, size, weight = dot_look(colour, is_trained=is_trained)
                x = place + step * (2 * (number - (len(members) - 1) / 2) + (-0.5 if is_trained else 0.5))
                axes.plot([x, x], [row["lo"], row["hi"]], color=line, linewidth=weight, zorder=3)
                axes.plot(
                    [x], [row["value"]], linestyle="none", marker=marker, markersize=size - 0.8, markerfacecolor=face,
                    markeredgecolor=line, markeredgewidth=1.1, zorder=4,
                )  # fmt: skip
    axes.set_xlim(-0.5, len(points.quantities) - 0.5)
    axes.set_xticks(range(len(points.quantities)), list(points.quantities.values()))


def dot_look(colour: str, *, is_trained: bool) -> tuple[str, str, float, float]:
    """Return line and face colour, size and line width (points) of a dot with an interval: filled if trained."""
    return (colour, colour, 5.5, 2.2) if is_trained else (lighter(colour, 0.25), "white", 4.4, 1.2)


def _line_of(numbers: pl.DataFrame, network: str, aggregate: str) -> tuple[np.ndarray, ...]:
    """Return relative depth, value, lo and hi of one line, or an empty tuple where there is none."""
    line = numbers.filter((pl.col("network") == network) & (pl.col("aggregate") == aggregate)).sort("relative_depth")
    if line.is_empty():
        return ()
    return tuple(line[column].to_numpy() for column in ("relative_depth", "value", "lo", "hi"))


def finish_value_axis(axes: Axes, *, is_log: bool = False, limits: tuple[float, float] | None = None) -> None:
    """Give a value axis, which all panels of a row share, its scale, the limits it must at least show, and ticks."""
    if is_log:
        axes.set_yscale("log", nonpositive="mask")
        axes.autoscale_view(scalex=False)
    if limits:
        lo, hi = axes.get_ylim()
        axes.set_ylim(min(lo, limits[0]), max(hi, limits[1]))
    if is_log:
        lo, hi = axes.get_ylim()
        decades = np.log10(hi / lo)
        by_span = ((0.5, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)), (1.6, (1.0, 2.0, 5.0)), (2.5, (1.0, 3.0)), (np.inf, (1.0,)))
        steps = next(steps for most, steps in by_span if decades <= most)
        axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=6 if decades > 2.5 else 12))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def plain(value: float) -> str:
    """Return the text of a tick: plain from 0.001 to 9999, beyond as a power of ten or, shorter, like 2.5e8."""
    if value == 0 or 0.001 <= abs(value) < 10_000:
        text = f"{value:.6g}"
    else:
        mantissa, exponent = f"{value:.3e}".split("e")
        if float(mantissa) == 1:
            return f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        text = f"{float(mantissa):g}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


def _not_on_log_axis(numbers: pl.DataFrame, rows: Sequence[Row]) -> int:
    return numbers.filter(
        pl.col("quantity").is_in([row.quantity for row in rows if row.is_log]) & (pl.col("value") <= 0)
    ).height


def _objective_of(numbers: pl.DataFrame, family: str) -> str:
    own = numbers.filter(pl.col("family") == family)
    return objective_words(own["objective"][0], own["noise_t"][0])


def _profile_key(numbers: pl.DataFrame, rows: Sequence[Row]) -> list[Key]:
    key = [Key("trained, 95 % interval", is_band=True, marker="o")]
    also = next((row for row in rows if row.also), None)
    if also:
        words = "largest over all positions" if also.also == "max" else also.also
        key.append(Key(also.also_label or f"trained, {words}", DOTTED, 1.2))
    if "untrained" in numbers["network"]:
        key.append(Key("untrained, range over seeds", DASHED, 1.1, is_band=True))
    # Rows may have levels of the same meaning at different values: one entry for all of them.
    levels = dict.fromkeys((level.label, level.linestyle) for row in rows for level in row.references if level.label)
    return key + [Key(label, linestyle, 0.8) for label, linestyle in levels]


# ----------------------------------------------------------------------------------------------------------------
# Statistics side by side


@dataclass(frozen=True)
class Statistic:
    """One panel of a dot figure.

    Attributes:
        quantity, parameter: which numbers; parameter NaN for a statistic without one.
        label: heading of the panel.
        x_label: of the axis, with the unit.
        is_share: whether the axis shows 0 to 1 (and more only where a number lies beyond).
    """

    quantity: str
    parameter: float
    label: str
    x_label: str
    is_share: bool = True


def dot_figure(
    numbers: pl.DataFrame,
    models: Sequence[Model],
    *,
    title: str,
    statistics: Sequence[Statistic],
    notes: Sequence[str] = (),
    counts: Sequence[str] | None = None,
) -> Figure:
    """Return statistics side by side: a panel a statistic, a line a model, the untrained network below the trained.

    Args:
        numbers: ``select.NUMBERS``; everything drawn comes from it.
        models: in the order of the study; families stand together, shallow models above deep ones.
        title: one line at the top.
        statistics: panels from left to right, folded beyond five.
        notes: sentences for the foot of the figure.
        counts: as in ``profile_figure``.
    """
    columns, looks, colours = columns_of(models), model_looks(models), family_colours(models)
    names = {model.model: name_of(model) for model in models}
    left_width = min(max([1.5, *(text_width(name) for name in names.values())]), 2.4)
    names = {model: wrapped(name, left_width) for model, name in names.items()}

    places, family_places, y = {}, {}, 0.0  # in inches from the top of a panel
    for family, members in columns.items():
        family_places[family] = y + LINE / 2
        y += LINE + 0.03
        for model in members:
            room = max(lines_of(names[model.model]) * LINE, 0.2) + 0.05
            places[model.model] = y + room / 2
            y += room
        y += 0.1
    panel_height = y

    n_folds = 1 if len(models) > 8 else math.ceil(len(statistics) / 5)
    n_columns = math.ceil(len(statistics) / n_folds)
    left, right, gap_x = 0.15 + left_width + 0.12, 0.2, 0.25
    panel_width = min(max((WIDTH - left - right - (n_columns - 1) * gap_x) / n_columns, 0.95), 2.8)
    width = max(left + right + n_columns * panel_width + (n_columns - 1) * gap_x, 6.5)
    headings = [wrapped(statistic.label, panel_width) for statistic in statistics]
    heading_height = max(map(lines_of, headings)) * LINE + 0.08
    fold_height = heading_height + panel_height + 0.55

    undefined = numbers.filter(pl.col("value").is_nan()).height
    if undefined:
        notes = [*notes, f"{undefined} statistics are undefined and have no point."]
    sheet = Sheet(
        width=width,
        body=n_folds * fold_height,
        title=title,
        key=_dot_key(numbers),
        notes=[*(count_notes(numbers, models) if counts is None else counts), *notes],
        warning=toy_warning(models),
    )
    for place, statistic in enumerate(statistics):
        column, fold = place % n_columns, place // n_columns
        x = left + column * (panel_width + gap_x)
        y_top = sheet.top + fold * fold_height
        sheet.text(x, y_top + heading_height - 0.07, headings[place], va="bottom")
        y_top += heading_height
        axes = sheet.axes(x, y_top, panel_width, panel_height)
        axes.set_ylim(panel_height, 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        _draw_dots(axes, numbers, places, looks, statistic)
        axes.set_xlabel(statistic.x_label, labelpad=2)
        if column == 0:
            for family, at in family_places.items():
                name, colour = columns[family][0].family_name, darker(colours[family], 0.15)
                sheet.text(0.15, y_top + at, name, va="center", color=colour, fontweight="bold")
            for model, at in places.items():
                sheet.text(0.15, y_top + at, names[model], va="center")
    return sheet.figure


def _draw_dots(
    axes: Axes,
    numbers: pl.DataFrame,
    places: Mapping[str, float],
    looks: Mapping[str, tuple[str, str]],
    statistic: Statistic,
) -> None:
    for y in places.values():
        axes.axhline(y, color=LIGHT_GREY, linewidth=0.5, zorder=0)
    # In polars NaN equals NaN, so this also finds the statistics without a parameter.
    own = numbers.filter((pl.col("quantity") == statistic.quantity) & (pl.col("parameter") == statistic.parameter))
    for row in own.iter_rows(named=True):
        colour, marker = looks[row["model"]]
        is_trained = row["network"] == "trained"
        line, face, size, weight = dot_look(colour, is_trained=is_trained)
        y = places[row["model"]] + (-0.035 if is_trained else 0.06)
        axes.plot([row["lo"], row["hi"]], [y, y], color=line, linewidth=weight, zorder=3, clip_on=False)
        axes.plot(
            [row["value"]], [y], linestyle="none", marker=marker, markersize=size, markerfacecolor=face,
            markeredgecolor=line, markeredgewidth=1.1, zorder=4, clip_on=False,
        )  # fmt: skip
    if statistic.is_share:
        lo, hi = min([0.0, *_defined(own, "lo")]), max([1.0, *_defined(own, "hi")])
        axes.set_xlim(lo - 0.02, hi + 0.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def _defined(numbers: pl.DataFrame, column: str) -> list[float]:
    return numbers.filter(pl.col(column).is_not_nan())[column].to_list()


def _dot_key(numbers: pl.DataFrame) -> list[Key]:
    key = [Key("trained, 95 % interval", linewidth=2.2, marker="o")]
    if "untrained" in numbers["network"]:
        key.append(Key("untrained, range over seeds", linewidth=1.2, marker="o", is_filled=False))
    return key
