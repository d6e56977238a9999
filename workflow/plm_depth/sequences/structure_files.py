"""Read one protein chain of a PDB or mmCIF file and lay it along its whole sequence.

What is read, and what becomes of odd things (every count goes to the log of ``sequences.structures``):

* PDB or mmCIF, gzipped or not, told apart by their content. The first model. A chain is named by the author's id, the
  one that papers print (``auth_asym_id`` in mmCIF). Hydrogens, waters and ligands are left out.
* The sequence is the one the file states (``SEQRES``, ``_entity_poly_seq``), so that residues without coordinates keep
  their place; where it states none, it is the residues that have coordinates, and gaps cannot be known.
* Residues go to their place by ``label_seq_id`` in mmCIF; in PDB by the residue numbers if one shift puts them all on
  equal letters, else by a global alignment in which no residue may be left over. Insertion codes are kept as residues.
* A modified residue is read as its parent (selenomethionine as M, and its SE as SD); one without a known parent is X.
  A residue in HETATM records belongs to the chain if it is bonded to it or is a modified residue of its sequence.
* Of alternative conformations one is taken for the whole residue: the one with the largest occupancy of the backbone,
  the first letter among equals. Where two amino acids share a place, the one with the larger occupancy is taken.
"""

import gzip
import io
import itertools
import re
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from Bio.Align import PairwiseAligner
from Bio.Data.PDBData import protein_letters_3to1, protein_letters_3to1_extended
from Bio.PDB import PDBParser
from Bio.PDB.MMCIF2Dict import MMCIF2Dict
from Bio.PDB.PDBExceptions import PDBConstructionException, PDBConstructionWarning

from plm_depth.sequences import SourceError

BACKBONE_ATOMS = ("N", "CA", "C", "O", "CB")
LONGEST_PEPTIDE_BOND = 2.5  # Angstrom between C and the next N: the limit of DSSP; 1.33 is usual
LARGEST_MISMATCH = 0.05  # share of residues whose coordinates may be of another amino acid than the sequence states
ALIGNMENTS = 1000  # equally good alignments that are looked at for the one that gaps only where the chain is broken
LARGEST_COORDINATE = 1e5  # Angstrom; beyond any structure, and a PDB file has room for less
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_NOTHING = frozenset({"", ".", "?"})
_ATOM_COLUMNS = (
    "group_PDB",
    "label_atom_id",
    "label_alt_id",
    "label_comp_id",
    "label_asym_id",
    "label_seq_id",
    "Cartn_x",
    "Cartn_y",
    "Cartn_z",
    "occupancy",
    "B_iso_or_equiv",
)


@dataclass(frozen=True)
class Chain:
    """One chain along its sequence; L residues, A atoms. Coordinates in Angstrom, NaN where missing.

    Attributes:
        chain: the author's id.
        sequence: L upper-case letters, X where unknown.
        coordinates: (L, 5, 3) float32: N, CA, C, O, CB.
        b_factors: (L,) float32, of CA.
        observed: (n,) positions that have coordinates of any atom, ascending.
        bonded: (n,) whether a residue of ``observed`` is bonded to the one before it.
        atom_positions, atom_names, atom_elements, atom_coordinates: every heavy atom: position of its residue, name,
            element, (A, 3) float32; a terminal OXT is among them.
        exact: (L,) whether the residue was standard or a selenomethionine of the amino acid that the sequence states.
        method: in lower case, "predicted" or "unknown".
        resolution: NaN if none is stated.
        release: date of the last revision that the file states, or "".
        is_predicted: whether the file says that its B factors are pLDDT.
        n_modified, n_mismatched: residues read as their parent; of another amino acid than the sequence states.
        left_out: what was not taken, by reason.
    """

    chain: str
    sequence: str
    coordinates: np.ndarray
    b_factors: np.ndarray
    observed: np.ndarray
    bonded: np.ndarray
    atom_positions: np.ndarray
    atom_names: list[str]
    atom_elements: list[str]
    atom_coordinates: np.ndarray
    exact: np.ndarray
    method: str
    resolution: float
    release: str
    is_predicted: bool
    n_modified: int
    n_mismatched: int
    left_out: Counter[str]

    @property
    def is_resolved(self) -> np.ndarray:
        """Return which residues have N, CA and C, (L,) bool."""
        return np.isfinite(self.coordinates[:, :3]).all((1, 2))


@dataclass(frozen=True, slots=True)
class _Atom:
    name: str
    element: str
    alternative: str
    component: str
    occupancy: float
    b_factor: float
    xyz: tuple[float, float, float]


@dataclass(slots=True)
class _Residue:
    number: int
    insertion: str
    hetero: bool
    label: int | None = None  # 1-based place in the stated sequence (mmCIF)
    atoms: list[_Atom] = field(default_factory=list)


@dataclass(slots=True)
class _File:
    chains: dict[str, list[_Residue]]
    stated: dict[str, list[list[str]]]  # by chain: components that the sequence states at each place
    method: str
    resolution: float
    release: str
    is_predicted: bool
    left_out: Counter[str]


def read_chain(path: str | Path, *, chain: str | None = None) -> Chain:
    """Return one chain of a structure file.

    Args:
        path: PDB or mmCIF, plain or gzipped.
        chain: the author's id; None: the only protein chain.

    Raises:
        SourceError: the file is missing, empty, cut, damaged or neither format; there is no such chain, or several
            and none was named; it has no residue with a backbone; it does not fit the sequence that the file states.
    """
    text = _text_of(path)
    file = _read_cif(text, path) if _is_cif(text, path) else _read_pdb(text, path)
    protein = {name: residues for name in file.chains if (residues := _members(file, name))}
    if not protein:
        raise SourceError(
            f"{path}: no protein chain in it; expected residues with CA atoms (its chains: {_names(file.chains)})"
        )
    if chain is None:
        if len(protein) > 1:
            raise SourceError(f"{path}: protein chains {_names(protein)}; name the one that is meant")
        chain = next(iter(protein))
    if chain not in protein:
        raise SourceError(f"{path}: no protein chain {chain!r}; there are: {_names(protein)}")
    return _laid_out(file, chain, protein[chain], path)


def _names(chains: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in chains) or "none"


# ----------------------------------------------------------------------------------------------------------------
# The file


def _text_of(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read as a file ({error.strerror}); expected PDB or mmCIF") from error
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{path}: the gzip file is cut or damaged ({error}); fetch it again") from error
    if not data.strip():
        raise SourceError(f"{path}: empty; expected a PDB or mmCIF file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not text ({error}); expected a PDB or mmCIF file, gzipped or not") from error


def _is_cif(text: str, path: str | Path) -> bool:
    for line in text.splitlines():
        if line.startswith("data_"):
            return True
        if line.startswith(("HEADER", "ATOM  ", "HETATM", "MODEL ", "REMARK", "TITLE ", "CRYST1", "SEQRES", "EXPDTA")):
            return False
        if line.strip() and not line.startswith("#"):
            break
    raise SourceError(f"{path}: neither PDB nor mmCIF; expected a first record such as HEADER or ATOM, or data_")


def _read_pdb(text: str, path: str | Path) -> _File:
    lines = text.rstrip().splitlines()
    if not lines[-1].startswith("END"):
        raise SourceError(
            f"{path}: no END record, its last line is {lines[-1][:30]!r}: the file is cut; fetch it again, or end it "
            "with a line END if it is whole"
        )
    parser = PDBParser(PERMISSIVE=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            structure = parser.get_structure("", io.StringIO(text))
        except (PDBConstructionException, ValueError, IndexError) as error:
            raise SourceError(
                f"{path}: not a sound PDB file: {error}{_place_of(lines)}; correct it, or fetch the file again"
            ) from error
    left_out: Counter[str] = Counter()
    for warning in caught:
        if not issubclass(warning.category, PDBConstructionWarning):
            continue
        said = str(warning.message)
        if "may be missing" not in said:
            continue
        if "occupancy" not in said:
            raise SourceError(
                f"{path}: not a sound PDB file: {said.splitlines()[0].rstrip('.')}; correct it, or fetch the file again"
            )
        left_out["atoms without an occupancy, taken as 0"] += 1
    models = list(structure)
    if not models:
        raise SourceError(f"{path}: no ATOM records in it; expected a PDB file with the atoms of a protein")
    left_out["further models"] += len(models) - 1
    stated: dict[str, list[list[str]]] = defaultdict(list)
    for line in lines:
        if line.startswith("SEQRES"):
            stated[line[11:12]] += [[component] for component in line[19:70].split()]
    chains: dict[str, list[_Residue]] = {}
    for chain in models[0]:
        places: dict[tuple[int, str], _Residue] = {}
        for residue in chain.get_unpacked_list():
            flag, number, insertion = residue.id
            if flag == "W":
                left_out["waters"] += 1
                continue
            place = places.setdefault((number, insertion), _Residue(number, insertion, flag != " "))
            place.hetero &= flag != " "
            for atom in residue.get_unpacked_list():
                place.atoms.append(
                    _Atom(
                        atom.id,
                        (atom.element or "").upper(),
                        atom.altloc.strip(),
                        residue.resname.strip(),
                        float(atom.occupancy or 0.0),
                        float(atom.bfactor),
                        tuple(float(x) for x in atom.coord),
                    )
                )
        chains[chain.id] = list(places.values())
    header = structure.header
    method = str(header.get("structure_method") or "unknown").strip().lower()
    # A crystal structure solved with the help of a model may have the word in its title, but it states its method.
    predicted = method == "unknown" and any(line.startswith("TITLE     ALPHAFOLD") for line in lines)
    revisions = [_iso_date(line[13:22]) for line in lines if line.startswith("REVDAT")]
    return _File(
        chains,
        dict(stated),
        "predicted" if predicted else method,
        float(header["resolution"]) if header.get("resolution") is not None else np.nan,
        revisions[0] if revisions else "",
        predicted,
        left_out,
    )


def _place_of(lines: Sequence[str]) -> str:
    """Return where the first atom with an unreadable number stands, to be put behind what the parser says."""
    for number, line in enumerate(lines, start=1):
        if line.startswith(("ATOM", "HETATM")):
            try:
                int(line[22:26])
                [float(line[a:b]) for a, b in ((30, 38), (38, 46), (46, 54))]
            except ValueError:
                return f" (line {number})"
    return ""


def _iso_date(text: str) -> str:
    """Return 04-DEC-07 as 2007-12-04; anything else as it is."""
    found = re.fullmatch(r"(\d\d)-([A-Z]{3})-(\d\d)", text.strip().upper())
    if not found or found[2] not in _MONTHS:
        return text.strip()
    day, month, year = found.groups()
    century = 19 if int(year) >= 70 else 20  # the archive began in 1971
    return f"{century}{year}-{_MONTHS.index(month) + 1:02d}-{day}"


def _read_cif(text: str, path: str | Path) -> _File:
    try:
        data = MMCIF2Dict(io.StringIO(text))
    except (ValueError, IndexError, KeyError, StopIteration, RuntimeError) as error:
        raise SourceError(f"{path}: not a sound mmCIF file, or cut: {error}; fetch it again") from error
    missing = [name for name in _ATOM_COLUMNS if f"_atom_site.{name}" not in data]
    if missing:
        raise SourceError(f"{path}: no column _atom_site.{missing[0]}; expected an mmCIF file with atoms")
    columns = {key.removeprefix("_atom_site."): value for key, value in data.items() if key.startswith("_atom_site.")}
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1 or not text.endswith(("\n", "\r")):
        raise SourceError(f"{path}: its last atom is cut off: the file is not whole; fetch it again")
    n_atoms = lengths.pop()
    left_out: Counter[str] = Counter()
    models = columns.get("pdbx_PDB_model_num", ["1"] * n_atoms)
    left_out["further models"] += len(set(models)) - 1
    author_chains = columns.get("auth_asym_id", columns["label_asym_id"])
    author_numbers = columns.get("auth_seq_id", columns["label_seq_id"])
    insertions = columns.get("pdbx_PDB_ins_code", ["?"] * n_atoms)
    entities = columns.get("label_entity_id", [""] * n_atoms)
    elements = columns.get("type_symbol", [""] * n_atoms)
    sequences = _stated_sequences(data, path)

    places: dict[tuple[str, ...], tuple[str, _Residue]] = {}
    entity_of: dict[str, str] = {}
    seen = set()
    for i in range(n_atoms):
        if models[i] != models[0]:
            continue
        component, label, chain = columns["label_comp_id"][i], columns["label_seq_id"][i], author_chains[i]
        name = columns["label_atom_id"][i]
        key = (columns["label_asym_id"][i], label, author_numbers[i], insertions[i])
        alternative = "" if columns["label_alt_id"][i] in _NOTHING else columns["label_alt_id"][i]
        if (*key, component, name, alternative) in seen:
            raise SourceError(f"{path}: atom {name} of residue {component} {author_numbers[i]} in chain {chain} twice")
        seen.add((*key, component, name, alternative))
        try:
            atom = _Atom(
                name,
                elements[i].upper(),
                alternative,
                component,
                float(columns["occupancy"][i]),
                float(columns["B_iso_or_equiv"][i]),
                tuple(float(columns[axis][i]) for axis in ("Cartn_x", "Cartn_y", "Cartn_z")),
            )
            hetero = columns["group_PDB"][i] == "HETATM"
            if key not in places:
                number = 0 if author_numbers[i] in _NOTHING else int(author_numbers[i])
                insertion = " " if insertions[i] in _NOTHING else insertions[i]
                place = int(label) if entities[i] in sequences and label not in _NOTHING else None
                places[key] = chain, _Residue(number, insertion, hetero, place)
        except ValueError as error:
            raise SourceError(f"{path}: atom {columns['label_atom_id'][i]} of {component} {label}: {error}") from error
        residue = places[key][1]
        residue.hetero &= hetero
        residue.atoms.append(atom)
        if residue.label is not None and entity_of.setdefault(chain, entities[i]) != entities[i]:
            raise SourceError(f"{path}: chain {chain!r} holds two polymers; expected one")
    chains: dict[str, list[_Residue]] = {chain: [] for chain in author_chains}
    for chain, residue in places.values():
        if residue.atoms[0].component in ("HOH", "WAT", "DOD"):
            left_out["waters"] += 1
        else:
            chains[chain].append(residue)

    def first(*keys: str) -> str:
        return next((data[key][0] for key in keys if data.get(key) and data[key][0] not in _NOTHING), "")

    resolution = first("_refine.ls_d_res_high", "_em_3d_reconstruction.resolution", "_reflns.d_resolution_high")
    predicted = any("plddt" in name.lower() for name in data.get("_ma_qa_metric.name", []))
    revisions = data.get("_pdbx_audit_revision_history.revision_date", [])
    return _File(
        chains,
        {chain: sequences[entity] for chain, entity in entity_of.items()},
        "predicted" if predicted else first("_exptl.method").lower() or "unknown",
        float(resolution) if re.fullmatch(r"\d+(\.\d*)?", resolution) else np.nan,
        revisions[-1] if revisions and revisions[-1] not in _NOTHING else "",
        predicted,
        left_out,
    )


def _stated_sequences(data: MMCIF2Dict, path: str | Path) -> dict[str, list[list[str]]]:
    """Return by entity the components that the file states at each place (several where it is heterogeneous)."""
    sequences: dict[str, dict[int, list[str]]] = defaultdict(dict)
    for entity, number, component in zip(
        data.get("_entity_poly_seq.entity_id", []),
        data.get("_entity_poly_seq.num", []),
        data.get("_entity_poly_seq.mon_id", []),
    ):
        try:
            place = int(number)
        except ValueError:
            raise SourceError(
                f"{path}: _entity_poly_seq.num {number!r} of entity {entity}; expected a whole number: fetch it again"
            ) from None
        sequences[entity].setdefault(place, []).append(component)
    return {entity: [places[number] for number in sorted(places)] for entity, places in sequences.items()}


# ----------------------------------------------------------------------------------------------------------------
# The chain


def _letter(component: str) -> str:
    return protein_letters_3to1_extended.get(component, "X")


def _members(file: _File, chain: str) -> list[_Residue]:
    """Return the residues of a chain that are part of the protein, in the order of the file; empty if it is none."""
    residues = file.chains[chain]
    stated = file.stated.get(chain)
    modified = {c for place in stated or [] for c in place} - set(protein_letters_3to1)
    ends = [_ends(residue) for residue in residues]
    members = []
    for i, residue in enumerate(residues):
        component = residue.atoms[0].component
        if residue.label is not None:
            belongs = True
        elif not residue.hetero:
            belongs = component in protein_letters_3to1_extended or ends[i][1] is not None
        elif component in modified:
            belongs = ends[i][1] is not None
        else:
            # A free amino acid, a ligand or an ion carries no peptide bond to its neighbours.
            belongs = (i > 0 and _are_bonded(ends[i - 1], ends[i])) or (
                i + 1 < len(residues) and _are_bonded(ends[i], ends[i + 1])
            )
        if belongs:
            members.append(residue)
        else:
            file.left_out[f"ligands and ions in chain {chain}"] += 1
    has_protein = any(_ends(residue)[1] is not None for residue in members)
    return members if has_protein else []


def _ends(residue: _Residue) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the coordinates of N, CA and C as they will be taken, None for those there are not."""
    atoms = _taken(residue)[1]
    if residue.atoms[0].component == "CA":  # calcium
        return None, None, None
    return tuple(np.array(atoms[name].xyz) if name in atoms else None for name in ("N", "CA", "C"))


def _are_bonded(before: tuple, after: tuple) -> bool:
    c, n = before[2], after[0]
    return c is not None and n is not None and bool(np.linalg.norm(c - n) <= LONGEST_PEPTIDE_BOND)


def _taken(residue: _Residue) -> tuple[str, dict[str, _Atom]]:
    """Return the component that is taken of a residue, and its heavy atoms by name."""

    def weight(atoms: list[_Atom]) -> tuple[float, float]:
        """Return the occupancy of the backbone, and of everything."""
        return (
            sum(a.occupancy for a in atoms if a.name in BACKBONE_ATOMS),
            sum(a.occupancy for a in atoms),
        )

    by_component: dict[str, list[_Atom]] = defaultdict(list)
    for atom in residue.atoms:
        by_component[atom.component].append(atom)
    component = max(by_component, key=lambda name: weight(by_component[name])[0])  # the first among equals
    by_letter: dict[str, list[_Atom]] = defaultdict(list)
    for atom in by_component[component]:
        by_letter[atom.alternative].append(atom)
    letters = sorted(by_letter, key=lambda x: (x != "", tuple(-w for w in weight(by_letter[x])), x))
    atoms: dict[str, _Atom] = {}
    for letter in letters:
        for atom in by_letter[letter]:
            if atom.element not in ("H", "D"):
                atoms.setdefault(atom.name, atom)
    return component, atoms


def _laid_out(file: _File, chain: str, residues: list[_Residue], path: str | Path) -> Chain:
    taken = [_taken(residue) for residue in residues]
    letters = "".join(_letter(component) for component, _ in taken)
    ends = [_ends(residue) for residue in residues]
    bonded = np.array([False] + [_are_bonded(a, b) for a, b in itertools.pairwise(ends)])
    stated = file.stated.get(chain)
    if stated is None:
        sequence, components = letters, [component for component, _ in taken]
        positions = np.arange(len(residues))
    else:
        if residues[0].label is not None:
            positions = np.array([-1 if r.label is None else r.label - 1 for r in residues])
            if positions.min() < 0 or positions.max() >= len(stated) or (np.diff(positions) <= 0).any():
                raise SourceError(
                    f"{path}: chain {chain!r}: label_seq_id does not fit the {len(stated)} residues of "
                    "_entity_poly_seq; fetch the file again"
                )
            components = [place[0] for place in stated]
            for position, (component, _) in zip(positions, taken):
                if component in stated[position]:  # where several are stated, the one whose atoms are taken
                    components[position] = component
            sequence = "".join(map(_letter, components))
        else:
            components = [place[0] for place in stated]
            sequence = "".join(map(_letter, components))
            plain = all(residue.insertion.strip() == "" for residue in residues)
            numbers = np.array([residue.number for residue in residues]) if plain else None
            try:
                positions = place_residues(letters, sequence, numbers=numbers, bonded=bonded)
            except SourceError as error:
                raise SourceError(f"{path}: chain {chain!r}: {error}") from error
    n_mismatched = sum(letter != sequence[position] for letter, position in zip(letters, positions))
    if n_mismatched > LARGEST_MISMATCH * len(letters):
        raise SourceError(
            f"{path}: chain {chain!r}: {n_mismatched} of {len(letters)} residues with coordinates are of another amino "
            f"acid than the sequence states; expected at most {LARGEST_MISMATCH:.0%}"
        )
    n = len(sequence)
    coordinates = np.full((n, len(BACKBONE_ATOMS), 3), np.nan, np.float32)
    b_factors = np.full(n, np.nan, np.float32)
    exact = np.zeros(n, bool)
    atom_positions, atom_names, atom_elements, xyz = [], [], [], []
    for position, letter, (component, atoms) in zip(positions, letters, taken):
        exact[position] = letter == sequence[position] and (component in protein_letters_3to1 or component == "MSE")
        if "CA" in atoms:
            b_factors[position] = atoms["CA"].b_factor
        for k, name in enumerate(BACKBONE_ATOMS):
            if name in atoms:
                coordinates[position, k] = atoms[name].xyz
        for atom in atoms.values():
            selenium = component == "MSE" and atom.name == "SE"
            atom_positions.append(position)
            atom_names.append("SD" if selenium else atom.name)
            atom_elements.append("S" if selenium else atom.element)
            xyz.append(atom.xyz)
    strange = ~(np.abs(np.array(xyz, float).reshape(-1, 3)) < LARGEST_COORDINATE).all(1)  # true of NaN, too
    if strange.any():
        atom = int(np.argmax(strange))
        raise SourceError(
            f"{path}: chain {chain!r}: atom {atom_names[atom]} of the residue at position {atom_positions[atom]} lies "
            f"at {xyz[atom]}; expected finite coordinates in Angstrom: correct the atom, or leave it out"
        )
    if not np.isfinite(coordinates[:, :3]).all((1, 2)).any():
        raise SourceError(
            f"{path}: chain {chain!r}: no residue has N, CA and C; a model of CA atoms only cannot be "
            "used: give one with its backbone"
        )
    return Chain(
        chain=chain,
        sequence=sequence,
        coordinates=coordinates,
        b_factors=b_factors,
        observed=positions,
        bonded=bonded,
        atom_positions=np.array(atom_positions),
        atom_names=atom_names,
        atom_elements=atom_elements,
        atom_coordinates=np.array(xyz, np.float32),
        exact=exact,
        method=file.method,
        resolution=file.resolution,
        release=file.release,
        is_predicted=file.is_predicted,
        n_modified=sum(c not in protein_letters_3to1 and _letter(c) != "X" for c in components),
        n_mismatched=n_mismatched,
        left_out=+file.left_out,
    )


def place_residues(
    observed: str, sequence: str, *, numbers: np.ndarray | None = None, bonded: np.ndarray | None = None
) -> np.ndarray:
    """Return the position of each observed residue in the sequence, (n,) ascending.

    One shift of the residue numbers is taken if it puts every residue on its letter. Otherwise a global alignment in
    which every observed residue has a place and as few as possible stand on another letter; among equally good ones
    the one that opens its gaps where the chain is broken.

    Args:
        observed: letters of the residues with coordinates, in order.
        sequence: the whole sequence.
        numbers: (n,) their numbers in the file, None if they cannot be trusted (insertion codes).
        bonded: (n,) whether each is bonded to the one before it.

    Raises:
        SourceError: more residues than the sequence has.
    """
    n, length = len(observed), len(sequence)
    if n > length:
        raise SourceError(f"{n} residues with coordinates, but the sequence that the file states has {length}")
    letters, wanted = np.array(list(observed)), np.array(list(sequence))
    if numbers is not None and (np.diff(numbers) > 0).all() and numbers[-1] - numbers[0] < length:
        shifts = range(numbers[-1] - length + 1, numbers[0] + 1)
        fitting = [shift for shift in shifts if (wanted[numbers - shift] == letters).all()]
        if fitting:  # several fit only in repeats; numbers usually begin at 1
            return numbers - min(fitting, key=lambda shift: (abs(shift - 1), shift))
    aligner = PairwiseAligner(mode="global", match_score=1.0, mismatch_score=-1.0)
    aligner.open_insertion_score = aligner.extend_insertion_score = -4.0 * (n + 1)  # no residue may be left over
    aligner.open_internal_deletion_score, aligner.extend_internal_deletion_score = -0.1, 0.0
    aligner.open_end_deletion_score = aligner.extend_end_deletion_score = 0.0

    def positions_of(alignment) -> np.ndarray:
        target, query = alignment.indices
        return target[query >= 0]

    def broken_bonds(positions: np.ndarray) -> int:
        return int(((np.diff(positions) > 1) & bonded[1:]).sum())

    candidates = map(positions_of, itertools.islice(aligner.align(sequence, observed), ALIGNMENTS))
    positions = next(candidates) if bonded is None else min(candidates, key=broken_bonds)
    if (positions < 0).any():
        raise SourceError(f"the {n} residues with coordinates cannot be laid along the {length} of the sequence")
    return positions
