"""Rows of the vector tables of all shards, sorted into groups: one protein under one view and one null model.

The order of the groups depends on their keys alone, so that one shard and seven shuffled ones give the same tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth.tables import COMMON, PER_SEQUENCE, VIEW_KEYS, TableError, VectorTable

KEYS = (*(name for name in VIEW_KEYS if name not in PER_SEQUENCE), *PER_SEQUENCE)  # views first, then the protein
CONSTANT = tuple(name for name in COMMON if name not in VIEW_KEYS)  # one value for a whole vector table
IDENTITY = (*CONSTANT, "seed", "version")  # what all shards of one model must share


@dataclass(frozen=True)
class Codes:
    """A column as whole numbers: ``values[codes]`` is the column, ``values`` is sorted and free of repeats."""

    codes: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Shard:
    """One vector table, its rows sorted by (group, class, position).

    Attributes:
        table: the file.
        order: (n_rows,) row numbers of the file in sorted order.
        group: (n_rows,) group of each sorted row, an index into ``Groups.keys``.
        row_class: (n_rows,) class of each sorted row, 0 if there are no classes.
        position: (n_rows,) position of each sorted row.
        kept: the asked for key columns of the sorted rows.

    All of them are as narrow as they may be: they live as long as the stage, for the tokens of all shards.
    """

    table: VectorTable
    order: np.ndarray
    group: np.ndarray
    row_class: np.ndarray
    position: np.ndarray
    kept: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Groups:
    """Shards of one model and the groups that their rows form.

    Attributes:
        constants: what all shards share (``CONSTANT`` and more), from the files' metadata.
        keys: a column per name of ``KEYS``, (n_groups,), sorted by those names in that order.
        shards: the files.
    """

    constants: Mapping[str, object]
    keys: Mapping[str, np.ndarray]
    shards: Sequence[Shard]

    @property
    def n_groups(self) -> int:
        return len(self.keys["sequence_id"])

    def columns(self, groups: np.ndarray) -> dict[str, object]:
        """Return the COMMON and PER_SEQUENCE columns of the given groups, repeats allowed."""
        columns: dict[str, object] = {name: self.constants[name] for name in CONSTANT}
        for name, values in self.keys.items():
            columns[name] = dictionary(values, groups) if values.dtype.kind == "U" else values[groups]
        return columns


def dictionary(values: Sequence[str] | np.ndarray, codes: np.ndarray) -> pa.DictionaryArray:
    """Return ``values[codes]`` as an Arrow dictionary column; the dictionary holds each text once."""
    unique, inverse = np.unique(np.asarray(values, str), return_inverse=True)
    return pa.DictionaryArray.from_arrays(
        pa.array(inverse[codes].astype(np.int32)), pa.array(unique.tolist(), pa.string())
    )


def codes_of(column: pa.ChunkedArray) -> Codes:
    """Return a column as codes; NaN counts as one value, after all others."""
    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        array = column.unify_dictionaries().combine_chunks()
        texts = np.array(array.dictionary.to_pylist(), str)
        used, inverse = np.unique(texts, return_inverse=True)
        return Codes(inverse[array.indices.to_numpy(zero_copy_only=False)], used)
    values, codes = np.unique(column.to_numpy(), return_inverse=True)
    return Codes(codes, values)


def row_codes(columns: Sequence[Codes]) -> tuple[np.ndarray, np.ndarray]:
    """Return, for rows described by several columns, the first row of each distinct combination and each row's number.

    Combinations are numbered in the order of the columns' values, the first column counting most.
    """
    combined = np.zeros(len(columns[0].codes), np.int64)
    n_combined = 1
    for column in columns:
        n_values = max(len(column.values), 1)
        if n_combined * n_values >= 2**62:
            combined = np.unique(combined, return_inverse=True)[1]
            n_combined = int(combined.max(initial=0)) + 1
        combined = combined * n_values + column.codes
        n_combined *= n_values
    _, first, number = np.unique(combined, return_index=True, return_inverse=True)
    return first, number


def read_groups(
    paths: Sequence[str | Path],
    keys_schema: pa.Schema,
    *,
    classes: Sequence[str] | None = None,
    keep: Sequence[str] = (),
) -> Groups:
    """Return the groups of the vector tables of all shards of one model.

    Args:
        paths: the vector tables, in any order.
        keys_schema: MOMENT_KEYS or LENS_KEYS.
        classes: values of the column ``pos_class``, if rows of one group are told apart by it.
        keep: key columns to hold on to, of numbers.
    Raises:
        TableError: no path, tables of different models, settings or layers, a token that stands twice, a class that is
            unknown.
    """
    if not paths:
        raise TableError("no vector table given; expected one per shard")
    opened = [VectorTable(path, keys_schema) for path in paths]
    constants = _common_constants(opened)
    local_keys, read = [], []
    for table in opened:
        rows = table.keys()
        columns = [codes_of(rows.column(name)) for name in KEYS]
        first, number = row_codes(columns)
        local_keys.append([column.values[column.codes[first]] for column in columns])
        row_class = _classes(rows, classes, table.path)
        kept = {name: rows.column(name).to_numpy() for name in ("position", *keep)}
        read.append((number.astype(np.int32), row_class, kept))
    of_file = np.repeat(np.arange(len(opened)), [len(k[0]) for k in local_keys])
    merged = [_coded(np.concatenate(parts)) for parts in zip(*local_keys)]
    first, number = row_codes(merged)
    keys = {name: column.values[column.codes[first]] for name, column in zip(KEYS, merged)}
    _refuse_repeated(keys, number, of_file, [table.path for table in opened])
    shards, done = [], 0
    for table, values in zip(opened, local_keys):
        local, row_class, kept = read.pop(0)
        group = number[done : done + len(values[0])].astype(np.int32)[local]
        done += len(values[0])
        order = np.lexsort((kept["position"], row_class, group)).astype(np.int32)
        kept = {name: column[order] for name, column in kept.items()}
        shard = Shard(table, order, group[order], row_class[order], kept.pop("position"), kept)
        _refuse_repeated_positions(shard, keys)
        shards.append(shard)
    return Groups(constants, keys, shards)


def _coded(values: np.ndarray) -> Codes:
    unique, codes = np.unique(values, return_inverse=True)
    return Codes(codes, unique)


def _common_constants(tables: Sequence[VectorTable]) -> dict[str, object]:
    first = tables[0]
    for name in CONSTANT:
        if name not in first.constants:
            raise TableError(f"{first.path}: its metadata lack {name!r}; expected {list(CONSTANT)}. Extract it again")
    for table in tables[1:]:
        for name in IDENTITY:
            ours, theirs = first.constants.get(name), table.constants.get(name)
            if ours != theirs:
                raise TableError(
                    f"{table.path}: {name} is {theirs!r}, but {ours!r} in {first.path}; give shards of one model, "
                    "extracted with the same settings"
                )
        if (table.layers, table.width, table.names) != (first.layers, first.width, first.names):
            raise TableError(f"{table.path}: other layers or columns than {first.path}; extract both again")
    expected = list(range(int(first.constants["n_blocks"]) + 1))
    if first.layers != expected:
        raise TableError(f"{first.path}: layers {first.layers}, expected {expected} (n_blocks + 1 of them)")
    return dict(first.constants)


def _refuse_repeated(keys: Mapping[str, np.ndarray], number: np.ndarray, of_file: np.ndarray, paths: list) -> None:
    counts = np.bincount(number, minlength=len(keys["sequence_id"]))
    if (counts > 1).any():
        group = int(np.flatnonzero(counts > 1)[0])
        files = [str(paths[i]) for i in of_file[number == group]]
        raise TableError(
            f"{_name_of(keys, group)} stands in more than one shard ({', '.join(files)}); shards must not overlap"
        )
    same = np.ones(max(len(counts) - 1, 0), bool)
    for name, values in keys.items():
        if name != "n_residues":
            same &= _equal(values[1:], values[:-1])
    if same.any():
        group = int(np.flatnonzero(same)[0])
        raise TableError(
            f"{_name_of(keys, group)} has {keys['n_residues'][group]} and {keys['n_residues'][group + 1]} residues; "
            "shards of different samples?"
        )


def _refuse_repeated_positions(shard: Shard, keys: Mapping[str, np.ndarray]) -> None:
    """Refuse a residue that stands twice in a group; several specials may share a place beside the residues."""
    n_residues = keys["n_residues"][shard.group].astype(np.int64)
    is_residue = (shard.position >= 0) & (shard.position < n_residues)
    token = shard.group[is_residue].astype(np.int64) * (int(n_residues.max(initial=0)) + 1) + shard.position[is_residue]
    if len(token) > 1:
        token = np.sort(token)
        twice = token[1:][token[1:] == token[:-1]]
        if len(twice):
            group, position = divmod(int(twice[0]), int(n_residues.max()) + 1)
            raise TableError(
                f"{shard.table.path}: {_name_of(keys, group)}: position {position} stands twice; a shard holds each "
                "residue of a protein once. Delete the file and run the extraction again"
            )


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return (a == b) | (np.isnan(a) & np.isnan(b))
    return a == b


def _classes(rows: pa.Table, classes: Sequence[str] | None, path: Path) -> np.ndarray:
    if classes is None:
        return np.zeros(rows.num_rows, np.int8)
    found = codes_of(rows.column("pos_class"))
    unknown = sorted(set(found.values.tolist()) - set(classes))
    if unknown:
        raise TableError(f"{path}: pos_class {unknown}, expected {list(classes)}")
    return np.array([classes.index(value) for value in found.values.tolist()], np.int8)[found.codes]


def _name_of(keys: Mapping[str, np.ndarray], group: int) -> str:
    described = ", ".join(f"{name} {keys[name][group]}" for name in KEYS if name not in PER_SEQUENCE)
    return f"protein {keys['sequence_id'][group]} ({described})"
