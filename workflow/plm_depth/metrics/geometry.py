"""Geometry of the stream of one model, layer by layer (metrics F): distances, similarity, dimension, neighbours.

    python -m plm_depth.metrics.geometry --stream P... --clusters P [--labels P] --settings JSON --seed N --output P

From the vectors that the passes kept of clean and autoregressive inputs, trained and untrained. Written is the table
GEOM, by view, kind of points (residues, pooled proteins) and space:

    angular            mean angle between the vectors of a point at two layers, over pi, 0 to 1
    cka, cka_biased    linear CKA of two layers, debiased and as first published
    two_nn_mle, two_nn_fit      intrinsic dimension by two estimates, at all points, a half and a quarter of them: it is
                       biased low in high dimensions, so compare at equal numbers only
    effective_rank, participation, top_share      how many directions the cloud fills
    anisotropy, anisotropy_centred      mean cosine of two points, and about the mean (zscore: always about it)
    overlap            share of common k nearest neighbours of a layer and the next, and of a layer and the last
    same_label         share of neighbours with the same label, pooled points, where labels are given, and what chance
                       gives (same_label_chance)

Errors are jackknife errors over groups of similarity clusters; those of dimension and neighbours hold the pool in which
neighbours were searched fixed. Formulas stand in ``clouds``, the choice of points in ``anchors``.
"""

import argparse
import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm_depth.metrics import clouds
from plm_depth.metrics.anchors import POINTS, SPACES, Anchors, anchors_of, in_space
from plm_depth.metrics.bootstrap import BootstrapError
from plm_depth.metrics.corpus import read_clusters
from plm_depth.metrics.options import json_option
from plm_depth.metrics.profile import sorted_rows
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import COMMON, GEOM, TableError, write_table

LOG = logging.getLogger("metrics.geometry")
SHARES = (1.0, 0.5, 0.25)  # of the points, for the intrinsic dimension
SMALLEST = 4  # points of a cloud of which anything is said


class SettingsError(ValueError):
    """Settings that make no sense; says what was expected."""


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        points: kinds of points.
        spaces: in which the clouds are looked at.
        max_points: most points of a cloud.
        spectrum_points: most points where the main axes are computed.
        k: neighbours.
        groups: jackknife groups.
    """

    points: tuple[str, ...] = POINTS
    spaces: tuple[str, ...] = SPACES
    max_points: int = 4096
    spectrum_points: int = 2048
    k: int = 10
    groups: int = 20

    @classmethod
    def of(cls, given: object) -> "Settings":
        """Return the settings that a parsed JSON object gives; what it lacks has its default.

        Raises:
            SettingsError: not an object, an unknown key, or a value out of range.
        """
        known = cls.__dataclass_fields__
        if not isinstance(given, Mapping) or set(given) - set(known):
            raise SettingsError(f"settings {given!r}; expected an object with some of the keys {', '.join(known)}")
        for name, choice in (("points", POINTS), ("spaces", SPACES)):
            value = given.get(name, list(choice))
            if not isinstance(value, list) or not value or not set(value) <= set(choice):
                raise SettingsError(f"{name} is {value!r}; expected a list of some of {', '.join(choice)}")
        for name, least in (("max_points", SMALLEST), ("spectrum_points", SMALLEST), ("k", 1), ("groups", 2)):
            value = given.get(name, least)
            if type(value) is not int or value < least:
                raise SettingsError(f"{name} is {value!r}; expected a whole number from {least} on")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


DEFAULT = Settings()


class Rows:
    """Rows of the GEOM table, collected one statistic at a time."""

    def __init__(self, anchors: Anchors, *, model_j: str | None = None):
        self.fixed = {**anchors.common, "points": anchors.points, "model_j": model_j or anchors.common["model_id"]}
        self.n_seq, self.n_cluster = anchors.n_sequences, anchors.n_clusters
        self.rows: list[dict[str, object]] = []

    def add(
        self,
        quantity: str,
        value: float,
        se: float,
        *,
        space: str,
        layers: tuple[int, int],
        n_points: int,
        n_nan: int = 0,
        share: float = 1.0,
        k: int = 0,
    ) -> None:
        """Add one number; ``layers`` are layer_i and layer_j, -1 for none."""
        self.rows.append(
            {
                **self.fixed,
                "quantity": quantity,
                "space": space,
                "layer_i": layers[0],
                "layer_j": layers[1],
                "share": share,
                "k": k,
                "value": float(value),
                "se": float(se),
                "n_points": int(n_points),
                "n_nan": int(n_nan),
                "n_seq": self.n_seq,
                "n_cluster": self.n_cluster,
            }
        )

    def add_matrix(self, quantity: str, values: np.ndarray, left_out: np.ndarray, *, space: str, n_points: int) -> None:
        """Add the upper triangle of (n_groups + 1, n_layers, n_layers) values and counts of points left out."""
        value, se = clouds.jackknife(values)
        for i, j in zip(*np.triu_indices(value.shape[-1])):
            n_nan = left_out[i, j]
            self.add(
                quantity,
                value[i, j],
                se[i, j],
                space=space,
                layers=(int(i), int(j)),
                n_points=n_points - n_nan,
                n_nan=n_nan,
            )


def measure(anchors: Anchors, settings: Settings, labels: Mapping[str, str] | None = None) -> list[dict[str, object]]:
    """Return the GEOM rows of one view, null model and kind of points.

    Args:
        labels: label by protein; proteins without one stay out of ``same_label``.
    """
    rows = Rows(anchors)
    stored = [anchors.layer(layer) for layer in anchors.layers]
    for space in settings.spaces:
        layers = [in_space(layer, space) for layer in stored]
        of_groups = (anchors.groups, anchors.n_groups)
        distances, undirected = clouds.angular_distances(layers, *of_groups)
        rows.add_matrix("angular", distances, undirected, space=space, n_points=len(anchors))
        nothing = np.zeros_like(undirected)
        for quantity, values in zip(("cka", "cka_biased"), clouds.cka(layers, *of_groups)):
            rows.add_matrix(quantity, values, nothing, space=space, n_points=len(anchors))
        found, same = [], []
        for layer, cloud in enumerate(layers):
            _add_spread(rows, cloud, layer, anchors, settings, space)
            nearest, equal = _add_dimension(rows, cloud, layer, anchors, settings, space)
            found.append(nearest)
            same.append(equal)
        _add_overlap(rows, found, same, anchors, settings, space)
        if labels is not None and anchors.points == "pooled":
            _add_labels(rows, layers, anchors, settings, space, labels)
    return rows.rows


def _add_spread(rows: Rows, cloud: np.ndarray, layer: int, anchors: Anchors, settings: Settings, space: str) -> None:
    """Add anisotropy and what the main axes tell."""
    at = {"space": space, "layers": (layer, -1)}
    centred = cloud - cloud.mean(0, dtype=np.float64)
    of_groups = (anchors.groups, anchors.n_groups)
    for quantity, one in (("anisotropy", cloud), ("anisotropy_centred", centred)):
        without = int(np.isnan(clouds.units(one)).any(-1).sum())
        value, se = clouds.jackknife(clouds.anisotropy(one, *of_groups))
        rows.add(quantity, value, se, **at, n_points=len(one) - without, n_nan=without)
    first = slice(0, settings.spectrum_points)
    part, groups = cloud[first], anchors.groups[first]
    _, groups = np.unique(groups, return_inverse=True)
    for quantity, values in clouds.spectrum(part, groups, int(groups.max()) + 1).items():
        value, se = clouds.jackknife(values)
        rows.add(quantity, value, se, **at, n_points=len(part), share=len(part) / len(cloud))


def _add_dimension(
    rows: Rows, cloud: np.ndarray, layer: int, anchors: Anchors, settings: Settings, space: str
) -> tuple[np.ndarray, np.ndarray]:
    """Add the intrinsic dimension; return the k nearest neighbours of all points, and which points coincide."""
    same = clouds.first_of_equal(cloud)
    distances, nearest = clouds.neighbours(cloud, min(max(settings.k, 2), len(cloud) - 1))
    unique = np.flatnonzero(same == np.arange(len(cloud)))
    for share in SHARES:
        part = unique[: int(share * len(unique))]
        n_equal = len(cloud) - len(unique)
        at = {"space": space, "layers": (layer, -1), "share": share, "n_points": len(part), "n_nan": n_equal}
        if len(part) < SMALLEST:
            estimates = dict.fromkeys(("two_nn_mle", "two_nn_fit"), np.full(1, np.nan))
        else:
            two = distances[:, :2] if len(part) == len(cloud) else clouds.neighbours(cloud[part], 2)[0]
            _, groups = np.unique(anchors.groups[part], return_inverse=True)
            estimates = clouds.two_nn(two, groups, int(groups.max()) + 1)
        for quantity, values in estimates.items():
            rows.add(quantity, *clouds.jackknife(values), **at)
    return nearest[:, : settings.k], same


def _add_overlap(
    rows: Rows,
    found: Sequence[np.ndarray],
    same: Sequence[np.ndarray],
    anchors: Anchors,
    settings: Settings,
    space: str,
) -> None:
    last = len(found) - 1
    without = [clouds.undefined_neighbours(equal, settings.k) for equal in same]
    pairs = sorted({pair for layer in range(last) for pair in ((layer, layer + 1), (layer, last))})
    for i, j in pairs:
        is_undefined = without[i] | without[j]
        if found[i].shape[1] < settings.k:  # fewer other points than neighbours asked for
            is_undefined[:] = True
        share = np.where(is_undefined, np.nan, clouds.shared_neighbours(found[i], found[j]))
        value, se = clouds.jackknife(clouds.left_out_means(share, anchors.groups, anchors.n_groups))
        n_nan = int(is_undefined.sum())
        n_points = len(anchors) - n_nan
        rows.add("overlap", value, se, space=space, layers=(i, j), n_points=n_points, n_nan=n_nan, k=settings.k)


def _add_labels(
    rows: Rows,
    layers: Sequence[np.ndarray],
    anchors: Anchors,
    settings: Settings,
    space: str,
    labels: Mapping[str, str],
) -> None:
    named = np.array([labels.get(name, "") for name in anchors.sequence_ids.tolist()])
    has_one = np.flatnonzero(named != "")
    if len(has_one) <= settings.k:
        return
    _, label = np.unique(named[has_one], return_inverse=True)
    _, groups = np.unique(anchors.groups[has_one], return_inverse=True)
    for layer, cloud in enumerate(layers):
        part = cloud[has_one]
        without = clouds.undefined_neighbours(clouds.first_of_equal(part), settings.k)
        share, chance = clouds.same_label(clouds.neighbours(part, settings.k)[1], label)
        values = clouds.left_out_means(np.where(without, np.nan, share), groups, int(groups.max()) + 1)
        n_nan = int(without.sum())
        at = {"space": space, "layers": (layer, -1), "k": settings.k, "n_points": len(part) - n_nan, "n_nan": n_nan}
        rows.add("same_label", *clouds.jackknife(values), **at)
        rows.add("same_label_chance", chance, np.nan, **at)


def geometry(
    stream: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    *,
    settings: Settings = DEFAULT,
    labels: str | Path | None = None,
    seed: int = 1,
) -> int:
    """Write the GEOM table of one model from its stream tables; return its number of rows.

    Args:
        stream: the stream tables of all shards and variants of the model.
        clusters: the CLUSTERS table of the data set.
        labels: tab- or comma-separated file with the columns sequence_id and label.
        seed: of the choice of points and of the jackknife groups.
    Raises:
        TableError: damaged tables, tables of several models, or no point at all.
        BootstrapError: a protein without a cluster.
        SettingsError: labels that cannot be read.
    """
    options = {"points": settings.points, "max_points": settings.max_points, "n_groups": settings.groups, "seed": seed}
    known = read_labels(labels) if labels is not None else None
    progress = Progress(LOG, None, "clouds of all layers")
    rows: list[dict[str, object]] = []
    for anchors in anchors_of(stream, read_clusters(clusters), **options):
        common = anchors.common
        what = f"{common['null_model']} {common['null_seed']}, {common['condition']}, {common['direction']}"
        if len(anchors) < SMALLEST:
            LOG.warning(f"{what}: {len(anchors)} {anchors.points} points, fewer than {SMALLEST}; left out")
            continue
        LOG.info(
            f"{what}: {len(anchors)} of {anchors.n_available} {anchors.points} points, {anchors.n_sequences} proteins "
            f"in {anchors.n_clusters} clusters"
        )
        if len(anchors) <= settings.k:
            LOG.warning(f"{len(anchors)} points have no {settings.k} nearest others: overlap is undefined")
        rows += measure(anchors, settings, known)
        progress.advance()
    progress.finish()
    if not rows:
        raise TableError(
            f"{stream[0]}: no cloud of {SMALLEST} points of the kinds {', '.join(settings.points)}; a model whose "
            "tokens hold several residues has pooled points only"
        )
    n_rows = write_rows(rows, output, seed=seed)
    n_undefined = sum(np.isnan(row["value"]) for row in rows)
    LOG.info(f"{n_rows} rows, {n_undefined} undefined (for instance neighbours where many points coincide)")
    return n_rows


def write_rows(rows: Sequence[Mapping[str, object]], output: str | Path, *, seed: int) -> int:
    """Write GEOM rows, sorted, whole or not at all; return their number."""
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    keys = ("model_j", "points", "space", "quantity", "share", "k", "layer_i", "layer_j")
    return write_table(sorted_rows(columns, (*COMMON, *keys)), GEOM, output, seed=str(seed))


def read_labels(path: str | Path) -> dict[str, str]:
    """Return the label of each protein from a tab- or comma-separated file with a header.

    Raises:
        SettingsError: no such file, no column sequence_id or label, a protein with two labels, or no row.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter="\t" if "\t" in head else ",")
            missing = {"sequence_id", "label"} - set(reader.fieldnames or [])
            if missing:
                raise SettingsError(f"{path}: no column {sorted(missing)}; expected sequence_id and label")
            found: dict[str, str] = {}
            for number, row in enumerate(reader, start=2):
                sequence_id, label = row["sequence_id"] or "", row["label"] or ""
                if found.setdefault(sequence_id, label) != label:
                    raise SettingsError(f"{path}, line {number}: {sequence_id} has two labels; give one a protein")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a readable table of labels ({error})") from None
    if not found:
        raise SettingsError(f"{path}: no row; expected a label for some proteins of the data set")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.geometry", description=__doc__.split("\n")[0])
    parser.add_argument("--stream", nargs="+", required=True, help="stream tables of all shards and variants")
    parser.add_argument("--clusters", required=True, help="CLUSTERS table of the data set")
    parser.add_argument("--labels", help="table with the columns sequence_id and label")
    parser.add_argument("--settings", type=json_option, default={}, help='JSON, for instance {"max_points": 2048}')
    parser.add_argument("--seed", type=int, default=1, help="of the points and the groups; the same for every model")
    parser.add_argument("--output", required=True, help="the GEOM table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, BootstrapError, SettingsError):
        settings = Settings.of(options.settings)
        files = {"labels": options.labels, "settings": settings, "seed": options.seed}
        geometry(options.stream, options.clusters, options.output, **files)


if __name__ == "__main__":
    main()
