"""Cluster bootstrap: arithmetic by hand, pairing, coverage, and what it is keyed by."""

import math

import numpy as np
import pytest

from plm_depth.metrics.bootstrap import Bootstrap, BootstrapError, difference, interval


def clustered(n_clusters: int, size: int, *, spread: float, random: np.random.Generator):
    """Return values of proteins that share a cluster effect, and their clusters."""
    effect = np.repeat(random.standard_normal(n_clusters) * spread, size)
    clusters = {f"P{i:04d}": f"C{i // size:04d}" for i in range(n_clusters * size)}
    return effect + random.standard_normal(n_clusters * size) * 0.2, clusters


def test_a_resample_is_a_mean_over_the_clusters_it_drew():
    bootstrap = Bootstrap.of({"a": "x", "b": "x", "c": "y", "d": "z"}, n_boot=50, seed=3)
    values = np.array([[1.0, 2.0, 10.0, 100.0], [5.0, 5.0, 5.0, 5.0]])
    point, resampled = bootstrap.means(values)
    assert point.tolist() == [113 / 4, 5]
    assert bootstrap.weights.sum(1).tolist() == [3] * 50
    for b in range(50):
        x, y, z = bootstrap.weights[b]
        assert resampled[0, b] == pytest.approx((x * 3 + y * 10 + z * 100) / (2 * x + y + z))
        assert resampled[1, b] == pytest.approx(5)


def test_ratios_are_ratios_of_sums_and_undefined_values_are_left_out():
    bootstrap = Bootstrap.of({"a": "x", "b": "y", "c": "z"}, n_boot=400, seed=0)
    values = np.array([[1.0, np.nan, 4.0], [np.nan, np.nan, np.nan], [np.nan, 7.0, np.nan]])
    point, resampled = bootstrap.means(values)
    assert point[[0, 2]].tolist() == [2.5, 7] and math.isnan(point[1])
    drew = bootstrap.weights > 0
    assert np.array_equal(np.isnan(resampled[0]), ~drew[:, 0] & ~drew[:, 2])
    assert np.isnan(resampled[1]).all()
    assert np.array_equal(np.isnan(resampled[2]), ~drew[:, 1]) and np.nanmax(np.abs(resampled[2] - 7)) < 1e-12
    lower, upper, n_boot = interval(resampled)
    assert n_boot.tolist() == [int((drew[:, 0] | drew[:, 2]).sum()), 0, int(drew[:, 1].sum())]
    assert (lower[2], upper[2]) == (7, 7) and math.isnan(lower[1]) and math.isnan(upper[1])
    micro, _ = bootstrap.ratios(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 4.0, 0.0]]))
    assert micro.tolist() == [6 / 5]
    assert bootstrap.clusters_of(~np.isnan(values)).tolist() == [2, 0, 1]


def test_leading_axes_are_free():
    bootstrap = Bootstrap.of({"a": "x", "b": "y", "c": "z"}, n_boot=20, seed=0)
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 3))
    point, resampled = bootstrap.means(values)
    assert point.shape == (2, 3, 4) and resampled.shape == (2, 3, 4, 20)
    np.testing.assert_allclose(point, values.mean(-1))
    np.testing.assert_array_equal(resampled[1, 2, 3], bootstrap.means(values[1, 2, 3][None])[1][0])
    assert interval(resampled)[0].shape == (2, 3, 4)


def test_interval_ends_are_the_percentiles_of_the_defined_resamples():
    random = np.random.default_rng(1)
    resampled = random.standard_normal((50, 333))
    resampled[random.random(resampled.shape) < 0.2] = np.nan
    lower, upper, n_boot = interval(resampled)
    np.testing.assert_allclose(lower, np.nanpercentile(resampled, 2.5, axis=1), rtol=1e-12)
    np.testing.assert_allclose(upper, np.nanpercentile(resampled, 97.5, axis=1), rtol=1e-12)
    assert n_boot.tolist() == (~np.isnan(resampled)).sum(1).tolist()


def test_what_the_resamples_depend_on():
    clusters = {f"P{i}": f"C{i % 7}" for i in range(20)}
    plain = Bootstrap.of(clusters, n_boot=30, seed=1)
    shuffled = Bootstrap.of(dict(reversed(clusters.items())), n_boot=30, seed=1)
    assert np.array_equal(plain.weights, shuffled.weights) and np.array_equal(plain.cluster, shuffled.cluster)
    assert not np.array_equal(plain.weights, Bootstrap.of(clusters, n_boot=30, seed=2).weights)
    assert plain.index(["P3", "P11"]).tolist() == [plain.sequence_ids.tolist().index(s) for s in ("P3", "P11")]
    with pytest.raises(BootstrapError, match=r"1 proteins have no cluster, the first 'Q'"):
        plain.index(["P3", "Q"])
    for clusters, n_boot in (({}, 10), ({"a": "x"}, 0)):
        with pytest.raises(BootstrapError, match="at least one of each"):
            Bootstrap.of(clusters, n_boot=n_boot, seed=0)


def test_differences_are_paired():
    random = np.random.default_rng(0)
    shared, clusters = clustered(60, 2, spread=5.0, random=random)
    bootstrap = Bootstrap.of(clusters, n_boot=1000, seed=0)
    (_, _), resampled = bootstrap.means(np.stack([shared, shared + 0.1]))
    lower, upper, n_boot = difference(resampled[1:], resampled[:1])
    assert n_boot.item() == 1000
    # What both share cancels: the difference is known exactly, although each value alone is known to about 1.
    np.testing.assert_allclose((lower.item(), upper.item()), 0.1, atol=1e-12)
    alone = interval(resampled[:1])
    assert alone[1].item() - alone[0].item() > 1.5
    with pytest.raises(ValueError, match="same resamples"):
        difference(resampled, resampled[:1])


def coverage(*, by_cluster: bool, n_trials: int = 300) -> float:
    """Return how often the interval holds the true mean, 0, of proteins in clusters of five."""
    held = 0
    for trial in range(n_trials):
        values, clusters = clustered(40, 5, spread=1.0, random=np.random.default_rng(trial))
        if not by_cluster:
            clusters = {name: name for name in clusters}
        lower, upper, _ = interval(Bootstrap.of(clusters, n_boot=300, seed=trial).means(values[None])[1])
        held += lower[0] <= 0 <= upper[0]
    return held / n_trials


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    assert 0.90 <= coverage(by_cluster=True) <= 0.985


def test_taking_similar_proteins_for_independent_ones_promises_too_much():
    assert coverage(by_cluster=False) < 0.75
