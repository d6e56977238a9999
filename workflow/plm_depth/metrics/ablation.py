"""Depth ablation of one model over the corpus (D): what each change to the course of blocks costs, and summaries of it.

    python -m plm_depth.metrics.ablation --ablation P... --clusters P --output P --summary P

Within a protein the mask draws, and the spans that a policy drew, are averaged first, then proteins count once each;
for diffusion models the mean over the noise levels is taken last. Written are two tables.

ABLATION, by op, start, length and policy (see ``plm_depth.activations.ablation``): nll, acc1, kl_to_full, flip1;
dnll and dacc1, the value less that of the full model, protein by protein; and of residues that were masked one at a
time the ``perplexity``, exp of the mean nll (the pseudo-perplexity of masked models).

SUMMARY (beside the one of ``metrics.summary``, same columns), as ``stat`` (``profile``; ``param``):

    retention_depth (nll_background | nll_layer_0 | acc1_background | acc1_layer_0; y)     I4: first layer from which on
                          the early exit keeps a share y of what the full model gains over the floor, / n_blocks;
                          undefined where the full model gains nothing
    exit_area (nll | acc1)      I7: area between the early-exit score and its final value over relative depth
    n80, participation, depth_score (dnll_remove)      I6, I1: of the growth of nll when single blocks are removed; a
                          block that helps by its absence counts 0
    removable_fraction (angular | deepest | tail | exhaustive, with _nll or _acc1; y)      I8: most blocks in a row,
                          / n_blocks, whose removal keeps a share y of the gain over the background; of ``exhaustive``
                          the best span of each length, which is chosen on the data it is evaluated on

The floor ``background`` is the composition of other proteins, ``layer_0`` the early exit at layer 0. Removal after Sun
et al. 2025 (arXiv 2502.05795) and Gromov et al. 2024 (arXiv 2403.17887); exchange and reversal after Kapl et al. 2025
(arXiv 2512.08819).
"""

import argparse
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth.metrics.bootstrap import Bootstrap, BootstrapError, interval
from plm_depth.metrics.corpus import DIFFUSION_GRID, read_clusters
from plm_depth.metrics.groups import codes_of, row_codes
from plm_depth.metrics.options import add_resampling_options, numbers_option, resampling_of
from plm_depth.metrics.profile import sorted_rows
from plm_depth.metrics.skip import Measured, View, divided, n80, participation, views_in, with_noise_mean
from plm_depth.metrics.summary import area, depth_score, sustained_depth
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import (
    ABLATE_KEYS,
    ABLATE_SEQ,
    ABLATION,
    COMMON,
    SUMMARY,
    TableError,
    iterate_table,
    read_metadata,
    write_table,
)
from plm_depth.views import MEAN_OVER_NOISE

LOG = logging.getLogger("metrics.ablation")
RETAINED = (0.9, 0.95, 0.99)
CHANGES = {"nll": "dnll", "acc1": "dacc1"}  # quantity: its difference to the full model
SIGN = {"nll": -1.0, "acc1": 1.0}  # of a quantity as a score: larger is better
KEYS = (*ABLATE_KEYS, "quantity")
SEVERAL = -1  # start of spans that differ between proteins or draws
CONTIGUOUS = ("angular", "deepest", "tail", "exhaustive")
STATISTICS_AT_ONCE = 1024
ROWS_AT_ONCE = 200_000
Values = dict[tuple, np.ndarray]  # by KEYS, (n_sequences,)

# ----------------------------------------------------------------------------------------------------------------
# Statistics; leading axes are free


def bound_of(full: np.ndarray, floor: np.ndarray, y: float) -> np.ndarray:
    """Return the score that keeps a share ``y`` of the gain over a floor; NaN where there is no gain."""
    return np.where(full > floor, floor + y * (full - floor), np.nan)


def retention_depth(score: np.ndarray, floor: np.ndarray, y: float) -> np.ndarray:
    """Return the first layer from which on a share ``y`` of the final gain over a floor is kept, / n_blocks (I4).

    Args:
        score: (..., n_blocks + 1), larger is better.
        floor: (...,).
    Returns:
        (...,); NaN where the last layer's score is not above the floor.
    """
    bound = bound_of(score[..., -1], floor, y)
    holds = score >= bound[..., None] - _hair(score)
    return np.where(np.isnan(bound) | np.isnan(score).any(-1), np.nan, sustained_depth(holds))


def removable_fraction(
    score: np.ndarray, lengths: Sequence[int], full: np.ndarray, floor: np.ndarray, y: float, n_blocks: int
) -> np.ndarray:
    """Return the largest length whose removal keeps a share ``y`` of the gain over a floor, / n_blocks (I8).

    Args:
        score: (..., n_lengths), after removal of ``lengths`` blocks.
        full, floor: (...,) scores of the full model and of the floor.
    Returns:
        (...,); 0 where no removal keeps it, NaN where the full model is not above the floor.
    """
    bound = bound_of(full, floor, y)
    keeps = score >= bound[..., None] - _hair(score)
    largest = np.where(keeps, np.asarray(lengths, np.float64), 0.0).max(-1, initial=0.0)
    return np.where(np.isnan(bound), np.nan, largest / n_blocks)


def _hair(score: np.ndarray) -> np.ndarray:
    """Return a tolerance for rounding, so that the full score keeps all of itself."""
    return 1e-12 * np.maximum(np.abs(score), 1.0)


def exit_area(score: np.ndarray) -> np.ndarray:
    """Return the area between a score (..., n_blocks + 1) and its final value over relative depth (I7)."""
    return area(score[..., -1:] - score)


# ----------------------------------------------------------------------------------------------------------------
# Per-protein values


def ablations_of(
    view: View,
    parts: Sequence[tuple[Path, Sequence[int]]],
    bootstrap: Bootstrap,
    *,
    ops: Collection[str] | None = None,
) -> dict[tuple, Measured]:
    """Return the values of one view (see ``skip.views_in``) by ``KEYS``, draws averaged within each protein.

    Spans of the policies random and angular stand under start -1.

    Args:
        bootstrap: its proteins are the last axis of the results.
        ops: which are read, all by default.
    Raises:
        TableError: a row that stands twice, or a protein without a cluster.
    """
    n_sequences = len(bootstrap.sequence_ids)
    place_of: dict[tuple, int] = {}
    sums, counts = np.zeros(0), np.zeros(0)
    seen: list[np.ndarray] = []
    for path, rows in _by_the_many(parts, view):
        if ops is not None:
            op = codes_of(rows.column("op"))
            rows = rows.filter(pa.array(np.isin(op.values, list(ops))[op.codes]))
        if not rows.num_rows:
            continue
        sequence = codes_of(rows.column("sequence_id"))
        try:
            place = bootstrap.index(sequence.values.tolist())[sequence.codes]
        except BootstrapError as error:
            raise TableError(f"{path}: {error}") from None
        first, number = row_codes([codes_of(rows.column(name)) for name in KEYS])
        keys = [tuple(row.values()) for row in rows.select(KEYS).take(pa.array(first)).to_pylist()]
        exact = np.array([place_of.setdefault(key, len(place_of)) for key in keys])[number]
        draw = rows.column("mask_draw").to_numpy().astype(np.int64) + 1
        seen.append((exact * n_sequences + place) * (1 + 2**15) + draw)
        size = len(place_of) * n_sequences
        n, total = (rows.column(name).to_numpy().astype(np.float64) for name in ("n", "sum"))
        value = divided(total, n)
        defined = ~np.isnan(value)
        cell = (exact * n_sequences + place)[defined]
        sums = np.append(sums, np.zeros(size - len(sums))) + np.bincount(cell, value[defined], minlength=size)
        counts = np.append(counts, np.zeros(size - len(counts))) + np.bincount(cell, minlength=size)
    marks = np.concatenate(seen) if seen else np.zeros(0, np.int64)
    if len(np.unique(marks)) < len(marks):
        raise TableError(
            f"{parts[0][0]}: a protein has two rows for one run, quantity and mask draw; give each table once"
        )
    merged: dict[tuple, list[int]] = {}
    for key, at in place_of.items():
        named = dict(zip(KEYS, key))
        if named["policy"] in ("random", "angular"):
            named["start"] = SEVERAL
        merged.setdefault(tuple(named.values()), []).append(at)
    sums, counts = sums.reshape(-1, n_sequences), counts.reshape(-1, n_sequences)
    nothing = np.zeros(n_sequences)
    return {
        key: Measured({"mean": divided(sums[at].sum(0), counts[at].sum(0))}, nothing, nothing)
        for key, at in sorted(merged.items(), key=lambda item: str(item[0]))
    }


def _by_the_many(parts: Sequence[tuple[Path, Sequence[int]]], view: View) -> Iterator[tuple[Path, pa.Table]]:
    """Yield the rows of one view, many at a time."""
    columns = [*KEYS, "sequence_id", "mask_draw", "n", "sum", *VIEW_COLUMNS]
    for path, numbers in parts:
        waiting: list[pa.Table] = []
        for rows in iterate_table(path, ABLATE_SEQ, columns=columns, parts=numbers):
            waiting.append(_of_view(rows, view))
            if sum(table.num_rows for table in waiting) >= ROWS_AT_ONCE:
                yield path, pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield path, pa.concat_tables(waiting)


VIEW_COLUMNS = ("null_model", "null_seed", "condition", "readout", "direction", "noise_t")


def _of_view(rows: pa.Table, view: View) -> pa.Table:
    keep = np.full(rows.num_rows, True)
    for name in VIEW_COLUMNS:
        column = codes_of(rows.column(name))
        same = [v == view[name] or (v != v and view[name] != view[name]) for v in column.values.tolist()]
        keep &= np.array(same)[column.codes]
    return rows if keep.all() else rows.filter(pa.array(keep))


def with_changes(measured: Mapping[tuple, Measured]) -> Values:
    """Return the values by ``KEYS`` with those less the full model's, protein by protein, and the perplexity."""
    values = {key: one.values["mean"] for key, one in measured.items()}
    full = {}
    for key, value in values.items():
        named = dict(zip(KEYS, key))
        if named["op"] == "full":
            full[named["reads"], named["quantity"]] = value
    found = dict(values)
    for key, value in values.items():
        named = dict(zip(KEYS, key))
        change = CHANGES.get(named["quantity"])
        if change:
            if (named["reads"], named["quantity"]) not in full:
                raise TableError(f"no full model beside {key}; measure it again with activations.ablation")
            found[tuple((named | {"quantity": change}).values())] = value - full[named["reads"], named["quantity"]]
    return found


# ----------------------------------------------------------------------------------------------------------------
# Corpus rows


def corpus_rows(values: Values, bootstrap: Bootstrap) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of ABLATION that differ within a view, many rows at a time."""
    keys = list(values)
    for first in range(0, len(keys), STATISTICS_AT_ONCE):
        part = keys[first : first + STATISTICS_AT_ONCE]
        stacked = np.stack([values[key] for key in part])
        point, resampled = bootstrap.means(stacked)
        defined = ~np.isnan(stacked)
        yield _corpus_columns(part, point, resampled, defined, bootstrap)
        is_single = np.array([dict(zip(KEYS, key))["reads"] == "single" for key in part])
        is_nll = np.array([key[-1] == "nll" for key in part])
        if (is_single & is_nll).any():
            chosen = np.flatnonzero(is_single & is_nll)
            named = [(*part[k][:-1], "perplexity") for k in chosen]
            yield _corpus_columns(named, np.exp(point[chosen]), np.exp(resampled[chosen]), defined[chosen], bootstrap)


def _corpus_columns(
    keys: Sequence[tuple], point: np.ndarray, resampled: np.ndarray, defined: np.ndarray, bootstrap: Bootstrap
) -> dict[str, np.ndarray]:
    low, high, n_boot = interval(resampled)
    return {name: np.array([key[place] for key in keys]) for place, name in enumerate(KEYS)} | {
        "value": point,
        "ci_lo": low,
        "ci_hi": high,
        "n_seq": defined.sum(-1),
        "n_cluster": bootstrap.clusters_of(defined),
        "n_boot": n_boot,
    }


class Profiles:
    """Values of one view and null model as profiles, (..., n) with the corpus value or its resamples in front."""

    def __init__(self, values: Values, n_blocks: int, bootstrap: Bootstrap):
        self.n_blocks, self.bootstrap = n_blocks, bootstrap
        self.values: dict[tuple, np.ndarray] = {}
        for key, value in values.items():
            named = dict(zip(KEYS, key))
            if named["reads"] != "single":
                names = ("op", "policy", "length", "start", "quantity")
                self.values[tuple(named[name] for name in names)] = value

    def lengths(self, policy: str) -> list[int]:
        """Return the lengths that a policy removed."""
        return sorted({key[2] for key in self.values if key[:2] == ("remove_block", policy)})

    def stacked(self, keys: Sequence[tuple]) -> np.ndarray | None:
        """Return (n, n_sequences), the values of (op, policy, length, start, quantity) each; None if one lacks."""
        if not keys or any(key not in self.values for key in keys):
            return None
        return np.stack([self.values[key] for key in keys])

    def exits(self, quantity: str) -> np.ndarray | None:
        """Return the early exit at layers 0..n_blocks, (n_blocks + 1, n_sequences)."""
        n = self.n_blocks
        return self.stacked([("exit", "none", n - layer, layer, quantity) for layer in range(n + 1)])

    def singles(self, quantity: str) -> np.ndarray | None:
        """Return the removal of blocks 1..n_blocks, (n_blocks, n_sequences)."""
        return self.stacked([("remove", "none", 1, start, quantity) for start in range(self.n_blocks)])

    def one(self, op: str, quantity: str) -> np.ndarray | None:
        """Return the full model or the background, (1, n_sequences)."""
        start = self.n_blocks if op == "full" else 0
        return self.stacked([(op, "none", 0, start, quantity)])

    def removals(self, policy: str, quantity: str) -> list[np.ndarray]:
        """Return the spans of each length that a policy removed, [(n_spans, n_sequences)], lengths ascending."""
        return [
            np.stack([v for k, v in self.values.items() if k[:3] == ("remove_block", policy, n) and k[-1] == quantity])
            for n in self.lengths(policy)
        ]


def summary_rows(profiles: Profiles, retained: Sequence[float]) -> Iterator[dict[str, object]]:
    """Yield the columns of SUMMARY that differ within a view, a row at a time."""
    bootstrap, n = profiles.bootstrap, profiles.n_blocks
    nan = float("nan")

    def means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        point, resampled = bootstrap.means(values)
        return point[None], resampled.T  # (1, n), (n_boot, n)

    def row(
        stat: str, profile: str, param: float, compute: Callable[..., np.ndarray], *inputs: np.ndarray
    ) -> dict[str, object]:
        """``compute`` takes a profile (..., n) for each of the inputs (n, n_sequences)."""
        both = [means(values) for values in inputs]
        (value,), resampled = compute(*(p for p, _ in both)), compute(*(r for _, r in both))
        low, high, n_boot = interval(resampled[None])
        if np.isnan(value):  # resamples in which it happens to be defined are no interval of it
            low = high = np.array([nan])
        defined = np.any([~np.isnan(values).any(0) for values in inputs], axis=0)
        return {
            "stat": stat,
            "profile": profile,
            "param": param,
            "value": value,
            "ci_lo": low[0],
            "ci_hi": high[0],
            "n_seq": int(defined.sum()),
            "n_cluster": int(bootstrap.clusters_of(defined)),
            "n_boot": int(n_boot[0]),
        }

    for quantity, sign in SIGN.items():
        exits, full, background = (
            profiles.exits(quantity),
            profiles.one("full", quantity),
            profiles.one("background", quantity),
        )
        if exits is not None:
            yield row("exit_area", quantity, nan, lambda x, sign=sign: exit_area(sign * x), exits)
            for y in retained:
                for name, floor in (("background", background), ("layer_0", exits[:1])):
                    if floor is not None:
                        yield row(
                            "retention_depth",
                            f"{quantity}_{name}",
                            y,
                            lambda x, f, y=y, sign=sign: retention_depth(sign * x, sign * f[..., 0], y),
                            exits,
                            floor,
                        )
        for policy in CONTIGUOUS:
            spans, lengths = profiles.removals(policy, quantity), profiles.lengths(policy)
            if not spans or full is None or background is None:
                continue
            ends = np.cumsum([len(one) for one in spans])
            for y in retained:

                def fraction(x, whole, floor, y=y, sign=sign, ends=ends, lengths=lengths) -> np.ndarray:
                    best = [part.max(-1) for part in np.split(sign * x, ends[:-1], axis=-1)]
                    score = np.stack(best, axis=-1)
                    return removable_fraction(score, lengths, sign * whole[..., 0], sign * floor[..., 0], y, n)

                name = f"{policy}_{quantity}"
                yield row("removable_fraction", name, y, fraction, np.concatenate(spans), full, background)
    growth = profiles.singles("dnll")
    if growth is not None:
        for stat, compute in (("n80", n80), ("participation", participation), ("depth_score", depth_score)):
            yield row(stat, "dnll_remove", nan, lambda x, f=compute: f(np.maximum(x, 0)), growth)


# ----------------------------------------------------------------------------------------------------------------
# The stage


def ablation(
    paths: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    summary: str | Path,
    *,
    grid: Sequence[float] = DIFFUSION_GRID,
    retained: Sequence[float] = RETAINED,
    n_boot: int = 2000,
    seed: int = 1,
) -> tuple[int, int]:
    """Write the ABLATION and SUMMARY tables of one model from its per-protein tables; return their numbers of rows.

    Tables without rows (a model whose tokens are not residues) give tables without rows, which is logged.

    Args:
        paths: ABLATE_SEQ tables of all shards and variants of the model.
        clusters: the CLUSTERS table of the data set.
        grid: noise levels whose mean a diffusion model gets as noise_t -1.
        retained: shares of the gain that retention depth and removable fraction keep.
        n_boot, seed: resamples of the clusters, the same for every model of a data set.
    Raises:
        TableError: damaged tables, tables of several models, a protein without a cluster, a noise level without data.
    """
    about = {"seed": str(seed), "resamples": str(n_boot)}
    if not any(rows.num_rows for path in paths for rows in iterate_table(path, ABLATE_SEQ, columns=["model_id"])):
        LOG.warning(f"no rows in {len(paths)} tables: nothing was read residue by residue; tables without rows")
        return tuple(write_table(s.empty_table(), s, p, **about) for s, p in ((ABLATION, output), (SUMMARY, summary)))
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=n_boot, seed=seed)
    LOG.info(f"{len(bootstrap.sequence_ids)} proteins in {bootstrap.n_clusters} clusters, {n_boot} resamples")
    about |= {name: value for name, value in read_metadata(paths[0]).items() if name == "ablations"}
    views = views_in(paths, ABLATE_SEQ)
    progress = Progress(LOG, len(views), "views")
    corpus: list[dict[str, np.ndarray]] = []
    summaries: list[dict[str, object]] = []
    for view, measured in with_noise_mean(views, lambda v, p: ablations_of(v, p, bootstrap), grid):
        common = {**view, "mask_draw": -1}
        values = with_changes(measured)
        for columns in corpus_rows(values, bootstrap):
            n = len(columns["value"])
            corpus.append({name: np.full(n, item) for name, item in common.items()} | columns)
        if view["noise_t"] != 0:  # clean inputs and single masks have no summary of their own
            profiles = Profiles(values, int(view["n_blocks"]), bootstrap)
            summaries += [{**common, **row} for row in summary_rows(profiles, retained)]
        if view["noise_t"] != MEAN_OVER_NOISE:
            progress.advance()
    progress.finish()
    columns = {name: np.concatenate([part[name] for part in corpus]) for name in corpus[0]}
    n_rows = write_table(sorted_rows(columns, (*COMMON, *KEYS)), ABLATION, output, **about)
    if summaries:
        columns = {name: np.array([row[name] for row in summaries]) for name in summaries[0]}
        table = sorted_rows(columns, (*COMMON, "stat", "profile", "param"))
        n_summary = write_table(table, SUMMARY, summary, **about)
    else:
        n_summary = write_table(SUMMARY.empty_table(), SUMMARY, summary, **about)
    LOG.info(f"{n_rows} rows, {n_summary} summary statistics")
    return n_rows, n_summary


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("--ablation", nargs="+", required=True, help="ABLATE_SEQ tables of all shards and variants")
    add_resampling_options(parser)
    parser.add_argument("--retained", type=numbers_option, default=list(RETAINED), help="shares of the gain to keep")
    parser.add_argument("--output", required=True, help="the ABLATION table")
    parser.add_argument("--summary", required=True, help="the SUMMARY table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, ValueError):
        ablation(
            options.ablation,
            options.clusters,
            options.output,
            options.summary,
            retained=options.retained,
            **resampling_of(options),
        )


if __name__ == "__main__":
    main()
