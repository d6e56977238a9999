"""The predictions of every probe at every layer: residues, pairs of residues, proteins, and their controls (metrics G).

Folds, rows and control labels depend on the proteins and the seed alone, so that they are the same for every layer and
model. Controls use the penalties that the task itself chose.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.linear_model import LogisticRegression

from plm_depth.metrics import contacts, homology
from plm_depth.metrics.bootstrap import Bootstrap
from plm_depth.metrics.probing import (
    CAPACITY,
    INNER_FOLDS,
    PENALTIES,
    TOLERANCE,
    Nested,
    Notes,
    ProbeError,
    Scaling,
    Score,
    Split,
    best_layer,
    choose_penalty,
    cross_validated,
    fit_linear,
    folds_of,
    merged_groups,
    nested,
    scaled,
    scores,
    splits,
)
from plm_depth.metrics.residue_tasks import TASKS, Chain, Rows, control_labels, kmers, one_hot, permuted
from plm_depth.metrics.stream import DIRECTIONS, MEAN_POSITION, AttentionMaps, Stream, primary_view, vectors
from plm_depth.progress import Progress
from plm_depth.randomness import generator, key_of

LOG = logging.getLogger("metrics.probes")
PAIR_DIM = 64
FEW = 20  # chains that the probe of attention maps is fitted on, and its L1 penalty on the summed loss: as Rao et al.
RAO_PENALTY = 0.15
P_AT_L = tuple(f"p_at_l_{name}" for name in contacts.SEPARATIONS)
ALL_TASKS = (*TASKS, "contacts", "homology")
CONTROLS = ("perm", "kmer", "untrained", "onehot")
LEAST_CLUSTERS = 20  # of queries of homology: a bootstrap over fewer units says little
LEAST_SEEN = 50  # residues whose 3-mer the training rows hold, for the control task and its selectivity


@dataclass(frozen=True)
class Settings:
    """What is probed; see the module. ``None`` for a number of chains or residues takes all."""

    tasks: tuple[str, ...] = ("ss3", "homology")
    folds: int = 5
    residues: int | None = 64
    contact_chains: int | None = 100
    pairs: int = 400
    capacity: int = CAPACITY
    spaces: tuple[str, ...] = ("pca",)
    penalties: tuple[float, ...] = PENALTIES
    controls: tuple[str, ...] = CONTROLS
    directions: tuple[str, ...] = DIRECTIONS
    tolerance: float = TOLERANCE
    retention: tuple[float, ...] = (0.9, 0.95, 0.99)

    @classmethod
    def of(cls, text: str) -> "Settings":
        """Return settings from JSON.

        Raises:
            ProbeError: not an object, an unknown key, or a value that is none.
        """
        try:
            given = json.loads(text)
            unknown = set(given) - set(cls.__dataclass_fields__)
        except (ValueError, TypeError) as error:
            raise ProbeError(f"--settings: expected a JSON object, got {text!r} ({error})") from error
        if unknown:
            raise ProbeError(
                f"--settings: unknown {sorted(unknown)}; expected some of {list(cls.__dataclass_fields__)}"
            )
        found = cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
        allowed = {"tasks": ALL_TASKS, "controls": CONTROLS, "directions": DIRECTIONS, "spaces": ("pca", "full")}
        for key, choices in allowed.items():
            if wrong := [value for value in getattr(found, key) if value not in choices]:
                raise ProbeError(f"--settings: {key} {wrong}; expected some of {', '.join(choices)}")
        if not found.tasks or not found.penalties or min(found.penalties) <= 0:
            raise ProbeError("--settings: expected at least one task, and penalties above 0")
        return found

    def space_names(self) -> dict[str, int | None]:
        """Return the capacity of each space by its name in the tables."""
        names = {"pca": (f"pca{self.capacity}", self.capacity), "full": ("full", None)}
        return dict(names[space] for space in self.spaces)


@dataclass
class Curve:
    """Predictions (or values per protein) of one kind of probe at every layer.

    Attributes:
        columns: COMMON and PROBE_KEYS columns but the metric.
        metrics: scores to be given; with values per protein the one that they are.
        bootstrap: whose proteins ``owner`` counts.
        owner, fold: (n,) protein and test fold of each row.
        y: target; None where ``test`` holds values per protein.
        chance: of values per protein.
        asked: rows that are scored; None: all.
        known: proteins whose group (superfamily) is known, which folds keep whole.
        layers, test, valid: a layer each: (n, ...) predictions of probes that did not see the row's group.
        penalty, dim: a layer each, (n_folds,).
        n_train: (n_folds,).
    """

    columns: dict[str, object]
    metrics: Sequence[str]
    bootstrap: Bootstrap
    owner: np.ndarray
    fold: np.ndarray
    y: np.ndarray | None
    n_train: np.ndarray
    chance: float = math.nan
    asked: np.ndarray | None = None
    known: frozenset[str] = frozenset()
    layers: list[int] = field(default_factory=list)
    test: list[np.ndarray] = field(default_factory=list)
    valid: list[np.ndarray] = field(default_factory=list)
    penalty: list[np.ndarray] = field(default_factory=list)
    dim: list[np.ndarray] = field(default_factory=list)

    def add(self, layer: int, test: np.ndarray, valid: np.ndarray, penalty: np.ndarray, dim: np.ndarray) -> None:
        self.layers.append(layer)
        self.test.append(test)
        self.valid.append(valid)
        self.penalty.append(penalty)
        self.dim.append(dim)

    @property
    def rows(self) -> np.ndarray:
        """Return the rows that are scored."""
        return np.arange(len(self.owner)) if self.asked is None else self.asked

    def score(
        self,
        metric: str,
        predictions: Sequence[np.ndarray],
        *,
        rows: np.ndarray | None = None,
        resample: bool = True,
        bootstrap: Bootstrap | None = None,
    ) -> Score:
        """Return the score of each layer's predictions, of all rows or some; ``bootstrap``: other resamples."""
        stacked = np.stack(predictions)
        rows = self.rows if rows is None else rows
        bootstrap = (bootstrap or self.bootstrap) if resample else None
        if self.y is not None:
            return scores(metric, self.y[rows], stacked[:, rows], owner=self.owner[rows], bootstrap=bootstrap)
        values = np.full((len(stacked), len(self.bootstrap.sequence_ids)), np.nan)
        values[:, self.owner[rows]] = stacked[:, rows]
        if bootstrap is not None:
            return Score(*bootstrap.means(values), self.chance)
        defined = ~np.isnan(values)
        total = np.where(defined, values, 0).sum(1)
        mean = np.divide(total, defined.sum(1), out=np.full(len(total), np.nan), where=defined.any(1))
        return Score(mean, np.empty((len(values), 0)), self.chance)

    def selected(self, metric: str) -> Nested:
        """Return the test score with each fold at the layer that its validation rows chose, in every resample anew."""
        n_folds = int(self.fold.max()) + 1
        tests = [np.flatnonzero(self.fold == fold) for fold in range(n_folds)]
        # Fold k is tested by the probe whose validation rows are those of fold k + 1.
        choosers = [self.score(metric, self.valid, rows=tests[(fold + 1) % n_folds]) for fold in range(n_folds)]

        def at(places: np.ndarray, bootstrap: Bootstrap) -> Score:
            stitched = self.test[-1].copy()
            for place, rows in zip(places, tests, strict=True):
                stitched[rows] = self.test[place][rows]
            one = self.score(metric, [stitched], bootstrap=bootstrap)
            return Score(one.value[0], one.resampled[0])

        return nested(choosers, lambda scores: best_layer(scores, range(len(self.layers))), at, self.bootstrap)


@dataclass(frozen=True)
class Undefined:
    """A score that would say nothing: what there is too little of.

    Attributes:
        columns: COMMON and PROBE_KEYS columns.
        there, needed: clusters, or residues.
        n_rows, n_seq, n_cluster: behind it.
        known: proteins whose group is known.
    """

    columns: dict[str, object]
    there: int
    needed: int
    n_rows: int
    n_seq: int
    n_cluster: int
    known: int = 0


# ----------------------------------------------------------------------------------------------------------------
# Residues


@dataclass(frozen=True)
class ResiduePlan:
    """Rows, folds and controls of the tasks of residues: the same for every layer and model."""

    chains: Mapping[str, Chain]
    rows: Rows
    fold: np.ndarray
    group: np.ndarray
    n_folds: int
    bootstrap: Bootstrap
    owner: np.ndarray


def fold_of_chains(
    clusters: Mapping[str, str],
    groups: Mapping[str, str],
    sizes: Mapping[str, Sequence[float]],
    n_folds: int,
    seed: int,
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the fold and the group of each chain; a group joins similarity clusters and known superfamilies."""
    names = sorted(sizes)
    number = merged_groups([clusters[name] for name in names], [groups[name] for name in names])
    group = {name: names[first] for name, first in zip(names, number.tolist())}
    return folds_of(group, n_folds=n_folds, seed=seed, sizes=sizes), group


def residue_curves(
    stream: Stream, plan: ResiduePlan, settings: Settings, seed: int, notes: Notes, progress: Progress
) -> tuple[list[Curve], list[Undefined]]:
    """Return the curves of the tasks of residues, controls included.

    The control of 3-mers is scored on the residues whose 3-mer the training rows of their fold hold: the label of
    another cannot be known, whatever the probe (Hewitt and Liang 2019 give control labels to types, not to tokens).
    """
    rows, chains = plan.rows, plan.chains
    wanted = [task for task in settings.tasks if task in TASKS and rows.known(task).any()]
    for task in sorted(set(settings.tasks) & set(TASKS) - set(wanted)):
        LOG.warning(f"task {task}: no residue of the {len(chains)} chains has a label; left out")
    if not wanted:
        return [], []
    outer = splits(plan.fold, plan.n_folds)
    types = np.array(kmers(chains, rows))
    curves: dict[tuple, Curve] = {}
    undefined: list[Undefined] = []
    targets, seen = {}, {}
    representations = stream.representations(settings.directions)
    primary = primary_view(representations)
    for task in wanted:
        y = rows.targets[task]
        known = np.flatnonzero(rows.known(task))
        targets[task] = {"none": y[known]}
        if "perm" in settings.controls:
            targets[task]["perm"] = permuted(y[known], seed=seed, task=task)
        if "kmer" in settings.controls:
            seen[task] = seen_in_training(types[known], restricted(outer, rows.known(task)))
            if len(seen[task]) >= LEAST_SEEN:
                targets[task]["kmer"] = control_labels(types[known].tolist(), y[known], seed=seed, task=task)
            owner = plan.owner[known[seen[task]]]
            about = {"task": task, "space": next(iter(settings.space_names())), "control": "kmer"}
            about |= {"probe": _probe_of(task), "metric": TASKS[task].metrics[0]}
            n_seq, n_cluster = len(set(owner.tolist())), len(set(plan.bootstrap.cluster[owner].tolist()))
            there = f"3-mers of {len(seen[task])} of {len(known)} tested residues stand in their training rows"
            if len(seen[task]) < LEAST_SEEN:
                LOG.warning(f"task {task}, control kmer: undefined: {there}; {LEAST_SEEN} are needed")
                columns = {**stream.common, **primary.columns, **about}
                n = len(seen[task])
                undefined.append(Undefined(columns, n, LEAST_SEEN, n, n_seq, n_cluster))
            else:
                LOG.info(f"task {task}, control kmer: {there}; these are scored")

    def curve_of(key: tuple, columns: Mapping[str, object], task: str, control: str, space: str) -> Curve:
        known = rows.known(task)
        inner = restricted(outer, known)
        n_train = np.array([len(split.train) for split in inner])
        about = {"task": task, "space": space, "probe": _probe_of(task), "control": control}
        y = targets[task][control if control in targets[task] else "none"]
        return curves.setdefault(
            key,
            Curve(
                {**stream.common, **columns, **about},
                TASKS[task].metrics,
                plan.bootstrap,
                plan.owner[known],
                plan.fold[known],
                y,
                n_train,
                asked=seen[task] if control == "kmer" else None,
            ),
        )

    def fit(curve: Curve, layer: int, z: Sequence[np.ndarray], task: str, penalties) -> np.ndarray:
        known = rows.known(task)
        found = cross_validated(
            [one[known] for one in z],
            curve.y,
            plan.group[known],
            restricted(outer, known),
            kind=TASKS[task].kind,
            n_classes=TASKS[task].n_classes,
            penalties=penalties,
            seed=seed,
            notes=notes,
        )
        curve.add(layer, found.test, found.valid, found.penalty, found.dim)
        return found.penalty

    if "onehot" in settings.controls:
        z = scaled(one_hot(chains, rows), outer, capacity=None)
        for task in wanted:
            columns = {**representations[0].columns, **_NO_VIEW}
            fit(curve_of(("onehot", task), columns, task, "onehot", "full"), -1, z, task, settings.penalties)
    for layer, of, x in vectors(stream, representations, rows.names, rows.owner, rows.position):
        for space, capacity in settings.space_names().items():
            z = scaled(x, outer, capacity=capacity)
            for task in wanted:
                control = "untrained" if of.is_untrained else "none"
                key = (of.views, task, space)
                penalty = fit(
                    curve_of((*key, control), of.columns, task, control, space), layer, z, task, settings.penalties
                )
                if of.is_untrained or of.views != primary.views:
                    continue
                for control in (name for name in ("perm", "kmer") if name in targets[task]):
                    fit(curve_of((*key, control), of.columns, task, control, space), layer, z, task, penalty)
        progress.advance()
    return list(curves.values()), undefined


def seen_in_training(types: np.ndarray, outer: Sequence[Split]) -> np.ndarray:
    """Return the rows whose type stands among the training rows of the fold that tests them, sorted."""
    found = [split.test[np.isin(types[split.test], types[split.train])] for split in outer]
    return np.sort(np.concatenate(found))


def _probe_of(task: str) -> str:
    return "ridge" if TASKS[task].kind == "regression" else "logistic"


_NO_VIEW = {"null_model": "trained", "null_seed": -1, "direction": "none", "noise_t": math.nan, "mask_draw": -1}


def restricted(outer: Sequence[Split], keep: np.ndarray) -> list[Split]:
    """Return the outer folds on the kept rows, counted anew."""
    new = np.cumsum(keep) - 1

    def of(rows: np.ndarray) -> np.ndarray:
        return new[rows[keep[rows]]]

    return [Split(split.fold, of(split.train), of(split.valid), of(split.test)) for split in outer]


# ----------------------------------------------------------------------------------------------------------------
# Contacts


@dataclass(frozen=True)
class PairPlan:
    """Pairs of the chains: their residues, all pairs that are scored, and those that probes are fitted on."""

    names: list[str]
    owner: np.ndarray  # of residues
    position: np.ndarray
    start: np.ndarray  # first residue of each chain
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # i, j, touch of each chain, counted from its start
    train: list[np.ndarray]  # of each chain, the pairs to fit on
    fold: np.ndarray  # of chains
    group: np.ndarray  # of chains
    length: np.ndarray  # residues with coordinates


def pair_plan(
    chains: Mapping[str, Chain], fold: Mapping[str, int], group: Mapping[str, str], *, settings: Settings, seed: int
) -> PairPlan:
    """Return the pairs of at most ``contact_chains`` chains, those with the smallest hashes of (seed, chain).

    Up to ``settings.pairs`` contacts and as many other pairs of each chain are there to fit on.
    """
    long = [name for name in chains if chains[name].n_resolved > contacts.NEAREST]
    names = sorted(sorted(long, key=lambda name: key_of(seed, "contacts", name))[: settings.contact_chains])
    lengths = [len(chains[name].sequence) for name in names]
    pairs, train = [], []
    for name in names:
        i, j, touch = contacts.pairs_of(chains[name].cb)
        pairs.append((i, j, touch))
        draw = generator(seed, "contact_pairs", name)
        chosen = []
        for is_contact in (True, False):
            choice = np.flatnonzero(touch == is_contact)
            chosen.append(draw.choice(choice, size=min(settings.pairs, len(choice)), replace=False))
        train.append(np.sort(np.concatenate(chosen)))
    return PairPlan(
        list(names),
        np.repeat(np.arange(len(names)), lengths),
        np.concatenate([np.arange(n) for n in lengths]) if lengths else np.empty(0, np.int64),
        np.cumsum([0, *lengths[:-1]]) if lengths else np.empty(0, np.int64),
        pairs,
        train,
        np.array([fold[name] for name in names], np.int64),
        np.array([group[name] for name in names], str),
        np.array([chains[name].n_resolved for name in names], np.int64),
    )


def contact_curves(
    stream: Stream,
    plan: PairPlan,
    bootstrap: Bootstrap,
    settings: Settings,
    seed: int,
    notes: Notes,
    progress: Progress,
) -> list[Curve]:
    """Return the curves of contacts read off states, one for each class of separation."""
    representations = stream.representations(settings.directions)
    primary = primary_view(representations)
    n_folds = settings.folds
    if sorted(set(plan.fold.tolist())) != list(range(n_folds)):
        LOG.warning(f"task contacts: {len(plan.names)} chains do not fill {n_folds} folds; left out")
        return []
    outer = splits(plan.fold, n_folds)
    owner = bootstrap.index(plan.names)
    density = [contacts.densities(touch, j - i) for i, j, touch in plan.pairs]
    chance = {name: float(np.nanmean([d[name] for d in density])) for name in contacts.SEPARATIONS}
    curves: dict[tuple, Curve] = {}
    for layer, of, x in vectors(stream, representations, plan.names, plan.owner, plan.position):
        with_perm = "perm" in settings.controls and not of.is_untrained and of.views == primary.views
        penalty: dict[int, float] = {}
        for control in ("untrained",) if of.is_untrained else ("none", *(("perm",) if with_perm else ())):
            value = {which: np.full((len(plan.names), len(P_AT_L)), np.nan) for which in ("test", "valid")}
            chosen, dims, n_train = [], [], []
            for split in outer:
                is_train = np.isin(plan.owner, split.train)
                z = Scaling.of(x[is_train], capacity=PAIR_DIM)(x)
                fitted = _fit_pairs(z, plan, split, control, settings, seed, notes, penalty.get(split.fold))
                penalty.setdefault(split.fold, fitted[1])
                for which, members in (("test", split.test), ("valid", split.valid)):
                    for chain in members:
                        value[which][chain] = _precision(fitted[0], z, plan, chain)
                chosen.append(fitted[1])
                dims.append(2 * z.shape[1])
                n_train.append(fitted[2])
            for column, metric in enumerate(P_AT_L):
                key = (of.views, control, metric)
                about = {"task": "contacts", "space": f"pca{PAIR_DIM}", "probe": "logistic", "control": control}
                if key not in curves:
                    curves[key] = Curve(
                        {**stream.common, **of.columns, **about},
                        (metric,),
                        bootstrap,
                        owner,
                        plan.fold,
                        None,
                        np.array(n_train),
                        chance[metric.removeprefix("p_at_l_")],
                    )
                curves[key].add(
                    layer, value["test"][:, column], value["valid"][:, column], np.array(chosen), np.array(dims)
                )
        progress.advance()
    return list(curves.values())


def _fit_pairs(z, plan: PairPlan, split: Split, control: str, settings: Settings, seed, notes, penalty):
    """Return the fitted map, its penalty and the number of pairs it was fitted on."""
    parts, touches, groups = [], [], []
    for chain in split.train:
        i, j, touch = plan.pairs[chain]
        kept, start = plan.train[chain], plan.start[chain]
        parts.append(contacts.pair_features(z, start + i[kept], start + j[kept]))
        touches.append(touch[kept])
        groups.append(np.full(len(kept), plan.group[chain]))
    x, y, group = np.concatenate(parts), np.concatenate(touches).astype(np.int64), np.concatenate(groups)
    if control == "perm":
        y = permuted(y, seed=seed, task=f"contacts {split.fold}")
    options = {"kind": "classification", "n_classes": 2, "notes": notes}
    if penalty is None:
        penalty = choose_penalty(x, y, group, penalties=settings.penalties, n_inner=INNER_FOLDS, seed=seed, **options)
    return fit_linear(x, y, penalties=[penalty], **options)[0], penalty, len(y)


def _precision(linear, z: np.ndarray, plan: PairPlan, chain: int) -> list[float]:
    i, j, touch = plan.pairs[chain]
    start = plan.start[chain]
    score = linear(contacts.pair_features(z, start + i, start + j))[:, 1]
    found = contacts.precision_at_length(score, touch, j - i, int(plan.length[chain]))
    return [found[name] for name in contacts.SEPARATIONS]


def attention_curves(
    stream: Stream,
    maps: AttentionMaps,
    plan: PairPlan,
    bootstrap: Bootstrap,
    settings: Settings,
    progress: Progress,
) -> list[Curve]:
    """Return the curves of contacts read off the attention maps of each block alone (Rao et al. 2021).

    A logistic regression with an L1 penalty reads the corrected maps of all heads of a pair, standardised on training
    pairs (untrained maps are too small for a penalty on their own scale); it is fitted on at most FEW chains. Both
    directions of an autoregressive model side by side.
    """
    keep = [number for number, name in enumerate(plan.names) if name in maps.proteins]
    if sorted({int(plan.fold[number]) for number in keep}) != list(range(settings.folds)):
        LOG.warning(f"attention: maps of {len(keep)} chains do not fill {settings.folds} folds; left out")
        return []
    owner = bootstrap.index([plan.names[number] for number in keep])
    fold = plan.fold[keep]
    outer = splits(fold, settings.folds)
    density = [contacts.densities(touch, j - i) for i, j, touch in (plan.pairs[number] for number in keep)]
    chance = {name: float(np.nanmean([d[name] for d in density])) for name in contacts.SEPARATIONS}
    curves: dict[tuple, Curve] = {}
    for layer in maps.table.layers:
        matrix = maps.table.layer(layer)
        for of in (one for one in stream.representations(settings.directions) if maps.has(stream, one)):
            features_of = []
            for number in keep:
                name = plan.names[number]
                n = int((plan.owner == number).sum())
                present = np.zeros(n, bool)
                present[np.unique(np.r_[plan.pairs[number][0], plan.pairs[number][1]])] = True
                first, second = np.triu_indices(n, contacts.NEAREST)
                wanted = present[first] & present[second]
                slices = maps.rows(stream, of, name)
                features_of.append(np.concatenate([matrix[rows][wanted] for rows in slices], 1).astype(np.float64))
            value = {which: np.full((len(keep), len(P_AT_L)), np.nan) for which in ("test", "valid")}
            n_train = []
            for split in outer:
                few = split.train[:FEW]
                x = np.concatenate([features_of[chain][plan.train[keep[chain]]] for chain in few])
                y = np.concatenate([plan.pairs[keep[chain]][2][plan.train[keep[chain]]] for chain in few])
                model = LogisticRegression(C=1 / RAO_PENALTY, l1_ratio=1.0, solver="liblinear", random_state=0)
                scale = Scaling.of(x, capacity=None)
                model.fit(scale(x), y)
                n_train.append(len(y))
                for which, members in (("test", split.test), ("valid", split.valid)):
                    for chain in members:
                        i, j, touch = plan.pairs[keep[chain]]
                        score = model.decision_function(scale(features_of[chain]))
                        found = contacts.precision_at_length(score, touch, j - i, int(plan.length[keep[chain]]))
                        value[which][chain] = [found[name] for name in contacts.SEPARATIONS]
            control = "untrained" if of.is_untrained else "none"
            about = {"task": "contacts", "space": "heads", "probe": "attention", "control": control}
            for column, metric in enumerate(P_AT_L):
                columns = {**stream.common, **of.columns, **about}
                curve = curves.setdefault(
                    (of.views, metric),
                    Curve(
                        columns,
                        (metric,),
                        bootstrap,
                        owner,
                        fold,
                        None,
                        np.array(n_train),
                        chance[metric.removeprefix("p_at_l_")],
                    ),
                )
                penalty = RAO_PENALTY / np.array(n_train)
                dim = np.full(settings.folds, features_of[0].shape[1])
                curve.add(layer, value["test"][:, column], value["valid"][:, column], penalty, dim)
            progress.advance()
    return list(curves.values())


# ----------------------------------------------------------------------------------------------------------------
# Homology


def homology_folds(
    names: Sequence[str],
    groups: Sequence[str],
    parts: Sequence[str],
    clusters: Sequence[str],
    *,
    n_folds: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the fold of each protein of labelled families, and its unit; None where units are too few to part.

    A unit joins proteins of one part of a group and proteins of one similarity cluster; folds are made of whole units,
    so that neither a part nor a cluster is ever on two sides. Units without a query need no fold.

    Args:
        parts: as ``homology.parts_of``.
    Returns:
        (n,) fold; -1: trains in every fold; -2: never (its part is unknown, and may be one that is tested). (n,) unit.
    """
    known = [f"{group}\x1f{part}" if part else "" for group, part in zip(groups, parts, strict=True)]
    unit = merged_groups(known, clusters)
    is_query = homology.kinship(groups, parts, clusters)[0].any(1)
    inside = np.isin(unit, unit[is_query])
    classes, y = np.unique(groups, return_inverse=True)
    rows = np.flatnonzero(inside)
    n_folds = min(n_folds, len(np.unique(unit[rows])))
    if n_folds < 3:
        return None
    # Parts of one group go to different folds where they can: a part is found by what was learned of the others.
    sizes = {names[i]: np.eye(len(classes))[y[i]] for i in rows}
    fold_of = folds_of({names[i]: names[unit[i]] for i in rows}, n_folds=n_folds, seed=seed, sizes=sizes)
    asked_groups = set(np.asarray(groups)[is_query].tolist())
    fold = np.full(len(unit), -1)
    for i in range(len(unit)):
        if not parts[i] and groups[i] in asked_groups:
            fold[i] = -2
        elif inside[i]:
            fold[i] = fold_of[names[i]]
    return fold, unit


def homology_curves(
    stream: Stream,
    members: Sequence[tuple[str, str, str]],
    cluster_of: Mapping[str, str],
    settings: Settings,
    seed: int,
    n_boot: int,
    notes: Notes,
    progress: Progress,
) -> tuple[list[Curve], list[Undefined]]:
    """Return the curves of homology: retrieval among all members, logistic probes tested on unseen parts and clusters.

    Args:
        members: (sequence_id, group, part), sorted.
        cluster_of: similarity cluster of each member.
    """
    names = [name for name, _, _ in members]
    groups, clusters = [group for _, group, _ in members], [cluster_of[name] for name in names]
    parts = homology.parts_of(groups, [part for _, _, part in members], clusters)
    right, wrong = homology.kinship(groups, parts, clusters)
    query = np.flatnonzero(right.any(1))
    representations = stream.representations(settings.directions)
    primary = primary_view(representations)
    n_clusters = len({clusters[i] for i in query})
    LOG.info(
        f"task homology: {len(query)} of {len(names)} members have kin beyond their part and similarity cluster; they "
        f"are of {len({groups[i] for i in query})} groups, in {n_clusters} clusters"
    )
    found = homology_folds(names, groups, parts, clusters, n_folds=settings.folds, seed=seed)
    if n_clusters < LEAST_CLUSTERS or found is None:
        LOG.warning(
            f"task homology: undefined: too few clusters, {n_clusters} of those that ask; {LEAST_CLUSTERS} are needed, "
            "and three units of parts and clusters"
        )
        about = {"task": "homology", "space": "raw", "probe": "retrieval", "control": "none", "metric": "top1"}
        columns = {**stream.common, **primary.columns, **about}
        return [], [Undefined(columns, n_clusters, LEAST_CLUSTERS, len(query), len(query), n_clusters)]
    fold, unit = found
    n_folds = int(fold.max()) + 1
    outer = splits_beside(fold, n_folds)
    is_query = right.any(1)
    classes, y = np.unique(groups, return_inverse=True)
    bootstrap = Bootstrap.of({names[i]: clusters[i] for i in query}, n_boot=n_boot, seed=seed)
    owner = np.full(len(names), -1)
    owner[query] = bootstrap.index([names[i] for i in query])
    # A class that a fold's training rows lack cannot be said; such rows are no question.
    unanswerable = np.zeros(len(names), bool)
    for split in outer:
        for rows in (split.test, split.valid):
            unanswerable[rows] |= ~np.isin(y[rows], y[split.train])
    asked = is_query & ~unanswerable
    if n_left := int((is_query & unanswerable).sum()):
        LOG.info(f"task homology: {n_left} members whose group no other fold could teach are not asked (logistic)")
    shuffled = np.array(groups)[generator(seed, "perm", "homology").permutation(len(groups))]
    permuted_kin = homology.kinship(shuffled, parts, clusters)
    curves: dict[tuple, Curve] = {}
    position = np.full(len(names), MEAN_POSITION)
    for layer, of, x in vectors(stream, representations, names, np.arange(len(names)), position):
        control = "untrained" if of.is_untrained else "none"
        with_perm = "perm" in settings.controls and not of.is_untrained and of.views == primary.views
        for space, z in (("raw", x), ("centred", x - x.mean(0))):
            kinds = [(control, right, wrong)] + ([("perm", *permuted_kin)] if with_perm else [])
            for name, *kin in kinds:
                found = homology.retrieve(z, *kin)
                for metric, values in (("top1", found.top1), ("first_error", found.first_error)):
                    key = (of.views, space, name, metric)
                    about = {"task": "homology", "space": space, "probe": "retrieval", "control": name}
                    if key not in curves:
                        chance = float(np.nanmean(found.chance)) if metric == "top1" else math.nan
                        curves[key] = Curve(
                            {**stream.common, **of.columns, **about},
                            (metric,),
                            bootstrap,
                            owner[query],
                            fold[query],
                            None,
                            np.zeros(n_folds, np.int64),
                            chance,
                        )
                    nothing = np.full(n_folds, np.nan)
                    curves[key].add(layer, values[query], values[query], nothing, np.full(n_folds, x.shape[1]))
        if len(np.unique(y[asked])) > 1:
            for space, capacity in settings.space_names().items():
                z = scaled(x, outer, capacity=capacity)
                options = {"kind": "classification", "n_classes": len(classes), "seed": seed, "notes": notes}
                found = cross_validated(z, y, unit, outer, penalties=settings.penalties, **options)
                key = (of.views, space, control, "logistic")
                about = {"task": "homology", "space": space, "probe": "logistic", "control": control}
                if key not in curves:
                    curves[key] = Curve(
                        {**stream.common, **of.columns, **about},
                        ("accuracy", "macro_f1"),
                        bootstrap,
                        owner[asked],
                        fold[asked],
                        y[asked],
                        found.n_train,
                    )
                curves[key].add(layer, found.test[asked], found.valid[asked], found.penalty, found.dim)
        progress.advance()
    return list(curves.values()), []


def splits_beside(fold: np.ndarray, n_folds: int) -> list[Split]:
    """Return the outer folds as ``probing.splits``; rows of fold -1 always train, those of -2 never do."""
    inside = np.flatnonzero(fold >= 0)
    always = np.flatnonzero(fold == -1)
    return [
        Split(s.fold, np.sort(np.r_[inside[s.train], always]), inside[s.valid], inside[s.test])
        for s in splits(fold[inside], n_folds)
    ]
