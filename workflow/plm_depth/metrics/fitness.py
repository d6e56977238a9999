"""Zero-shot fitness by depth (H): how well the scores of every layer rank measured variants, and from where on (I4).

    python -m plm_depth.metrics.fitness --variants P... --scores P... --gram P... --output P --summary P

Written is FITNESS: Spearman correlations of every assay, layer and scorer, and their means: over the assays of a
protein (UniProt id) within a function class, over the proteins of a class, over the classes. An assay whose scores are
all equal has no correlation; it is left out of the means and counted.

Scores of both reading directions are averaged variant by variant (direction ``both``). ``emb_ridge`` is supervised:
predictions for variants of a fold by a ridge fitted on the others (both directions' states side by side), lambda by
exact leave-one-out within the training folds, from one grid for all layers; its correlation is the mean of those within
the folds, because predictions of different folds have different offsets. Folds (five): ``random``; ``modulo``,
positions modulo 5, and ``contiguous``, five stretches of the mutated positions, both of variants with one substitution.

``blosum62`` is what no model is needed for: the sum of M[old, new] - M[old, old] over the substituted positions.

Intervals (trained networks only). Of one assay: a bootstrap over its variants, ranks taken anew in every resample,
predictions of a ridge held fixed. Of means: over UniProt ids; where a class has one UniProt id only, nothing can be
said about other proteins, and the interval is that of the variants of these. The column ``resampled`` says which.

The summary (SUMMARY), of the mean over classes, on relative depth:

    retention_depth (fitness_{scorer}; y)    first layer from which on y of what the last layer has above layer 0 stays
    best_layer (fitness_{scorer})            the layer with the largest value, the first of several
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata

from plm_depth.metrics.bootstrap import interval
from plm_depth.metrics.profile import sorted_rows
from plm_depth.metrics.summary import retention_depth
from plm_depth.progress import Progress, stage_log
from plm_depth.randomness import generator
from plm_depth.tables import (
    COMMON,
    FITNESS,
    FITNESS_GRAM,
    FITNESS_VAR,
    SUMMARY,
    VARIANTS,
    TableError,
    iterate_table,
    write_table,
)

FRACTIONS = (0.9, 0.95, 0.99)
FOLDS = ("random", "modulo", "contiguous")
N_FOLDS = 5
LAMBDAS = np.logspace(-4, 2, 13)  # times the mean eigenvalue of the training kernel
BOTH, NOT_ONE = "both", -1.0  # direction and noise_t of rows over several
KEYS = (*(name for name in COMMON if name != "mask_draw"), "scorer", "lens", "folds")
LEVELS = ("assay", "uniprot", "category", "all")
BASELINE = "blosum62"
CELLS = 2_000_000  # variants x resamples that are ranked at once


# ----------------------------------------------------------------------------------------------------------------
# Rank correlation


def spearman(scores: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of scores (..., n) with measured values (n,), ties at their mean rank.

    NaN where the scores, or the measured values, are all equal, or there are fewer than three.
    """
    n = scores.shape[-1]
    if n < 3:
        return np.full(scores.shape[:-1], np.nan)
    x = rankdata(scores, axis=-1) - (n + 1) / 2
    y = rankdata(measured) - (n + 1) / 2
    return _correlation((x * y).sum(-1), (x * x).sum(-1), (y * y).sum(-1))


def resampled_spearman(scores: np.ndarray, measured: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation in every resample, (..., n_boot): ranks are taken anew among what was drawn.

    Args:
        scores: (..., n).
        measured: (n,).
        weights: (n_boot, n) how often each variant was drawn.
    """
    y = weighted_ranks(measured, weights)
    total = weights.sum(1, keepdims=True)
    y -= total / 2
    y_weighted = weights * y
    yy = (y_weighted * y).sum(1)
    flat = scores.reshape(-1, scores.shape[-1])
    found = np.empty((len(flat), len(weights)))
    for row, one in enumerate(flat):
        x = weighted_ranks(one, weights)
        x -= total / 2
        found[row] = _correlation((x * y_weighted).sum(1), (weights * x * x).sum(1), yy)
    return found.reshape(*scores.shape[:-1], len(weights))


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the ranks of values (n,) that occur so often, (n_boot, n): what lies below, and half of what is equal."""
    order = np.argsort(values, kind="stable")
    is_new = np.r_[True, np.diff(values[order]) != 0]
    of_group = np.add.reduceat(weights[:, order], np.flatnonzero(is_new), axis=1)
    ranks = np.cumsum(of_group, axis=1) - of_group / 2
    group = np.empty(len(values), np.int64)
    group[order] = np.cumsum(is_new) - 1
    return ranks[:, group]


def _correlation(xy: np.ndarray, xx: np.ndarray, yy: np.ndarray) -> np.ndarray:
    product = xx * yy
    return np.divide(xy, np.sqrt(product), out=np.full(np.shape(product), np.nan), where=product > 0)


def within_folds(of_fold: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of values over the folds in which they are defined, NaN where in none."""
    stacked = np.stack(of_fold)
    defined = ~np.isnan(stacked)
    count = defined.sum(0)
    return np.divide(np.where(defined, stacked, 0).sum(0), count, out=np.full(count.shape, np.nan), where=count > 0)


# ----------------------------------------------------------------------------------------------------------------
# Ridge on mean states


def folds_of(kind: str, positions: Sequence[Sequence[int]], *, seed: int, assay_id: str) -> np.ndarray:
    """Return the fold of each variant, (n,) 0..4; -1 where a variant has no place in this kind of folds.

    Args:
        kind: one of ``FOLDS``.
        positions: 0-based positions of each variant.
        seed, assay_id: key of the random folds.
    """
    n = len(positions)
    if kind == "random":
        fold = np.arange(n) % N_FOLDS
        return generator(seed, "fitness folds", assay_id).permutation(fold)
    single = np.array([one[0] if len(one) == 1 else -1 for one in positions])
    if kind == "modulo":
        return np.where(single >= 0, single % N_FOLDS, -1)
    distinct = np.unique(single[single >= 0])
    stretches = np.array_split(distinct, N_FOLDS)
    fold = {int(p): number for number, stretch in enumerate(stretches) for p in stretch}
    return np.array([fold.get(int(p), -1) for p in single])


def ridge_predictions(kernel: np.ndarray, measured: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return predictions (n,) of a ridge in its dual form, each from the folds that the variant is not in.

    The intercept is not shrunk. Lambda is the one of ``LAMBDAS`` with the smallest exact leave-one-out error in the
    training folds. NaN for variants without a fold, and where no training fold holds three variants.

    Args:
        kernel: (n, n) inner products of the features.
        measured: (n,).
        fold: (n,), -1 for none.
    """
    found = np.full(len(measured), np.nan)
    for number in np.unique(fold[fold >= 0]):
        test, train = np.flatnonzero(fold == number), np.flatnonzero((fold >= 0) & (fold != number))
        if len(train) < 3:
            continue
        inner, outer = kernel[np.ix_(train, train)], kernel[np.ix_(test, train)]
        column, whole = inner.mean(0), inner.mean()
        inner = inner - column[:, None] - column[None, :] + whole
        outer = outer - column[None, :]  # the other terms of centring meet coefficients that add up to zero
        centre = measured[train].mean()
        y = measured[train] - centre
        values, vectors = np.linalg.eigh(inner)
        values = np.maximum(values, 0)
        scale = values.mean()
        if scale <= 0:  # all features are equal: only the intercept is left
            found[test] = centre
            continue
        along = vectors.T @ y
        errors = []
        for factor in LAMBDAS:
            kept = values / (values + factor * scale)
            leverage = 1 / len(train) + np.square(vectors) @ kept
            errors.append(np.square((y - vectors @ (kept * along)) / np.maximum(1 - leverage, 1e-12)).mean())
        factor = LAMBDAS[int(np.argmin(errors))]
        found[test] = centre + outer @ (vectors @ (along / (values + factor * scale)))
    return found


# ----------------------------------------------------------------------------------------------------------------
# Assays


@dataclass(frozen=True)
class Assay:
    """What was measured of one assay, by variant number.

    Attributes:
        uniprot_id, category: of the protein and the assay.
        mutations: texts like ``A12C:D13E``.
        measured: (n,).
    """

    uniprot_id: str
    category: str
    mutations: list[str]
    measured: np.ndarray

    @property
    def positions(self) -> list[tuple[int, ...]]:
        return [tuple(int(part[1:-1]) - 1 for part in text.split(":")) for text in self.mutations]


def read_assays(paths: Sequence[str | Path]) -> dict[str, Assay]:
    """Return the assays of VARIANTS tables by name.

    Raises:
        TableError: a damaged table, an assay in two of them, or one whose variants are not 0, 1, 2, ...
    """
    found: dict[str, Assay] = {}
    for path in paths:
        rows: dict[str, list[dict]] = {}
        for part in iterate_table(path, VARIANTS):
            for row in part.drop_columns(["sequence"]).to_pylist():
                rows.setdefault(row["assay_id"], []).append(row)
        for name, own in rows.items():
            if name in found or [row["variant"] for row in own] != list(range(len(own))):
                raise TableError(
                    f"{path}: assay {name} stands in two tables, or its variants are not 0, 1, 2, ...; give every "
                    "shard of sequences.assays once"
                )
            measured = np.array([row["score"] for row in own])
            mutations = [row["mutations"] for row in own]
            found[name] = Assay(own[0]["uniprot_id"], own[0]["category"], mutations, measured)
    if not found:
        raise TableError("the tables of variants hold no assay; expected at least one")
    return found


@cache
def _blosum62() -> Mapping[str, Mapping[str, float]]:
    from Bio.Align import substitution_matrices

    return substitution_matrices.load("BLOSUM62")


def substitution_scores(mutations: Sequence[str]) -> np.ndarray:
    """Return the sum of M[old, new] - M[old, old] of BLOSUM62 of each variant, (n,); 0 for an unchanged protein."""
    matrix = _blosum62()
    return np.array(
        [sum(float(matrix[p[0]][p[-1]] - matrix[p[0]][p[0]]) for p in text.split(":")) for text in mutations]
    )


# ----------------------------------------------------------------------------------------------------------------
# Means over assays


@dataclass(frozen=True)
class Level:
    """One mean (or assay): its names, value by layer, interval ends, and counts; arrays are (n_layers,)."""

    level: str
    assay_id: str
    uniprot_id: str
    category: str
    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    resampled: str
    n_var: int
    n_assay: np.ndarray
    n_uniprot: np.ndarray
    n_nan: np.ndarray
    n_boot: np.ndarray
    resamples: np.ndarray | None = None


@dataclass(frozen=True)
class Correlations:
    """The correlations of one scorer with several assays.

    Attributes:
        assay_ids, uniprot_ids, categories: (n_assays,).
        n_var: (n_assays,) variants.
        value: (n_assays, n_layers), NaN where undefined.
        resampled: (n_assays, n_layers, n_boot), of resampled variants; None where there is no interval.
    """

    assay_ids: np.ndarray
    uniprot_ids: np.ndarray
    categories: np.ndarray
    n_var: np.ndarray
    value: np.ndarray
    resampled: np.ndarray | None


def _nan_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    defined = ~np.isnan(values)
    count = defined.sum(axis)
    total = np.where(defined, values, 0.0).sum(axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def means_by_class(
    values: np.ndarray, uniprot_ids: np.ndarray, categories: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Return, by class and UniProt id, the mean over the assays (first axis) that are defined."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for category in np.unique(categories):
        own = categories == category
        found[str(category)] = {
            str(name): _nan_mean(values[own & (uniprot_ids == name)]) for name in np.unique(uniprot_ids[own])
        }
    return found


def levels_of(found: Correlations, *, n_boot: int, seed: int) -> list[Level]:
    """Return the correlations of every assay and their means: protein within a class, class, mean of the classes.

    Args:
        n_boot: resamples of UniProt ids.
        seed: of these; the same for every scorer, layer and model.
    """
    has_intervals = found.resampled is not None
    undefined = np.isnan(found.value)
    levels = []

    def level(
        name: str, chosen: np.ndarray, value: np.ndarray, resamples: np.ndarray | None, kind: str, **names: str
    ) -> None:
        nan = np.full(value.shape, np.nan)
        lower, upper, n = (nan, nan, np.zeros(value.shape, int)) if resamples is None else interval(resamples)
        defined = chosen[:, None] & ~undefined
        ids = np.array([len(set(found.uniprot_ids[layer])) for layer in defined.T])
        levels.append(
            Level(
                name,
                names.get("assay_id", "-"),
                names.get("uniprot_id", "-"),
                names.get("category", "-"),
                value,
                lower,
                upper,
                "none" if resamples is None else kind,
                int(found.n_var[chosen].sum()),
                defined.sum(0),
                ids,
                (chosen[:, None] & undefined).sum(0),
                n,
                resamples,
            )
        )

    for place, assay_id in enumerate(found.assay_ids):
        level(
            "assay",
            np.arange(len(found.assay_ids)) == place,
            found.value[place],
            found.resampled[place] if has_intervals else None,
            "variants",
            assay_id=str(assay_id),
            uniprot_id=str(found.uniprot_ids[place]),
            category=str(found.categories[place]),
        )
    classes = means_by_class(found.value, found.uniprot_ids, found.categories)
    within = means_by_class(found.resampled, found.uniprot_ids, found.categories) if has_intervals else None
    weights = _protein_weights(np.unique(found.uniprot_ids), n_boot, seed) if has_intervals else None
    of_class, of_class_variants, of_class_proteins = {}, {}, {}
    for category, proteins in classes.items():
        for name, value in proteins.items():
            chosen = (found.categories == category) & (found.uniprot_ids == name)
            resamples = within[category][name] if has_intervals else None
            level("uniprot", chosen, value, resamples, "variants", uniprot_id=name, category=category)
        of_class[category] = _nan_mean(np.stack(list(proteins.values())))
        if has_intervals:
            of_class_variants[category] = _nan_mean(np.stack(list(within[category].values())))
            of_class_proteins[category] = _weighted(proteins, weights) if len(proteins) > 1 else None
        kind = "proteins" if has_intervals and of_class_proteins[category] is not None else "variants"
        resamples = (of_class_proteins if kind == "proteins" else of_class_variants).get(category)
        level("category", found.categories == category, of_class[category], resamples, kind, category=category)
    everything = np.ones(len(found.assay_ids), bool)
    value = _nan_mean(np.stack(list(of_class.values())))
    resamples, kind = None, "none"
    if has_intervals:
        kind = "variants" if any(one is None for one in of_class_proteins.values()) else "proteins"
        if kind == "proteins":
            # A resample without a protein of some class says nothing about the mean over all classes.
            resamples = np.stack(list(of_class_proteins.values())).mean(0)
        else:
            resamples = _nan_mean(np.stack(list(of_class_variants.values())))
    level("all", everything, value, resamples, kind)
    return levels


def _protein_weights(names: np.ndarray, n_boot: int, seed: int) -> dict[str, np.ndarray]:
    """Return how often each resample drew each UniProt id, (n_boot,) by id."""
    drawn = generator(seed, "fitness proteins").multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=n_boot
    )
    return {str(name): drawn[:, place].astype(np.float64) for place, name in enumerate(names)}


def _weighted(proteins: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the mean over the proteins of a class in every resample, (n_layers, n_boot); NaN where none was drawn."""
    values = np.stack(list(proteins.values()))
    drawn = np.stack([weights[name] for name in proteins])
    defined = ~np.isnan(values)
    top, bottom = np.where(defined, values, 0.0).T @ drawn, defined.T.astype(np.float64) @ drawn
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


# ----------------------------------------------------------------------------------------------------------------
# The stage


@dataclass
class _Collected:
    """Correlations by measurement (values of ``KEYS``), and what of both directions waits for the other."""

    of_assay: dict[tuple, dict[str, tuple[int, np.ndarray, np.ndarray | None]]] = field(default_factory=dict)
    waiting: dict[tuple, tuple[str, np.ndarray, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Settings:
    assays: Mapping[str, Assay]
    seed: int
    n_boot_variants: int
    folds: Sequence[str]
    directions: frozenset[str]


def fitness(
    variants: Sequence[str | Path],
    scores: Sequence[str | Path],
    grams: Sequence[str | Path],
    output: str | Path,
    summary: str | Path,
    *,
    folds: Sequence[str] = FOLDS,
    n_boot: int = 2000,
    n_boot_variants: int = 500,
    seed: int = 1,
    log,
) -> int:
    """Write FITNESS and the SUMMARY rows of one model; return the number of rows of the former.

    Args:
        variants: VARIANTS, all shards.
        scores, grams: FITNESS_VAR and FITNESS_GRAM of the model, all shards.
        folds: kinds of folds of emb_ridge, of ``FOLDS``.
        n_boot, n_boot_variants: resamples of UniProt ids, and of the variants of an assay.
        seed: of resamples and random folds.
    Raises:
        TableError: damaged tables, a score of a variant or assay that is not in ``variants``, the same score twice.
    """
    directions = {
        direction
        for path in grams
        for rows in iterate_table(path, FITNESS_GRAM, columns=["direction"])
        for direction in rows.column("direction").unique().to_pylist()
    }
    settings = _Settings(read_assays(variants), seed, n_boot_variants, folds, frozenset(directions))
    collected = _Collected()
    progress = Progress(log, None, "tables of an assay")
    for path in scores:
        for rows in iterate_table(path, FITNESS_VAR):
            _take_scores(rows, str(path), collected, settings)
            progress.advance()
    for path in grams:
        for rows in iterate_table(path, FITNESS_GRAM):
            _take_gram(rows, str(path), collected, settings)
            progress.advance()
    progress.finish()
    _add_baseline(collected, settings)
    rows, stats = [], []
    for key, of_assay in collected.of_assay.items():
        found = _correlations(of_assay, settings.assays)
        levels = levels_of(found, n_boot=n_boot, seed=seed)
        common = dict(zip(KEYS, key)) | {"mask_draw": -1}
        for one in levels:
            rows.append(_rows(one, common))
        if common["scorer"] != BASELINE:
            stats += _statistics(levels[-1], common)
    if not rows:
        log.warning("this model has no score of any variant: both tables are empty")
    n_rows = write_table(_joined(rows, FITNESS), FITNESS, output, seed=seed, resamples=n_boot)
    write_table(_sorted_columns(stats), SUMMARY, summary, seed=seed, resamples=n_boot)
    n_nan = sum(int(np.isnan(part["value"]).sum()) for part in rows)
    log.info(f"{n_rows} rows, {n_nan} undefined (all scores equal); {len(stats)} summary statistics")
    return n_rows


def _take_scores(rows: pa.Table, path: str, collected: _Collected, settings: _Settings) -> None:
    """Add the correlations of one row group of FITNESS_VAR: one assay, scorer, direction and network."""
    keys = _keys_of(rows, path, varying=("variant", "scores", "noise_t"))
    assay_id = keys.pop("assay_id")
    numbers = rows.column("variant").to_numpy()
    n_layers = int(keys["n_blocks"]) + 1
    flat = rows.column("scores").combine_chunks().flatten().to_numpy()
    if len(flat) != n_layers * len(numbers):
        raise TableError(
            f"{path}: {len(flat)} scores of {len(numbers)} variants of {assay_id}; expected {n_layers} each"
        )
    by = np.argsort(numbers)
    numbers, scores = numbers[by], flat.reshape(-1, n_layers).astype(np.float64)[by].T
    noise = NOT_ONE if keys["scorer"] == "mask" else float(rows.column("noise_t")[0].as_py())
    keys |= {"noise_t": noise, "folds": "none"}
    _add(collected, settings, path, keys, assay_id, numbers, scores)
    direction = keys["direction"]
    if direction == "none":
        return
    other = (*_key({**keys, "direction": BOTH}), assay_id)
    if other not in collected.waiting:
        collected.waiting[other] = (direction, numbers, scores)
        return
    first, same, theirs = collected.waiting.pop(other)
    if first == direction or not np.array_equal(same, numbers):
        raise TableError(
            f"{path}: other variants of {assay_id} in direction {direction} than in {first}; score it again"
        )
    _add(collected, settings, path, {**keys, "direction": BOTH}, assay_id, numbers, (scores + theirs) / 2)


def _take_gram(rows: pa.Table, path: str, collected: _Collected, settings: _Settings) -> None:
    """Add the correlations of a ridge of one row group of FITNESS_GRAM: one assay, direction and network."""
    keys = _keys_of(rows, path, varying=("layer", "variants", "gram"))
    assay_id = keys.pop("assay_id")
    layers = rows.column("layer").to_pylist()
    if layers != list(range(int(keys["n_blocks"]) + 1)):
        raise TableError(f"{path}: layers {layers} of {assay_id}; expected 0 to {keys['n_blocks']} in order")
    numbers = np.array(rows.column("variants")[0].as_py())
    n = len(numbers)
    lower = np.tril_indices(n)
    kernels = np.zeros((len(layers), n, n))
    for layer, values in enumerate(rows.column("gram")):
        kernels[layer][lower] = values.values.to_numpy()
    kernels = kernels + np.tril(kernels, -1).transpose(0, 2, 1)
    direction = keys["direction"]
    keys |= {"scorer": "emb_ridge", "lens": "none"}
    if len(settings.directions) < 2:
        _add_ridge(collected, settings, path, keys, assay_id, numbers, kernels)
        return
    keys["direction"] = BOTH
    other = (*_key({**keys, "folds": "none"}), assay_id)
    if other not in collected.waiting:
        collected.waiting[other] = (direction, numbers, kernels)
        return
    first, same, theirs = collected.waiting.pop(other)
    if first == direction or not np.array_equal(same, numbers):
        raise TableError(
            f"{path}: other variants of {assay_id} in direction {direction} than in {first}; score it again"
        )
    # Features of both directions side by side: their inner products add up.
    _add_ridge(collected, settings, path, keys, assay_id, numbers, kernels + theirs)


def _keys_of(rows: pa.Table, path: str, *, varying: Sequence[str]) -> dict[str, object]:
    """Return the columns that are constant over a row group, with the assay."""
    keys = {}
    for name in rows.column_names:
        if name in varying or name in ("mask_draw",):
            continue
        values = rows.column(name).unique().to_pylist()
        if len(values) != 1 and not all(value != value for value in values):
            raise TableError(f"{path}: a row group holds {len(values)} values of {name}; score these variants again")
        keys[name] = values[0]
    return keys


def _key(keys: Mapping[str, object]) -> tuple:
    """Return the values of ``KEYS`` with one NaN for all, so that equal measurements have equal keys."""
    return tuple(np.nan if isinstance(keys[name], float) and keys[name] != keys[name] else keys[name] for name in KEYS)


def _assay(settings: _Settings, path: str, assay_id: str, numbers: np.ndarray) -> Assay:
    assay = settings.assays.get(assay_id)
    if assay is None or (len(numbers) and (numbers.min() < 0 or numbers.max() >= len(assay.mutations))):
        raise TableError(f"{path}: scores of variants of {assay_id} that --variants does not hold; give its tables")
    if len(np.unique(numbers)) < len(numbers):
        raise TableError(f"{path}: a variant of {assay_id} stands twice; score these variants again")
    return assay


def _resampled(
    settings: _Settings, assay_id: str, scores: np.ndarray, measured: np.ndarray, members: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the mean over folds of the correlations within them in every resample, (n_layers, n_boot).

    The resamples of an assay are the same for every scorer and model; a few of them are held at a time.

    Args:
        scores: (n_layers, n).
        measured: (n,).
        members: places of the variants of each fold; one fold of all variants where there are none.
    """
    n = len(measured)
    random = generator(settings.seed, "fitness variants", assay_id)
    step = max(1, CELLS // max(n, 1))
    parts = []
    for start in range(0, settings.n_boot_variants, step):
        size = min(step, settings.n_boot_variants - start)
        weights = random.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        parts.append(within_folds([resampled_spearman(scores[:, m], measured[m], weights[:, m]) for m in members]))
    return np.concatenate(parts, axis=1)


def _add(
    collected: _Collected,
    settings: _Settings,
    path: str,
    keys: Mapping[str, object],
    assay_id: str,
    numbers: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Add the correlations of the scores (n_layers, n) of one assay."""
    assay = _assay(settings, path, assay_id, numbers)
    measured = assay.measured[numbers]
    resampled = None
    if keys["null_model"] == "trained":
        resampled = _resampled(settings, assay_id, scores, measured, [np.arange(len(numbers))])
    _keep(collected, path, keys, assay_id, len(numbers), spearman(scores, measured), resampled)


def _add_ridge(
    collected: _Collected,
    settings: _Settings,
    path: str,
    keys: Mapping[str, object],
    assay_id: str,
    numbers: np.ndarray,
    kernels: np.ndarray,
) -> None:
    """Add the correlations of ridge predictions of one assay, by kind of folds."""
    assay = _assay(settings, path, assay_id, numbers)
    measured = assay.measured[numbers]
    positions = [assay.positions[number] for number in numbers]
    for kind in settings.folds:
        fold = folds_of(kind, positions, seed=settings.seed, assay_id=assay_id)
        predicted = np.stack([ridge_predictions(kernel, measured, fold) for kernel in kernels])
        members = [np.flatnonzero((fold == number) & ~np.isnan(predicted[0])) for number in range(N_FOLDS)]
        members = [m for m in members if len(m) >= 3]
        n_layers = len(kernels)
        value, resampled = np.full(n_layers, np.nan), None
        if members:
            value = within_folds([spearman(predicted[:, m], measured[m]) for m in members])
        if keys["null_model"] == "trained":
            resampled = np.full((n_layers, settings.n_boot_variants), np.nan)
            if members:
                resampled = _resampled(settings, assay_id, predicted, measured, members)
        n = int(sum(len(m) for m in members))
        _keep(collected, path, {**keys, "folds": kind}, assay_id, n, value, resampled)


def _keep(collected, path, keys, assay_id, n, value, resampled) -> None:
    of_assay = collected.of_assay.setdefault(_key(keys), {})
    if assay_id in of_assay:
        raise TableError(f"{path}: {keys['scorer']} of assay {assay_id} stands twice; give every shard once")
    of_assay[assay_id] = (n, value, resampled)


def _add_baseline(collected: _Collected, settings: _Settings) -> None:
    """Add the substitution matrix, under the names of the trained network's first measurement."""
    trained = [key for key in collected.of_assay if dict(zip(KEYS, key))["null_model"] == "trained"]
    if not trained:
        return
    keys = dict(zip(KEYS, trained[0])) | {
        "scorer": BASELINE,
        "lens": "none",
        "folds": "none",
        "direction": "none",
        "noise_t": 0.0,
        "condition": "seq",
    }
    for assay_id, assay in settings.assays.items():
        scores = substitution_scores(assay.mutations)[None]
        _add(collected, settings, "BLOSUM62", keys, assay_id, np.arange(len(assay.mutations)), scores)


def _correlations(of_assay: Mapping[str, tuple], assays: Mapping[str, Assay]) -> Correlations:
    names = sorted(of_assay)
    resampled = None if of_assay[names[0]][2] is None else np.stack([of_assay[name][2] for name in names])
    return Correlations(
        np.array(names),
        np.array([assays[name].uniprot_id for name in names]),
        np.array([assays[name].category for name in names]),
        np.array([of_assay[name][0] for name in names]),
        np.stack([of_assay[name][1] for name in names]),
        resampled,
    )


def _rows(one: Level, common: Mapping[str, object]) -> dict[str, np.ndarray]:
    n = len(one.value)
    is_baseline = common["scorer"] == BASELINE
    names = {"level": one.level, "assay_id": one.assay_id, "uniprot_id": one.uniprot_id, "category": one.category}
    return {name: np.full(n, value) for name, value in {**common, **names, "resampled": one.resampled}.items()} | {
        "layer": np.full(n, -1) if is_baseline else np.arange(n),
        "value": one.value,
        "ci_lo": one.lower,
        "ci_hi": one.upper,
        "n_var": np.full(n, one.n_var),
        "n_assay": one.n_assay,
        "n_uniprot": one.n_uniprot,
        "n_nan": one.n_nan,
        "n_boot": one.n_boot,
    }


def _statistics(one: Level, common: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the rows of SUMMARY of one profile: the mean over classes by layer."""
    n_blocks = len(one.value) - 1
    profile = f"fitness_{common['scorer']}" + ("" if common["folds"] == "none" else f"_{common['folds']}")
    resamples = None if one.resamples is None else one.resamples.T
    computed = [("best_layer", float("nan"), lambda x: _best_layer(x, n_blocks))]
    for y in FRACTIONS:
        computed.append(("retention_depth", y, lambda x, y=y: retention_depth(x, fraction=y, floor=x[..., 0])))
    rows = []
    for stat, param, compute in computed:
        value = float(compute(one.value[None])[0])
        lower = upper = np.array([np.nan])
        n_boot = np.array([0])
        # Of an undefined statistic those resamples in which it happens to be defined say nothing.
        if resamples is not None and not np.isnan(value):
            lower, upper, n_boot = interval(compute(resamples)[None])
        rows.append(
            {name: value for name, value in common.items() if name in COMMON}
            | {
                "stat": stat,
                "profile": profile,
                "param": param,
                "value": value,
                "ci_lo": float(lower[0]),
                "ci_hi": float(upper[0]),
                "n_seq": int(one.n_uniprot.max()),
                "n_cluster": int(one.n_uniprot.max()),
                "n_boot": int(n_boot[0]),
            }
        )
    return rows


def _best_layer(profiles: np.ndarray, n_blocks: int) -> np.ndarray:
    """Return the relative depth of the largest value of profiles (..., n_layers), the first of several."""
    found = np.where(np.isnan(profiles), -np.inf, profiles).argmax(-1) / n_blocks
    return np.where(np.isnan(profiles).all(-1), np.nan, found)


def _joined(parts: Sequence[Mapping[str, np.ndarray]], schema: pa.Schema) -> dict[str, object]:
    if not parts:
        return {f.name: pa.array([], f.type) for f in schema}
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = (*KEYS, "level", "category", "uniprot_id", "assay_id", "layer")
    return sorted_rows(columns, order)


def _sorted_columns(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    if not rows:
        return {f.name: pa.array([], f.type) for f in SUMMARY}
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return sorted_rows(columns, (*COMMON, "stat", "profile", "param"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.fitness", description=__doc__.split("\n")[0])
    parser.add_argument("--variants", nargs="+", type=Path, required=True, help="VARIANTS tables, all shards")
    parser.add_argument("--scores", nargs="+", type=Path, required=True, help="FITNESS_VAR tables of the model")
    parser.add_argument("--gram", nargs="+", type=Path, required=True, help="FITNESS_GRAM tables of the model")
    parser.add_argument("--folds", nargs="*", choices=FOLDS, default=list(FOLDS), help="kinds of folds of emb_ridge")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples of the UniProt ids")
    parser.add_argument("--variant-resamples", type=int, default=500, help="resamples of the variants of an assay")
    parser.add_argument("--seed", type=int, default=1, help="of resamples and random folds; the same for every model")
    parser.add_argument("--output", type=Path, required=True, help="the FITNESS table")
    parser.add_argument("--summary", type=Path, required=True, help="the SUMMARY table of these")
    options = parser.parse_args(argv)
    if options.resamples < 1 or options.variant_resamples < 1:
        raise SystemExit("metrics.fitness: --resamples and --variant-resamples: expected at least 1")
    with stage_log("metrics.fitness", TableError, OSError) as log:
        fitness(
            options.variants,
            options.scores,
            options.gram,
            options.output,
            options.summary,
            folds=options.folds,
            n_boot=options.resamples,
            n_boot_variants=options.variant_resamples,
            seed=options.seed,
            log=log,
        )


if __name__ == "__main__":
    main()
