"""Proteins with known answers for probes: chains with a structure, and members of labelled families.

    python -m plm_depth.sequences.annotations [--structures P --size N] [--families F --columns JSON]
        --min-length A --max-length B --seed N --chains P --members P --annotations P

Chains come from a table of structures (STRUCTURES): those with the smallest keyed hashes of (seed, chain), so that a
larger size only adds some. Members come from a table of text (TSV, or CSV by its name) with a header; ``--columns``
says which of its columns is what: ``id``, ``sequence``, ``group`` (what is to be recognised: superfamily, or family)
and ``part`` (the part of it that is held out: family, or subfamily; empty where unknown). A row without sequence whose
id is that of a chain says which group and part the chain is of: then folds keep its group together.

Left out and counted in the log, never changed: proteins with letters beyond the twenty amino acids (``non_canonical``),
``too_short``, ``too_long``, chains with the residues of another chain or member (``same_residues``), and
``not_sampled``.
"""

import argparse
import collections
import csv
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plm_depth.progress import stage_log
from plm_depth.randomness import key_of
from plm_depth.sequences import SourceError
from plm_depth.tables import AMINO_ACIDS, ANNOTATIONS, SEQUENCES, STRUCTURES, TableError, read_table, write_table

COLUMNS = {"id": "id", "sequence": "sequence", "group": "superfamily", "part": "family"}


@dataclass(frozen=True)
class Member:
    """One row of a table of families; an empty sequence annotates a chain of that id."""

    id: str
    sequence: str
    group: str
    part: str


def read_families(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Member]:
    """Return the rows of a table of families, in their order.

    Args:
        columns: names of the columns ``id``, ``sequence``, ``group``, ``part``, where they are not ``COLUMNS``.
    Raises:
        SourceError: no such file or column, a row of another width, no id or group, an id that stands twice, no rows;
            names the row.
    """
    unknown = set(columns or {}) - set(COLUMNS)
    if unknown:
        raise SourceError(f"columns {sorted(unknown)}; expected some of {', '.join(COLUMNS)}")
    names = {**COLUMNS, **(columns or {})}
    delimiter = "," if str(path).lower().endswith(".csv") else "\t"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            rows, header = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as text ({error})") from error
    missing = [f"{names[what]!r} ({what})" for what in COLUMNS if names[what] not in header]
    if missing:
        raise SourceError(f"{path}: no column {', '.join(missing)}; it has {', '.join(header) or 'no header'}")
    members: dict[str, Member] = {}
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise SourceError(f"{path}, row {number}: not {len(header)} cells, as the header has")
        member = Member(**{what: row[names[what]].strip() for what in COLUMNS})
        if not member.id or not member.group:
            raise SourceError(f"{path}, row {number}: an empty {'id' if not member.id else 'group'}; expected a name")
        if member.id in members:
            raise SourceError(f"{path}, row {number}: id {member.id!r} stands twice; expected every id once")
        members[member.id] = member
    if not members:
        raise SourceError(f"{path}: no rows below the header")
    return list(members.values())


def choose(
    chains: Mapping[str, str],
    members: Sequence[Member],
    *,
    size: int | None,
    min_length: int,
    max_length: int,
    seed: int,
) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str, str, str]], collections.Counter]:
    """Return chains and members that are kept (id to residues), the annotations, and counts by what became of them.

    Args:
        chains: residues by id.
        size: most chains; None takes all.
    Returns:
        chains in the order of their hashes; members in their order; (id, source, group, part) of all; counts by reason.
    Raises:
        SourceError: a member with the id of a chain and a sequence, or an annotation of a chain that there is not.
    """
    counts: collections.Counter[str] = collections.Counter()

    def is_fit(sequence: str) -> bool:
        reason = None
        if set(sequence) - set(AMINO_ACIDS):
            reason = "non_canonical"
        elif not min_length <= len(sequence) <= max_length:
            reason = "too_short" if len(sequence) < min_length else "too_long"
        counts[reason or "kept"] += 1
        return reason is None

    of_chain: dict[str, Member] = {}
    kept_members: dict[str, str] = {}
    rows = []
    for member in members:
        if not member.sequence:
            if member.id not in chains:
                raise SourceError(
                    f"{member.id}: neither a sequence nor a chain of the structures; give one, or take the row out"
                )
            of_chain[member.id] = member
        elif member.id in chains:
            raise SourceError(f"{member.id}: the id of a chain, with a sequence; leave the cell empty or rename it")
        elif is_fit(member.sequence):
            kept_members[member.id] = member.sequence
            rows.append((member.id, "families", member.group, member.part))
    kept_chains: dict[str, str] = {}
    seen = set(kept_members.values())
    for name in sorted(chains, key=lambda name: key_of(seed, "probes", name)):
        sequence = chains[name]
        if not is_fit(sequence):
            continue
        if sequence in seen:
            reason = "same_residues"
        elif size is not None and len(kept_chains) >= size:
            reason = "not_sampled"
        else:
            kept_chains[name] = sequence
            seen.add(sequence)
            known = of_chain.get(name)
            rows.append((name, "structures", known.group if known else "", known.part if known else ""))
            continue
        counts["kept"] -= 1
        counts[reason] += 1
    return kept_chains, kept_members, rows, counts


def annotations(
    *,
    structures: str | Path | None,
    families: str | Path | None,
    columns: Mapping[str, str] | None,
    size: int | None,
    min_length: int,
    max_length: int,
    seed: int,
    chains: str | Path,
    members: str | Path,
    annotations: str | Path,
    log: logging.Logger,
) -> None:
    """Write chains and members (SEQUENCES, either may be empty) and ANNOTATIONS.

    Raises:
        SourceError, TableError: as ``read_families`` and ``choose``; or nothing is left.
    """
    sequence_of = {}
    if structures is not None:
        table = read_table(structures, STRUCTURES)
        sequence_of = dict(zip(table["sequence_id"].to_pylist(), table["sequence"].to_pylist()))
    listed = read_families(families, columns) if families is not None else []
    kept_chains, kept_members, rows, counts = choose(
        sequence_of, listed, size=size, min_length=min_length, max_length=max_length, seed=seed
    )
    said = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))
    log.info(f"{len(kept_chains)} chains and {len(kept_members)} members of families; {said or 'nothing read'}")
    if not kept_chains and not kept_members:
        raise SourceError(f"no protein is left ({said}); widen --min-length and --max-length or give other sources")
    for path, kept in ((chains, kept_chains), (members, kept_members)):
        table = {
            "sequence_id": list(kept),
            "sequence_hash": [hashlib.sha256(s.encode()).hexdigest() for s in kept.values()],
            "rank": list(range(len(kept))),
            "n_residues": [len(s) for s in kept.values()],
            "sequence": list(kept.values()),
        }
        write_table(table, SEQUENCES, path, seed=seed)
    columns_of = dict(zip(ANNOTATIONS.names, map(list, zip(*sorted(rows))), strict=True))
    write_table(columns_of, ANNOTATIONS, annotations)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m plm_depth.sequences.annotations", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--structures", help="STRUCTURES table")
    parser.add_argument("--size", type=int, help="most chains; all by default")
    parser.add_argument("--families", help="TSV or CSV of family members")
    parser.add_argument("--columns", default="{}", help='JSON, e.g. {"id": "member", "group": "family_id"}')
    parser.add_argument("--min-length", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, required=True, help="key of the hash that orders the chains")
    parser.add_argument("--chains", required=True, help="SEQUENCES table to write")
    parser.add_argument("--members", required=True, help="SEQUENCES table to write")
    parser.add_argument("--annotations", required=True, help="ANNOTATIONS table to write")
    options = vars(parser.parse_args(argv))
    with stage_log("sequences.annotations", SourceError, TableError, OSError) as log:
        try:
            options["columns"] = json.loads(options["columns"])
        except ValueError as error:
            raise SourceError(f"--columns: not JSON ({error})") from error
        if not isinstance(options["columns"], dict):
            raise SourceError(f"--columns: expected an object, got {options['columns']!r}")
        annotations(**options, log=log)


if __name__ == "__main__":
    main()
