"""Two models of one family, layer against layer (metrics F7): does a deeper one do the same, only spread out?

    python -m plm_depth.metrics.geometry_pairs --shallow P... --deep P... --clusters P --settings JSON --seed N
        --output P

From the same residues (or proteins) in both models. Written is the table GEOM, layer_i of the shallow model and layer_j
of the deep one (``model_j``):

    map_error          held-out error of a linear map from layer_i to layer_j, mean length of what it misses over mean
                       distance from the mean of the training points; 1: no better than that mean
    cka, cka_biased    linear CKA of both layers
    map_diagonal       mean over the layers of the deep model of |l / n - l' / n'|, l its best source: 0 where the best
                       source stands at the same relative depth
    map_diagonal_random      the same if the source were drawn at random, exactly

Maps are ridge regressions with an intercept, fitted on 60 % of the similarity clusters, their penalty chosen on 20 %
and their error taken on the rest. Standard errors of ``map_error`` and ``map_diagonal`` are from a bootstrap over the
clusters of that rest. After Csordas, Manning and Potts 2025 (arXiv 2505.13898).
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plm_depth.metrics import clouds
from plm_depth.metrics.anchors import Anchors, anchors_of, in_space
from plm_depth.metrics.bootstrap import Bootstrap, BootstrapError
from plm_depth.metrics.corpus import read_clusters
from plm_depth.metrics.geometry import DEFAULT, SMALLEST, Rows, Settings, SettingsError, write_rows
from plm_depth.metrics.options import json_option
from plm_depth.progress import Progress, stage_log
from plm_depth.randomness import key_of
from plm_depth.tables import TableError

LOG = logging.getLogger("metrics.geometry_pairs")
TRAINING, CHOICE, REST = range(3)
PARTS = (0.6, 0.8)  # of the clusters: where training ends and where the choice of the penalty ends
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # of the mean variance along the axes of the source
RESAMPLES = 1000


# ----------------------------------------------------------------------------------------------------------------
# Formulas


def parts_of(clusters: np.ndarray, *, seed: int) -> np.ndarray:
    """Return which part each point belongs to (TRAINING, CHOICE, REST), (n_points,): whole clusters, by keyed hash."""
    names, cluster = np.unique(clusters, return_inverse=True)
    order = sorted(range(len(names)), key=lambda i: key_of(seed, "maps", names[i]))
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    ends = [round(share * len(names)) for share in PARTS]
    return np.searchsorted(ends, place, side="right")[cluster]


class Ridge:
    """Ridge regressions from one cloud to any other, at every penalty: the decomposition of the source is shared.

    Args:
        source: (n_points, width).
        part: of ``parts_of``.
    """

    def __init__(self, source: np.ndarray, part: np.ndarray):
        self.part = part
        x = source - source[part == TRAINING].mean(0, dtype=np.float64)
        train = x[part == TRAINING]
        n_points, width = train.shape
        # Along the main axes of the training points a ridge only shrinks.
        if width <= n_points:
            variances, axes = np.linalg.eigh(train.T @ train)
        else:
            variances, vectors = np.linalg.eigh(train @ train.T)
            axes = train.T @ _divided(vectors, np.sqrt(np.maximum(variances, 0)))
        is_there = variances > variances.max(initial=0) * max(n_points, width) * np.finfo(np.float64).eps
        self.variances = variances[is_there]
        self.along = x @ axes[:, is_there]

    def misses(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Return how far the map misses each point of the rest, and how far the training mean does.

        Returns:
            (n_rest,) lengths each, and the place of the chosen penalty in ``PENALTIES``.
        """
        train, choice, rest = (self.part == part for part in (TRAINING, CHOICE, REST))
        y = target - target[train].mean(0, dtype=np.float64)
        crossed = self.along[train].T @ y[train]
        scale = self.variances.mean() if len(self.variances) else 1.0
        best, lowest = 0, np.inf
        for place, penalty in enumerate(PENALTIES):
            missed = self._predicted(choice, crossed, penalty * scale) - y[choice]
            squares = np.square(missed).sum()
            if squares < lowest:
                best, lowest = place, squares
        missed = self._predicted(rest, crossed, PENALTIES[best] * scale) - y[rest]
        return np.linalg.norm(missed, axis=-1), np.linalg.norm(y[rest], axis=-1), best

    def _predicted(self, rows: np.ndarray, crossed: np.ndarray, penalty: float) -> np.ndarray:
        return (self.along[rows] / (self.variances + penalty)) @ crossed


def _divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.divide(x, y, out=np.zeros(np.broadcast_shapes(x.shape, y.shape)), where=y > 0)


def diagonal_distance(errors: np.ndarray) -> np.ndarray:
    """Return the mean distance in relative depth between each layer and its best source.

    Args:
        errors: (..., n_sources, n_targets), layers 0..n of both.
    Returns:
        (...), 0 on the diagonal of relative depth; NaN where an error is undefined.
    """
    sources, targets = errors.shape[-2:]
    best = np.where(np.isnan(errors), np.inf, errors).argmin(-2) / max(sources - 1, 1)
    distance = np.abs(best - np.arange(targets) / max(targets - 1, 1)).mean(-1)
    return np.where(np.isnan(errors).any((-2, -1)), np.nan, distance)


def random_distance(sources: int, targets: int) -> float:
    """Return ``diagonal_distance`` if every best source were drawn at random: its expected value."""
    depth, other = np.linspace(0, 1, sources), np.linspace(0, 1, targets)
    return float(np.abs(depth[:, None] - other).mean())


# ----------------------------------------------------------------------------------------------------------------
# The stage


def aligned(one: Anchors, other: Anchors) -> tuple[Anchors, Anchors]:
    """Return the points that two models have in common, in the same order."""
    place = {key: i for i, key in enumerate(zip(other.sequence_ids.tolist(), other.positions.tolist()))}
    pairs = [
        (i, place[key]) for i, key in enumerate(zip(one.sequence_ids.tolist(), one.positions.tolist())) if key in place
    ]
    mine, theirs = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    return one.take(mine), other.take(theirs)


def compare(one: Anchors, other: Anchors, settings: Settings, *, seed: int) -> tuple[list[dict[str, object]], int]:
    """Return the GEOM rows of two models on the same points, and how many maps took the smallest or largest penalty."""
    rows = Rows(one, model_j=str(other.common["model_id"]))
    part = parts_of(one.clusters, seed=seed)
    rest = part == REST
    # Named so that their sorted order is their order here.
    named = {f"{i:09d}": cluster for i, cluster in enumerate(one.clusters[rest].tolist())}
    resamples = Bootstrap.of(named, n_boot=RESAMPLES, seed=seed)
    at_edge = 0
    stored = [[anchors.layer(layer) for layer in anchors.layers] for anchors in (one, other)]
    for space in settings.spaces:
        sources, targets = ([in_space(layer, space) for layer in layers] for layers in stored)
        _add_similarity(rows, sources, targets, one, space)
        missed = np.empty((len(sources), len(targets), int(rest.sum())))
        spread = np.empty_like(missed)
        for i, source in enumerate(sources):
            ridge = Ridge(source, part)
            for j, target in enumerate(targets):
                missed[i, j], spread[i, j], place = ridge.misses(target)
                at_edge += place in (0, len(PENALTIES) - 1)
        errors, resampled = resamples.ratios(missed, spread)
        n_rest = int(rest.sum())
        for i in range(len(sources)):
            for j in range(len(targets)):
                se = resampled[i, j].std(ddof=1)
                rows.add("map_error", errors[i, j], se, space=space, layers=(i, j), n_points=n_rest)
        distance = diagonal_distance(np.moveaxis(resampled, -1, 0))
        whole = {"space": space, "layers": (-1, -1), "n_points": n_rest}
        rows.add("map_diagonal", diagonal_distance(errors), distance.std(ddof=1), **whole)
        rows.add("map_diagonal_random", random_distance(len(sources), len(targets)), np.nan, **whole)
    return rows.rows, at_edge


def _add_similarity(
    rows: Rows, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], anchors: Anchors, space: str
) -> None:
    """Add CKA between the layers of both models."""
    n = len(sources)
    found = clouds.cka([*sources, *targets], anchors.groups, anchors.n_groups)
    for quantity, values in zip(("cka", "cka_biased"), found):
        value, se = clouds.jackknife(values[:, :n, n:])
        for i, j in np.ndindex(value.shape):
            rows.add(quantity, value[i, j], se[i, j], space=space, layers=(i, j), n_points=len(anchors))


def geometry_pairs(
    shallow: Sequence[str | Path],
    deep: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    *,
    settings: Settings = DEFAULT,
    seed: int = 1,
) -> int:
    """Write the GEOM table of two models from their stream tables; return its number of rows.

    Args:
        shallow, deep: the stream tables of all shards and variants of each model.
        clusters: the CLUSTERS table of the data set.
        seed: of the choice of points, of the parts and of the resamples.
    Raises:
        TableError: damaged tables, one model twice, or nothing that both models have in common.
        BootstrapError: a protein without a cluster.
    """
    known = read_clusters(clusters)
    options = {"points": settings.points, "max_points": settings.max_points, "n_groups": settings.groups, "seed": seed}
    views = [{_view(anchors): anchors for anchors in anchors_of(paths, known, **options)} for paths in (shallow, deep)]
    names = [next(iter(of_model.values())).common["model_id"] if of_model else "no model" for of_model in views]
    if names[0] == names[1]:
        raise TableError(f"both are tables of {names[0]}; give the tables of two models")
    common = [key for key in views[0] if key in views[1]]
    if not common:
        raise TableError(f"{names[0]} and {names[1]} have no view, null model and kind of points in common")
    progress = Progress(LOG, len(common), "clouds of all layers")
    rows: list[dict[str, object]] = []
    for key in common:
        one, other = aligned(views[0][key], views[1][key])
        n_parts = len(set(parts_of(one.clusters, seed=seed).tolist())) if len(one) else 0
        LOG.info(f"{', '.join(map(str, key))}: {len(one)} points in common, in {one.n_clusters} clusters")
        if len(one) < SMALLEST or n_parts < 3:
            LOG.warning("too few for training, choice and rest; left out")
        else:
            found, at_edge = compare(one, other, settings, seed=seed)
            rows += found
            n_maps = sum(row["quantity"] == "map_error" for row in found)
            LOG.info(f"{at_edge} of {n_maps} maps took the smallest or the largest penalty")
        progress.advance()
    progress.finish()
    if not rows:
        raise TableError(f"{names[0]} and {names[1]} have too few points in common; measure more proteins")
    n_rows = write_rows(rows, output, seed=seed)
    LOG.info(f"{n_rows} rows")
    return n_rows


def _view(anchors: Anchors) -> tuple:
    """Return what the views of two models are matched by; reading from N to C and clean inputs go together."""
    common = anchors.common
    direction = "backwards" if common["direction"] == "c2n" else "clean or forwards"
    return common["null_model"], common["null_seed"], common["condition"], direction, anchors.points


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m plm_depth.metrics.geometry_pairs", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--shallow", nargs="+", required=True, help="stream tables of the first model")
    parser.add_argument("--deep", nargs="+", required=True, help="stream tables of the second model")
    parser.add_argument("--clusters", required=True, help="CLUSTERS table of the data set")
    parser.add_argument("--settings", type=json_option, default={}, help="JSON, as of metrics.geometry")
    parser.add_argument("--seed", type=int, default=1, help="of points, parts and resamples")
    parser.add_argument("--output", required=True, help="the GEOM table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, BootstrapError, SettingsError):
        settings = Settings.of(options.settings)
        geometry_pairs(
            options.shallow, options.deep, options.clusters, options.output, settings=settings, seed=options.seed
        )


if __name__ == "__main__":
    main()
