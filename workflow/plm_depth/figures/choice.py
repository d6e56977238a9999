"""Layer choice, for people: scores by layer with the layers that are as good, and a page that says what to do.

    python -m plm_depth.figures.choice --choices P... --savings P... --models JSON --svg P --csv P --html P
        --page P --markdown P [--blocks auto --truncated DIR]

The picture shows one question, a column of panels a family; the page (HTML, and the same as Markdown) has the
recommendation of every model in words, and two kinds of scores: those of the curve, layer by layer, and what to expect
of a layer that is chosen so (side "nested"). All numbers are those of the tables CHOICE and SAVINGS.
"""

import argparse
import contextlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, as_svg
from plm_depth.figures.draw import DASHED, DOTTED, FamilyGrid, columns_of, finish_value_axis
from plm_depth.figures.number_table import as_csv, as_html
from plm_depth.figures.select import FigureError, Model, models_of, with_depths
from plm_depth.figures.sheet import TOY_NOTE, Key, span
from plm_depth.figures.style import GREY, darker, lighter, name_of
from plm_depth.progress import stage_log
from plm_depth.tables import CHOICE, SAVINGS, TableError, read_metadata, read_table, replacing

METRICS = {
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "r2": "share of variance explained (R2)",
    "mcc": "Matthews correlation",
    "accuracy": "accuracy",
    "macro_f1": "F1, mean over classes",
    "macro_auprc": "average precision, mean over labels",
}
PROBES = {"linear": "linear probe", "knn": "nearest neighbours"}
# fmt: off
SHOWN = (
    "choice", "model", "display_name", "family", "objective", "n_blocks", "kind", "probe", "metric", "is_primary",
    "side", "layer", "relative_depth", "value", "ci_lo", "ci_hi", "below_best", "below_lo", "below_hi", "over_last",
    "over_last_lo", "over_last_hi", "in_plateau", "is_tied", "is_recommended", "share_within", "share_chosen",
    "chance", "tolerance", "n_rows", "n_cluster", "n_boot",
)  # columns of the picture's numbers, in this order
# fmt: on
SAVED = ("n_parameters", "flops_per_token")
# How many of the resamples must agree before a choice is called stable, or likely.
STABLE, LIKELY = 0.95, 0.8


@dataclass(frozen=True)
class Answer:
    """The recommendation of one model.

    Attributes:
        model: as figures show it.
        test, valid: rows of CHOICE of the deciding probe and metric on either side, by layer.
        nested, nested_cut: the row of CHOICE of these sides.
        about: what is written beside its table.
        savings: rows of SAVINGS, by layer.
        cut: blocks of the truncated checkpoint, its folder, and whether the recommendation gave the depth; None where
            none was asked for.
    """

    model: Model
    test: pl.DataFrame
    valid: pl.DataFrame
    nested: dict
    nested_cut: dict
    about: Mapping[str, str]
    savings: pl.DataFrame
    cut: tuple[int, str, bool] | None

    @property
    def layer(self) -> int:
        """Return the recommended layer."""
        return int(self.valid.filter(pl.col("is_recommended"))["layer"][0])

    def row(self, layer: int) -> dict:
        """Return the row of a layer on the side that scores it."""
        return self.test.row(by_predicate=pl.col("layer") == layer, named=True)

    @property
    def share(self) -> float:
        """Return the share of resamples of the scoring rows in which the recommended layer is as good as the best."""
        return float(self.row(self.layer)["share_within"])

    @property
    def trust(self) -> str:
        """Return how much the choice is to be trusted, in one word."""
        return "stable" if self.share >= STABLE else "likely" if self.share >= LIKELY else "open"


# ----------------------------------------------------------------------------------------------------------------
# Numbers


def read_answers(
    choices: Sequence[Path], savings: Sequence[Path], models: Sequence[Model], cut: tuple[str, str] | None
) -> tuple[list[Answer], pl.DataFrame]:
    """Return the answers in the order of the models, and all rows of CHOICE.

    Raises:
        FigureError: tables of several questions, of a model that is not listed, or without its savings.
    """
    if not choices:
        raise FigureError("--choices is empty; give the CHOICE tables of one question")
    tables = {path: _plain(path, CHOICE) for path in choices}
    rows = pl.concat(tables.values())
    if rows["choice"].n_unique() > 1:
        raise FigureError(f"--choices: several questions ({', '.join(rows['choice'].unique().sort())}); expected one")
    of_model = {table["model_id"][0]: (path, table) for path, table in tables.items()}
    cost = pl.concat([_plain(path, SAVINGS) for path in savings])
    known = [model for model in with_depths(models, [rows]) if model.model in of_model]
    if unknown := set(of_model) - {model.model for model in known}:
        raise FigureError(f"--choices: {sorted(unknown)} are not listed in --models")
    answers = []
    for model in known:
        path, table = of_model[model.model]
        own = cost.filter(pl.col("model_id") == model.model).sort("layer")
        if own.is_empty():
            raise FigureError(f"--savings: no table of {model.model}; give one of every model")
        primary = table.filter(pl.col("is_primary")).sort("layer")
        test, valid = (primary.filter(pl.col("side") == side) for side in ("test", "valid"))
        about, cut_here = read_metadata(path), None
        if cut is not None:
            blocks, folder = cut
            is_auto = blocks == "auto"
            cut_here = (int(about["cut_after"] if is_auto else blocks), f"{folder}/{model.model}", is_auto)
        nested = (primary.row(by_predicate=pl.col("side") == side, named=True) for side in ("nested", "nested_cut"))
        answers.append(Answer(model, test, valid, *nested, about, own, cut_here))
    return answers, rows


def _plain(path: Path, schema) -> pl.DataFrame:
    table = pl.from_arrow(read_table(path, schema).select(schema.names))
    return table.with_columns(pl.col(pl.Categorical).cast(pl.String))


def numbers_of(rows: pl.DataFrame, models: Sequence[Model]) -> pl.DataFrame:
    """Return what the picture shows: the rows of every probe under the deciding metric on the side that scores, and
    the deciding probe's row of side "nested"."""
    metric = rows.filter(pl.col("is_primary"))["metric"][0]
    order = {model.model: place for place, model in enumerate(models)}
    names = {model.model: model.display_name for model in models}
    is_shown = (pl.col("side") == "test") | ((pl.col("side") == "nested") & pl.col("is_primary"))
    shown = rows.filter((pl.col("metric") == metric) & is_shown)
    return (
        shown.with_columns(
            model=pl.col("model_id"),
            display_name=pl.col("model_id").replace_strict(names),
            relative_depth=pl.when(pl.col("layer") >= 0).then(pl.col("layer") / pl.col("n_blocks")),
            place=pl.col("model_id").replace_strict(order),
        )
        .sort("place", "is_primary", "probe", "side", "layer", descending=[False, True, False, True, False])
        .select(SHOWN)
    )


# ----------------------------------------------------------------------------------------------------------------
# The picture


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return scores against relative depth, the layers that are as good marked and the recommended one ringed."""
    first = numbers.row(0, named=True)
    primary = numbers.filter(pl.col("is_primary") & (pl.col("side") == "test"))
    others = [probe for probe in numbers["probe"].unique(maintain_order=True) if probe != first["probe"]]
    tolerance = f"{100 * first['tolerance']:g} %"
    grid = FamilyGrid(
        models,
        labels=[f"{METRICS[first['metric']]}\n{PROBES[first['probe']]}"],
        x_labels=["layer / blocks"],
        title=_title(first["choice"]),
        key=[
            Key(f"{PROBES[first['probe']]}, 95 % interval", is_band=True),
            Key(f"within {tolerance} of the best", linewidth=0, marker="o"),
            Key("recommended, as chosen on the validation rows", linewidth=0, marker="D", is_filled=False),
            Key("to expect: labels at the layer that others chose", linewidth=1.2, marker="X"),
            *(Key(PROBES[probe], DOTTED, 1.1) for probe in others),
            Key("guess without features", DASHED, 0.8),
        ],
        notes=[
            f"n = {span(primary['n_rows'])} labels in {span(primary['n_cluster'])} clusters, unseen by the probe.",
            f"Intervals: 95 %, bootstrap over clusters, {span(primary['n_boot'])} resamples.",
        ],
        headings={family: f"{first['kind']}" for family in columns_of(models)},
        remarks={},
    )
    for (_, family), axes in grid.panels.items():
        axes.axhline(first["chance"], color=GREY, linewidth=0.8, linestyle=DASHED, zorder=1)
        for model in grid.columns[family]:
            colour, _ = grid.looks[model.model]
            own = numbers.filter(pl.col("model") == model.model)
            _draw_model(axes, own, colour, others)
        axes.set_xlim(-0.04, 1.04)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    finish_value_axis(next(iter(grid.panels.values())))
    return grid.sheet.figure


def _draw_model(axes: Axes, own: pl.DataFrame, colour: str, others: Sequence[str]) -> None:
    line = own.filter(pl.col("is_primary") & (pl.col("side") == "test")).sort("layer")
    depth, value = line["relative_depth"].to_numpy(), line["value"].to_numpy()
    axes.fill_between(depth, line["ci_lo"].to_numpy(), line["ci_hi"].to_numpy(), color=colour, alpha=0.15, linewidth=0)
    axes.plot(depth, value, color=colour, linewidth=1.7, zorder=4)
    good = line["in_plateau"].to_numpy()
    axes.plot(
        depth[good], value[good], linestyle="none", marker="o", markersize=5.5, color=colour, zorder=5,
        markeredgecolor="white", markeredgewidth=0.5,
    )  # fmt: skip
    chosen = line["is_recommended"].to_numpy()
    axes.plot(
        depth[chosen], value[chosen], linestyle="none", marker="D", markersize=9, markerfacecolor="none",
        markeredgecolor=colour, markeredgewidth=1.5, zorder=6,
    )  # fmt: skip
    for row in own.filter(pl.col("side") == "nested").iter_rows(named=True):
        at = depth[chosen][0]
        axes.plot([at, at], [row["ci_lo"], row["ci_hi"]], color=darker(colour, 0.3), linewidth=1.2, zorder=7)
        axes.plot(
            [at], [row["value"]], linestyle="none", marker="X", markersize=6, color=darker(colour, 0.3),
            markeredgecolor="white", markeredgewidth=0.5, zorder=8,
        )  # fmt: skip
    for probe in others:
        other = own.filter(pl.col("probe") == probe).sort("layer")
        axes.plot(
            other["relative_depth"].to_numpy(), other["value"].to_numpy(), color=lighter(colour, 0.2), linewidth=1.1,
            linestyle=DOTTED, zorder=3,
        )  # fmt: skip


def _title(choice: str) -> str:
    return f"Which layer: {choice}"


# ----------------------------------------------------------------------------------------------------------------
# The page


@dataclass(frozen=True)
class Block:
    """One piece of the page: a heading (level 1 to 3), a paragraph, or a table (header and rows of texts)."""

    kind: str
    text: str = ""
    level: int = 0
    rows: tuple[tuple[str, ...], ...] = ()


def page(answers: Sequence[Answer], *, toys: bool) -> list[Block]:
    """Return the recommendation of one question in words and tables."""
    first = answers[0]
    row = first.test.row(0, named=True)
    about = first.about
    left_out = {reason: n for reason, n in json.loads(about["left_out"]).items() if n}
    told = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in sorted(left_out.items()))
    labels = ", ".join(json.loads(about["labels"]))
    classes = json.loads(about["classes"])
    blocks = [
        Block("heading", _title(row["choice"]), 1),
        Block(
            "paragraph",
            f"Label: {labels} ({row['kind']}{f', {len(classes)} classes' if classes else ''}). {about['n_proteins']} "
            f"proteins were used; left out: {told or 'none'}. Rows were parted into {about['how']}. A "
            f"{PROBES[row['probe']]} was fitted on every layer; layers are compared by {METRICS[row['metric']]} on "
            f"rows that it did not see ({row['n_rows']} labels in {row['n_cluster']} clusters).",
        ),
    ]
    if toys:
        blocks.append(Block("paragraph", TOY_NOTE))
    header = (
        *("model", "layer", "score to expect", "last layer", "gain over it to expect", "on the curve", "trust"),
        *("parameters", "operations"),
    )
    rows = [header]
    for answer in answers:
        here, last, cost = answer.row(answer.layer), answer.row(answer.model.n_blocks), _cost(answer, answer.layer)
        rows.append(
            (
                name_of(answer.model),
                f"{answer.layer} of {answer.model.n_blocks}",
                _with_interval(answer.nested, "value", "ci_lo", "ci_hi"),
                _with_interval(last, "value", "ci_lo", "ci_hi"),
                _with_interval(answer.nested, "over_last", "over_last_lo", "over_last_hi", sign=True),
                _with_interval(here, "value", "ci_lo", "ci_hi"),
                f"{answer.trust}, {percent(answer.share)}",
                *(f"-{text}" if (text := percent(cost[key])) != "0 %" else text for key in SAVED),
            )
        )
    blocks += [Block("table", rows=tuple(rows)), Block("paragraph", _reading(row["tolerance"], about["how_nested"]))]
    for note in json.loads(about["notes"]):
        blocks.append(Block("paragraph", f"Note: {note}."))
    for answer in answers:
        blocks += _of_model(answer)
    return blocks


def _reading(tolerance: float, how_nested: str) -> str:
    return (
        f"Layers are as good as the best if their score is at least the best minus {100 * tolerance:g} % of it; of "
        "these the shallowest is recommended. Trust is the share of resamples of the clusters in which the recommended "
        f"layer is among the as good ones: stable from {percent(STABLE)}, likely from {percent(LIKELY)}, open below. "
        "It does not tell how the choice would change with other training rows. To expect is the score of labels by "
        f"layers in whose choice they had no part: {how_nested}. Layers are chosen anew in every resample, so that "
        "these intervals hold what choosing adds. On the curve stands the score of the recommended layer as if it had "
        "been fixed beforehand; where labels that chose it are among those that score it, that is too good. Brackets "
        "hold 95 % intervals. Last columns: what a model that ends there saves."
    )


def _of_model(answer: Answer) -> list[Block]:
    layer, n = answer.layer, answer.model.n_blocks
    here, best = answer.row(layer), answer.valid.filter(pl.col("in_plateau"))["layer"].to_list()
    tied = answer.test.filter(pl.col("is_tied"))["layer"].to_list()
    cost = _cost(answer, layer)
    sentences = [
        f"Read layer {layer} of {n}.",
        *_worth(answer),
        f"On the curve layer {layer} has {_with_interval(here, 'value', 'ci_lo', 'ci_hi')}; against the last layer "
        f"{_with_interval(here, 'over_last', 'over_last_lo', 'over_last_hi', sign=True)}.",
        f"As good as the best where the layer was chosen: {_layers(best)}.",
        f"The rows that score it cannot tell these layers from the best: {_layers(tied)}.",
        f"In {percent(answer.share)} of the resamples it is among the as good ones: this choice is {answer.trust}.",
        f"A model that ends there has {percent(cost['n_parameters'])} fewer parameters, takes "
        f"{cost['weight_bytes'] / 1e6:.3g} MB less and {percent(cost['flops_per_token'])} fewer operations a token.",
    ]
    if answer.cut:
        blocks, folder, is_auto = answer.cut
        sentences.append(f"The checkpoint that ends after block {blocks} is in {folder}.")
        if is_auto and not math.isnan(answer.nested_cut["value"]):
            told = _with_interval(answer.nested_cut, "over_last", "over_last_lo", "over_last_hi", sign=True)
            sentences.append(f"Of a depth chosen so, {told} against the whole model is to be expected.")
        if blocks != layer:
            sentences.append(
                "No checkpoint can have no blocks: it ends after the shallowest layer from 1 on that is as good, or "
                "after block 1."
                if layer == 0
                else "The config asked for that depth."
            )
    header = ("layer", "score", "below the best", "as good", "in share of resamples")
    rows = [header]
    for row in answer.test.iter_rows(named=True):
        rows.append(
            (
                f"{row['layer']}{' (recommended)' if row['layer'] == layer else ''}",
                _with_interval(row, "value", "ci_lo", "ci_hi"),
                _with_interval(row, "below_best", "below_lo", "below_hi"),
                "yes" if row["in_plateau"] else "cannot be told" if row["is_tied"] else "no",
                f"{percent(row['share_within'])}",
            )
        )
    return [
        Block("heading", name_of(answer.model), 2),
        Block("paragraph", " ".join(sentences)),
        Block("table", rows=tuple(rows)),
    ]


def _worth(answer: Answer) -> list[str]:
    """Return what to expect of a layer that is chosen so, in sentences."""
    if math.isnan(answer.nested["value"]):
        return [f"What to expect of it on other labels cannot be told: {answer.about['how_nested']}."]
    chosen = json.loads(answer.about["chosen"])
    gain = _with_interval(answer.nested, "over_last", "over_last_lo", "over_last_hi", sign=True)
    return [
        f"On labels that had no part in the choice expect {_with_interval(answer.nested, 'value', 'ci_lo', 'ci_hi')}; "
        f"against the last layer {gain} ({answer.about['how_nested']}: {', '.join(map(str, chosen))})."
    ]


def _cost(answer: Answer, layer: int) -> dict[str, float]:
    """Return shares of parameters and operations, and bytes, that ending after a layer saves."""
    here = answer.savings.row(by_predicate=pl.col("layer") == layer, named=True)
    whole = answer.savings.row(by_predicate=pl.col("layer") == answer.model.n_blocks, named=True)
    saved = {key: 1 - here[key] / whole[key] for key in SAVED}
    # A share of nothing saved is 0, not -0.
    return {
        **{key: value + 0.0 for key, value in saved.items()},
        "weight_bytes": whole["weight_bytes"] - here["weight_bytes"],
    }


def _with_interval(row: Mapping[str, float], value: str, lo: str, hi: str, *, sign: bool = False) -> str:
    def text(number: float) -> str:
        return "NaN" if math.isnan(number) else f"{number + 0.0:{'+' if sign else ''}.3f}"

    return f"{text(row[value])} [{text(row[lo])}, {text(row[hi])}]"


def percent(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share + 0.0:.0f} %"


def _layers(layers: Sequence[int]) -> str:
    """Return layers as ranges: 0 to 3, 7."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def as_markdown(blocks: Sequence[Block]) -> str:
    """Return the page as Markdown."""
    parts = []
    for block in blocks:
        if block.kind == "heading":
            parts.append(f"{'#' * block.level} {block.text}")
        elif block.kind == "paragraph":
            parts.append(block.text)
        else:
            lines = [" | ".join(cell.replace("|", "/") for cell in row) for row in block.rows]
            lines.insert(1, " | ".join("---" for _ in block.rows[0]))
            parts.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def as_page(blocks: Sequence[Block]) -> str:
    """Return the page as one HTML file that needs nothing else."""
    parts = []
    for block in blocks:
        if block.kind == "table":
            head, *rows = ("".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row)
                           for tag, row in zip(["th"] + ["td"] * len(block.rows), block.rows))  # fmt: skip
            body = "\n".join(f"<tr>{row}</tr>" for row in rows)
            parts.append(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>")
        else:
            tag = f"h{block.level}" if block.kind == "heading" else "p"
            parts.append(f"<{tag}>{html.escape(block.text)}</{tag}>")
    return _PAGE.format(title=html.escape(blocks[0].text), body="\n".join(parts))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 14px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; color: #1a1a1a; }}
body {{ margin: 1.2rem; max-width: 60rem; }}
h1 {{ font-size: 1.2rem; margin: 0 0 .4rem; }}
h2 {{ font-size: 1rem; margin: 1.4rem 0 .3rem; }}
p {{ margin: 0 0 .7rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0 0 .8rem; }}
th {{ border-bottom: 2px solid #5a5a5a; text-align: left; padding: .2rem .7rem .2rem 0; }}
td {{ padding: .15rem .7rem .15rem 0; border-bottom: 1px solid #e4e4e4; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


# ----------------------------------------------------------------------------------------------------------------
# The stage


def recommend(
    *,
    choices: Sequence[Path],
    savings: Sequence[Path],
    models: Sequence[Model],
    cut: tuple[str, str] | None = None,
    svg: Path,
    csv: Path,
    html: Path,
    page_path: Path,
    markdown: Path,
) -> None:
    """Write picture, its numbers, and the recommendation as page and Markdown; all of them or none.

    Args:
        choices, savings: tables of one question, one of each a model.
        models: of the study; those without a table are not shown.
        cut: how many blocks truncated checkpoints have ("auto": as recommended), and the folder that they are in.
    Raises:
        FigureError, TableError: see ``read_answers``.
    """
    answers, rows = read_answers(choices, savings, models, cut)
    shown = [answer.model for answer in answers]
    numbers = numbers_of(rows, shown)
    title = _title(numbers["choice"][0])
    picture = FigureStage("choice", title, [], lambda study: numbers, draw)
    blocks = page(answers, toys=any(model.is_toy for model in shown))
    texts = {
        svg: as_svg(picture, numbers, shown),
        csv: as_csv(numbers),
        html: as_html(numbers, title=title),
        page_path: as_page(blocks),
        markdown: as_markdown(blocks),
    }
    with contextlib.ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(replacing(path)).write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.figures.choice", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--choices", nargs="+", type=Path, required=True, metavar="P", help="CHOICE tables, one a model"
    )
    parser.add_argument("--savings", nargs="+", type=Path, required=True, metavar="P", help="SAVINGS tables")
    parser.add_argument("--models", type=Path, required=True, metavar="JSON", help="the models: order, names, depth")
    parser.add_argument("--blocks", default="auto", help="of truncated checkpoints: auto (as recommended) or a number")
    parser.add_argument("--truncated", help="folder of truncated checkpoints, if there are any")
    parser.add_argument("--svg", type=Path, required=True, metavar="P", help="the picture")
    parser.add_argument("--csv", type=Path, required=True, metavar="P", help="its numbers")
    parser.add_argument("--html", type=Path, required=True, metavar="P", help="its numbers as a page")
    parser.add_argument("--page", type=Path, required=True, metavar="P", help="the recommendation, HTML")
    parser.add_argument("--markdown", type=Path, required=True, metavar="P", help="the recommendation, Markdown")
    options = parser.parse_args(argv)
    with stage_log("figures.choice", FigureError, TableError, OSError) as log:
        try:
            listed = models_of(json.loads(options.models.read_text(encoding="utf-8")))
        except ValueError as error:
            raise FigureError(f"{options.models}: {error}") from error
        recommend(
            choices=options.choices,
            savings=options.savings,
            models=listed,
            cut=(options.blocks, options.truncated) if options.truncated else None,
            svg=options.svg,
            csv=options.csv,
            html=options.html,
            page_path=options.page,
            markdown=options.markdown,
        )
        log.info("wrote %s and %s", options.svg, options.page)


if __name__ == "__main__":
    main()
