"""Stage: the records of one FASTA file whose accession another one has too, as the held-out ones of the structures.

python -m plm_depth.sequences.among --fasta structures.fasta --among held_out.fasta --output P
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import dnaio

from plm_depth.progress import stage_log
from plm_depth.sequences import SourceError
from plm_depth.sequences.split import write_fasta


def records(path: str | Path) -> dict[str, str]:
    """Return the residues of a FASTA file by accession, the first word of a header, in its order.

    Raises:
        SourceError: not FASTA, or an accession that is missing or stands twice.
    """
    found: dict[str, str] = {}
    try:
        with dnaio.open(path, fileformat="fasta") as reader:
            for number, record in enumerate(reader, 1):
                name = (record.name.split(maxsplit=1) or [""])[0]
                if not name or name in found:
                    problem = f"{name!r} stands twice" if name else "no accession after '>'"
                    raise SourceError(f"{path}, record {number}: {problem}; expected every accession once")
                found[name] = record.sequence
    except (OSError, EOFError, dnaio.FileFormatError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not a readable FASTA file ({error})") from error
    return found


def among(fasta: str | Path, others: str | Path, output: str | Path, log: logging.Logger) -> None:
    """Write the records of ``fasta`` whose accession ``others`` has.

    Raises:
        SourceError: see ``records``; an accession with other residues there, or nothing in common.
    """
    mine, theirs = records(fasta), records(others)
    kept = [(name, residues) for name, residues in mine.items() if name in theirs]
    different = [name for name, residues in kept if theirs[name] != residues]
    if different:
        raise SourceError(f"{different[0]!r} has other residues in {fasta} than in {others}; expected the same protein")
    if not kept:
        raise SourceError(
            f"none of the {len(mine)} proteins of {fasta} is among the {len(theirs)} of {others}; take another seed or "
            "a larger held-out share (training.held_out)"
        )
    log.info(f"{len(kept)} of {len(mine)} proteins of {fasta} are among those of {others}")
    write_fasta(kept, output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.sequences.among", description=__doc__.split("\n")[0])
    parser.add_argument("--fasta", required=True, help="the records to choose from")
    parser.add_argument("--among", required=True, help="the accessions to choose")
    parser.add_argument("--output", required=True, help="FASTA file of the records of --fasta that are in --among")
    options = parser.parse_args(argv)
    with stage_log("sequences.among", SourceError, OSError) as log:
        among(options.fasta, options.among, options.output, log)


if __name__ == "__main__":
    main()
