"""The files between the rooms: what is written comes back, what is damaged is named, and nothing half-written stays."""

import errno
import os

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plm_depth import tables
from plm_depth.tables import (
    CLUSTERS,
    CONTRIB_SEQ,
    LENS_SEQ,
    LOSS,
    MOMENT_KEYS,
    MOMENTS,
    SEQUENCES,
    STREAM_KEYS,
    TableError,
    TableWriter,
    VectorTable,
    VectorWriter,
    as_table,
    iterate_table,
    read_metadata,
    read_table,
    replacing,
    write_table,
    write_text,
)

LOSS_ROWS = {
    "model_id": "toy",
    "step": [0, 10],
    "n_residues": [0, 2**40],
    "split": ["train", "valid"],
    "nats": [2.9, float("nan")],
    "n": [5, 7],
    "reference": 2.89,
}
VIEW = {
    "null_model": "trained",
    "null_seed": -1,
    "condition": "seq",
    "direction": "none",
    "noise_t": 0.15,
    "mask_draw": 0,
}


def keys_of(sequence_id: str, n: int) -> dict[str, object]:
    """Return the keys of the moments of a protein without specials."""
    return {
        **VIEW,
        "sequence_id": sequence_id,
        "n_residues": n,
        "position": np.arange(n),
        "pos_class": ["masked"] + ["unmasked"] * (n - 1),
    }


def damage(path, at: int = -1) -> None:
    """Flip the bits of one byte, by default in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at < 0 else at] ^= 0xFF
    path.write_bytes(content)


def leftovers(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if ".tmp." in p.name)


# ------------------------------------------------------------------------------------------------- ordinary tables


def test_a_table_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "loss.parquet"
    assert write_table(LOSS_ROWS, LOSS, path, seed=3) == 2
    found = read_table(path, LOSS)
    assert found.column_names == LOSS.names
    assert found.column("split").to_pylist() == ["train", "valid"]
    assert found.column("n_residues").to_pylist() == [0, 2**40]
    assert found.column("model_id").to_pylist() == ["toy", "toy"]
    assert np.isnan(found.column("nats").to_numpy()[1]) and found.column("nats").null_count == 0
    about = read_metadata(path)
    assert about["seed"] == "3" and about["description"].startswith("training curve")
    assert pq.read_schema(path).field("nats").metadata[b"description"].startswith(b"mean loss")
    assert write_table(found, LOSS, tmp_path / "copy.parquet") == 2
    assert pl.read_parquet(tmp_path / "copy.parquet").equals(pl.read_parquet(path))


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_table(LOSS_ROWS, LOSS, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "schema", [getattr(tables, name) for name in dir(tables) if isinstance(getattr(tables, name), pa.Schema)]
)
def test_every_schema_says_what_its_rows_and_columns_are(schema):
    assert schema.metadata[b"description"]
    for field in schema:
        assert field.metadata[b"description"], field.name
        assert not field.nullable


def test_columns_that_do_not_fit_their_schema_are_refused():
    def without(name):
        return {k: v for k, v in LOSS_ROWS.items() if k != name}

    for columns, message in (
        (without("n"), r"missing: \['n'\]"),
        (LOSS_ROWS | {"extra": 1}, r"unknown: \['extra'\]"),
        (LOSS_ROWS | {"n": [1, 2, 3]}, "different lengths"),
        (LOSS_ROWS | {"n": [1.5, 2]}, "'n' is not int64"),
        (LOSS_ROWS | {"n": ["one", "two"]}, "'n' is not int64"),
        (LOSS_ROWS | {"step": [0, 2**31]}, "'step' is not int32"),
        (LOSS_ROWS | {"n": [1, None]}, "'n' holds 1 nulls"),
        (LOSS_ROWS | {"split": ["train", None]}, "'split' holds 1 nulls"),
        (LOSS_ROWS | {"nats": [1.0, None]}, "'nats' holds 1 nulls"),
    ):
        with pytest.raises(TableError, match=message):
            as_table(columns, LOSS)


def test_small_floats_are_rounded_and_large_counts_are_not_wrapped():
    row = {field.name: ["x"] if pa.types.is_dictionary(field.type) else [1] for field in CONTRIB_SEQ}
    table = as_table(row | {"p95": [0.1], "sum": [0.1]}, CONTRIB_SEQ)
    assert table.column("p95").to_pylist() == [np.float32(0.1)] and table.column("sum").to_pylist() == [0.1]
    with pytest.raises(TableError, match="'layer' is not int16"):
        as_table(row | {"layer": [40_000]}, CONTRIB_SEQ)
    with pytest.raises(TableError, match="'n' is not int32"):
        as_table(row | {"n": np.array([2**31])}, CONTRIB_SEQ)


def test_dictionary_columns_are_accepted_encoded_or_plain():
    encoded = pa.array(["a", "b", "a"]).dictionary_encode()
    chunked = pa.chunked_array([encoded.slice(0, 2), pa.array(["c"]).dictionary_encode()])
    columns = {"sequence_id": chunked, "cluster_id": encoded}
    assert as_table(columns, CLUSTERS).column("sequence_id").to_pylist() == ["a", "b", "c"]
    narrow = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), ["train", "valid"])
    assert as_table(LOSS_ROWS | {"split": narrow}, LOSS).column("split").to_pylist() == ["train", "valid"]


def test_an_empty_table_is_a_table(tmp_path):
    columns = {"sequence_id": pa.array([], pa.string()), "cluster_id": pa.array([], pa.string())}
    assert write_table(columns, CLUSTERS, tmp_path / "empty") == 0
    assert read_table(tmp_path / "empty", CLUSTERS).num_rows == 0
    assert [part.num_rows for part in iterate_table(tmp_path / "empty", CLUSTERS)] in ([], [0])


def test_a_file_of_another_schema_is_named(tmp_path):
    path = tmp_path / "loss.parquet"
    write_table(LOSS_ROWS, LOSS, path)
    with pytest.raises(TableError, match=rf"{path}.*no column 'sequence_id'"):
        read_table(path, CLUSTERS)
    wrong = pa.table({"sequence_id": pa.array([1]), "cluster_id": pa.array(["x"])})
    pq.write_table(wrong, tmp_path / "wrong.parquet")
    for read in (read_table, lambda *a: list(iterate_table(*a))):
        with pytest.raises(TableError, match="'sequence_id' is int64, expected string"):
            read(tmp_path / "wrong.parquet", CLUSTERS)


def test_a_missing_truncated_or_foreign_file_is_named(tmp_path):
    path = tmp_path / "loss.parquet"
    write_table(LOSS_ROWS, LOSS, path)
    whole = path.read_bytes()
    readers = (
        lambda p: read_table(p, LOSS),
        lambda p: list(iterate_table(p, LOSS)),
        read_metadata,
        lambda p: VectorTable(p, MOMENT_KEYS),
    )
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:3], b"", b"not a table at all" * 10):
        path.write_bytes(content)
        for read in readers:
            with pytest.raises(TableError, match=r"loss\.parquet: not a readable Parquet file"):
                read(path)
    for read in readers:
        with pytest.raises(TableError, match=r"absent\.parquet"):
            read(tmp_path / "absent.parquet")


def test_a_corrupt_page_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "sequences.parquet"
    random = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    rows = {
        "sequence_id": [f"P{i}" for i in range(500)],
        "sequence_hash": [str(i) for i in range(500)],
        "rank": np.arange(500),
        "n_residues": 100,
        "sequence": ["".join(random.choice(letters, 100)) for _ in range(500)],
    }
    write_table(rows, SEQUENCES, path)
    whole = path.read_bytes()
    for at in np.linspace(1000, len(whole) - 6000, 12).astype(int):
        path.write_bytes(whole)
        damage(path, int(at))
        with pytest.raises(TableError, match=r"sequences\.parquet"):
            read_table(path, SEQUENCES)
        with pytest.raises(TableError, match=r"sequences\.parquet"):
            list(iterate_table(path, SEQUENCES))


# ------------------------------------------------------------------------------------------------- whole or not at all


def test_a_writer_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "text"
    write_text("before", path)
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and leftovers(tmp_path) == []
    with pytest.raises(TableError):
        write_table(LOSS_ROWS | {"n": [None, 1]}, LOSS, tmp_path / "loss")
    assert not (tmp_path / "loss").exists()
    write_text("after", path)
    assert path.read_text() == "after" and leftovers(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_none(tmp_path, monkeypatch, code):
    def full(self, table, **options):
        raise OSError(code, "Error writing bytes to file")  # as Arrow says it

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    path = tmp_path / "stream.parquet"
    keys = {field.name: "x" if pa.types.is_dictionary(field.type) else 1 for field in STREAM_KEYS}
    with (
        pytest.raises(OSError, match=rf"stream.parquet: cannot be written \({os.strerror(code)}\); make room"),
        VectorWriter(path, STREAM_KEYS, [0], 3, "float32") as writer,
    ):
        writer.append({**keys, "position": np.array([0], np.int32)}, np.zeros((1, 1, 3)))
    assert list(tmp_path.iterdir()) == []


def test_nothing_stands_under_the_final_name_before_the_end(tmp_path):
    path = tmp_path / "vectors.parquet"
    with VectorWriter(path, MOMENT_KEYS, [0], 2, "float32") as writer:
        writer.append(keys_of("a", 3), np.zeros((1, 3, 2)))
        assert not path.exists() and leftovers(tmp_path) == [f"vectors.parquet.tmp.{os.getpid()}"]
    assert path.exists() and leftovers(tmp_path) == []
    with pytest.raises(RuntimeError), VectorWriter(tmp_path / "x", MOMENT_KEYS, [0], 2, "float32") as writer:
        writer.append(keys_of("a", 3), np.zeros((1, 3, 2)))
        raise RuntimeError
    with pytest.raises(RuntimeError), TableWriter(tmp_path / "y", LOSS) as writer:
        writer.append(LOSS_ROWS)
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vectors.parquet"]


def test_a_table_written_part_by_part_comes_back_in_parts_and_whole(tmp_path):
    path = tmp_path / "loss.parquet"
    with TableWriter(path, LOSS, seed=1) as writer:
        writer.append(LOSS_ROWS)
        writer.append(as_table(LOSS_ROWS | {"model_id": "other", "nats": [1.0, 2.0]}, LOSS))
        writer.append(as_table(LOSS_ROWS, LOSS).slice(0, 0))
    assert writer.n_rows == 4
    parts = list(iterate_table(path, LOSS))
    assert [part.column("model_id").to_pylist() for part in parts] == [["toy"] * 2, ["other"] * 2]
    assert read_table(path, LOSS).column("model_id").to_pylist() == ["toy", "toy", "other", "other"]
    assert read_metadata(path)["seed"] == "1"
    with pytest.raises(TableError, match="missing"), TableWriter(tmp_path / "bad", LOSS) as writer:
        writer.append({"model_id": ["x"]})
    assert not (tmp_path / "bad").exists()


def test_lists_of_a_fixed_length_come_back(tmp_path):
    row = {field.name: ["x"] if pa.types.is_dictionary(field.type) else [1] for field in LENS_SEQ}
    row["rank_hist"] = pa.array([list(range(20))], pa.list_(pa.int32(), 20))
    with TableWriter(tmp_path / "lens", LENS_SEQ) as writer:
        writer.append(row)
    assert read_table(tmp_path / "lens", LENS_SEQ).column("rank_hist").to_pylist() == [list(range(20))]
    with pytest.raises(TableError, match="rank_hist"):
        as_table(row | {"rank_hist": [[1, 2, 3]]}, LENS_SEQ)


# ------------------------------------------------------------------------------------------------- vector tables


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["float16", "float32", "float64"]),
    st.integers(1, 20),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_vectors_come_back_as_they_were_written(tmp_path, lengths, n_layers, width, dtype, rows_per_group):
    random = np.random.default_rng(sum(lengths))
    layers = list(range(3, 3 + n_layers))
    names = [f"m{i}" for i in range(width)]
    path = tmp_path / "v.parquet"
    written = []
    with VectorWriter(
        path, MOMENT_KEYS, layers, width, dtype, {"seed": 7}, names, rows_per_group=rows_per_group
    ) as writer:
        for i, n in enumerate(lengths):
            written.append(random.standard_normal((n_layers, n, width)))
            writer.append(keys_of(f"P{i}", n), written[-1])
    table = VectorTable(path, MOMENT_KEYS)
    assert (table.layers, table.width, table.names) == (layers, width, names)
    assert table.constants == {"seed": 7} and table.dtype == np.dtype(dtype) and table.n_rows == sum(lengths)
    expected = np.concatenate(written, axis=1).astype(dtype)
    for i, layer in enumerate(layers):
        np.testing.assert_array_equal(table.layer(layer), expected[i])
    keys = table.keys()
    assert keys.column("sequence_id").to_pylist() == [f"P{i}" for i, n in enumerate(lengths) for _ in range(n)]
    assert keys.column("position").to_pylist() == [p for n in lengths for p in range(n)]
    # Row groups end where a protein ends.
    about = pq.ParquetFile(path).metadata
    ends = np.cumsum([about.row_group(i).num_rows for i in range(about.num_row_groups)])
    assert set(ends.tolist()) <= set(np.cumsum(lengths).tolist())


def test_a_layer_is_a_view_that_cannot_be_written_to(tmp_path):
    with VectorWriter(tmp_path / "v", MOMENT_KEYS, [0], 2, "float32") as writer:
        writer.append(keys_of("a", 3), np.ones((1, 3, 2)))
    layer = VectorTable(tmp_path / "v", MOMENT_KEYS).layer(0)
    with pytest.raises(ValueError, match="read-only"):
        layer[0] = 0


def test_vectors_that_do_not_fit_are_refused(tmp_path):
    def write(keys, vectors, dtype="float16"):
        with VectorWriter(tmp_path / "v", MOMENT_KEYS, [0, 1], 2, dtype) as writer:
            writer.append(keys, vectors)

    write(keys_of("a", 3), np.full((2, 3, 2), 65504.0))
    (tmp_path / "v").unlink()
    with pytest.raises(TableError, match=r"too large for float16; store a wider dtype \(cache\.dtype\)"):
        write(keys_of("a", 3), np.full((2, 3, 2), 65520.0))
    with pytest.raises(TableError, match="infinite"):
        write(keys_of("a", 3), np.full((2, 3, 2), np.inf), "float32")
    with pytest.raises(TableError, match="expected \\(2, rows, 2\\)"):
        write(keys_of("a", 3), np.zeros((2, 3, 3)))
    with pytest.raises(TableError, match="3 key rows for 4 vectors"):
        write(keys_of("a", 3), np.zeros((2, 4, 2)))
    with pytest.raises(TableError, match="missing"):
        write({"sequence_id": ["a"] * 3}, np.zeros((2, 3, 2)))
    assert list(tmp_path.iterdir()) == []


def test_nan_is_a_value_of_a_vector(tmp_path):
    with VectorWriter(tmp_path / "v", MOMENT_KEYS, [0], 2, "float16") as writer:
        writer.append(keys_of("a", 2), np.array([[[1, np.nan], [2, 3]]]))
    assert np.isnan(VectorTable(tmp_path / "v", MOMENT_KEYS).layer(0)).tolist() == [[False, True], [False, False]]


def test_a_vector_table_without_rows_has_layers(tmp_path):
    with VectorWriter(tmp_path / "v", STREAM_KEYS, [0, 1], 4, "float16") as writer:
        writer.append({}, np.zeros((2, 0, 4)))
    table = VectorTable(tmp_path / "v", STREAM_KEYS)
    assert table.layer(1).shape == (0, 4) and table.keys().num_rows == 0


def test_a_wrong_or_damaged_vector_table_is_named(tmp_path):
    path = tmp_path / "v.parquet"
    with VectorWriter(path, MOMENT_KEYS, range(3), len(MOMENTS), "float32", names=MOMENTS) as writer:
        writer.append(keys_of("a", 300), np.ones((3, 300, len(MOMENTS))))
    table = VectorTable(path, MOMENT_KEYS)
    with pytest.raises(TableError, match=r"no layer 3; it has \[0, 1, 2\]"):
        table.layer(3)
    with pytest.raises(TableError, match="no column 'true_aa'"):
        VectorTable(path, tables.LENS_KEYS)
    write_table({"sequence_id": ["a"], "cluster_id": ["b"]}, CLUSTERS, tmp_path / "ordinary")
    with pytest.raises(TableError, match="not a vector table"):
        VectorTable(tmp_path / "ordinary", MOMENT_KEYS)
    damage(path)  # in the middle of a layer's numbers
    damaged = VectorTable(path, MOMENT_KEYS)
    with pytest.raises(TableError, match=r"v\.parquet: corrupt"):
        [damaged.layer(layer) for layer in range(3)]


def test_vector_tables_open_in_other_tools(tmp_path):
    with VectorWriter(tmp_path / "v", MOMENT_KEYS, [0], 2, "float32") as writer:
        writer.append(keys_of("a", 2), np.array([[[1.0, 2.0], [3.0, 4.0]]]))
    found = pl.read_parquet(tmp_path / "v")
    assert [np.frombuffer(cell, "<f4").tolist() for cell in found["layer_0"]] == [[1, 2], [3, 4]]
