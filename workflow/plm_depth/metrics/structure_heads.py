"""Structure heads (C1-C4): how far each layer's read-out of structures is from the last layer's, and from the truth.

The quantities are those of ``plm_depth.metrics.lens``, over all classes of the head (``vocab`` full), in rows whose
``readout`` is struct. ``lens`` says whether the structure was hidden from the model (logit: a prediction is read) or
shown to it (copy); the two are never summed together. Quantities that compare with the true class count the residues
whose class is not known as undefined (``n_nan``). In the table of corpus values rows say ``structure_heads``, and
``pos_class`` is the lens.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth.metrics.bootstrap import Bootstrap
from plm_depth.metrics.corpus import DIFFUSION_GRID, over_noise, parts_of, read_clusters
from plm_depth.metrics.groups import Groups, Shard, dictionary, read_groups
from plm_depth.metrics.lens import LAYER_QUANTITIES, N_RANKS, SETTLE_QUANTITIES, SETTLED, Settling
from plm_depth.metrics.options import add_resampling_options, resampling_of
from plm_depth.metrics.profile import profile_rows, write_profiles
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import (
    LENS_SEQ,
    STRUCTURE_KEYS,
    TableError,
    TableWriter,
)

LOG = logging.getLogger("metrics.structure_heads")

LENSES = ("logit", "copy")
QUANTITIES = tuple(name for name in LAYER_QUANTITIES if name not in SETTLED)
NEEDED = tuple(name for name in QUANTITIES if name not in ("p_true", "rank_true", "acc1", "nll"))


# ----------------------------------------------------------------------------------------------------------------
# Per protein


@dataclass(frozen=True)
class _State:
    """One shard: its rows by (group, lens, position), and where which cell begins.

    A cell holds the rows of a protein and view of one lens: it is ``group * len(LENSES) + lens``.
    """

    shard: Shard
    order: np.ndarray
    starts: np.ndarray
    cells: np.ndarray
    settling: Settling


def per_protein(paths: Sequence[str | Path], output: str | Path) -> int:
    """Write the LENS_SEQ table of one model from the read-outs of all shards; return its number of rows.

    Rows stand by layer, from the last to the first, then the settling rows (layer -1). A lens that a network has under
    a condition stands there for every protein and view, also for those without such a residue (n 0).

    Raises:
        TableError: shards that overlap, differ or are damaged, other quantities, numbers that are not defined.
    """
    groups = read_groups(paths, STRUCTURE_KEYS, keep=("is_shown",))
    first = groups.shards[0].table
    if first.names != list(QUANTITIES):
        raise TableError(f"{first.path}: its numbers are {first.names}; expected {list(QUANTITIES)}. Extract it again")
    n_blocks = int(groups.constants["n_blocks"])
    states = [_state(shard, n_blocks) for shard in groups.shards]
    kept = _cells(groups, states)
    n_positions = sum(len(state.order) for state in states)
    LOG.info(f"{groups.n_groups} proteins x views x null models, {n_positions} residues, {len(paths)} shards")
    about = {name: groups.constants[name] for name in ("model_id", "seed", "version") if name in groups.constants}
    about["n_vocabulary"] = groups.constants["n_classes"]
    progress = Progress(LOG, n_blocks + 1, "layers")
    with TableWriter(output, LENS_SEQ, **about) as writer:
        for layer in range(n_blocks, -1, -1):
            sums = _Sums(groups, LAYER_QUANTITIES)
            for state in states:
                sums.add(state, _values(state, layer))
            writer.append(sums.rows(layer, kept))
            progress.advance()
        sums = _Sums(groups, SETTLE_QUANTITIES)
        for state in states:
            sums.add(state, state.settling.first.astype(np.float64))
        writer.append(sums.rows(-1, kept))
    progress.finish()
    LOG.info(f"{writer.n_rows} rows")
    return writer.n_rows


def _state(shard: Shard, n_blocks: int) -> _State:
    shown = shard.kept["is_shown"].astype(np.int64)
    cell = shard.group.astype(np.int64) * len(LENSES) + shown
    again = np.lexsort((shard.position, cell))
    cell = cell[again]
    starts = np.flatnonzero(np.r_[True, np.diff(cell) != 0]) if len(cell) else np.zeros(0, np.int64)
    return _State(shard, shard.order[again], starts, cell[starts], Settling(len(cell), n_blocks))


def _cells(groups: Groups, states: Sequence[_State]) -> np.ndarray:
    """Return the cells that have rows: of every lens that a network has under a condition, all proteins and views."""
    found = np.zeros((groups.n_groups, len(LENSES)), bool)
    for state in states:
        found.reshape(-1)[state.cells] = True
    keys = [groups.keys[name] for name in ("null_model", "null_seed", "condition")]
    of = np.unique([f"{null} {seed} {condition}" for null, seed, condition in zip(*keys)], return_inverse=True)[1]
    present = np.zeros((of.max(initial=-1) + 1, len(LENSES)), bool)
    np.logical_or.at(present, of, found)
    return np.flatnonzero(present[of])


def _values(state: _State, layer: int) -> np.ndarray:
    """Return the ``LAYER_QUANTITIES`` of one layer, (n_quantities, n_rows) in the order of the state; layers descend.

    Raises:
        TableError: a quantity that every residue has is not defined.
    """
    read = state.shard.table.layer(layer)[state.order].T.astype(np.float64)
    named = dict(zip(QUANTITIES, read))
    for name in NEEDED:
        if not np.isfinite(named[name]).all():
            raise TableError(
                f"{state.shard.table.path}: {name} of layer {layer} is not finite; delete it and extract it again"
            )
    settled = state.settling.feed(layer, named["kl_lf"], named["ov1"])
    named |= dict(zip(SETTLED, settled.astype(np.float64)))
    return np.stack([named[name] for name in LAYER_QUANTITIES])


class _Sums:
    """Statistics of one layer, per quantity and cell, filled shard by shard."""

    def __init__(self, groups: Groups, quantities: Sequence[str]):
        self.groups, self.quantities = groups, tuple(quantities)
        shape = (len(self.quantities), groups.n_groups * len(LENSES))
        self.columns = {name: np.zeros(shape, np.int64) for name in ("n", "n_nan")}
        self.columns |= {name: np.zeros(shape) for name in ("sum", "sumsq")}
        self.columns["max"] = np.full(shape, np.nan)
        self.ranks = np.zeros((shape[1], N_RANKS), np.int32)

    def add(self, state: _State, values: np.ndarray) -> None:
        """Add the values (n_quantities, n_rows) of one shard, NaN where they are undefined."""
        if not len(state.starts):
            return
        defined = ~np.isnan(values)
        filled = np.where(defined, values, 0.0)
        found = {
            "n": np.add.reduceat(defined, state.starts, axis=1, dtype=np.int64),
            "n_nan": np.add.reduceat(~defined, state.starts, axis=1, dtype=np.int64),
            "sum": np.add.reduceat(filled, state.starts, axis=1),
            "sumsq": np.add.reduceat(filled * filled, state.starts, axis=1),
            "max": np.fmax.reduceat(values, state.starts, axis=1),
        }
        for name, statistic in found.items():
            self.columns[name][:, state.cells] = statistic
        if "rank_true" in self.quantities:
            rank = values[self.quantities.index("rank_true")]
            lengths = np.diff(np.r_[state.starts, values.shape[1]])
            counted = rank <= N_RANKS  # not so where it is NaN
            np.add.at(self.ranks, (np.repeat(state.cells, lengths)[counted], rank[counted].astype(np.int64) - 1), 1)

    def rows(self, layer: int, cells: np.ndarray) -> dict[str, object]:
        """Return the LENS_SEQ columns of these cells, every quantity of each."""
        n_quantities = len(self.quantities)
        quantity, cell = np.repeat(np.arange(n_quantities), len(cells)), np.tile(cells, n_quantities)
        ranks = np.zeros((len(cell), N_RANKS), np.int32)
        if "rank_true" in self.quantities:
            of_ranks = quantity == self.quantities.index("rank_true")
            ranks[of_ranks] = self.ranks[cells]
        return {
            **self.groups.columns(cell // len(LENSES)),
            "layer": np.full(len(cell), layer, np.int16),
            "lens": dictionary(LENSES, cell % len(LENSES)),
            "vocab": dictionary(("full",), np.zeros(len(cell), np.int64)),
            "quantity": dictionary(self.quantities, quantity),
            **{name: column[quantity, cell] for name, column in self.columns.items()},
            "rank_hist": pa.FixedSizeListArray.from_arrays(pa.array(ranks.ravel()), N_RANKS),
        }


# ----------------------------------------------------------------------------------------------------------------
# The corpus


def structure_heads(
    read_outs: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    sequences: str | Path,
    *,
    grid: Sequence[float] = DIFFUSION_GRID,
    n_boot: int = 2000,
    seed: int = 1,
) -> int:
    """Write the LENS_SEQ table of the structure head of a model and its corpus values; return the rows of the latter.

    Args:
        read_outs: tables of ``activations.structure_heads``, of all shards.
        clusters: the CLUSTERS table of the data set.
        output, sequences: the corpus values (PROFILE), and the table per protein.
        grid: noise levels whose mean a diffusion model gets as noise_t -1.
        n_boot, seed: resamples of the clusters, the same for every model of a data set.
    Raises:
        TableError: damaged tables, a protein without a cluster, a noise level without data.
    """
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=n_boot, seed=seed)
    per_protein(read_outs, sequences)
    parts = []
    for part in parts_of([sequences], table="lens", bootstrap=bootstrap):
        parts += [profile_rows(found, bootstrap) for found in (part, over_noise(part, grid)) if found is not None]
    n_rows = write_profiles(parts, output, table="structure_heads", seed=seed, resamples=n_boot)
    LOG.info(f"{n_rows} rows")
    return n_rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m plm_depth.metrics.structure_heads", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--read-outs", nargs="+", required=True, help="read-outs of all shards of one model")
    add_resampling_options(parser)
    parser.add_argument("--output", required=True, help="the corpus values (PROFILE)")
    parser.add_argument("--sequences", required=True, help="the LENS_SEQ table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, ValueError):
        structure_heads(
            options.read_outs, options.clusters, options.output, options.sequences, **resampling_of(options)
        )


if __name__ == "__main__":
    main()
