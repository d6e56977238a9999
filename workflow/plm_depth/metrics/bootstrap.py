"""Cluster bootstrap: whole similarity clusters are drawn with replacement; similar proteins are not independent.

One set of resamples, keyed by the seed and the clusters of the data set, serves every layer, model and condition: the
difference of two statistics is taken resample by resample, so that what they share cancels (pairing). Intervals are
percentile intervals. Maxima get none: the bootstrap of a maximum is inconsistent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from plm_depth.randomness import generator

LEVEL = 0.95
ROWS_AT_ONCE = 4096


class BootstrapError(ValueError):
    """Resamples that cannot be drawn, or proteins that have no cluster."""


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of the clusters of one data set.

    Attributes:
        sequence_ids: (n_sequences,) proteins, sorted.
        cluster: (n_sequences,) cluster number of each.
        weights: (n_boot, n_clusters) how often each resample drew each cluster.
    """

    sequence_ids: np.ndarray
    cluster: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, clusters: Mapping[str, str], *, n_boot: int = 2000, seed: int) -> "Bootstrap":
        """Return ``n_boot`` resamples of the clusters; the order of the mapping does not matter.

        Args:
            clusters: cluster id of each sequence id.
        Raises:
            BootstrapError: no protein, or fewer than one resample.
        """
        if not clusters or n_boot < 1:
            raise BootstrapError(f"{len(clusters)} proteins and {n_boot} resamples; expected at least one of each")
        sequence_ids = np.array(sorted(clusters))
        names, cluster = np.unique([clusters[s] for s in sequence_ids.tolist()], return_inverse=True)
        random = generator(seed, "bootstrap")
        weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_boot)
        return cls(sequence_ids, cluster, weights.astype(np.float64))

    @property
    def n_boot(self) -> int:
        return len(self.weights)

    @property
    def n_clusters(self) -> int:
        return self.weights.shape[1]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.sequence_ids.tolist())}

    def index(self, sequence_ids: Sequence[str]) -> np.ndarray:
        """Return the place of each protein in ``sequence_ids``.

        Raises:
            BootstrapError: a protein without a cluster.
        """
        unknown = sorted({s for s in sequence_ids if s not in self._place})
        if unknown:
            raise BootstrapError(
                f"{len(unknown)} proteins have no cluster, the first {unknown[0]!r}; clusters of another data set?"
            )
        return np.array([self._place[s] for s in sequence_ids], np.int64)

    def cluster_sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums of (..., n_sequences) over the members of each cluster, (..., n_clusters)."""
        order = np.argsort(self.cluster, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(self.cluster[order]) != 0])
        return np.add.reduceat(values[..., order], starts, axis=-1)

    def means(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the unweighted means over the proteins with a defined value, and the same of every resample.

        Args:
            values: (..., n_sequences) float64, NaN where a protein has no value.
        Returns:
            (...,) and (..., n_boot); NaN where no protein has a value.
        """
        defined = ~np.isnan(values)
        return self.ratios(np.where(defined, values, 0.0), defined.astype(np.float64))

    def ratios(self, numerators: np.ndarray, denominators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ratios of sums over proteins, and the same of every resample.

        Args:
            numerators, denominators: (..., n_sequences).
        Returns:
            (...,) and (..., n_boot); NaN where the denominator is zero.
        """
        shape = numerators.shape[:-1]
        top, bottom = (self.cluster_sums(x).reshape(-1, self.n_clusters) for x in (numerators, denominators))
        # Most statistics share their denominators (all proteins have a value): one product serves them all.
        kinds: dict[bytes, int] = {}
        of_statistic = [kinds.setdefault(row.tobytes(), len(kinds)) for row in bottom]
        distinct = bottom[np.unique(of_statistic, return_index=True)[1]] if len(bottom) else bottom
        below = (distinct @ self.weights.T)[of_statistic]
        resampled = _divide(top @ self.weights.T, below)
        return _divide(top.sum(-1), bottom.sum(-1)).reshape(shape), resampled.reshape(*shape, self.n_boot)

    def clusters_of(self, defined: np.ndarray) -> np.ndarray:
        """Return how many clusters have a protein with a defined value, (...,) for (..., n_sequences) bool."""
        return (self.cluster_sums(defined.astype(np.float64)) > 0).sum(-1)


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.divide(x, y, out=np.full(np.shape(x), np.nan), where=y != 0)


def interval(resampled: np.ndarray, *, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the percentile interval of each statistic and the resamples behind it.

    Args:
        resampled: (..., n_boot); NaN where a statistic is undefined in a resample, which is then left out.
    Returns:
        lower and upper end, (...,) each, linearly interpolated, NaN where no resample is defined; and the number of
        defined resamples, (...,) int.
    """
    flat = resampled.reshape(-1, resampled.shape[-1])
    lower, upper, n_defined = np.empty(len(flat)), np.empty(len(flat)), np.empty(len(flat), np.int64)
    for start in range(0, len(flat), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        ordered = np.sort(flat[part], axis=1)  # NaN last
        n_defined[part] = n = flat.shape[1] - np.isnan(ordered).sum(1)
        lower[part], upper[part] = (_quantile(ordered, n, share) for share in ((1 - level) / 2, (1 + level) / 2))
    shape = resampled.shape[:-1]
    return lower.reshape(shape), upper.reshape(shape), n_defined.reshape(shape)


def _quantile(ordered: np.ndarray, n: np.ndarray, share: float) -> np.ndarray:
    """Return a quantile of the first n[i] entries of each sorted row, linearly interpolated, NaN where n is 0."""
    place = share * (np.maximum(n, 1) - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(n, 1) - 1)
    rows = np.arange(len(ordered))
    below, above = ordered[rows, low], ordered[rows, high]
    return np.where(n > 0, below + (above - below) * (place - low), np.nan)


def difference(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ``interval`` of a - b, resample by resample; both (..., n_boot), of one ``Bootstrap``."""
    if a.shape != b.shape:
        raise ValueError(f"resamples {a.shape} and {b.shape}; paired differences need the same resamples of both")
    return interval(a - b)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down method."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
