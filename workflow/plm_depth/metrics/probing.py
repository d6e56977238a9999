"""Linear probes: folds that keep relatives together, one probe for one layer, its scores and which layers are as good.

The protocol, the same for every layer and model:

* **Folds** are made of whole groups (similarity clusters, joined where proteins share a superfamily), balanced by size,
  and depend on the proteins and the seed alone, never on order or sharding. A fold is test once; the next one then
  validates (it chooses layers), the others train.
* **Features** are centred and divided by their standard deviation, both of the training rows, and cut to the first
  ``capacity`` principal components of these, so that wide and narrow models are given equally many. (Scaling "global"
  divides all coordinates by one number instead, which makes probes invariant to a rotation of the stream.)
* **Penalty**: L2, chosen on the same grid for every layer by cross-validation over the groups of the training rows, by
  log-loss or squared error; of equals the stronger. Penalties are per training row: the mean loss plus
  ``penalty / 2 |w|^2``, for regression of the standardised target.
* **Intervals**: cluster bootstrap of the test scores, paired over layers and models (``metrics.bootstrap``), with the
  fitted probes as they are.
* **The score of a choice**: the best of several layers scores too well on the rows that made it the best, even if no
  layer knows anything. ``nested`` scores a choice on rows that had no part in it, and repeats it in every resample.

``fit_probe`` fits one probe for one layer; ``cross_validated`` does it for every fold; ``scores`` and ``plateau`` judge
the layers. Kinds of targets: "regression" (n,) numbers, "classification" (n,) classes, "multi-label" (n, k) booleans.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from plm_depth.metrics.bootstrap import Bootstrap
from plm_depth.randomness import key_of

KINDS = ("regression", "classification", "multi-label")
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
CAPACITY = 256
INNER_FOLDS = 3
TOLERANCE = 0.02  # layers within this share of the best score are as good
MAX_ITERATIONS = 1000
_LEAST = 1e-6  # probability in a log-loss


class ProbeError(ValueError):
    """Labels or groups on which no honest probe can be fitted; says what was expected and what came."""


# ----------------------------------------------------------------------------------------------------------------
# Groups and folds


def merged_groups(*labels: Sequence[str]) -> np.ndarray:
    """Return the group of each protein: proteins that share any label are together; named by its first member's index.

    Args:
        labels: one or more label lists of equal length (cluster, superfamily); "" is unknown and joins nothing.
    """
    n = len(labels[0])
    rows, columns, n_nodes = [], [], n
    for one in labels:
        if len(one) != n:
            raise ProbeError(f"labels of {len(one)} and of {n} proteins; expected one each")
        names, codes = np.unique(np.asarray(one, str), return_inverse=True)
        known = np.flatnonzero(names[codes] != "")
        rows.append(known)
        columns.append(n_nodes + codes[known])
        n_nodes += len(names)
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(row), np.int8), (row, column)), shape=(n_nodes, n_nodes))
    component = connected_components(graph, directed=False)[1][:n]
    _, first, number = np.unique(component, return_index=True, return_inverse=True)
    return first[number]


def folds_of(
    groups: Mapping[str, str], *, n_folds: int, seed: int, sizes: Mapping[str, Sequence[float]] | None = None
) -> dict[str, int]:
    """Return the fold of each protein, 0..n_folds - 1: whole groups, as equal in size as they can be.

    The largest groups first (ties by a hash of seed and members), each to the fold where it disturbs the balance least.
    The result depends on the mapping as a set.

    Args:
        groups: group of each protein.
        sizes: of each protein what is to be balanced, several numbers (rows of each class) or one; default 1 each.
    Raises:
        ProbeError: fewer groups than folds, or fewer than two folds.
    """
    members: dict[str, list[str]] = {}
    for protein in sorted(groups):
        members.setdefault(groups[protein], []).append(protein)
    if n_folds < 2 or len(members) < n_folds:
        raise ProbeError(
            f"{len(members)} groups of {len(groups)} proteins in {n_folds} folds; expected at least two folds and a "
            "group for each: ask for fewer folds, or give more proteins that are not related"
        )
    # Beside what is asked for, rows and proteins in all are balanced, so that no fold stays empty.
    of_protein = {p: np.atleast_1d(sizes[p] if sizes else 1.0).astype(float) for p in sorted(groups)}
    weights = {
        name: np.sum([np.r_[of_protein[p], of_protein[p].sum(), 1.0] for p in proteins], axis=0)
        for name, proteins in members.items()
    }
    total = np.sum(list(weights.values()), axis=0)
    share = {name: weight / np.where(total > 0, total, 1) for name, weight in weights.items()}
    order = sorted(members, key=lambda name: (-share[name].sum(), key_of(seed, "fold", *members[name])))
    load, fold_of_group = np.zeros((n_folds, len(total))), {}
    for name in order:
        # Adding w to a load L grows the sum of squares by w (2 L + w): the emptiest fold, class by class.
        fold = int(np.argmin(load @ share[name]))
        load[fold] += share[name]
        fold_of_group[name] = fold
    return {protein: fold_of_group[group] for protein, group in groups.items()}


@dataclass(frozen=True)
class Split:
    """Rows of one outer fold: indices of the training, validation and test rows."""

    fold: int
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def splits(fold_of_row: np.ndarray, n_folds: int) -> list[Split]:
    """Return the outer folds: fold k tests, fold k + 1 (mod n_folds) validates, the others train.

    Raises:
        ProbeError: fewer than three folds, or a fold without rows.
    """
    if n_folds < 3:
        raise ProbeError(f"{n_folds} folds; expected at least 3: to train, to choose a layer, and to test")
    empty = sorted(set(range(n_folds)) - set(np.unique(fold_of_row).tolist()))
    if empty:
        raise ProbeError(f"folds {empty} have no rows with a label; ask for fewer folds")
    found = []
    for test in range(n_folds):
        valid = (test + 1) % n_folds
        is_train = (fold_of_row != test) & (fold_of_row != valid)
        parts = (is_train, fold_of_row == valid, fold_of_row == test)
        found.append(Split(test, *(np.flatnonzero(part) for part in parts)))
    return found


# ----------------------------------------------------------------------------------------------------------------
# One probe


@dataclass(frozen=True)
class Scaling:
    """How features become what a probe reads: fitted on training rows only.

    Attributes:
        mean, scale: (d,) of the training rows; one scale for all coordinates where scaling is "global".
        components: (dim, d) principal directions, or None where all coordinates are kept.
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray | None

    @classmethod
    def of(cls, x: np.ndarray, *, capacity: int | None = CAPACITY, scaling: str = "coordinate") -> "Scaling":
        """Return the scaling of training rows (n, d).

        Args:
            capacity: principal components kept; None or at least d keeps all coordinates as they are.
            scaling: "coordinate": each has standard deviation 1; "global": their mean variance is 1; "none": as it is.
        Raises:
            ProbeError: no rows, numbers that are not finite, or another scaling.
        """
        if scaling not in ("coordinate", "global", "none"):
            raise ProbeError(f"scaling {scaling!r}; expected coordinate, global or none")
        if not len(x):
            raise ProbeError("no training rows")
        x = np.asarray(x, np.float64)
        if not np.isfinite(x).all():
            raise ProbeError("features that are not finite; expected numbers")
        mean, variance = x.mean(0), x.var(0)
        if scaling == "global":
            variance = np.full_like(variance, variance.mean())
        # A coordinate that does not vary beyond rounding says nothing; dividing by its noise would make it loud.
        dead = variance <= 1e-12 * (mean**2 + variance.mean())
        scale = np.where(dead, np.inf, np.sqrt(np.where(dead, 1, variance)))
        if scaling == "none":
            scale = np.ones_like(scale)
        components = None
        if capacity is not None and x.shape[1] > capacity:
            pca = PCA(min(capacity, len(x)), random_state=0)
            components = pca.fit(((x - mean) / scale).astype(np.float32)).components_.astype(np.float64)
        return cls(mean, scale, components)

    @property
    def dim(self) -> int:
        """Return how many numbers a probe reads."""
        return len(self.mean) if self.components is None else len(self.components)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return features (n, d) as the probe reads them, (n, dim) float64."""
        z = (np.asarray(x, np.float64) - self.mean) / self.scale
        return z if self.components is None else z @ self.components.T


@dataclass
class Notes:
    """What happened in many fits, counted for the log."""

    fits: int = 0
    unconverged: int = 0
    constant: int = 0  # fits whose training rows had one class

    def __str__(self) -> str:
        return (
            f"{self.fits} fits, {self.unconverged} stopped before they converged, {self.constant} on training rows of "
            "one class only"
        )


@dataclass(frozen=True)
class Linear:
    """A fitted linear map of scaled features.

    Attributes:
        weights, intercept: (dim, n_outputs) and (n_outputs,): the target (regression), log-odds of each label
            (multi-label), or unnormalised log-probabilities of each class, -inf for classes absent from training.
        penalty: the one used.
    """

    kind: str
    weights: np.ndarray
    intercept: np.ndarray
    penalty: float

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """Return predictions: (n,) numbers; or probabilities, (n, n_classes) of classes, (n, k) of labels."""
        raw = z @ self.weights + self.intercept
        if self.kind == "regression":
            return raw[:, 0]
        if self.kind == "multi-label":
            return 1 / (1 + np.exp(-np.clip(raw, -500, 500)))
        odds = np.exp(raw - raw.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)


@dataclass(frozen=True)
class Probe:
    """A probe of one layer: scaling and linear map; call it with features (n, d)."""

    scaling: Scaling
    linear: Linear

    @property
    def penalty(self) -> float:
        return self.linear.penalty

    @property
    def dim(self) -> int:
        return self.scaling.dim

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return predictions as ``Linear``."""
        return self.linear(self.scaling(x))


def check_target(y: np.ndarray, kind: str, n_classes: int | None = None) -> np.ndarray:
    """Return a target as its kind has it: float64, int64 codes or bool.

    Raises:
        ProbeError: an unknown kind, a wrong shape, a number that is not finite, a code that is no class.
    """
    y = np.asarray(y)
    if kind not in KINDS:
        raise ProbeError(f"kind {kind!r}; expected one of {', '.join(KINDS)}")
    if y.ndim != (2 if kind == "multi-label" else 1):
        raise ProbeError(f"{kind} target of shape {y.shape}; expected (n, k) for multi-label, (n,) for the others")
    if kind == "regression":
        y = y.astype(np.float64)
        if not np.isfinite(y).all():
            raise ProbeError("a target that is not finite; expected numbers")
        return y
    if kind == "multi-label":
        return y.astype(bool)
    y = y.astype(np.int64)
    if len(y) and (y.min() < 0 or (n_classes is not None and y.max() >= n_classes)):
        raise ProbeError(f"classes {y.min()}..{y.max()}; expected codes from 0 to below {n_classes}")
    return y


def fit_linear(
    z: np.ndarray,
    y: np.ndarray,
    *,
    kind: str,
    penalties: Sequence[float],
    n_classes: int | None = None,
    notes: Notes | None = None,
) -> list[Linear]:
    """Return the linear maps of scaled features (n, dim) for each penalty; the target as ``check_target`` gives it."""
    notes = notes if notes is not None else Notes()
    if kind == "regression":
        return _ridges(z, y, penalties, notes)
    if kind == "multi-label":
        by_label = [_logistic(z, label.astype(np.int64), 2, penalties, notes, binary=True) for label in y.T]
        return [
            Linear(kind, np.stack([w[i] for w, _ in by_label], 1), np.array([b[i] for _, b in by_label]), penalty)
            for i, penalty in enumerate(penalties)
        ]
    n_classes = n_classes or int(y.max(initial=0)) + 1
    weights, intercepts = _logistic(z, y, n_classes, penalties, notes)
    return [Linear(kind, w, b, penalty) for w, b, penalty in zip(weights, intercepts, penalties)]


def _ridges(z: np.ndarray, y: np.ndarray, penalties: Sequence[float], notes: Notes) -> list[Linear]:
    notes.fits += len(penalties)
    centre, spread = y.mean(), y.std()
    if spread <= 1e-12 * (1 + abs(centre)):
        notes.constant += len(penalties)
        return [Linear("regression", np.zeros((z.shape[1], 1)), np.array([centre]), p) for p in penalties]
    found = []
    for penalty in penalties:
        ridge = Ridge(alpha=penalty * len(z), solver="cholesky").fit(z, (y - centre) / spread)
        weights, intercept = ridge.coef_.reshape(-1, 1) * spread, np.atleast_1d(ridge.intercept_) * spread + centre
        found.append(Linear("regression", weights, intercept, penalty))
    return found


def _logistic(
    z: np.ndarray, y: np.ndarray, n_classes: int, penalties: Sequence[float], notes: Notes, *, binary: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return weights and intercepts for each penalty, of all classes, or of the log-odds of class 1."""
    dim, present = z.shape[1], np.unique(y)
    notes.fits += len(penalties)
    if len(present) == 1:
        notes.constant += len(penalties)
        if binary:
            share = np.log((0.5 + (present[0] == 1) * len(y)) / (0.5 + (present[0] == 0) * len(y)))
            return [np.zeros(dim)] * len(penalties), [share] * len(penalties)
        intercept = np.where(np.arange(n_classes) == present[0], 0.0, -np.inf)
        return [np.zeros((dim, n_classes))] * len(penalties), [intercept] * len(penalties)
    # From the strongest penalty to the weakest, each from where the one before ended.
    solver = _solver(len(z), dim * (1 if len(present) == 2 else len(present)))
    model = LogisticRegression(solver=solver, max_iter=MAX_ITERATIONS, tol=1e-4, warm_start=True)
    weights, intercepts = [None] * len(penalties), [None] * len(penalties)
    for i in sorted(range(len(penalties)), key=lambda i: -penalties[i]):
        model.set_params(C=1 / (penalties[i] * len(z)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.fit(z, y)
        notes.unconverged += any(issubclass(w.category, ConvergenceWarning) for w in said)
        coefficients, offset = model.coef_.T.copy(), model.intercept_.copy()
        if binary:
            weights[i], intercepts[i] = coefficients[:, 0], offset[0]
            continue
        if len(present) == 2:  # of two classes the library gives the log-odds of the second
            coefficients, offset = np.c_[np.zeros(dim), coefficients[:, 0]], np.r_[0.0, offset[0]]
        weights[i], intercepts[i] = np.zeros((dim, n_classes)), np.full(n_classes, -np.inf)
        weights[i][:, present], intercepts[i][present] = coefficients, offset
    return weights, intercepts


def _solver(n_rows: int, n_weights: int) -> str:
    """Return the solver that is faster for a problem of this size; both find the one minimum.

    Newton's method needs a tenth of the iterations, but builds a matrix of n_weights^2 in each; those of L-BFGS cost
    about as much as a million operations even where there is little to compute.
    """
    newton = 8 * (n_rows * n_weights**2 + n_weights**3 / 3)
    return "newton-cholesky" if newton < 80 * (1.2e6 + 4 * n_rows * n_weights) else "lbfgs"


def losses(y: np.ndarray, prediction: np.ndarray, kind: str) -> np.ndarray:
    """Return the loss of each row by which penalties are chosen: squared error, or log-loss (of all labels)."""
    if kind == "regression":
        return (y - prediction) ** 2
    if kind == "classification":
        return -np.log(np.maximum(prediction[np.arange(len(y)), y], _LEAST))
    return -np.log(np.maximum(np.where(y, prediction, 1 - prediction), _LEAST)).mean(1)


def choose_penalty(
    z: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    *,
    kind: str,
    penalties: Sequence[float] = PENALTIES,
    n_inner: int = INNER_FOLDS,
    n_classes: int | None = None,
    seed: int = 0,
    notes: Notes | None = None,
) -> float:
    """Return the penalty with the least loss on inner folds of whole groups; of equals the strongest.

    Args:
        z, y: scaled features and target of the training rows.
        groups: (n,) group of each training row.
        n_inner: inner folds; as many as there are groups where there are fewer.
    Raises:
        ProbeError: one group only.
    """
    if len(penalties) == 1:
        return float(penalties[0])
    names, code, counts = np.unique(np.asarray(groups, str), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ProbeError(f"training rows of {len(names)} group; expected at least two: ask for fewer folds")
    fold_of = folds_of(
        {name: name for name in names.tolist()},
        n_folds=min(n_inner, len(names)),
        seed=seed,
        sizes=dict(zip(names.tolist(), counts[:, None].tolist())),
    )
    fold = np.array([fold_of[name] for name in names.tolist()])[code]
    total = np.zeros(len(penalties))
    for one in np.unique(fold):
        inside, outside = fold != one, fold == one
        fitted = fit_linear(z[inside], y[inside], kind=kind, penalties=penalties, n_classes=n_classes, notes=notes)
        total += [losses(y[outside], linear(z[outside]), kind).sum() for linear in fitted]
    best = total <= total.min() * (1 + 1e-9)
    return float(max(np.asarray(penalties)[best]))


def fit_probe(
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    kind: str,
    penalties: Sequence[float] = PENALTIES,
    capacity: int | None = CAPACITY,
    scaling: str = "coordinate",
    n_inner: int = INNER_FOLDS,
    n_classes: int | None = None,
    seed: int = 0,
    notes: Notes | None = None,
) -> Probe:
    """Return one probe for one layer, fitted on training rows; scaling and penalty are chosen on these alone.

    Args:
        x, y: (n, d) features and the target of the training rows.
        groups: (n,) group of each row, for the choice of the penalty; by default every row its own.
        kind: "regression", "classification" (y: codes from 0) or "multi-label".
        penalties: the grid; one number is taken as it is.
        capacity, scaling: see ``Scaling``.
        n_classes: classes there are, where some may be absent from these rows.
    Raises:
        ProbeError: a target or groups on which no probe can be fitted.
    """
    y = check_target(y, kind, n_classes)
    if len(x) != len(y):
        raise ProbeError(f"{len(x)} rows of features and {len(y)} of the target")
    if kind == "classification" and n_classes is None:
        n_classes = int(y.max(initial=0)) + 1
    scale = Scaling.of(x, capacity=capacity, scaling=scaling)
    z = scale(x)
    groups = np.arange(len(y)) if groups is None else np.asarray(groups)
    options = {"kind": kind, "n_classes": n_classes, "notes": notes}
    penalty = choose_penalty(z, y, groups, penalties=penalties, n_inner=n_inner, seed=seed, **options)
    return Probe(scale, fit_linear(z, y, penalties=[penalty], **options)[0])


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of every row by a probe that did not see its group.

    Attributes:
        test, valid: predictions as ``Linear`` gives them, (n,) or (n, classes or labels).
        penalty: (n_folds,) chosen.
        dim: (n_folds,) numbers that the probes read.
        n_train: (n_folds,) training rows.
    """

    test: np.ndarray
    valid: np.ndarray
    penalty: np.ndarray
    dim: np.ndarray
    n_train: np.ndarray


def scaled(
    x: np.ndarray, outer: Sequence[Split], *, capacity: int | None = CAPACITY, scaling: str = "coordinate"
) -> list[np.ndarray]:
    """Return the features (n, d) of all rows as each outer fold's probes read them, scaled on its training rows."""
    return [Scaling.of(x[split.train], capacity=capacity, scaling=scaling)(x) for split in outer]


def cross_validated(
    features: Sequence[np.ndarray],
    y: np.ndarray,
    groups: np.ndarray,
    outer: Sequence[Split],
    *,
    kind: str,
    penalties: Sequence[float] | Sequence[Sequence[float]] = PENALTIES,
    n_inner: int = INNER_FOLDS,
    n_classes: int | None = None,
    seed: int = 0,
    notes: Notes | None = None,
) -> OutOfFold:
    """Return the predictions of all rows, each by the probe of the fold in which it is test, or validation.

    Args:
        features: ``scaled`` features, an entry per outer fold; several targets share them.
        y, groups: target and group of all rows.
        penalties: the grid; or one penalty for each outer fold (an array of ``OutOfFold.penalty``), for a control task
            that is to have exactly the probe of the task.
    """
    y = check_target(y, kind, n_classes)
    if kind == "classification" and n_classes is None:
        n_classes = int(y.max(initial=0)) + 1
    width = () if kind == "regression" else (n_classes if kind == "classification" else y.shape[1],)
    test, valid = np.full((len(y), *width), np.nan), np.full((len(y), *width), np.nan)
    chosen = []
    options = {"kind": kind, "n_classes": n_classes, "notes": notes}
    is_given = isinstance(penalties, np.ndarray)
    for number, (split, z) in enumerate(zip(outer, features, strict=True)):
        train = split.train
        grid = [float(penalties[number])] if is_given else penalties
        penalty = choose_penalty(
            z[train], y[train], groups[train], penalties=grid, n_inner=n_inner, seed=seed, **options
        )
        linear = fit_linear(z[train], y[train], penalties=[penalty], **options)[0]
        test[split.test], valid[split.valid] = linear(z[split.test]), linear(z[split.valid])
        chosen.append(penalty)
    dims = np.array([z.shape[1] for z in features])
    return OutOfFold(test, valid, np.array(chosen), dims, np.array([len(split.train) for split in outer]))


# ----------------------------------------------------------------------------------------------------------------
# Scores

METRICS = {
    "regression": ("spearman", "pearson", "r2"),
    "classification": ("accuracy", "macro_f1", "mcc", "auroc"),
    "multi-label": ("macro_auprc",),
}


@dataclass(frozen=True)
class Score:
    """A score and the same of every resample: value (...,), resampled (..., n_boot), chance level of a guess."""

    value: np.ndarray
    resampled: np.ndarray
    chance: float = field(default=np.nan)


def scores(
    metric: str,
    y: np.ndarray,
    predictions: np.ndarray,
    *,
    owner: np.ndarray | None = None,
    bootstrap: Bootstrap | None = None,
    at_once: int = 1 << 22,
) -> Score:
    """Return the score of each layer, of the rows as they are and of every resample of their clusters.

    Args:
        metric: "accuracy", "macro_f1" (over classes that occur or are predicted), "mcc" (of several classes), "auroc"
            (of class 1 of two); "spearman", "pearson", "r2"; "macro_auprc" (mean average precision over the labels that
            occur).
        y: (n,) or (n, k) target.
        predictions: (n_layers, n, ...) as ``Linear`` gives them.
        owner: (n,) protein of each row, an index into ``bootstrap.sequence_ids``.
        bootstrap: resamples; none: only the score.
        at_once: numbers held at once, for memory only.
    Returns:
        value (n_layers,) and resampled (n_layers, n_boot), NaN where undefined: AUROC of one class, a correlation with
        constant numbers. The chance level: of a constant guess (most frequent class), 0 for correlations and
        MCC, 1/2 for AUROC, the mean share of positives for average precision.
    """
    cluster = np.zeros(len(y), np.int64) if bootstrap is None else bootstrap.cluster[owner]
    weights = np.ones((1, int(cluster.max(initial=0)) + 1))
    if bootstrap is not None:
        weights = np.concatenate([np.ones((1, bootstrap.n_clusters)), bootstrap.weights])
    of_layer = [_score(metric, y, one, cluster, weights, at_once) for one in predictions]
    found = np.array(of_layer).reshape(len(predictions), len(weights))
    return Score(found[:, 0], found[:, 1:], chance_of(metric, y))


def chance_of(metric: str, y: np.ndarray) -> float:
    """Return what a guess that ignores the features scores; see ``scores``."""
    if metric in ("accuracy", "macro_f1"):
        share = np.bincount(y).max() / len(y)
        return float(share if metric == "accuracy" else 2 * share / (1 + share) / len(np.unique(y)))
    if metric == "macro_auprc":
        share = y.mean(0)
        return float(share[share > 0].mean()) if (share > 0).any() else np.nan
    return 0.5 if metric == "auroc" else 0.0


def _score(
    metric: str, y: np.ndarray, prediction: np.ndarray, cluster: np.ndarray, weights: np.ndarray, at_once: int
) -> np.ndarray:
    """Return the score under each row of cluster weights (n_weights, n_clusters)."""
    if metric in ("accuracy", "macro_f1", "mcc"):
        return _of_confusion(metric, y, prediction, cluster, weights)
    if metric in ("pearson", "r2"):
        return _of_moments(metric, y, prediction, cluster, weights)
    parts = []
    rows = max(1, at_once // max(len(y), 1))
    for start in range(0, len(weights), rows):
        of_rows = weights[start : start + rows][:, cluster]
        if metric == "spearman":
            parts.append(_spearman(y, prediction, of_rows))
        elif metric == "auroc":
            parts.append(_auroc(y == 1, prediction[:, 1], of_rows))
        elif metric == "macro_auprc":
            of_labels = [_average_precision(y[:, k], prediction[:, k], of_rows) for k in range(y.shape[1])]
            with warnings.catch_warnings():  # labels of which a resample has no positive are left out of its mean
                warnings.simplefilter("ignore", RuntimeWarning)
                parts.append(np.nanmean(of_labels, axis=0))
        else:
            raise ProbeError(
                f"metric {metric!r}; expected one of {', '.join(m for ms in METRICS.values() for m in ms)}"
            )
    return np.concatenate(parts)


def _sums(values: np.ndarray, cluster: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return weighted sums (n_weights, k) of values (n, k) over all rows."""
    of_cluster = np.zeros((weights.shape[1], values.shape[1]))
    np.add.at(of_cluster, cluster, values)
    return weights @ of_cluster


def _of_confusion(metric, y, prediction, cluster, weights) -> np.ndarray:
    n_classes = prediction.shape[1]
    cell = y * n_classes + prediction.argmax(1)
    counts = np.zeros((weights.shape[1], n_classes**2))
    np.add.at(counts, (cluster, cell), 1)
    table = (weights @ counts).reshape(-1, n_classes, n_classes)
    right, true, said = np.einsum("bkk->bk", table), table.sum(2), table.sum(1)
    n = true.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "accuracy":
            return right.sum(1) / n
        if metric == "macro_f1":
            f1 = np.where(true + said > 0, 2 * right / (true + said), 0)
            return f1.sum(1) / (true + said > 0).sum(1)
        above = n * right.sum(1) - (true * said).sum(1)
        below = np.sqrt((n**2 - (said**2).sum(1)) * (n**2 - (true**2).sum(1)))
        # With one class only, or one guess only, there is no correlation: 0, as the usual convention has it.
        return np.where(n > 0, np.where(below > 0, above / below, 0.0), np.nan)


def _of_moments(metric, y, prediction, cluster, weights) -> np.ndarray:
    residual = y - prediction
    y, p = y - y.mean(), prediction - prediction.mean()  # centred, so that the sums of squares lose no digits
    columns = np.stack([np.ones_like(y), y, p, y * y, p * p, y * p, residual**2], 1)
    n, sy, sp, syy, spp, syp, unexplained = _sums(columns, cluster, weights).T
    with np.errstate(invalid="ignore", divide="ignore"):
        vy, vp, covariance = syy - sy**2 / n, spp - sp**2 / n, syp - sy * sp / n
        if metric == "pearson":
            return np.where((vy > 0) & (vp > 0), covariance / np.sqrt(vy * vp), np.nan)
        return np.where(vy > 0, 1 - unexplained / vy, np.nan)


def _weighted_ranks(values: np.ndarray, of_rows: np.ndarray) -> np.ndarray:
    """Return mid-ranks (n_weights, n) of values (n,) when each row stands there weight times."""
    order = np.argsort(values, kind="stable")
    new = np.r_[True, np.diff(values[order]) != 0]
    tie = np.cumsum(new) - 1
    ordered = of_rows[:, order]
    per_tie = np.add.reduceat(ordered, np.flatnonzero(new), axis=1)
    middle = np.cumsum(per_tie, 1) - per_tie / 2
    ranks = np.empty_like(ordered)
    ranks[:, order] = middle[:, tie]
    return ranks


def _spearman(y: np.ndarray, prediction: np.ndarray, of_rows: np.ndarray) -> np.ndarray:
    a, b = _weighted_ranks(y, of_rows), _weighted_ranks(prediction, of_rows)
    n = of_rows.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        a -= (of_rows * a).sum(1, keepdims=True) / n
        b -= (of_rows * b).sum(1, keepdims=True) / n
        va, vb = (of_rows * a * a).sum(1), (of_rows * b * b).sum(1)
        floor = 1e-9 * n[:, 0]
        return np.where((va > floor) & (vb > floor), (of_rows * a * b).sum(1) / np.sqrt(va * vb), np.nan)


def _auroc(positive: np.ndarray, prediction: np.ndarray, of_rows: np.ndarray) -> np.ndarray:
    ranks = _weighted_ranks(prediction, of_rows)
    n_positive, n = of_rows[:, positive].sum(1), of_rows.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        below = (of_rows[:, positive] * ranks[:, positive]).sum(1) - n_positive**2 / 2
        return below / (n_positive * (n - n_positive))


def _average_precision(positive: np.ndarray, prediction: np.ndarray, of_rows: np.ndarray) -> np.ndarray:
    """Return the sum over thresholds of precision times the gain in recall; NaN without a positive."""
    order = np.argsort(-prediction, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(prediction[order]) != 0, True])  # a threshold stands behind equal predictions
    ordered = of_rows[:, order]
    hits = np.cumsum(ordered * positive[order], 1)[:, last]
    said = np.cumsum(ordered, 1)[:, last]
    gain = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(said > 0, hits / said, 0)
        return (precision * gain).sum(1) / hits[:, -1]


# ----------------------------------------------------------------------------------------------------------------
# Which layers are as good


def plateau(score: np.ndarray, *, tolerance: float = TOLERANCE) -> np.ndarray:
    """Return which layers are as good as the best, (..., n_layers) bool: score at least best - tolerance |best|.

    A score that is NaN is in no plateau; if all are, the plateau is empty.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a slice that is all NaN
        best = np.nanmax(score, axis=-1, keepdims=True)
    return score >= best - tolerance * np.abs(best)


def shallowest(score: np.ndarray, layers: Sequence[int], *, tolerance: float = TOLERANCE) -> np.ndarray:
    """Return the first layer of the plateau of (..., n_layers) scores, (...,) float; NaN where there is none."""
    inside = plateau(score, tolerance=tolerance)
    return np.where(inside.any(-1), np.asarray(layers, np.float64)[inside.argmax(-1)], np.nan)


def best_layer(score: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """Return the layer of the best score, (...,) float, the first of several; NaN where all are."""
    return shallowest(score, layers, tolerance=0.0)


def retention_depth(score: np.ndarray, layers: Sequence[int], *, floor: np.ndarray | float, share: float) -> np.ndarray:
    """Return the first layer from which on at least a share of the last layer's gain over a floor is there (I4).

    The smallest l with ``score[l'] >= floor + share (score[last] - floor)`` for all l' >= l; NaN if the last layer does
    not exceed the floor or a score is NaN.

    Args:
        score: (..., n_layers), the last one the whole model.
        floor: chance or the score of layer 0, (...,) or one number.
        share: in (0, 1].
    """
    floor = np.broadcast_to(np.asarray(floor, np.float64), score.shape[:-1])[..., None]
    last = score[..., -1:]
    # A hair of slack, so that rounding does not move the last layer below its own score.
    holds = score >= floor + share * (last - floor) - 1e-12 * np.abs(last)
    from_here = np.logical_and.accumulate(holds[..., ::-1], axis=-1)[..., ::-1]
    defined = (last > floor)[..., 0] & ~np.isnan(score).any(-1)
    return np.where(defined, np.asarray(layers, np.float64)[from_here.argmax(-1)], np.nan)


# ----------------------------------------------------------------------------------------------------------------
# What a choice is worth


@dataclass(frozen=True)
class Nested:
    """The score of rows by layers that other rows chose.

    Attributes:
        value, resampled: () and (n_boot,): every part at the layer that its chooser chose; in a resample, at the one
            that it chose in that resample.
        places: (n_parts,) place of the chosen layer of each part.
        n_undefined: parts whose chooser has no score at any layer: these take the last one.
    """

    value: float
    resampled: np.ndarray
    places: np.ndarray
    n_undefined: int


def nested(
    choosers: Sequence[Score],
    pick: Callable[[np.ndarray], np.ndarray],
    score: Callable[[np.ndarray, Bootstrap], Score],
    bootstrap: Bootstrap,
) -> Nested:
    """Return the score of a procedure that chooses a layer, on rows and by probes that the choice did not see.

    Rows fall into parts; the layer of a part is chosen by the scores of its chooser: other rows, whose predictions
    (those of the part, too) come from a probe that saw neither. In every resample layers are chosen anew, so that the
    interval holds what the choice adds.

    Args:
        choosers: of each part the scores of its chooser, value (n_layers,) and resampled (n_layers, n_boot).
        pick: from scores (n, n_layers) the place of the layer that is chosen, (n,) float, NaN where none can be.
        score: from the places of the chosen layers (n_parts,) and a bootstrap, the score of all parts at these layers:
            value () and resampled (n_boot,) of the weights of that bootstrap.
        bootstrap: that of ``choosers``.
    """
    n_layers = len(choosers[0].value)
    found = np.stack([pick(np.concatenate([one.value[None], one.resampled.T])) for one in choosers], axis=1)
    places = np.where(np.isnan(found), n_layers - 1, found).astype(np.int64)
    # Resamples that choose alike are scored together.
    combinations, which = np.unique(places, axis=0, return_inverse=True)
    which = which.reshape(-1)
    value, resampled = np.nan, np.full(bootstrap.n_boot, np.nan)
    for number, combination in enumerate(combinations):
        rows = np.flatnonzero(which[1:] == number)
        is_observed = which[0] == number
        if not len(rows) and not is_observed:
            continue
        one = score(combination, replace(bootstrap, weights=bootstrap.weights[rows]))
        resampled[rows] = one.resampled
        if is_observed:
            value = float(one.value)
    return Nested(value, resampled, places[0], int(np.isnan(found[0]).sum()))
