"""Corpus values of attribution and erasure: by hand on invented rows, and from toys through the whole door."""

import logging

import numpy as np
import polars as pl
import pytest

from planted import toy, with_zero_block
from plm_depth.activations.attribution import Settings, measure
from plm_depth.activations.nulls import Null
from plm_depth.metrics.attribution import SHARE, attribution
from plm_depth.metrics.skip import half_contrast, n80, participation
from plm_depth.metrics.summary import depth_score
from plm_depth.randomness import generator
from plm_depth.tables import (
    AMINO_ACIDS,
    ATTR_SEQ,
    ATTRIBUTION,
    ATTRIBUTION_MAP,
    CLUSTERS,
    COMPLETE,
    ERASE_SEQ,
    TableError,
    read_table,
    write_table,
)
from plm_depth.views import MEAN_OVER_NOISE, View

LOG = logging.getLogger("test")
TRAINED = Null("trained", -1)
COMMON = {
    "model_id": "m",
    "family": "f",
    "objective": "mlm",
    "n_blocks": 3,
    "d_model": 8,
    "dtype": "float32",
    "null_model": "trained",
    "null_seed": -1,
    "condition": "seq",
    "readout": "seq",
    "direction": "none",
    "noise_t": 0.15,
    "mask_draw": 0,
    "n_residues": 5,
}
ATTRIBUTED = {
    "object": "gate",
    "target": "logp",
    "vocab": "aa20",
    "special": 0.0,
    "l1": 3.0,
    "by_position": [0.0] * 5,
    "n_reads": 2,
    "f_end": 2.0,
    "f_base": 0.0,
    "completeness_err": 0.0,
    "n_steps": 4,
}
ERASED = {"vocab": "aa20", "quantity": "l2", "pos": 1, "n": 2, "max": 1.0, "floor": 0.0}


def gates(sequence_id, values, **changes):
    """Return the rows of one protein, a gate a block."""
    row = {**COMMON, **ATTRIBUTED, **changes}
    return [{**row, "sequence_id": sequence_id, "layer": i + 1, "value": value} for i, value in enumerate(values)]


def erased(sequence_id, values, **changes):
    """Return the rows of one erased position, a state a layer."""
    row = {**COMMON, **ERASED, **changes}
    return [{**row, "sequence_id": sequence_id, "layer": i, "sum": value * row["n"]} for i, value in enumerate(values)]


def corpus(tmp_path, rows, erasures=(), *, shards=1, grid=(0.15,), clusters=None):
    """Write the tables of some shards, reduce them, and return the corpus values and the example."""
    kinds = (("attr", ATTR_SEQ, rows), ("erase", ERASE_SEQ, list(erasures)))
    paths = {"attr": [], "erase": []}
    for name, schema, own in kinds:
        for shard in range(shards):
            path = tmp_path / f"{name}.{shard}.parquet"
            part = own[shard::shards]
            write_table({c: [row[c] for row in part] for c in schema.names}, schema, path)
            paths[name].append(path)
    names = sorted({row["sequence_id"] for row in [*rows, *erasures]})
    of = clusters or {name: name for name in names}
    write_table({"sequence_id": list(of), "cluster_id": list(of.values())}, CLUSTERS, tmp_path / "clusters.parquet")
    attribution(
        paths["attr"], paths["erase"], tmp_path / "clusters.parquet", tmp_path / "c.parquet", tmp_path / "e.parquet",
        grid=grid, n_boot=200, seed=0,
    )  # fmt: skip
    tables = (tmp_path / "c.parquet", ATTRIBUTION), (tmp_path / "e.parquet", ATTRIBUTION_MAP)
    return tuple(
        pl.from_arrow(read_table(*pair)).with_columns(pl.col(pl.Categorical).cast(pl.String)) for pair in tables
    )


def values(table, quantity, **where):
    for name, value in {"quantity": quantity, **where}.items():
        table = table.filter(pl.col(name) == value)
    return table.sort("layer")["value"].to_list()


def test_values_are_means_over_proteins_per_read(tmp_path):
    rows = gates("a", [1.0, -2.0, 3.0]) + gates("b", [3.0, 2.0, 1.0], n_reads=4, l1=8.0, f_end=12.0)
    table, _ = corpus(tmp_path, rows)
    np.testing.assert_allclose(values(table, "signed"), [(0.5 + 0.75) / 2, (-1 + 0.5) / 2, (1.5 + 0.25) / 2])
    magnitude = np.array([(0.5 + 0.75) / 2, (1 + 0.5) / 2, (1.5 + 0.25) / 2])
    np.testing.assert_allclose(values(table, "magnitude"), magnitude)
    np.testing.assert_allclose(values(table, "l1"), [(1.5 + 2.0) / 2] * 3)
    assert values(table, "gained") == [(1.0 + 3.0) / 2]
    for name, statistic in (
        ("depth_score", depth_score), ("n80", n80), ("participation", participation), ("half_contrast", half_contrast),
    ):  # fmt: skip
        np.testing.assert_allclose(values(table, name), statistic(magnitude))
    assert set(table["n_seq"]) == {2} and set(table["n_cluster"]) == {2}


def test_intervals_resample_clusters(tmp_path):
    rows = gates("a", [1.0, 0.0, 0.0]) + gates("b", [3.0, 0.0, 0.0])
    apart, _ = corpus(tmp_path, rows)
    row = apart.filter((pl.col("quantity") == "signed") & (pl.col("layer") == 1)).row(0, named=True)
    assert row["ci_lo"] == 0.5 and row["ci_hi"] == 1.5 and row["n_boot"] == 200
    together, _ = corpus(tmp_path, rows, clusters={"a": "a", "b": "a"})
    row = together.filter((pl.col("quantity") == "signed") & (pl.col("layer") == 1)).row(0, named=True)
    assert row["ci_lo"] == row["ci_hi"] == 1.0 and row["n_cluster"] == 1


def test_rows_that_miss_completeness_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = gates("a", [1.0, 1.0, 1.0]) + gates("b", [9.0, 9.0, 9.0], completeness_err=COMPLETE * 1.01)
    table, _ = corpus(tmp_path, rows)
    assert values(table, "signed") == [0.5] * 3
    signed = table.filter(pl.col("quantity") == "signed")
    assert set(signed["n_rejected"]) == {1} and set(signed["n_seq"]) == {1}
    assert set(table.filter(pl.col("quantity") == "depth_score")["n_rejected"]) == {1}
    np.testing.assert_allclose(values(table, "error"), [COMPLETE * 1.01 / 2] * 3)
    assert "3 of them left out" in caplog.text
    exactly, _ = corpus(tmp_path, gates("a", [1.0, 1.0, 1.0], completeness_err=COMPLETE))
    assert set(exactly["n_rejected"]) == {0}


def test_a_network_all_of_whose_rows_miss_completeness_has_undefined_values(tmp_path):
    rows = gates("a", [1.0, 1.0, 1.0], completeness_err=1.0) + gates("b", [2.0, 1.0, 1.0], completeness_err=1.0)
    table, _ = corpus(tmp_path, rows)
    for quantity, n_layers in (("signed", 3), ("magnitude", 3), ("gained", 1), ("depth_score", 1)):
        found = table.filter(pl.col("quantity") == quantity)
        assert found.height == n_layers and found["value"].is_nan().all(), quantity
        assert set(found["n_seq"]) == {0} and set(found["n_rejected"]) == {2}


def test_draws_count_as_one_protein(tmp_path):
    rows = gates("a", [1.0, 0, 0]) + gates("a", [3.0, 0, 0], mask_draw=1) + gates("b", [8.0, 0, 0])
    table, _ = corpus(tmp_path, rows)
    assert values(table, "signed")[0] == (1.0 + 4.0) / 2


def test_noise_is_averaged_within_the_grid_over_proteins_defined_at_every_level(tmp_path):
    def at(t, sequence_id, value, **changes):
        return gates(sequence_id, [value] * 3, objective="diffusion", noise_t=t, **changes)

    rows = at(0.3, "a", 2.0) + at(0.7, "a", 6.0) + at(0.9, "a", 100.0)
    rows += at(0.3, "b", 50.0) + at(0.7, "b", 50.0, completeness_err=1.0)
    table, example = corpus(tmp_path, rows, grid=(0.3, 0.7))
    mean = table.filter(pl.col("noise_t") == MEAN_OVER_NOISE)
    assert values(mean, "signed") == [2.0] * 3
    signed = mean.filter(pl.col("quantity") == "signed")
    assert set(signed["n_seq"]) == {1} and set(signed["n_rejected"]) == {1}
    assert values(table.filter(pl.col("noise_t") == 0.9), "signed") == [50.0] * 3
    assert set(example["noise_t"]) == {MEAN_OVER_NOISE}
    with pytest.raises(TableError, match="--grid"):
        corpus(tmp_path, rows, grid=(0.3, 0.5))


def test_erasures_average_positions_then_proteins_and_keep_prefixes_apart(tmp_path):
    rows = erased("a", [1.0, 0.5, 0.2, 0.0], max=1.5) + erased("a", [3.0, 0.1, 0.0, 0.0], pos=2, max=4.0)
    rows += erased("b", [2.0, 2.0, 2.0, 0.0]) + erased("b", [7.0, 7.0, 7.0, 0.0], pos=-1)
    table, _ = corpus(tmp_path, gates("a", [1.0, 1.0, 1.0]), rows)
    at_position = table.filter(pl.col("object") == "erase_position")
    np.testing.assert_allclose(values(at_position, "mean"), [2.0, 1.15, 1.05, 0.0])
    assert values(at_position, "largest") == [4.0] * 4
    assert at_position.filter(pl.col("quantity") == "largest")["ci_lo"].is_nan().all()
    # a: last above a tenth of the largest is layer 2 at position 1 (0.2 > 0.1) and layer 0 at position 2; b: layer 2.
    assert SHARE == 0.1
    np.testing.assert_allclose(values(at_position, "erasure_depth"), [((2 + 0) / 2 + 2) / 2 / 3])
    assert values(table.filter(pl.col("object") == "erase_prefix"), "mean") == [7.0, 7.0, 7.0, 0.0]


def test_a_change_within_the_noise_has_no_erasure_depth(tmp_path):
    rows = erased("a", [1.0, 1.0, 1.0, 0.0], floor=0.4) + erased("b", [1.0, 1.0, 0.0, 0.0], floor=0.3)
    table, _ = corpus(tmp_path, gates("a", [1.0, 1.0, 1.0]), rows)
    depth = table.filter(pl.col("quantity") == "erasure_depth")
    assert depth["value"].to_list() == [1 / 3] and depth["n_seq"].to_list() == [1]
    silent, _ = corpus(tmp_path, gates("a", [1.0, 1.0, 1.0]), erased("a", [0.0] * 4))
    assert values(silent, "erasure_depth") == []


def test_the_example_is_the_shortest_protein_of_the_trained_model(tmp_path):
    rows = gates("long", [1.0, 2.0, 3.0], by_position=[1.0] * 5)
    rows += gates("short", [1.0, 2.0, 3.0], n_residues=3, by_position=[2.0, 4.0, 6.0])
    rows += gates("short", [1.0, 2.0, 3.0], n_residues=3, by_position=[4.0, 4.0, 4.0], mask_draw=1)
    rows += gates("a", [0.0] * 3, n_residues=1, by_position=[9.0], null_model="randinit", null_seed=0)
    _, example = corpus(tmp_path, rows)
    assert set(example["sequence_id"]) == {"short"} and example.height == 3 * 3
    first = example.filter(pl.col("layer") == 1)
    assert first["position"].to_list() == [0, 1, 2] and first["value"].to_list() == [1.5, 2.0, 2.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows + rows[:1], "two rows"),
        (lambda rows: rows + gates("b", [1.0], model_id="other"), "2 models"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(tmp_path, change, message):
    with pytest.raises(TableError, match=message):
        corpus(tmp_path, change(gates("a", [1.0, 1.0, 1.0])))


def test_a_protein_without_a_cluster_is_refused(tmp_path):
    with pytest.raises(TableError, match="no cluster"):
        corpus(tmp_path, gates("a", [1.0, 1.0, 1.0]), clusters={"b": "b"})


# ----------------------------------------------------------------------------------------------------------------
# From toys


def proteins(n):
    lengths = (16, 12, 14, 13)
    return [
        (f"P{i}", "".join(AMINO_ACIDS[a] for a in generator("test", i).integers(20, size=lengths[i % 4])))
        for i in range(n)
    ]


def from_toy(tmp_path, adapter, sequences, views, *, shards=1, nulls=(TRAINED,), grid=(0.3,)):
    paths = {"attribution": [], "erasure": []}
    for shard in range(shards):
        own = {name: tmp_path / f"{name}.{shard}.parquet" for name in paths}
        measure(
            adapter, sequences[shard::shards], **own, model_id="m", nulls=list(nulls), views=views,
            settings=Settings(steps=16, positions=2, targets=("logp",)), seed=0, reference=sequences[:2], log=LOG,
        )  # fmt: skip
        for name, path in own.items():
            paths[name].append(path)
    names = [name for name, _ in sequences]
    write_table({"sequence_id": names, "cluster_id": names}, CLUSTERS, tmp_path / "clusters.parquet")
    attribution(
        paths["attribution"], paths["erasure"], tmp_path / "clusters.parquet", tmp_path / "c.parquet",
        tmp_path / "e.parquet", grid=grid, n_boot=100,
    )  # fmt: skip
    return pl.from_arrow(read_table(tmp_path / "c.parquet", ATTRIBUTION)).with_columns(
        pl.col(pl.Categorical).cast(pl.String)
    )


def test_the_bars_of_a_toy_add_up_to_what_all_blocks_add(tmp_path):
    table = from_toy(tmp_path, with_zero_block(toy(n_blocks=3), 2), proteins(3), [View("none", 0.3, 0)])
    signed = values(table, "signed", object="gate")
    assert signed[1] == 0.0
    np.testing.assert_allclose(sum(signed), values(table, "gained")[0], rtol=0.05, atol=0.01)


def test_a_model_without_residue_tokens_has_empty_tables(tmp_path):
    adapter = toy(n_blocks=2)
    adapter.tokens_are_residues = False
    table = from_toy(tmp_path, adapter, proteins(2), [View("none", 0.3, 0)])
    assert table.is_empty() and read_table(tmp_path / "e.parquet", ATTRIBUTION_MAP).num_rows == 0


def test_shards_do_not_matter(tmp_path):
    adapter, sequences = toy(n_blocks=2, objective="diffusion"), proteins(4)
    views = [View("none", 0.3, 0), View("none", 0.7, 0)]
    nulls = (Null("trained", -1), Null("randinit", 0))
    one, three = (from_toy(tmp_path, adapter, sequences, views, shards=n, nulls=nulls, grid=(0.3, 0.7)) for n in (1, 3))
    keys = ["null_model", "noise_t", "object", "target", "quantity", "layer"]
    one, three = one.sort(keys), three.sort(keys)
    assert one.select(keys).equals(three.select(keys), null_equal=True)
    np.testing.assert_allclose(three["value"], one["value"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(three["ci_lo"], one["ci_lo"], rtol=1e-9, atol=1e-12)
