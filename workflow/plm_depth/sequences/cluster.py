"""Cluster a sample by similarity, so that proteins of different clusters are never similar.

    python -m plm_depth.sequences.cluster --sample sample.parquet... --identity 0.3 --coverage 0.5 --tool auto \\
        --output clusters.parquet

Two proteins are *similar* if their best local alignment (Smith-Waterman, BLOSUM62, a gap of n residues costs
10 + n) has all of

* at least ``identity`` identical columns among its columns, gaps included;
* at least ``coverage`` of the residues of the shorter protein between its first and last aligned residue;
* an E-value of at most ``max_evalue`` for the shorter protein against all residues of the sample. At 30 % identity
  chance alignments of short stretches are common; this tells them from kinship.

Clusters are the connected components of "similar" (single linkage): sequences on the two sides of a split by whole
clusters, or in different clusters of a bootstrap, are then never similar. Greedy clustering around representatives, as
in programs for large databases, does not promise that: members of different clusters may be similar to each other. The
price is that chains a-b-c join even if a and c have nothing in common, as proteins do that share one common domain; the
log says how large the largest cluster is.

All pairs are aligned, without a k-mer filter, so none is missed; the cost grows with the square of the residues. Pairs
already joined through others are skipped. A cluster is named after its longest protein (ties: first accession).

All this is the tool "builtin". The tool "mmseqs" finds the pairs by MMseqs2 instead (``sequences.mmseqs``), for large
samples; "auto" takes it where it is installed, else "builtin". Which one it was stands in the metadata of the table.
"""

import argparse
import collections
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import parasail

from plm_depth.progress import Progress, clock, stage_log
from plm_depth.sequences import SourceError, mmseqs
from plm_depth.tables import CLUSTERS, SEQUENCES, TableError, read_table, write_table

GAP_OPEN, GAP_EXTEND = 11, 1  # cost of the first residue of a gap, and of each further one
# Karlin-Altschul parameters of gapped BLOSUM62 11/1 (Altschul & Gish, Methods Enzymol. 266:460, 1996; as in BLAST)
LAMBDA, KAPPA = 0.267, 0.041
MAX_EVALUE = 1e-3
MAX_PAIRS = 50_000_000  # 10,000 proteins
TOOLS = ("auto", "mmseqs", "builtin")
CELLS_PER_SECOND = 2e9  # of the alignment matrix, one core with AVX2; for the estimate in the log only


@dataclass(frozen=True, slots=True)
class Alignment:
    """The best local alignment of two proteins.

    Attributes:
        score: raw score.
        identity: identical columns over columns, gaps included; NaN if nothing aligns.
        coverage: residues of the shorter protein from its first to its last aligned one, over its length; if both are
            equally long, of the one that is covered more.
    """

    score: int
    identity: float
    coverage: float


def align(a: str, b: str) -> Alignment:
    """Return the best local alignment of two proteins (BLOSUM62, gap of n residues: 10 + n)."""
    query, target = sorted(
        (a, b), key=lambda s: (-len(s), s)
    )  # one of several equally good alignments, always the same
    result = parasail.sw_trace_striped_sat(query, target, GAP_OPEN, GAP_EXTEND, parasail.blosum62)
    if result.score <= 0:
        return Alignment(0, math.nan, 0.0)
    cigar = result.cigar
    steps = [(cigar.decode_op(packed), cigar.decode_len(packed)) for packed in cigar.seq]
    # The best local alignment begins and ends with a pair of residues. The library puts a gap before it where the
    # alignment begins at the first residue of one protein: that is not part of it.
    while steps and steps[0][0] in (b"I", b"D"):
        del steps[0]
    counts = collections.Counter()
    for step, n in steps:
        counts[step] += n
    on_query = counts[b"="] + counts[b"X"] + counts[b"I"]
    on_target = counts[b"="] + counts[b"X"] + counts[b"D"]
    shorter = on_target / len(target)
    coverage = max(shorter, on_query / len(query)) if len(query) == len(target) else shorter
    return Alignment(result.score, counts[b"="] / counts.total(), coverage)


def least_score(n_residues: int, n_searched: int, max_evalue: float) -> float:
    """Return the raw score from which the E-value K m n exp(-lambda S) is at most ``max_evalue``.

    Args:
        n_residues: length m of the query.
        n_searched: residues n searched.
    """
    return math.log(KAPPA * n_residues * n_searched / max_evalue) / LAMBDA


def clusters_of(
    sequence_ids: Sequence[str],
    sequences: Sequence[str],
    *,
    identity: float,
    coverage: float,
    max_evalue: float = MAX_EVALUE,
    max_pairs: int = MAX_PAIRS,
    log: logging.Logger | None = None,
) -> list[str]:
    """Return the cluster of each protein: the accession of the longest protein of its cluster (ties: the first).

    The clusters do not depend on the order of the proteins.

    Args:
        sequence_ids: accessions, each once.
        sequences: residues of each protein, upper case, canonical.
        identity, coverage: shares in (0, 1] that make two proteins similar.
        max_evalue: largest E-value of similar proteins.
        max_pairs: most pairs that may be aligned.
        log: where progress goes.

    Raises:
        SourceError: bad thresholds, an accession twice, or more than ``max_pairs`` pairs.
    """
    n = len(sequence_ids)
    n_pairs = n * (n - 1) // 2
    _check(sequence_ids, identity, coverage, max_evalue)
    # The longest first: then the row of each protein holds the shorter ones, and its own profile is made once.
    order = sorted(range(n), key=lambda i: (-len(sequences[i]), sequence_ids[i]))
    proteins = [sequences[i] for i in order]
    n_residues = sum(map(len, proteins))
    seconds = n_residues**2 / 2 / CELLS_PER_SECOND
    if n_pairs > max_pairs:
        raise SourceError(
            f"{n} proteins are {n_pairs} pairs to align, more than --max-pairs {max_pairs}; raise it (one core needs "
            f"about {clock(seconds)}) or sample fewer proteins"
        )
    log = log or logging.getLogger(__name__)
    log.info("%d proteins, %d residues, %d pairs: about %s on one core", n, n_residues, n_pairs, clock(seconds))

    needed = [least_score(len(protein), n_residues, max_evalue) for protein in proteins]
    cluster = np.arange(n)  # of each protein, named by the first of its members in this order: by the longest
    progress = Progress(log, n_pairs, "pairs")
    n_aligned = n_significant = n_similar = 0
    for i, protein in enumerate(proteins):
        profile = parasail.profile_create_sat(protein, parasail.blosum62)
        others = i + 1 + np.flatnonzero(cluster[i + 1 :] != cluster[i])
        for j in others.tolist():
            score = parasail.sw_striped_profile_sat(profile, proteins[j], GAP_OPEN, GAP_EXTEND).score
            if score < needed[j]:
                continue
            n_significant += 1
            alignment = align(protein, proteins[j])
            if alignment.identity >= identity and alignment.coverage >= coverage:
                n_similar += 1
                first, second = sorted((cluster[i], cluster[j]))
                cluster[cluster == second] = first
        n_aligned += len(others)
        progress.advance(n - i - 1)
    progress.finish()
    sizes = np.unique(cluster, return_counts=True)[1]
    log.info("aligned %d pairs: %d significant, %d of them similar", n_aligned, n_significant, n_similar)
    log.info("%d clusters, %d of one protein, the largest of %d", len(sizes), (sizes == 1).sum(), sizes.max(initial=0))
    names = [""] * n
    for place, i in enumerate(order):
        names[i] = sequence_ids[order[cluster[place]]]
    return names


def _check(sequence_ids: Sequence[str], identity: float, coverage: float, max_evalue: float) -> None:
    for option, value in (("--identity", identity), ("--coverage", coverage)):
        if not 0 < value <= 1:
            raise SourceError(f"{option} {value}: expected a share above 0 and at most 1")
    if not 0 < max_evalue < math.inf:
        raise SourceError(f"--max-evalue {max_evalue}: expected a finite number above 0")
    if len(set(sequence_ids)) < len(sequence_ids):
        twice = next(name for name, count in collections.Counter(sequence_ids).items() if count > 1)
        raise SourceError(f"accession {twice} comes twice; expected every accession once")


def named(sequence_ids: Sequence[str], sequences: Sequence[str], member_of: Sequence[int]) -> list[str]:
    """Return the clusters of ``clusters_of`` from an index of any member for each protein."""
    order = sorted(range(len(sequence_ids)), key=lambda i: (-len(sequences[i]), sequence_ids[i]))
    names: dict[int, str] = {}
    for i in order:
        names.setdefault(member_of[i], sequence_ids[i])
    return [names[member] for member in member_of]


def read_samples(paths: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """Return accessions and residues of one or several SEQUENCES tables, in their order."""
    sequence_ids, sequences = [], []
    for path in paths:
        table = read_table(path, SEQUENCES)
        sequence_ids += table.column("sequence_id").to_pylist()
        sequences += table.column("sequence").to_pylist()
    return sequence_ids, sequences


def cluster(
    *,
    sample: str | Path | Sequence[str | Path],
    identity: float,
    coverage: float,
    max_evalue: float,
    max_pairs: int,
    tool: str = "builtin",
    threads: int = 1,
    output: str | Path,
    log: logging.Logger,
) -> int:
    """Write the cluster of each protein of one or several samples (CLUSTERS, in their order); return their number.

    Args:
        tool: "builtin", "mmseqs", or "auto": the latter where it is installed.
        threads: of MMseqs2.
    """
    samples = [sample] if isinstance(sample, str | Path) else list(sample)
    sequence_ids, sequences = read_samples(samples)
    chosen = tool if tool != "auto" else "mmseqs" if mmseqs.is_installed() else "builtin"
    settings = {"identity": identity, "coverage": coverage, "max_evalue": max_evalue}
    try:
        if chosen == "builtin":
            if tool == "auto":
                log.info("MMseqs2 is not installed: all pairs are aligned here (tool builtin)")
            names = clusters_of(sequence_ids, sequences, max_pairs=max_pairs, log=log, **settings)
        else:
            _check(sequence_ids, identity, coverage, max_evalue)
            folder = Path(output).parent
            folder.mkdir(parents=True, exist_ok=True)
            members = mmseqs.cluster_members(sequences, threads=threads, folder=folder, log=log, **settings)
            names = named(sequence_ids, sequences, members)
    except SourceError as error:
        raise SourceError(f"{', '.join(map(str, samples))}: {error}") from error
    used = chosen if chosen == "builtin" else f"{chosen} {mmseqs.version()}"
    write_table({"sequence_id": sequence_ids, "cluster_id": names}, CLUSTERS, output, tool=used, **settings)
    return len(set(names))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.sequences.cluster", description=__doc__.split("\n")[0])
    parser.add_argument("--sample", nargs="+", required=True, help="the sample, or several (SEQUENCES)")
    parser.add_argument("--identity", type=float, default=0.3, help="least share of identical columns")
    parser.add_argument("--coverage", type=float, default=0.5, help="least share of the shorter protein aligned")
    parser.add_argument("--max-evalue", type=float, default=MAX_EVALUE, help="largest E-value of similar proteins")
    parser.add_argument("--max-pairs", type=int, default=MAX_PAIRS, help="refuse larger samples (tool builtin)")
    parser.add_argument("--tool", choices=TOOLS, default="builtin", help="what finds the pairs")
    parser.add_argument("--threads", type=int, default=1, help="of MMseqs2")
    parser.add_argument("--output", required=True, help="cluster of each protein (CLUSTERS)")
    options = vars(parser.parse_args(argv))
    with stage_log("cluster", SourceError, TableError, OSError) as log:
        cluster(**options, log=log)


if __name__ == "__main__":
    main()
