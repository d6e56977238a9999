"""Figure: the claims and what became of them: statistic, interval, untrained networks, margin, outcome and reason."""

import math
from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.select import FigureError, Model, Study
from plm_depth.figures.sheet import LINE, MARGIN, Sheet, lines_of, span, toy_warning
from plm_depth.figures.style import GREY, LIGHT_GREY, name_of, text_width, wrapped

TITLE = "Claims about the use of depth, and what became of them"
OUTCOMES = {  # word and colour
    "pass": ("pass", "#00714f"),
    "pass_descriptive": ("descriptive pass", "#0072b2"),
    "fail": ("fail", "#a84300"),
    "inconclusive": ("inconclusive", "#5a5a5a"),
}
MEANINGS = (
    "Pass: the 95 % interval lies beyond the margin and beyond what another untrained network would give.",
    "Descriptive pass: beyond the margin, but an untrained network shows it too.",
    "Fail: on the other side of no effect.",
    "Inconclusive: anything else, for the reason given.",
)
SCOPE_OF_CLAIM = {"K1": "model", "K2": "model", "K3": "family", "K4": "family", "K5": "model", "K6": "model"}
OF_EVERY_MODEL = ("K1", "K2")  # K5 is judged where a model was shown structures, K6 where it was ablated
ALL = "all"
SHOWN_ROLES = ("claim", "decides")  # supporting statistics stand in the table beside the figure
NUMBERS = {
    "claim": pl.String,
    "scope": pl.String,  # model, family or all
    "model": pl.String,  # null unless the scope is a model
    "family": pl.String,  # null if the scope is all
    "display_name": pl.String,
    "role": pl.String,
    "quantity": pl.String,
    "value": pl.Float64,  # null in the rows of the claims themselves
    "lo": pl.Float64,
    "hi": pl.Float64,
    "untrained_value": pl.Float64,
    "untrained_lo": pl.Float64,
    "untrained_hi": pl.Float64,
    "max_value": pl.Float64,
    "margin": pl.Float64,
    "outcome": pl.String,
    "reason": pl.String,
    "n_seq": pl.Int64,
    "n_cluster": pl.Int64,
}
MEASURED = ("value", "lo", "hi", "untrained_value", "untrained_lo", "untrained_hi", "max_value", "margin")
RENAMED = {"statistic": "quantity", "ci_lo": "lo", "ci_hi": "hi", "null_value": "untrained_value",
           "null_lo": "untrained_lo", "null_hi": "untrained_hi", "verdict": "outcome"}  # fmt: skip
COLUMNS = {  # heading, and the largest width in inches
    "scope": ("model or family", 2.0),
    "quantity": ("statistic", 2.4),
    "value": ("value [95 % interval]", 1.9),
    "untrained": ("untrained [another one, 95 %]", 1.95),
    "margin": ("margin", 0.6),
    "outcome": ("outcome", 1.3),
    "reason": ("reason", 4.8),
}
GAP, ROOM = 0.18, 0.05  # inches between columns, and of a row beyond its lines
MOST_DECIMALS = 6


def numbers(study: Study) -> pl.DataFrame:
    """Return every row of the table of verdicts, named for display, claim by claim, each before its statistics.

    Raises:
        FigureError: a model without a verdict, a scope that is not in the study, a row twice, an unknown outcome.
    """
    table = study.verdicts
    models = {model.model: model for model in study.models}
    families = {model.family: model for model in study.models}
    _check(table, models, families)
    rows = []
    for row in table.rename(RENAMED).iter_rows(named=True):
        kind = ALL if row["scope"] == ALL else SCOPE_OF_CLAIM[row["claim"]]
        name = {
            "model": lambda scope: name_of(models[scope]),
            "family": lambda scope: families[scope].family_name,
            ALL: lambda scope: "all objectives",
        }[kind](row["scope"])
        rows.append(
            row
            | dict.fromkeys(MEASURED if row["role"] == "claim" else ())
            | {
                "scope": kind,
                "model": row["scope"] if kind == "model" else None,
                "family": {"model": lambda r: models[r].family, "family": str, ALL: lambda r: None}[kind](row["scope"]),
                "display_name": name,
                "place": list(models if kind == "model" else [*families, ALL]).index(row["scope"]),
            }
        )
    found = pl.DataFrame(rows, schema={**NUMBERS, "place": pl.Int64}, orient="row")
    order = {"claim": 0, "decides": 1, "supports": 2}
    return found.sort(
        "claim",
        "place",
        pl.col("role").replace_strict(order, return_dtype=pl.Int64),
        maintain_order=True,
    ).select(*NUMBERS)


def _check(table: pl.DataFrame, models: dict[str, Model], families: dict[str, Model]) -> None:
    if table.is_empty():
        raise FigureError("verdicts: the table has no rows; run metrics.verdicts again")
    unknown = sorted(set(table["claim"]) - set(SCOPE_OF_CLAIM)) + sorted(set(table["verdict"]) - set(OUTCOMES))
    if unknown:
        raise FigureError(
            f"verdicts: {unknown}, expected the claims {', '.join(SCOPE_OF_CLAIM)} and the outcomes "
            f"{', '.join(OUTCOMES)}; run metrics.verdicts of this version"
        )
    if table.select("claim", "scope", "statistic", "role").is_duplicated().any():
        raise FigureError("verdicts: a row stands twice; give one table of one data set")
    for claim, scope in table.select("claim", "scope").unique(maintain_order=True).iter_rows():
        known = models if SCOPE_OF_CLAIM[claim] == "model" else {**families, ALL: None}
        if scope not in known:
            raise FigureError(f"verdicts: {claim} of {scope!r}, which --models does not list; list it or judge again")
    claims = table.filter(pl.col("role") == "claim").select("claim", "scope").rows()
    for claim, scope in table.select("claim", "scope").unique(maintain_order=True).iter_rows():
        if (claim, scope) not in claims:
            raise FigureError(f"verdicts: {claim} of {scope} has statistics but no outcome; run metrics.verdicts again")
    for model in models:
        for claim in OF_EVERY_MODEL:
            if (claim, model) not in claims:
                raise FigureError(
                    f"verdicts: no outcome of {claim} for {model}; judge again, or take it out of --models"
                )


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers: one line a claim and scope, the deciding statistics below or within it."""
    lines = _lines(numbers)
    widths = {
        column: max(text_width(one, weight=_weight(column)) for text in (heading, *(line[column] for _, line in lines))
                    for one in text.split("\n"))
        for column, (heading, _) in COLUMNS.items()
    }  # fmt: skip
    width = 2 * MARGIN + sum(widths.values()) + GAP * (len(COLUMNS) - 1)
    heights = [LINE * max(map(lines_of, line.values())) + ROOM for _, line in lines]
    sections = {claim: _heading(numbers, claim) for claim in numbers["claim"].unique(maintain_order=True)}
    section_heights = {
        claim: LINE * lines_of(wrapped(text, width - 2 * MARGIN, weight="bold")) + 0.2
        for claim, text in sections.items()
    }
    top = LINE + 0.1
    hidden = numbers.filter(pl.col("role") == "supports").height
    measured = numbers.filter(pl.col("role") != "claim")
    sheet = Sheet(
        width=width,
        body=top + sum(heights) + sum(section_heights.values()) + 0.1,
        title=TITLE,
        key=(),
        notes=[
            *MEANINGS,
            f"n = {span(measured['n_seq'])} proteins in {span(measured['n_cluster'])} similarity clusters; paired "
            "bootstrap over clusters.",
            *([f"{hidden} supporting statistics stand in the table."] if hidden else []),
        ],
        warning=toy_warning(models),
    )
    places, x = {}, MARGIN
    for column, (heading, _) in COLUMNS.items():
        places[column] = x
        sheet.text(x, sheet.top, heading, va="top", color=GREY)
        x += widths[column] + GAP
    y, shown = sheet.top + top, None
    for (row, line), height in zip(lines, heights, strict=True):
        if row["claim"] != shown:
            shown = row["claim"]
            heading = wrapped(sections[shown], width - 2 * MARGIN, weight="bold")
            sheet.text(MARGIN, y + 0.1, heading, va="top", fontweight="bold")
            y += section_heights[shown]
        if row["role"] == "claim":
            sheet.line([MARGIN, width - MARGIN], y, color=LIGHT_GREY, linewidth=0.6)
        for column, text in line.items():
            _, colour = OUTCOMES[row["outcome"]]
            if column != "outcome":
                sheet.text(places[column], y + ROOM / 2, text, va="top")
            elif row["role"] == "claim":  # a claim's outcome stands on its colour, a statistic's is written in it
                sheet.box(places[column] - 0.05, y + ROOM / 2 - 0.015, text_width(text, weight="bold") + 0.1, LINE,
                          facecolor=colour)  # fmt: skip
                sheet.text(places[column], y + ROOM / 2, text, va="top", color="white", fontweight="bold")
            else:
                sheet.text(places[column], y + ROOM / 2, text, va="top", color=colour)
        y += height
    return sheet.figure


def _heading(numbers: pl.DataFrame, claim: str) -> str:
    text = numbers.filter((pl.col("claim") == claim) & (pl.col("role") == "claim"))["quantity"][0]
    return f"{claim}: {text}"


def _lines(numbers: pl.DataFrame) -> list[tuple[dict, dict[str, str]]]:
    """Return the lines of the picture: the row that each shows, and its text by column.

    A claim that rests on one statistic has one line, with the statistic's numbers and the claim's outcome.
    """
    lines = []
    for _, rows in numbers.group_by("claim", "scope", "display_name", maintain_order=True):
        claim, *others = rows.filter(pl.col("role").is_in(SHOWN_ROLES)).iter_rows(named=True)
        if len(others) == 1:
            measured = {column: others[0][column] for column in (*MEASURED, "quantity")}
            lines.append(claim | measured)
            continue
        lines.append(claim | {"quantity": ""})
        lines += [other | {"display_name": ""} for other in others]
    return [(row, _texts(row)) for row in lines]


def _texts(row: dict) -> dict[str, str]:
    texts = {
        "scope": row["display_name"],
        "quantity": row["quantity"],
        "value": with_range(row["value"], row["lo"], row["hi"]),
        "untrained": with_range(row["untrained_value"], row["untrained_lo"], row["untrained_hi"]),
        "margin": short(row["margin"]),
        "outcome": OUTCOMES[row["outcome"]][0],
        "reason": row["reason"],
    }
    return {column: wrapped(text, COLUMNS[column][1], weight=_weight(column)) for column, text in texts.items()}


def _weight(column: str) -> str:
    return "bold" if column == "outcome" else "normal"


def with_range(value: float | None, lo: float | None, hi: float | None) -> str:
    """Return "value [lo, hi]", to two digits of the range; no range where there is none, nothing without a value."""
    if value is None or math.isnan(lo) or math.isnan(value):
        return short(value)
    decimals = max(1 - math.floor(math.log10(hi - lo)), 0) if hi > lo else math.inf
    if decimals > MOST_DECIMALS:
        return f"{short(value)} [{short(lo)}, {short(hi)}]"
    value, lo, hi = (signed(f"{one:z.{decimals}f}") for one in (value, lo, hi))  # z: no minus before a mere zero
    return f"{value} [{lo}, {hi}]"


def short(value: float | None) -> str:
    """Return a number with three significant digits, a dash for undefined, nothing for absent."""
    if value is None:
        return ""
    return "\N{EN DASH}" if math.isnan(value) else signed(f"{value:.3g}")


def signed(text: str) -> str:
    """Return a number's text with a minus sign instead of a hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


STAGE = FigureStage("verdicts", TITLE, ["verdicts"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
