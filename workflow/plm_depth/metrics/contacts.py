"""Contacts within a chain, and how well scores of residue pairs find them (metrics G).

Two residues are in contact if their beta carbons are less than 8 Angstrom apart; where a file has none (glycine,
missing atoms) the beta carbon is placed by the ideal geometry of N, CA and C. Pairs are judged by their separation
along the sequence: short 6 to 11, medium 12 to 23, long 24 and more; nearer pairs are never counted.

Precision at L: of the L best-scored pairs of one class, L the residues with coordinates, the share that are contacts;
of all pairs where there are fewer.
"""

from collections.abc import Mapping

import numpy as np

from plm_depth.tables import NEAREST_PAIR

DISTANCE = 8.0
SEPARATIONS = {"short": (6, 11), "medium": (12, 23), "long": (24, np.iinfo(np.int64).max)}
NEAREST = NEAREST_PAIR
# CA to CB in the frame of b = CA - N, c = C - CA and their cross product: ideal bond lengths and angles (trRosetta)
_CROSS, _B, _C = -0.58273431, 0.56802827, -0.54067466


def beta_carbons(n: np.ndarray, ca: np.ndarray, c: np.ndarray, cb: np.ndarray) -> np.ndarray:
    """Return beta carbons (n_residues, 3): those of the file, else ideal ones; NaN without N, CA and C.

    Args:
        n, ca, c, cb: (n_residues, 3) coordinates in Angstrom, NaN where missing.
    """
    b, c = ca - n, c - ca
    ideal = _CROSS * np.cross(b, c) + _B * b + _C * c + ca
    return np.where(np.isfinite(cb), cb, ideal)


def distances(cb: np.ndarray) -> np.ndarray:
    """Return the distances (n, n) of beta carbons (n, 3), NaN where one is missing."""
    return np.linalg.norm(cb[:, None] - cb[None], axis=-1)


def pairs_of(cb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs i < j of residues with coordinates, at least ``NEAREST`` apart, and whether they touch.

    Returns:
        i, j: (n_pairs,) positions; touch: (n_pairs,) bool.
    """
    present = np.flatnonzero(np.isfinite(cb).all(1))
    first, second = np.triu_indices(len(present), 1)
    i, j = present[first], present[second]
    far = j - i >= NEAREST
    i, j = i[far], j[far]
    return i, j, np.linalg.norm(cb[i] - cb[j], axis=-1) < DISTANCE


def precision_at_length(score: np.ndarray, touch: np.ndarray, separation: np.ndarray, length: int) -> dict[str, float]:
    """Return the precision at L by class of separation; NaN where a class has no pairs.

    Args:
        score, touch, separation: (n_pairs,) score, whether in contact, and j - i. Of equal scores at the border any
            may be among the best: what is expected of them counts, so that a constant score finds the density.
        length: L.
    """
    found = {}
    for name, (low, high) in SEPARATIONS.items():
        mine = (separation >= low) & (separation <= high)
        found[name] = _expected_precision(score[mine], touch[mine], length) if mine.any() else np.nan
    return found


def _expected_precision(score: np.ndarray, touch: np.ndarray, length: int) -> float:
    n = min(length, len(score))
    border = np.partition(score, len(score) - n)[len(score) - n]
    above, tied = score > border, score == border
    return float((touch[above].sum() + (n - above.sum()) * touch[tied].mean()) / n)


def densities(touch: np.ndarray, separation: np.ndarray) -> Mapping[str, float]:
    """Return the share of contacts by class of separation: what random scores find on average."""
    found = {}
    for name, (low, high) in SEPARATIONS.items():
        mine = (separation >= low) & (separation <= high)
        found[name] = float(touch[mine].mean()) if mine.any() else np.nan
    return found


def pair_features(z: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Return what a probe reads of pairs: products and absolute differences of features (n, k), (n_pairs, 2 k)."""
    return np.concatenate([z[i] * z[j], np.abs(z[i] - z[j])], 1)
