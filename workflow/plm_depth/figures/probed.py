"""Which rows of the tables of probes figures show: clean inputs, the sequence alone, trained and untrained networks.

Of an autoregressive model both directions side by side are shown where they were probed, else the one from N to C.
Spaces: principal components where they were probed, else all coordinates; retrieval on the stream as it is. The only
arithmetic is the relative depth of a layer, and mean and range of untrained networks over their seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from plm_depth.figures.draw import DASHED, DOTTED, Level
from plm_depth.figures.select import NUMBERS, TRAINED, UNTRAINED, FigureError, Model, Study

CONTROL = "3-mer"  # the aggregate under which the control task of 3-mers stands beside a score
ONE_HOT = "onehot_"  # prefix of the quantity that is the score of the one-hot control
UNDEFINED = "undefined_"  # prefix of what there is too little of for a score; the parameter: how much would be needed
KMER = "kmer_"  # second prefix, where it is the control of 3-mers that is undefined
GROUPED = "grouped_"  # prefix of the quantity that is the number of chains whose superfamily is known
SHALLOWEST = "shallowest_"  # prefix of the quantity that is the first of the layers that are as good as the best


@dataclass(frozen=True)
class Probed:
    """One score that a figure shows: its quantity is the task, or the metric where a task has several.

    Attributes:
        task, metric, probe: of the tables.
        quantity: what the numbers call it.
        words: label of its axis.
        tick: short word for it.
    """

    task: str
    metric: str
    probe: str
    quantity: str
    words: str
    tick: str


def probe_rows(study: Study) -> pl.DataFrame:
    """Return the PROBES rows that figures show, one space and one direction of each model.

    Raises:
        FigureError: the tables hold a model twice.
    """
    table = study.probes.filter(
        (pl.col("condition") == "seq")
        & (pl.col("noise_t").fill_nan(0.0) == 0)
        & pl.col("null_model").is_in([TRAINED, UNTRAINED])
    )
    # The first of these that a model was probed in.
    preferred = {"both": 0, "none": 0, "n2c": 1, "c2n": 2}
    is_one_hot = pl.col("control") == "onehot"
    table = table.with_columns(
        rank=pl.when(is_one_hot)
        .then(0)
        .otherwise(pl.col("direction").replace_strict(preferred, return_dtype=pl.Int64)),
        space_rank=pl.when(
            is_one_hot | pl.col("space").str.starts_with("pca") | pl.col("space").is_in(["raw", "heads"])
        )
        .then(0)
        .when(pl.col("space") == "full")
        .then(1)
        .otherwise(2),
    )
    best = (
        table.filter(~is_one_hot)
        .group_by("model_id", "task", "probe")
        .agg(pl.col("rank").min().alias("first"), pl.col("space_rank").min().alias("first_space"))
    )
    table = table.join(best, on=["model_id", "task", "probe"], how="left", maintain_order="left").filter(
        is_one_hot | ((pl.col("rank") == pl.col("first")) & (pl.col("space_rank") == pl.col("first_space")))
    )
    table = table.filter(is_one_hot | (pl.col("space_rank") < 2))
    keys = [
        "model_id",
        "null_model",
        "null_seed",
        "task",
        "probe",
        "metric",
        "control",
        "stat",
        "layer",
        "param",
        "floor",
    ]
    if table.select(keys).is_duplicated().any():
        raise FigureError("probes: a row stands twice; give the table of each model once")
    return table.drop("rank", "space_rank", "first", "first_space")


def probe_numbers(study: Study, wanted: Sequence[Probed]) -> pl.DataFrame:
    """Return (``select.NUMBERS``) of every model that was probed the wanted scores: trained, untrained, controls, the
    shallowest of the best layers by relative depth; and what is undefined, and how many superfamilies are known."""
    rows = probe_rows(study)
    parts = []
    for place, one in enumerate(wanted):
        mine = rows.filter(
            (pl.col("task") == one.task) & (pl.col("metric") == one.metric) & (pl.col("probe") == one.probe)
        ).with_columns(order=pl.lit(place))
        score = mine.filter(pl.col("stat") == "score")
        trained = score.filter((pl.col("control") == "none") & (pl.col("null_model") == TRAINED))
        parts.append(_tidy(trained, one.quantity, "trained", "mean"))
        parts.append(_over_seeds(score.filter(pl.col("control") == "untrained"), one.quantity))
        parts.append(_tidy(score.filter(pl.col("control") == "kmer"), one.quantity, "trained", CONTROL))
        one_hot = score.filter(pl.col("control") == "onehot")
        parts.append(_tidy(one_hot, ONE_HOT + one.quantity, "none", "mean"))
        first = mine.filter((pl.col("stat") == "shallowest") & (pl.col("control") == "none"))
        parts.append(_tidy(first, SHALLOWEST + one.quantity, "trained", "mean", is_layer=True))
        for control, prefix in (("none", UNDEFINED), ("kmer", UNDEFINED + KMER)):
            too_few = mine.filter((pl.col("stat") == "undefined") & (pl.col("control") == control))
            parts.append(_tidy(too_few, prefix + one.quantity, "none", "mean"))
        if one.task != "homology":
            of_chains = trained.unique("model_id", keep="first", maintain_order=True)
            known = of_chains.with_columns(
                pl.col("n_grouped").cast(pl.Float64).alias("value"), layer=pl.lit(-1, pl.Int16), ci_lo=math.nan,
                ci_hi=math.nan, n_boot=pl.lit(0, pl.Int32),
            )  # fmt: skip
            parts.append(_tidy(known, GROUPED + one.quantity, "none", "mean"))
    found = pl.concat(parts)
    names = pl.DataFrame(
        [(m.model, m.display_name, place) for place, m in enumerate(study.models)],
        schema=["model", "display_name", "place"],
        orient="row",
    )
    return (
        found.join(names, on="model", how="left")
        .sort("place", "order", "kind", "layer", maintain_order=True)
        .select(pl.col(column).cast(kind) for column, kind in NUMBERS.items())
    )


_KINDS = {"mean": 0, CONTROL: 2}


def _tidy(rows: pl.DataFrame, quantity: str, network: str, aggregate: str, *, is_layer: bool = False) -> pl.DataFrame:
    """Return rows as NUMBERS and what they are sorted by; ``is_layer``: the value is a layer, to be told by depth."""
    scale = pl.col("n_blocks").cast(pl.Float64) if is_layer else pl.lit(1.0)
    layer = pl.when(pl.col("layer") >= 0).then(pl.col("layer").cast(pl.Int64))
    return rows.select(
        "family",
        "objective",
        pl.col("n_blocks").cast(pl.Int64),
        "direction",
        pl.col("noise_t").cast(pl.Float64),
        "order",
        model="model_id",
        network=pl.lit(network),
        n_seeds=pl.lit(1, pl.Int64),
        quantity=pl.lit(quantity),
        parameter=pl.col("param"),
        aggregate=pl.lit(aggregate),
        layer=layer,
        # Attention maps belong to a block, all else to a state.
        relative_depth=(
            (layer - pl.when(pl.col("probe") == "attention").then(0.5).otherwise(0.0)) / pl.col("n_blocks")
        ).fill_null(math.nan),
        value=pl.col("value") / scale,
        lo=pl.col("ci_lo") / scale,
        hi=pl.col("ci_hi") / scale,
        interval=pl.lit("bootstrap"),
        n_seq=pl.col("n_seq").cast(pl.Int64),
        n_cluster=pl.col("n_cluster").cast(pl.Int64),
        n_boot=pl.col("n_boot").cast(pl.Int64),
        kind=pl.lit(_KINDS[aggregate] + (network == "none") * 3 + is_layer * 4),
    )


def _over_seeds(rows: pl.DataFrame, quantity: str) -> pl.DataFrame:
    tidy = _tidy(rows, quantity, "untrained", "mean")
    same = [c for c in tidy.columns if c not in ("value", "lo", "hi", "n_seeds", "n_boot", "interval", "kind")]
    return (
        tidy.group_by(same, maintain_order=True)
        .agg(
            n_seeds=pl.len().cast(pl.Int64),
            lo=pl.col("value").min(),
            hi=pl.col("value").max(),
            value=pl.col("value").mean(),
            interval=pl.lit("seeds"),
            n_boot=pl.lit(0, pl.Int64),
            kind=pl.lit(1),
        )
        .select(tidy.columns)
    )


def chances(study: Study, wanted: Sequence[Probed]) -> dict[str, float]:
    """Return the score of a guess that reads nothing, by quantity: the same of every model."""
    rows = study.probes.filter((pl.col("stat") == "score") & (pl.col("control") == "none"))
    found = {}
    for one in wanted:
        mine = rows.filter(
            (pl.col("task") == one.task) & (pl.col("metric") == one.metric) & (pl.col("probe") == one.probe)
        )["chance"]
        if len(mine) and not math.isnan(mine[0]):
            found[one.quantity] = float(mine[0])
    return found


def levels_of(numbers: pl.DataFrame, quantity: str, chance: Mapping[str, float]) -> list[Level]:
    """Return the level lines of one score: a guess that reads nothing, and the residues around without a model."""
    levels = [Level(chance[quantity], "a guess that reads nothing", DOTTED)] if quantity in chance else []
    one_hot = numbers.filter(pl.col("quantity") == ONE_HOT + quantity)["value"]
    return levels + (
        [Level(float(one_hot[0]), "15 residues around, one-hot, no model", DASHED)] if len(one_hot) else []
    )


def fact_notes(numbers: pl.DataFrame, wanted: Sequence[Probed]) -> list[str]:
    """Return the sentences on what is undefined, and on what folds keep together."""
    notes, few = [], {}
    for one in wanted:
        for there, needed in _facts(numbers, UNDEFINED + one.quantity):
            notes.append(
                f"{one.words.split(',')[0].capitalize()}: undefined: too few clusters. Proteins with kin in another "
                f"cluster are in {there:.0f}; {needed:.0f} are needed."
            )
        for there, needed in _facts(numbers, UNDEFINED + KMER + one.quantity):
            few.setdefault((there, needed), []).append(one.tick)
    for (there, needed), ticks in few.items():
        notes.append(
            f"Random labels of 3-mers ({', '.join(ticks)}): undefined: {there:.0f} tested residues have a 3-mer that "
            f"training chains hold; {needed:.0f} are needed."
        )
    known = numbers.filter(pl.col("quantity").str.starts_with(GROUPED))["value"]
    if len(known) and known.max() == 0:
        notes.append("No superfamily of these chains is known: folds keep similarity clusters whole, nothing more.")
    elif len(known):
        notes.append(f"Folds keep superfamilies whole, too, where known: {known.max():.0f} chains have one.")
    return notes


def _facts(numbers: pl.DataFrame, quantity: str) -> list[tuple[float, float]]:
    """Return what there is and what is needed, (value, parameter), each once."""
    rows = numbers.filter(pl.col("quantity") == quantity).select("value", "parameter")
    return rows.unique(maintain_order=True).rows()


def headings_of(numbers: pl.DataFrame, models: Sequence[Model]) -> dict[str, str]:
    """Return what stands below the name of each family: objective and input."""
    found = {}
    for model in models:
        own = numbers.filter((pl.col("model") == model.model) & (pl.col("network") == "trained"))
        directions = {"both": "autoregressive, both directions", "n2c": "autoregressive, N to C"}
        words = {"mlm": "masked, nothing hidden", "diffusion": "diffusion, nothing hidden"}
        words["ar"] = directions.get(own["direction"][0], "autoregressive, C to N")
        found.setdefault(model.family, words[model.objective])
    return found
