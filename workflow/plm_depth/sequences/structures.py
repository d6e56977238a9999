"""Reduce structure files to one table of backbones: sequence, coordinates, 3Di, secondary structure, exposure.

    python -m plm_depth.sequences.structures --files 1a7g.cif.gz ... \\
        --chains '[{"structure": "1a7g_E", "chain": "E"}, ...]' --source pdb \\
        --structures structures.parquet --backbone backbone.parquet [--fasta structures.fasta]

``structures.parquet`` has a row a structure (STRUCTURES), ``backbone.parquet`` a row a residue of each sequence, with
or without coordinates (BACKBONE); the FASTA file holds the sequences, to draw a data set from. What is read of a file,
and how, stands in ``structure_files`` and ``conformation``.

B factors are taken as pLDDT where the file says so (``_ma_qa_metric`` in mmCIF, a title that begins with ALPHAFOLD in
PDB), or as ``--confidence`` says: ``plddt`` always, ``none`` never.
"""

import argparse
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth import json_text
from plm_depth.progress import Progress, stage_log
from plm_depth.sequences import SourceError
from plm_depth.sequences.accessions import STRUCTURE_FILES
from plm_depth.sequences.conformation import (
    COMPLETE,
    half_sphere_exposure,
    relative_accessibility,
    secondary_structure,
    three_di,
    three_states,
)
from plm_depth.sequences.structure_files import BACKBONE_ATOMS, Chain, read_chain
from plm_depth.tables import BACKBONE, STRUCTURES, TableError, TableWriter, as_table, replacing, write_table

SOURCES = ("folder", "pdb", "alphafold")
CONFIDENCES = ("auto", "plddt", "none")
ROWS = 1 << 16  # residues written together
LINE = 60  # residues a line of FASTA
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def plddt_of(chain: Chain, confidence: str = "auto") -> np.ndarray | None:
    """Return the pLDDT of each residue, (L,) float32 from 0 to 100, NaN where there is no CA; None: an experiment.

    Args:
        confidence: "auto": as the file says; "plddt": the B factors are pLDDT; "none": they are not.

    Raises:
        SourceError: a value outside 0..100, or all of them at most 1 (a share, not a percentage).
    """
    if confidence == "none" or (confidence == "auto" and not chain.is_predicted):
        return None
    values = chain.b_factors[np.isfinite(chain.b_factors)]
    if values.min() < 0 or values.max() > 100 or values.max() <= 1:
        raise SourceError(
            f"chain {chain.chain!r}: B factors from {values.min():g} to {values.max():g} are no pLDDT; expected 0 to "
            "100 (multiply shares by 100, or say --confidence none)"
        )
    return chain.b_factors


def rows_of(
    structure_id: str, chain: Chain, *, confidence: str = "auto"
) -> tuple[dict[str, object], dict[str, object]]:
    """Return the columns of one structure: its row of STRUCTURES (without file and source), and its rows of BACKBONE.

    Raises:
        SourceError: values that are no pLDDT.
    """
    sequence_hash = hashlib.sha256(chain.sequence.encode()).hexdigest()
    plddt = plddt_of(chain, confidence)
    resolved = chain.is_resolved
    after_break = np.zeros(len(resolved), bool)
    after_break[chain.observed] = ~chain.bonded
    after_break &= resolved
    ss8 = secondary_structure(chain.coordinates, chain.sequence)
    rsa, rsa_share = relative_accessibility(chain)
    missing = np.full(len(resolved), np.nan, np.float32)
    structure = {
        "structure_id": structure_id,
        "sequence_id": structure_id,
        "sequence_hash": sequence_hash,
        "sequence": chain.sequence,
        "release": chain.release,
        "chain": chain.chain.strip(),
        "method": chain.method if plddt is None else "predicted",
        "resolution": chain.resolution,
        "is_predicted": plddt is not None,
        "n_residues": len(chain.sequence),
        "n_missing": int((~resolved).sum()),
        "n_breaks": int((~chain.bonded[1:]).sum()),
        "n_modified": chain.n_modified,
        "n_unknown": chain.sequence.count("X"),
        "n_mismatched": chain.n_mismatched,
        "mean_plddt": float("nan") if plddt is None else float(plddt[resolved].mean(dtype=float)),
        "rsa_share": rsa_share,
    }
    backbone = {
        "sequence_id": structure_id,
        "sequence_hash": sequence_hash,
        "position": np.arange(len(resolved)),
        "aa": list(chain.sequence),
        "is_resolved": resolved,
        "after_break": after_break,
        "plddt": missing if plddt is None else plddt,
        **{
            name.lower(): pa.FixedSizeListArray.from_arrays(chain.coordinates[:, k].ravel(), 3)
            for k, name in enumerate(BACKBONE_ATOMS)
        },
        "three_di": list(three_di(chain.coordinates)),
        "ss8": list(ss8),
        "ss3": list(three_states(ss8)),
        "rsa": rsa,
        "hse_up": half_sphere_exposure(chain.coordinates),
    }
    return structure, backbone


def structures(
    *,
    files: Sequence[str | Path],
    chains: Sequence[dict[str, str | None]] | None = None,
    source: str = "folder",
    confidence: str = "auto",
    structures: str | Path,
    backbone: str | Path,
    fasta: str | Path | None = None,
    log: logging.Logger,
) -> None:
    """Write the tables (and the FASTA file) of several structures.

    Args:
        files: structure files; one that holds several chains of interest stands several times.
        chains: for each file its ``structure`` (id) and ``chain`` (None: the only protein chain); by default the id is
            the file name without its extension.
        source: where the files are from; a column of STRUCTURES.
        confidence: see ``plddt_of``.

    Raises:
        SourceError: the options do not fit each other, or a file cannot be used (its path is named).
    """
    if not files:
        raise SourceError("--files: none; expected at least one structure file")
    if chains is None:
        chains = [{"structure": STRUCTURE_FILES.sub("", Path(path).name), "chain": None} for path in files]
    _check(files, chains)
    columns: dict[str, list[object]] = {name: [] for name in STRUCTURES.names}
    counts: Counter[str] = Counter()
    pending: list[pa.Table] = []
    progress = Progress(log, total=len(files), unit="structures")
    with TableWriter(backbone, BACKBONE) as writer:
        for path, wanted in zip(files, chains):
            name = wanted["structure"]
            chain = read_chain(path, chain=wanted["chain"])
            try:
                row, rows = rows_of(name, chain, confidence=confidence)
            except SourceError as error:
                raise SourceError(f"{path}: {error}") from error
            row |= {
                "source": source,
                "file": Path(path).name,
                "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            }
            for column, value in row.items():
                columns[column].append(value)
            pending.append(as_table(rows, BACKBONE))
            if sum(table.num_rows for table in pending) >= ROWS:
                _write(pending, writer)
            _say(log, row)
            counts += chain.left_out
            progress.advance()
        _write(pending, writer)
    progress.finish()
    for what, n in sorted(counts.items()):
        log.info("left out: %d %s", n, what)
    log.info(
        "%d structures, %d residues, %d without coordinates; accessibility of %d structures",
        len(files),
        sum(columns["n_residues"]),
        sum(columns["n_missing"]),
        sum(share >= COMPLETE for share in columns["rsa_share"]),
    )
    if fasta is not None:
        with replacing(fasta) as temporary, open(temporary, "w", encoding="ascii") as file:
            for name, sequence in zip(columns["sequence_id"], columns["sequence"]):
                file.write(f">{name}\n")
                file.writelines(f"{sequence[i : i + LINE]}\n" for i in range(0, len(sequence), LINE))
    write_table(columns, STRUCTURES, structures)


def _write(pending: list[pa.Table], writer: TableWriter) -> None:
    if pending:
        writer.append(pa.concat_tables(pending).unify_dictionaries())
        pending.clear()


def _check(files: Sequence[str | Path], chains: Sequence[dict[str, str | None]]) -> None:
    if not isinstance(chains, list) or len(chains) != len(files):
        raise SourceError(f"--chains: expected a list of one entry for each of the {len(files)} files")
    seen = set()
    for wanted in chains:
        if not isinstance(wanted, dict) or set(wanted) != {"structure", "chain"}:
            raise SourceError(f'--chains: {wanted!r}; expected {{"structure": id, "chain": a letter or null}}')
        name, chain = wanted["structure"], wanted["chain"]
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise SourceError(
                f"structure id {json_text.shown(str(name))}; expected up to 128 letters, digits, '.', '_' and '-'"
            )
        if not (chain is None or isinstance(chain, str)):
            raise SourceError(f"--chains: chain {chain!r} of {name}; expected a text or null")
        if name in seen:
            raise SourceError(f"structure id {name!r} twice; give every structure a name of its own with --chains")
        seen.add(name)


def _say(log: logging.Logger, row: dict[str, object]) -> None:
    notes = [
        f"{row[column]} {words}"
        for column, words in (
            ("n_missing", "without coordinates"),
            ("n_breaks", "breaks"),
            ("n_modified", "modified residues read as their parent"),
            ("n_unknown", "unknown residues"),
            ("n_mismatched", "residues of another amino acid than the sequence states"),
        )
        if row[column]
    ]
    if row["rsa_share"] < COMPLETE:
        notes.append(f"side chains of {row['rsa_share']:.0%} only: no solvent accessibility")
    log.info(
        "%s: chain %s, %d residues%s",
        row["structure_id"],
        row["chain"] or "blank",
        row["n_residues"],
        "".join(f"; {n}" for n in notes),
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m plm_depth.sequences.structures", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--files", required=True, nargs="+", help="PDB or mmCIF files, gzipped or not")
    parser.add_argument("--chains", help='JSON, for each file {"structure": id, "chain": author\'s id or null}')
    parser.add_argument("--source", choices=SOURCES, default="folder", help="where the files are from")
    parser.add_argument("--confidence", choices=CONFIDENCES, default="auto", help="whether B factors are pLDDT")
    parser.add_argument("--structures", required=True, help="table of structures to write")
    parser.add_argument("--backbone", required=True, help="table of residues to write")
    parser.add_argument("--fasta", help="FASTA file of the sequences to write")
    options = vars(parser.parse_args(argv))
    with stage_log("structures", SourceError, TableError, OSError) as log:
        if options["chains"] is not None:
            try:
                options["chains"] = json_text.parse(options["chains"])
            except ValueError as error:
                raise SourceError(f"--chains: not JSON ({error}); expected a list") from error
        structures(**options, log=log)


if __name__ == "__main__":
    main()
