"""Figure: how well each layer ranks measured variants of proteins, without and with training on them (metrics H)."""

import math
from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from plm_depth.figures.door import FigureStage, run
from plm_depth.figures.draw import DASHED, Level, Row, columns_of, profile_figure
from plm_depth.figures.select import TRAINED, UNTRAINED, FigureError, Model, Study, named
from plm_depth.figures.sheet import Sheet, span, toy_warning
from plm_depth.figures.style import WIDTH, name_of

TITLE = "Zero-shot fitness: rank correlation of each layer's scores with measured variants"
NOTHING = "No model of this study scores variants: tokens of several residues have no marginals of one."
READ_OUT, BASELINE = "read-out", "blosum62"
PRIMARY = {"mlm": "mask", "diffusion": "mask", "ar": "ar"}  # scorer behind READ_OUT
QUANTITIES = {  # quantity: label of its row
    READ_OUT: "Spearman, scores of\nthe read-out",
    "wt": "Spearman, wild-type\nmarginals",
    "emb_zs": "Spearman, distance\nof mean states",
    "emb_ridge": "Spearman, ridge on\nmean states",
}
HEADINGS = {
    "mlm": "masked marginals",
    "diffusion": "masked marginals",
    "ar": "log-likelihood ratio{}",
}
NUMBERS = {
    "model": pl.String,
    "display_name": pl.String,
    "family": pl.String,
    "objective": pl.String,
    "n_blocks": pl.Int64,
    "network": pl.String,  # trained, untrained, or none for the substitution matrix
    "n_seeds": pl.Int64,
    "direction": pl.String,  # both: mean over the reading directions
    "noise_t": pl.Float64,
    "quantity": pl.String,
    "scorer": pl.String,
    "folds": pl.String,
    "aggregate": pl.String,
    "layer": pl.Int64,  # null for the substitution matrix
    "relative_depth": pl.Float64,
    "value": pl.Float64,
    "lo": pl.Float64,
    "hi": pl.Float64,
    "interval": pl.String,  # what lo and hi are: variants, proteins, seeds or none
    "n_var": pl.Int64,
    "n_assay": pl.Int64,
    "n_uniprot": pl.Int64,
}


def shown_rows(study: Study, *, level: str) -> pl.DataFrame:
    """Return FITNESS rows of one level that figures show: sequence alone, both directions, random folds, by quantity.

    Raises:
        FigureError: the tables hold a model twice.
    """
    table = study.fitness.filter((pl.col("level") == level) & pl.col("folds").is_in(["none", "random"]))
    table = at_shown_inputs(table).filter(pl.col("quantity").is_in([*QUANTITIES, BASELINE]))
    keys = ["model_id", "null_model", "null_seed", "quantity", "assay_id", "uniprot_id", "category", "layer"]
    if table.select(keys).is_duplicated().any():
        raise FigureError("fitness: a row stands twice; give the table of each model once")
    return table


def at_shown_inputs(table: pl.DataFrame) -> pl.DataFrame:
    """Return rows with a column ``scorer`` of trained and untrained networks at the inputs shown, with ``quantity``.

    A model that reads in both directions is shown by their mean; the quantity of its own scorer is ``READ_OUT``.
    """
    table = table.filter((pl.col("condition") == "seq") & pl.col("null_model").is_in([TRAINED, UNTRAINED]))
    keys = ["model_id", "scorer"]
    with_both = table.filter(pl.col("direction") == "both").select(keys).unique().with_columns(has_both=pl.lit(True))
    table = table.join(with_both, on=keys, how="left", maintain_order="left").filter(
        pl.col("has_both").is_null() | (pl.col("direction") == "both")
    )
    primary = pl.col("objective").replace_strict(PRIMARY, return_dtype=pl.String)
    return table.with_columns(
        quantity=pl.when(pl.col("scorer") == primary).then(pl.lit(READ_OUT)).otherwise(pl.col("scorer"))
    )


def networks(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the trained rows, then the untrained ones as mean and range over seeds."""
    value = pl.col("value")
    same = ["n_var", "n_assay", "n_uniprot"]
    trained = rows.filter(pl.col("null_model") == TRAINED).select(
        *keys,
        network=pl.when(pl.col("quantity") == BASELINE).then(pl.lit("none")).otherwise(pl.lit("trained")),
        n_seeds=pl.lit(1, pl.Int64),
        value=value,
        lo=pl.col("ci_lo"),
        hi=pl.col("ci_hi"),
        interval=pl.when(pl.col("ci_lo").is_nan()).then(pl.lit("none")).otherwise(pl.col("resampled")),
        **{name: pl.col(name) for name in same},
    )
    is_defined = value.is_not_nan().all()
    untrained = (
        rows.filter(pl.col("null_model") == UNTRAINED)
        .group_by(keys, maintain_order=True)
        .agg(
            network=pl.lit("untrained"),
            n_seeds=pl.len().cast(pl.Int64),
            value=value.mean(),
            lo=pl.when(is_defined).then(value.min()).otherwise(math.nan),
            hi=pl.when(is_defined).then(value.max()).otherwise(math.nan),
            interval=pl.lit("seeds"),
            **{name: pl.col(name).min() for name in same},
        )
    )
    return pl.concat([trained, untrained.select(trained.columns)], how="vertical_relaxed")


def with_depth(rows: pl.DataFrame, models: Sequence[Model]) -> pl.DataFrame:
    """Return rows with what figures say of a model, its place in the study, and the relative depth of the layer."""
    layer = pl.when(pl.col("layer") >= 0).then(pl.col("layer").cast(pl.Int64))
    return (
        named(rows, models)
        .with_columns(layer=layer)
        .with_columns(relative_depth=(pl.col("layer") / pl.col("n_blocks")).fill_null(math.nan))
    )


def numbers(study: Study) -> pl.DataFrame:
    """Return the mean correlation over function classes of every model that scores variants, by quantity and layer."""
    rows = shown_rows(study, level="all")
    keys = ["model_id", "direction", "noise_t", "quantity", "scorer", "folds", "layer"]
    order = {"quantity": [*QUANTITIES, BASELINE], "network": ["trained", "untrained", "none"]}
    return (
        with_depth(networks(rows, keys), study.models)
        .with_columns(aggregate=pl.lit("mean"))
        .sort(
            "place",
            *(pl.col(column).replace_strict(values, range(len(values))) for column, values in order.items()),
            "layer",
            maintain_order=True,
        )
        .select(pl.col(column).cast(kind) for column, kind in NUMBERS.items())
    )


def count_notes(numbers: pl.DataFrame, models: Sequence[Model]) -> list[str]:
    """Return the sentences that say what stands behind the numbers: variants, assays, proteins, intervals, seeds."""
    trained = numbers.filter(pl.col("network") == "trained")
    notes = [
        f"n = {span(trained['n_var'])} variants in {span(trained['n_assay'])} assays of {span(trained['n_uniprot'])} "
        "proteins; means over assays of a protein, proteins of a function class, classes."
    ]
    if "proteins" in trained["interval"]:
        notes.append("Intervals: 95 %, bootstrap over proteins (UniProt ids).")
    if "variants" in trained["interval"]:
        notes.append(
            "Intervals: 95 %, bootstrap over the variants of these proteins; a class has one protein only, so nothing "
            "is said about others."
        )
    untrained = numbers.filter(pl.col("network") == "untrained")
    if untrained.is_empty():
        notes.append("No untrained network was measured.")
    else:
        notes.append(
            f"Untrained: same architecture, random weights, mean and range of seeds (n = {span(untrained['n_seeds'])})."
        )
    missing = [name_of(model) for model in models if model.model not in set(numbers["model"])]
    if missing:
        notes.append(f"Without scores: {'; '.join(missing)}.")
    return notes


def draw(numbers: pl.DataFrame, models: Sequence[Model]) -> Figure:
    """Return the picture of these numbers."""
    if numbers.is_empty():
        return Sheet(width=WIDTH, body=0.1, title=TITLE, key=(), notes=[NOTHING], warning=toy_warning(models)).figure
    shown = [model for model in models if model.model in set(numbers["model"])]
    baseline = numbers.filter(pl.col("quantity") == BASELINE)["value"].to_list()
    levels = [Level(0.0)]
    if baseline and not math.isnan(baseline[0]):
        levels.append(Level(baseline[0], "substitution matrix (BLOSUM62), no model", DASHED))
    rows = [
        Row(quantity, label, references=levels, limits=(0.0, 0.0))
        for quantity, label in QUANTITIES.items()
        if quantity in numbers["quantity"]
    ]
    headings = {family: heading_of(numbers, members) for family, members in columns_of(shown).items()}
    notes = ["At relative depth 1 the read-out is the model's own."]
    if "emb_ridge" in numbers["quantity"]:
        notes.append("The ridge is trained on the other variants of the assay (five random folds), all others on none.")
    undefined = numbers.filter(pl.col("value").is_nan()).height
    if undefined:
        notes.append(f"{undefined} correlations are undefined (all scores are equal) and not drawn.")
    return profile_figure(
        numbers,
        shown,
        title=TITLE,
        rows=rows,
        notes=notes,
        counts=count_notes(numbers, models),
        headings=headings,
    )


def heading_of(numbers: pl.DataFrame, members: Sequence[Model]) -> str:
    """Return what stands below the name of a family: how its read-out scores variants."""
    own = numbers.filter((pl.col("quantity") == READ_OUT) & pl.col("model").is_in([model.model for model in members]))
    if own.is_empty():
        return "no score of the read-out"
    directions = {"both": ", both directions", "n2c": ", N to C", "c2n": ", C to N"}
    return HEADINGS[members[0].objective].format(directions.get(own["direction"][0], ""))


STAGE = FigureStage("fitness", TITLE, ["fitness"], numbers, draw)

if __name__ == "__main__":
    run(STAGE)
