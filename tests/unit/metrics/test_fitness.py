"""Rank correlations by layer, against scipy and by hand; means, intervals, folds, ridge, retention depth."""

import logging
import math
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from scipy.stats import rankdata
from scipy.stats import spearmanr as scipy_spearman
from sklearn.linear_model import Ridge

from plm_depth.metrics.fitness import (
    FOLDS,
    LAMBDAS,
    Correlations,
    fitness,
    folds_of,
    levels_of,
    main,
    means_by_class,
    resampled_spearman,
    ridge_predictions,
    spearman,
    substitution_scores,
    weighted_ranks,
)
from plm_depth.metrics.summary import retention_depth
from plm_depth.randomness import generator
from plm_depth.tables import (
    FITNESS,
    FITNESS_GRAM,
    FITNESS_VAR,
    SUMMARY,
    VARIANTS,
    TableError,
    TableWriter,
    read_table,
    write_table,
)

LOG = logging.getLogger("test")
RNG = np.random.default_rng(0)


# ----------------------------------------------------------------------------------------------------------------
# Rank correlation


@pytest.mark.parametrize("with_ties", [False, True])
def test_spearman_is_scipys_with_and_without_ties(with_ties):
    scores, measured = RNG.normal(size=(4, 30)), RNG.normal(size=30)
    if with_ties:
        scores, measured = scores.round(0), measured.round(0)
    expected = [scipy_spearman(one, measured).statistic for one in scores]
    np.testing.assert_allclose(spearman(scores, measured), expected, atol=1e-12)


def test_monotone_transforms_leave_the_correlation_as_it_is_and_a_falling_one_flips_it():
    scores, measured = RNG.normal(size=25), RNG.normal(size=25)
    rho = spearman(scores, measured)
    assert spearman(np.exp(3 * scores) - 7, measured) == pytest.approx(rho, abs=1e-14)
    assert spearman(scores, measured**3) == pytest.approx(rho, abs=1e-14)
    assert spearman(-scores, measured) == pytest.approx(-rho, abs=1e-14)


def test_scores_that_are_all_equal_have_no_correlation():
    measured = RNG.normal(size=9)
    assert np.isnan(spearman(np.full(9, 0.3), measured)) and np.isnan(spearman(measured, np.zeros(9)))
    assert np.isnan(spearman(np.array([1.0, 2.0]), np.array([1.0, 2.0]))), "two variants are always in line"
    weights = np.ones((3, 9))
    assert np.isnan(resampled_spearman(np.full((1, 9), 0.3), measured, weights)).all()


@pytest.mark.parametrize("with_ties", [False, True])
def test_ranks_are_taken_anew_in_every_resample(with_ties):
    n = 20
    scores, measured = RNG.normal(size=(3, n)), RNG.normal(size=n)
    if with_ties:
        scores, measured = scores.round(0), measured.round(0)
    weights = RNG.multinomial(n, np.full(n, 1 / n), size=12).astype(float)
    found = resampled_spearman(scores, measured, weights)
    for b, drawn in enumerate(weights):
        of = np.repeat(np.arange(n), drawn.astype(int))
        expected = [scipy_spearman(one[of], measured[of]).statistic for one in scores]
        np.testing.assert_allclose(found[:, b], expected, atol=1e-12)


def test_weighted_ranks_of_weights_one_are_ordinary_ranks_less_a_half():
    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0])
    np.testing.assert_array_equal(weighted_ranks(values, np.ones((1, 5)))[0], rankdata(values) - 0.5)


# ----------------------------------------------------------------------------------------------------------------
# Means over assays


def correlations(value, ids, classes, resampled=None, n_var=None) -> Correlations:
    value = np.asarray(value, float)
    names = np.array([f"a{i}" for i in range(len(value))])
    n_var = np.full(len(value), 10) if n_var is None else np.array(n_var)
    return Correlations(names, np.array(ids), np.array(classes), n_var, value, resampled)


def one(levels, level, **names):
    [found] = [x for x in levels if x.level == level and all(getattr(x, k) == v for k, v in names.items())]
    return found


def test_means_go_from_assays_to_proteins_to_classes_to_all_as_by_hand():
    #            P (Activity) twice, Q (Activity), P (Binding), R (Binding)
    value = [[0.2, 0.0], [0.4, 0.2], [0.6, 0.6], [0.1, 0.5], [0.3, 0.7]]
    levels = levels_of(correlations(value, list("PPQPR"), ["Activity"] * 3 + ["Binding"] * 2), n_boot=10, seed=1)
    assert [x.level for x in levels] == ["assay"] * 5 + ["uniprot"] * 2 + ["category"] + ["uniprot"] * 2 + [
        "category", "all"]  # fmt: skip
    p = one(levels, "uniprot", uniprot_id="P", category="Activity")
    np.testing.assert_allclose(p.value, [0.3, 0.1])
    assert p.n_assay.tolist() == [2, 2] and p.n_uniprot.tolist() == [1, 1] and p.n_var == 20
    np.testing.assert_allclose(one(levels, "category", category="Activity").value, [0.45, 0.35])
    np.testing.assert_allclose(one(levels, "category", category="Binding").value, [0.2, 0.6])
    whole = one(levels, "all")
    np.testing.assert_allclose(whole.value, [0.325, 0.475])
    assert whole.n_uniprot.tolist() == [3, 3] and whole.n_assay.tolist() == [5, 5] and whole.n_var == 50
    assert whole.resampled == "none" and np.isnan(whole.lower).all()


def test_an_assay_without_a_correlation_is_left_out_of_the_means_and_counted():
    value = [[math.nan, 0.2], [0.4, 0.4], [0.1, 0.3]]
    levels = levels_of(correlations(value, list("PPQ"), ["A", "A", "B"]), n_boot=10, seed=1)
    np.testing.assert_allclose(one(levels, "category", category="A").value, [0.4, 0.3])
    whole = one(levels, "all")
    np.testing.assert_allclose(whole.value, [0.25, 0.3])
    assert whole.n_nan.tolist() == [1, 0] and whole.n_assay.tolist() == [2, 3]
    nothing = levels_of(correlations([[math.nan]], ["P"], ["A"]), n_boot=10, seed=1)
    assert np.isnan(one(nothing, "all").value).all()


def test_means_by_class_keep_a_protein_apart_in_each_of_its_classes():
    found = means_by_class(np.array([[1.0], [3.0], [5.0]]), np.array(["P", "P", "P"]), np.array(["A", "A", "B"]))
    assert {c: {u: v.tolist() for u, v in own.items()} for c, own in found.items()} == {
        "A": {"P": [2.0]},
        "B": {"P": [5.0]},
    }


def test_proteins_are_resampled_where_every_class_has_several_and_variants_where_one_has_a_single_one():
    random = np.random.default_rng(1)
    value = random.normal(size=(12, 1))
    resampled = value[:, :, None] + random.normal(scale=1e-3, size=(12, 1, 50))
    ids, classes = list("ABCDEFGHIJKL"), ["x"] * 6 + ["y"] * 6
    whole = one(levels_of(correlations(value, ids, classes, resampled), n_boot=4000, seed=1), "all")
    assert whole.resampled == "proteins"
    # Each class mean varies by std / sqrt(6), and both are averaged.
    spread = np.sqrt(sum(value[part].var() / 6 for part in (slice(0, 6), slice(6, 12)))) / 2
    assert (whole.upper - whole.lower)[0] == pytest.approx(2 * 1.96 * spread, rel=0.2)
    assert whole.n_boot[0] <= 4000
    alone = levels_of(correlations(value, ids, ["x"] * 11 + ["y"], resampled), n_boot=4000, seed=1)
    assert one(alone, "all").resampled == one(alone, "category", category="y").resampled == "variants"
    assert one(alone, "category", category="x").resampled == "proteins"
    assert one(alone, "all").n_boot[0] == 50
    assert (one(alone, "all").upper - one(alone, "all").lower)[0] < 0.01


def test_intervals_of_equal_proteins_are_points_and_the_same_resamples_serve_every_scorer():
    value = np.full((8, 2), 0.3)
    resampled = np.full((8, 2, 5), 0.3)
    found = correlations(value, list("ABCDEFGH"), ["x"] * 4 + ["y"] * 4, resampled)
    whole = one(levels_of(found, n_boot=200, seed=1), "all")
    np.testing.assert_allclose(np.r_[whole.lower, whole.upper], 0.3)
    shifted = correlations(value + np.arange(8)[:, None], list("ABCDEFGH"), ["x"] * 4 + ["y"] * 4, resampled)
    again = one(levels_of(shifted, n_boot=200, seed=1), "all")
    np.testing.assert_allclose(again.resamples[0], again.resamples[1])


# ----------------------------------------------------------------------------------------------------------------
# Folds and ridge


def test_folds_follow_positions_and_random_ones_their_key():
    positions = [(p,) for p in range(20)] + [(3, 4)]
    assert folds_of("modulo", positions, seed=1, assay_id="A").tolist() == [p % 5 for p in range(20)] + [-1]
    assert folds_of("contiguous", positions, seed=1, assay_id="A").tolist() == [p // 4 for p in range(20)] + [-1]
    same = folds_of("contiguous", [(9,), (9,), (100,), (9,)], seed=1, assay_id="A")
    assert same[0] == same[1] == same[3] != same[2], "a position lies in one fold"
    random = folds_of("random", positions, seed=1, assay_id="A")
    assert sorted(np.bincount(random)) == [4, 4, 4, 4, 5]
    assert (random == folds_of("random", positions, seed=1, assay_id="A")).all()
    assert (random != folds_of("random", positions, seed=1, assay_id="B")).any()


def test_predictions_from_inner_products_are_those_of_a_ridge_on_the_features():
    random = np.random.default_rng(3)
    features, fold = random.normal(size=(30, 7)), np.arange(30) % 5
    measured = features @ random.normal(size=7) + random.normal(size=30) + 5
    found = ridge_predictions(features @ features.T, measured, fold)
    for number in range(5):
        test, train = fold == number, fold != number
        x = features[train] - features[train].mean(0)
        scale = np.maximum(np.linalg.eigvalsh(x @ x.T), 0).mean()
        errors = []
        for factor in LAMBDAS:  # leave one out, one by one
            left = []
            for i in range(len(x)):
                others = np.arange(len(x)) != i
                model = Ridge(alpha=factor * scale).fit(x[others], measured[train][others])
                left.append(model.predict(x[i : i + 1])[0] - measured[train][i])
            errors.append(np.mean(np.square(left)))
        best = LAMBDAS[int(np.argmin(errors))]
        model = Ridge(alpha=best * scale).fit(features[train], measured[train])
        np.testing.assert_allclose(found[test], model.predict(features[test]), rtol=1e-6)


def test_a_rotation_of_the_features_changes_no_prediction_and_permuted_labels_are_not_learned():
    random = np.random.default_rng(4)
    features, fold = random.normal(size=(60, 10)), np.arange(60) % 5
    turn = np.linalg.qr(random.normal(size=(10, 10)))[0]
    measured = features @ random.normal(size=10)
    kernels = [x @ x.T for x in (features, features @ turn)]
    np.testing.assert_allclose(*(ridge_predictions(kernel, measured, fold) for kernel in kernels), rtol=1e-6)
    assert spearman(ridge_predictions(kernels[0], measured, fold), measured) > 0.95
    rho = []
    for seed in range(20):
        permuted = generator(seed, "labels").permutation(measured)
        predicted = ridge_predictions(kernels[0], permuted, fold)
        rho += [spearman(predicted[fold == k], permuted[fold == k]) for k in range(5)]
    assert abs(np.mean(rho)) < 3 * np.std(rho) / 10


def test_a_variant_without_a_fold_gets_no_prediction_and_equal_features_get_the_mean():
    measured = np.arange(8.0)
    found = ridge_predictions(np.zeros((8, 8)), measured, np.array([0, 0, 1, 1, 2, 2, -1, -1]))
    assert np.isnan(found[6:]).all()
    np.testing.assert_allclose(found[:2], measured[2:6].mean())


def test_the_substitution_matrix_scores_an_unchanged_protein_zero_and_adds_up():
    assert substitution_scores(["A1A"])[0] == 0
    w, d = substitution_scores(["W5A", "D9E"])
    assert (w, d) == (-3 - 11, 2 - 6), "M[W, A] - M[W, W] and M[D, E] - M[D, D] of BLOSUM62"
    assert substitution_scores(["W5A:D9E"])[0] == w + d


# ----------------------------------------------------------------------------------------------------------------
# Retention depth


def test_retention_depth_is_sustained_and_relative_to_layer_zero():
    profile = np.array([0.1, 0.5, 0.95, 0.4, 1.0])  # 0.95 is reached early, but not kept
    assert retention_depth(profile, fraction=0.9, floor=0.1) == 1.0
    assert retention_depth(profile, fraction=0.3, floor=0.1) == 0.25
    assert retention_depth(np.array([0.0, 0.95, 0.97, 1.0]), fraction=0.95, floor=0.0) == pytest.approx(1 / 3)


def test_retention_depth_of_a_strictly_rising_score_with_all_of_it_wanted_is_the_last_layer():
    rising = np.linspace(0.0, 1 / 3, 34)
    assert retention_depth(rising, fraction=1.0, floor=rising[0]) == 1.0
    scaled = retention_depth(np.stack([rising, 7 * rising + 2]), fraction=0.9, floor=np.array([0.0, 2.0]))
    assert scaled[0] == scaled[1], "scale and shift say nothing"


def test_retention_depth_is_undefined_where_the_last_layer_is_no_better_than_the_floor():
    assert np.isnan(retention_depth(np.array([0.3, 0.5, 0.3]), fraction=0.9, floor=0.3))
    assert np.isnan(retention_depth(np.array([0.3, np.nan, 0.6]), fraction=0.9, floor=0.3))


# ----------------------------------------------------------------------------------------------------------------
# The stage

ASSAYS = {
    "A": ("P1", "Binding", 16),
    "B": ("P1", "Binding", 12),
    "C": ("P2", "Binding", 14),
    "D": ("P3", "Activity", 15),
    "E": ("P4", "Activity", 15),
}
COMMON = {"model_id": "m", "family": "f", "n_blocks": 3, "d_model": 8, "dtype": "float32", "condition": "seq",
          "readout": "seq", "mask_draw": -1}  # fmt: skip
TRAINED = {"null_model": "trained", "null_seed": -1}


def measured_of(name: str) -> np.ndarray:
    return generator(1, "measured", name).normal(size=ASSAYS[name][2])


def scores_of(name: str, *key: object) -> np.ndarray:
    """Return scores (n, 4): layer 0 knows something, later layers more and more, layer 1 of assay D is constant."""
    measured = measured_of(name)
    noise = generator(2, name, *key).normal(size=(len(measured), 4))
    found = np.array([0.6, 0.75, 0.9, 1]) * measured[:, None] + np.array([1, 0.8, 0.5, 0.3]) * noise
    if name == "D":
        found[:, 1] = 0.5
    return found.astype(np.float32)


def write_variants(folder: Path, names=tuple(ASSAYS)) -> list[Path]:
    paths = []
    for number, part in enumerate((names[:2], names[2:])):
        with TableWriter(folder / f"variants{number}.parquet", VARIANTS) as writer:
            for name in part:
                uniprot_id, category, n = ASSAYS[name]
                writer.append(
                    {"assay_id": name, "uniprot_id": uniprot_id, "category": category, "sequence": "A" * 40,
                     "variant": list(range(n)), "mutations": [f"A{i + 1}{'CDEFGHIKLMNPQRSTVWY'[i]}" for i in range(n)],
                     "n_mutations": 1, "score": measured_of(name)}
                )  # fmt: skip
        paths.append(folder / f"variants{number}.parquet")
    return paths


def write_scores(folder: Path, *, directions=("none",), objective="mlm", scorers=("mask",), nulls=(TRAINED,), order=1):
    with TableWriter(folder / "scores.parquet", FITNESS_VAR) as writer:
        for null in nulls:
            for name in list(ASSAYS)[::order]:
                for scorer in scorers:
                    for direction in directions:
                        scores = scores_of(name, scorer, direction, *null.values())
                        numbers = np.arange(len(scores))[::order]
                        writer.append(
                            {**COMMON, **null, "objective": objective, "direction": direction, "noise_t": 0.025,
                             "scorer": scorer, "lens": "logit", "assay_id": name, "variant": numbers,
                             "scores": pa.array(scores[::order].tolist(), pa.list_(pa.float32()))}
                        )  # fmt: skip
    return folder / "scores.parquet"


def features_of(name: str, direction: str) -> np.ndarray:
    features = generator(3, name, direction).normal(size=(4, ASSAYS[name][2], 5))
    features[3, :, 0] += 6 * measured_of(name)
    return features


def write_gram(folder: Path, directions=("none",), names=tuple(ASSAYS)):
    with TableWriter(folder / "gram.parquet", FITNESS_GRAM) as writer:
        for name in names:
            for direction in directions:
                features = features_of(name, direction)
                n = features.shape[1]
                kernels = features @ features.transpose(0, 2, 1)
                writer.append(
                    {**COMMON, **TRAINED, "objective": "mlm", "direction": direction, "noise_t": 0.0, "assay_id": name,
                     "layer": list(range(4)), "variants": pa.array([list(range(n))] * 4, pa.list_(pa.int32())),
                     "gram": pa.array([k[np.tril_indices(n)].astype(np.float32) for k in kernels],
                                      pa.list_(pa.float32()))}
                )  # fmt: skip
    return folder / "gram.parquet"


def run(folder: Path, scores: Path, gram: Path | None = None, **options) -> tuple[pl.DataFrame, pl.DataFrame]:
    gram = gram or write_gram(folder, names=())
    out, summary = folder / "fitness.parquet", folder / "summary.parquet"
    fitness(write_variants(folder), [scores], [gram], out, summary,
            **{"n_boot": 200, "n_boot_variants": 100, "log": LOG, **options})  # fmt: skip
    tables = (read_table(out, FITNESS), read_table(summary, SUMMARY))
    return tuple(pl.from_arrow(table).with_columns(pl.col(pl.Categorical).cast(pl.String)) for table in tables)


def profile(table: pl.DataFrame, level="all", **where) -> list[float]:
    for name, value in {"level": level, "null_model": "trained", **where}.items():
        table = table.filter(pl.col(name) == value)
    table = table.sort("layer")
    assert table["layer"].to_list() == list(range(len(table)))
    return table["value"].to_list()


def test_correlations_and_their_means_are_those_of_scipy_by_hand(tmp_path):
    table, _ = run(tmp_path, write_scores(tmp_path))
    rho = {}
    for name in ASSAYS:
        scores = scores_of(name, "mask", "none", *TRAINED.values())
        rho[name] = [
            math.nan if name == "D" and k == 1 else scipy_spearman(scores[:, k], measured_of(name)).statistic
            for k in range(4)
        ]
        np.testing.assert_allclose(profile(table, "assay", assay_id=name, scorer="mask"), rho[name], atol=1e-6)
    a, b, c, d, e = (np.array(rho[name]) for name in ASSAYS)
    binding = ((a + b) / 2 + c) / 2
    activity = np.where(np.isnan(d), e, (d + e) / 2)
    np.testing.assert_allclose(profile(table, "category", category="Binding", scorer="mask"), binding, atol=1e-6)
    np.testing.assert_allclose(profile(table, scorer="mask"), (binding + activity) / 2, atol=1e-6)
    whole = table.filter((pl.col("level") == "all") & (pl.col("scorer") == "mask")).sort("layer")
    assert whole["n_nan"].to_list() == [0, 1, 0, 0] and whole["n_var"].to_list() == [72] * 4
    assert set(whole["resampled"]) == {"proteins"} and set(whole["noise_t"]) == {-1.0}
    assert (whole["ci_lo"] < whole["value"]).all() and (whole["value"] < whole["ci_hi"]).all()


def test_the_order_of_rows_and_assays_and_the_shards_change_nothing(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    first = run(tmp_path / "one", write_scores(tmp_path / "one"))
    other = run(tmp_path / "other", write_scores(tmp_path / "other", order=-1))
    for table, again in zip(first, other):
        assert table.equals(again, null_equal=True)


def test_how_many_resamples_are_ranked_at_once_changes_nothing(tmp_path, monkeypatch):
    whole = run(tmp_path, write_scores(tmp_path), write_gram(tmp_path), folds=["random"])
    monkeypatch.setattr("plm_depth.metrics.fitness.CELLS", 100)
    few = run(tmp_path, write_scores(tmp_path), write_gram(tmp_path), folds=["random"])
    for table, again in zip(whole, few):
        assert table.equals(again, null_equal=True)


def test_both_directions_are_averaged_variant_by_variant(tmp_path):
    scores = write_scores(tmp_path, directions=("n2c", "c2n"), objective="ar", scorers=("ar",))
    table, _ = run(tmp_path, scores)
    assert set(table["direction"]) == {"n2c", "c2n", "both", "none"}
    parts = [scores_of("A", "ar", direction, *TRAINED.values()).astype(float) for direction in ("n2c", "c2n")]
    expected = spearman(((parts[0] + parts[1]) / 2).T, measured_of("A"))
    np.testing.assert_allclose(profile(table, "assay", assay_id="A", direction="both"), expected, atol=1e-6)


def test_null_models_have_values_without_intervals_and_the_matrix_stands_once(tmp_path):
    nulls = (TRAINED, {"null_model": "randinit", "null_seed": 0}, {"null_model": "randinit", "null_seed": 1})
    table, summary = run(tmp_path, write_scores(tmp_path, nulls=nulls))
    null = table.filter(pl.col("null_model") == "randinit")
    assert null["ci_lo"].is_nan().all() and set(null["resampled"]) == {"none"} and set(null["null_seed"]) == {0, 1}
    baseline = table.filter((pl.col("scorer") == "blosum62") & (pl.col("level") == "assay")).sort("assay_id")
    assert set(baseline["layer"]) == {-1} and len(baseline) == 5
    expected = [float(spearman(substitution_scores([f"A{i + 1}{'CDEFGHIKLMNPQRSTVWY'[i]}" for i in range(n)])[None],
                               measured_of(name))[0]) for name, (_, _, n) in ASSAYS.items()]  # fmt: skip
    np.testing.assert_allclose(baseline["value"], expected, atol=1e-12)
    assert "fitness_blosum62" not in set(summary["profile"])


@pytest.mark.parametrize("directions", [("none",), ("n2c", "c2n")])
def test_the_ridge_learns_a_planted_feature_and_nothing_before_it(tmp_path, directions):
    scores = write_scores(tmp_path)
    table, summary = run(tmp_path, scores, write_gram(tmp_path, directions), folds=FOLDS)
    direction = "both" if len(directions) == 2 else "none"
    for kind in FOLDS:
        found = profile(table, scorer="emb_ridge", folds=kind, direction=direction)
        assert found[3] > 0.8 and max(found[:3]) < 0.6
    assert set(table.filter(pl.col("scorer") == "emb_ridge")["direction"]) == {direction}
    assert {f"fitness_emb_ridge_{kind}" for kind in FOLDS} <= set(summary["profile"])
    features = np.concatenate([features_of("A", one) for one in directions], axis=-1)
    kernels = features @ features.transpose(0, 2, 1)
    fold = np.arange(16) % 5
    predicted = ridge_predictions(kernels[3], measured_of("A"), fold)
    rho = [spearman(predicted[fold == k], measured_of("A")[fold == k]) for k in range(5)]
    found = profile(table, "assay", assay_id="A", scorer="emb_ridge", folds="modulo", direction=direction)
    assert found[3] == pytest.approx(np.nanmean(rho), abs=1e-6)


def test_the_summary_says_where_the_mean_profile_settles(tmp_path):
    table, summary = run(tmp_path, write_scores(tmp_path))
    values = np.array(profile(table, scorer="mask"))
    own = summary.filter(pl.col("profile") == "fitness_mask")
    assert sorted(zip(own["stat"], own["param"].fill_nan(-1))) == [
        ("best_layer", -1), ("retention_depth", 0.9), ("retention_depth", 0.95), ("retention_depth", 0.99)]  # fmt: skip
    by_stat = {(row["stat"], row["param"]): row for row in own.filter(pl.col("param").is_not_nan()).to_dicts()}
    row = by_stat["retention_depth", 0.9]
    bound = values[0] + 0.9 * (values[3] - values[0])
    expected = next(k for k in range(4) if (values[k:] >= bound - 1e-12).all()) / 3
    assert 0.9 * values[3] < values[int(3 * expected) - 1] < bound, "another floor would give another depth"
    assert row["value"] == pytest.approx(expected) and row["ci_lo"] <= row["value"] <= row["ci_hi"]
    assert row["n_seq"] == 4 and 0 < row["n_boot"] <= 200
    best = own.filter(pl.col("stat") == "best_layer")["value"][0]
    assert best == pytest.approx(values.argmax() / 3)


def test_a_retention_depth_that_is_undefined_has_no_interval(tmp_path):
    with TableWriter(tmp_path / "falling.parquet", FITNESS_VAR) as writer:
        for name in ASSAYS:
            scores = scores_of(name, "mask", "none", *TRAINED.values())[:, ::-1]  # the last layer knows nothing
            writer.append(
                {**COMMON, **TRAINED, "objective": "mlm", "direction": "none", "noise_t": 0.025, "scorer": "mask",
                 "lens": "logit", "assay_id": name, "variant": np.arange(len(scores)),
                 "scores": pa.array(scores.tolist(), pa.list_(pa.float32()))}
            )  # fmt: skip
    _, summary = run(tmp_path, tmp_path / "falling.parquet")
    undefined = summary.filter(pl.col("stat") == "retention_depth")
    assert undefined["value"].is_nan().all() and undefined["ci_lo"].is_nan().all() and set(undefined["n_boot"]) == {0}
    assert summary.filter(pl.col("stat") == "best_layer")["value"].to_list() == [0.0]


def test_scores_of_unknown_variants_twice_or_of_another_length_are_refused(tmp_path):
    scores = write_scores(tmp_path)
    variants = write_variants(tmp_path)
    paths = {"output": tmp_path / "o.parquet", "summary": tmp_path / "s.parquet"}
    gram = [write_gram(tmp_path, names=())]
    with pytest.raises(TableError, match="scores of variants of A that --variants does not hold"):
        fitness(variants[1:], [scores], gram, **paths, log=LOG)
    with pytest.raises(TableError, match="mask of assay A stands twice"):
        fitness(variants, [scores, scores], gram, **paths, log=LOG)
    with pytest.raises(TableError, match="assay A stands in two tables"):
        fitness([*variants, variants[0]], [scores], gram, **paths, log=LOG)
    columns = {
        **COMMON, **TRAINED, "objective": "mlm", "direction": "none", "noise_t": 0.0, "scorer": "wt", "lens": "logit",
        "assay_id": "A", "variant": [0, 1], "scores": pa.array([[1.0], [2.0]], pa.list_(pa.float32())),
    }  # fmt: skip
    write_table(columns, FITNESS_VAR, tmp_path / "short.parquet")
    with pytest.raises(TableError, match="2 scores of 2 variants of A; expected 4 each"):
        fitness(variants, [tmp_path / "short.parquet"], gram, **paths, log=LOG)
    assert not paths["output"].exists() and not paths["summary"].exists()


def test_a_model_without_scores_leaves_empty_tables(tmp_path, caplog):
    with TableWriter(tmp_path / "none.parquet", FITNESS_VAR):
        pass
    table, summary = run(tmp_path, tmp_path / "none.parquet")
    assert len(table) == len(summary) == 0
    assert "no score of any variant" in caplog.text


def test_the_command_line_ends_in_one_message_on_a_missing_table(tmp_path):
    with pytest.raises(SystemExit, match=r"metrics\.fitness: x: not a readable Parquet file"):
        main(["--variants", str(tmp_path / "nowhere.parquet"), "--scores", "x", "--gram", "x", "--output",
              str(tmp_path / "o"), "--summary", str(tmp_path / "s")])  # fmt: skip
