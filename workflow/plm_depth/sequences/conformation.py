"""What is read off a backbone: 3Di states, secondary structure, and how much of a residue is exposed.

All functions take coordinates along the sequence, NaN where missing, and give one value a residue; what cannot be known
is "-" or NaN. None of them depends on where the molecule lies or how it is turned (solvent accessibility, which samples
spheres, to about 0.02).

3Di (mini3di, the encoder of Foldseek): the residues without a complete backbone are left out and the rest joined, as
Foldseek does, so that the letters at both sides of a gap or break describe a chain that is not there; the first and the
last residue always get the letter for an undefined state, D. Secondary structure (MDTraj, after DSSP 2.2): the chain is
cut at every break, so that no pattern reaches over it. Solvent accessibility (MDTraj, Shrake and Rupley) needs side
chains: of a file that has only backbones it is not given, and ``half_sphere_exposure`` stands in.
"""

from functools import cache

import mdtraj
import numpy as np
from Bio.Data.PDBData import protein_letters_1to3, residue_sasa_scales
from Bio.PDB.ic_data import residue_atom_bond_state
from mini3di import Encoder

from plm_depth.sequences import SourceError
from plm_depth.sequences.structure_files import BACKBONE_ATOMS, LONGEST_PEPTIDE_BOND, Chain

COMPLETE = 0.9  # share of the residues that must have their side chains before accessibility is given
SPHERE_POINTS = 960
PROBE = 0.14  # nm, a water molecule
HALF_SPHERE = 12.0  # Angstrom
N, CA, C, O, CB = range(len(BACKBONE_ATOMS))  # noqa: E741
# Largest accessible area of each amino acid, square Angstrom: theoretical values of Tien et al. 2013,
# https://doi.org/10.1371/journal.pone.0080635
_LARGEST = {letter: residue_sasa_scales["Wilke"][name.upper()] for letter, name in protein_letters_1to3.items()}
_SIMPLE = str.maketrans("HGIEBTSC-", "HHHEECCC-")


def three_di(coordinates: np.ndarray) -> np.ndarray:
    """Return the 3Di state of each residue, (L,) upper-case letters, "-" where N, CA or C is missing.

    Args:
        coordinates: (L, 5, 3) N, CA, C, O, CB in Angstrom; a missing CB is computed from the backbone.
    """
    there = np.isfinite(coordinates[:, : C + 1]).all((1, 2))
    states = np.full(len(coordinates), "-")
    if there.any():
        # Distances are differences of squares in the encoder: far from the origin they would lose their digits.
        xyz = _centred(coordinates[there])
        encoder = _encoder()
        states[there] = list(encoder.build_sequence(encoder.encode_atoms(xyz[:, CA], xyz[:, CB], xyz[:, N], xyz[:, C])))
    return states


@cache
def _encoder() -> Encoder:
    return Encoder()


def _centred(coordinates: np.ndarray) -> np.ndarray:
    xyz = coordinates.astype(np.float64)
    return xyz - np.nanmean(xyz[:, CA], axis=0)


def segments(coordinates: np.ndarray) -> np.ndarray:
    """Return for each residue the number of its unbroken stretch, (L,) int from 0; -1 without N, CA, C and O."""
    whole = np.isfinite(coordinates[:, : O + 1]).all((1, 2))
    with np.errstate(invalid="ignore"):
        bonded = np.linalg.norm(coordinates[1:, N] - coordinates[:-1, C], axis=1) <= LONGEST_PEPTIDE_BOND
    starts = whole & ~np.concatenate([[False], bonded & whole[:-1]])
    return np.where(whole, np.cumsum(starts) - 1, -1)


def secondary_structure(coordinates: np.ndarray, sequence: str) -> np.ndarray:
    """Return the DSSP letter of each residue, (L,): H G I E B T S, C for none of them, "-" without N, CA, C and O.

    Args:
        coordinates: (L, 5, 3) N, CA, C, O, CB in Angstrom.
        sequence: L letters; proline has no hydrogen to donate.
    """
    stretch = segments(coordinates)
    there = np.flatnonzero(stretch >= 0)
    states = np.full(len(coordinates), "-")
    if not len(there):
        return states
    topology = mdtraj.Topology()
    elements = [mdtraj.element.Element.getBySymbol(name[0]) for name in BACKBONE_ATOMS[: O + 1]]
    chain, previous = None, -1
    for i in there:
        if stretch[i] != previous:
            chain, previous = topology.add_chain(), stretch[i]
        # The hydrogen of the first residue of a stretch is placed by a residue that is not bonded to it; no pattern
        # counts a bond of that hydrogen, because each asks for the residue before its donor in the same chain.
        residue = topology.add_residue("PRO" if sequence[i] == "P" else "ALA", chain)
        for atom, element in zip(BACKBONE_ATOMS, elements):
            topology.add_atom(atom, element, residue)
    xyz = _centred(coordinates[there])[:, : O + 1].reshape(1, -1, 3) / 10  # MDTraj counts in nm
    letters = mdtraj.compute_dssp(mdtraj.Trajectory(xyz.astype(np.float32), topology), simplified=False)[0]
    states[there] = np.where(letters == " ", "C", letters)
    return states


def three_states(ss8: np.ndarray) -> np.ndarray:
    """Return H (H, G, I), E (E, B) or C (the rest) for DSSP letters; "-" stays."""
    return np.array(list("".join(ss8).translate(_SIMPLE)), dtype="U1")


def half_sphere_exposure(coordinates: np.ndarray) -> np.ndarray:
    """Return the number of CA atoms within 12 Angstrom on the side of CB, (L,) float, NaN without N, CA and C.

    The more, the deeper buried: a proxy for solvent exposure that needs no side chains (Hamelryck 2005,
    https://doi.org/10.1002/prot.20379). Where there is no CB (glycine), its direction is N turned by -120 degrees
    around the axis from CA to C.
    """
    there = np.flatnonzero(np.isfinite(coordinates[:, : C + 1]).all((1, 2)))
    exposure = np.full(len(coordinates), np.nan)
    if not len(there):
        return exposure
    xyz = _centred(coordinates[there])
    to_n, axis = xyz[:, N] - xyz[:, CA], xyz[:, C] - xyz[:, CA]
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    cosine, sine = np.cos(np.radians(-120.0)), np.sin(np.radians(-120.0))
    along = (axis * to_n).sum(1, keepdims=True)
    turned = to_n * cosine + np.cross(axis, to_n) * sine + axis * along * (1 - cosine)
    has_cb = np.isfinite(xyz[:, CB]).all(1, keepdims=True)
    to_cb = np.where(has_cb, xyz[:, CB] - xyz[:, CA], turned)
    for k, (i, direction) in enumerate(zip(there, to_cb)):  # a row at a time: chains may be long
        away = xyz[:, CA] - xyz[k, CA]
        exposure[i] = ((np.linalg.norm(away, axis=1) < HALF_SPHERE) & (away @ direction > 0)).sum()
    return exposure


def relative_accessibility(chain: Chain) -> tuple[np.ndarray, float]:
    """Return the relative solvent accessibility of each residue, (L,) float, and the share of complete side chains.

    The accessible area of the chain by itself, without waters, ligands and other chains, over the largest area of the
    amino acid. NaN where a residue lacks a heavy atom, is modified or unknown; NaN everywhere if fewer than 90 % of the
    residues with a backbone have their side chains, because what is missing would seem to leave the others exposed.
    """
    n = len(chain.sequence)
    found: list[set[str]] = [set() for _ in range(n)]
    for position, name in zip(chain.atom_positions, chain.atom_names):
        found[position].add(name)
    wanted = {letter: _heavy_atoms(letter) for letter in _LARGEST}
    complete = np.array([exact and wanted[aa] <= atoms for exact, aa, atoms in zip(chain.exact, chain.sequence, found)])
    resolved = chain.is_resolved
    share = float((complete & resolved).sum() / resolved.sum())
    relative = np.full(n, np.nan)
    if share < COMPLETE:
        return relative, share
    topology = mdtraj.Topology()
    all_of_it = topology.add_chain()
    residues, order = [], np.argsort(chain.atom_positions, kind="stable")
    for k in order:
        position = chain.atom_positions[k]
        if not residues or residues[-1] != position:
            residues.append(position)
            residue = topology.add_residue("UNK", all_of_it)
        try:
            element = mdtraj.element.Element.getBySymbol(chain.atom_elements[k].capitalize())
        except KeyError as error:
            raise SourceError(
                f"chain {chain.chain!r}: atom {chain.atom_names[k]!r} at position {position} is of the element "
                f"{chain.atom_elements[k]!r}; expected a chemical symbol"
            ) from error
        topology.add_atom(chain.atom_names[k], element, residue)
    xyz = chain.atom_coordinates[order].astype(np.float64)
    trajectory = mdtraj.Trajectory(((xyz - xyz.mean(0)) / 10).astype(np.float32)[None], topology)
    areas = 100 * mdtraj.shrake_rupley(trajectory, probe_radius=PROBE, n_sphere_points=SPHERE_POINTS, mode="residue")[0]
    for position, area in zip(residues, areas):
        if complete[position]:
            relative[position] = area / _LARGEST[chain.sequence[position]]
    return relative, share


def _heavy_atoms(letter: str) -> set[str]:
    """Return the names of the heavy atoms of an amino acid inside a chain."""
    side_chain = set(residue_atom_bond_state.get(letter, ()))
    return {"N", "CA", "C", "O"} | (set() if letter == "G" else {"CB"}) | side_chain
