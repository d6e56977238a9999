"""The proteins a model is trained on: reading, checking, background composition, crops and batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dnaio
import numpy as np

from plm_depth.models.base import Structure
from plm_depth.models.structures import in_order
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS

_INDEX_OF_BYTE = np.full(256, -1, np.int64)
_INDEX_OF_BYTE[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)] = np.arange(20)


class CorpusError(ValueError):
    """Proteins that cannot be trained on or validated with; names file and record."""


@dataclass(frozen=True)
class Protein:
    """One protein: its accession, its residues, and what is known of its structure (None: nothing that is shown)."""

    sequence_id: str
    sequence: str
    structure: Structure | None = None


def read_fasta(path: str | Path) -> list[Protein]:
    """Return the proteins of a FASTA file (gzip or not), in its order; the id is the first word of the header.

    Raises:
        CorpusError: the file is missing, not FASTA, cut short or empty, or an id is missing or stands there twice.
    """
    proteins, seen = [], set()
    try:
        with dnaio.open(path, fileformat="fasta") as reader:
            for number, record in enumerate(reader, 1):
                words = record.name.split(maxsplit=1)
                if not words:
                    raise CorpusError(f"{path}: record {number} has no id; write one after '>'")
                if words[0] in seen:
                    raise CorpusError(f"{path}: record {number}: {words[0]!r} is there twice; ids must be unique")
                seen.add(words[0])
                proteins.append(Protein(words[0], record.sequence))
    except (OSError, EOFError, dnaio.FileFormatError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: not a readable FASTA file ({error})") from error
    if not proteins:
        raise CorpusError(f"{path}: no proteins; expected at least one FASTA record")
    return proteins


def check_disjoint(train: Sequence[Protein], valid: Sequence[Protein]) -> None:
    """Refuse a protein that is on both sides, under whatever id.

    Raises:
        CorpusError: naming both ids.
    """
    ids = {protein.sequence: protein.sequence_id for protein in train}
    names = {protein.sequence_id for protein in train}
    for protein in valid:
        twin = ids.get(protein.sequence)
        if twin is None and protein.sequence_id in names:
            twin = protein.sequence_id
        if twin is not None:
            raise CorpusError(
                f"{protein.sequence_id!r} of the validation proteins is also a training protein ({twin!r}): its loss "
                "would show memory; split by clusters"
            )


def indices_of(sequence: str) -> np.ndarray:
    """Return the index of every residue in AMINO_ACIDS, (n_residues,) int64, -1 for other letters."""
    return _INDEX_OF_BYTE[np.frombuffer(sequence.encode("latin-1", "replace"), np.uint8)]


def background(proteins: Sequence[Protein]) -> np.ndarray:
    """Return minus the log of the share of each amino acid, (20,) nats: the loss of a model that ignores context.

    One is added to every count, so that an amino acid absent from a small corpus costs a finite loss.
    """
    counts = np.ones(20)
    for protein in proteins:
        index = indices_of(protein.sequence)
        counts += np.bincount(index[index >= 0], minlength=20)
    return -np.log(counts / counts.sum())


def crop_of(protein: Protein, longest: int, *key: object) -> Protein:
    """Return the protein, or a piece of ``longest`` residues whose start is drawn from a generator keyed by ``key``."""
    excess = len(protein.sequence) - longest
    if excess <= 0:
        return protein
    start = int(generator(*key, "crop", protein.sequence_id).integers(excess + 1))
    structure = protein.structure
    if structure is not None:
        structure = in_order(structure, np.arange(start, start + longest))
    return Protein(protein.sequence_id, protein.sequence[start : start + longest], structure)


def batches_of(lengths: Sequence[int], budget: int, order: np.random.Generator | None = None) -> list[list[int]]:
    """Return batches of indices whose rows, padded to the longest, hold at most ``budget`` tokens.

    Rows of one batch have similar lengths. With ``order`` rows of equal length are shuffled before and the batches
    after the cut; without, both stay sorted by length. Every index is in exactly one batch.

    Raises:
        CorpusError: one row alone is longer than the budget.
    """
    lengths = np.asarray(lengths)
    rows = np.arange(len(lengths)) if order is None else order.permutation(len(lengths))
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    batches: list[list[int]] = []
    for row in rows:
        if lengths[row] > budget:
            raise CorpusError(
                f"a protein of {lengths[row]} tokens exceeds the {budget} tokens of a batch; raise tokens_per_batch or "
                "set crop below it"
            )
        if batches and (len(batches[-1]) + 1) * lengths[row] <= budget:
            batches[-1].append(int(row))
        else:
            batches.append([int(row)])
    if order is not None:
        batches = [batches[i] for i in order.permutation(len(batches))]
    return batches


def training_batches(n_tokens: Sequence[int], budget: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (epoch, rows) without end: every protein once an epoch, in an order keyed by seed and epoch."""
    epoch = 0
    while True:
        for rows in batches_of(n_tokens, budget, generator(seed, "order", epoch)):
            yield epoch, rows
        epoch += 1
