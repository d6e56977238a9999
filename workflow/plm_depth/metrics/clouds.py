"""Geometry of clouds of points: angles, similarity of representations, intrinsic dimension, spectrum, neighbours (F).

A cloud is (n_points, width); clouds of several layers hold the same points in the same order. Every statistic comes
with its values when one group of points at a time is left out, stacked behind the value of all points, (n_groups + 1,
...): ``jackknife`` turns them into a value and a standard error. Groups are whole similarity clusters, because points
of related proteins are not independent.

Sources: angular distance after Gromov et al. 2024 (arXiv 2403.17887); linear CKA of Kornblith et al. 2019 (arXiv
1905.00414) with the unbiased HSIC of Song et al. 2012 (JMLR 13, 1393), because the plain one is far from zero for
independent clouds of more coordinates than points; TwoNN of Facco et al. 2017 (Scientific Reports 7, 12140) and
neighbourhood overlap of Doimo et al. 2020 (arXiv 2007.03506), for protein language models Valeriani et al. 2023 (arXiv
2302.00294); effective rank of Roy and Vetterli 2007 (EUSIPCO).
"""

from collections.abc import Sequence

import numpy as np
from sklearn.neighbors import NearestNeighbors

KEPT_SHARE = 0.9  # of the points in the regression of TwoNN: the largest ratios are noisy
NUMBERS_AT_ONCE = 4_000_000  # of work arrays
SMALLEST_NORM = 1e-6  # of the largest norm of the cloud; a shorter vector has no direction

# ----------------------------------------------------------------------------------------------------------------
# Leaving out


def jackknife(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the value of all points and its standard error from leaving out one group at a time.

    Args:
        values: (n_groups + 1, ...), the value of all points first.
    Returns:
        (...,) each; the error is NaN with fewer than two groups or where a value is undefined.
    """
    value, left_out = values[0], values[1:]
    n_groups = len(left_out)
    if n_groups < 2:
        return value, np.full(np.shape(value), np.nan)
    spread = np.square(left_out - left_out.mean(0)).sum(0)
    return value, np.sqrt((n_groups - 1) / n_groups * spread)


def left_out_sums(values: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Return the sum over all points, then the sums without each group, (n_groups + 1, ...) for (n_points, ...)."""
    of_group = np.zeros((n_groups, *values.shape[1:]))
    np.add.at(of_group, groups, values)
    total = of_group.sum(0)
    return np.concatenate([total[None], total - of_group])


def left_out_means(values: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Return means over the points with a defined value, as ``left_out_sums``; NaN where there is none."""
    is_defined = ~np.isnan(values)
    sums = left_out_sums(np.where(is_defined, values, 0.0), groups, n_groups)
    counts = left_out_sums(is_defined.astype(np.float64), groups, n_groups)
    return _divided(sums, np.where(counts > 0.5, counts, 0.0))


def _divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.divide(x, y, out=np.full(np.broadcast_shapes(np.shape(x), np.shape(y)), np.nan), where=np.asarray(y) != 0)


# ----------------------------------------------------------------------------------------------------------------
# Directions


def units(cloud: np.ndarray) -> np.ndarray:
    """Return the points scaled to length 1, NaN where a point is (nearly) zero: at most 1e-6 of the longest one."""
    norms = np.linalg.norm(cloud.astype(np.float64), axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norms > SMALLEST_NORM * norms.max(initial=0), cloud / norms, np.nan)


def angular_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the angle between vectors of length 1 over pi, in [0, 1], (...,) for (..., width).

    From the chord and its complement: the arc cosine would lose half of the digits for nearly equal vectors.
    """
    chord, complement = x - y, x + y
    chord, complement = (np.sqrt(np.einsum("...i,...i->...", v, v)) for v in (chord, complement))
    return 2 / np.pi * np.arctan2(chord, complement)


def angular_distances(layers: Sequence[np.ndarray], groups: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean angular distance of the same points at every two layers (F1).

    Args:
        layers: clouds of equal shape.
    Returns:
        (n_groups + 1, n_layers, n_layers), symmetric; and the number of points without a direction at either layer,
        (n_layers, n_layers), which are left out.
    """
    n_layers, (n_points, width) = len(layers), layers[0].shape
    total = np.zeros((n_groups, n_layers, n_layers))
    count = np.zeros((n_groups, n_layers, n_layers))
    directions = [units(layer).astype(layer.dtype) for layer in layers]
    step = max(1, NUMBERS_AT_ONCE // (n_layers * width))
    for start in range(0, n_points, step):
        part = slice(start, start + step)
        stacked = np.stack([direction[part] for direction in directions])
        for i in range(n_layers):
            distance = angular_distance(stacked[i], stacked[i:]).astype(np.float64)  # (n_layers - i, points)
            is_defined = ~np.isnan(distance)
            np.add.at(total[:, i, i:], groups[part], np.where(is_defined, distance, 0.0).T)
            np.add.at(count[:, i, i:], groups[part], is_defined.T)
    for sums in (total, count):
        lower = np.tril_indices(n_layers, -1)
        sums[:, lower[0], lower[1]] = sums[:, lower[1], lower[0]]
    all_total, all_count = total.sum(0), count.sum(0)
    totals = np.concatenate([all_total[None], all_total - total])
    counts = np.concatenate([all_count[None], all_count - count])
    return _divided(totals, counts), (n_points - all_count).astype(np.int64)


def anisotropy(cloud: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Return the mean cosine of two different points, (n_groups + 1,), from the length of the sum of directions (F5).

    Points without a direction are left out.
    """
    directions = units(cloud)
    is_defined = ~np.isnan(directions).any(-1)
    sums = left_out_sums(np.where(is_defined[:, None], directions, 0.0), groups, n_groups)
    n = left_out_sums(is_defined.astype(np.float64), groups, n_groups)
    return _divided(np.square(sums).sum(-1) - n, np.where(n > 1, n * (n - 1), 0.0))


# ----------------------------------------------------------------------------------------------------------------
# Similarity of representations


def cka(clouds: Sequence[np.ndarray], groups: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return linear CKA of every two clouds of the same points, debiased and biased (F2).

    Args:
        clouds: (n_points, width) each, of any widths.
    Returns:
        (n_groups + 1, n_clouds, n_clouds) each; NaN where a cloud is a single point, and debiased with fewer than 4
        points or where chance cannot be told from structure (an unbiased self-similarity of zero or below).
    """
    centred = [_scaled(cloud) for cloud in clouds]
    crossed = cross_products(centred, groups, n_groups)
    squares = np.stack([np.square(cloud.astype(np.float64)).sum(-1) for cloud in centred])
    rows, without = _row_sums(centred, groups, n_groups)
    unbiased, biased = np.empty_like(crossed), np.empty_like(crossed)
    for left in range(n_groups + 1):  # 0: nothing is left out
        keep = np.full(len(groups), True) if left == 0 else groups != left - 1
        n = int(keep.sum())
        own = squares[:, keep]
        sums = rows[:, keep] - (0.0 if left == 0 else without[:, keep, left - 1])
        off = sums - own  # without the point itself
        total = off.sum(-1)
        if n >= 4:
            unbiased[left] = (
                crossed[left] - own @ own.T + np.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (off @ off.T)
            ) / (n * (n - 3))
        else:
            unbiased[left] = np.nan
        total = sums.sum(-1)
        biased[left] = crossed[left] - 2 / max(n, 1) * (sums @ sums.T) + np.outer(total, total) / max(n, 1) ** 2
    return _normalised(unbiased), _normalised(biased)


def _scaled(cloud: np.ndarray) -> np.ndarray:
    """Return a cloud around its mean, its mean square norm 1 (if it is more than a point): both change no CKA."""
    centred = cloud - cloud.mean(0, dtype=np.float64)
    size = np.sqrt(np.square(centred, dtype=np.float64).sum() / max(len(cloud), 1))
    return (centred / size if size > 0 else centred).astype(cloud.dtype)


def _row_sums(clouds: Sequence[np.ndarray], groups: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row sums of each cloud's Gram matrix, (n_clouds, n_points), and those over each group's columns."""
    rows, of_groups = [], []
    for cloud in clouds:
        wide = cloud.astype(np.float64)
        sums = np.zeros((n_groups, wide.shape[1]))
        np.add.at(sums, groups, wide)
        of_groups.append(wide @ sums.T)
        rows.append(of_groups[-1].sum(-1))
    return np.stack(rows), np.stack(of_groups)


def _normalised(hsic: np.ndarray) -> np.ndarray:
    own = np.einsum("...ii->...i", hsic)
    scale = np.sqrt(np.where(own > 0, own, np.nan))
    return hsic / (scale[..., :, None] * scale[..., None, :])


def cross_products(clouds: Sequence[np.ndarray], groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Return |X'Y|_F^2, summed over all pairs of points, of every two clouds; then without each group.

    The sum over pairs of points of <x_i, x_j> <y_i, y_j>: by Gram matrices or by products of coordinates, whichever
    costs less.

    Returns:
        (n_groups + 1, n_clouds, n_clouds) float64, symmetric.
    """
    n_points, widths = len(groups), [cloud.shape[1] for cloud in clouds]
    by_gram = n_points**2 * (sum(widths) + len(clouds) ** 2)
    by_coordinates = n_points * sum(widths[i] * sum(widths[i:]) for i in range(len(widths)))
    products = _products_by_gram if by_gram < by_coordinates else _products_by_coordinates
    return products(clouds, groups, n_groups)


def _products_by_coordinates(clouds: Sequence[np.ndarray], groups: np.ndarray, n_groups: int) -> np.ndarray:
    n = len(clouds)
    found = np.zeros((n_groups + 1, n, n))
    members = [np.flatnonzero(groups == g) for g in range(n_groups)]
    for i in range(n):
        x = clouds[i].astype(np.float64)
        for j in range(i, n):
            y = clouds[j].astype(np.float64)
            whole = x.T @ y
            found[0, i, j] = np.square(whole).sum()
            for g, rows in enumerate(members):
                found[g + 1, i, j] = np.square(whole - x[rows].T @ y[rows]).sum()
            found[:, j, i] = found[:, i, j]
    return found


def _products_by_gram(clouds: Sequence[np.ndarray], groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Return ``cross_products`` from rows of the Gram matrices of all clouds, some rows of one group at a time."""
    n, n_points = len(clouds), len(groups)
    with_group, within = np.zeros((n_groups, n, n)), np.zeros((n_groups, n, n))
    step = max(1, NUMBERS_AT_ONCE * 4 // (n * n_points))
    for g in range(n_groups):
        members = np.flatnonzero(groups == g)
        for start in range(0, len(members), step):
            rows = members[start : start + step]
            gram = np.stack([cloud[rows].astype(np.float64) @ cloud.T.astype(np.float64) for cloud in clouds])
            flat = gram.reshape(n, -1)
            with_group[g] += flat @ flat.T
            flat = gram[:, :, members].reshape(n, -1)
            within[g] += flat @ flat.T
    total = with_group.sum(0)
    # Pairs without a group: all, less those with a member in it; pairs within it were taken off twice.
    return np.concatenate([total[None], total - 2 * with_group + within])


# ----------------------------------------------------------------------------------------------------------------
# Spectrum


def spectrum(cloud: np.ndarray, groups: np.ndarray, n_groups: int) -> dict[str, np.ndarray]:
    """Return how many directions a cloud fills (F4), (n_groups + 1,) each, from the variances along its main axes.

    effective_rank     exp of the entropy of the singular values of the centred cloud, each over their sum
    participation      (sum of variances)^2 / sum of their squares
    top_share          share of the first axis in the variance

    Without a group the variances are taken along the axes of the whole cloud (first order). NaN for a single point.
    """
    x = cloud - cloud.mean(0, dtype=np.float64)
    n_points, width = x.shape
    if n_points > width:
        variances, axes = np.linalg.eigh(x.T @ x)
        along = x @ axes
    else:
        variances, vectors = np.linalg.eigh(x @ x.T)
        along = vectors * np.sqrt(np.maximum(variances, 0))
    # What rounding leaves of an axis that is not there.
    is_there = variances > variances.max(initial=0) * max(n_points, width) * np.finfo(np.float64).eps
    along = along[:, is_there][:, ::-1]
    sums = left_out_sums(along, groups, n_groups)
    squares = left_out_sums(np.square(along), groups, n_groups)
    n = left_out_sums(np.ones(n_points), groups, n_groups)[:, None]
    variances = np.maximum(squares - _divided(np.square(sums), n), 0)
    total = variances.sum(-1)
    singular = np.sqrt(variances)
    p = _divided(singular, singular.sum(-1, keepdims=True))
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1)
    is_cloud = total > 0
    return {
        "effective_rank": np.where(is_cloud, np.exp(entropy), np.nan),
        "participation": _divided(total**2, np.square(variances).sum(-1)),
        "top_share": _divided(variances[:, :1].sum(-1), total),
    }


# ----------------------------------------------------------------------------------------------------------------
# Neighbours


def first_of_equal(cloud: np.ndarray) -> np.ndarray:
    """Return for every point the index of the first point with the same coordinates, (n_points,) int64."""
    first: dict[bytes, int] = {}
    rows = np.ascontiguousarray(cloud + 0.0)  # minus zero equals zero
    return np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(rows)], np.int64)


def neighbours(cloud: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and indices of the k nearest other points, (n_points, k) each, nearest first (Euclidean)."""
    centred = np.ascontiguousarray(cloud - cloud.mean(0, dtype=np.float64), dtype=cloud.dtype)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(centred).kneighbors()


def undefined_neighbours(same: np.ndarray, k: int) -> np.ndarray:
    """Return which points have no k nearest neighbours because more than k others coincide with them, (n_points,) bool.

    Args:
        same: of ``first_of_equal``.
    """
    return np.bincount(same, minlength=len(same))[same] - 1 > k


def shared_neighbours(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the share of common neighbours of every point, (n_points,), of two index arrays (n_points, k) (F6)."""
    step = max(1, NUMBERS_AT_ONCE // one.shape[1] ** 2)
    parts = [
        (one[start : start + step, :, None] == other[start : start + step, None, :]).sum((1, 2))
        for start in range(0, len(one), step)
    ]
    return np.concatenate(parts) / one.shape[1]


def same_label(found: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the share of neighbours with the same label of every point, (n_points,), and what chance gives.

    Args:
        found: (n_points, k) indices.
        labels: (n_points,) int.
    """
    share = (labels[found] == labels[:, None]).mean(-1)
    counts, n = np.bincount(labels), len(labels)
    return share, float((counts * (counts - 1)).sum() / (n * (n - 1)))


def two_nn(distances: np.ndarray, groups: np.ndarray, n_groups: int) -> dict[str, np.ndarray]:
    """Return the intrinsic dimension by two estimates, (n_groups + 1,) each, from the ratios of two distances (F3).

    Args:
        distances: (n_points, 2 or more) to the first and second neighbour, none of them 0.
    Returns:
        ``two_nn_mle``, (n - 1) / sum of ln(r2 / r1); ``two_nn_fit``, the slope of -ln(1 - F) over ln(r2 / r1) through
        the origin, F the empirical distribution, without the largest tenth. Left-out values keep the neighbours that
        were found among all points. NaN with fewer than 3 points, or where all ratios are 1.
    """
    ratio = np.log(distances[:, 1].astype(np.float64) / distances[:, 0])
    sums = left_out_sums(ratio, groups, n_groups)
    n = left_out_sums(np.ones(len(ratio)), groups, n_groups)
    fits = np.full(n_groups + 1, np.nan)
    for left in range(n_groups + 1):
        x = np.sort(ratio if left == 0 else ratio[groups != left - 1])
        kept = int(KEPT_SHARE * len(x))
        if kept >= 2 and x[kept - 1] > 0:
            y = -np.log1p(-np.arange(1, kept + 1) / len(x))
            fits[left] = x[:kept] @ y / (x[:kept] @ x[:kept])
    return {"two_nn_mle": _divided(np.where(n >= 3, n - 1, np.nan), sums), "two_nn_fit": fits}
