"""Remote homology by retrieval: do the nearest proteins by cosine share the group, though not the part? (metrics G)

A query looks for proteins of its group (superfamily) that are of another part (family) and of another similarity
cluster. Left aside, neither right nor wrong, are all of its own similarity cluster (which an alignment finds), its own
part, and proteins of its group whose part is unknown; all others are wrong hits. Where no part of a group is known, its
similarity clusters stand for parts. No training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Retrieval:
    """Of each protein as a query, (n,), NaN where it is none (no part, or nothing to find).

    Attributes:
        top1: whether the nearest candidate is right.
        first_error: share of the right ones that are nearer than the first wrong one.
        chance: share of the candidates that are right: what a random order has on top.
    """

    top1: np.ndarray
    first_error: np.ndarray
    chance: np.ndarray


def parts_of(groups: Sequence[str], parts: Sequence[str], clusters: Sequence[str]) -> list[str]:
    """Return the part of each protein: as it is known, or the similarity cluster in groups none of whose parts is.

    Empty where others of the group have a part and this one does not.
    """
    with_parts = {group for group, part in zip(groups, parts, strict=True) if part}
    return [
        part if group in with_parts else f"cluster {cluster}"
        for group, part, cluster in zip(groups, parts, clusters, strict=True)
    ]


def kinship(groups: Sequence[str], parts: Sequence[str], clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return which candidates (columns) are right and which wrong for each query (rows), (n, n) bool each.

    Rows of proteins without a part are false throughout.

    Args:
        parts: as ``parts_of``.
    """
    groups, parts, clusters = (np.asarray(one, str) for one in (groups, parts, clusters))
    same_group = groups[:, None] == groups[None]
    apart = clusters[:, None] != clusters[None]
    known = parts != ""
    right = same_group & apart & (parts[:, None] != parts[None]) & known[:, None] & known[None]
    wrong = ~same_group & apart & known[:, None]
    is_query = right.any(1) & wrong.any(1)
    return right & is_query[:, None], wrong & is_query[:, None]


def retrieve(x: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> Retrieval:
    """Return how well cosines of features (n, d) find the right candidates; a wrong one as near as a right one wins.

    Args:
        right, wrong: as ``kinship``.
    """
    x = np.asarray(x, np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    # Rounded, so that equal vectors are equally near whatever the order of the sums.
    cosine = np.round(unit @ unit.T, 12)
    nearest_wrong = np.where(wrong, cosine, -np.inf).max(1)
    nearest_right = np.where(right, cosine, -np.inf).max(1)
    before = (right & (cosine > nearest_wrong[:, None])).sum(1)
    is_query = right.any(1)
    n_right, n_wrong = right.sum(1), wrong.sum(1)

    def of_queries(values: np.ndarray) -> np.ndarray:
        return np.where(is_query, values, np.nan)

    with np.errstate(invalid="ignore", divide="ignore"):
        return Retrieval(
            of_queries((nearest_right > nearest_wrong).astype(float)),
            of_queries(before / n_right),
            of_queries(n_right / (n_right + n_wrong)),
        )
