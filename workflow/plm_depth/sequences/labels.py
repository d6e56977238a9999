"""Read a user's table of sequences and labels: check it as a whole, and say what is wrong in one message.

    python -m plm_depth.sequences.labels --table my.csv --sequence sequence --label score --kind auto
        --sequences sequences.parquet --labels labels.parquet

The table is CSV, or TSV by its name, compressed or not, with a header. What is in it:

* a sequence a row; or a substitution (``--mutant``: ``A12C``, several joined by ``:`` or ``,``, counted from 1) of the
  protein ``--wild-type`` (residues, or FASTA_FILE#accession);
* a label. Its *kind* is stated or, where the table leaves no doubt, found: ``regression`` (numbers), ``classification``
  (text, or two values), ``multi-label`` (several columns of 0 and 1; or, if stated, names joined by ``;``),
  ``residue-classification`` (a letter a residue, or a list) and ``residue-regression`` (a list of numbers, joined by
  spaces, commas or semicolons). Whole numbers with more than two values may be classes or amounts: then it must be
  stated;
* optionally an identifier, a split (``train`` with ``valid`` and ``test``, or names of folds), and a cluster: rows of
  one cluster are never on two sides of a split that the workflow makes.

Rows without sequence, label or (with ``--split``) split, with letters beyond the twenty amino acids, and longer than
``--max-length`` are left out and counted by reason. A sequence that comes twice with the same label is read once. With
different labels, or on two sides of the user's split (whoever has seen the answer must not be asked), it is an error.
"""

import argparse
import csv
import hashlib
import json
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from xopen import xopen

from plm_depth.progress import start_log
from plm_depth.sequences import SourceError
from plm_depth.sequences.fasta import clean, raw_accession, raw_batches
from plm_depth.tables import AMINO_ACIDS, LABELS, SEQUENCES, TableError, write_table

KINDS = ("regression", "classification", "multi-label", "residue-regression", "residue-classification")
FIXED_SPLITS = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
MISSING = frozenset({"", "na", "nan", "n/a", "none", "null"})
YES, NO = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no"})
LEAST_ROWS = 20
MOST_FOLDS = 20
WHOLE = -1  # position of a label of the whole protein
_SUBSTITUTION = re.compile(r"([A-Z])(\d+)([A-Z])")


@dataclass(frozen=True)
class Columns:
    """Names of the user's columns; ``sequence`` or ``mutant`` must be there.

    Attributes:
        label: one column, or several for multi-label.
        sequence, mutant, identifier, split, cluster: None where there is none.
    """

    label: tuple[str, ...]
    sequence: str | None = "sequence"
    mutant: str | None = None
    identifier: str | None = None
    split: str | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class Labelled:
    """A user's table, checked.

    Attributes:
        kind: one of ``KINDS``.
        names: of the labels: the column, or one a label for multi-label.
        classes: texts of the classes in the order of their codes; none for numbers and multi-label.
        sequences: columns of SEQUENCES, a row a protein, in the order of the table.
        labels: columns of LABELS.
        left_out: rows by reason.
        has_split, has_clusters: whether the table brings its own.
    """

    kind: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    sequences: dict[str, list]
    labels: dict[str, list]
    left_out: dict[str, int]
    has_split: bool
    has_clusters: bool

    @property
    def n_proteins(self) -> int:
        return len(self.sequences["sequence_id"])


@dataclass(frozen=True)
class _Row:
    """One usable row: its line in the file, protein, label as text (one a label column), split and cluster."""

    line: int
    name: str
    sequence: str
    labels: tuple[str, ...]
    split: str
    cluster: str


# ----------------------------------------------------------------------------------------------------------------
# The file


def read_rows(path: str | Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the header and (line, cells by column) of a CSV or TSV file with a header; cells are stripped.

    Raises:
        SourceError: no such file, not text, no header, a column named twice, or a row of another width.
    """
    path = Path(path)
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
    try:
        with xopen(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            rows = []
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise SourceError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, the header has {len(header)}; expected "
                        f"{'tabs' if delimiter == chr(9) else 'commas'} between them (a file of tabs is called .tsv)"
                    )
                rows.append((reader.line_num, dict(zip(header, map(str.strip, cells)))))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; a CSV file with a header was expected") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as a CSV file ({error}); save it again") from error
    if not header:
        raise SourceError(f"{path}: empty; a CSV file with a header was expected")
    if twice := [name for name, n in Counter(header).items() if n > 1]:
        raise SourceError(f"{path}: column {twice[0]!r} stands twice in the header; rename one")
    return header, rows


def wild_type_of(text: str) -> str:
    """Return the residues that ``--wild-type`` names: FILE#accession, or the residues themselves.

    Raises:
        SourceError: no such accession, or letters beyond the twenty.
    """
    if "#" in text:
        path, _, accession = text.rpartition("#")
        found = {}
        for records in raw_batches(path):
            for record in records:
                head, _, body = record.partition(b"\n")
                found[raw_accession(head).decode()] = clean(body).text.decode()
        if accession not in found:
            raise SourceError(f"--wild-type {text}: no {accession!r} in {path}; it has {', '.join(found)}")
        text = found[accession]
    if not text or set(text) - set(AMINO_ACIDS):
        raise SourceError(f"--wild-type {text[:40]!r}: expected residues of the twenty, or FASTA_FILE#accession")
    return text


def substituted(wild_type: str, mutant: str) -> str:
    """Return the wild type with substitutions such as ``A12C:L40P`` (from 1); ``WT`` or nothing changed is itself.

    Raises:
        SourceError: not a substitution, a place that does not exist, or another residue there.
    """
    if mutant.upper() in ("WT", "_WT", "WILD-TYPE"):
        return wild_type
    residues = list(wild_type)
    for part in re.split(r"[:,;]", mutant):
        match = _SUBSTITUTION.fullmatch(part.strip())
        if not match:
            raise SourceError(f"substitution {mutant!r}; expected e.g. A12C, several joined by ':'")
        old, place, new = match[1], int(match[2]), match[3]
        if not 1 <= place <= len(wild_type) or wild_type[place - 1] != old:
            there = wild_type[place - 1] if 1 <= place <= len(wild_type) else "nothing"
            raise SourceError(
                f"substitution {part!r}: {there} stands at place {place} of the wild type ({len(wild_type)} residues, "
                "counted from 1); does the column count from another residue?"
            )
        residues[place - 1] = new
    return "".join(residues)


# ----------------------------------------------------------------------------------------------------------------
# Rows that can be used


def read_labels(
    path: str | Path,
    *,
    columns: Columns,
    kind: str = "auto",
    wild_type: str | None = None,
    max_length: int = 1022,
    too_long: str = "leave_out",
    unknown: str = "-",
    log: logging.Logger | None = None,
) -> Labelled:
    """Return a user's table, checked; see the module for what is read and what is refused.

    Args:
        columns: which column is what.
        kind: one of ``KINDS``, or "auto".
        wild_type: see ``wild_type_of``; with a column of substitutions.
        max_length: longest protein in residues.
        too_long: "leave_out" (counted) or "refuse".
        unknown: letters of a label a residue that say nothing.
    Raises:
        SourceError: everything that makes the table unusable, with line, column and the mend.
    """
    if kind not in ("auto", *KINDS):
        raise SourceError(f"--kind {kind}: expected auto, {', '.join(KINDS)}")
    if too_long not in ("leave_out", "refuse"):
        raise SourceError(f"--too-long {too_long}: expected leave_out or refuse")
    header, cells = read_rows(path)
    _check_header(path, header, columns, wild_type)
    residues = wild_type_of(wild_type) if wild_type else None
    rows, left_out = [], Counter()
    for line, row in cells:
        reason, found = _usable(path, line, row, columns, residues, max_length)
        if reason == "too_long" and too_long == "refuse":
            raise SourceError(
                f"{path}, line {line}: {len(found)} residues, more than --max-length {max_length}; raise it (the "
                "models may set a lower limit), or leave such rows out with --too-long leave_out"
            )
        if reason:
            left_out[reason] += 1
        else:
            rows.append(found)
    if len(rows) < LEAST_ROWS:
        told = ", ".join(f"{reason} {n}" for reason, n in sorted(left_out.items())) or "none left out"
        raise SourceError(
            f"{path}: {len(rows)} usable rows of {len(cells)} ({told}); expected at least {LEAST_ROWS} to compare "
            "layers"
        )
    _check_identifiers(path, rows)
    rows = _merged(path, rows, left_out)
    kind = found_kind(path, rows, columns.label) if kind == "auto" else kind
    names, classes, labels = _labels(path, rows, columns.label, kind, unknown)
    split_of = _splits(path, rows, columns.split)
    by_name = {row.name: row for row in rows}
    labels["split"] = [split_of[name] for name in labels["sequence_id"]]
    labels["group"] = [by_name[name].cluster for name in labels["sequence_id"]]
    if log is not None:
        log.info("%s: %d rows, %d proteins used; kind %s", path, len(cells), len(rows), kind)
        log.info("left out: %s", ", ".join(f"{reason} {n}" for reason, n in sorted(left_out.items())) or "none")
        if classes:
            log.info("%d classes: %s", len(classes), ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else ""))
    return Labelled(
        kind=kind,
        names=names,
        classes=classes,
        sequences={
            "sequence_id": [row.name for row in rows],
            "sequence_hash": [hashlib.sha256(row.sequence.encode()).hexdigest() for row in rows],
            "rank": list(range(len(rows))),
            "n_residues": [len(row.sequence) for row in rows],
            "sequence": [row.sequence for row in rows],
        },
        labels=labels,
        left_out=dict(left_out),
        has_split=columns.split is not None,
        has_clusters=columns.cluster is not None,
    )


def _check_header(path: str | Path, header: Sequence[str], columns: Columns, wild_type: str | None) -> None:
    if columns.sequence is None and columns.mutant is None:
        raise SourceError("neither a column of sequences nor one of substitutions; give --sequence or --mutant")
    if columns.mutant is not None and wild_type is None:
        raise SourceError(f"--mutant {columns.mutant}: substitutions of what? give --wild-type")
    if columns.mutant is None and wild_type is not None:
        raise SourceError("--wild-type without --mutant: nothing says what is substituted")
    if not columns.label:
        raise SourceError("no column of labels; give --label")
    wanted = [columns.sequence if columns.mutant is None else columns.mutant, *columns.label]
    wanted += [columns.identifier, columns.split, columns.cluster]
    for name in wanted:
        if name is not None and name not in header:
            raise SourceError(f"{path}: no column {name!r}; its columns are {', '.join(map(repr, header))}")


def _usable(
    path: str | Path,
    line: int,
    row: Mapping[str, str],
    columns: Columns,
    wild_type: str | None,
    max_length: int,
) -> tuple[str | None, _Row | str]:
    """Return why a row is left out and its sequence, or None and the row."""
    if columns.mutant is not None:
        mutant = row[columns.mutant]
        if not mutant:
            return "no_sequence", ""
        try:
            sequence = substituted(wild_type or "", mutant)
        except SourceError as error:
            raise SourceError(f"{path}, line {line}: {error}") from error
    else:
        sequence = "".join(row[columns.sequence].split()).upper().removesuffix("*")
    if not sequence:
        return "no_sequence", sequence
    labels = tuple(row[name] for name in columns.label)
    if any(label.lower() in MISSING for label in labels):
        return "no_label", sequence
    if columns.split is not None and not row[columns.split]:
        return "no_split", sequence
    if columns.cluster is not None and not row[columns.cluster]:
        return "no_cluster", sequence
    if set(sequence) - set(AMINO_ACIDS):
        return "non_canonical", sequence
    if len(sequence) > max_length:
        return "too_long", sequence
    name = row[columns.identifier] if columns.identifier else f"line_{line}"
    if not name:
        return "no_identifier", sequence
    split = row[columns.split] if columns.split else ""
    return None, _Row(line, name, sequence, labels, split, row[columns.cluster] if columns.cluster else "")


def _check_identifiers(path: str | Path, rows: Sequence[_Row]) -> None:
    seen: dict[str, int] = {}
    for row in rows:
        if row.name in seen:
            raise SourceError(
                f"{path}: identifier {row.name!r} stands in lines {seen[row.name]} and {row.line}; expected every one "
                "once (leave the column of identifiers out to number the rows)"
            )
        seen[row.name] = row.line


def _merged(path: str | Path, rows: Sequence[_Row], left_out: Counter) -> list[_Row]:
    """Return the rows with every sequence once.

    Raises:
        SourceError: a sequence with several labels, on several sides of the split, or in several clusters.
    """
    by_sequence: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_sequence[row.sequence].append(row)
    problems: dict[str, list[str]] = defaultdict(list)
    for same in by_sequence.values():
        where = " and ".join(f"line {row.line}" for row in same[:3])
        if len({FIXED_SPLITS.get(row.split.lower(), row.split) for row in same}) > 1:
            problems["on several sides of the split (a model asked for what it was shown)"].append(where)
        elif len({row.labels for row in same}) > 1:
            problems["with different labels"].append(where)
        elif len({row.cluster for row in same}) > 1:
            problems["in different clusters"].append(where)
        left_out["duplicate"] += len(same) - 1
    for what, where in problems.items():
        raise SourceError(
            f"{path}: {len(where)} sequences come more than once {what}, the first in {where[0]}; keep one row of each"
        )
    if not left_out["duplicate"]:
        del left_out["duplicate"]
    return [same[0] for same in by_sequence.values()]


def _splits(path: str | Path, rows: Sequence[_Row], column: str | None) -> dict[str, str]:
    """Return the side of each protein: train, valid, test; the name of its fold; or "" where the table has no split.

    Raises:
        SourceError: no training rows, nothing to test on, or names that are neither sides nor folds.
    """
    if column is None:
        return {row.name: "" for row in rows}
    names = Counter(row.split for row in rows)
    if all(name.lower() in FIXED_SPLITS for name in names):
        sides = Counter({side: 0 for side in ("train", "valid", "test")})
        for name, n in names.items():
            sides[FIXED_SPLITS[name.lower()]] += n
        if sides["train"] < LEAST_ROWS // 2 or not (sides["valid"] or sides["test"]):
            told = ", ".join(f"{side} {n}" for side, n in sides.items())
            raise SourceError(
                f"{path}, column {column!r}: {told} rows; expected at least {LEAST_ROWS // 2} to train on, and "
                "valid or test rows"
            )
        return {row.name: FIXED_SPLITS[row.split.lower()] for row in rows}
    if not 3 <= len(names) <= MOST_FOLDS:
        shown = ", ".join(sorted(names)[:6]) + (", ..." if len(names) > 6 else "")
        raise SourceError(
            f"{path}, column {column!r}: {len(names)} different values ({shown}); expected train with valid and test, "
            f"or the names of 3 to {MOST_FOLDS} folds"
        )
    return {row.name: row.split for row in rows}


# ----------------------------------------------------------------------------------------------------------------
# Labels


def found_kind(path: str | Path, rows: Sequence[_Row], names: Sequence[str]) -> str:
    """Return the kind that the labels leave no doubt about.

    Raises:
        SourceError: there is a doubt; says which kinds it may be.
    """
    if len(names) > 1:
        return "multi-label"
    texts = [row.labels[0] for row in rows]
    lists = [_listed(text) for text in texts]
    of_residues = all(len(one) == len(row.sequence) and len(one) > 1 for one, row in zip(lists, rows))
    if of_residues:
        numbers = [_number(value) for one in lists for value in one]
        if all(value is not None and not math.isnan(value) for value in numbers) and any(v % 1 for v in numbers):
            return "residue-regression"
        if all(value is None for value in numbers):
            return "residue-classification"
        _doubt(path, names[0], "a number a residue", ("residue-classification", "residue-regression"))
    if all(len(text) == len(row.sequence) and len(text) > 1 for text, row in zip(texts, rows)):
        return "residue-classification"
    numbers = [_number(text) for text in texts]
    if any(value is None for value in numbers):
        return "classification"
    values = set(numbers)
    if len(values) == 2:
        return "classification"
    if len(values) == 1 or any(value % 1 for value in values):
        return "regression"  # a constant is refused there
    return _doubt(path, names[0], f"{len(values)} different whole numbers", ("classification", "regression"))


def _doubt(path: str | Path, name: str, what: str, kinds: Sequence[str]) -> str:
    raise SourceError(f"{path}, column {name!r}: {what}, which may be {' or '.join(kinds)}; say which with --kind")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _listed(text: str) -> list[str]:
    """Return the parts of a list in a cell: joined by commas, semicolons or spaces, in brackets or not."""
    return [part for part in re.split(r"[\s,;]+", text.strip().strip("[]()")) if part]


def _labels(
    path: str | Path, rows: Sequence[_Row], names: Sequence[str], kind: str, unknown: str
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, list]]:
    """Return names, classes, and the columns of LABELS but split and group."""
    if len(names) > 1 and kind != "multi-label":
        raise SourceError(f"{len(names)} columns of labels, but kind {kind}; expected one, or kind multi-label")
    if kind == "multi-label":
        return _many(path, rows, names)
    of_residue = kind.startswith("residue-")
    values: list[tuple[str, int, str]] = []
    for row in rows:
        if not of_residue:
            values.append((row.name, WHOLE, row.labels[0]))
            continue
        text = row.labels[0]
        one = list(text) if len(text) == len(row.sequence) else _listed(text)
        if len(one) != len(row.sequence):
            raise SourceError(
                f"{path}, line {row.line}, column {names[0]!r}: {len(one)} labels for {len(row.sequence)} residues; "
                "expected a letter a residue, or a list as long as the sequence"
            )
        told = ((p, v) for p, v in enumerate(one) if v.lower() not in MISSING and not (len(v) == 1 and v in unknown))
        values += [(row.name, position, value) for position, value in told]
    texts = [value for _, _, value in values]
    line_of = {row.name: row.line for row in rows}
    if kind.endswith("classification"):
        classes = tuple(sorted(set(texts), key=lambda text: (_number(text) is None, _number(text) or 0.0, text)))
        if len(classes) < 2:
            raise SourceError(
                f"{path}, column {names[0]!r}: one class only ({', '.join(classes)}); expected at least two"
            )
        code_of = {text: float(code) for code, text in enumerate(classes)}
        numbers = [code_of[text] for text in texts]
    else:
        classes, numbers = (), [_number(text) for text in texts]
        for (name, _, text), number in zip(values, numbers):
            if number is None or not math.isfinite(number):
                raise SourceError(
                    f"{path}, line {line_of[name]}, column {names[0]!r}: {text!r} is no number, but kind {kind} has "
                    "numbers; mend the cell, leave it empty, or state another --kind"
                )
        if np.ptp(numbers) <= 1e-12 * (1 + abs(numbers[0])):
            raise SourceError(
                f"{path}, column {names[0]!r}: constant, {numbers[0]:g} in every row; there is nothing to predict"
            )
    columns = {
        "sequence_id": [name for name, _, _ in values],
        "position": [position for _, position, _ in values],
        "label": [names[0]] * len(values),
        "value": numbers,
        "text": texts,
    }
    return (names[0],), classes, columns


def _many(
    path: str | Path, rows: Sequence[_Row], names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, list]]:
    """Return names, no classes, and columns of several labels a protein."""
    if len(names) == 1:  # names joined in one cell
        sets = [{part.strip() for part in row.labels[0].split(";") if part.strip()} for row in rows]
        names = sorted(set().union(*sets))
        truth = [[name in one for name in names] for one in sets]
    else:
        truth = []
        for row in rows:
            for name, text in zip(names, row.labels):
                if text.lower() not in YES | NO:
                    raise SourceError(
                        f"{path}, line {row.line}, column {name!r}: {text!r}; multi-label columns hold 0 or 1"
                    )
            truth.append([text.lower() in YES for text in row.labels])
    share = np.array(truth).mean(0)
    if constant := [name for name, s in zip(names, share) if s in (0, 1)]:
        raise SourceError(
            f"{path}: label {constant[0]!r} is the same in every row ({len(constant)} such labels); there is nothing "
            "to predict: leave it out"
        )
    n = len(names)
    columns = {
        "sequence_id": [row.name for row in rows for _ in names],
        "position": [WHOLE] * (n * len(rows)),
        "label": list(names) * len(rows),
        "value": [float(value) for row in truth for value in row],
        "text": ["yes" if value else "no" for row in truth for value in row],
    }
    return tuple(names), (), columns


# ----------------------------------------------------------------------------------------------------------------
# The stage


def write(found: Labelled, *, sequences: str | Path, labels: str | Path) -> None:
    """Write the proteins (SEQUENCES) and their labels (LABELS, what is constant beside it as metadata)."""
    about = {
        "kind": found.kind,
        "names": json.dumps(list(found.names)),
        "classes": json.dumps(list(found.classes)),
        "left_out": json.dumps(found.left_out, sort_keys=True),
        "has_split": int(found.has_split),
        "has_clusters": int(found.has_clusters),
    }
    write_table(found.sequences, SEQUENCES, sequences)
    write_table(found.labels, LABELS, labels, **about)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.sequences.labels", description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--sequences", required=True, help="the proteins (SEQUENCES)")
    parser.add_argument("--labels", required=True, help="their labels (LABELS)")
    options = parser.parse_args(argv)
    log = start_log("sequences.labels")
    try:
        found = read_labels(options.table, log=log, **arguments_of(options))
        write(found, sequences=options.sequences, labels=options.labels)
    except (SourceError, TableError, OSError) as error:
        raise SystemExit(f"labels: {error}") from error


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a user's table is to be read."""
    parser.add_argument("--table", required=True, help="CSV or TSV file with a header")
    parser.add_argument("--sequence", default="sequence", help="column of the sequences (default: %(default)s)")
    parser.add_argument("--mutant", help="column of substitutions of --wild-type, instead of sequences")
    parser.add_argument("--wild-type", help="residues, or FASTA_FILE#accession")
    parser.add_argument("--label", nargs="+", required=True, help="column of the label; several for multi-label")
    parser.add_argument("--kind", default="auto", choices=("auto", *KINDS), help="of the label (default: %(default)s)")
    parser.add_argument("--identifier", help="column that names the rows; by default they are numbered")
    parser.add_argument("--split", help="column of the user's split: train, valid, test, or names of folds")
    parser.add_argument("--cluster", help="column of groups that no split may part")
    parser.add_argument("--max-length", type=int, default=1022, help="longest protein in residues (%(default)s)")
    parser.add_argument("--too-long", default="leave_out", choices=("leave_out", "refuse"), help="longer ones")
    parser.add_argument("--unknown", default="-", help="letters of a label a residue that say nothing (%(default)r)")


def arguments_of(options: argparse.Namespace) -> dict[str, object]:
    """Return the arguments of ``read_labels`` from the options of ``add_options``."""
    columns = Columns(
        label=tuple(options.label),
        sequence=None if options.mutant else options.sequence,
        mutant=options.mutant,
        identifier=options.identifier,
        split=options.split,
        cluster=options.cluster,
    )
    names = ("kind", "wild_type", "max_length", "too_long", "unknown")
    return {"columns": columns, **{name: getattr(options, name) for name in names}}


if __name__ == "__main__":
    main()
