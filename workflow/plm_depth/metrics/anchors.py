"""Clouds of stream vectors: which points of the stream tables stand for a model, and one layer of them at a time.

Points are residues (the anchors, clean or autoregressive inputs) or proteins (the mean over their residues). Where
there are more than wanted, the ones with the smallest keyed hash of (seed, protein, position) are taken: a choice that
depends on no shard, order, layer or model, so that models of one data set are compared on the same points.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm_depth.metrics.bootstrap import BootstrapError
from plm_depth.metrics.groups import CONSTANT, Groups, read_groups
from plm_depth.randomness import key_of
from plm_depth.tables import PER_SEQUENCE, STREAM_KEYS, VIEW_KEYS, TableError

MEAN_POSITION = -1  # of the row that holds the mean over a protein
POINTS = ("residue", "pooled")
SPACES = ("raw", "zscore")
VIEW = tuple(name for name in VIEW_KEYS if name not in PER_SEQUENCE)


@dataclass(frozen=True)
class Anchors:
    """Chosen points of one model under one view and null model, in the order of their hash.

    Attributes:
        common: the COMMON columns.
        points: "residue" or "pooled".
        sequence_ids: (n_points,) protein of each point.
        positions: (n_points,) its residue, -1 for the mean.
        groups: (n_points,) jackknife group of each point, 0..n_groups - 1.
        n_groups, n_clusters: groups, and similarity clusters among the points.
        clusters: (n_points,) cluster of each point.
        n_available: points there were to choose from.
    """

    common: Mapping[str, object]
    points: str
    sequence_ids: np.ndarray
    positions: np.ndarray
    clusters: np.ndarray
    groups: np.ndarray
    n_groups: int
    n_available: int
    _shards: Groups
    _shard: np.ndarray
    _row: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def n_sequences(self) -> int:
        return len(np.unique(self.sequence_ids))

    @property
    def n_clusters(self) -> int:
        return len(np.unique(self.clusters))

    @property
    def layers(self) -> range:
        return range(int(self.common["n_blocks"]) + 1)

    def layer(self, layer: int) -> np.ndarray:
        """Return the stream of one layer at the points, (n_points, d_model) float32.

        Raises:
            TableError: a number that is not finite.
        """
        found = np.empty((len(self), int(self.common["d_model"])), np.float32)
        for number, shard in enumerate(self._shards.shards):
            here = self._shard == number
            if here.any():
                found[here] = shard.table.layer(layer)[self._row[here]]
        if not np.isfinite(found).all():
            place = int(np.flatnonzero(~np.isfinite(found).all(-1))[0])
            raise TableError(
                f"{self.common['model_id']} ({self.common['null_model']}), layer {layer}: the stream of protein "
                f"{self.sequence_ids[place]} is not finite at position {self.positions[place]}; look at the checkpoint"
            )
        return found

    def take(self, chosen: np.ndarray) -> "Anchors":
        """Return the chosen points (an index or bool array over them), in their order."""
        arrays = ("sequence_ids", "positions", "clusters", "groups", "_shard", "_row")
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Anchors(**(fields | {name: getattr(self, name)[chosen] for name in arrays}))


def anchors_of(
    paths: Sequence[str | Path],
    clusters: Mapping[str, str],
    *,
    points: Sequence[str] = POINTS,
    max_points: int = 4096,
    n_groups: int = 20,
    seed: int,
) -> Iterator[Anchors]:
    """Yield the points of every view and null model that the stream tables of one model hold, kind by kind.

    Args:
        paths: the stream tables of all shards and variants.
        clusters: cluster of each protein.
        points: which kinds; residues of a model whose tokens hold several residues are left out.
        max_points: most points of a cloud.
        n_groups: jackknife groups, fewer where there are fewer clusters.
        seed: of the choice of points and of the groups.
    Raises:
        TableError: no rows, tables of different models, a row that stands twice, a protein without a cluster.
    """
    groups = read_groups(paths, STREAM_KEYS)
    if not groups.n_groups:
        raise TableError(
            f"{paths[0]}: no stream was kept; the view must be clean or autoregressive (inputs: clean: true) and "
            "cache.anchors at least 1 for residues"
        )
    views = _views(groups)
    for view in np.unique(views):
        mine = np.flatnonzero(views == view)
        common = {name: groups.constants[name] for name in CONSTANT}
        common |= {name: groups.keys[name][mine[0]].item() for name in VIEW}
        rows = [_rows_of(shard, number, views, view) for number, shard in enumerate(groups.shards)]
        shard, row, group, position = (np.concatenate(parts) for parts in zip(*rows))
        sequence_ids = groups.keys["sequence_id"][group]
        missing = sorted(set(sequence_ids.tolist()) - set(clusters))
        if missing:
            raise BootstrapError(
                f"{len(missing)} proteins have no cluster, the first {missing[0]!r}; clusters of another data set?"
            )
        for kind in points:
            if kind == "residue" and not groups.constants.get("tokens_are_residues", True):
                continue
            of_kind = np.flatnonzero((position == MEAN_POSITION) == (kind == "pooled"))
            if not len(of_kind):
                continue
            keyed = [
                (key_of(seed, "geometry", sequence_id, at), i)
                for i, sequence_id, at in zip(
                    of_kind.tolist(), sequence_ids[of_kind].tolist(), position[of_kind].tolist()
                )
            ]
            chosen = np.array([i for _, i in sorted(keyed)[:max_points]])
            cluster_of = np.array([clusters[name] for name in sequence_ids[chosen].tolist()])
            jackknife_groups = groups_of(cluster_of, n_groups=n_groups, seed=seed)
            yield Anchors(
                common=common,
                points=kind,
                sequence_ids=sequence_ids[chosen],
                positions=position[chosen],
                clusters=cluster_of,
                groups=jackknife_groups,
                n_groups=int(jackknife_groups.max()) + 1,
                n_available=len(of_kind),
                _shards=groups,
                _shard=shard[chosen],
                _row=row[chosen],
            )


def _views(groups: Groups) -> np.ndarray:
    """Return the number of the view of each group; groups are sorted by view first."""
    is_new = np.zeros(groups.n_groups, bool)
    for name in VIEW:
        values = groups.keys[name]
        same = values[1:] == values[:-1]
        if values.dtype.kind == "f":
            same |= np.isnan(values[1:]) & np.isnan(values[:-1])
        is_new[1:] |= ~same
    return np.cumsum(is_new)


def _rows_of(shard, number: int, views: np.ndarray, view: int) -> tuple[np.ndarray, ...]:
    here = np.flatnonzero(views[shard.group] == view)
    return np.full(len(here), number), shard.order[here], shard.group[here], shard.position[here]


def groups_of(clusters: np.ndarray, *, n_groups: int, seed: int) -> np.ndarray:
    """Return a jackknife group for every point, (n_points,) int64: whole clusters, groups of nearly equal size.

    The largest clusters are placed first, each into the smallest group; ties by keyed hash.
    """
    names, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (-sizes[i], key_of(seed, "jackknife", names[i])))
    filled = np.zeros(min(n_groups, len(names)), np.int64)
    group = np.empty(len(names), np.int64)
    for i in order:
        group[i] = filled.argmin()
        filled[group[i]] += sizes[i]
    return group[cluster]


def in_space(cloud: np.ndarray, space: str) -> np.ndarray:
    """Return a cloud (n_points, d_model) as a space has it, float32.

    raw: as it is. zscore: every coordinate with mean 0 and variance 1 over the points, so that a few large coordinates
    do not decide alone; a coordinate that is the same everywhere is 0.
    """
    if space == "raw":
        return cloud
    if space != "zscore":
        raise ValueError(f"space {space!r}; expected one of {', '.join(SPACES)}")
    centred = cloud.astype(np.float64) - cloud.mean(0, dtype=np.float64)
    spread = np.sqrt(np.square(centred).mean(0))
    # Rounding of the mean of equal numbers is no spread.
    is_constant = spread <= 1e-6 * np.abs(cloud).max(0, initial=0)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=~is_constant).astype(np.float32)
