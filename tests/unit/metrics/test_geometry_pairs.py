"""Two models layer against layer: ridge against the library, planted maps, the diagonal, and what the stage refuses."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import special_ortho_group
from sklearn.linear_model import Ridge as LibraryRidge

from plm_depth.metrics.geometry import Settings
from plm_depth.metrics.geometry_pairs import (
    CHOICE,
    PENALTIES,
    REST,
    TRAINING,
    Ridge,
    diagonal_distance,
    geometry_pairs,
    main,
    parts_of,
    random_distance,
)
from plm_depth.randomness import generator
from plm_depth.tables import CLUSTERS, STREAM_KEYS, VectorWriter, write_table

N_PROTEINS, N_ANCHORS = 40, 6
SMALL = Settings(groups=5, spaces=("raw",), points=("residue",))


def gauss(*shape: int, name: str = "x") -> np.ndarray:
    return generator(0, name, *shape).normal(size=shape)


# ------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(("width", "n"), [(8, 90), (70, 60)])
def test_the_map_is_the_library_s_ridge_regression_at_the_penalty_that_does_best_on_the_choice(width, n):
    x, y = gauss(n, width) + 3, gauss(n, 5, name="y")
    y = y + x[:, :4] @ gauss(4, 5, name="map") - 7
    part = np.repeat([TRAINING, CHOICE, REST], [n // 2, n // 4, n - n // 2 - n // 4])
    train, choice, rest = (part == p for p in (TRAINING, CHOICE, REST))
    centred = x[train] - x[train].mean(0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    scale = variances[variances > 1e-9].mean()
    fits = [LibraryRidge(alpha=penalty * scale).fit(x[train], y[train]) for penalty in PENALTIES]
    best = int(np.argmin([np.square(fit.predict(x[choice]) - y[choice]).sum() for fit in fits]))
    missed, spread, place = Ridge(x, part).misses(y)
    assert place == best
    np.testing.assert_allclose(missed, np.linalg.norm(fits[best].predict(x[rest]) - y[rest], axis=1), rtol=1e-7)
    np.testing.assert_allclose(spread, np.linalg.norm(y[rest] - y[train].mean(0), axis=1), rtol=1e-9)


def test_a_linear_function_is_mapped_without_error_and_noise_no_better_than_by_its_mean():
    x, part = gauss(300, 10), np.arange(300) % 3
    missed, spread, _ = Ridge(x, part).misses(x @ gauss(10, 20, name="map") + 5)
    assert missed.sum() / spread.sum() < 1e-3
    missed, spread, _ = Ridge(x, part).misses(gauss(300, 20, name="noise"))
    assert 1 <= missed.sum() / spread.sum() < 1.2


def test_parts_hold_whole_clusters_and_do_not_depend_on_the_order():
    clusters = np.array([f"c{i // 3}" for i in range(150)])
    part = parts_of(clusters, seed=1)
    for name in set(clusters):
        assert len(set(part[clusters == name])) == 1
    assert np.bincount(part).tolist() == [90, 30, 30]
    order = generator(0, "order").permutation(150)
    assert (parts_of(clusters[order], seed=1) == part[order]).all()
    assert (parts_of(clusters, seed=2) != part).any()


def test_the_diagonal_is_measured_in_relative_depth():
    errors = np.ones((5, 9))
    errors[np.arange(9) // 2, np.arange(9)] = 0
    assert diagonal_distance(errors) == pytest.approx(4 * (1 / 8) / 9)
    first = np.ones((5, 9))
    first[0] = 0.5
    assert diagonal_distance(first) == pytest.approx(0.5)
    assert diagonal_distance(np.stack([errors, first])).tolist() == [
        diagonal_distance(errors),
        diagonal_distance(first),
    ]
    first[2, 3] = np.nan
    assert np.isnan(diagonal_distance(first))
    draws = generator(0, "draws").random((4000, 5, 9))
    assert random_distance(5, 9) == pytest.approx(diagonal_distance(draws).mean(), abs=0.005)
    assert random_distance(2, 2) == 0.5


# ------------------------------------------------------------------------------------------------- the stage


def stream(path: Path, layers: np.ndarray, model: str, *, proteins=range(N_PROTEINS), seed: int = -1) -> Path:
    """Write a stream table of (n_layers, N_PROTEINS, N_ANCHORS, width) vectors of some proteins."""
    n_layers, _, _, width = layers.shape
    constants = {"model_id": model, "family": "f", "objective": "mlm", "n_blocks": n_layers - 1, "d_model": width,
                 "dtype": "float32", "readout": "seq"}  # fmt: skip
    with VectorWriter(path, STREAM_KEYS, range(n_layers), width, "float32", constants) as writer:
        for p in proteins:
            keys = {"sequence_id": f"P{p:02d}", "n_residues": 50, "null_model": "trained" if seed < 0 else "randinit",
                    "null_seed": seed, "condition": "seq", "direction": "none", "noise_t": 0.0, "mask_draw": -1,
                    "position": np.array([-1, *range(N_ANCHORS)])}  # fmt: skip
            writer.append(keys, np.concatenate([layers[:, p].mean(1, keepdims=True), layers[:, p]], axis=1))
    return path


@pytest.fixture
def clusters(tmp_path) -> Path:
    ids = [f"P{i:02d}" for i in range(N_PROTEINS)]
    write_table({"sequence_id": ids, "cluster_id": [f"C{i // 2}" for i in range(N_PROTEINS)]}, CLUSTERS,
                tmp_path / "clusters.parquet")  # fmt: skip
    return tmp_path / "clusters.parquet"


@pytest.fixture
def shallow_layers() -> np.ndarray:
    """Three independent clouds: no layer tells anything about another."""
    return gauss(3, N_PROTEINS, N_ANCHORS, 6)


def stretched(layers: np.ndarray) -> np.ndarray:
    """Return a deeper model that does the same at twice the depth, in another basis and of another width."""
    rotation = special_ortho_group(9, seed=generator(0, "rotation")).rvs()[:6]
    return (2 * layers[[0, 0, 1, 1, 2]]) @ rotation + 1


def test_a_stretched_model_is_mapped_along_the_diagonal(clusters, shallow_layers, tmp_path):
    one = stream(tmp_path / "one.parquet", shallow_layers, "shallow")
    other = stream(tmp_path / "other.parquet", stretched(shallow_layers), "deep")
    geometry_pairs([one], [other], clusters, tmp_path / "pair.parquet", settings=SMALL)
    table = pl.read_parquet(tmp_path / "pair.parquet").with_columns(pl.col(pl.Categorical).cast(pl.String))
    assert set(table["model_id"]) == {"shallow"} and set(table["model_j"]) == {"deep"}

    def matrix(quantity: str) -> np.ndarray:
        rows = table.filter(pl.col("quantity") == quantity).sort("layer_i", "layer_j")
        assert rows.height == 15
        return rows["value"].to_numpy().reshape(3, 5)

    is_source = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], bool)
    assert matrix("map_error")[is_source].max() < 0.01 and matrix("map_error")[~is_source].min() > 0.95
    np.testing.assert_allclose(matrix("cka")[is_source], 1, atol=1e-6)
    assert np.abs(matrix("cka")[~is_source]).max() < 0.1
    values = dict(table.filter(pl.col("layer_i") == -1).select("quantity", "value").iter_rows())
    assert values["map_diagonal"] == pytest.approx((0.25 + 0.25) / 5)
    assert values["map_diagonal_random"] == pytest.approx(random_distance(3, 5))
    assert set(table.filter(pl.col("quantity") == "map_error")["n_points"]) == {8 * N_ANCHORS}


def test_shards_order_and_proteins_of_one_model_only_change_no_number(clusters, shallow_layers, tmp_path):
    deep = stretched(shallow_layers) + 0.3 * gauss(5, N_PROTEINS, N_ANCHORS, 9, name="noise")
    one = stream(tmp_path / "one.parquet", shallow_layers, "shallow", proteins=range(30))
    whole = stream(tmp_path / "whole.parquet", deep, "deep", proteins=range(30))
    cut = [
        stream(
            tmp_path / f"cut{i}.parquet", deep, "deep", proteins=generator(0, i).permutation(range(i, N_PROTEINS, 7))
        )
        for i in range(7)
    ]
    for name, paths in (("whole", [whole]), ("cut", cut[::-1])):
        geometry_pairs([one], paths, clusters, tmp_path / f"{name}.pair.parquet", settings=SMALL)
    found = [pl.read_parquet(tmp_path / f"{name}.pair.parquet") for name in ("whole", "cut")]
    assert found[0].equals(found[1])


def test_networks_are_compared_with_those_of_the_same_seed(clusters, shallow_layers, tmp_path):
    paths = {}
    for model, layers in (("shallow", shallow_layers), ("deep", stretched(shallow_layers))):
        paths[model] = [
            stream(tmp_path / f"{model}{seed}.parquet", layers * (seed + 2), model, seed=seed)
            for seed in ((-1, 0, 1) if model == "deep" else (-1, 1, 2))
        ]
    geometry_pairs(paths["shallow"], paths["deep"], clusters, tmp_path / "pair.parquet", settings=SMALL)
    table = pl.read_parquet(tmp_path / "pair.parquet")
    assert set(table["null_seed"]) == {-1, 1}


def test_what_cannot_be_compared_ends_in_one_message(clusters, shallow_layers, tmp_path):
    one = stream(tmp_path / "one.parquet", shallow_layers, "shallow")
    untrained = stream(tmp_path / "untrained.parquet", shallow_layers, "deep", seed=0)
    few = stream(tmp_path / "few.parquet", shallow_layers, "deep", proteins=range(2))
    output = tmp_path / "pair.parquet"

    def run(deep: Path, *more: str) -> None:
        main(["--shallow", str(one), "--deep", str(deep), "--clusters", str(clusters), "--output", str(output), *more])

    for deep, complaint in (
        (one, "both are tables of shallow; give the tables of two models"),
        (untrained, "shallow and deep have no view, null model and kind of points in common"),
        (few, "shallow and deep have too few points in common; measure more proteins"),
        (tmp_path / "nothing.parquet", "not a readable Parquet file"),
    ):
        with pytest.raises(SystemExit, match=f"metrics.geometry_pairs: .*{complaint}"):
            run(deep)
    with pytest.raises(SystemExit, match="points is"):
        run(untrained, "--settings", '{"points": ["atom"]}')
    assert not output.exists()
