"""Corpus values of attribution and erasure (E1-E3), with cluster-bootstrap intervals: the ATTRIBUTION table.

Quantities of attributions, per layer, all divided by the reads of the protein (nats or probability per read residue):

    signed       mean attribution: what the block (state, update) adds to the target
    magnitude    mean of its absolute value, protein by protein; of gates the share |IG_l| of metric E2
    l1           mean of the sum of absolute attributions over positions: opposite signs do not cancel
    gained       mean of F at the end less F at the beginning of the way; of gates once (layer -1): what all blocks add
    error        mean completeness error of the rows behind the values

Over blocks (layer -1), of ``magnitude`` of gates and updates: ``depth_score``, ``n80``, ``participation``,
``half_contrast`` (I1, I6, I9, see ``metrics.skip``).

Quantities of erasures (object erase_position or erase_prefix; target l2 or kl_fo), per layer: ``mean`` over reads at
other positions, then over positions; ``largest`` over all of them (no interval); and ``erasure_depth`` (layer -1): the
last layer at which the change is above ``SHARE`` of its largest over layers, / n_blocks, averaged over positions: after
it the output no longer needs what the position stores. It is undefined where the largest change is not above
``FLOORS`` noise floors.

Draws of a mask are averaged within a protein, then noise levels of a diffusion model (noise_t -1, over the proteins
defined at every level), then proteins. Rows of an attribution that miss completeness (``tables.COMPLETE``) are left out
and counted.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from plm_depth.metrics.bootstrap import Bootstrap, BootstrapError, interval
from plm_depth.metrics.corpus import DIFFUSION_GRID, read_clusters
from plm_depth.metrics.options import add_resampling_options, resampling_of
from plm_depth.metrics.skip import PROFILE_STATISTICS
from plm_depth.progress import stage_log
from plm_depth.tables import (
    ATTR_SEQ,
    ATTRIBUTION,
    ATTRIBUTION_MAP,
    COMMON,
    COMPLETE,
    ERASE_SEQ,
    TableError,
    iterate_table,
    write_table,
)
from plm_depth.views import MEAN_OVER_NOISE

LOG = logging.getLogger("metrics.attribution")
SHARE = 0.1  # of the largest change over layers: below it a state is no longer needed
FLOORS = 3.0  # a change that is not above this many noise floors says nothing about depth
VIEW = tuple(name for name in COMMON if name != "mask_draw")  # what one measurement has in common
MEASURED = ("object", "target", "vocab", "layer")
OBJECTS_OF_BLOCKS = ("gate", "gate_attn", "gate_mlp", "attn", "mlp")  # with a value at every block


def read(paths: Sequence[str | Path], schema: pa.Schema, keys: Sequence[str]) -> pl.DataFrame:
    """Return per-protein tables of one model as one frame, without list columns.

    Args:
        keys: columns that, with view, mask draw and protein, no two rows may share.
    Raises:
        TableError: damaged tables, tables of several models, a row that stands twice.
    """
    columns = [field.name for field in schema if not pa.types.is_list(field.type)]
    parts = [part for path in paths for part in iterate_table(path, schema, columns=columns)]
    if not parts:
        parts = [schema.empty_table().select(columns)]
    frame = pl.concat([_plain(part) for part in parts])
    models = frame.select("model_id", "n_blocks", "d_model", "dtype").unique().rows()
    if len(models) > 1:
        raise TableError(f"rows of {len(models)} models, {models[0]} and {models[1]}; give the tables of one model")
    again = frame.select(*VIEW, "mask_draw", "sequence_id", *keys).is_duplicated()
    if again.any():
        row = frame.filter(again).row(0, named=True)
        raise TableError(
            f"protein {row['sequence_id']} has two rows for one layer, view and object ({row['null_model']}, layer "
            f"{row['layer']}); give each table once"
        )
    return frame


def _plain(part: pa.Table) -> pl.DataFrame:
    return pl.from_arrow(part).with_columns(pl.col(pl.Categorical).cast(pl.String))


# ----------------------------------------------------------------------------------------------------------------
# One value a protein


def attribution_values(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the quantities of attributions in long form: view, draw, protein, MEASURED, quantity, value.

    Values of rows that miss completeness are null, so that a network all of whose rows do still has (undefined) corpus
    values; ``error`` keeps them.
    """
    per_read = 1 / pl.col("n_reads").cast(pl.Float64)
    is_gate = pl.col("object").str.starts_with("gate")
    quantities = {
        "signed": pl.col("value") * per_read,
        "magnitude": pl.col("value").abs() * per_read,
        "l1": pl.col("l1") * per_read,
        "gained": (pl.col("f_end") - pl.col("f_base")) * per_read,
    }
    keys = [*VIEW, "mask_draw", "sequence_id", *MEASURED]
    is_complete = pl.col("completeness_err") <= COMPLETE
    parts = [
        rows.select(*keys, quantity=pl.lit(name), value=pl.when(is_complete).then(value))
        for name, value in quantities.items()
    ]
    parts.append(rows.select(*keys, quantity=pl.lit("error"), value=pl.col("completeness_err")))
    long = pl.concat(parts)
    # All blocks share the ends of the way of their gates: the first stands for all.
    of_all = is_gate & (pl.col("quantity") == "gained")
    return long.filter(
        ~of_all | (pl.col("layer") == pl.col("layer").min().over([*keys[:-1], "quantity"]))
    ).with_columns(layer=pl.when(of_all).then(pl.lit(-1, pl.Int16)).otherwise(pl.col("layer")))


def erasure_values(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the quantities of erasures in the same long form, averaged over the erased positions of a protein."""
    keys = [*VIEW, "mask_draw", "sequence_id"]
    rows = rows.with_columns(
        object=pl.when(pl.col("pos") < 0).then(pl.lit("erase_prefix")).otherwise(pl.lit("erase_position")),
        target=pl.col("quantity"),
        mean=pl.col("sum") / pl.col("n"),
    )
    by_layer = rows.group_by([*keys, *MEASURED], maintain_order=True).agg(pl.col("mean").mean(), pl.col("max").max())
    largest = pl.col("mean").max()
    depth = (
        rows.group_by([*keys, "object", "target", "vocab", "pos"], maintain_order=True)
        .agg(
            value=pl.when((largest > FLOORS * pl.col("floor").max()) & (largest > 0)).then(
                pl.col("layer").filter(pl.col("mean") > SHARE * largest).max() / pl.col("n_blocks").first()
            )
        )
        .group_by([*keys, "object", "target", "vocab"], maintain_order=True)
        .agg(pl.col("value").mean())
        .drop_nulls("value")
        .with_columns(layer=pl.lit(-1, pl.Int16), quantity=pl.lit("erasure_depth"))
    )
    columns = [*keys, *MEASURED, "quantity", "value"]
    return pl.concat(
        [
            by_layer.select(*keys, *MEASURED, quantity=pl.lit("mean"), value=pl.col("mean")),
            by_layer.select(*keys, *MEASURED, quantity=pl.lit("largest"), value=pl.col("max")),
            depth.select(columns),
        ]
    )


def over_draws_and_noise(values: pl.DataFrame, grid: Sequence[float]) -> pl.DataFrame:
    """Return values averaged over mask draws (``largest``: the largest), and for diffusion models over noise, too.

    Raises:
        TableError: a noise level of the grid was not measured.
    """
    keys = [*VIEW, "sequence_id", *MEASURED, "quantity"]

    def joined(frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        is_largest = pl.col("quantity").first() == "largest"
        value = pl.when(is_largest).then(pl.col("value").max()).otherwise(pl.col("value").mean())
        defined = pl.col("value").count()  # without nulls
        return frame.group_by(list(by), maintain_order=True).agg(value.alias("value"), n_levels=defined)

    found = joined(values, keys)
    levels = [float(np.float32(level)) for level in grid]
    diffusion = found.filter(pl.col("objective") == "diffusion")
    if not diffusion.is_empty():
        measured = set(diffusion["noise_t"].cast(pl.Float64).to_list())
        if not set(levels) <= measured:
            raise TableError(
                f"noise levels {sorted(measured)} were measured, but the mean is to be over {sorted(levels)}; give "
                "--grid the levels that were measured"
            )
        on_grid = diffusion.filter(pl.col("noise_t").cast(pl.Float64).is_in(levels))
        mean = joined(on_grid, [key for key in keys if key != "noise_t"])
        mean = mean.with_columns(
            value=pl.when(pl.col("n_levels") == len(levels)).then(pl.col("value")),
            noise_t=pl.lit(MEAN_OVER_NOISE, pl.Float32),
        )
        found = pl.concat([found, mean.select(found.columns)])
    return found.drop("n_levels")


# ----------------------------------------------------------------------------------------------------------------
# Corpus rows


def corpus_rows(values: pl.DataFrame, rejected: pl.DataFrame, bootstrap: Bootstrap) -> dict[str, list]:
    """Return the columns of ATTRIBUTION of per-protein values.

    Args:
        values: what ``over_draws_and_noise`` returns.
        rejected: VIEW, MEASURED and ``n_rejected``.
        bootstrap: of the proteins.
    Raises:
        TableError: a protein without a cluster.
    """
    kinds = [*VIEW, "object", "target", "vocab", "quantity"]
    columns: dict[str, list] = {name: [] for name in ATTRIBUTION.names}
    counts = {_key(row[:-1]): row[-1] for row in rejected.select(*VIEW, *MEASURED, "n_rejected").iter_rows()}

    def add(key: Mapping[str, object], layers: Sequence[int], value, resampled, defined: np.ndarray) -> None:
        n = len(layers)
        if resampled is None:
            low = high = np.full(n, np.nan)
            n_boot = np.zeros(n, np.int64)
        else:
            low, high, n_boot = interval(resampled)
        view = [key[name] for name in VIEW]
        added = {
            **{name: [key[name]] * n for name in kinds},
            "mask_draw": [-1] * n,
            "layer": list(layers),
            "value": value,
            "ci_lo": low,
            "ci_hi": high,
            "n_seq": defined.sum(-1),
            "n_cluster": bootstrap.clusters_of(defined),
            "n_boot": n_boot,
            "n_rejected": [
                counts.get(_key([*view, key["object"], key["target"], key["vocab"], layer]), 0) for layer in layers
            ],
        }
        for name, part in added.items():
            columns[name].extend(part)

    for key, rows in values.group_by(kinds, maintain_order=True):
        named = dict(zip(kinds, key))
        layers = rows["layer"].unique().sort().to_list()
        try:
            place = bootstrap.index(rows["sequence_id"].to_list())
        except BootstrapError as error:
            raise TableError(str(error)) from None
        matrix = np.full((len(layers), len(bootstrap.sequence_ids)), np.nan)
        matrix[np.searchsorted(layers, rows["layer"].to_numpy()), place] = rows["value"].to_numpy()
        defined = ~np.isnan(matrix)
        if named["quantity"] == "largest":
            add(named, layers, np.fmax.reduce(matrix, axis=1), None, defined)
            continue
        point, resampled = bootstrap.means(matrix)
        add(named, layers, point, resampled, defined)
        if named["quantity"] == "magnitude" and named["object"] in OBJECTS_OF_BLOCKS and len(layers) == key[3]:
            for name, statistic in PROFILE_STATISTICS.items():
                add(
                    {**named, "quantity": name},
                    [-1],
                    statistic(point)[None],
                    statistic(resampled.T)[None],
                    defined.any(0)[None],
                )
    return columns


def _key(values: Sequence[object]) -> tuple:
    """Return values as a key in which NaN equals itself."""
    return tuple("NaN" if value != value else value for value in values)


def rejections(rows: pl.DataFrame) -> pl.DataFrame:
    """Return how many rows of each view, object, target and layer miss completeness, noise levels also joined."""
    keys = [*VIEW, *MEASURED]
    found = rows.filter(pl.col("completeness_err") > COMPLETE)
    joined = found.filter(pl.col("objective") == "diffusion").with_columns(noise_t=pl.lit(MEAN_OVER_NOISE, pl.Float32))
    both = pl.concat([found, joined])
    counted = both.group_by(keys, maintain_order=True).agg(n_rejected=pl.len())
    # Statistics over layers: the rows of their worst layer.
    whole = counted.group_by([key for key in keys if key != "layer"], maintain_order=True).agg(
        pl.col("n_rejected").max()
    )
    whole = whole.with_columns(layer=pl.lit(-1, pl.Int16))
    return pl.concat([counted, whole.select(counted.columns)])


# ----------------------------------------------------------------------------------------------------------------
# The example


def example_map(paths: Sequence[str | Path], rows: pl.DataFrame, grid: Sequence[float]) -> dict[str, object]:
    """Return the columns of ATTRIBUTION_MAP: gates and states of the trained model on its shortest protein.

    Every model of a data set is measured on the same proteins, so all show the same one. Diffusion models get the mean
    over the grid only.
    """
    trained = rows.filter((pl.col("null_model") == "trained") & pl.col("object").is_in(["gate", "layer"]))
    if trained.is_empty():
        return {name: [] for name in ATTRIBUTION_MAP.names}
    example = trained.sort("n_residues", "sequence_id")["sequence_id"][0]
    parts = []
    for path in paths:
        for part in iterate_table(path, ATTR_SEQ):
            parts.append(
                _plain(part).filter(
                    (pl.col("sequence_id") == example)
                    & (pl.col("null_model") == "trained")
                    & pl.col("object").is_in(["gate", "layer"])
                )
            )
    chosen = pl.concat(parts)
    levels = [float(np.float32(level)) for level in grid]
    is_diffusion = pl.col("objective") == "diffusion"
    chosen = chosen.filter(~is_diffusion | pl.col("noise_t").cast(pl.Float64).is_in(levels)).with_columns(
        noise_t=pl.when(is_diffusion).then(pl.lit(MEAN_OVER_NOISE, pl.Float32)).otherwise(pl.col("noise_t")),
        mask_draw=pl.lit(-1, pl.Int16),
        value=pl.col("by_position") / pl.col("n_reads"),
        position=pl.int_ranges(0, pl.col("n_residues"), dtype=pl.Int32),
    )
    keys = [*COMMON, "sequence_id", "n_residues", *MEASURED, "position"]
    found = (
        chosen.explode("value", "position")
        .group_by(keys, maintain_order=True)
        .agg(pl.col("value").cast(pl.Float64).mean(), pl.col("completeness_err").max())
        .sort([*VIEW, "object", "target", "layer", "position"])
    )
    return {name: found[name].to_list() for name in ATTRIBUTION_MAP.names}


# ----------------------------------------------------------------------------------------------------------------
# The stage


def attribution(
    attributed: Sequence[str | Path],
    erased: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    example: str | Path,
    *,
    grid: Sequence[float] = DIFFUSION_GRID,
    n_boot: int = 2000,
    seed: int = 1,
) -> int:
    """Write the ATTRIBUTION and ATTRIBUTION_MAP tables of one model; return the rows of the former.

    Args:
        attributed, erased: ATTR_SEQ and ERASE_SEQ tables of all shards of the model.
        clusters: the CLUSTERS table of the data set.
        output, example: the two tables.
        grid: noise levels whose mean a diffusion model gets as noise_t -1.
        n_boot, seed: resamples of the clusters, the same for every model of a data set.
    Raises:
        TableError: damaged tables, tables of several models, a protein without a cluster, a noise level without data.
    """
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=n_boot, seed=seed)
    rows = read(attributed, ATTR_SEQ, [*MEASURED])
    erasures = read(erased, ERASE_SEQ, ["vocab", "layer", "pos", "quantity"])
    rejected = rejections(rows)
    n_above = rows.filter(pl.col("completeness_err") > COMPLETE).height
    LOG.info(
        f"{rows.height} attributions, {n_above} of them left out: they miss completeness by more than {COMPLETE:.0%}; "
        f"{erasures.height} rows of erasures"
    )
    for row in (
        rejected.filter(pl.col("layer") == -1)
        .group_by("null_model", "object", "target")
        .agg(pl.col("n_rejected").max())
    ).iter_rows():
        LOG.info("left out, at most of one layer: " + ", ".join(str(cell) for cell in row))
    long = pl.concat([attribution_values(rows), erasure_values(erasures)])
    columns = corpus_rows(over_draws_and_noise(long, grid), rejected, bootstrap)
    n_rows = write_table(columns, ATTRIBUTION, output, seed=str(seed), resamples=str(n_boot))
    n_cells = write_table(example_map(attributed, rows, grid), ATTRIBUTION_MAP, example)
    LOG.info(f"{n_rows} rows; {n_cells} cells of the example")
    return n_rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.attribution", description=__doc__.split("\n")[0])
    parser.add_argument("--attribution", nargs="+", required=True, help="ATTR_SEQ tables of all shards")
    parser.add_argument("--erasure", nargs="+", required=True, help="ERASE_SEQ tables of the same")
    add_resampling_options(parser)
    parser.add_argument("--output", required=True, help="the ATTRIBUTION table")
    parser.add_argument("--example", required=True, help="the ATTRIBUTION_MAP table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, ValueError):
        attribution(
            options.attribution,
            options.erasure,
            options.clusters,
            options.output,
            options.example,
            **resampling_of(options),
        )


if __name__ == "__main__":
    main()
