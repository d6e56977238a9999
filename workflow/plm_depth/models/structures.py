"""The structures of the proteins of a shard, from a table of backbones, as models read them.

A structure belongs to a protein if it has the same residues (by their hash), whatever its name. Where several have the
residues of one protein, that of its own name is taken, else the first of the table; how often is logged.

3Di states come in lower case, and as "#" where nobody knows them: at residues without backbone, and where a prediction
is not sure of itself (pLDDT below 70). Coordinates are those of the file, NaN where missing.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plm_depth.models.base import Structure
from plm_depth.tables import BACKBONE, CODES, TableError, iterate_table, read_table

SURE = 70.0  # least pLDDT at which a 3Di state is shown
ATOMS = ("n", "ca", "c")
_COLUMNS = ("sequence_id", "sequence_hash", "position", "aa", "is_resolved", "plddt", *ATOMS, "three_di")


def read_codes(path: str | Path, family: str, *, log: logging.Logger | None = None) -> dict[str, np.ndarray]:
    """Return the structure codes (n_residues,) int64 that a CODES table holds for a family, by structure_id.

    Raises:
        TableError: a damaged table.
    """
    table = read_table(path, CODES)
    mine = table.filter(pc.equal(table.column("family").cast(pa.string()), family))
    found = zip(mine.column("structure_id").to_pylist(), mine.column("codes").to_pylist())
    codes = {structure_id: np.array(values, np.int64) for structure_id, values in found}
    if log is not None:
        log.info(f"{path}: codes of {family} for {len(codes)} structures")
    return codes


def read_structures(
    path: str | Path,
    proteins: Sequence[tuple[str, str]],
    *,
    codes: Mapping[str, np.ndarray] | None = None,
    log: logging.Logger | None = None,
) -> dict[str, Structure]:
    """Return the structure of each (sequence_id, sequence) that has one in a BACKBONE table, by sequence_id.

    Only the rows of these proteins are kept in memory.

    Args:
        codes: of the structures by their name, as ``read_codes`` gives them.

    Raises:
        TableError: a damaged table, or a structure whose rows are not its residues 0, 1, ... in this order.
    """
    hashes = {sequence_id: hashlib.sha256(sequence.encode()).hexdigest() for sequence_id, sequence in proteins}
    wanted = pa.array(sorted(set(hashes.values())))
    kept = []
    for rows in iterate_table(path, BACKBONE, columns=_COLUMNS):
        rows = rows.filter(pc.is_in(rows.column("sequence_hash").cast(pa.string()), value_set=wanted))
        if rows.num_rows:
            kept.append(rows)
    by_hash: dict[str, dict[str, pa.Table]] = {}
    if kept:
        table = pa.concat_tables(kept, promote_options="permissive").combine_chunks()
        names = table.column("sequence_id").cast(pa.string()).to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
        for start, end in zip(starts, np.append(starts[1:], len(names))):
            rows = table.slice(start, end - start)
            mine = by_hash.setdefault(rows.column("sequence_hash")[0].as_py(), {})
            if names[start] in mine:
                raise TableError(f"{path}: the rows of {names[start]} do not stand together; write the table again")
            mine[names[start]] = rows
    found, n_several = {}, 0
    for sequence_id, sequence in proteins:
        mine = by_hash.get(hashes[sequence_id], {})
        if mine:
            name = sequence_id if sequence_id in mine else next(iter(mine))
            n_several += len(mine) > 1
            found[sequence_id] = structure_of(mine[name], sequence, where=f"{path}: {name}")
            if codes and name in codes:
                found[sequence_id] = replace(found[sequence_id], codes=codes[name])
    if log is not None:
        several = f"; of {n_several} with several the one of the same name, else the first" if n_several else ""
        log.info(f"{path}: structures of {len(found)} of {len(proteins)} proteins{several}")
    return found


def structure_of(rows: pa.Table, sequence: str, *, where: str) -> Structure:
    """Return the structure that the rows of BACKBONE of one protein tell.

    Raises:
        TableError: the rows are not the residues of the sequence in their order; begins with ``where``.
    """
    letters = "".join(rows.column("aa").cast(pa.string()).to_pylist())
    positions = rows.column("position").to_numpy()
    if letters != sequence or not np.array_equal(positions, np.arange(len(sequence))):
        raise TableError(
            f"{where}: rows of {len(letters)} residues; expected its {len(sequence)} residues in order, a row each; "
            "write the table again"
        )
    states = rows.column("three_di").cast(pa.string()).to_pylist()
    unsure = rows.column("plddt").to_numpy() < SURE  # NaN, an experiment, is not
    hidden = unsure | ~rows.column("is_resolved").to_numpy(zero_copy_only=False)
    coordinates = [
        rows.column(atom).combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, 3) for atom in ATOMS
    ]
    return Structure(
        three_di="".join("#" if hide or state == "-" else state.lower() for state, hide in zip(states, hidden)),
        coordinates=np.stack(coordinates, 1).astype(np.float32),
    )


def hidden_at(structure: Structure, hidden: np.ndarray) -> Structure:
    """Return the structure with nothing known of some residues, ``hidden`` (n_residues,) bool."""
    states, codes, coordinates = structure.three_di, structure.codes, structure.coordinates
    return replace(
        structure,
        three_di=None
        if states is None
        else "".join("#" if gone else z for z, gone in zip(states, hidden, strict=True)),
        codes=None if codes is None else np.where(hidden, -1, codes),
        coordinates=None if coordinates is None else np.where(hidden[:, None, None], np.float32(np.nan), coordinates),
    )


def in_order(structure: Structure, order: np.ndarray) -> Structure:
    """Return the structure whose residue ``i`` is what residue ``order[i]`` was."""
    return replace(
        structure,
        three_di=None if structure.three_di is None else "".join(structure.three_di[i] for i in order),
        codes=None if structure.codes is None else structure.codes[order],
        coordinates=None if structure.coordinates is None else structure.coordinates[order],
    )
