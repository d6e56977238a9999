"""Folds, probes, scores and plateaus: planted labels, labels without meaning, and other people's formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from plm_depth.metrics.bootstrap import Bootstrap
from plm_depth.metrics.probing import (
    PENALTIES,
    Notes,
    ProbeError,
    Scaling,
    best_layer,
    chance_of,
    choose_penalty,
    cross_validated,
    fit_linear,
    fit_probe,
    folds_of,
    merged_groups,
    plateau,
    retention_depth,
    scaled,
    scores,
    shallowest,
    splits,
)
from plm_depth.randomness import generator


def proteins(n, n_groups, seed=0):
    """Return the group of each of n proteins, and rows: (owner, group name)."""
    random = generator(seed, "groups")
    return {f"P{i:03d}": f"G{random.integers(n_groups) if i >= n_groups else i}" for i in range(n)}


def rows_of(groups, per_protein):
    names = sorted(groups)
    owner = np.repeat(np.arange(len(names)), per_protein)
    return names, owner, np.array([groups[name] for name in names])[owner]


# ----------------------------------------------------------------------------------------------------------------
# Folds


def test_proteins_that_share_any_label_are_one_group_and_unknown_labels_join_nothing():
    cluster = ["a", "a", "b", "c", "d", "e"]
    superfamily = ["", "s", "s", "", "", "t"]
    assert merged_groups(cluster, superfamily).tolist() == [0, 0, 0, 3, 4, 5]
    assert merged_groups(cluster).tolist() == [0, 0, 2, 3, 4, 5]
    with pytest.raises(ProbeError, match="expected one each"):
        merged_groups(cluster, ["a"])


@given(st.integers(3, 40), st.integers(2, 5), st.integers(0, 5), st.randoms())
def test_folds_hold_whole_groups_and_do_not_depend_on_the_order_of_the_proteins(n, n_folds, seed, random):
    groups = proteins(n, max(n_folds, n // 3), seed)
    if len(set(groups.values())) < n_folds:
        return
    found = folds_of(groups, n_folds=n_folds, seed=seed)
    for group in set(groups.values()):
        assert len({found[p] for p in groups if groups[p] == group}) == 1
    assert set(found.values()) == set(range(n_folds))
    shuffled = list(groups)
    random.shuffle(shuffled)
    assert folds_of({p: groups[p] for p in shuffled}, n_folds=n_folds, seed=seed) == found


def test_folds_are_balanced_by_size_and_by_class():
    random = generator(0, "sizes")
    groups = {f"P{i}": f"P{i}" for i in range(60)}
    sizes = {p: random.integers(1, 50, size=3).tolist() for p in groups}
    found = folds_of(groups, n_folds=5, seed=0, sizes=sizes)
    load = np.array([np.sum([sizes[p] for p in groups if found[p] == fold], axis=0) for fold in range(5)])
    assert (abs(load / load.mean(0) - 1) < 0.15).all()
    one_class_each = {p: np.eye(3)[i % 3] for i, p in enumerate(groups)}
    found = folds_of(groups, n_folds=5, seed=0, sizes=one_class_each)
    load = np.array([np.sum([one_class_each[p] for p in groups if found[p] == fold], axis=0) for fold in range(5)])
    assert (load == 4).all()


def test_another_seed_makes_other_folds_and_too_few_groups_are_refused():
    groups = {f"P{i}": f"P{i}" for i in range(30)}
    assert folds_of(groups, n_folds=3, seed=0) != folds_of(groups, n_folds=3, seed=1)
    with pytest.raises(ProbeError, match="2 groups of 3 proteins in 3 folds"):
        folds_of({"a": "x", "b": "x", "c": "y"}, n_folds=3, seed=0)


def test_every_row_is_test_once_validation_once_and_never_both():
    fold = generator(0, "fold").integers(4, size=200)
    found = splits(fold, 4)
    assert sorted(np.concatenate([s.test for s in found]).tolist()) == list(range(200))
    assert sorted(np.concatenate([s.valid for s in found]).tolist()) == list(range(200))
    for split in found:
        assert sorted([*split.train, *split.valid, *split.test]) == list(range(200))
    with pytest.raises(ProbeError, match="at least 3"):
        splits(fold % 2, 2)
    with pytest.raises(ProbeError, match=r"folds \[3\] have no rows"):
        splits(fold % 3, 4)


# ----------------------------------------------------------------------------------------------------------------
# One probe


def test_scaling_is_fitted_on_training_rows_and_silences_constant_coordinates():
    x = generator(0, "x").normal(3, 5, size=(100, 6))
    x[:, 2] = 7.0
    x[:, 3] *= 1e4
    z = Scaling.of(x)(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(0), [1, 1, 0, 1, 1, 1], atol=1e-12)
    rows = Scaling.of(x[:50])
    np.testing.assert_allclose(rows(x[:50]).std(0), [1, 1, 0, 1, 1, 1], atol=1e-12)
    assert abs(rows(x)[50:].mean(0)).max() > 0.01
    whole = Scaling.of(x, scaling="global")(x)
    np.testing.assert_allclose(whole.var(0).mean(), 1)


def test_capacity_keeps_the_directions_of_largest_variance():
    random = generator(0, "pca")
    x = random.normal(size=(300, 4)) @ random.normal(size=(4, 50)) + 0.01 * random.normal(size=(300, 50))
    scale = Scaling.of(x, capacity=4, scaling="global")
    assert scale.dim == 4 and Scaling.of(x, capacity=50).dim == 50 and Scaling.of(x, capacity=None).dim == 50
    z = scale(x)
    kept = z.var(0).sum() / Scaling.of(x, capacity=None, scaling="global")(x).var(0).sum()
    assert 0.99 < kept <= 1


@pytest.mark.parametrize("kind", ["regression", "classification", "multi-label"])
def test_a_planted_linear_label_is_found(kind):
    random = generator(0, "planted")
    label, signs, x = random.integers(3, size=300), random.random((300, 2)) < 0.5, random.normal(size=(300, 12))
    x[:, :3], x[:, 3:5] = np.eye(3)[label], signs
    y = {"regression": 3 * x[:, 5] - x[:, 6] + 2, "classification": label, "multi-label": signs}[kind]
    x = x @ np.linalg.qr(random.normal(size=(12, 12)))[0]
    probe = fit_probe(x[:200], y[:200], kind=kind)
    found = probe(x[200:])
    if kind == "regression":
        np.testing.assert_allclose(found, y[200:], atol=0.01)
    elif kind == "classification":
        assert (found.argmax(1) == y[200:]).all()
        np.testing.assert_allclose(found.sum(1), 1)
    else:
        assert ((found > 0.5) == y[200:]).all()
    assert probe.penalty == min(PENALTIES)


@pytest.mark.parametrize("kind", ["regression", "classification", "multi-label"])
@pytest.mark.parametrize("scaling", ["global", "coordinate"])
def test_a_rotated_stream_gives_the_same_probe_unless_coordinates_are_scaled(kind, scaling):
    random = generator(1, "rotation")
    x = random.normal(size=(150, 6)) * [0.05, 1, 1, 1, 3, 9]
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    raw = x[:, :3] * [20, 1, 1] + random.normal(size=(150, 3))
    y = {"regression": raw[:, 0], "classification": raw.argmax(1), "multi-label": raw > 0}[kind]
    options = {"kind": kind, "scaling": scaling, "penalties": [0.1]}
    plain = fit_probe(x, y, **options)(x)
    rotated = fit_probe(x @ rotation, y, **options)(x @ rotation)
    same = np.allclose(plain, rotated, atol=2e-3)
    assert same == (scaling == "global")


def test_labels_of_every_unit_and_offset_give_the_same_ridge():
    random = generator(0, "unit")
    x, y = random.normal(size=(60, 5)), random.normal(size=60)
    plain = fit_probe(x, y, kind="regression", penalties=[0.1])(x)
    other = fit_probe(x, 1000 * y - 7, kind="regression", penalties=[0.1])(x)
    np.testing.assert_allclose(other, 1000 * plain - 7, rtol=1e-9, atol=1e-9)


def test_a_ridge_is_the_minimum_of_its_stated_loss():
    random = generator(0, "ridge")
    z, y = random.normal(size=(50, 4)), random.normal(size=50)
    z -= z.mean(0)
    standard = (y - y.mean()) / y.std()
    linear = fit_linear(z, y, kind="regression", penalties=[0.3])[0]
    expected = np.linalg.solve(z.T @ z / 50 + 0.3 * np.eye(4), z.T @ standard / 50)
    np.testing.assert_allclose(linear.weights[:, 0] / y.std(), expected, rtol=1e-9)


def test_the_penalty_is_chosen_by_groups_not_by_rows():
    """Rows of a group are near copies; only held-out groups show that nothing general was learned."""
    random = generator(0, "copies")
    centres, labels = random.normal(size=(30, 40)), random.integers(2, size=30)
    group = np.repeat(np.arange(30), 20)
    x, y = centres[group] + 0.01 * random.normal(size=(600, 40)), labels[group]
    by_rows = choose_penalty(x, y, np.arange(600), kind="classification", n_classes=2)
    by_groups = choose_penalty(x, y, group, kind="classification", n_classes=2)
    assert by_rows == min(PENALTIES) and by_groups == max(PENALTIES)
    outer = splits(group % 3, 3)
    found = cross_validated(scaled(x, outer), y, group, outer, kind="classification")
    assert (found.penalty == max(PENALTIES)).all()
    probe = fit_probe(x, y, group, kind="classification")
    assert probe.penalty == max(PENALTIES)


def test_classes_absent_from_training_are_never_said_and_one_class_is_a_constant():
    random = generator(0, "absent")
    x, y = random.normal(size=(40, 3)), random.integers(2, size=40) * 2
    probe, notes = fit_probe(x, y, kind="classification", n_classes=4), Notes()
    found = probe(x)
    assert found.shape == (40, 4) and (found[:, [1, 3]] == 0).all() and (found[:, [0, 2]] > 0).all()
    constant = fit_probe(x, np.full(40, 3), kind="classification", n_classes=4, penalties=[1.0], notes=notes)
    assert (constant(x) == [0, 0, 0, 1]).all() and notes.constant == notes.fits == 1
    none = fit_probe(x, np.zeros((40, 2), bool), kind="multi-label", penalties=[1.0])
    assert (none(x) < 0.05).all()
    assert (fit_probe(x, np.full(40, 2.5), kind="regression", penalties=[1.0])(x) == 2.5).all()


@pytest.mark.parametrize(
    ("y", "kind", "message"),
    [
        (np.zeros((5, 2)), "regression", "shape"),
        (np.zeros(5), "multi-label", "shape"),
        (np.array([0, 1, 2, np.nan, 1]), "regression", "not finite"),
        (np.array([0, 1, 2, 3, -1]), "classification", "classes -1..3"),
        (np.zeros(4), "regression", "5 rows of features and 4"),
        (np.zeros(5), "ranking", "expected one of regression"),
    ],
)
def test_targets_that_no_probe_can_be_fitted_on_are_refused(y, kind, message):
    with pytest.raises(ProbeError, match=message):
        fit_probe(np.eye(5), y, kind=kind)


def test_features_that_are_not_finite_or_one_group_alone_are_refused():
    with pytest.raises(ProbeError, match="features that are not finite"):
        fit_probe(np.full((5, 2), np.nan), np.arange(5.0), kind="regression")
    with pytest.raises(ProbeError, match="of 1 group"):
        fit_probe(np.eye(5), np.arange(5.0), np.zeros(5), kind="regression")


# ----------------------------------------------------------------------------------------------------------------
# Cross-validation


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_labels_without_meaning_give_chance_within_three_standard_errors(kind):
    random = generator(3, "chance")
    groups = proteins(60, 40)
    names, owner, group = rows_of(groups, 20)
    x = random.normal(size=(1200, 10))
    y = random.normal(size=1200) if kind == "regression" else random.integers(3, size=1200)
    fold_of = folds_of(groups, n_folds=4, seed=0)
    outer = splits(np.array([fold_of[name] for name in names])[owner], 4)
    found = cross_validated(scaled(x, outer), y, group, outer, kind=kind)
    if kind == "regression":
        value = scores("spearman", y, found.test[None]).value[0]
        assert abs(value) < 3 / np.sqrt(1200)
    else:
        value = scores("accuracy", y, found.test[None]).value[0]
        assert abs(value - 1 / 3) < 3 * np.sqrt(2 / 9 / 1200)


def test_random_splits_leak_what_splits_by_group_do_not():
    """Labels that are random but for a group's own: learned from its other rows, and from nothing else (V22)."""
    random = generator(0, "leak")
    group = np.repeat(np.arange(60), 10)
    centres, labels = random.normal(size=(60, 16)), random.integers(2, size=60)
    x, y = centres[group] + 0.3 * random.normal(size=(600, 16)), labels[group]
    accuracy = {}
    for name, units in (("rows", np.arange(600)), ("groups", group)):
        of_unit = folds_of({str(u): str(u) for u in np.unique(units)}, n_folds=5, seed=0)
        outer = splits(np.array([of_unit[str(u)] for u in units]), 5)
        found = cross_validated(scaled(x, outer), y, units, outer, kind="classification")
        accuracy[name] = scores("accuracy", y, found.test[None]).value[0]
    assert accuracy["rows"] > 0.65 and accuracy["groups"] < 0.6
    assert accuracy["rows"] - accuracy["groups"] > 0.15


def test_each_prediction_comes_from_a_probe_that_saw_neither_test_nor_validation_rows():
    random = generator(0, "unseen")
    x, y = random.normal(size=(90, 4)), random.normal(size=90)
    group, fold = np.arange(90), np.arange(90) % 3
    outer = splits(fold, 3)
    found = cross_validated(scaled(x, outer), y, group, outer, kind="regression")
    for split, penalty in zip(outer, found.penalty):
        probe = fit_probe(x[split.train], y[split.train], kind="regression", penalties=[penalty])
        np.testing.assert_allclose(found.test[split.test], probe(x[split.test]), rtol=1e-9)
        np.testing.assert_allclose(found.valid[split.valid], probe(x[split.valid]), rtol=1e-9)
    assert found.n_train.tolist() == [30, 30, 30] and found.dim.tolist() == [4, 4, 4]
    other = cross_validated(scaled(x, outer), -y, group, outer, kind="regression", penalties=found.penalty)
    assert (other.penalty == found.penalty).all()
    np.testing.assert_allclose(other.test, -found.test, rtol=1e-9)


# ----------------------------------------------------------------------------------------------------------------
# Scores


def reference_score(metric, y, prediction):
    if metric == "accuracy":
        return reference.accuracy_score(y, prediction.argmax(1))
    if metric == "macro_f1":
        return reference.f1_score(y, prediction.argmax(1), average="macro", zero_division=0)
    if metric == "mcc":
        return reference.matthews_corrcoef(y, prediction.argmax(1))
    if metric == "auroc":
        return reference.roc_auc_score(y, prediction[:, 1])
    if metric == "macro_auprc":
        occurs = y.any(0)
        return reference.average_precision_score(y[:, occurs], prediction[:, occurs], average="macro")
    if metric == "r2":
        return reference.r2_score(y, prediction)
    return (stats.spearmanr if metric == "spearman" else stats.pearsonr)(y, prediction).statistic


def case_of(metric, seed, n=80):
    """Return a target and predictions of two layers with ties."""
    random = generator(seed, metric)
    if metric in ("spearman", "pearson", "r2"):
        y = np.round(random.normal(size=n), 1)
        return y, np.round(y + random.normal(size=(2, n)), 1)
    if metric == "macro_auprc":
        y = random.random((n, 3)) < [0.5, 0.2, 0.1]
        return y, np.round((y + random.random((2, n, 3))) / 2, 1)
    classes = 2 if metric == "auroc" else 3
    y = random.integers(classes, size=n)
    raw = np.round(np.eye(classes)[y] + random.random((2, n, classes)) * 3, 1)
    return y, raw / raw.sum(-1, keepdims=True)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mcc", "auroc", "spearman", "pearson", "r2", "macro_auprc"])
def test_scores_and_their_resamples_are_those_of_other_libraries_on_the_drawn_rows(metric):
    y, predictions = case_of(metric, 0)
    owner = np.repeat(np.arange(10), 8)
    bootstrap = Bootstrap.of({f"P{i}": f"C{i // 2}" for i in range(10)}, n_boot=7, seed=0)
    found = scores(metric, y, predictions, owner=owner, bootstrap=bootstrap, at_once=160)
    assert found.value.shape == (2,) and found.resampled.shape == (2, 7)
    for layer in range(2):
        assert found.value[layer] == pytest.approx(reference_score(metric, y, predictions[layer]), abs=1e-12)
        for b in range(7):
            rows = np.repeat(np.arange(80), bootstrap.weights[b][bootstrap.cluster[owner]].astype(int))
            expected = reference_score(metric, y[rows], predictions[layer][rows])
            assert found.resampled[layer, b] == pytest.approx(expected, abs=1e-10)


def test_undefined_scores_are_nan():
    y, flat = np.arange(6.0), np.zeros((1, 6))
    for metric in ("spearman", "pearson"):
        assert np.isnan(scores(metric, y, flat).value[0])
    one_class = np.zeros(6, int)
    assert np.isnan(scores("auroc", one_class, np.full((1, 6, 2), 0.5)).value[0])
    with pytest.raises(ProbeError, match="metric 'brier'"):
        scores("brier", y, flat)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mcc", "auroc", "macro_auprc"])
def test_the_chance_level_is_the_score_of_a_constant_guess(metric):
    y, predictions = case_of(metric, 1, 200)
    if metric == "macro_auprc":
        guess = np.full(y.shape, 0.5)
    else:
        guess = np.tile(np.eye(predictions.shape[2])[np.bincount(y).argmax()], (len(y), 1))
    expected = scores(metric, y, guess[None])
    assert expected.chance == pytest.approx(expected.value[0]) == chance_of(metric, y)


# ----------------------------------------------------------------------------------------------------------------
# Layers


def test_the_plateau_holds_all_layers_within_the_tolerance_and_its_shallowest_is_named():
    score = np.array([0.5, 0.79, 0.6, 0.80, 0.785, 0.7])
    assert plateau(score).tolist() == [False, True, False, True, True, False]
    assert shallowest(score, [0, 2, 4, 6, 8, 10]) == 2
    assert best_layer(score, [0, 2, 4, 6, 8, 10]) == 6
    assert plateau(-score)[0] and not plateau(-score)[1:].any()
    assert plateau(np.array([np.nan, 1.0])).tolist() == [False, True]
    assert np.isnan(shallowest(np.full((2, 3), np.nan), [0, 1, 2])).all()


def test_retention_is_sustained_relative_to_a_floor_and_nan_below_it():
    score = np.array([0.3, 0.96, 0.5, 0.96, 1.0])
    layers = [0, 1, 2, 3, 4]
    assert retention_depth(score, layers, floor=0.3, share=0.9) == 3
    assert retention_depth(score, layers, floor=0.3, share=0.99) == 4
    assert retention_depth(score, layers, floor=0.9, share=0.5) == 3
    assert retention_depth(np.array([0.1, 0.7, 0.71]), [0, 5, 10], floor=0.1, share=0.9) == 5
    assert np.isnan(retention_depth(np.array([0.5, 0.6, 0.3]), [0, 1, 2], floor=0.3, share=0.9))
    both = retention_depth(np.array([[0, 1.0], [1.0, 0]]), [0, 1], floor=np.array([0.5, 0.5]), share=0.5)
    assert both[0] == 1 and np.isnan(both[1])


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=9))
def test_a_strictly_rising_score_is_retained_in_full_by_the_last_layer_only(steps):
    score = np.cumsum(steps)
    assert retention_depth(score, np.arange(len(score)), floor=0.0, share=1.0) == len(score) - 1
