"""Every definition of effective depth side by side, model by model, and whether they order the models alike (I1-I10).

    python -m plm_depth.metrics.depths --summaries P... [--skips P...] [--attributions P...] [--probes P...] --depths P
        --tau P

Definitions disagree by construction: one asks where contributions lie, another when the prediction stands, another what
can be taken away. Each is brought to the scale from 0 to 1 and named by statistic, profile and parameter. Two kinds:
``where`` is a relative depth (late is 1), ``amount`` a share of the blocks in use (all is 1).

    I1  depth_score        where      centre of mass of a block profile
    I2  kl_depth           where      lens KL stays below a fraction; kl_depth_first: falls below it once
    I3  overlap_depth      where      overlap of the top tokens stays above a threshold
    I4  retention_depth    where      score stays above a share of the final one
    I5  cosine_depth       where      mean cosine of updates and stream turns positive
    I6  n80, participation amount     fewest blocks with 80 % of a profile; evenness of a profile
    I7  kl_area            where      mean depth at which the lens KL is used up
        overlap_area       where      one less the area below the overlap: mean depth at which it arises
    I8  removable_fraction amount     one less what can be removed
    I9  half_contrast      where      late share of a profile, (1 + contrast) / 2
    I10 settling           where      median settling layer
    E3  erasure_depth      where      last layer at which erasing a state changes the output

Rows are those of trained and untrained networks at the primary input: autoregressive N to C, masked models at the noise
level next to 15 %, diffusion models over the noise grid, condition seq. Of the fitness of variants the input follows
from the scorer (profile ``fitness_...``); probes read clean inputs (profile ``probe_`` with task, probe, space, metric
and floor), of autoregressive models from N to C, or in both directions where only these were read. Kendall's tau is
taken over trained models.
"""

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from scipy.stats import kendalltau

from plm_depth.metrics.bootstrap import holm
from plm_depth.metrics.profile import sorted_rows
from plm_depth.progress import stage_log
from plm_depth.tables import (
    ATTRIBUTION,
    COMMON,
    DEPTH_TAU,
    DEPTHS,
    PROBES,
    SKIP,
    SUMMARY,
    TableError,
    read_table,
    write_table,
)
from plm_depth.views import MEAN_OVER_NOISE

LOG = logging.getLogger("metrics.depths")
PRIMARY_NOISE = 0.15
NETWORKS = ("trained", "randinit")
WHERE, AMOUNT = "where", "amount"
SMALLEST = 3  # models between which an order is compared


def _as_it_is(x: pl.Expr) -> pl.Expr:
    return x


def _less(x: pl.Expr) -> pl.Expr:
    return 1 - x


def _late_share(x: pl.Expr) -> pl.Expr:
    return (1 + x) / 2


@dataclass(frozen=True)
class Definition:
    """One statistic as an effective depth: its number, its kind, and how it comes to the scale from 0 to 1."""

    index: str
    kind: str
    scaled: Callable[[pl.Expr], pl.Expr] = _as_it_is


# By statistic, as the tables call it.
DEFINITIONS = {
    "depth_score": Definition("I1", WHERE),
    "kl_depth": Definition("I2", WHERE),
    "kl_depth_first": Definition("I2", WHERE),
    "overlap_depth": Definition("I3", WHERE),
    "retention_depth": Definition("I4", WHERE),
    "cosine_depth": Definition("I5", WHERE),
    "n80": Definition("I6", AMOUNT),
    "participation": Definition("I6", AMOUNT),
    "kl_area": Definition("I7", WHERE),
    "overlap_area": Definition("I7", WHERE, _less),
    "removable_fraction": Definition("I8", AMOUNT, _less),
    "half_contrast": Definition("I9", WHERE, _late_share),
    "settling": Definition("I10", WHERE),
    "erasure_depth": Definition("E3", WHERE),
}
# Statistics that are not on this scale, or say nothing about a place.
NO_DEPTH = ("growth_beta", "growth_gamma", "growth_delta_aicc", "exit_area", "best_layer")
OWN_INPUT = ("fitness_", "probe_")  # how profiles begin whose input follows from what is scored
# The columns of SUMMARY, to which all tables are brought.
TAKEN = (*COMMON, "stat", "profile", "param", "value", "ci_lo", "ci_hi", "n_seq", "n_cluster", "n_boot")
# Profiles of skip effects that have such statistics, and where the block is silenced: by objective, or everywhere.
SKIP_PROFILES = {"influence": {"ar": "prefix", "mlm": "other", "diffusion": "other"}, "l2": "all", "dnll": "all"}


def depths(
    summaries: Sequence[pl.DataFrame],
    skips: Sequence[pl.DataFrame] = (),
    attributions: Sequence[pl.DataFrame] = (),
    probes: Sequence[pl.DataFrame] = (),
) -> pl.DataFrame:
    """Return the DEPTHS columns of tables of all models, primary inputs only.

    Args:
        summaries: SUMMARY tables, also of further stages that write this schema.
        skips, attributions, probes: SKIP, ATTRIBUTION and PROBES tables.
    Raises:
        TableError: a definition of a model stands twice.
    """
    kinds = ((_of_summary, summaries), (_of_skip, skips), (_of_attribution, attributions), (_of_probes, probes))
    found = pl.concat([of_kind(table) for of_kind, tables in kinds for table in tables])
    scaled = [
        pl.coalesce(
            *(
                pl.when(pl.col("stat") == stat).then(definition.scaled(pl.col(column)))
                for stat, definition in DEFINITIONS.items()
            )
        ).alias(column)
        for column in ("value", "ci_lo", "ci_hi")
    ]
    named = {stat: (definition.index, definition.kind) for stat, definition in DEFINITIONS.items()}
    found = found.with_columns(
        *scaled,
        index=pl.col("stat").replace_strict({stat: index for stat, (index, _) in named.items()}),
        kind=pl.col("stat").replace_strict({stat: kind for stat, (_, kind) in named.items()}),
        definition=name_of(),
    )
    # What is turned round has its bounds exchanged.
    found = found.with_columns(
        ci_lo=pl.min_horizontal(pl.col("ci_lo"), pl.col("ci_hi")),
        ci_hi=pl.max_horizontal(pl.col("ci_lo"), pl.col("ci_hi")),
    )
    twice = found.filter(found.select("model_id", "null_model", "null_seed", "definition").is_duplicated())
    if twice.height:
        raise TableError(
            f"{twice['definition'][0]} of {twice['model_id'][0]} ({twice['null_model'][0]}) stands twice; give each "
            "table once"
        )
    return found.select(DEPTHS.names)


def name_of() -> pl.Expr:
    """Return the name of a definition: "kl_depth kl_0 0.5"."""
    parameter = pl.when(pl.col("param").is_nan()).then(pl.lit("")).otherwise(
        " " + pl.col("param").round(6).cast(pl.String).str.strip_suffix(".0")
    )  # fmt: skip
    return pl.col("stat") + " " + pl.col("profile") + parameter


def _of_summary(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of one SUMMARY table that are effective depths at the primary input."""
    stats = table["stat"].unique().to_list()
    unknown = sorted(set(stats) - set(DEFINITIONS) - set(NO_DEPTH))
    if unknown:
        LOG.info(f"not a definition of effective depth: {', '.join(unknown)}")
    kept = primary(table.filter(pl.col("stat").is_in(list(DEFINITIONS))))
    return kept.select(TAKEN)


def _of_attribution(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of one ATTRIBUTION table that are effective depths at the primary input, as rows of SUMMARY."""
    rows = table.filter(
        (pl.col("layer") == -1) & pl.col("quantity").is_in(list(DEFINITIONS)) & (pl.col("vocab") != "full")
    )
    what = pl.col("object").str.strip_prefix("erase_") + "_" + pl.col("target")
    rows = rows.with_columns(stat=pl.col("quantity"), profile=what, param=pl.lit(math.nan))
    return primary(rows).select(TAKEN)


def _of_probes(table: pl.DataFrame) -> pl.DataFrame:
    """Return the retention depths of one PROBES table, as rows of SUMMARY, layers over the number of blocks."""
    rows = table.filter(
        (pl.col("stat") == "retention_depth")
        & pl.col("control").is_in(["none", "untrained"])
        & (pl.col("noise_t").is_nan() | (pl.col("noise_t") == 0))
    )
    names = ("task", "probe", "space", "metric", "floor")
    rows = rows.with_columns(
        profile=pl.concat_str(pl.lit("probe"), *names, separator="_"),
        **{name: pl.col(name) / pl.col("n_blocks") for name in ("value", "ci_lo", "ci_hi")},
    )
    # Of the directions in which a model was read, the first of these that there is.
    order = {"none": 0, "n2c": 1, "both": 2}
    rows = rows.filter(pl.col("direction").is_in(list(order))).with_columns(
        place=pl.col("direction").replace_strict(order, return_dtype=pl.Int32)
    )
    first = rows.group_by("model_id").agg(first=pl.col("place").min())
    rows = rows.join(first, on="model_id").filter(pl.col("place") == pl.col("first"))
    return primary(rows).select(TAKEN)


def _of_skip(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of one SKIP table that are effective depths at the primary input, as rows of SUMMARY."""
    wanted = {f"{profile}_{stat}": (profile, stat) for profile in SKIP_PROFILES for stat in DEFINITIONS}
    rows = table.filter(
        pl.col("quantity").is_in(list(wanted))
        & (pl.col("part") == "layer")
        & ~pl.col("local")
        & (pl.col("ablation") == "zero")
        & (pl.col("agg") == "mean")
        & (pl.col("vocab") != "full")
    ).with_columns(
        profile=pl.col("quantity").replace_strict({name: profile for name, (profile, _) in wanted.items()}),
        stat=pl.col("quantity").replace_strict({name: stat for name, (_, stat) in wanted.items()}),
        param=pl.lit(math.nan),
    )
    kept = []
    for profile, pos_set in SKIP_PROFILES.items():
        for objective in ("ar", "mlm", "diffusion"):
            where = pos_set if isinstance(pos_set, str) else pos_set[objective]
            is_it = (pl.col("profile") == profile) & (pl.col("objective") == objective) & (pl.col("pos_set") == where)
            kept.append(rows.filter(is_it))
    return primary(pl.concat(kept)).select(TAKEN)


def primary(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows at primary inputs, trained and untrained; of two levels equally far from 15 % the lower one."""
    rows = table.filter(
        pl.col("null_model").is_in(NETWORKS) & (pl.col("condition") == "seq") & (pl.col("readout") != "struct")
    )
    hidden = rows.filter((pl.col("objective") == "mlm") & (pl.col("noise_t") > 0) & (pl.col("noise_t") < 1))
    distance = (pl.col("noise_t").cast(pl.Float64) - PRIMARY_NOISE).abs().round(6)
    nearest = (
        hidden.select("model_id", "noise_t", distance=distance)
        .sort("distance", "noise_t")
        .group_by("model_id", maintain_order=True)
        .first()
        .select("model_id", nearest="noise_t")
    )
    is_primary = (
        ((pl.col("objective") == "ar") & (pl.col("direction") == "n2c"))
        | ((pl.col("objective") == "mlm") & (pl.col("noise_t") == pl.col("nearest")))
        | ((pl.col("objective") == "diffusion") & (pl.col("noise_t") == MEAN_OVER_NOISE))
    )
    if "profile" in rows.columns:
        is_own = pl.any_horizontal(pl.col("profile").str.starts_with(start) for start in OWN_INPUT)
        # Scored in both directions a model is judged by both together, else by the one it reads.
        has_both = (pl.col("direction") == "both").any().over("model_id", "profile")
        is_primary = pl.when(is_own).then(pl.col("direction").is_in(["both", "none"]) | ~has_both).otherwise(is_primary)
    return rows.join(nearest, on="model_id", how="left").filter(is_primary)


def agreement(found: pl.DataFrame) -> dict[str, list]:
    """Return the DEPTH_TAU columns: Kendall's tau between every two definitions over the trained models.

    Args:
        found: of ``depths``.
    """
    trained = found.filter((pl.col("null_model") == "trained") & pl.col("value").is_not_nan())
    by_definition: dict[str, Mapping[str, float]] = {}
    for definition in found["definition"].unique().sort().to_list():
        rows = trained.filter(pl.col("definition") == definition)
        by_definition[definition] = dict(zip(rows["model_id"].to_list(), rows["value"].to_list()))
    columns: dict[str, list] = {name: [] for name in DEPTH_TAU.names}
    names = list(by_definition)
    for i, one in enumerate(names):
        for other in names[i:]:
            both = sorted(set(by_definition[one]) & set(by_definition[other]))
            tau, p_value = tau_of(*([by_definition[name][model] for model in both] for name in (one, other)))
            for name, item in zip(DEPTH_TAU.names, (one, other, tau, p_value, len(both))):
                columns[name].append(item)
    pairs = zip(columns["definition"], columns["other"], columns["p_value"])
    tested = [i for i, (one, other, p) in enumerate(pairs) if one != other and not math.isnan(p)]
    for i, p_value in zip(tested, holm([columns["p_value"][i] for i in tested])):
        columns["p_value"][i] = p_value
    return columns


def tau_of(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return Kendall's tau-b and its two-sided p value; NaN with fewer than 3 pairs or where one side is constant."""
    if len(x) < SMALLEST or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan, math.nan
    found = kendalltau(x, y)
    return float(found.statistic), float(found.pvalue)


def write(
    summaries: Sequence[str | Path],
    depths_path: Path,
    tau_path: Path,
    *,
    skips: Sequence[str | Path] = (),
    attributions: Sequence[str | Path] = (),
    probes: Sequence[str | Path] = (),
) -> int:
    """Write both tables of a data set from the tables of all models; return the rows of the first.

    Raises:
        TableError: damaged tables, a definition of a model that stands twice, or none at a primary input.
    """
    kinds = ((summaries, SUMMARY), (skips, SKIP), (attributions, ATTRIBUTION), (probes, PROBES))
    found = depths(*([_read(path, schema) for path in paths] for paths, schema in kinds))
    if found.is_empty():
        raise TableError("no statistic of any model at its primary input; measure autoregressive models from N to C")
    columns = {name: found[name].to_numpy() for name in found.columns}
    n_rows = write_table(sorted_rows(columns, (*COMMON, "index", "definition")), DEPTHS, depths_path)
    tau = agreement(found)
    write_table(tau, DEPTH_TAU, tau_path)
    n_models = found["model_id"].n_unique()
    undefined = int(np.isnan(columns["value"]).sum())
    LOG.info(
        f"{n_rows} rows of {n_models} models by {found['definition'].n_unique()} definitions, {undefined} undefined"
    )
    if n_models < SMALLEST:
        LOG.info(f"fewer than {SMALLEST} models: no order to compare, every tau is undefined")
    return n_rows


def _read(path: str | Path, schema: pa.Schema) -> pl.DataFrame:
    table = pl.from_arrow(read_table(path, schema).select(schema.names))
    return table.with_columns(pl.col(pl.Categorical).cast(pl.String))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.depths", description=__doc__.split("\n")[0])
    parser.add_argument("--summaries", nargs="+", required=True, help="SUMMARY tables of all models, of any stage")
    parser.add_argument("--skips", nargs="*", default=[], help="SKIP tables of all models")
    parser.add_argument("--attributions", nargs="*", default=[], help="ATTRIBUTION tables of all models")
    parser.add_argument("--probes", nargs="*", default=[], help="PROBES tables of all models")
    parser.add_argument("--depths", type=Path, required=True, help="the DEPTHS table")
    parser.add_argument("--tau", type=Path, required=True, help="the DEPTH_TAU table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError):
        write(
            options.summaries,
            options.depths,
            options.tau,
            skips=options.skips,
            attributions=options.attributions,
            probes=options.probes,
        )


if __name__ == "__main__":
    main()
