"""Deep mutational scans as published, brought to one table of variants, every row of the source checked and counted.

    python -m plm_depth.sequences.assays --assays JSON --max-variants N --seed N --shards P... --counts P

``--assays`` is a list of what to read:

``{"format": "proteingym", "reference": CSV, "variants": ZIP or FOLDER, "ids": [...]}``
    the substitution assays of ProteinGym: the reference file (DMS_id, DMS_filename, UniProt_ID, target_seq,
    coarse_selection_type, ...) and the files of the assays (mutant ``A12C:D13E`` counted from 1, mutated_sequence,
    DMS_score), as the published archive or a folder of them. All assays of the reference file, or the ``ids``. The
    archive is read in place and nothing of it is unpacked.
``{"format": "table", "assay_id": A, "uniprot_id": U, "category": C, "variants": CSV, "mutant": "mutant",
"score": "score", "wildtypes": FASTA, "wildtype": NAME}``
    one file of variants, its columns by name, and its wild type in a FASTA file.

Positions count from 1 in the wild type. A row is left out, and counted under the first of these reasons that holds:

    malformed            the substitutions cannot be read
    not_canonical        a letter outside the 20
    out_of_range         a position beyond the wild type
    wildtype_mismatch    another residue stands at that position
    synonymous           nothing is substituted
    position_twice       one position substituted twice
    sequence_mismatch    mutated_sequence is not the wild type with these substitutions
    no_score             the score is missing or not finite
    duplicate            these substitutions stood in an earlier row

Of the others the ``--max-variants`` with the smallest keyed hashes of (seed, assay, substitutions) are drawn, so that
the draw does not depend on the order of the rows and a smaller one is part of a larger. Assays are dealt to the shards
so that these cost about the same (variants x residues); every assay lies in one shard.
"""

import argparse
import collections
import contextlib
import csv
import heapq
import io
import json
import logging
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from plm_depth.progress import Progress, start_log
from plm_depth.randomness import key_of
from plm_depth.sequences import ASSAY_FORMATS, SourceError
from plm_depth.sequences.fasta import clean, raw_accession, raw_batches
from plm_depth.tables import AMINO_ACIDS, ASSAYS, VARIANTS, TableWriter, write_table

REFERENCE = ("DMS_id", "DMS_filename", "UniProt_ID", "target_seq", "coarse_selection_type")
REASONS = (
    "malformed",
    "not_canonical",
    "out_of_range",
    "wildtype_mismatch",
    "synonymous",
    "position_twice",
    "sequence_mismatch",
    "no_score",
    "duplicate",
)
MOST_BYTES = 4 * 10**9  # of one file in an archive; the largest published one has some 300 MB
ALPHABET = frozenset(AMINO_ACIDS)
_SUBSTITUTION = re.compile(r"([A-Za-z*])(\d{1,9})([A-Za-z*])")


@dataclass(frozen=True)
class Source:
    """One assay before its rows are read.

    Attributes:
        assay_id, uniprot_id, category: what the tables call it.
        sequence: wild type.
        mutant, score, mutated: columns of its file; ``mutated`` None where there is no such column.
        where: the file, for messages.
    """

    assay_id: str
    uniprot_id: str
    category: str
    sequence: str
    mutant: str
    score: str
    mutated: str | None
    where: str


@dataclass(frozen=True)
class Assay:
    """One assay as the tables hold it: substitutions and scores in hash order, and the rows by what became of them."""

    source: Source
    mutations: list[str]
    scores: list[float]
    counts: dict[str, int]

    @property
    def cost(self) -> int:
        return len(self.mutations) * len(self.source.sequence)


class RowError(Exception):
    """A row that is left out; ``reason`` is one of ``REASONS``."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


# ----------------------------------------------------------------------------------------------------------------
# One row


def substitutions(text: str, sequence: str) -> list[tuple[int, str]]:
    """Return the substitutions that a text like ``A12C:D13E`` names: (0-based position, new residue), ascending.

    Raises:
        RowError: see the reasons in the module.
    """
    if not text.strip():
        raise RowError("malformed", "no substitution; expected one like A12C, or several joined by ':'")
    found: dict[int, str] = {}
    synonymous = twice = False
    for part in text.strip().split(":"):
        match = _SUBSTITUTION.fullmatch(part.strip())
        if match is None:
            raise RowError("malformed", f"{part!r}; expected a substitution like A12C")
        old, number, new = match[1].upper(), int(match[2]), match[3].upper()
        if old not in ALPHABET or new not in ALPHABET:
            raise RowError("not_canonical", f"{part!r}; expected two of the letters {AMINO_ACIDS}")
        if not 1 <= number <= len(sequence):
            raise RowError("out_of_range", f"{part!r}; the wild type has residues 1 to {len(sequence)}")
        if sequence[number - 1] != old:
            raise RowError(
                "wildtype_mismatch", f"{part!r}; residue {number} of the wild type is {sequence[number - 1]}"
            )
        synonymous |= old == new
        twice |= number - 1 in found
        found[number - 1] = new
    if synonymous:
        raise RowError("synonymous", f"{text!r}; expected another residue than the wild type's")
    if twice:
        raise RowError("position_twice", f"{text!r}; expected every position once")
    return sorted(found.items())


def mutant_of(sequence: str, changes: Iterable[tuple[int, str]]) -> str:
    """Return the sequence with its substitutions."""
    letters = list(sequence)
    for position, new in changes:
        letters[position] = new
    return "".join(letters)


def written(sequence: str, changes: Iterable[tuple[int, str]]) -> str:
    """Return substitutions as VARIANTS holds them: ``A12C:D13E``, counted from 1."""
    return ":".join(f"{sequence[position]}{position + 1}{new}" for position, new in changes)


def number(text: str | None) -> float:
    """Return a measured score.

    Raises:
        RowError: not a finite number.
    """
    try:
        value = math.nan if text is None else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RowError("no_score", f"score {text!r}; expected a finite number")
    return value


# ----------------------------------------------------------------------------------------------------------------
# One assay


def read_assay(
    source: Source, rows: Iterable[Mapping[str, str]], *, max_variants: int | None, seed: int, log: logging.Logger
) -> Assay:
    """Return the variants that are drawn of one assay, and the counts of its rows.

    Args:
        rows: of its file, columns by name.
        max_variants: most variants that are drawn; None for all.
        seed: key of the hash that draws them.
        log: told the first row of every reason for which rows are left out.
    Raises:
        SourceError: a column is missing, or no row is left.
    """
    counts: collections.Counter[str] = collections.Counter()
    kept: dict[str, float] = {}
    first: dict[str, str] = {}
    wanted = [source.mutant, source.score] + ([source.mutated] if source.mutated else [])
    for line, row in enumerate(_whole(rows, source.where), start=2):
        if line == 2:
            missing = [name for name in wanted if name not in row]
            if missing:
                raise SourceError(
                    f"{source.where}: no column {', '.join(missing)}; it has {', '.join(map(str, row))}. Expected the "
                    "columns " + ", ".join(wanted)
                )
        try:
            changes = substitutions(row[source.mutant] or "", source.sequence)
            if source.mutated and row[source.mutated] != mutant_of(source.sequence, changes):
                raise RowError("sequence_mismatch", f"{source.mutated} is not the wild type with {row[source.mutant]}")
            score = number(row[source.score])
            name = written(source.sequence, changes)
            if name in kept:
                raise RowError("duplicate", f"{name} stood in an earlier row, which is kept")
            kept[name] = score
        except RowError as error:
            counts[error.reason] += 1
            first.setdefault(error.reason, f"row {line}: {error}")
    for reason in REASONS:
        if counts[reason]:
            log.warning(f"{source.where}: {counts[reason]} rows left out, {reason}; the first, {first[reason]}")
    if not kept:
        raise SourceError(
            f"{source.where}: none of its {counts.total()} rows can be used "
            f"({', '.join(f'{reason} {counts[reason]}' for reason in REASONS if counts[reason]) or 'it is empty'}); "
            "is this the wild type that its positions count in?"
        )
    most = len(kept) if max_variants is None else max_variants
    drawn = heapq.nsmallest(most, kept, key=lambda name: (key_of(seed, "variants", source.assay_id, name), name))
    made = {"drawn": len(drawn), "not_drawn": len(kept) - len(drawn)}
    made |= {reason: counts[reason] for reason in REASONS if counts[reason]}
    return Assay(source, drawn, [kept[name] for name in drawn], made)


def _whole(rows: Iterable[Mapping[str, str]], where: str) -> Iterator[Mapping[str, str]]:
    """Yield the rows; a file that turns out to be damaged on the way is named."""
    try:
        yield from rows
    except (OSError, UnicodeDecodeError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{where}: damaged ({error}); expected a whole CSV file in UTF-8: fetch it again") from error


def check_wildtype(sequence: str, where: str) -> str:
    """Return a wild type in upper case.

    Raises:
        SourceError: empty, or with a letter outside the 20.
    """
    sequence = sequence.strip().upper()
    strange = sorted(set(sequence) - ALPHABET)
    if not sequence or strange:
        raise SourceError(f"{where}: the wild type holds {strange or 'nothing'}; expected letters of {AMINO_ACIDS}")
    return sequence


# ----------------------------------------------------------------------------------------------------------------
# The formats


def opened(assays: Sequence[Mapping[str, object]]) -> Iterator[tuple[Source, Iterator[Mapping[str, str]]]]:
    """Yield every assay and the rows of its file, which are to be read before the next is taken.

    Raises:
        SourceError: an unknown format or key, a file that is missing or not what it should be, an assay twice.
    """
    seen: set[str] = set()
    for place, entry in enumerate(assays):
        where = f"assays[{place}]"
        if not isinstance(entry, Mapping) or entry.get("format") not in ASSAY_FORMATS:
            raise SourceError(
                f"{where}: {entry!r}; expected a mapping whose format is one of {', '.join(ASSAY_FORMATS)}"
            )
        needed, allowed = ASSAY_FORMATS[entry["format"]]
        keys = set(entry) - {"format"}
        if needed - keys or keys - needed - allowed:
            raise SourceError(
                f"{where}: keys {sorted(keys)}; format {entry['format']} needs {sorted(needed)} and may have "
                f"{sorted(allowed)}"
            )
        for source, rows in _proteingym(entry) if entry["format"] == "proteingym" else _table(entry):
            if source.assay_id in seen:
                raise SourceError(f"{where}: assay {source.assay_id} stands twice; name every assay once")
            seen.add(source.assay_id)
            yield source, rows
    if not seen:
        raise SourceError("no assay; expected at least one")


def _proteingym(entry: Mapping[str, object]) -> Iterator[tuple[Source, Iterator[Mapping[str, str]]]]:
    reference = Path(entry["reference"])
    with _text_of(reference) as file:
        table = csv.DictReader(file)
        missing = [name for name in REFERENCE if name not in (table.fieldnames or [])]
        if missing:
            raise SourceError(
                f"{reference}: no column {', '.join(missing)}; expected ProteinGym's reference file of substitution "
                f"assays, with {', '.join(REFERENCE)}"
            )
        by_id: dict[str, dict[str, str]] = {}
        for row in _whole(table, str(reference)):
            if row["DMS_id"] in by_id:
                raise SourceError(f"{reference}: DMS_id {row['DMS_id']} stands twice; expected a row an assay")
            by_id[row["DMS_id"]] = row
    wanted = entry.get("ids") or list(by_id)
    unknown = [name for name in wanted if name not in by_id]
    if unknown:
        raise SourceError(
            f"{reference}: no assay {', '.join(unknown)}; it has {len(by_id)}, the first {next(iter(by_id))}"
        )
    with _folder_of(Path(entry["variants"])) as open_file:
        for name in wanted:
            row = by_id[name]
            with open_file(row["DMS_filename"]) as (file, where):
                source = Source(
                    assay_id=name,
                    uniprot_id=row["UniProt_ID"],
                    category=row["coarse_selection_type"],
                    sequence=check_wildtype(row["target_seq"], f"{reference}, {name}"),
                    mutant="mutant",
                    score="DMS_score",
                    mutated="mutated_sequence",
                    where=where,
                )
                yield source, csv.DictReader(file)


def _table(entry: Mapping[str, object]) -> Iterator[tuple[Source, Iterator[Mapping[str, str]]]]:
    fasta, path = Path(entry["wildtypes"]), Path(entry["variants"])
    wildtypes = {}
    for batch in raw_batches(fasta):
        for raw in batch:
            header, _, body = raw.partition(b"\n")
            wildtypes[raw_accession(header).decode()] = clean(body).text.decode()
    if entry["wildtype"] not in wildtypes:
        raise SourceError(f"{fasta}: no {entry['wildtype']!r}; it has {', '.join(wildtypes)}")
    with _text_of(path) as file:
        source = Source(
            assay_id=str(entry["assay_id"]),
            uniprot_id=str(entry["uniprot_id"]),
            category=str(entry["category"]),
            sequence=check_wildtype(wildtypes[entry["wildtype"]], f"{fasta}, {entry['wildtype']}"),
            mutant=str(entry.get("mutant", "mutant")),
            score=str(entry.get("score", "score")),
            mutated=None,
            where=str(path),
        )
        yield source, csv.DictReader(file)


@contextlib.contextmanager
def _text_of(path: Path) -> Iterator[io.TextIOBase]:
    try:
        file = path.open(newline="", encoding="utf-8-sig")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        yield file


@contextlib.contextmanager
def _folder_of(path: Path):
    """Yield a function from a file's name to its text and its place, for a folder or a zip archive.

    Members of an archive are found by the last part of their names, read as they are, and never written to the disk.
    """
    if path.is_dir():

        @contextlib.contextmanager
        def from_folder(name: str):
            if PurePosixPath(name).name != name:
                raise SourceError(f"{path}: DMS_filename {name!r}; expected a file name without folders")
            with _text_of(path / name) as file:
                yield file, str(path / name)

        yield from_folder
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: neither a folder nor a whole zip archive ({error}); fetch it again") from error
    with archive:
        members: dict[str, list[zipfile.ZipInfo]] = collections.defaultdict(list)
        for member in archive.infolist():
            is_hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(member.filename).parts)
            if not member.is_dir() and not is_hidden:
                members[PurePosixPath(member.filename).name].append(member)

        @contextlib.contextmanager
        def from_archive(name: str):
            found = members.get(name, [])
            where = f"{path}: {name}"
            if len(found) != 1:
                raise SourceError(f"{where}: {len(found)} members of that name; expected one, as the reference says")
            if found[0].file_size > MOST_BYTES:
                raise SourceError(
                    f"{where}: {found[0].file_size} bytes unpacked; expected at most {MOST_BYTES}: refused"
                )
            try:
                raw = archive.open(found[0])
            except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
                raise SourceError(f"{where}: cannot be read ({error}); fetch the archive again") from error
            with raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
                yield file, where

        yield from_archive


# ----------------------------------------------------------------------------------------------------------------
# The stage


def dealt(costs: Sequence[int], n_shards: int) -> list[list[int]]:
    """Return which assays each shard holds: the dearest first, each to the shard that has cost least so far.

    Raises:
        SourceError: fewer assays than shards.
    """
    if len(costs) < n_shards:
        raise SourceError(
            f"{len(costs)} assays for {n_shards} shards; expected at least one each: lower fitness.shards"
        )
    shards: list[list[int]] = [[] for _ in range(n_shards)]
    load = [0] * n_shards
    for place in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        shard = load.index(min(load))
        shards[shard].append(place)
        load[shard] += max(costs[place], 1)
    return [sorted(shard) for shard in shards]


def variant_columns(assay: Assay) -> dict[str, object]:
    """Return the columns of VARIANTS of one assay."""
    n = len(assay.mutations)

    def constant(text: str) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array([text]))

    source = assay.source
    return {
        "assay_id": constant(source.assay_id),
        "uniprot_id": constant(source.uniprot_id),
        "category": constant(source.category),
        "sequence": constant(source.sequence),
        "variant": list(range(n)),
        "mutations": assay.mutations,
        "n_mutations": [text.count(":") + 1 for text in assay.mutations],
        "score": assay.scores,
    }


def tabulate(
    assays: Sequence[Mapping[str, object]],
    *,
    shards: Sequence[str | Path],
    counts: str | Path,
    max_variants: int | None,
    seed: int,
    log: logging.Logger,
) -> int:
    """Write the drawn variants of all assays (VARIANTS, dealt to the shards) and their rows by what became of them
    (ASSAYS); return the number of variants.

    Raises:
        SourceError: see ``opened``, ``read_assay``, ``dealt``.
    """
    if max_variants is not None and max_variants < 1:
        raise SourceError(f"--max-variants {max_variants}: expected at least 1")
    progress = Progress(log, None, "assays")
    read = []
    for source, rows in opened(assays):
        read.append(read_assay(source, rows, max_variants=max_variants, seed=seed, log=log))
        progress.advance()
    progress.finish()
    rows = [
        (a.source.assay_id, a.source.uniprot_id, a.source.category, len(a.source.sequence), reason, n)
        for a in read
        for reason, n in a.counts.items()
    ]
    write_table(dict(zip(ASSAYS.names, map(list, zip(*rows)))), ASSAYS, counts, seed=seed)
    for path, places in zip(shards, dealt([assay.cost for assay in read], len(shards)), strict=True):
        with TableWriter(path, VARIANTS, seed=seed) as writer:
            for place in places:
                writer.append(variant_columns(read[place]))
    total = collections.Counter()
    for assay in read:
        total.update(assay.counts)
    log.info(
        f"{len(read)} assays of {len({a.source.uniprot_id for a in read})} proteins: "
        + ", ".join(f"{reason} {total[reason]}" for reason in ("drawn", "not_drawn", *REASONS) if reason in total)
    )
    return total["drawn"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.sequences.assays", description=__doc__.split("\n")[0])
    parser.add_argument("--assays", required=True, help="JSON list of what to read; see the module")
    parser.add_argument("--max-variants", type=int, help="most variants of an assay; all by default")
    parser.add_argument("--seed", type=int, required=True, help="key of the hash that draws variants")
    parser.add_argument(
        "--shards", nargs="+", type=Path, required=True, help="the variants (VARIANTS), one file a shard"
    )
    parser.add_argument(
        "--counts", type=Path, required=True, help="rows of the sources by what became of them (ASSAYS)"
    )
    options = parser.parse_args(argv)
    log = start_log("sequences.assays")
    try:
        assays = json.loads(options.assays)
        if not isinstance(assays, list):
            raise SourceError(f"--assays: {options.assays!r}; expected a JSON list")
        tabulate(
            assays,
            shards=options.shards,
            counts=options.counts,
            max_variants=options.max_variants,
            seed=options.seed,
            log=log,
        )
    except json.JSONDecodeError as error:
        raise SystemExit(f"sequences.assays: --assays is not JSON ({error}); expected a list") from error
    except (SourceError, OSError) as error:
        raise SystemExit(f"sequences.assays: {error}") from error


if __name__ == "__main__":
    main()
