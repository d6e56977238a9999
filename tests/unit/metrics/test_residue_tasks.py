"""Tasks of residues: which residues, which targets, and controls that residue types alone do or do not solve."""

import numpy as np

from plm_depth.metrics.probing import fit_probe
from plm_depth.metrics.residue_tasks import (
    Chain,
    control_labels,
    kmers,
    one_hot,
    permuted,
    rows_of,
    targets_of,
)
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS


def chain(name, n=60, letters=AMINO_ACIDS):
    random = generator(0, name)
    return Chain(
        "".join(random.choice(list(letters), size=n)),
        "".join(random.choice(list("HEC-"), size=n)),
        np.where(random.random(n) < 0.1, np.nan, random.random(n)),
        random.integers(0, 30, size=n).astype(float),
        random.normal(size=(n, 3)),
    )


CHAINS = {f"C{i}": chain(f"C{i}", 40 + i) for i in range(6)}


def test_targets_are_codes_or_numbers_and_unknown_where_nothing_is_known():
    one = CHAINS["C0"]
    states = targets_of(one, "ss3")
    assert all((states[i] == -1) == (letter == "-") for i, letter in enumerate(one.ss3))
    assert states[one.ss3.index("H")] == 0 and states[one.ss3.index("E")] == 1 and states[one.ss3.index("C")] == 2
    exposed = targets_of(one, "exposed")
    assert (exposed[np.isnan(one.rsa)] == -1).all()
    known = ~np.isnan(one.rsa)
    assert (exposed[known] == (one.rsa[known] >= 0.25)).all()


def test_rows_are_drawn_per_chain_whatever_other_chains_there_are():
    rows = rows_of(CHAINS, tasks=["ss3", "rsa"], n_residues=10, seed=3)
    assert np.bincount(rows.owner).tolist() == [10] * 6
    alone = rows_of({"C4": CHAINS["C4"]}, tasks=["ss3", "rsa"], n_residues=10, seed=3)
    mine = rows.owner == 4
    assert rows.position[mine].tolist() == alone.position.tolist() == sorted(alone.position.tolist())
    np.testing.assert_array_equal(rows.targets["rsa"][mine], CHAINS["C4"].rsa[alone.position])
    assert rows_of(CHAINS, tasks=["ss3"], n_residues=10, seed=4).position.tolist() != rows.position.tolist()


def test_only_canonical_residues_with_a_target_are_rows():
    odd = Chain("AXCDE", "HH-CE", np.full(5, np.nan), np.full(5, np.nan), np.zeros((5, 3)))
    rows = rows_of({"C": odd}, tasks=["ss3", "rsa"], n_residues=None, seed=0)
    assert rows.position.tolist() == [0, 3, 4]
    assert rows.known("ss3").all() and not rows.known("rsa").any()


def test_kmers_and_windows_are_what_stands_around_a_residue():
    rows = rows_of(CHAINS, tasks=["hse"], n_residues=None, seed=0)
    sequence = CHAINS["C0"].sequence
    mine = [k for k, owner in zip(kmers(CHAINS, rows), rows.owner) if owner == 0]
    assert mine == ["-" + sequence[:2], *(sequence[i - 1 : i + 2] for i in range(1, 39)), sequence[-2:] + "-"]
    window = one_hot(CHAINS, rows, window=2).reshape(-1, 5, 21)
    assert (window.sum(2) == 1).all()
    letters = np.array([*AMINO_ACIDS, "-"])[window[rows.owner == 0].argmax(2)]
    assert "".join(letters[0]) == "--" + sequence[:3] and "".join(letters[20]) == sequence[18:23]


def test_permuted_labels_are_the_same_labels_elsewhere():
    y = np.arange(100)
    found = permuted(y, seed=0, task="ss3")
    assert sorted(found) == y.tolist() and (found != y).sum() > 90
    assert (found == permuted(y, seed=0, task="ss3")).all()
    assert (found != permuted(y, seed=1, task="ss3")).any() and (found != permuted(y, seed=0, task="rsa")).any()


def test_control_labels_hang_on_the_type_alone_and_come_as_often_as_those_of_the_task():
    types = [f"{a}{b}" for a in AMINO_ACIDS for b in AMINO_ACIDS] * 3
    y = np.repeat([0, 1, 2], [600, 500, 100])
    label = control_labels(types, y, seed=0, task="ss3")
    of_type = dict(zip(types, label))
    assert all(of_type[t] == one for t, one in zip(types, label))
    share = np.bincount(list(of_type.values())) / 400
    assert (abs(share - [0.5, 5 / 12, 1 / 12]) < 3 * np.sqrt(0.25 / 400)).all()
    assert (control_labels(types, y, seed=1, task="ss3") != label).any()
    numbers = control_labels(types, np.linspace(0, 1, 1200), seed=0, task="rsa")
    assert numbers.dtype == float and len(set(numbers)) > 200


def test_residue_types_solve_a_control_task_of_types_and_not_one_of_3_mers():
    """Twenty types are linearly separable, so that only longer words make a control (V22: 1.00 against 0.37)."""
    random = generator(0, "types")
    sequence = "".join(random.choice(list(AMINO_ACIDS), size=6000))
    big = {"C": Chain(sequence, "H" * 6000, np.zeros(6000), np.zeros(6000), np.zeros((6000, 3)))}
    rows = rows_of(big, tasks=["ss3"], n_residues=None, seed=0)
    x = one_hot(big, rows, window=0)
    three = np.repeat([0, 1, 2], 2000)
    accuracy = {}
    for name, types in (("identity", list(sequence)), ("3-mer", kmers(big, rows))):
        y = control_labels(types, three, seed=0, task=name)
        probe = fit_probe(x[:3000], y[:3000], kind="classification", penalties=[1e-3], n_classes=3)
        accuracy[name] = (probe(x[3000:]).argmax(1) == y[3000:]).mean()
    assert accuracy["identity"] == 1.0
    assert abs(accuracy["3-mer"] - 0.37) < 0.04
