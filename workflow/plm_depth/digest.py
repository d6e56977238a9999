"""Digests of what tables hold, so that two runs can be compared in one line a table.

    python -m plm_depth digest results/mini > before.txt

The digest of a table depends on its rows alone: not on their order, nor on the files and row groups over which they are
spread, nor on compression, metadata or versions of libraries. Shards (``0/lens.parquet``, ``1/lens.parquet``) are one
table, named with ``*`` instead of the number. Two NaN are equal, and so are 0 and -0.
"""

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from plm_depth.tables import TableError

N_BYTES = 16


@dataclass(frozen=True)
class Digest:
    """Of one table.

    Attributes:
        name: path of its file below the folder that was asked about, shard numbers as ``*``.
        n_files, n_rows: over which files it is spread, and its rows.
        content: 32 hexadecimal digits of its rows.
        keys: the same without floating-point columns: names, positions, counts.
    """

    name: str
    n_files: int
    n_rows: int
    content: str
    keys: str


def digests(paths: Iterable[str | Path]) -> list[Digest]:
    """Return the digests of all Parquet tables among ``paths``, files or folders, by name.

    Raises:
        TableError: a path that does not exist, a damaged file, or shards of one table with different columns.
    """
    tables: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise TableError(f"{path}: no such file or folder")
        for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
            name = name_of(file.relative_to(path)) if path.is_dir() else str(path)
            tables.setdefault(name, []).append(file)
    return [digest_of(name, files) for name, files in sorted(tables.items())]


def name_of(file: Path) -> str:
    """Return the name of the table that a file is a part of: numbers of shards in its path as ``*``."""
    parts = ["*" if part.isdigit() else part for part in file.with_suffix("").parts]
    return "/".join(parts) + file.suffix


def digest_of(name: str, files: Sequence[Path]) -> Digest:
    """Return the digest of the rows of all ``files`` together."""
    columns: dict[str, str] | None = None
    n_rows, sums = 0, [0, 0]
    for file in files:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            schema = parquet.schema_arrow
            found = {field.name: _kind(field.type) for field in schema}
            if columns is not None and found != columns:
                raise TableError(f"{file}: other columns than {files[0]}; written by another version?")
            columns = found
            for part in range(parquet.num_row_groups):
                for i, some in enumerate((schema.names, [n for n in schema.names if not _is_float(schema, n)])):
                    table = parquet.read_row_group(part, columns=some)
                    sums[i] += sum(row_digests(table)) if some else 0
                n_rows += parquet.metadata.row_group(part).num_rows
        except (OSError, pa.ArrowInvalid) as error:
            raise TableError(f"{file}: not a readable Parquet file ({error}); delete it and run again") from error
    about = json.dumps([columns, n_rows], sort_keys=True).encode()
    content, keys = (
        hashlib.blake2b(about + (one % 2 ** (8 * N_BYTES)).to_bytes(N_BYTES, "little"), digest_size=N_BYTES).hexdigest()
        for one in sums
    )
    return Digest(name, len(files), n_rows, content, keys)


def row_digests(table: pa.Table) -> Iterator[int]:
    """Yield a number of ``N_BYTES`` bytes for every row, from the values of its columns in the order of their names."""
    about = json.loads((table.schema.metadata or {}).get(b"vectors", b"{}"))
    columns = [_row_bytes(table.column(name), about.get("dtype")) for name in sorted(table.column_names)]
    rows = np.ascontiguousarray(np.concatenate(columns, axis=1)) if columns else np.empty((table.num_rows, 0), np.uint8)
    for row in rows:
        yield int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=N_BYTES).digest(), "little")


def _row_bytes(column: pa.ChunkedArray, vector_dtype: str | None) -> np.ndarray:
    """Return (rows, bytes) uint8 that stand for the values of one column."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no chunk or of several that cannot be joined
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    kind = array.type
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind):
        encoded = array if pa.types.is_dictionary(kind) else array.dictionary_encode()
        words = [_hash(str(word).encode()) for word in encoded.dictionary.to_pylist()]
        table = np.frombuffer(b"".join(words), np.uint8).reshape(-1, N_BYTES)
        return table[encoded.indices.to_numpy(zero_copy_only=False)]
    if pa.types.is_fixed_size_binary(kind):
        raw = np.frombuffer(array.buffers()[1], np.uint8)
        raw = raw[array.offset * kind.byte_width : (array.offset + len(array)) * kind.byte_width]
        return _canonical(raw.view(np.dtype(vector_dtype)) if vector_dtype else raw, len(array))
    if pa.types.is_fixed_size_list(kind):
        return _canonical(array.flatten().to_numpy(zero_copy_only=False), len(array))
    if pa.types.is_list(kind):
        values = _canonical(array.flatten().to_numpy(zero_copy_only=False), None)
        ends = np.cumsum(pc.list_value_length(array).to_numpy(zero_copy_only=False))
        rows = [_hash(values[first:last].tobytes()) for first, last in zip([0, *ends[:-1]], ends)]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, N_BYTES)
    return _canonical(array.to_numpy(zero_copy_only=False), len(array))


def _canonical(values: np.ndarray, n_rows: int | None) -> np.ndarray:
    """Return numbers as (rows, bytes), or (values, bytes) for None: little-endian, one kind of NaN and of zero."""
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values + values.dtype.type(0))
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    n = len(values) if n_rows is None else n_rows
    return values.view(np.uint8).reshape(n, -1) if n else np.empty((0, values.dtype.itemsize), np.uint8)


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=N_BYTES).digest()


def _kind(kind: pa.DataType) -> str:
    """Return the name of a type; how strings are stored makes no difference."""
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _is_float(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return pa.types.is_floating(kind) or pa.types.is_fixed_size_binary(kind)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("paths", nargs="+", metavar="PATH", type=Path, help="tables, or folders of tables")
    parser.add_argument(
        "--keys",
        action="store_true",
        help="leave floating-point columns out: what must agree where rounding may differ",
    )


def run(paths: Sequence[Path], *, keys: bool = False) -> int:
    """Print one line a table: digest, rows, name; return the exit status."""
    try:
        for one in digests(paths):
            print(f"{one.keys if keys else one.content}  {one.n_rows:>9}  {one.name}")
    except TableError as error:
        raise SystemExit(str(error)) from None
    return 0
