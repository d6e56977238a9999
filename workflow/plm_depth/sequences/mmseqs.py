"""Similarity clusters by MMseqs2, where the program is installed; for samples too large to align all pairs.

The same kin as in ``sequences.cluster`` (identity over the aligned columns, coverage of the shorter protein, E-value)
and the same kind of clusters (connected components: single-step clustering with ``--cluster-mode 1``, not the greedy
default), but pairs are found by a k-mer prefilter at high sensitivity (7.5), which misses some far relatives: of the
pairs that aligning all pairs puts together among the labelled families of the mini data, it puts 89 % together.

Steinegger and Soeding, Nature Biotechnology 2017, 35:1026-1028, and Nature Communications 2018, 9:2542.
"""

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plm_depth.sequences import SourceError

PROGRAM = "mmseqs"
SENSITIVITY = 7.5
MAX_RELATIVES = 10_000  # per protein that the prefilter passes on; the program's default of 20 would cut families


def is_installed() -> bool:
    """Return whether the program is on the PATH."""
    return shutil.which(PROGRAM) is not None


def version() -> str:
    """Return the version that the program tells."""
    return _run(["version"]).strip()


def cluster_members(
    sequences: Sequence[str],
    *,
    identity: float,
    coverage: float,
    max_evalue: float,
    threads: int = 1,
    folder: str | Path | None = None,
    log: logging.Logger | None = None,
) -> list[int]:
    """Return for each protein the index of another (or itself) that stands for its cluster.

    Args:
        sequences: residues of each protein, upper case.
        identity, coverage: shares in (0, 1]; see ``sequences.cluster``.
        max_evalue: largest E-value of similar proteins.
        threads: of the program.
        folder: where its temporary files go; the system's place for such by default.
    Raises:
        SourceError: the program is missing or failed, with what it said; or it lost a protein.
    """
    with tempfile.TemporaryDirectory(prefix="mmseqs.", dir=folder) as name:
        work = Path(name)
        # Numbers instead of accessions: the program reads parts of some headers only.
        (work / "in.fasta").write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(sequences)), encoding="ascii")
        options = {
            "--min-seq-id": identity,
            "--seq-id-mode": 0,
            "-c": coverage,
            "--cov-mode": 1,
            "-e": max_evalue,
            "-s": SENSITIVITY,
            "--max-seqs": MAX_RELATIVES,
            "--cluster-mode": 1,
            "--single-step-clustering": 1,
            "--threads": threads,
            "-v": 2,
        }
        words = [str(word) for option in options.items() for word in option]
        _run(["easy-cluster", str(work / "in.fasta"), str(work / "out"), str(work / "tmp"), *words])
        found: dict[int, int] = {}
        for line in (work / "out_cluster.tsv").read_text(encoding="ascii").splitlines():
            representative, member = map(int, line.split("\t"))
            found[member] = representative
    lost = [i for i in range(len(sequences)) if i not in found]
    if lost:
        raise SourceError(
            f"{PROGRAM} gave no cluster to {len(lost)} of {len(sequences)} proteins, the first of "
            f"{len(sequences[lost[0]])} residues; expected one for each: use tool builtin"
        )
    if log is not None:
        log.info(f"{PROGRAM} {version()}: {len(set(found.values()))} clusters of {len(sequences)} proteins")
    return [found[i] for i in range(len(sequences))]


def _run(words: Sequence[str]) -> str:
    """Return what the program prints."""
    try:
        done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SourceError(f"no program {PROGRAM!r} on the PATH; install MMseqs2 or use tool builtin") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise SourceError(f"{PROGRAM} {words[0]} failed ({done.returncode}): {' | '.join(said)}")
    return done.stdout
