"""Read FASTA as a stream: compressed or not, in constant memory, with an error for everything that is not FASTA.

The reader cuts blocks of bytes at record boundaries and leaves the records as bytes, because a sample of a large
database looks at every record and keeps few of them (``benchmarks/uniref_sampler.py`` compares it with a parser that
makes an object of each).

What is a record, and what becomes of odd ones (every count is reported by the stage that reads):

* White space within and between the lines of a sequence is dropped, Windows line ends too.
* Lower-case letters (soft masking) are upper-cased, and such records are counted.
* One ``*`` at the end (a translated stop codon) is dropped, and such records are counted. A ``*`` anywhere else, a gap
  (``-`` or ``.``) or any letter but the 20 canonical amino acids makes a record ``non_canonical``.
* Anything else (digits, punctuation, bytes beyond ASCII) is no sequence: an error, as are a record without residues,
  a header without accession, an empty file, and a compressed file that is cut or damaged. A file that ends exactly
  where one of several concatenated gzip members ends looks whole; only a digest (``sequences.download``) finds that.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from xopen import xopen

from plm_depth.sequences import SourceError
from plm_depth.tables import AMINO_ACIDS

BLOCK = 1 << 17  # bytes a read: fits the cache, and lets the decompressing thread run ahead
CANONICAL = AMINO_ACIDS.encode()
WHITE_SPACE = b" \t\r\n\v\f"
NO_RESIDUES = "no residues; expected them on the lines behind the header: complete the record, or remove it"
_MAY_STAND_IN_A_SEQUENCE = bytes(range(ord("A"), ord("Z") + 1)) + b"*-."
_LOWER = bytes(range(ord("a"), ord("z") + 1))
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
_UNIPROT_DATABASES = frozenset({b"sp", b"tr", b"up"})


@dataclass(frozen=True, slots=True)
class Residues:
    """The residues of one record.

    Attributes:
        text: upper-case residues, without white space and without a stop at the end.
        canonical: whether all of them are among the 20 amino acids of ``tables.AMINO_ACIDS``.
        upper_cased: whether a letter was lower case.
        stop_dropped: whether a ``*`` at the end was dropped.
        n_lower: lower-case letters among them.
    """

    text: bytes
    canonical: bool
    upper_cased: bool
    stop_dropped: bool
    n_lower: int = 0


def raw_batches(path: str | Path, on_read: Callable[[int], None] | None = None) -> Iterator[list[bytes]]:
    """Yield the records of a FASTA file as bytes, in lists: header without ``>``, a line end, the sequence lines.

    Memory: one block and the longest record.

    Args:
        path: FASTA, plain or gzip, bzip2 or xz; told apart by their first bytes, never by the name.
        on_read: called with the number of bytes of the (compressed) file read since the last call.

    Raises:
        SourceError: the file is missing, empty, cut, damaged or does not begin with ``>``.
    """
    n_records = n_read = 0
    pending = b""  # begins with the line end before the '>' of the record under way
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            stream = stack.enter_context(_decompressed(file))
        except OSError as error:
            raise SourceError(f"{path}: cannot be read as a file ({error.strerror}); expected FASTA") from error
        while True:
            try:
                # Blocks grow with a record longer than a block, else its pieces would be copied over and over. The
                # threaded reader may say "end" once while its last block still waits in its queue: ask twice.
                block = stream.read(max(BLOCK, len(pending))) or stream.read(BLOCK)
            except Exception as error:  # every decompressor has an error class of its own
                raise SourceError(
                    f"{path}: cut or damaged after record {n_records} ({type(error).__name__}: {error}); fetch it again"
                ) from error
            if not block:
                break
            if on_read is not None:
                on_read(file.tell() - n_read)
                n_read = file.tell()
            if not pending:
                block = block.lstrip(WHITE_SPACE)
                if not block:
                    continue
                if not block.startswith(b">"):
                    raise SourceError(
                        f"{path}: not FASTA: begins with {block[:20]!r}, expected '>' and an accession, in plain text "
                        "without byte order mark, or compressed by gzip, bzip2 or xz"
                    )
                block = b"\n" + block
            pending += block
            cut = pending.rfind(b"\n>", 1)
            if cut > 0:
                batch = pending[2:cut].split(b"\n>")
                pending = pending[cut:]
                n_records += len(batch)
                yield batch
    if not pending:
        raise SourceError(f"{path}: empty, expected at least one FASTA record; was its download cut?")
    yield [pending[2:]]


def _decompressed(file: BinaryIO) -> contextlib.AbstractContextManager[BinaryIO]:
    """Return the plain bytes of an open file as a stream."""
    start = file.read(max(map(len, _MAGIC)))
    file.seek(0)
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if kind is None:
        return contextlib.nullcontext(file)
    return xopen(file, "rb", threads=1 if kind == "gz" else 0, format=kind)


def raw_accession(header: bytes) -> bytes:
    """Return the accession in a header (without ``>``), as UTF-8 bytes.

    The first word of the header; of a UniProt header ``sp|P12345|NAME`` (also ``tr`` and ``up``) its middle. A UniRef
    id (``UniRef50_A0A123``) is kept whole.

    Raises:
        SourceError: no accession directly behind ``>``, or bytes that are not UTF-8. The caller adds the place.
    """
    if not header or header[0] in WHITE_SPACE:
        raise SourceError(f"no accession directly behind '>' in {b'>' + header[:60]!r}; expected one: >P69905 words")
    word = header.split(None, 1)[0]
    if b"|" in word:
        parts = word.split(b"|")
        if len(parts) == 3 and parts[0] in _UNIPROT_DATABASES and parts[1]:
            word = parts[1]
    if not word.isascii():
        try:
            word.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"the accession {word!r} is not UTF-8 text; correct the record, or remove it") from error
    return word


def clean(body: bytes) -> Residues:
    """Return the residues of the sequence lines of one record, by the policy at the top of this module.

    Raises:
        SourceError: no residues, or a character that no sequence has. The caller adds the place.
    """
    found = body.translate(None, WHITE_SPACE)
    text = found.upper()
    strange = text.translate(None, _MAY_STAND_IN_A_SEQUENCE)
    if strange:
        raise SourceError(
            f"{strange[:1]!r} in the sequence, expected letters, '*', '-' or '.': correct the record, or remove it"
        )
    stop_dropped = text.endswith(b"*")
    if stop_dropped:
        text = text[:-1]
    if not text:
        raise SourceError(NO_RESIDUES)
    n_lower = len(found) - len(found.translate(None, _LOWER))
    return Residues(text, not text.translate(None, CANONICAL), n_lower > 0, stop_dropped, n_lower)
