"""The sampler on a source of UniRef50's size: records a second and peak memory, on real files written as it reads.

    python benchmarks/uniref_scale.py [--records 2000000] [--full] [--size 16384]

``--full`` is 70 million records, about as many as UniRef50 has. They come in parts of a million, each a plain FASTA
file that a process of its own writes before the sampler opens it and removes afterwards: the same residues under new
accessions, with headers and lengths as UniRef50 has them, one record in fifty with an X. So nothing but one part lies
on the disk, and the peak memory is that of the sampler alone. Decompression is not part of it
(``benchmarks/uniref_sampler.py`` reads gzip). Prints a line a part, and at the end the time in the sampler, its rate,
its peak memory at a tenth and at the end of the stream, and whether the sample is what a plain computation over all
accessions gives.
"""

import argparse
import hashlib
import heapq
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))
from plm_depth.sequences.sample import draw

FULL = 70_000_000
PART = 1_000_000
DIGITS = 9
SHORTEST, LONGEST = 50, 512
AMINO_ACIDS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
SHARES = np.array([8.3, 1.4, 5.5, 6.7, 3.9, 7.1, 2.3, 5.9, 5.8, 9.7, 2.4, 4.1, 4.7, 3.9, 5.5, 6.6, 5.3, 6.9, 1.1, 2.9])


def lengths_of(n: int) -> np.ndarray:
    """Return the residues of the records of a part: log-normal, median 220, mean about 280."""
    return np.clip(np.random.default_rng(2).lognormal(5.4, 0.7, n), 20, 30_000).astype(int)


def write_parts(requests, answers, n: int) -> None:
    """Write the parts that are asked for, (path, number of the first record), and answer with their bytes."""
    rng = np.random.default_rng(1)
    pool = rng.choice(AMINO_ACIDS, 40_000_000, p=SHARES / SHARES.sum()).tobytes()
    pieces, places, at = [], np.empty(n, np.int64), 0
    for i, length in enumerate(lengths_of(n)):
        start = int(rng.integers(0, len(pool) - length))
        residues = pool[start : start + length]
        if i % 50 == 0:
            residues = residues[: length // 2] + b"X" + residues[length // 2 + 1 :]
        lines = b"\n".join(residues[k : k + 60] for k in range(0, length, 60))
        record = b">UniRef50_A%s Uncharacterized protein n=%d Tax=Bacterium sp. %d TaxID=%d RepID=A%d_9BACT\n%s\n" % (
            b"0" * DIGITS, 1 + i % 9, i, i, i, lines
        )  # fmt: skip
        pieces.append(record)
        places[i] = at + len(">UniRef50_A")
        at += len(record)
    text = np.frombuffer(bytearray(b"".join(pieces)), np.uint8)
    del pieces
    powers = 10 ** np.arange(DIGITS - 1, -1, -1)
    where = places[:, None] + np.arange(DIGITS)
    answers.put(len(text))
    while (request := requests.get()) is not None:
        path, first, n_records = request
        numbers = np.arange(first, first + n)
        text[where] = numbers[:, None] // powers % 10 + ord("0")
        end = len(text) if n_records == n else int(places[n_records] - len(">UniRef50_A"))
        text[:end].tofile(path)
        answers.put(end)


class Parts(Sequence):
    """The parts of the source, each written when it is its turn; asked for their sizes first, none is there."""

    def __init__(self, folder: Path, n_records: int, requests, answers):
        self.folder, self.n_records, self.requests, self.answers = folder, n_records, requests, answers
        self.seconds_written, self.n_bytes, self.peaks, self.asked = 0.0, 0, [], False

    def __len__(self) -> int:
        return -(-self.n_records // PART)

    def __getitem__(self, i: int) -> Path:
        return self.folder / f"part_{i}.fasta"

    def __iter__(self) -> Iterator[Path]:
        if not self.asked:
            self.asked = True
            return iter([self[i] for i in range(len(self))])
        return self._written()

    def _written(self) -> Iterator[Path]:
        for i in range(len(self)):
            started = time.perf_counter()
            self.requests.put((str(self[i]), i * PART, min(PART, self.n_records - i * PART)))
            self.n_bytes += self.answers.get()
            self.seconds_written += time.perf_counter() - started
            began = time.perf_counter()
            yield self[i]
            self[i].unlink()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            self.peaks.append(peak)
            print(
                f"part {i + 1} of {len(self)}: {time.perf_counter() - began:.1f} s, peak memory {peak:.0f} MB",
                flush=True,
            )


def expected(n_records: int, size: int, seed: int) -> list[str]:
    """Return the accessions with the smallest keyed hashes among those whose record passes, smallest first."""
    keyed = hashlib.blake2b(digest_size=16, key=str(seed).encode(), person=b"plm-depth sample")
    lengths = lengths_of(min(PART, n_records) if n_records < PART else PART)
    heap: list[tuple[int, str]] = []
    for number in range(n_records):
        i = number % PART
        if i % 50 == 0 or not SHORTEST <= lengths[i] <= LONGEST:
            continue
        accession = f"UniRef50_A{number:0{DIGITS}d}"
        hasher = keyed.copy()
        hasher.update(accession.encode())
        item = (-int.from_bytes(hasher.digest(), "big"), accession)
        if len(heap) < size:
            heapq.heappush(heap, item)
        elif item > heap[0]:
            heapq.heapreplace(heap, item)
    return [accession for _, accession in sorted(heap, reverse=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=2 * PART, help="records of the stream")
    parser.add_argument("--full", action="store_true", help=f"{FULL} records")
    parser.add_argument("--size", type=int, default=16384, help="proteins sampled: the default reserve of a study")
    given = parser.parse_args()
    n_records = FULL if given.full else given.records
    processes = multiprocessing.get_context("spawn")
    requests, answers = processes.Queue(), processes.Queue()
    writer = processes.Process(target=write_parts, args=(requests, answers, PART), daemon=True)
    writer.start()
    print(f"a part has {answers.get() / 1e6:.0f} MB of text", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Path(folder), n_records, requests, answers)
        log = logging.getLogger("scale")
        log.setLevel(logging.ERROR)
        started, cpu = time.perf_counter(), time.process_time()
        drawn = draw(parts, size=given.size, seed=1, min_length=SHORTEST, max_length=LONGEST, log=log)
        seconds = time.perf_counter() - started - parts.seconds_written
        cpu = time.process_time() - cpu
    requests.put(None)
    n_read = sum(drawn.counts.values())
    print(
        f"{n_read} records, {parts.n_bytes / 1e9:.1f} GB of text: {seconds:.0f} s in the sampler ({cpu:.0f} s CPU), "
        f"{n_read / seconds / 1e6:.2f} million records/s, {parts.n_bytes / seconds / 1e6:.0f} MB/s"
    )
    early = parts.peaks[max(len(parts) // 10 - 1, 0)]
    print(f"peak memory {early:.0f} MB at a tenth of the stream, {parts.peaks[-1]:.0f} MB at its end")
    if n_read != n_records or drawn.columns["sequence_id"] != expected(n_records, given.size, 1):
        raise SystemExit("not the sample that a plain computation gives")
    print("the sample is what a plain computation over all accessions gives")


if __name__ == "__main__":
    main()
