"""Geometry of clouds: laws of each statistic, known values, plain formulas, and left-out values computed anew."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import special_ortho_group
from sklearn.neighbors import NearestNeighbors

from plm_depth.metrics import clouds
from plm_depth.randomness import generator


def gauss(n: int, d: int, name: str = "cloud") -> np.ndarray:
    return generator(0, name, n, d).normal(size=(n, d))


def one_group(n: int) -> tuple[np.ndarray, int]:
    return np.zeros(n, np.int64), 1


def cka_of(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    debiased, biased = clouds.cka([x, y], *one_group(len(x)))
    return debiased[0, 0, 1], biased[0, 0, 1]


# ------------------------------------------------------------------------------------------------- leaving out


def test_the_jackknife_of_a_mean_over_single_points_is_its_usual_standard_error():
    x = gauss(40, 1)[:, 0]
    value, error = clouds.jackknife(clouds.left_out_means(x, np.arange(40), 40))
    assert value == pytest.approx(x.mean())
    assert error == pytest.approx(x.std(ddof=1) / math.sqrt(40))


def test_means_leave_out_what_is_undefined_and_say_so_where_nothing_is_left():
    x = np.array([1.0, np.nan, 3.0, np.nan])
    assert clouds.left_out_means(x, np.array([0, 0, 1, 1]), 2).tolist() == [2.0, 3.0, 1.0]
    found = clouds.left_out_means(np.array([np.nan, 2.0]), np.array([0, 1]), 2)
    assert found[:2].tolist() == [2.0, 2.0] and math.isnan(found[2])
    value, error = clouds.jackknife(clouds.left_out_means(x, *one_group(4)))
    assert value == 2 and math.isnan(error)


# ------------------------------------------------------------------------------------------------- angles (F1, V15)


def test_angular_distance_of_equal_opposite_and_orthogonal_vectors():
    x = clouds.units(gauss(20, 7))
    assert (clouds.angular_distance(x, x) == 0).all()
    np.testing.assert_allclose(clouds.angular_distance(x, -x), 1, atol=1e-15)
    along, across = np.eye(4)[:2]
    assert clouds.angular_distance(along, across) == pytest.approx(0.5, abs=1e-15)


@given(st.floats(1e-3, 1e3), st.floats(1e-6, math.pi - 1e-6))
@settings(max_examples=60, deadline=None)
def test_angular_distance_is_the_angle_and_free_of_positive_scale(factor, angle):
    x = np.array([[1.0, 0.0]])
    y = np.array([[math.cos(angle), math.sin(angle)]]) * factor
    assert clouds.angular_distance(clouds.units(x), clouds.units(y))[0] == pytest.approx(angle / math.pi, rel=1e-9)


def test_nearly_equal_vectors_keep_their_angle_in_single_precision_where_the_arc_cosine_loses_it():
    angle = 1e-3
    x = np.array([1.0, 0.0], np.float32)
    y = np.array([math.cos(angle), math.sin(angle)], np.float32)
    assert clouds.angular_distance(x, y) == pytest.approx(angle / math.pi, rel=1e-3)
    by_arc_cosine = math.acos(min(1.0, float((x * y).sum(dtype=np.float32)))) / math.pi
    assert abs(by_arc_cosine * math.pi / angle - 1) > 0.02


def test_all_pairs_of_layers_agree_with_the_plain_formula_in_pieces_too(monkeypatch):
    layers = [gauss(11, 5, f"layer{i}").astype(np.float32) for i in range(4)]
    groups = np.arange(11) % 3
    whole, _ = clouds.angular_distances(layers, groups, 3)
    monkeypatch.setattr(clouds, "NUMBERS_AT_ONCE", 1)
    pieces, _ = clouds.angular_distances(layers, groups, 3)
    np.testing.assert_allclose(whole, pieces, rtol=1e-12)
    for left in range(4):
        keep = np.full(11, True) if left == 0 else groups != left - 1
        for i in range(4):
            for j in range(4):
                x, y = layers[i][keep].astype(float), layers[j][keep].astype(float)
                cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
                plain = np.arccos(np.clip(cosine, -1, 1)).mean() / np.pi
                assert whole[left, i, j] == pytest.approx(plain, abs=3e-6)


def test_a_vector_without_length_has_no_direction_and_is_counted():
    layers = [gauss(6, 3, "a"), gauss(6, 3, "b")]
    layers[0][2] = 0
    found, undefined = clouds.angular_distances(layers, *one_group(6))
    kept = [0, 1, 3, 4, 5]
    expected = clouds.angular_distance(clouds.units(layers[0][kept]), clouds.units(layers[1][kept])).mean()
    assert found[0, 0, 1] == pytest.approx(expected)
    assert undefined.tolist() == [[1, 1], [1, 0]]


def test_anisotropy_is_the_mean_cosine_of_different_points():
    x = gauss(15, 4) + 1
    u = clouds.units(x)
    cosines = u @ u.T
    plain = (cosines.sum() - 15) / (15 * 14)
    groups = np.arange(15) % 5
    found = clouds.anisotropy(x, groups, 5)
    assert found[0] == pytest.approx(plain)
    for g in range(5):
        assert found[g + 1] == pytest.approx(clouds.anisotropy(x[groups != g], *one_group(12))[0])
    assert clouds.anisotropy(np.ones((9, 3)), *one_group(9))[0] == pytest.approx(1)
    assert abs(clouds.anisotropy(gauss(2000, 50), *one_group(2000))[0]) < 1e-3


# ------------------------------------------------------------------------------------------------- CKA (F2, V10)


def plain_cka(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return debiased and biased CKA by their textbook formulas: Gram matrices, nothing shared."""

    def unbiased(k, m):
        n = len(k)
        if n < 4:  # the textbook formula divides by n - 3
            return math.nan
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        corrected = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (corrected - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    debiased = unbiased(k, m) / math.sqrt(unbiased(k, k) * unbiased(m, m))
    x, y = x - x.mean(0), y - y.mean(0)
    biased = np.square(x.T @ y).sum() / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return debiased, biased


@pytest.mark.parametrize(("n", "width", "other"), [(30, 4, 7), (12, 40, 25), (5, 3, 3)])
def test_cka_is_the_textbook_formula_and_leaving_out_is_computing_anew(n, width, other):
    x = gauss(n, width, "x") + 2
    y = x[:, :3] @ gauss(3, other, "map") + 0.5 * gauss(n, other, "y")
    groups = np.arange(n) % 3
    debiased, biased = clouds.cka([x, y], groups, 3)
    assert (debiased[0, 0, 1], biased[0, 0, 1]) == pytest.approx(plain_cka(x, y), rel=1e-9)
    np.testing.assert_allclose(biased, np.swapaxes(biased, 1, 2), rtol=1e-12)
    for g in range(3):
        keep = groups != g
        expected = plain_cka(x[keep], y[keep])
        assert biased[g + 1, 0, 1] == pytest.approx(expected[1], rel=1e-8)
        if keep.sum() >= 4:
            assert debiased[g + 1, 0, 1] == pytest.approx(expected[0], rel=1e-7)
        else:
            assert math.isnan(debiased[g + 1, 0, 1])


def test_products_by_gram_matrices_and_by_coordinates_are_equal(monkeypatch):
    layers = [gauss(23, width, f"{width}") for width in (3, 9, 40)]
    groups = np.arange(23) % 4
    by_coordinates = clouds._products_by_coordinates(layers, groups, 4)
    np.testing.assert_allclose(clouds._products_by_gram(layers, groups, 4), by_coordinates, rtol=1e-10)
    monkeypatch.setattr(clouds, "NUMBERS_AT_ONCE", 1)
    np.testing.assert_allclose(clouds._products_by_gram(layers, groups, 4), by_coordinates, rtol=1e-10)
    assert by_coordinates[0, 0, 2] == pytest.approx(np.square(layers[0].T @ layers[2]).sum())


def test_cka_knows_rotation_scale_and_shift_but_not_general_linear_maps():
    x = gauss(200, 8)
    rotation = special_ortho_group(8, seed=generator(0, "rotation")).rvs()
    assert cka_of(x, x) == pytest.approx((1, 1))
    assert cka_of(x, 3.7 * x @ rotation + 5) == pytest.approx((1, 1), abs=1e-10)
    stretched = x @ np.diag([10.0, 5, 1, 1, 1, 0.1, 0.1, 0.1])
    assert max(cka_of(x, stretched)) < 0.8


def test_independent_clouds_look_alike_to_the_biased_form_only():
    debiased, biased = cka_of(gauss(200, 500, "one"), gauss(200, 500, "other"))
    assert abs(debiased) < 0.02
    assert biased == pytest.approx(0.72, abs=0.02)


def test_a_cloud_that_is_one_point_has_no_similarity():
    found = cka_of(np.ones((10, 3)), gauss(10, 3))
    assert all(map(math.isnan, found))


# ------------------------------------------------------------------------------------------------- spectrum (F4, V10)


def whitened(n: int, d: int) -> np.ndarray:
    x = gauss(n, d)
    x = x - x.mean(0)
    return np.linalg.svd(x, full_matrices=False)[0]


@pytest.mark.parametrize(("n", "width"), [(400, 16), (400, 700)])
def test_a_whitened_cloud_fills_all_its_dimensions(n, width):
    cloud = np.pad(whitened(n, 16), ((0, 0), (0, width - 16)))
    found = clouds.spectrum(cloud, *one_group(n))
    assert found["effective_rank"][0] == pytest.approx(16)
    assert found["participation"][0] == pytest.approx(16)
    assert found["top_share"][0] == pytest.approx(1 / 16)


def test_participation_of_a_gaussian_cloud_and_the_rank_of_a_line():
    n, d = 500, 16
    values = [clouds.spectrum(gauss(n, d, f"draw {i}"), *one_group(n))["participation"][0] for i in range(20)]
    assert np.mean(values) == pytest.approx(d / (1 + (d + 1) / n), rel=0.005)
    line = np.outer(gauss(50, 1)[:, 0], gauss(1, 9)[0]) + 3
    found = clouds.spectrum(line, *one_group(50))
    assert [found[name][0] for name in ("effective_rank", "participation", "top_share")] == pytest.approx([1, 1, 1])
    assert all(math.isnan(value[0]) for value in clouds.spectrum(np.ones((9, 4)), *one_group(9)).values())


@pytest.mark.parametrize("shape", [(60, 9), (30, 80)])
def test_spectrum_is_that_of_the_singular_values(shape):
    cloud = gauss(*shape) * np.linspace(0.1, 3, shape[1]) + 4
    singular = np.linalg.svd(cloud - cloud.mean(0), compute_uv=False)
    p = singular / singular.sum()
    p = p[p > 1e-10]
    found = clouds.spectrum(cloud, *one_group(shape[0]))
    assert found["effective_rank"][0] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    variances = singular**2
    assert found["participation"][0] == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
    assert found["top_share"][0] == pytest.approx(variances[0] / variances.sum())


def test_the_error_of_the_spectrum_is_close_to_that_of_spectra_computed_anew():
    cloud = gauss(400, 12) * np.linspace(0.5, 2, 12)
    groups = np.arange(400) % 20
    found = clouds.spectrum(cloud, groups, 20)
    anew = [clouds.spectrum(cloud[groups != g], *one_group(380)) for g in range(20)]
    for name, values in found.items():
        exact = np.array([values[0], *(one[name][0] for one in anew)])
        assert clouds.jackknife(values)[1] == pytest.approx(clouds.jackknife(exact)[1], rel=0.1)


# ------------------------------------------------------------------------------------------------- TwoNN (F3, V10)


def dimension(cloud: np.ndarray) -> dict[str, float]:
    found = clouds.two_nn(clouds.neighbours(cloud, 2)[0], *one_group(len(cloud)))
    return {name: values[0] for name, values in found.items()}


@pytest.mark.parametrize("d", [2, 5, 10])
def test_two_nn_finds_the_dimension_of_a_gaussian(d):
    draws = [gauss(2000, d, f"draw {i}") for i in range(5)]
    found = [dimension(cloud) for cloud in draws]
    for name in found[0]:
        assert np.mean([one[name] for one in found]) == pytest.approx(d, rel=0.05)
    basis = np.linalg.qr(gauss(30, d))[0]
    embedded = dimension(4.2 * draws[0] @ basis.T + 7)
    assert embedded == pytest.approx(found[0], rel=1e-6)


def test_two_nn_is_biased_low_in_many_dimensions():
    assert 14 < dimension(gauss(2000, 20))["two_nn_mle"] < 18.5


def test_two_nn_by_hand():
    distances = np.array([[1.0, math.e], [2.0, 2 * math.e**2], [1.0, math.e**0.5], [1.0, math.e**3]])
    found = clouds.two_nn(distances, np.array([0, 0, 1, 1]), 2)
    assert found["two_nn_mle"].tolist() == pytest.approx([3 / 6.5, np.nan, np.nan], nan_ok=True)
    x, y = np.array([0.5, 1, 2]), -np.log([3 / 4, 2 / 4, 1 / 4])
    assert found["two_nn_fit"][0] == pytest.approx((x * y).sum() / (x * x).sum())


# ------------------------------------------------------------------------------------------------- neighbours (F6, V10)


def test_neighbours_are_those_of_a_tree_and_never_the_point_itself():
    cloud = gauss(300, 6).astype(np.float32) + 100
    distances, found = clouds.neighbours(cloud, 10)
    exact, tree = NearestNeighbors(n_neighbors=10, algorithm="kd_tree").fit(cloud.astype(np.float64)).kneighbors()
    assert (np.sort(found) == np.sort(tree)).all()
    np.testing.assert_allclose(distances, exact, rtol=1e-4)
    assert (found != np.arange(300)[:, None]).all()


def test_overlap_of_a_cloud_with_itself_and_with_an_independent_one():
    _, one = clouds.neighbours(gauss(400, 12, "one"), 10)
    _, other = clouds.neighbours(gauss(400, 12, "other"), 10)
    assert (clouds.shared_neighbours(one, one) == 1).all()
    assert (clouds.shared_neighbours(one, one[:, ::-1]) == 1).all()
    assert clouds.shared_neighbours(one, other).mean() == pytest.approx(10 / 399, abs=0.01)
    plain = [len(set(a) & set(b)) / 10 for a, b in zip(one.tolist(), other.tolist())]
    assert clouds.shared_neighbours(one, other).tolist() == pytest.approx(plain)


def test_equal_points_are_found_and_those_with_too_many_of_them_have_no_neighbours():
    cloud = np.array([[0.0, 1], [2, 3], [-0.0, 1], [0, 1], [2, 3], [5, 5]])
    same = clouds.first_of_equal(cloud)
    assert same.tolist() == [0, 1, 0, 0, 1, 5]
    assert clouds.undefined_neighbours(same, 1).tolist() == [True, False, True, True, False, False]
    assert not clouds.undefined_neighbours(same, 2).any()


def test_labels_of_separate_heaps_are_found_and_those_of_chance_are_not():
    labels = np.repeat([0, 1, 2], [30, 30, 40])
    cloud = gauss(100, 5) + 50 * labels[:, None]
    share, chance = clouds.same_label(clouds.neighbours(cloud, 10)[1], labels)
    assert (share == 1).all()
    assert chance == pytest.approx((30 * 29 * 2 + 40 * 39) / (100 * 99))
    mixed, _ = clouds.same_label(clouds.neighbours(gauss(100, 5), 10)[1], labels)
    assert mixed.mean() == pytest.approx(chance, abs=0.06)
