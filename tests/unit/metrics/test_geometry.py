"""The geometry stage: planted models, any sharding, points chosen by key, and what it refuses."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from planted import toy, with_zero_block
from plm_depth.activations.extract import Files, extract
from plm_depth.activations.nulls import Null
from plm_depth.metrics import clouds
from plm_depth.metrics.anchors import anchors_of, groups_of, in_space
from plm_depth.metrics.geometry import Settings, SettingsError, geometry, main, read_labels
from plm_depth.randomness import generator
from plm_depth.tables import CLUSTERS, STREAM_KEYS, TableError, VectorTable, VectorWriter, write_table
from plm_depth.views import views_of
from unit.metrics.conftest import INPUTS, proteins

LOG = logging.getLogger("test")
TRAINED, UNTRAINED = Null("trained", -1), Null("randinit", 1)
SMALL = Settings(k=3, groups=5, max_points=60)


def stream_of(adapter, shards, folder: Path, *, nulls=(TRAINED,), dtype="float32", n_anchors=4) -> list[Path]:
    """Return the stream tables of an extraction, one a shard."""
    folder.mkdir()
    found = []
    for number, shard in enumerate(shards):
        files = Files(*(folder / f"{name}{number}.parquet" for name in ("moments", "lens", "stream")))
        options = {"files": files, "model_id": "toy", "nulls": nulls, "views": views_of(adapter.objective, INPUTS)}
        extract(adapter, shard, **options, seed=0, n_anchors=n_anchors, stream_dtype=dtype, token_budget=200, log=LOG)
        found.append(files.stream)
    return found


@pytest.fixture
def clusters(tmp_path) -> Path:
    sample = proteins(24)
    columns = {"sequence_id": [s for s, _ in sample], "cluster_id": [f"C{i // 2}" for i in range(24)]}
    write_table(columns, CLUSTERS, tmp_path / "clusters.parquet")
    return tmp_path / "clusters.parquet"


def table_of(stream, clusters, tmp_path, *, settings=SMALL, name="geometry.parquet", **options) -> pl.DataFrame:
    geometry(stream, clusters, tmp_path / name, settings=settings, **options)
    return pl.read_parquet(tmp_path / name).with_columns(pl.col(pl.Categorical).cast(pl.String))


def value(table: pl.DataFrame, quantity: str, layers: tuple[int, int], **where) -> float:
    rows = table.filter(
        (pl.col("quantity") == quantity) & (pl.col("layer_i") == layers[0]) & (pl.col("layer_j") == layers[1])
    )
    for name, wanted in where.items():
        rows = rows.filter(pl.col(name) == wanted)
    assert rows.height == 1, rows
    return rows["value"][0]


@pytest.mark.parametrize(
    "options", [{}, {"variant": "parallel", "objective": "ar"}, {"objective": "diffusion"}], ids=str
)
def test_both_sides_of_a_zero_block_are_the_same_cloud(options, clusters, tmp_path):
    adapter = with_zero_block(toy(**options), 2)
    table = table_of(stream_of(adapter, [proteins(24)], tmp_path / "s"), clusters, tmp_path)
    direction = "n2c" if adapter.objective == "ar" else "none"
    for points in ("residue", "pooled"):
        for space in ("raw", "zscore"):
            at = {"points": points, "space": space, "direction": direction}
            assert value(table, "angular", (1, 2), **at) == 0
            for quantity in ("cka", "cka_biased"):
                assert value(table, quantity, (1, 2), **at) == pytest.approx(1, abs=1e-12)
                assert value(table, quantity, (2, 3), **at) < 1 - 1e-6
            assert value(table, "overlap", (1, 2), **at) == 1
            assert value(table, "angular", (2, 3), **at) > 1e-3
    assert set(table["direction"]) == ({"n2c", "c2n"} if adapter.objective == "ar" else {"none"})
    assert set(table["noise_t"].fill_nan(0.0)) == {0.0}


def test_the_table_holds_every_layer_and_pair_of_trained_and_untrained_networks(clusters, tmp_path):
    adapter = toy()
    n = adapter.n_blocks
    stream = stream_of(adapter, [proteins(24)], tmp_path / "s", nulls=[TRAINED, UNTRAINED])
    table = table_of(stream, clusters, tmp_path)
    assert set(zip(table["null_model"], table["null_seed"])) == {("trained", -1), ("randinit", 1)}
    one = table.filter(
        (pl.col("null_model") == "trained") & (pl.col("points") == "residue") & (pl.col("space") == "raw")
    )
    counts = dict(one.group_by("quantity").len().iter_rows())
    pairs = (n + 1) * (n + 2) // 2
    assert counts == {
        **dict.fromkeys(("angular", "cka", "cka_biased"), pairs),
        **dict.fromkeys(("two_nn_mle", "two_nn_fit"), 3 * (n + 1)),
        **dict.fromkeys(("effective_rank", "participation", "top_share"), n + 1),
        **dict.fromkeys(("anisotropy", "anisotropy_centred"), n + 1),
        "overlap": 2 * n - 1,
    }
    assert set(one["n_points"] + one["n_nan"]) >= {60} and set(one["n_cluster"]) == {12}
    assert set(one.filter(pl.col("quantity") == "angular")["n_points"]) == {60}
    half = one.filter((pl.col("quantity") == "two_nn_mle") & (pl.col("layer_i") == n)).sort("share")
    assert half["n_points"].to_list() == [15, 30, 60]
    assert table.filter(pl.col("quantity") == "cka")["se"].is_not_nan().all()
    trained, untrained = (
        value(table, "cka", (0, n), points="residue", space="raw", null_model=null) for null in ("trained", "randinit")
    )
    assert trained != untrained


def test_shards_and_their_order_change_no_number(clusters, tmp_path):
    sample = proteins(24)
    adapter = toy(objective="ar", variant="causal")
    whole = table_of(stream_of(adapter, [sample], tmp_path / "whole"), clusters, tmp_path, name="whole.parquet")
    order = generator(0, "order").permutation(24)
    shards = [[sample[i] for i in order[start::7]] for start in range(7)]
    cut = stream_of(adapter, shards, tmp_path / "cut")
    merged = table_of(cut[::-1], clusters, tmp_path, name="merged.parquet")
    assert whole.select(pl.exclude("value", "se")).equals(merged.select(pl.exclude("value", "se")))
    # Batches differ in the last bits of float32, which neighbours hardly notice.
    for column in ("value", "se"):
        np.testing.assert_allclose(whole[column], merged[column], rtol=2e-3, atol=1e-4)


def plain_layer(path: Path, layer: int, points: str) -> tuple[np.ndarray, list[str]]:
    table = VectorTable(path, STREAM_KEYS)
    keys = pl.from_arrow(table.keys()).with_columns(row=pl.int_range(pl.len()))
    kept = keys.filter((pl.col("position") == -1) == (points == "pooled"))
    return table.layer(layer)[kept["row"].to_numpy()].astype(np.float64), kept["sequence_id"].cast(pl.String).to_list()


def test_numbers_are_those_of_plain_formulas_on_the_cached_vectors(clusters, tmp_path):
    (path,) = stream_of(toy(), [proteins(24)], tmp_path / "s", dtype="float16")
    table = table_of([path], clusters, tmp_path, settings=Settings(k=3, groups=5, max_points=4096))
    for points in ("residue", "pooled"):
        at = {"points": points, "space": "raw"}
        (x, _), (y, _) = (plain_layer(path, layer, points) for layer in (2, 6))
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        assert value(table, "angular", (2, 6), **at) == pytest.approx(np.arccos(cosine).mean() / np.pi, rel=1e-5)
        a, b = x - x.mean(0), y - y.mean(0)
        biased = np.square(a.T @ b).sum() / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
        assert value(table, "cka_biased", (2, 6), **at) == pytest.approx(biased, rel=1e-5)
        distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
        two = np.sort(distances, axis=1)[:, 1:3]
        plain = (len(x) - 1) / np.log(two[:, 1] / two[:, 0]).sum()
        assert value(table, "two_nn_mle", (2, -1), share=1.0, **at) == pytest.approx(plain, rel=1e-4)
        near = [set(np.argsort(np.linalg.norm(z[:, None] - z[None], axis=-1), axis=1)[:, 1:4][i]) for z in (x, y)
                for i in range(len(z))]  # fmt: skip
        shared = np.mean([len(near[i] & near[len(x) + i]) / 3 for i in range(len(x))])
        assert value(table, "overlap", (2, 6), **at) == pytest.approx(shared, abs=1e-9)


def test_a_smaller_cloud_is_the_beginning_of_a_larger_one_and_the_seed_chooses_it(clusters, tmp_path):
    stream = stream_of(toy(), [proteins(24)], tmp_path / "s")
    names = {s: s for s, _ in proteins(24)}

    def chosen(n: int, seed: int = 1) -> list[tuple[str, int]]:
        found = next(anchors_of(stream, names, points=["residue"], max_points=n, seed=seed))
        assert found.n_available == 96
        return list(zip(found.sequence_ids.tolist(), found.positions.tolist()))

    assert chosen(20) == chosen(50)[:20] and len(set(chosen(50))) == 50
    assert chosen(50) != chosen(50, seed=2)
    part = next(anchors_of(stream, names, points=["pooled"], max_points=5, seed=1))
    keys = pl.from_arrow(VectorTable(stream[0], STREAM_KEYS).keys()).with_columns(row=pl.int_range(pl.len()))
    for layer in (0, 3):
        vectors = VectorTable(stream[0], STREAM_KEYS).layer(layer)
        for i, name in enumerate(part.sequence_ids):
            row = keys.filter((pl.col("sequence_id") == name) & (pl.col("position") == -1))["row"][0]
            assert (part.layer(layer)[i] == vectors[row]).all()


def test_jackknife_groups_hold_whole_clusters_and_are_of_nearly_equal_size():
    clusters = np.array(["a"] * 7 + ["b"] * 3 + ["c"] * 3 + list("defghij"))
    groups = groups_of(clusters, n_groups=3, seed=0)
    assert sorted(np.bincount(groups).tolist()) == [6, 7, 7]
    for name in "abc":
        assert len(set(groups[clusters == name])) == 1
    shuffled = generator(0, "shuffle").permutation(len(clusters))
    assert (groups_of(clusters[shuffled], n_groups=3, seed=0) == groups[shuffled]).all()
    assert groups_of(np.array(["a", "a", "b"]), n_groups=9, seed=0).max() == 1


def test_the_zscore_space_gives_every_coordinate_the_same_spread_and_constant_ones_none():
    cloud = (generator(0, "z").normal(size=(50, 4)) * [1, 100, 0, 1e-3] + [0, 5, 7, 0]).astype(np.float32)
    found = in_space(cloud, "zscore")
    np.testing.assert_allclose(found.std(0), [1, 1, 0, 1], atol=1e-5)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    assert in_space(cloud, "raw") is cloud
    with pytest.raises(ValueError, match="raw, zscore"):
        in_space(cloud, "log")


def test_residues_that_share_a_token_are_no_points_but_their_protein_is(clusters, tmp_path):
    def write(name: str, **about) -> Path:
        constants = {"model_id": "m", "family": "f", "objective": "ar", "n_blocks": 1, "d_model": 3, "dtype": "float32",
                     "readout": "seq", **about}  # fmt: skip
        path = tmp_path / name
        with VectorWriter(path, STREAM_KEYS, range(2), 3, "float32", constants) as writer:
            for sequence_id, _ in proteins(24):
                vectors = generator(0, sequence_id).normal(size=(2, 2, 3))
                keys = {"sequence_id": sequence_id, "n_residues": 9, "null_model": "trained", "null_seed": -1,
                        "condition": "seq", "direction": "n2c", "noise_t": np.nan, "mask_draw": -1,
                        "position": np.array([-1, 4])}  # fmt: skip
                writer.append(keys, vectors)
        return path

    table = table_of([write("bpe.parquet", tokens_are_residues=False)], clusters, tmp_path)
    assert set(table["points"]) == {"pooled"}
    assert set(table_of([write("other.parquet")], clusters, tmp_path)["points"]) == {"pooled", "residue"}
    with pytest.raises(TableError, match="whose tokens hold several residues"):
        residues = Settings(points=("residue",), groups=5)
        table_of([write("bpe.parquet", tokens_are_residues=False)], clusters, tmp_path, settings=residues)


def test_labels_are_read_and_neighbours_counted_by_them(clusters, tmp_path):
    stream = stream_of(toy(), [proteins(24)], tmp_path / "s")
    labels = tmp_path / "labels.tsv"
    labels.write_text("sequence_id\tlabel\n" + "".join(f"P{i:03d}\t{'ab'[i % 2]}\n" for i in range(20)))
    table = table_of(stream, clusters, tmp_path, labels=labels)
    found = table.filter(pl.col("quantity").str.starts_with("same_label"))
    assert set(found["points"]) == {"pooled"} and set(found["n_points"]) == {20} and set(found["k"]) == {3}
    assert value(table, "same_label_chance", (0, -1), space="raw") == pytest.approx(9 / 19)
    x, names = plain_layer(stream[0], 3, "pooled")
    kept = [i for i, name in enumerate(names) if int(name[1:]) < 20]
    x, parity = x[kept], np.array([int(names[i][1:]) % 2 for i in kept])
    near = np.argsort(np.linalg.norm(x[:, None] - x[None], axis=-1), axis=1)[:, 1:4]
    assert value(table, "same_label", (3, -1), space="raw") == pytest.approx((parity[near] == parity[:, None]).mean())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sequence,label\nP000,a\n", r"no column \['sequence_id'\]; expected sequence_id and label"),
        ("sequence_id,label\nP000,a\nP000,b\n", "line 3: P000 has two labels"),
        ("sequence_id,label\n", "no row; expected a label"),
    ],
)
def test_bad_labels_end_in_one_message(text, complaint, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(SettingsError, match="not a readable table"):
        read_labels(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"maxpoints": 5}, "expected an object with some of the keys points"),
        ({"points": ["atom"]}, "points is .*; expected a list of some of residue, pooled"),
        ({"spaces": []}, "spaces is"),
        ({"k": 0}, "k is 0; expected a whole number from 1 on"),
        ({"max_points": 4.5}, "max_points is 4.5"),
        ([], "expected an object"),
    ],
)
def test_bad_settings_end_in_one_message(given, complaint):
    with pytest.raises(SettingsError, match=complaint):
        Settings.of(given)


def test_the_command_ends_in_one_message_and_writes_nothing(clusters, tmp_path):
    stream = stream_of(toy(), [proteins(24)], tmp_path / "s")
    output = tmp_path / "out.parquet"

    def run(*options: str) -> None:
        main(["--stream", str(stream[0]), "--clusters", str(clusters), "--output", str(output), *options])

    run("--settings", '{"points": ["pooled"], "spaces": ["raw"], "k": 3}')
    assert set(pl.read_parquet(output)["space"].cast(pl.String)) == {"raw"}
    output.unlink()
    with pytest.raises(SystemExit, match=r"metrics.geometry: k is 0"):
        run("--settings", '{"k": 0}')
    with pytest.raises(SystemExit, match="stands in more than one shard"):
        run("--stream", str(stream[0]), str(stream[0]))
    few = tmp_path / "few.parquet"
    write_table({"sequence_id": ["P000"], "cluster_id": ["P000"]}, CLUSTERS, few)
    with pytest.raises(SystemExit, match="proteins have no cluster"):
        run("--clusters", str(few))
    assert not output.exists() and not list(tmp_path.glob("*.tmp.*"))


def test_an_infinite_vector_is_refused_with_its_place(clusters, tmp_path, monkeypatch):
    stream = stream_of(toy(), [proteins(24)], tmp_path / "s")
    whole = VectorTable.layer

    def broken(table: VectorTable, layer: int) -> np.ndarray:
        vectors = whole(table, layer).copy()
        vectors[vectors.shape[0] // 2] = np.nan
        return vectors

    monkeypatch.setattr(VectorTable, "layer", broken)
    with pytest.raises(TableError, match=r"layer 0: the stream of protein P.* is not finite at position"):
        table_of(stream, clusters, tmp_path)


def test_undefined_directions_reach_the_table_as_counts(tmp_path):
    points = np.zeros((12, 3))
    points[:, 0] = np.arange(12)
    _, undefined = clouds.angular_distances([points, points], np.zeros(12, np.int64), 1)
    assert undefined.tolist() == [[1, 1], [1, 1]]
