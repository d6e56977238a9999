"""Which layer of a model serves a user's labels: a probe on every layer, the layers that are as good, the shallowest.

    python -m plm_depth.metrics.choice --labels P --stream P --clusters P --name N --settings JSON --resamples N
        --seed N --output choice.parquet

The protocol is that of ``metrics.probing``: folds of whole clusters (or the user's split), features scaled on training
rows, one grid of penalties for all layers, intervals by the cluster bootstrap. Beside the linear probe stands the mean
of the k nearest training rows.

The layer is chosen on rows that the probe did not see (side "valid"); the curve beside it is that of side "test". With
folds every row is once on either side, so that both curves say much the same. *As good* are the layers whose score is
at least the best minus ``tolerance`` times its size; of these the shallowest is recommended, as it costs least. How
much to trust that is told by resampling the clusters: the share of resamples in which the recommended layer is among
the as good ones of that resample. Wider than this plateau may be the set of layers that the data cannot tell from the
best at all (``is_tied``); both are in the table.

What the recommendation is worth is another question: on the labels that chose it, the chosen layer scores too well (the
best of many, by luck). Side "nested" answers it: every part of the labels is scored at the layer that other labels
chose, by probes that saw neither: with folds, fold k at the layer that fold k + 1 chose; with the user's split, test at
the layer that valid chose; where that split has only one of them, each half of its clusters at the layer that the other
half chose. The choice is repeated in every resample (``probing.nested``). Chosen by fewer labels than the recommended
one, such layers are a little worse on average, never better by luck. Side "nested_cut" is the same for the depth of a
truncated checkpoint, which has at least one block.
"""

import argparse
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors

from plm_depth.metrics.bootstrap import Bootstrap, BootstrapError, interval
from plm_depth.metrics.probing import (
    CAPACITY,
    PENALTIES,
    Notes,
    ProbeError,
    Score,
    Split,
    check_target,
    cross_validated,
    folds_of,
    nested,
    plateau,
    scaled,
    scores,
    shallowest,
    splits,
)
from plm_depth.progress import Progress, start_log
from plm_depth.tables import (
    CHOICE,
    CLUSTERS,
    LABELS,
    STREAM_KEYS,
    TableError,
    VectorTable,
    read_metadata,
    read_table,
    write_table,
)

METRICS = {
    "regression": ("spearman", "pearson", "r2"),
    "classification": ("mcc", "accuracy", "macro_f1"),
    "multi-label": ("macro_auprc",),
}
PROBES = ("linear", "knn")
DIRECTIONS = ("n2c", "c2n", "both")
SIDES = ("train", "valid", "test")
NESTED = {"nested": 0, "nested_cut": 1}  # sides of the score of a choice, and the shallowest layer that it may choose
LEAST_TESTED = 5


class ChoiceError(ValueError):
    """Labels and features from which no layer can be chosen; says what was expected and what came."""


@dataclass(frozen=True)
class Settings:
    """How layers are compared.

    Attributes:
        folds: of whole clusters, where the user does not split.
        probes: of ``PROBES``; the first one decides.
        neighbours: of the knn probe.
        tolerance: share of the best score within which layers are as good.
        capacity: principal components that the linear probe reads; None: the whole stream.
        penalties: grid of the linear probe.
        direction: of autoregressive models: n2c, c2n, or both (one after the other).
    """

    folds: int = 5
    probes: tuple[str, ...] = PROBES
    neighbours: int = 10
    tolerance: float = 0.02
    capacity: int | None = CAPACITY
    penalties: tuple[float, ...] = PENALTIES
    direction: str = "n2c"

    @classmethod
    def of(cls, text: str) -> "Settings":
        """Return the settings of a JSON object with any of the attributes.

        Raises:
            ChoiceError: not such an object, or a value that cannot be.
        """
        try:
            given = json.loads(text)
            found = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ChoiceError(
                f"--settings {text!r}: expected a JSON object of {cls.__doc__.split()[0]}: {error}"
            ) from error
        if found.folds < 3 or found.neighbours < 1 or not 0 <= found.tolerance < 1 or not found.penalties:
            raise ChoiceError(
                f"--settings {text}: expected at least 3 folds, 1 neighbour and 1 penalty, and a tolerance in [0, 1)"
            )
        if not found.probes or set(found.probes) - set(PROBES) or found.direction not in DIRECTIONS:
            raise ChoiceError(
                f"--settings {text}: expected probes of {', '.join(PROBES)}, and a direction of {', '.join(DIRECTIONS)}"
            )
        return found


@dataclass(frozen=True)
class Task:
    """Labels, a row each.

    Attributes:
        kind: of the table, with residue- before it for labels of residues.
        names, classes: of labels and classes.
        sequence_ids, positions: (n,) where the features of each row are.
        y: target as ``probing.check_target`` gives it: (n,) or (n, k).
        split, group: (n,) the user's, "" where there is none.
        left_out: rows of the user's table by reason.
    """

    kind: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    sequence_ids: np.ndarray
    positions: np.ndarray
    y: np.ndarray
    split: np.ndarray
    group: np.ndarray
    left_out: dict[str, int]

    def take(self, rows: np.ndarray) -> "Task":
        """Return some of the rows (a mask)."""
        names = ("sequence_ids", "positions", "y", "split", "group")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def target(self) -> str:
        """Return the kind of the target: regression, classification or multi-label."""
        return self.kind.removeprefix("residue-")

    @property
    def n_classes(self) -> int | None:
        return len(self.classes) or None


def read_task(path: str | Path) -> Task:
    """Return the labels of a LABELS table.

    Raises:
        TableError: not such a table.
    """
    table, about = read_table(path, LABELS), read_metadata(path)
    try:
        kind = about["kind"]
        names, classes = (tuple(json.loads(about[key])) for key in ("names", "classes"))
        left_out = json.loads(about["left_out"])
    except (KeyError, json.JSONDecodeError) as error:
        raise TableError(f"{path}: no labels of sequences.labels ({error}); delete it and run again") from error
    ids, positions, split, group, value, label = (
        table.column(name).to_numpy() for name in ("sequence_id", "position", "split", "group", "value", "label")
    )
    if kind == "multi-label":  # a row a protein and label, the labels of a protein together
        k = len(names)
        if len(value) % k or (label.reshape(-1, k) != np.array(names, object)).any():
            raise TableError(f"{path}: labels of a protein are not together; delete it and run again")
        value = value.reshape(-1, k)
        ids, positions, split, group = (column[::k] for column in (ids, positions, split, group))
    y = check_target(value, kind.removeprefix("residue-"), len(classes) or None)
    return Task(kind, names, classes, ids.astype(str), positions, y, split.astype(str), group.astype(str), left_out)


# ----------------------------------------------------------------------------------------------------------------
# Sides


@dataclass(frozen=True)
class Sides:
    """How rows are parted.

    Attributes:
        outer: folds; one if the user's split is fixed.
        groups: (n,) cluster of each row.
        how: in words.
        is_shared: whether the same rows choose the layer and score it, with the same probe.
        parts: (chooser, scored) rows of each part of the nested score; none where nothing can be parted.
        how_nested: who chooses for whom, in words.
        notes: what a reader should know.
    """

    outer: list[Split]
    groups: np.ndarray
    how: str
    is_shared: bool
    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    how_nested: str
    notes: tuple[str, ...]


def sides_of(task: Task, clusters: Mapping[str, str] | None, *, n_folds: int, seed: int) -> Sides:
    """Return the folds of a task: the user's split, or folds of whole clusters.

    Args:
        clusters: cluster of each protein; None where the labels bring their own.
    Raises:
        ChoiceError: proteins without a cluster, or too few clusters or rows to part.
    """
    if (task.group != "").all():
        groups = task.group
    elif clusters is None:
        raise ChoiceError("labels without clusters and no table of clusters; give --clusters")
    else:
        missing = sorted(set(task.sequence_ids.tolist()) - set(clusters))
        if missing:
            raise ChoiceError(f"{len(missing)} proteins have no cluster, the first {missing[0]!r}; clusters of others?")
        groups = np.array([clusters[name] for name in task.sequence_ids.tolist()])
    names = sorted(set(task.split.tolist()))
    notes = []
    is_shared = False
    if names == [""]:
        how = f"{n_folds} folds of whole clusters"
        cluster_of = dict(zip(task.sequence_ids.tolist(), groups.tolist()))
        try:
            fold_of = folds_of(cluster_of, n_folds=n_folds, seed=seed, sizes=_balance(task))
            outer = splits(np.array([fold_of[name] for name in task.sequence_ids.tolist()]), n_folds)
        except ProbeError as error:
            raise ChoiceError(
                f"{error}. Clusters come from sequence similarity or from a column of the table: raise the identity "
                "from which proteins are relatives, name a column (cluster: position, for variants of one protein), or "
                "split yourself"
            ) from error
    elif set(names) <= set(SIDES):
        at = {side: np.flatnonzero(task.split == side) for side in SIDES}
        is_shared = not (len(at["valid"]) and len(at["test"]))
        valid, test = (at[one] if len(at[one]) else at[other] for one, other in (("valid", "test"), ("test", "valid")))
        how = "the user's " + ", ".join(f"{side} ({len(at[side])})" for side in SIDES if len(at[side]))
        if is_shared:
            notes.append(
                "the same rows choose the layer and score it: the split has no rows of both valid and test, so that "
                "every layer's score is of the rows that chose"
            )
        outer = [Split(0, at["train"], valid, test)]
    else:
        how = f"the user's {len(names)} folds"
        code = {name: i for i, name in enumerate(names)}
        outer = splits(np.array([code[name] for name in task.split.tolist()]), len(names))
    if names != [""]:
        sides = defaultdict(set)
        for group, side in zip(groups.tolist(), task.split.tolist()):
            sides[group].add(side)
        if parted := sum(len(one) > 1 for one in sides.values()):
            notes.append(
                f"{parted} of {len(sides)} clusters of similar proteins stand on several sides of the user's split: "
                "scores tell how well relatives of known proteins are predicted, not new ones"
            )
    least = min(min(len(one.valid), len(one.test), len(one.train)) for one in outer)
    if least < LEAST_TESTED:
        raise ChoiceError(
            f"{how}: a side has {least} rows; expected at least {LEAST_TESTED}: give more rows or fewer folds"
        )
    notes += _absent(task, outer, groups)
    parts, how_nested = _parts(task, groups, outer, is_shared=is_shared, seed=seed)
    if not parts:
        notes.append(how_nested)
    return Sides(outer, groups, how, is_shared, parts, how_nested, tuple(notes))


def _parts(
    task: Task, groups: np.ndarray, outer: Sequence[Split], *, is_shared: bool, seed: int
) -> tuple[tuple[tuple[np.ndarray, np.ndarray], ...], str]:
    """Return (chooser, scored) rows of each part of the nested score, and in words who chooses for whom."""
    if len(outer) > 1:
        return tuple((one.valid, one.test) for one in outer), "each fold at the layer that another fold chose"
    rows = outer[0].valid
    if not is_shared:
        return ((rows, outer[0].test),), "the test rows at the layer that the valid rows chose"
    # One probe, which saw none of these rows: halves of them are as good as two sides.
    cluster_of = dict(zip(task.sequence_ids[rows].tolist(), groups[rows].tolist()))
    try:
        half_of = folds_of(cluster_of, n_folds=2, seed=seed, sizes=_balance(task))
    except ProbeError:
        return (), "all rows that score are in one cluster, so that none of them can choose a layer for the others"
    half = np.array([half_of[name] for name in task.sequence_ids[rows].tolist()])
    first, second = rows[half == 0], rows[half == 1]
    return ((first, second), (second, first)), "each half of the clusters at the layer that the other half chose"


def _balance(task: Task) -> dict[str, np.ndarray]:
    """Return what of each protein is to be balanced over folds: its rows of each class or label, or its rows."""
    if task.target == "classification":
        of_row = np.eye(len(task.classes))[task.y]
    else:
        of_row = task.y.astype(float) if task.target == "multi-label" else np.ones((len(task.y), 1))
    names, code = np.unique(task.sequence_ids, return_inverse=True)
    sums = np.zeros((len(names), of_row.shape[1]))
    np.add.at(sums, code, of_row)
    return dict(zip(names.tolist(), sums))


def _absent(task: Task, outer: Sequence[Split], groups: np.ndarray) -> list[str]:
    """Return notes on classes that no probe can learn: absent from the training rows of a fold that tests them."""
    if task.target != "classification":
        return []
    unknown, rows = set(), 0
    for split in outer:
        here = np.isin(task.y[split.test], task.y[split.train], invert=True)
        unknown |= set(task.y[split.test][here].tolist())
        rows += int(here.sum())
    if not unknown:
        return []
    single = sum(len(set(groups[task.y == code].tolist())) == 1 for code in unknown)
    named = ", ".join(task.classes[code] for code in sorted(unknown)[:6]) + (", ..." if len(unknown) > 6 else "")
    return [
        f"{rows} of {len(task.y)} rows are tested by a probe that saw no row of their class ({len(unknown)} classes: "
        f"{named}; {single} of them in one cluster only): they are always wrong, at every layer"
    ]


# ----------------------------------------------------------------------------------------------------------------
# Features


class Features:
    """The rows of one stream table that belong to the rows of a task, a layer at a time.

    Args:
        path: vector table of ``activations.embed``.
        task: its labels.
        direction: for autoregressive models: n2c, c2n or both.
    """

    def __init__(self, path: str | Path, task: Task, *, direction: str = "n2c"):
        self.table = VectorTable(path, STREAM_KEYS)
        self.layers, self.constants = self.table.layers, self.table.constants
        keys = self.table.keys()
        column = {name: keys.column(name).to_numpy() for name in ("null_model", "condition", "noise_t", "direction")}
        usable = (column["null_model"] == "trained") & (column["condition"] == "seq")
        usable &= ~(column["noise_t"] > 0)  # clean, or NaN of autoregressive models
        there = set(column["direction"][usable].tolist())
        wanted = ["none"] if "none" in there else ["n2c", "c2n"] if direction == "both" else [direction]
        if there == {"n2c"} and direction == "both":
            wanted = ["n2c"]  # a family that reads in one direction only
        ids, positions = keys.column("sequence_id").to_numpy(), keys.column("position").to_numpy()
        self.path, self.wanted = Path(path), list(zip(task.sequence_ids.tolist(), task.positions.tolist()))
        self._rows = []
        for one in wanted:
            at = np.flatnonzero(usable & (column["direction"] == one))
            place = dict(zip(zip(ids[at].tolist(), positions[at].tolist()), at.tolist()))
            self._rows.append(np.array([place.get(key, -1) for key in self.wanted]))
        self.directions = tuple(wanted)

    @property
    def is_there(self) -> np.ndarray:
        """Return which labels have features, (n,) bool."""
        return np.all([rows >= 0 for rows in self._rows], axis=0)

    def check(self) -> None:
        """Refuse labels without features.

        Raises:
            ChoiceError: naming the first.
        """
        if not self.is_there.all():
            missing = np.flatnonzero(~self.is_there)
            raise ChoiceError(
                f"{self.path}: no features of {len(missing)} of {len(self.wanted)} labels (direction "
                f"{' and '.join(self.directions)}), the first {self.wanted[missing[0]]}; embed the proteins of these "
                "labels, with residues where labels are of residues (which a model whose tokens hold several residues "
                "cannot: leave it out)"
            )

    def __call__(self, layer: int) -> np.ndarray:
        """Return the features of one layer, (n, d) float32."""
        vectors = self.table.layer(layer)
        return np.concatenate([vectors[rows] for rows in self._rows], axis=1).astype(np.float32)


def nearest(
    features: Sequence[np.ndarray],
    y: np.ndarray,
    outer: Sequence[Split],
    *,
    kind: str,
    k: int,
    n_classes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions of all rows on the test and on the validation side: means over the k nearest training rows.

    Args:
        features: scaled features, one entry per outer fold (``probing.scaled``).
        y: target; classes become shares among the neighbours.
        k: neighbours; all training rows where there are fewer.
    """
    one_hot = np.eye(n_classes)[y] if kind == "classification" else y.astype(np.float64)
    test, valid = np.full(one_hot.shape, np.nan), np.full(one_hot.shape, np.nan)
    for split, z in zip(outer, features, strict=True):
        z = z.astype(np.float32)
        found = NearestNeighbors(n_neighbors=min(k, len(split.train))).fit(z[split.train])
        for side, rows in ((test, split.test), (valid, split.valid)):
            side[rows] = one_hot[split.train][found.kneighbors(z[rows], return_distance=False)].mean(1)
    return test, valid


# ----------------------------------------------------------------------------------------------------------------
# The choice


def predictions(
    features: Features, task: Task, sides: Sides, settings: Settings, *, seed: int, log: logging.Logger
) -> dict[str, dict[str, np.ndarray]]:
    """Return predictions of all layers by probe and side, (n_layers, n, ...), NaN for rows that are not on a side."""
    options = {"kind": task.target, "n_classes": task.n_classes}
    found: dict[str, dict[str, list]] = {probe: {"test": [], "valid": []} for probe in settings.probes}
    notes = Notes()
    progress = Progress(log, len(features.layers), "layers")
    for layer in features.layers:
        x = features(layer)
        for probe in settings.probes:
            if probe == "linear":
                fitted = cross_validated(
                    scaled(x, sides.outer, capacity=settings.capacity),
                    *(task.y, sides.groups, sides.outer),
                    penalties=settings.penalties,
                    seed=seed,
                    notes=notes,
                    **options,
                )
                test, valid = fitted.test, fitted.valid
            else:
                whole = scaled(x, sides.outer, capacity=None)
                test, valid = nearest(whole, task.y, sides.outer, k=settings.neighbours, **options)
            found[probe]["test"].append(test)
            found[probe]["valid"].append(valid)
        progress.advance()
    progress.finish()
    log.info("linear probes: %s", notes)
    return {probe: {side: np.stack(parts) for side, parts in both.items()} for probe, both in found.items()}


def judged(
    name: str,
    about: Mapping[str, object],
    layers: Sequence[int],
    task: Task,
    sides: Sides,
    predicted: Mapping[str, Mapping[str, np.ndarray]],
    settings: Settings,
    *,
    n_boot: int,
    seed: int,
) -> tuple[dict[str, object], list[int]]:
    """Return the columns of CHOICE of one model, and the layer that each part of the nested score was scored at.

    The layers are those of the deciding probe and metric; none where nothing could be parted.

    Args:
        about: what is constant over the model (``VectorTable.constants``).
        predicted: see ``predictions``.
    """
    cluster_of = dict(zip(task.sequence_ids.tolist(), sides.groups.tolist()))
    seen = np.unique(np.concatenate([np.r_[one.valid, one.test] for one in sides.outer]))
    # One set of resamples for both sides: where the rows are the same, so are their weights.
    bootstrap = Bootstrap.of(
        {one: cluster_of[one] for one in task.sequence_ids[seen].tolist()}, n_boot=n_boot, seed=seed
    )
    parts, chosen_by_parts = [], []
    for probe, both in predicted.items():
        for metric in METRICS[task.target]:
            recommended = None
            is_primary = probe == settings.probes[0] and metric == METRICS[task.target][0]
            for side in ("valid", "test"):  # chosen on the first, marked on both
                rows = np.flatnonzero(~np.isnan(both[side][0]).reshape(len(task.y), -1).any(1))
                owner = bootstrap.index(task.sequence_ids[rows].tolist())
                score = scores(metric, task.y[rows], both[side][:, rows], owner=owner, bootstrap=bootstrap)
                value, resampled = score.value, score.resampled
                if np.isnan(value).all():
                    raise ChoiceError(
                        f"{metric} of the {probe} probe is undefined at every layer: predictions or labels of the "
                        f"{side} rows are constant"
                    )
                if recommended is None:
                    recommended = shallowest(value, layers, tolerance=settings.tolerance)
                best = int(np.nanargmax(value))
                low, high, n_defined = interval(resampled)
                below_low, below_high, _ = interval(resampled[best] - resampled)
                over_low, over_high, _ = interval(resampled - resampled[-1])
                by_resample = resampled.T
                defined = ~np.isnan(by_resample).all(1)
                within = plateau(by_resample[defined], tolerance=settings.tolerance).mean(0)
                chosen = shallowest(by_resample[defined], layers, tolerance=settings.tolerance)
                counted = {"chance": score.chance, "n_rows": len(rows), "n_cluster": _n_clusters(bootstrap, owner)}
                parts.append(
                    {
                        "probe": probe,
                        "metric": metric,
                        "side": side,
                        "layer": np.asarray(layers),
                        "value": value,
                        "ci_lo": low,
                        "ci_hi": high,
                        "below_best": value[best] - value,
                        "below_lo": below_low,
                        "below_hi": below_high,
                        "over_last": value - value[-1],
                        "over_last_lo": over_low,
                        "over_last_hi": over_high,
                        "in_plateau": plateau(value, tolerance=settings.tolerance),
                        "is_tied": below_low <= 0,
                        "share_within": within,
                        "share_chosen": np.array([(chosen == layer).mean() for layer in layers]),
                        "is_recommended": np.asarray(layers) == recommended,
                        "is_primary": is_primary,
                        "n_boot": n_defined,
                        **counted,
                    }
                )
            for side in NESTED if is_primary else ("nested",):
                found, places = _nested(metric, task, layers, both, sides, bootstrap, settings, side)
                parts.append({**dict.fromkeys(parts[-1], np.nan), **_NO_LAYER, **counted, **found})
                parts[-1] |= {"probe": probe, "metric": metric, "side": side, "is_primary": is_primary}
                if is_primary and side == "nested":
                    chosen_by_parts = [int(layers[place]) for place in places]
    columns = {
        key: np.concatenate(
            [np.full(len(part["layer"]), part[key]) if np.isscalar(part[key]) else part[key] for part in parts]
        )
        for key in parts[0]
    }
    constant = {key: about[key] for key in ("model_id", "family", "objective", "n_blocks")}
    return {"choice": name, "kind": task.kind, "tolerance": settings.tolerance, **constant, **columns}, chosen_by_parts


# What a row of a nested score has in the columns that tell of a layer.
_NO_LAYER = {"layer": np.array([-1]), "in_plateau": False, "is_tied": False, "is_recommended": False}


def _nested(
    metric: str,
    task: Task,
    layers: Sequence[int],
    both: Mapping[str, np.ndarray],
    sides: Sides,
    bootstrap: Bootstrap,
    settings: Settings,
    side: str,
) -> tuple[dict[str, object], Sequence[int]]:
    """Return the values of a row of CHOICE, the score of a choice on labels that had no part in it; and the places.

    Args:
        side: of ``NESTED``.
    """
    if not sides.parts:
        return {"n_boot": 0}, ()
    rows = np.concatenate([part for _, part in sides.parts])
    owner = np.full(len(task.y), -1)
    for both_rows in sides.parts:
        for some in both_rows:
            owner[some] = bootstrap.index(task.sequence_ids[some].tolist())

    def scored(predictions: np.ndarray, rows: np.ndarray, resamples: Bootstrap) -> Score:
        return scores(metric, task.y[rows], predictions[:, rows], owner=owner[rows], bootstrap=resamples)

    def at(places: np.ndarray, resamples: Bootstrap) -> Score:
        stitched = both["test"][-1].copy()
        for place, (_, part) in zip(places, sides.parts, strict=True):
            stitched[part] = both["test"][place][part]
        one = scored(stitched[None], rows, resamples)
        return Score(one.value[0], one.resampled[0])

    def pick(values: np.ndarray) -> np.ndarray:
        return _picked(values, layers, tolerance=settings.tolerance, first=NESTED[side])

    choosers = [scored(both["valid"], chooser, bootstrap) for chooser, _ in sides.parts]
    found = nested(choosers, pick, at, bootstrap)
    last = scored(both["test"][-1:], rows, bootstrap)
    value, gain = found.value, found.value - last.value[0]
    low, high, n_defined = interval(found.resampled[None])
    over_low, over_high, _ = interval((found.resampled - last.resampled[0])[None])
    return {
        "value": value, "ci_lo": low, "ci_hi": high, "n_boot": n_defined, "over_last": gain, "over_last_lo": over_low,
        "over_last_hi": over_high, "n_rows": len(rows), "n_cluster": _n_clusters(bootstrap, owner[rows]),
    }, found.places  # fmt: skip


def _picked(values: np.ndarray, layers: Sequence[int], *, tolerance: float, first: int) -> np.ndarray:
    """Return the place of the shallowest layer from ``first`` on that is as good as the best, (n,) for (n, n_layers).

    Where none from there on is, the first of them, as ``cut_after``; NaN where all scores are.
    """
    allowed = np.asarray(layers) >= first
    inside = plateau(values, tolerance=tolerance) & allowed
    place = np.where(inside.any(1), inside.argmax(1), allowed.argmax()).astype(np.float64)
    return np.where(np.isnan(values).all(1), np.nan, place)


def _n_clusters(bootstrap: Bootstrap, owner: np.ndarray) -> int:
    return len(np.unique(bootstrap.cluster[owner]))


def cut_after(columns: Mapping[str, np.ndarray]) -> int:
    """Return how many blocks a checkpoint keeps: the shallowest layer from 1 on that is as good as the best, else 1.

    A checkpoint without blocks cannot be written, so that a recommended layer 0 is the one exception.

    Args:
        columns: of CHOICE, of one model.
    """
    deciding = columns["is_primary"] & (columns["side"] == "valid") & columns["in_plateau"] & (columns["layer"] > 0)
    return int(columns["layer"][deciding].min(initial=columns["layer"].max())) if deciding.any() else 1


def parted(task: Task, clusters: str | Path | None, settings: Settings, *, seed: int) -> Sides:
    """Return how the rows of a task are parted, by a CLUSTERS table where labels bring no groups; needs no features.

    Raises:
        ChoiceError, TableError: they cannot be.
    """
    cluster_of = None
    if clusters is not None:
        table = read_table(clusters, CLUSTERS)
        cluster_of = dict(zip(table.column("sequence_id").to_pylist(), table.column("cluster_id").to_pylist()))
    return sides_of(task, cluster_of, n_folds=settings.folds, seed=seed)


def choose(
    *,
    labels: str | Path,
    stream: str | Path,
    clusters: str | Path | None,
    name: str,
    settings: Settings,
    n_boot: int,
    seed: int,
    output: str | Path,
    log: logging.Logger,
) -> dict[str, np.ndarray]:
    """Write the CHOICE table of one model and one question, and return its columns.

    Args:
        labels, stream, clusters: tables LABELS, of ``activations.embed``, and CLUSTERS (None where labels have groups).
        name: of the question.
        n_boot: resamples of clusters.
        seed: of folds and resamples.
    Raises:
        ChoiceError, ProbeError, BootstrapError, TableError: nothing stands under the final name.
    """
    task = read_task(labels)
    kept = Features(stream, task, direction=settings.direction).is_there
    if task.kind.startswith("residue-") and kept.any() and not kept.all():  # of none: told below
        log.info("labels of %d of %d residues are used: those whose states were kept", kept.sum(), len(kept))
        task = task.take(kept)
    sides = parted(task, clusters, settings, seed=seed)
    features = Features(stream, task, direction=settings.direction)
    features.check()
    log.info("%s: %d labels (%s), %s", name, len(task.y), task.kind, sides.how)
    for note in sides.notes:
        log.warning(note)
    predicted = predictions(features, task, sides, settings, seed=seed, log=log)
    columns, chosen = judged(
        name, features.constants, features.layers, task, sides, predicted, settings, n_boot=n_boot, seed=seed
    )
    about = {
        "how": sides.how,
        "is_shared": int(sides.is_shared),
        "how_nested": sides.how_nested,
        "chosen": json.dumps(chosen),
        "notes": json.dumps(sides.notes),
        "left_out": json.dumps(task.left_out, sort_keys=True),
        "labels": json.dumps(task.names),
        "classes": json.dumps(task.classes),
        "n_proteins": len(set(task.sequence_ids.tolist())),
        "directions": json.dumps(features.directions),
        "cut_after": cut_after(columns),
        "norm": features.constants.get("norm", "none"),
    }
    write_table(columns, CHOICE, output, **about)
    decides = columns["is_primary"] & columns["is_recommended"] & (columns["side"] == "valid")
    log.info(
        "%s: layer %d of %d recommended; it is as good as the best in %.0f %% of %d resamples",
        *(name, columns["layer"][decides][0], columns["n_blocks"], 100 * columns["share_within"][decides][0], n_boot),
    )
    at = columns["is_primary"] & (columns["side"] == "nested")
    log.info(
        "%s: %s %.3f [%.3f, %.3f] with %s (layers %s)",
        *(name, columns["metric"][at][0], columns["value"][at][0], columns["ci_lo"][at][0], columns["ci_hi"][at][0]),
        *(sides.how_nested, ", ".join(map(str, chosen)) or "none"),
    )
    return columns


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.choice", description=__doc__.split("\n")[0])
    parser.add_argument("--labels", required=True, help="labels (LABELS)")
    parser.add_argument("--stream", required=True, help="features of every layer (activations.embed)")
    parser.add_argument("--clusters", help="clusters of the proteins (CLUSTERS), where the labels bring none")
    parser.add_argument("--name", required=True, help="of the question")
    parser.add_argument("--settings", default="{}", help="JSON: how layers are compared; see Settings")
    parser.add_argument("--resamples", type=int, default=2000, help="of clusters (default: %(default)s)")
    parser.add_argument("--seed", type=int, required=True, help="of folds and resamples")
    parser.add_argument("--output", required=True, help="the table (CHOICE)")
    options = parser.parse_args(argv)
    log = start_log("metrics.choice")
    try:
        choose(
            labels=options.labels,
            stream=options.stream,
            clusters=options.clusters,
            name=options.name,
            settings=Settings.of(options.settings),
            n_boot=options.resamples,
            seed=options.seed,
            output=options.output,
            log=log,
        )
    except (ChoiceError, ProbeError, BootstrapError, TableError, OSError) as error:
        raise SystemExit(f"choice: {error}") from error


if __name__ == "__main__":
    main()
