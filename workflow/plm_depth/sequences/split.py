"""Split a pool of proteins into training and held-out proteins by whole clusters.

    python -m plm_depth.sequences.split --sample sample.parquet --clusters clusters.parquet --held-out 0.4 --seed N \\
        --train train.fasta --valid valid.fasta

Clusters are taken in the order of a hash of (seed, cluster): each goes to the held-out side unless it would lift it
above its share of the proteins, and to the training side then. So the split does not depend on the order of anything,
no cluster is on both sides, and the held-out side is never larger than asked and short of it by less than the smallest
cluster that was passed over.
"""

import argparse
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import dnaio

from plm_depth.progress import stage_log
from plm_depth.randomness import key_of
from plm_depth.sequences import SourceError
from plm_depth.tables import CLUSTERS, SEQUENCES, TableError, read_table, replacing

LINE = 60  # residues a line, as UniProt writes them


def held_out_clusters(cluster_ids: Sequence[str], *, held_out: float, seed: int) -> set[str]:
    """Return the clusters of the held-out side.

    Args:
        cluster_ids: the cluster of each protein, in any order.
        held_out: largest share of the proteins to hold out, in (0, 1).
        seed: key of the choice.

    Raises:
        SourceError: a share outside (0, 1), or one side would be empty.
    """
    if not 0 < held_out < 1:
        raise SourceError(f"--held-out {held_out}: expected a share between 0 and 1")
    sizes = Counter(cluster_ids)
    room = math.floor(held_out * len(cluster_ids) + 1e-9)  # 0.29 of 100 is 29
    chosen = set()
    for name in sorted(sizes, key=lambda name: (key_of(seed, "split", name), name)):
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    if not chosen or len(chosen) == len(sizes):
        raise SourceError(
            f"{len(cluster_ids)} proteins in {len(sizes)} cluster(s), the largest of {max(sizes.values(), default=0)}: "
            f"no whole cluster fits a held-out share of {held_out}; take a larger pool, another share, or a stricter "
            "--identity for the clusters"
        )
    return chosen


def split(
    *,
    sample: str | Path,
    clusters: str | Path,
    held_out: float,
    seed: int,
    train: str | Path,
    valid: str | Path,
    log: logging.Logger,
) -> None:
    """Write the two sides as FASTA (header: the accession), each in rank order.

    Raises:
        SourceError: the clusters are not those of the sample, or no split is possible.
    """
    table = read_table(sample, SEQUENCES)
    grouping = read_table(clusters, CLUSTERS)
    sequence_ids = table.column("sequence_id").to_pylist()
    pairs = list(zip(grouping.column("sequence_id").to_pylist(), grouping.column("cluster_id").to_pylist()))
    cluster_of = dict(pairs)
    if len(pairs) > len(cluster_of):
        raise SourceError(f"{clusters}: a protein stands in it twice; expected one cluster of each protein")
    missing, extra = set(sequence_ids) - set(cluster_of), set(cluster_of) - set(sequence_ids)
    if missing or extra:
        raise SourceError(
            f"{clusters}: not the clusters of {sample}: {len(missing)} of its proteins missing, {len(extra)} others "
            f"({', '.join(sorted(missing | extra)[:3])}, ...); cluster this sample"
        )
    chosen = held_out_clusters([cluster_of[name] for name in sequence_ids], held_out=held_out, seed=seed)
    sides = {"train": [], "held out": []}
    for name, residues in zip(sequence_ids, table.column("sequence").to_pylist()):
        sides["held out" if cluster_of[name] in chosen else "train"].append((name, residues))
    for side, path in (("train", train), ("held out", valid)):
        proteins = sides[side]
        write_fasta(proteins, path)
        log.info(
            "%s: %d proteins (%.1f %%), %d residues, %d clusters",
            side,
            len(proteins),
            100 * len(proteins) / len(sequence_ids),
            sum(len(residues) for _, residues in proteins),
            len({cluster_of[name] for name, _ in proteins}),
        )


def write_fasta(proteins: Sequence[tuple[str, str]], path: str | Path) -> None:
    """Write (accession, residues) as FASTA, whole or not at all."""
    with replacing(path) as temporary, dnaio.FastaWriter(temporary, line_length=LINE) as writer:
        for name, residues in proteins:
            writer.write(name, residues)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.sequences.split", description=__doc__.split("\n")[0])
    parser.add_argument("--sample", required=True, help="the pool (SEQUENCES)")
    parser.add_argument("--clusters", required=True, help="its clusters (CLUSTERS)")
    parser.add_argument("--held-out", type=float, required=True, help="largest share of the proteins held out")
    parser.add_argument("--seed", type=int, required=True, help="key of the choice of clusters")
    parser.add_argument("--train", required=True, help="training proteins (FASTA)")
    parser.add_argument("--valid", required=True, help="held-out proteins (FASTA)")
    options = vars(parser.parse_args(argv))
    with stage_log("split", SourceError, TableError, OSError) as log:
        split(**options, log=log)


if __name__ == "__main__":
    main()
