"""Which layer serves labels: planted answers are found, the user's split is kept, and what cannot be told is said."""

import json
import logging

import numpy as np
import polars as pl
import pytest

from plm_depth.metrics import choice
from plm_depth.metrics.choice import ChoiceError, Settings
from plm_depth.tables import CHOICE, CLUSTERS, LABELS, STREAM_KEYS, VectorWriter, read_metadata, write_table

LOG = logging.getLogger("test")
QUIET = logging.getLogger("test of noise")
QUIET.setLevel(logging.ERROR)
N, WIDTH, LAYERS = 120, 8, 5
IDS = np.array([f"p{i:03d}" for i in range(N)])
CLUSTER = np.array([f"c{i // 3}" for i in range(N)])  # three proteins each


def planted(seed: int = 0, *, first: int = 2, noise: float = 0.1, y=None):
    """Target and features (layers, n, d): from layer ``first`` on a direction tells the target, but for some noise."""
    draw = np.random.default_rng(seed)
    y = draw.normal(size=N) if y is None else y
    x = draw.normal(size=(LAYERS, N, WIDTH))
    for layer in range(first, LAYERS):
        x[layer, :, 3] = y + noise * draw.normal(size=N)
    return y, x


def write_stream(path, x, *, ids=IDS, positions=None, direction="none", family="esm2", objective="mlm"):
    about = {"model_id": "m", "family": family, "objective": objective, "n_blocks": len(x) - 1, "d_model": x.shape[2]}
    directions = [direction] if isinstance(direction, str) else direction
    with VectorWriter(path, STREAM_KEYS, range(len(x)), x.shape[2], "float32", about) as writer:
        for number, one in enumerate(directions):
            keys = {
                "sequence_id": list(ids), "n_residues": 50, "null_model": "trained", "null_seed": -1,
                "condition": "seq", "direction": one, "mask_draw": -1,
                "noise_t": float("nan") if objective == "ar" else 0.0,
                "position": np.full(len(ids), -1) if positions is None else positions,
            }  # fmt: skip
            writer.append(keys, x if number == 0 else np.random.default_rng(9).normal(size=x.shape))


def write_labels(
    path, values, *, kind="regression", ids=IDS, positions=None, split="", group="", names=("y",), classes=()
):
    columns = {
        "sequence_id": list(ids),
        "position": np.full(len(ids), -1) if positions is None else positions,
        "label": list(names) * (len(ids) // len(names)),
        "value": np.asarray(values, float),
        "text": [str(v) for v in values],
        "split": [split] * len(ids) if isinstance(split, str) else list(split),
        "group": [group] * len(ids) if isinstance(group, str) else list(group),
    }
    about = {"kind": kind, "names": json.dumps(names), "classes": json.dumps(classes), "left_out": '{"too_long": 2}'}
    write_table(columns, LABELS, path, **about)


def run(folder, *, settings='{"penalties": [0.001, 0.1]}', n_boot=300, seed=1, clusters=True):
    write_table({"sequence_id": IDS, "cluster_id": CLUSTER}, CLUSTERS, folder / "clusters.parquet")
    choice.choose(
        labels=folder / "labels.parquet", stream=folder / "stream.parquet", name="q", settings=Settings.of(settings),
        clusters=folder / "clusters.parquet" if clusters else None, n_boot=n_boot, seed=seed,
        output=folder / "choice.parquet", log=LOG,
    )  # fmt: skip
    table = pl.read_parquet(folder / "choice.parquet").with_columns(pl.col(pl.Categorical).cast(pl.String))
    assert table.columns == CHOICE.names
    return table, read_metadata(folder / "choice.parquet")


def deciding(table, side="test"):
    return table.filter(pl.col("is_primary") & (pl.col("side") == side)).sort("layer")


def recommended(table):
    return deciding(table, "valid").filter(pl.col("is_recommended"))["layer"].item()


# ------------------------------------------------------------------------------------------------------ planted answers


def test_the_first_layer_with_the_answer_is_recommended_and_the_choice_is_stable(tmp_path):
    y, x = planted()
    write_labels(tmp_path / "labels.parquet", y)
    write_stream(tmp_path / "stream.parquet", x)
    table, about = run(tmp_path)
    rows = deciding(table)
    assert recommended(table) == 2 and int(about["cut_after"]) == 2
    assert rows["metric"][0] == "spearman" and rows["probe"][0] == "linear"
    assert (rows["value"][2:] > 0.95).all() and (rows["value"][:2] < 0.4).all()
    assert rows["in_plateau"].to_list() == [False, False, True, True, True]
    assert rows["share_within"][2] > 0.95 and rows["share_within"][0] == 0
    assert rows["n_rows"].unique().item() == N and rows["n_cluster"].unique().item() == N // 3
    assert ((rows["ci_lo"] <= rows["value"]) & (rows["value"] <= rows["ci_hi"])).all()
    assert rows["over_last"][4] == 0 and rows["over_last_hi"][0] < -0.4
    assert about["how"] == "5 folds of whole clusters" and json.loads(about["notes"]) == []


def test_classes_and_several_labels_are_found_alike(tmp_path):
    draw = np.random.default_rng(4)
    code = draw.integers(0, 3, N)
    x = draw.normal(size=(LAYERS, N, WIDTH))
    x[3:, np.arange(N), code] += 6
    write_stream(tmp_path / "stream.parquet", x)
    write_labels(tmp_path / "labels.parquet", code, kind="classification", classes=("a", "b", "c"))
    table, _ = run(tmp_path)
    assert recommended(table) == 3 and deciding(table)["metric"][0] == "mcc" and deciding(table)["value"][3] > 0.9
    truth = np.stack([code == 0, code == 1], 1).astype(float)
    write_labels(
        tmp_path / "labels.parquet", truth.ravel(), ids=np.repeat(IDS, 2), names=("a", "b"), kind="multi-label"
    )
    table, _ = run(tmp_path)
    assert recommended(table) == 3 and deciding(table)["metric"][0] == "macro_auprc"
    assert abs(deciding(table)["chance"][0] - truth.mean()) < 1e-9
    for probe in ("linear", "knn"):
        own = table.filter((pl.col("probe") == probe) & (pl.col("side") == "test")).sort("layer")
        assert own["value"][3] > 0.95 and own["value"][0] < 0.6


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_labels_without_an_answer_score_at_chance_at_every_layer(tmp_path, probe):
    found = []
    for seed in range(4):
        _, x = planted(seed)
        y = np.random.default_rng(100 + seed).integers(0, 2, N)
        write_labels(tmp_path / "labels.parquet", y, kind="classification", classes=("a", "b"))
        write_stream(tmp_path / "stream.parquet", x)
        table, _ = run(tmp_path, settings=json.dumps({"probes": [probe], "penalties": [0.1]}), n_boot=20, seed=seed)
        found.append(deciding(table)["value"].to_numpy())
    found = np.concatenate(found)  # each about normal with deviation 1 / sqrt(N)
    assert abs(found.mean()) < 3 / np.sqrt(N * len(found) / LAYERS)
    assert np.abs(found).max() < 4.5 / np.sqrt(N)


# ----------------------------------------------------------------------------------------------- what a choice is worth


def of_noise(seed, *, split="", n=60, n_layers=16):
    """Return CHOICE columns, the chosen layers and the sides, of features that know nothing of the labels."""
    draw = np.random.default_rng(seed)
    ids = np.array([f"p{i:03d}" for i in range(n)])
    y, x = draw.normal(size=n), draw.normal(size=(n_layers, n, WIDTH))
    sides = np.broadcast_to(split, n) if isinstance(split, str) else split
    task = choice.Task("regression", ("y",), (), ids, np.full(n, -1), y, np.asarray(sides), np.full(n, ""), {})
    parted = choice.sides_of(task, dict(zip(ids, ids)), n_folds=5, seed=seed)
    settings = Settings(probes=("linear",), penalties=(0.1,))

    class Features:
        layers = range(n_layers)

        def __call__(self, layer):
            return x[layer]

    predicted = choice.predictions(Features(), task, parted, settings, seed=seed, log=QUIET)
    about = {"model_id": "m", "family": "esm2", "objective": "mlm", "n_blocks": n_layers - 1}
    columns, chosen = choice.judged(
        "q", about, Features.layers, task, parted, predicted, settings, n_boot=100, seed=seed
    )
    return pl.DataFrame({k: v for k, v in columns.items() if not np.isscalar(v)}), chosen, parted


def test_the_score_of_a_choice_among_layers_of_noise_is_none_though_the_best_of_them_looks_good():
    expect, curve, excluded = [], [], 0
    for seed in range(40):
        table, chosen, _ = of_noise(seed)
        for side in ("nested", "nested_cut"):
            row = deciding(table, side).row(0, named=True)
            expect.append(row["value"])
            excluded += (row["over_last_lo"] > 0) + (row["over_last_hi"] < 0)
        curve.append(deciding(table).filter(pl.col("is_recommended"))["value"].item())
        assert len(chosen) == 5 and row["n_rows"] == 60
    # Predictions are pulled to the mean of the training rows, which leans away from the rows left out: a bit below 0.
    assert abs(np.mean(expect)) < 0.08 < 0.15 < np.mean(curve)
    assert excluded <= 10, f"{excluded} of 80 intervals of the gain do not hold 0; nominal are 4"


@pytest.mark.parametrize("sides", [("train", "valid", "test"), ("train", "valid")])
def test_rows_never_choose_the_layer_that_scores_them_and_clusters_are_not_parted(sides):
    table, chosen, parted = of_noise(1, split=np.array(sides)[np.arange(60) % len(sides)])
    assert len(chosen) == len(parted.parts) == (1 if len(sides) == 3 else 2)
    scored = np.concatenate([rows for _, rows in parted.parts])
    assert len(set(scored.tolist())) == len(scored) == deciding(table, "nested")["n_rows"].item()
    for chooser, rows in parted.parts:
        assert not set(parted.groups[chooser]) & set(parted.groups[rows])
        assert not set(chooser.tolist()) & set(parted.outer[0].train.tolist())
    one = deciding(table, "nested").row(0, named=True)
    if len(sides) == 3:  # the layer that the valid rows chose, on the test rows: the curve says the same
        at = deciding(table).filter(pl.col("is_recommended")).row(0, named=True)
        assert chosen == [at["layer"]] and one["value"] == pytest.approx(at["value"])
        assert one["ci_hi"] - one["ci_lo"] > at["ci_hi"] - at["ci_lo"]  # it knows that another layer might be chosen


def test_each_fold_is_scored_at_the_layer_that_the_next_fold_chose():
    from scipy.stats import spearmanr

    table, chosen, parted = of_noise(3)
    found = {}
    for fold, (chooser, rows) in enumerate(parted.parts):
        following = parted.parts[(fold + 1) % 5][1]
        assert sorted(chooser.tolist()) == sorted(following.tolist())
        found |= dict.fromkeys(rows.tolist(), chosen[fold])
    assert len(found) == 60 and len(set(chosen)) > 1
    # The same by hand: predictions again, each row at the layer of its fold.
    draw = np.random.default_rng(3)
    y, x = draw.normal(size=60), draw.normal(size=(16, 60, WIDTH))
    said = np.empty(60)
    for split, layer in zip(parted.outer, chosen):
        z = (x[layer] - x[layer, split.train].mean(0)) / x[layer, split.train].std(0)
        weights = np.linalg.solve(
            z[split.train].T @ z[split.train] + 0.1 * len(split.train) * np.eye(WIDTH),
            z[split.train].T @ (y[split.train] - y[split.train].mean()),
        )
        said[split.test] = z[split.test] @ weights + y[split.train].mean()
    assert deciding(table, "nested")["value"].item() == pytest.approx(spearmanr(said, y).statistic, abs=1e-9)


def test_a_choice_that_cannot_be_scored_elsewhere_has_no_score_and_says_so(tmp_path):
    y, x = planted()
    write_stream(tmp_path / "stream.parquet", x)
    split = np.array(["train"] * 80 + ["test"] * 40)
    write_labels(
        tmp_path / "labels.parquet",
        y,
        split=split,
        group=[one if one == "test" else str(i) for i, one in enumerate(split)],
    )
    table, about = run(tmp_path)
    row = deciding(table, "nested").row(0, named=True)
    assert np.isnan(row["value"]) and row["n_boot"] == 0 and json.loads(about["chosen"]) == []
    assert "none of them can choose a layer for the others" in json.loads(about["notes"])[-1]


def test_an_answer_that_is_there_is_worth_what_the_curve_says_and_a_cut_keeps_a_block(tmp_path):
    y, x = planted(first=0, noise=0.01)
    write_labels(tmp_path / "labels.parquet", y)
    write_stream(tmp_path / "stream.parquet", x)
    table, about = run(tmp_path)
    assert json.loads(about["chosen"]) == [0] * 5 and about["how_nested"].startswith(
        "each fold at the layer that another"
    )
    nested, cut = (deciding(table, side).row(0, named=True) for side in ("nested", "nested_cut"))
    curve = deciding(table)["value"]
    assert nested["value"] == pytest.approx(curve[0]) and cut["value"] == pytest.approx(curve[1])
    assert nested["layer"] == -1 and np.isnan(nested["below_best"]) and nested["n_cluster"] == N // 3


def test_nearest_neighbours_are_those_of_the_library(tmp_path):
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.preprocessing import StandardScaler

    y, x = planted()
    split = np.array(["train"] * 80 + ["valid"] * 20 + ["test"] * 20)
    write_labels(tmp_path / "labels.parquet", y, split=split)
    write_stream(tmp_path / "stream.parquet", x)
    table, _ = run(tmp_path, settings='{"probes": ["knn"], "neighbours": 7}')
    for side, rows in (("valid", slice(80, 100)), ("test", slice(100, 120))):
        own = table.filter((pl.col("metric") == "pearson") & (pl.col("side") == side)).sort("layer")
        for layer in range(LAYERS):
            scale = StandardScaler().fit(x[layer, :80])
            model = KNeighborsRegressor(7).fit(scale.transform(x[layer, :80]), y[:80])
            expected = np.corrcoef(model.predict(scale.transform(x[layer, rows])), y[rows])[0, 1]
            assert abs(own["value"][layer] - expected) < 1e-6


# ---------------------------------------------------------------------------------------------------------------- sides


def test_relatives_are_never_parted_and_the_order_of_rows_does_not_matter(tmp_path):
    y, x = planted(noise=1.0)
    order = np.random.default_rng(5).permutation(N)
    tables = []
    for rows in (np.arange(N), order):
        write_labels(tmp_path / "labels.parquet", y[rows], ids=IDS[rows])
        write_stream(tmp_path / "stream.parquet", x)
        tables.append(run(tmp_path)[0])
        task = choice.read_task(tmp_path / "labels.parquet")
        sides = choice.sides_of(task, dict(zip(IDS, CLUSTER)), n_folds=5, seed=1)
        for one in sides.outer:
            parts = [set(sides.groups[part]) for part in (one.train, one.valid, one.test)]
            assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    one, other = (deciding(table)["value"].to_numpy() for table in tables)
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_the_users_split_is_kept_and_a_layer_is_chosen_on_its_valid_rows(tmp_path):
    y, x = planted(first=LAYERS)
    split = np.array(["train"] * 60 + ["valid"] * 30 + ["test"] * 30)
    x[1, :90, 0], x[3, 60:, 0] = y[:90], y[60:]
    x[3, :60, 0] = y[:60]  # layer 1 tells train and valid, layer 3 all; layer 1 fails on the test rows
    write_labels(tmp_path / "labels.parquet", y, split=split)
    write_stream(tmp_path / "stream.parquet", x)
    table, about = run(tmp_path)
    assert recommended(table) == 1
    assert deciding(table)["value"][1] < 0.5 < deciding(table, "valid")["value"][1]
    assert deciding(table)["n_rows"].unique().item() == 30
    assert about["how"] == "the user's train (60), valid (30), test (30)"
    assert json.loads(about["notes"]) == []


def test_what_weakens_a_users_split_is_said(tmp_path):
    y, x = planted()
    write_stream(tmp_path / "stream.parquet", x)
    write_labels(tmp_path / "labels.parquet", y, split=np.where(np.arange(N) % 3 == 0, "valid", "train"))
    _, about = run(tmp_path)
    notes = json.loads(about["notes"])
    assert "the same rows choose the layer and score it" in notes[0] and about["is_shared"] == "1"
    assert "40 of 40 clusters of similar proteins stand on several sides" in notes[1]


def test_named_folds_are_used_as_they_are(tmp_path):
    y, x = planted()
    write_stream(tmp_path / "stream.parquet", x)
    write_labels(tmp_path / "labels.parquet", y, split=[f"fold {i // 3 % 4}" for i in range(N)])
    table, about = run(tmp_path)
    assert about["how"] == "the user's 4 folds" and recommended(table) == 2


def test_the_users_clusters_replace_those_of_the_workflow(tmp_path):
    y, x = planted()
    write_stream(tmp_path / "stream.parquet", x)
    write_labels(tmp_path / "labels.parquet", y, group=[str(i // 10) for i in range(N)])
    table, _ = run(tmp_path, clusters=False)
    assert deciding(table)["n_cluster"].unique().item() == 12


def test_classes_that_stand_in_one_cluster_only_are_told(tmp_path):
    code = np.r_[np.arange(N - 3) % 2, [2, 2, 2]]
    _, x = planted()
    write_stream(tmp_path / "stream.parquet", x)
    write_labels(tmp_path / "labels.parquet", code, kind="classification", classes=("a", "b", "rare"))
    _, about = run(tmp_path)
    assert (
        "3 of 120 rows are tested by a probe that saw no row of their class (1 classes: rare; 1 of them"
        in about["notes"]
    )


# ------------------------------------------------------------------------------------------------------------- features


def test_labels_of_residues_use_the_states_that_were_kept(tmp_path):
    y, x = planted()
    ids, positions = np.repeat(IDS[:40], 3), np.tile([0, 4, 9], 40)
    write_stream(tmp_path / "stream.parquet", x, ids=ids, positions=positions)
    more_ids, more = np.r_[ids, IDS[:40]], np.r_[positions, np.full(40, 5)]
    write_labels(
        tmp_path / "labels.parquet", np.r_[y, np.ones(40)], kind="residue-regression", ids=more_ids, positions=more
    )
    table, _ = run(tmp_path)
    assert recommended(table) == 2 and deciding(table)["n_rows"].unique().item() == N
    assert table["kind"].unique().item() == "residue-regression"


def test_directions_are_read_alone_or_together(tmp_path):
    y, x = planted()
    write_labels(tmp_path / "labels.parquet", y)
    write_stream(tmp_path / "stream.parquet", x, direction=("n2c", "c2n"), objective="ar", family="progen2")
    for direction, layer in (("n2c", 2), ("both", 2)):
        table, about = run(tmp_path, settings=json.dumps({"direction": direction}))
        assert recommended(table) == layer and deciding(table)["value"][2] > 0.9
        assert json.loads(about["directions"]) == (["n2c"] if direction == "n2c" else ["n2c", "c2n"])
    table, _ = run(tmp_path, settings='{"direction": "c2n"}')
    assert deciding(table)["value"].max() < 0.5


def test_features_that_are_not_there_are_named(tmp_path):
    y, x = planted()
    write_labels(tmp_path / "labels.parquet", y)
    write_stream(tmp_path / "stream.parquet", x[:, :100], ids=IDS[:100])
    with pytest.raises(ChoiceError, match=r"no features of 20 of 120 labels .*'p100', -1"):
        run(tmp_path)
    write_labels(tmp_path / "labels.parquet", y, kind="residue-regression", positions=np.full(N, 3))
    with pytest.raises(ChoiceError, match="no features of 120 of 120 labels"):
        run(tmp_path)


# --------------------------------------------------------------------------------------------- cuts, bad questions


def rows_of(plateau, recommended=0):
    layers = np.arange(len(plateau))
    return {
        "layer": layers, "is_primary": np.full(len(layers), True), "side": np.full(len(layers), "valid", object),
        "in_plateau": np.array(plateau), "is_recommended": layers == recommended,
    }  # fmt: skip


def test_a_checkpoint_keeps_at_least_one_block(tmp_path):
    assert choice.cut_after(rows_of([False, False, True, True])) == 2
    assert choice.cut_after(rows_of([True, False, False, True])) == 3
    assert choice.cut_after(rows_of([True, False, False, False])) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[1]", "expected a JSON object"),
        ('{"fold": 5}', "unexpected keyword"),
        ('{"folds": 2}', "at least 3 folds"),
        ('{"probes": ["mlp"]}', "probes of linear, knn"),
        ('{"tolerance": 1}', "a tolerance in"),
        ('{"direction": "up"}', "a direction of n2c"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ChoiceError, match=said):
        Settings.of(settings)


def test_one_cluster_cannot_be_parted(tmp_path):
    y, x = planted()
    write_stream(tmp_path / "stream.parquet", x)
    write_labels(tmp_path / "labels.parquet", y, group="all")
    with pytest.raises(ChoiceError, match=r"1 groups of 120 proteins in 5 folds.*name a column"):
        run(tmp_path)


def test_proteins_without_a_cluster_are_named(tmp_path):
    y, x = planted()
    write_stream(tmp_path / "stream.parquet", x)
    write_labels(tmp_path / "labels.parquet", y, ids=[*IDS[:-1], "other"])
    with pytest.raises(ChoiceError, match="1 proteins have no cluster, the first 'other'"):
        run(tmp_path)
    with pytest.raises(ChoiceError, match="give --clusters"):
        run(tmp_path, clusters=False)


def test_the_stage_ends_with_one_message_and_leaves_nothing(tmp_path):
    y, x = planted()
    write_stream(tmp_path / "stream.parquet", x)
    write_labels(tmp_path / "labels.parquet", y, group="all")
    where = [
        f"{tmp_path}/labels.parquet",
        "--stream",
        f"{tmp_path}/stream.parquet",
        "--output",
        f"{tmp_path}/c.parquet",
    ]
    with pytest.raises(SystemExit, match="choice: 1 groups"):
        choice.main(["--labels", *where, "--name", "q", "--seed", "1"])
    assert not (tmp_path / "c.parquet").exists()
