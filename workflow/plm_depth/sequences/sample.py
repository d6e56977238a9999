"""Sample proteins from FASTA of any size: the K records with the smallest keyed hash of their accession.

    python -m plm_depth.sequences.sample --fasta F... --size K --seed N --min-length A --max-length B \\
        --sample sample.parquet --left-out left_out.parquet [--letters letters.parquet]

Whether a protein is in depends on (seed, accession) alone. So the sample is the same for every order of the records and
every split of the source into files, it can be drawn from a stream that is read once, and the sample of size K is the
first K proteins of the sample of size 2K.

Records are filtered first, in this order: ``non_canonical``, ``too_short``, ``too_long`` (nothing is ever cropped; odd
letters: ``plm_depth.sequences.fasta``). Every record read is counted under exactly one reason, and every letter beside
the 20 amino acids with what became of it.
"""

import argparse
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from plm_depth.megabytes import Megabytes
from plm_depth.progress import stage_log
from plm_depth.sequences import SourceError
from plm_depth.sequences.fasta import CANONICAL, NO_RESIDUES, WHITE_SPACE, clean, raw_accession, raw_batches
from plm_depth.tables import LEFT_OUT, LETTERS, SEQUENCES, write_table

LONGEST_ACCESSION = 256  # characters: it becomes a key of every table
_LINE_ENDS = "its lines end with a carriage return alone; expected line feeds: convert the file"
REASONS = ("sampled", "not_sampled", "non_canonical", "too_short", "too_long")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was drawn from a source.

    Attributes:
        columns: the columns of ``tables.SEQUENCES``, in rank order.
        counts: records by reason, in the order of ``REASONS``; they add up to the records read.
        upper_cased: records in which lower-case letters were upper-cased, whatever became of them.
        stop_dropped: records whose ``*`` at the end was dropped, whatever became of them.
        lower_letters: lower-case letters in the former.
        odd: records that hold a letter beside the 20 amino acids and how often it stands in them, by letter.
    """

    columns: dict[str, list]
    counts: dict[str, int]
    upper_cased: int
    stop_dropped: int
    lower_letters: int
    odd: dict[str, tuple[int, int]]

    def letters(self) -> dict[str, list]:
        """Return the columns of ``tables.LETTERS``: odd letters by name, then lower case and stops."""
        rows = [(letter, *self.odd[letter], "left out") for letter in sorted(self.odd)]
        rows.append(("lower case", self.upper_cased, self.lower_letters, "upper-cased"))
        rows.append(("stop", self.stop_dropped, self.stop_dropped, "dropped"))
        return dict(zip(LETTERS.names, map(list, zip(*rows, strict=True)), strict=True))


@dataclass(slots=True)
class _Candidate:
    accession: bytes
    body: bytes  # residues, perhaps with white space
    path: str | Path
    number: int  # of the record in its file, from 1
    again: "_Candidate | None" = None  # the last record with the same accession, if there is one

    @property
    def place(self) -> str:
        return f"{self.path}, record {self.number}"


class _Smallest:
    """The ``size`` smallest digests offered so far, with what belongs to them; holds up to twice as many at a time.

    ``limit``: only a digest up to this one can still belong to them.
    """

    def __init__(self, size: int):
        self.size = size
        self.limit = b"\xff" * 16
        self._kept: dict[bytes, _Candidate] = {}

    def offer(self, digest: bytes, candidate: _Candidate) -> None:
        if digest in self._kept:
            self._kept[digest].again = candidate
            return
        self._kept[digest] = candidate
        if len(self._kept) >= 2 * self.size:
            self.in_order()

    def in_order(self) -> list[_Candidate]:
        """Forget all but the ``size`` smallest and return them, the smallest first."""
        digests = sorted(self._kept)[: self.size]
        self._kept = {digest: self._kept[digest] for digest in digests}
        if len(digests) == self.size:
            self.limit = digests[-1]
        return list(self._kept.values())


def draw(
    fastas: Sequence[str | Path],
    *,
    size: int,
    seed: int,
    min_length: int,
    max_length: int,
    at_most: bool = False,
    log: logging.Logger | None = None,
) -> Sample:
    """Return the ``size`` proteins with the smallest keyed hash among the records that pass the filters.

    Memory grows with ``size`` and not with the source. An accession that passes twice is an error if it belongs to the
    sample: equal accessions have equal hashes, so its records reach the sample together or not at all. Duplicates that
    do not reach the sample are not looked for, as they cannot change it.

    Args:
        fastas: parts of the source, in any order.
        size: proteins wanted, at least 1.
        seed: key of the hash.
        min_length, max_length: residues allowed, both included.
        at_most: take all that pass where fewer than ``size`` do, which is otherwise an error.
        log: where progress goes.

    Raises:
        SourceError: a source that cannot be used, an accession twice in the sample, too few records, or bad options.
    """
    _check_options(fastas, size, min_length, max_length)
    log = log or logging.getLogger(__name__)
    progress = Megabytes(log, sum(Path(path).stat().st_size for path in fastas if Path(path).is_file()), "MB of files")
    started = time.monotonic()
    keyed = hashlib.blake2b(digest_size=16, key=str(seed).encode(), person=b"plm-depth sample")
    smallest = _Smallest(size)
    n_read = n_text = non_canonical = too_short = too_long = upper_cased = stop_dropped = n_lower = 0
    odd_records, odd_letters = Counter[int](), Counter[int]()

    for path in fastas:
        number = 0
        for batch in raw_batches(path, progress.add):
            n_text += sum(map(len, batch))
            try:
                for raw in batch:
                    number += 1
                    header, _, body = raw.partition(b"\n")
                    accession = raw_accession(header)
                    rest = body.translate(None, CANONICAL)
                    if rest and not rest.isspace():  # rare: the policies for odd letters
                        residues = clean(body)
                        upper_cased += residues.upper_cased
                        stop_dropped += residues.stop_dropped
                        n_lower += residues.n_lower
                        if not residues.canonical:
                            non_canonical += 1
                            odd = residues.text.translate(None, CANONICAL)
                            odd_records.update(set(odd))
                            odd_letters.update(odd)
                            continue
                        body, rest = residues.text, b""
                    length = len(body) - len(rest)
                    if length < min_length:
                        if not length:
                            raise SourceError(_LINE_ENDS if b"\r" in header.rstrip() else NO_RESIDUES)
                        too_short += 1
                        continue
                    if length > max_length:
                        too_long += 1
                        continue
                    hasher = keyed.copy()
                    hasher.update(accession)
                    digest = hasher.digest()
                    if digest <= smallest.limit:
                        smallest.offer(digest, _Candidate(accession, body, path, number))
            except SourceError as error:
                raise SourceError(f"{path}, record {number}: {error}") from error
        n_read += number
    progress.finish()
    seconds = max(time.monotonic() - started, 1e-9)
    log.info("read %d records, %.1f MB of text, %.0f MB/s", n_read, n_text / 1e6, n_text / 1e6 / seconds)

    n_passed = n_read - non_canonical - too_short - too_long
    chosen = smallest.in_order()
    if len(chosen) < size and not (at_most and chosen):
        raise SourceError(
            f"{', '.join(map(str, fastas))}: {len(chosen)} of {n_read} records pass the filters, expected at least "
            f"{1 if at_most else size} (non_canonical {non_canonical}, too_short {too_short}, too_long {too_long}); "
            f"lower --size, or widen --min-length {min_length} and --max-length {max_length}"
        )
    _check_accessions(chosen)
    _check_unique(chosen)
    odds = {chr(letter): (odd_records[letter], odd_letters[letter]) for letter in odd_letters}
    counts = (len(chosen), n_passed - len(chosen), non_canonical, too_short, too_long)
    return Sample(_columns(chosen), dict(zip(REASONS, counts, strict=True)), upper_cased, stop_dropped, n_lower, odds)


def _check_options(fastas: Sequence[str | Path], size: int, min_length: int, max_length: int) -> None:
    if not fastas:
        raise SourceError("--fasta: no file, expected at least one")
    if size < 1:
        raise SourceError(f"--size {size}: expected at least 1 protein")
    if not 1 <= min_length <= max_length:
        raise SourceError(f"--min-length {min_length} --max-length {max_length}: expected 1 <= min <= max")


def _check_accessions(chosen: Iterable[_Candidate]) -> None:
    """Refuse accessions that no database has; only those of the sample go further than this module."""
    for candidate in chosen:
        accession = candidate.accession.decode()
        if len(accession) > LONGEST_ACCESSION or not (accession.isascii() and accession.isprintable()):
            raise SourceError(
                f"{candidate.place}: accession {accession[:40]!r} ({len(accession)} characters); expected at most "
                f"{LONGEST_ACCESSION} printable ASCII characters: correct the record, or remove it"
            )


def _check_unique(chosen: Iterable[_Candidate]) -> None:
    twice = [candidate for candidate in chosen if candidate.again is not None]
    if twice:
        first = twice[0]
        raise SourceError(
            f"accession {first.accession.decode()} comes twice: {first.place}, and {first.again.place} "
            f"({len(twice)} such accession(s) in the sample); expected every accession once: was a file given twice?"
        )


def _columns(chosen: Sequence[_Candidate]) -> dict[str, list]:
    residues = [candidate.body.translate(None, WHITE_SPACE) for candidate in chosen]
    return {
        "sequence_id": [candidate.accession.decode() for candidate in chosen],
        "sequence_hash": [hashlib.sha256(text).hexdigest() for text in residues],
        "rank": list(range(len(chosen))),
        "n_residues": [len(text) for text in residues],
        "sequence": [text.decode() for text in residues],
    }


def sample(
    *,
    fastas: Sequence[str | Path],
    size: int,
    seed: int,
    min_length: int,
    max_length: int,
    at_most: bool = False,
    sample: str | Path,
    left_out: str | Path,
    letters: str | Path | None = None,
    log: logging.Logger,
) -> None:
    """Draw a sample (``draw``) and write it (SEQUENCES), the records by what became of them (LEFT_OUT), and LETTERS."""
    drawn = draw(fastas, size=size, seed=seed, min_length=min_length, max_length=max_length, at_most=at_most, log=log)
    log.info(", ".join(f"{reason} {n}" for reason, n in drawn.counts.items()))
    log.info("upper-cased %d records, dropped the stop of %d", drawn.upper_cased, drawn.stop_dropped)
    hashes = drawn.columns["sequence_hash"]
    if len(set(hashes)) < len(hashes):
        log.info("%d sampled proteins have the sequence of another one", len(hashes) - len(set(hashes)))
    write_table({"reason": list(drawn.counts), "n_records": list(drawn.counts.values())}, LEFT_OUT, left_out)
    if letters is not None:
        write_table(drawn.letters(), LETTERS, letters)
    settings = {"seed": seed, "min_length": min_length, "max_length": max_length}
    write_table(drawn.columns, SEQUENCES, sample, **settings)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.sequences.sample", description=__doc__.split("\n")[0])
    parser.add_argument("--fasta", nargs="+", required=True, help="parts of the source, compressed or not")
    parser.add_argument("--size", type=int, required=True, help="proteins to sample")
    parser.add_argument("--at-most", action="store_true", help="take all that pass where fewer than --size do")
    parser.add_argument("--seed", type=int, required=True, help="key of the hash that orders the accessions")
    parser.add_argument("--min-length", type=int, required=True, help="fewest residues, included")
    parser.add_argument("--max-length", type=int, required=True, help="most residues, included")
    parser.add_argument("--sample", required=True, help="table of the sampled proteins (SEQUENCES)")
    parser.add_argument("--left-out", required=True, help="table of records by what became of them (LEFT_OUT)")
    parser.add_argument("--letters", help="table of letters beside the 20 amino acids (LETTERS)")
    options = vars(parser.parse_args(argv))
    with stage_log("sample", SourceError, OSError) as log:
        sample(fastas=options.pop("fasta"), log=log, **options)


if __name__ == "__main__":
    main()
