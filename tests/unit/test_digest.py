"""Digests say whether tables hold the same, and nothing else."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plm_depth import digest, tables
from plm_depth.__main__ import main
from plm_depth.tables import STREAM_KEYS, TableError, VectorWriter

N = 40


def columns(**changes: object) -> dict[str, object]:
    """Return the columns of a table with every kind of column that a schema has."""
    generator = np.random.default_rng(1)
    return {
        "name": [f"P{i % 7}" for i in range(N)],
        "model": pa.array([f"m{i % 3}" for i in range(N)]).dictionary_encode(),
        "n": np.arange(N, dtype=np.int32),
        "is_masked": np.arange(N) % 2 == 0,
        "value": np.where(np.arange(N) % 5 == 0, np.nan, generator.normal(size=N)),
        "xyz": pa.FixedSizeListArray.from_arrays(pa.array(generator.normal(size=3 * N).astype(np.float32)), 3),
        "sums": pa.array([list(map(float, range(i % 4))) for i in range(N)], pa.list_(pa.float64())),
        "counts": pa.array([list(range(i % 3)) for i in range(N)], pa.list_(pa.int32())),
    } | changes


def write(path: Path, *tables_: pa.Table, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables_), path, **options)
    return path


def content(path: Path) -> str:
    (one,) = digest.digests([path])
    return one.content


@pytest.fixture
def table() -> pa.Table:
    return pa.table(columns())


@pytest.fixture
def expected(table, tmp_path) -> str:
    return content(write(tmp_path / "expected.parquet", table))


def test_order_parts_compression_and_metadata_make_no_difference(table, expected, tmp_path):
    shuffled = table.take(np.random.default_rng(0).permutation(N)).replace_schema_metadata({"made": "otherwise"})
    assert content(write(tmp_path / "a.parquet", shuffled, row_group_size=7, compression="gzip")) == expected
    plain = table.set_column(1, "model", table.column("model").cast(pa.string()))
    assert content(write(tmp_path / "b.parquet", plain.select(table.column_names[::-1]))) == expected


def test_shards_are_one_table_however_many_there_are(table, tmp_path):
    found = []
    for name, bounds in {"one": [0, N], "three": [0, 3, 30, N]}.items():
        for shard, (first, last) in enumerate(itertools.pairwise(bounds)):
            write(tmp_path / name / "activations" / str(shard) / "m.parquet", table[first:last])
            write(tmp_path / name / "shards" / f"{shard}.parquet", table[first:last])
        found.append(digest.digests([tmp_path / name]))
    assert [one.name for one in found[0]] == ["activations/*/m.parquet", "shards/*.parquet"]
    assert [(a.name, a.n_rows, a.content, a.keys) for a in found[0]] == [
        (b.name, b.n_rows, b.content, b.keys) for b in found[1]
    ]
    assert [one.n_files for one in found[1]] == [3, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ["Q"] + [f"P{i % 7}" for i in range(1, N)]},
        {"n": np.arange(N, dtype=np.int32) + (np.arange(N) == 5)},
        {"n": np.arange(N, dtype=np.int64)},
        {"is_masked": np.arange(N) % 2 == 1},
        {"value": np.where(np.arange(N) % 5 == 1, np.nan, 1.0)},
        {"counts": pa.array([[1, *range(i % 3)] for i in range(N)], pa.list_(pa.int32()))},
    ],
    ids=lambda changes: str(*changes),
)
def test_any_other_value_or_type_makes_another_digest(changes, expected, tmp_path):
    assert content(write(tmp_path / "a.parquet", pa.table(columns(**changes)))) != expected


def test_a_row_twice_or_missing_makes_another_digest(table, expected, tmp_path):
    assert content(write(tmp_path / "a.parquet", table, table[:1])) != expected
    assert content(write(tmp_path / "b.parquet", table[:-1])) != expected


def test_values_that_change_places_between_rows_are_noticed(table, expected, tmp_path):
    swapped = table.set_column(2, "n", pa.array(np.roll(np.arange(N), 1), pa.int32()))
    assert content(write(tmp_path / "a.parquet", swapped)) != expected


def test_all_nan_are_one_and_so_are_both_zeros(tmp_path):
    other = np.frombuffer(b"\x01\x00\x00\x00\x00\x00\xf8\xff", np.float64)
    one = pa.table({"x": np.array([np.nan, 0.0])})
    assert content(write(tmp_path / "a.parquet", one)) == content(
        write(tmp_path / "b.parquet", pa.table({"x": np.array([other[0], -0.0])}))
    )


def test_keys_leave_out_what_may_differ_by_rounding(table, tmp_path):
    rounded = table.set_column(4, "value", pa.array(np.nan_to_num(np.asarray(table.column("value")))))
    (a,) = digest.digests([write(tmp_path / "a.parquet", table)])
    (b,) = digest.digests([write(tmp_path / "b.parquet", rounded)])
    assert a.keys == b.keys and a.content != b.content
    (c,) = digest.digests(
        [write(tmp_path / "c.parquet", pa.table(columns(n=np.arange(N, dtype=np.int32)[::-1].copy())))]
    )
    assert c.keys != a.keys


def test_vector_tables_are_read_as_numbers(tmp_path):
    def vectors(name: str, values: np.ndarray, rows_per_group: int) -> str:
        keys = {field.name: "x" if pa.types.is_dictionary(field.type) else 1 for field in STREAM_KEYS}
        with VectorWriter(tmp_path / name, STREAM_KEYS, [0, 1], 3, "float32", rows_per_group=rows_per_group) as writer:
            for row in range(values.shape[1]):
                some = {**keys, "position": np.array([row], np.int32)}
                writer.append(some, values[:, row : row + 1])
        return content(tmp_path / name)

    values = np.arange(30, dtype=np.float32).reshape(2, 5, 3)
    values[0, 0, 0] = -0.0
    first = vectors("a.parquet", values, 1)
    assert first == vectors("b.parquet", np.abs(values), 100)
    assert first != vectors("c.parquet", values[::-1], 100)


def test_the_command_prints_a_line_a_table_and_names_a_damaged_one(table, expected, tmp_path, capsys):
    write(tmp_path / "r" / "profiles" / "m.parquet", table)
    assert main(["digest", str(tmp_path / "r")]) == 0
    assert capsys.readouterr().out.split() == [expected, str(N), "profiles/m.parquet"]
    damaged = tmp_path / "r" / "profiles" / "m.parquet"
    data = bytearray(damaged.read_bytes())
    data[60] ^= 0xFF
    pq.write_table(table, damaged, write_page_checksum=True, compression="none")
    data = bytearray(damaged.read_bytes())
    data[60] ^= 0xFF
    damaged.write_bytes(data)
    with pytest.raises(SystemExit, match=r"m\.parquet.*delete it"):
        main(["digest", str(tmp_path / "r")])
    with pytest.raises(SystemExit, match="no such file"):
        main(["digest", str(tmp_path / "nowhere")])


def test_shards_with_other_columns_are_refused(table, tmp_path):
    write(tmp_path / "0.parquet", table)
    write(tmp_path / "1.parquet", table.drop_columns(["n"]))
    with pytest.raises(TableError, match="other columns"):
        digest.digests([tmp_path])


def test_every_schema_of_the_package_can_be_digested(tmp_path):
    schemas = {name: one for name, one in vars(tables).items() if isinstance(one, pa.Schema)}
    assert len(schemas) > 10
    for name, schema in schemas.items():
        pq.write_table(schema.empty_table(), tmp_path / f"{name}.parquet")
    assert len({one.content for one in digest.digests([tmp_path])}) == len(schemas)
