"""What is asked of single residues, and the controls that tell how much of an answer is the residue itself (metrics G).

Tasks: ``ss3`` secondary structure in three states; ``rsa`` relative solvent accessibility; ``exposed`` whether it is
at least 25 %; ``hse`` half-sphere exposure (CA atoms on the side chain's side, a measure of burial), for structures
without side chains.

Control task (Hewitt and Liang 2019): every 3-mer gets a label at random, drawn as often as the task has it. A probe can
learn it by knowing which residues stand there, and nothing else. Single residues would not do: twenty types are
linearly separable in any embedding, so that their control accuracy is 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plm_depth.metrics.contacts import beta_carbons
from plm_depth.randomness import generator, key_of
from plm_depth.tables import AMINO_ACIDS, BACKBONE, TableError, iterate_table

SS3 = "HEC"
EXPOSED = 0.25  # least relative accessibility of an exposed residue
WINDOW = 7  # residues to each side in the one-hot control
_COLUMNS = ("sequence_id", "position", "aa", "is_resolved", "n", "ca", "c", "cb", "ss3", "rsa", "hse_up")


@dataclass(frozen=True)
class Task:
    """One task of residues: kind of target, its scores (the first is the primary one) and number of classes."""

    name: str
    kind: str
    metrics: tuple[str, ...]
    n_classes: int | None = None


TASKS = {
    "ss3": Task("ss3", "classification", ("accuracy", "macro_f1"), len(SS3)),
    "rsa": Task("rsa", "regression", ("spearman",)),
    "exposed": Task("exposed", "classification", ("auroc",), 2),
    "hse": Task("hse", "regression", ("spearman",)),
}


@dataclass(frozen=True)
class Chain:
    """One chain: residues, and per residue what is known; NaN or "-" where nothing is."""

    sequence: str
    ss3: str
    rsa: np.ndarray
    hse: np.ndarray
    cb: np.ndarray

    @property
    def n_resolved(self) -> int:
        """Return the residues whose beta carbon is known."""
        return int(np.isfinite(self.cb).all(1).sum())


def read_chains(path: str | Path, sequence_ids: Sequence[str]) -> dict[str, Chain]:
    """Return the chains of these ids from a BACKBONE table; only their rows are kept in memory.

    Raises:
        TableError: damaged, a chain that is not there, or whose rows are not its residues 0, 1, ...
    """
    wanted, kept = pa.array(sorted(sequence_ids), pa.string()), []
    for rows in iterate_table(path, BACKBONE, columns=_COLUMNS):
        rows = rows.filter(pc.is_in(rows.column("sequence_id").cast(pa.string()), value_set=wanted))
        if rows.num_rows:
            kept.append(rows)
    if not kept:
        found = {}
    else:
        table = pa.concat_tables(kept, promote_options="permissive").combine_chunks()
        names = table.column("sequence_id").cast(pa.string()).to_numpy(zero_copy_only=False)
        found = {name: table.filter(pa.array(names == name)) for name in sorted(set(names))}
    missing = sorted(set(sequence_ids) - set(found))
    if missing:
        raise TableError(f"{path}: no rows of {len(missing)} chains, the first {missing[0]}; a table of another study?")
    return {name: _chain(rows, where=f"{path}: {name}") for name, rows in found.items()}


def _chain(rows: pa.Table, *, where: str) -> Chain:
    position = rows.column("position").to_numpy()
    if not np.array_equal(position, np.arange(len(position))):
        raise TableError(f"{where}: its rows are not its residues in their order; write the table again")

    def text(name: str) -> str:
        return "".join(rows.column(name).cast(pa.string()).to_pylist())

    def xyz(name: str) -> np.ndarray:
        column = rows.column(name).combine_chunks()
        return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, 3).astype(np.float64)

    cb = beta_carbons(*(xyz(atom) for atom in ("n", "ca", "c", "cb")))
    resolved = rows.column("is_resolved").to_numpy(zero_copy_only=False)
    cb[~resolved] = np.nan
    numbers = {name: rows.column(name).to_numpy().astype(np.float64) for name in ("rsa", "hse_up")}
    return Chain(text("aa"), text("ss3"), numbers["rsa"], numbers["hse_up"], cb)


# ----------------------------------------------------------------------------------------------------------------
# Rows and targets


@dataclass(frozen=True)
class Rows:
    """Residues on which probes are fitted and tested, sorted by chain and position.

    Attributes:
        names: (n_chains,) sorted ids.
        owner: (n,) chain of each row, an index into names.
        position: (n,) 0-based.
        targets: by task (n,): codes from 0, -1 unknown (classification); numbers, NaN unknown (regression).
    """

    names: list[str]
    owner: np.ndarray
    position: np.ndarray
    targets: Mapping[str, np.ndarray]

    def known(self, task: str) -> np.ndarray:
        """Return which rows have a target, (n,) bool."""
        target = self.targets[task]
        return target >= 0 if TASKS[task].kind == "classification" else np.isfinite(target)


def rows_of(chains: Mapping[str, Chain], *, tasks: Sequence[str], n_residues: int | None, seed: int) -> Rows:
    """Return at most ``n_residues`` residues of each chain, drawn by (seed, chain) among those with any target."""
    names = sorted(chains)
    owner, position, columns = [], [], {task: [] for task in tasks}
    for number, name in enumerate(names):
        chain = chains[name]
        targets = {task: targets_of(chain, task) for task in tasks}
        canonical = np.array([letter in AMINO_ACIDS for letter in chain.sequence])
        some = np.zeros(len(canonical), bool)
        for task in tasks:
            some |= _is_known(targets[task], task)
        choice = np.flatnonzero(canonical & some)
        if n_residues is not None and len(choice) > n_residues:
            choice = np.sort(generator(seed, "probe_residues", name).choice(choice, size=n_residues, replace=False))
        owner.append(np.full(len(choice), number))
        position.append(choice)
        for task in tasks:
            columns[task].append(targets[task][choice])
    stacked = {task: np.concatenate(parts) if parts else np.empty(0) for task, parts in columns.items()}
    empty = np.empty(0, np.int64)
    return Rows(names, np.concatenate(owner or [empty]), np.concatenate(position or [empty]), stacked)


def targets_of(chain: Chain, task: str) -> np.ndarray:
    """Return the target of every residue of a chain, see ``Rows``."""
    if task == "ss3":
        return np.array([SS3.find(letter) for letter in chain.ss3])
    if task == "exposed":
        return np.where(np.isnan(chain.rsa), -1, chain.rsa >= EXPOSED).astype(np.int64)
    return chain.rsa if task == "rsa" else chain.hse


def _is_known(target: np.ndarray, task: str) -> np.ndarray:
    return target >= 0 if TASKS[task].kind == "classification" else np.isfinite(target)


# ----------------------------------------------------------------------------------------------------------------
# Controls


def permuted(y: np.ndarray, *, seed: int, task: str) -> np.ndarray:
    """Return the targets in a random order: whatever a probe scores on them is chance."""
    return y[generator(seed, "perm", task).permutation(len(y))]


def kmers(chains: Mapping[str, Chain], rows: Rows, k: int = 3) -> list[str]:
    """Return the k-mer around each row's residue, "-" beyond the ends."""
    half = k // 2
    padded = {name: "-" * half + chain.sequence + "-" * half for name, chain in chains.items()}
    return [padded[rows.names[owner]][p : p + k] for owner, p in zip(rows.owner, rows.position)]


def control_labels(types: Sequence[str], y: np.ndarray, *, seed: int, task: str) -> np.ndarray:
    """Return for each row the label of its type, drawn for each type from the targets ``y`` by a keyed hash."""
    ordered = np.sort(y)
    label = {one: ordered[key_of(seed, "control", task, one) % len(ordered)] for one in set(types)}
    return np.array([label[one] for one in types], dtype=y.dtype)


def one_hot(chains: Mapping[str, Chain], rows: Rows, window: int = WINDOW) -> np.ndarray:
    """Return the residues around each row one-hot, (n, (2 window + 1) 21) float32; the last of 21: none there."""
    letters = {letter: code for code, letter in enumerate(AMINO_ACIDS)}
    codes = {
        name: np.pad([letters.get(letter, 20) for letter in chain.sequence], window, constant_values=20)
        for name, chain in chains.items()
    }
    around = np.stack([codes[rows.names[o]][p : p + 2 * window + 1] for o, p in zip(rows.owner, rows.position)])
    return np.eye(21, dtype=np.float32)[around].reshape(len(around), -1)
