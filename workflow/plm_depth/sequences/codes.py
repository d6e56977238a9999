"""Stage: precomputed structure codes, by the tokenizers of the families that read them, checked against the structures.

    python -m plm_depth.sequences.codes --codes dplm2=codes.tsv ... --structures P --output P

A table of codes is tab-separated with the columns ``structure_id`` and ``codes``: a whole number a residue of the
structure's sequence, separated by blanks or commas, -1 where unknown. Other columns are ignored, and rows of structures
that are not of this study are counted and left out. Codes mean something to the family whose tokenizer gave them only,
so every table is for one family.
"""

import argparse
import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from plm_depth.progress import stage_log
from plm_depth.sequences import SourceError
from plm_depth.tables import CODES, STRUCTURES, TableError, read_table, write_table

COLUMNS = ("structure_id", "codes")


def read_codes(path: str | Path, n_residues: Mapping[str, int]) -> tuple[dict[str, list[int]], int]:
    """Return the codes of a table by structure_id, and how many of its rows are of other structures.

    Args:
        path: the tab-separated file.
        n_residues: residues of each structure of the study.

    Raises:
        SourceError: not such a table, a structure that stands twice or not at all, or codes that are not one whole
            number of at least -1 a residue; names file, line and structure.
    """
    found: dict[str, list[int]] = {}
    n_others = 0
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or [])]
            if missing:
                raise SourceError(
                    f"{path}: no column {' and no column '.join(missing)}; expected a tab-separated table with "
                    f"{' and '.join(COLUMNS)}"
                )
            for row in rows:
                where = f"{path}, line {rows.line_num}: {row['structure_id']!r}"
                name = row["structure_id"]
                if name not in n_residues:
                    n_others += 1
                    continue
                if name in found:
                    raise SourceError(f"{where} stands twice; expected one row a structure")
                try:
                    codes = [int(word) for word in (row["codes"] or "").replace(",", " ").split()]
                except ValueError as error:
                    raise SourceError(f"{where}: a code is no whole number ({error})") from None
                if len(codes) != n_residues[name] or min(codes, default=0) < -1:
                    raise SourceError(
                        f"{where}: {len(codes)} codes, the smallest {min(codes, default=0)}; expected one of at least "
                        f"-1 for each of its {n_residues[name]} residues"
                    )
                found[name] = codes
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: not a readable table ({error})") from error
    if missing := [name for name in n_residues if name not in found]:
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise SourceError(
            f"{path}: no codes of {len(missing)} of {len(n_residues)} structures: {named}; expected a row of each: add "
            "them (-1 at every residue shows nothing), or leave these structures out of structures.entries"
        )
    return found, n_others


def collect(codes: Mapping[str, str | Path], structures: str | Path, output: str | Path, log: logging.Logger) -> None:
    """Write the CODES table of the tables of several families, given by family.

    Raises:
        SourceError, TableError: see ``read_codes``; nothing is written.
    """
    table = read_table(structures, STRUCTURES)
    n_residues = dict(zip(table.column("structure_id").to_pylist(), table.column("n_residues").to_pylist()))
    rows: list[tuple[str, str, list[int]]] = []
    for family, path in codes.items():
        found, n_others = read_codes(path, n_residues)
        others = f"; {n_others} rows of other structures left out" if n_others else ""
        log.info(f"{path}: codes of {family} for {len(found)} structures{others}")
        rows += [(name, family, values) for name, values in found.items()]
    columns = {name: [row[i] for row in rows] for i, name in enumerate(CODES.names)}
    write_table(columns, CODES, output)


def family_and_path(text: str) -> tuple[str, str]:
    """Return family and path of ``family=path``."""
    family, equals, path = text.partition("=")
    if not (family and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}: expected family=path")
    return family, path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.sequences.codes", description=__doc__.split("\n")[0])
    parser.add_argument("--codes", nargs="+", type=family_and_path, required=True, help="family=table.tsv ...")
    parser.add_argument("--structures", required=True, help="STRUCTURES table")
    parser.add_argument("--output", required=True, help="CODES table")
    options = parser.parse_args(argv)
    with stage_log("sequences.codes", SourceError, TableError) as log:
        collect(dict(options.codes), options.structures, options.output, log)


if __name__ == "__main__":
    main()
