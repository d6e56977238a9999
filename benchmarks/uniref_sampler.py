"""How fast the sampler reads a database, against Biopython's parser on gzip doing the same work.

    python benchmarks/uniref_sampler.py [--megabytes 120] [--rounds 5] [--size 2000]

Both sides read the same gzipped FASTA (invented proteins under headers as UniRef50 has them), filter, hash every
accession, keep the smallest hashes and count every record. The samples must be equal. The sides take turns, so that a
busy machine slows both, and the ratio is that of the medians. Prints text MB/s: bytes of uncompressed FASTA over time.
"""

import argparse
import gzip
import hashlib
import heapq
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from Bio.SeqIO.FastaIO import SimpleFastaParser

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))
from plm_depth.sequences.sample import draw

FLOOR, AIM = 1.5, 3.0
AMINO_ACIDS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
SHARES = np.array([8.3, 1.4, 5.5, 6.7, 3.9, 7.1, 2.3, 5.9, 5.8, 9.7, 2.4, 4.1, 4.7, 3.9, 5.5, 6.6, 5.3, 6.9, 1.1, 2.9])


def invent(path: Path, n_bytes: int) -> tuple[int, int]:
    """Write gzipped FASTA of about ``n_bytes`` of text; return its text bytes and records."""
    rng = np.random.default_rng(1)
    total = n_records = 0
    with gzip.open(path, "wb", compresslevel=6) as out:
        while total < n_bytes:
            batch = []
            for _ in range(1000):
                length = int(np.clip(rng.lognormal(5.4, 0.7), 20, 30_000))
                residues = rng.choice(AMINO_ACIDS, length, p=SHARES / SHARES.sum())
                if n_records % 50 == 0:
                    residues[length // 2] = ord("X")
                text = residues.tobytes()
                lines = b"\n".join(text[i : i + 60] for i in range(0, length, 60))
                name, taxon = b"A0A%07d" % n_records, rng.integers(1, 2_000_000)
                batch.append(
                    b">UniRef50_%b Uncharacterized protein n=%d Tax=Bacterium sp. %d TaxID=%d RepID=%b_9BACT\n%b\n"
                    % (name, 1 + n_records % 9, taxon, taxon, name, lines)
                )
                n_records += 1
            block = b"".join(batch)
            out.write(block)
            total += len(block)
    return total, n_records


def with_biopython(path: Path, *, size: int, seed: int, min_length: int, max_length: int) -> tuple[list, dict]:
    """Return the sample (accession, residues) in rank order, and the counts: what ``draw`` does, written plainly."""
    canonical = set("ACDEFGHIKLMNPQRSTVWY")
    heap: list[tuple[int, str, str]] = []
    counts = dict.fromkeys(("sampled", "not_sampled", "non_canonical", "too_short", "too_long"), 0)
    with gzip.open(path, "rt") as file:
        for header, residues in SimpleFastaParser(file):
            accession = header.split(None, 1)[0]
            if not canonical.issuperset(residues):
                counts["non_canonical"] += 1
            elif len(residues) < min_length:
                counts["too_short"] += 1
            elif len(residues) > max_length:
                counts["too_long"] += 1
            else:
                counts["not_sampled"] += 1
                digest = hashlib.blake2b(
                    accession.encode(), digest_size=16, key=str(seed).encode(), person=b"plm-depth sample"
                ).digest()
                item = (-int.from_bytes(digest, "big"), accession, residues)
                if len(heap) < size:
                    heapq.heappush(heap, item)
                elif item > heap[0]:
                    heapq.heapreplace(heap, item)
    counts["sampled"] = len(heap)
    counts["not_sampled"] -= len(heap)
    return [(accession, residues) for _, accession, residues in sorted(heap, reverse=True)], counts


def clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=120, help="text of the invented database")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--size", type=int, default=2_000, help="proteins sampled: few of many, as in use")
    given = parser.parse_args()
    options = {"size": given.size, "seed": 1, "min_length": 50, "max_length": 512}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "uniref.fasta.gz"
        n_bytes, n_records = invent(path, given.megabytes * 10**6)
        print(f"{n_records} records, {n_bytes / 1e6:.0f} MB of text, {path.stat().st_size / 1e6:.0f} MB gzipped")
        ours, plain = [], []  # (wall, CPU) seconds of each round
        for _ in range(given.rounds):
            started = clocks()
            drawn = draw([path], **options)
            ours.append(clocks() - started)
            started = clocks()
            expected, counts = with_biopython(path, **options)
            plain.append(clocks() - started)
            found = list(zip(drawn.columns["sequence_id"], drawn.columns["sequence"]))
            if found != expected or drawn.counts != counts:
                raise SystemExit("the two samples differ: the comparison means nothing")
    for name, seconds in (("plm-depth", ours), ("Biopython + gzip", plain)):
        wall, cpu = n_bytes / 1e6 / np.median(seconds, axis=0)
        print(f"{name:17} {wall:5.0f} MB/s of text, {cpu:5.0f} per second of CPU (medians of {given.rounds})")
    ratio, ratio_cpu = np.median(plain, axis=0) / np.median(ours, axis=0)
    by_round = np.array(plain)[:, 0] / np.array(ours)[:, 0]
    verdict = "below the floor" if ratio < FLOOR else "above the floor" if ratio < AIM else "aim reached"
    print(f"ratio {ratio:.2f} ({by_round.min():.2f} to {by_round.max():.2f}), of CPU {ratio_cpu:.2f}")
    print(f"floor {FLOOR}, aim {AIM}: {verdict} (the aim needs a core of its own for decompression)")
    if ratio < FLOOR:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
