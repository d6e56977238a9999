"""Profiles: the corpus value of every quantity at every layer of one model, with its cluster-bootstrap interval.

Aggregates, each over positions, then mask draws, then proteins, then (diffusion) noise levels:

    mean     of the means of the proteins, every protein counting once (macro)
    micro    every position counting once
    p95      mean of the 95th percentiles of the proteins (contributions only)
    max      largest value; over a noise grid, the mean of the largest; no interval, and it grows with the sample
"""

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth.metrics.bootstrap import Bootstrap, BootstrapError, interval
from plm_depth.metrics.corpus import DIFFUSION_GRID, Measurements, over_noise, parts_of, read_clusters
from plm_depth.metrics.groups import codes_of
from plm_depth.metrics.options import add_resampling_options, resampling_of
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import COMMON, PROFILE, TableError, write_table

LOG = logging.getLogger("metrics.profile")


def profile_rows(found: Measurements, bootstrap: Bootstrap) -> dict[str, np.ndarray]:
    """Return the PROFILE columns of measurements, four aggregates each (three for the lens), not sorted.

    Args:
        found: with or without noise levels in front; with them, the values are means over the levels, and a protein
            counts where it is defined at every level.
    """
    levels = found if found.mean.ndim == 3 else _with_one_level(found)
    mean, p95 = levels.mean.mean(0), levels.p95.mean(0)  # NaN where undefined at any level
    n_nan = levels.n_nan.sum((0, 2))
    parts = []
    for aggregate, values in (("mean", mean), ("p95", p95)):
        kept = np.ones(len(found), bool) if aggregate == "mean" else found.keys["table"] == "contributions"
        point, resampled = bootstrap.means(values[kept])
        parts.append(_rows(found, kept, aggregate, point, resampled, ~np.isnan(values[kept]), bootstrap, n_nan))
    everything = np.ones(len(found), bool)
    has_all_levels = (levels.n > 0).all(0)
    point, resampled = bootstrap.ratios(*(np.where(has_all_levels, x, 0.0) for x in (levels.total, levels.n)))
    point, resampled = point.mean(0), resampled.mean(0)
    parts.append(_rows(found, everything, "micro", point, resampled, has_all_levels, bootstrap, n_nan))
    largest = np.where(has_all_levels, levels.max, -np.inf).max(2).mean(0)
    largest = np.where(np.isfinite(largest), largest, np.nan)
    parts.append(_rows(found, everything, "max", largest, None, has_all_levels, bootstrap, n_nan))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _with_one_level(found: Measurements) -> Measurements:
    return Measurements(
        found.keys, **{name: getattr(found, name)[None] for name in ("mean", "p95", "max", "total", "n", "n_nan")}
    )


def _rows(
    found: Measurements,
    kept: np.ndarray,
    aggregate: str,
    point: np.ndarray,
    resampled: np.ndarray | None,
    defined: np.ndarray,
    bootstrap: Bootstrap,
    n_nan: np.ndarray,
) -> dict[str, np.ndarray]:
    if resampled is None:
        lower, upper, n_boot = np.full(len(point), np.nan), np.full(len(point), np.nan), np.zeros(len(point), np.int64)
    else:
        lower, upper, n_boot = interval(resampled)
    return {
        **{name: column[kept] for name, column in found.keys.items()},
        "aggregate": np.full(len(point), aggregate),
        "value": point,
        "ci_lo": lower,
        "ci_hi": upper,
        "n_seq": defined.sum(1),
        "n_cluster": bootstrap.clusters_of(defined),
        "n_boot": n_boot,
        "n_nan": n_nan[kept],
    }


def profile(
    contributions: Sequence[str | Path],
    lens: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    *,
    grid: Sequence[float] = DIFFUSION_GRID,
    n_boot: int = 2000,
    seed: int = 1,
) -> int:
    """Write the PROFILE table of one model from its per-protein tables; return its number of rows.

    Args:
        contributions, lens: CONTRIB_SEQ and LENS_SEQ tables of all variants of the model.
        clusters: the CLUSTERS table of the data set.
        grid: noise levels whose mean a diffusion model gets as noise_t -1.
        n_boot, seed: resamples of the clusters, the same for every model of a data set.
    Raises:
        TableError: damaged tables, tables of several models, a protein without a cluster, a noise level without data.
    """
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=n_boot, seed=seed)
    LOG.info(f"{len(bootstrap.sequence_ids)} proteins in {bootstrap.n_clusters} clusters, {n_boot} resamples")
    progress = Progress(LOG, None, "layers of a network")
    parts = []
    for table, paths in (("contributions", contributions), ("lens", lens)):
        for part in parts_of(paths, table=table, bootstrap=bootstrap):
            for found in _with_noise_mean(part, grid):
                parts.append(profile_rows(found, bootstrap))
            progress.advance()
    progress.finish()
    if not parts:
        raise TableError("the per-protein tables hold no rows; nothing to profile")
    n_rows = write_profiles(parts, output, seed=seed, resamples=n_boot)
    n_empty = sum(int(np.isnan(part["value"]).sum()) for part in parts)
    LOG.info(f"{n_rows} rows, {n_empty} without any defined value")
    return n_rows


def _with_noise_mean(part: Measurements, grid: Sequence[float]) -> Iterator[Measurements]:
    yield part
    stacked = over_noise(part, grid)
    if stacked is not None:
        yield stacked


def write_profiles(
    parts: Sequence[Mapping[str, np.ndarray]],
    output: str | Path,
    *,
    table: str | None = None,
    seed: int,
    resamples: int,
) -> int:
    """Write ``profile_rows``, joined and sorted, as one PROFILE table; return its number of rows.

    Args:
        parts: none gives a table without rows, which is logged.
        table: what the column of that name says, where another stage than the lens's own measured it.
    """
    if not parts:
        LOG.warning("nothing was read out; the table is empty")
        return write_table({name: np.empty(0) for name in PROFILE.names}, PROFILE, output)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["mask_draw"] = np.full(len(columns["layer"]), -1)
    if table is not None:
        columns["table"] = np.full(len(columns["layer"]), table)
    columns = sorted_rows(columns, (*COMMON, "table", "quantity", "pos_class", "vocab", "layer", "aggregate"))
    return write_table(columns, PROFILE, output, seed=seed, resamples=resamples)


def sorted_rows(columns: dict[str, np.ndarray], by: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the rows sorted by the named columns, the first counting most, NaN last."""
    coded = [codes_of(pa.chunked_array([pa.array(columns[name])])).codes for name in by]
    order = np.lexsort(coded[::-1])
    return {name: column[order] for name, column in columns.items()}


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that profile and summary share."""
    parser.add_argument("--contributions", nargs="+", required=True, help="CONTRIB_SEQ tables of all variants")
    parser.add_argument("--lens", nargs="+", required=True, help="LENS_SEQ tables of all variants")
    add_resampling_options(parser)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_corpus_options(parser)
    parser.add_argument("--output", required=True, help="the PROFILE table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, BootstrapError):
        profile(options.contributions, options.lens, options.clusters, options.output, **resampling_of(options))


if __name__ == "__main__":
    main()
