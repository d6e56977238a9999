"""Structures become tables: every residue at its place, what is missing stays missing, bad files say what is wrong."""

import csv
import gzip
import io
import itertools
import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from Bio.PDB import MMCIFIO, PDBParser
from Bio.PDB.HSExposure import HSExposureCB
from hypothesis import given, settings
from hypothesis import strategies as st

from plm_depth.sequences import SourceError, conformation
from plm_depth.sequences.accessions import DOWNLOADS, entries_of, parse_entry
from plm_depth.sequences.structure_files import BACKBONE_ATOMS, Chain, place_residues, read_chain
from plm_depth.sequences.structures import main, rows_of, structures
from plm_depth.tables import BACKBONE, STRUCTURES, as_table, read_table

ROOT = Path(__file__).parents[3]
MINI = ROOT / "resources" / "mini" / "structures"
FIXTURES = ROOT / "tests" / "fixtures" / "structures"
WHOLE = FIXTURES / "1a8o.cif"
LOG = logging.getLogger("test")
NAN = float("nan")


def mini_rows() -> list[dict[str, str]]:
    with open(MINI / "structures.tsv", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def dssp() -> dict[str, dict[str, str]]:
    with open(FIXTURES / "dssp.tsv", encoding="utf-8") as file:
        return {row["structure"]: row for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module")
def mini_tables(tmp_path_factory) -> tuple[pl.DataFrame, pl.DataFrame, Path]:
    folder = tmp_path_factory.mktemp("mini")
    structures(
        files=sorted(MINI.glob("*.pdb")),
        structures=folder / "s.parquet",
        backbone=folder / "b.parquet",
        fasta=folder / "s.fasta",
        log=LOG,
    )
    frames = [
        pl.from_arrow(read_table(folder / name, schema))
        for name, schema in (("s.parquet", STRUCTURES), ("b.parquet", BACKBONE))
    ]
    return (*frames, folder / "s.fasta")


# ----------------------------------------------------------------------------------------------------------------
# Small files


def atom_line(
    serial: int,
    name: str,
    component: str,
    number: int,
    xyz: tuple[float, float, float],
    *,
    chain: str = "A",
    alt: str = " ",
    occupancy: float = 1.0,
    b: float = 20.0,
    record: str = "ATOM",
    element: str | None = None,
) -> str:
    x, y, z = xyz
    return (
        f"{record:<6}{serial:>5} {name if len(name) == 4 else ' ' + name:<4}{alt}{component:>3} {chain}{number:>4}"
        f"    {x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}{b:6.2f}          {element or name[0]:>2}\n"
    )


def backbone_of(i: float) -> dict[str, tuple[float, float, float]]:
    """Return an extended backbone: residue i + 1 begins 1.33 Angstrom after the C of residue i."""
    x = 3.79 * i
    side = 1 if int(i) % 2 else -1
    return {
        "N": (x, 0.0, 0.0),
        "CA": (x + 1.2, 0.8 * side, 0.0),
        "C": (x + 2.46, 0.0, 0.0),
        "O": (x + 2.46, -1.23 * side, 0.0),
        "CB": (x + 1.2, 1.6 * side, 1.2),
    }


THREE = {"A": "ALA", "G": "GLY", "K": "LYS", "M": "MET", "S": "SER", "V": "VAL", "H": "HIS", "L": "LEU"}


def pdb_text(
    letters: str,
    *,
    at: list[int] | None = None,
    numbers: list[int] | None = None,
    seqres: str | None = None,
    head: str = "",
    chain: str = "A",
    b: float = 20.0,
) -> str:
    """Return a PDB file of an extended chain; ``at``: where in space its residues are, ``numbers``: how they count."""
    at = list(range(len(letters))) if at is None else at
    numbers = [i + 1 for i in at] if numbers is None else numbers
    text = "HEADER    TEST\n" + head
    components = [THREE[x] for x in seqres or ""]
    for k in range(0, len(components), 13):
        text += f"SEQRES {k // 13 + 1:>3} {chain} {len(components):>4}  {' '.join(components[k : k + 13])}\n"
    serial = 0
    for letter, place, number in zip(letters, at, numbers):
        for name, xyz in backbone_of(place).items():
            if not (name == "CB" and letter == "G"):
                serial += 1
                text += atom_line(serial, name, THREE[letter], number, xyz, chain=chain, b=b)
    return text + "TER\nEND\n"


def write(folder: Path, text: str, name: str = "x.pdb") -> Path:
    path = folder / name
    path.write_text(text, encoding="ascii")
    return path


def read(folder: Path, text: str, chain: str | None = None, name: str = "x.pdb") -> Chain:
    return read_chain(write(folder, text, name), chain=chain)


def complaint(folder: Path, text: str, chain: str | None = None, name: str = "x.pdb") -> str:
    with pytest.raises(SourceError) as caught:
        read(folder, text, chain, name)
    assert name in str(caught.value)
    return str(caught.value)


def turned(coordinates: np.ndarray, seed: int, far: float = 300.0) -> np.ndarray:
    """Return coordinates after a random rotation and a shift."""
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] *= -1
    return (coordinates.astype(float) @ q.T + rng.uniform(-far, far, 3)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------------
# The structures of the mini study


def test_the_mini_structures_give_their_sequences_three_di_strings_and_breaks_exactly(mini_tables):
    table, residues, _ = mini_tables
    expected = mini_rows()
    assert len(table) == len(expected) == 14
    for row in expected:
        name = Path(row["file"]).stem
        structure = table.row(by_predicate=pl.col("structure_id") == name, named=True)
        rows = residues.filter(pl.col("sequence_id") == name)
        assert structure["sequence"] == row["sequence"] == "".join(rows["aa"])
        assert "".join(rows["three_di"]) == row["three_di"]
        assert structure["n_breaks"] == int(row["chain_breaks"])
        assert rows["after_break"].sum() == int(row["chain_breaks"]) + 1
        assert structure["chain"] == row["chain"] and structure["n_residues"] == int(row["length"]) == len(rows)
        assert rows["position"].to_list() == list(range(len(rows)))


def test_backbones_without_side_chains_get_no_accessibility_but_a_proxy(mini_tables):
    table, residues, _ = mini_tables
    assert residues["rsa"].is_nan().all() and (table["rsa_share"] < 0.2).all()
    assert residues["hse_up"].is_between(0, 60).all()
    assert residues["plddt"].is_nan().all() and not table["is_predicted"].any()


def test_the_sequences_of_the_structures_can_be_drawn_from(mini_tables):
    table, _, fasta = mini_tables
    text = fasta.read_text()
    found = {block.split("\n")[0]: block.split("\n", 1)[1].replace("\n", "") for block in text.split(">")[1:]}
    assert found == dict(zip(table["structure_id"], table["sequence"]))
    assert max(map(len, text.splitlines())) == 60


def test_secondary_structure_agrees_with_dssp():
    reference = dssp()
    n = different = 0
    for path in [*sorted(MINI.glob("*.pdb")), WHOLE]:
        chain = read_chain(path)
        states = conformation.secondary_structure(chain.coordinates, chain.sequence)
        wanted = reference[path.stem]["ss8"]
        assert len(states) == len(wanted)
        n += len(states)
        different += sum(a != b for a, b in zip(states, wanted))
    assert n == 2214 and different <= 2  # two residues of 7cfn_N, a turn for one program and not for the other


def test_accessible_area_agrees_with_dssp():
    chain = read_chain(WHOLE)
    relative, share = conformation.relative_accessibility(chain)
    assert share == 1.0
    area = relative * [conformation._LARGEST[aa] for aa in chain.sequence]
    wanted = np.array([float(x) for x in dssp()["1a8o"]["accessible_area"].split(",")])
    # The programs differ in the radii of the atoms.
    assert np.corrcoef(area, wanted)[0, 1] > 0.995
    assert area.sum() == pytest.approx(wanted.sum(), rel=0.03)
    assert relative.min() >= 0 and 0.9 < relative.max() < 1.2


def test_the_proxy_is_the_half_sphere_exposure_of_biopython_and_follows_accessibility():
    for path in (MINI / "1gbt_A.pdb", MINI / "2xhe_B.pdb"):
        model = PDBParser(QUIET=True).get_structure("x", path)[0]
        library = HSExposureCB(model)
        wanted = [
            library[(r.parent.id, r.id)][0] if (r.parent.id, r.id) in library else None for r in model.get_residues()
        ]
        found = conformation.half_sphere_exposure(read_chain(path).coordinates)
        compared = [(a, b) for a, b in zip(found, wanted) if b is not None]
        assert len(compared) >= len(wanted) - 2
        assert all(a == b for a, b in compared)
    chain = read_chain(WHOLE)
    relative, _ = conformation.relative_accessibility(chain)
    ranks = [np.argsort(np.argsort(x)) for x in (conformation.half_sphere_exposure(chain.coordinates), relative)]
    assert np.corrcoef(*ranks)[0, 1] < -0.6


@pytest.mark.parametrize("seed", range(3))
def test_a_molecule_that_is_moved_and_turned_keeps_all_its_states(seed):
    chain = read_chain(WHOLE)
    moved = turned(np.concatenate([chain.coordinates.reshape(-1, 3), chain.atom_coordinates]), seed)
    n = chain.coordinates.size // 3
    coordinates = moved[:n].reshape(chain.coordinates.shape)
    for state in (
        conformation.three_di,
        conformation.half_sphere_exposure,
        lambda xyz: conformation.secondary_structure(xyz, chain.sequence),
    ):
        assert list(state(coordinates)) == list(state(chain.coordinates))
    after = conformation.relative_accessibility(
        Chain(**{**vars(chain), "coordinates": coordinates, "atom_coordinates": moved[n:]})
    )[0]
    assert np.abs(after - conformation.relative_accessibility(chain)[0]).max() < 0.03


def test_a_mirrored_molecule_does_not_keep_its_states():
    chain = read_chain(MINI / "4cup_A.pdb")
    mirrored = chain.coordinates * np.array([-1, 1, 1], np.float32)
    assert list(conformation.three_di(mirrored)) != list(conformation.three_di(chain.coordinates))


def test_three_states_join_helices_and_strands():
    assert "".join(conformation.three_states(np.array(list("HGIEBTSC-")))) == "HHHEECCC-"


# ----------------------------------------------------------------------------------------------------------------
# Formats


def frame(chain: Chain) -> pl.DataFrame:
    return pl.from_arrow(as_table(rows_of("x", chain)[1], BACKBONE))


@pytest.mark.parametrize("name", ["1a8o_A", "2xhe_B", "4zhl_U"])
def test_mmcif_written_from_a_pdb_file_and_gzipped_gives_the_same_table(tmp_path, name):
    path = MINI / f"{name}.pdb"
    writer = MMCIFIO()
    writer.set_structure(PDBParser(QUIET=True).get_structure("x", path))
    text = io.StringIO()
    writer.save(text)
    cif = write(tmp_path, text.getvalue(), "x.cif")
    zipped = tmp_path / "zipped"  # told apart by content, not by name
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    original = read_chain(path)
    assert frame(original).equals(frame(read_chain(cif)))
    assert frame(original).equals(frame(read_chain(zipped)))
    shifted = Chain(**{**vars(original), "coordinates": original.coordinates + 1})
    assert not frame(original).equals(frame(shifted))


def test_a_whole_entry_gives_the_chain_of_the_mini_study_and_its_header():
    chain, mini = read_chain(WHOLE), read_chain(MINI / "1a8o_A.pdb")
    assert chain.sequence == mini.sequence and chain.n_modified == 4  # selenomethionines
    assert np.array_equal(chain.coordinates, mini.coordinates, equal_nan=True)
    assert (chain.method, chain.resolution, chain.chain) == ("x-ray diffraction", 1.7, "A")
    assert chain.left_out == {"waters": 88}
    assert chain.atom_names.count("SD") == 4 and "SE" not in chain.atom_names


def test_a_pdb_header_gives_method_resolution_and_the_last_revision(tmp_path):
    head = (
        "EXPDTA    X-RAY DIFFRACTION\n"
        "REVDAT   2   04-DEC-07 1ABC    1       VERSN\nREVDAT   1   01-JAN-98 1ABC    0\n"
        "REMARK   2 RESOLUTION.    1.90 ANGSTROMS.\n"
    )
    chain = read(tmp_path, pdb_text("GAVK", head=head))
    assert (chain.method, chain.resolution, chain.release) == ("x-ray diffraction", 1.9, "2007-12-04")
    bare = read(tmp_path, pdb_text("GAVK"))
    assert (bare.method, bare.release) == ("unknown", "") and np.isnan(bare.resolution)


# ----------------------------------------------------------------------------------------------------------------
# Missing residues


def test_residues_without_coordinates_keep_their_place_in_mmcif(tmp_path):
    lines = WHOLE.read_text().splitlines(keepends=True)
    kept = [x for x in lines if not (x.startswith("ATOM") and x.split()[8] in ("11", "12", "13"))]  # label_seq_id
    assert 15 < len(lines) - len(kept) < 40
    whole, chain = read_chain(WHOLE), read(tmp_path, "".join(kept), name="x.cif")
    assert chain.sequence == whole.sequence
    assert np.flatnonzero(~chain.is_resolved).tolist() == [10, 11, 12]
    assert np.array_equal(chain.coordinates[13:], whole.coordinates[13:], equal_nan=True)
    structure, rows = rows_of("x", chain)
    assert (structure["n_missing"], structure["n_breaks"]) == (3, 1)
    for column in ("three_di", "ss8", "ss3"):
        assert [i for i, state in enumerate(rows[column]) if state == "-"] == [10, 11, 12]
    for column in ("rsa", "hse_up"):
        assert np.flatnonzero(np.isnan(rows[column])).tolist() == [10, 11, 12]
    assert np.flatnonzero(rows["after_break"]).tolist() == [0, 13]


def test_residues_without_coordinates_keep_their_place_in_pdb_by_their_numbers(tmp_path):
    chain = read(tmp_path, pdb_text("AAVK", at=[1, 4, 5, 7], numbers=[12, 15, 16, 18], seqres="GAAAAVGKM"))
    assert chain.sequence == "GAAAAVGKM"
    assert np.flatnonzero(chain.is_resolved).tolist() == [1, 4, 5, 7]
    assert chain.bonded.tolist() == [False, False, True, False]


def test_residues_with_odd_numbers_are_laid_along_the_sequence_where_the_chain_is_broken(tmp_path):
    # By letters alone the first A could be any of the run; the bond between it and M says which it is.
    text = pdb_text("MAVK", at=[0, 1, 9, 10], numbers=[1, 2, 3, 4], seqres="MAAAAVK")
    chain = read(tmp_path, text)
    assert np.flatnonzero(chain.is_resolved).tolist() == [0, 1, 5, 6]


def test_a_sequence_that_the_file_does_not_state_is_the_observed_one(tmp_path):
    chain = read(tmp_path, pdb_text("GAVK", at=[0, 1, 5, 6]))
    assert chain.sequence == "GAVK" and chain.is_resolved.all()
    assert chain.bonded.tolist() == [False, True, False, True]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_gapped_part_of_a_sequence_is_laid_out_on_equal_letters(data):
    sequence = data.draw(st.text("AGKV", min_size=2, max_size=30))
    kept = data.draw(st.lists(st.integers(0, len(sequence) - 1), min_size=1, unique=True).map(sorted))
    observed = "".join(sequence[i] for i in kept)
    bonded = np.array([False] + [b == a + 1 for a, b in itertools.pairwise(kept)])
    positions = place_residues(observed, sequence, bonded=bonded)
    assert (np.diff(positions) > 0).all() and "".join(sequence[i] for i in positions) == observed
    assert place_residues(observed, sequence, numbers=np.array(kept) + 1, bonded=bonded).tolist() == kept


def test_a_mutated_residue_is_counted_and_too_many_are_an_error(tmp_path):
    sequence = "GAVKSMLHGAVKSMLHGAVKSMLHGAVKSMLH"
    chain = read(tmp_path, pdb_text(sequence[:9] + "V" + sequence[10:], seqres=sequence))
    assert chain.n_mismatched == 1 and chain.sequence == sequence and not chain.exact[9]
    said = complaint(tmp_path, pdb_text("AAAAAAAA", seqres="AAAAVVAA"))
    assert "2 of 8 residues" in said and "at most 5%" in said


def test_more_residues_than_the_sequence_has_are_an_error(tmp_path):
    assert "5 residues with coordinates" in complaint(tmp_path, pdb_text("AAVKG", seqres="AAVK"))


def test_a_residue_without_all_of_its_backbone_is_missing_but_keeps_what_it_has(tmp_path):
    lines = pdb_text("GAVKS").splitlines(keepends=True)
    chain = read(tmp_path, "".join(x for x in lines if x[12:16] != " C  " or "VAL" not in x))
    assert np.flatnonzero(~chain.is_resolved).tolist() == [2]
    assert np.isfinite(chain.coordinates[2, BACKBONE_ATOMS.index("CA")]).all()
    assert chain.bonded.tolist() == [False, True, True, False, True]
    assert conformation.three_di(chain.coordinates)[2] == "-"
    assert rows_of("x", chain)[1]["after_break"].tolist() == [True, False, False, True, False]
    chain = read(tmp_path, "".join(x for x in lines if x[12:16] != " N  " or "VAL" not in x))
    assert rows_of("x", chain)[1]["after_break"].tolist() == [True, False, False, False, False]


def test_no_pattern_of_secondary_structure_reaches_over_a_break():
    chain = read_chain(MINI / "4cup_A.pdb")
    whole = conformation.secondary_structure(chain.coordinates, chain.sequence)
    start = "".join(whole).index("HHHHHHHHHH")
    cut = start + 5
    broken = chain.coordinates.copy()
    broken[cut:] += np.array([0, 0, 500], np.float32)
    apart = conformation.secondary_structure(broken, chain.sequence)
    halves = [
        conformation.secondary_structure(chain.coordinates[part], chain.sequence[part])
        for part in (slice(0, cut), slice(cut, None))
    ]
    assert list(apart) == [*halves[0], *halves[1]] and list(apart) != list(whole)
    assert conformation.segments(broken).tolist() == [0] * cut + [1] * (len(broken) - cut)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_very_short_chains_have_states(n):
    xyz = read_chain(MINI / "1lcd_A.pdb").coordinates[:n]
    assert len(conformation.three_di(xyz)) == n and set(conformation.three_di(xyz)[[0, -1]]) == {"D"}
    assert set(conformation.secondary_structure(xyz, "M" * n)) <= set("CST")
    assert np.isfinite(conformation.half_sphere_exposure(xyz)).all()


def test_a_chain_without_any_backbone_has_no_states():
    xyz = np.full((3, 5, 3), NAN, np.float32)
    assert set(conformation.three_di(xyz)) == set(conformation.secondary_structure(xyz, "AAA")) == {"-"}
    assert np.isnan(conformation.half_sphere_exposure(xyz)).all()


# ----------------------------------------------------------------------------------------------------------------
# Odd residues


def test_of_alternative_conformations_one_is_taken_whole(tmp_path):
    lines = pdb_text("GAV").splitlines(keepends=True)
    serial, extra = 100, []
    for name, xyz in backbone_of(1).items():
        for alternative, occupancy, shift in (("A", 0.4, 0.0), ("B", 0.6, 0.5)):
            serial += 1
            # The single atom CB is more often at A; the residue as a whole is more often at B.
            share = 1 - occupancy if name == "CB" else occupancy
            moved = (xyz[0], xyz[1], xyz[2] + shift)
            extra.append(atom_line(serial, name, "ALA", 2, moved, alt=alternative, occupancy=share))
    lines = [x for x in lines if " ALA " not in x]
    at = next(i for i, x in enumerate(lines) if " VAL " in x)
    chain = read(tmp_path, "".join(lines[:at] + extra + lines[at:]))
    assert chain.sequence == "GAV"
    assert np.allclose(chain.coordinates[1, :, 2] - [backbone_of(1)[x][2] for x in BACKBONE_ATOMS], 0.5, atol=1e-3)


def test_of_two_amino_acids_at_one_place_the_more_frequent_is_taken(tmp_path):
    lines = pdb_text("GAV").splitlines(keepends=True)
    extra, serial = [], 100
    for component, alternative, occupancy in (("ALA", "A", 0.3), ("SER", "B", 0.7)):
        for name, xyz in backbone_of(1).items():
            serial += 1
            extra.append(atom_line(serial, name, component, 2, xyz, alt=alternative, occupancy=occupancy))
    lines = [x for x in lines if " ALA " not in x]
    at = next(i for i, x in enumerate(lines) if " VAL " in x)
    assert read(tmp_path, "".join(lines[:at] + extra + lines[at:])).sequence == "GSV"


def test_insertion_codes_are_residues_of_their_own(tmp_path):
    lines = pdb_text("GAVK", numbers=[5, 6, 6, 7], seqres="MGAVKS").splitlines(keepends=True)
    lines = [x[:26] + "A" + x[27:] if " VAL " in x and x.startswith("ATOM") else x for x in lines]
    chain = read(tmp_path, "".join(lines))
    assert chain.sequence == "MGAVKS" and np.flatnonzero(chain.is_resolved).tolist() == [1, 2, 3, 4]


def hetero(text: str, component: str, instead: str) -> str:
    """Return a file in which one kind of residue is a modified one, in HETATM records."""
    lines = []
    for line in text.splitlines(keepends=True):
        if line.startswith("ATOM") and f" {component} " in line:
            line = "HETATM" + line[6:].replace(f" {component} ", f" {instead} ")
        elif line.startswith("SEQRES"):
            line = line.replace(component, instead)
        lines.append(line)
    return "".join(lines)


def test_modified_residues_are_read_as_their_parent_and_unknown_ones_as_x(tmp_path):
    for seqres in (None, "GAMKV"):
        chain = read(tmp_path, hetero(pdb_text("GAMKV", seqres=seqres), "MET", "MSE"))
        assert chain.sequence == "GAMKV" and chain.n_modified == 1 and chain.exact[2]
        chain = read(tmp_path, hetero(pdb_text("GASKV", seqres=seqres and "GASKV"), "SER", "SEP"))
        assert chain.sequence == "GASKV" and chain.n_modified == 1 and not chain.exact[2]
        chain = read(tmp_path, hetero(pdb_text("GASKV", seqres=seqres and "GASKV"), "SER", "UNL"))
        assert chain.sequence == "GAXKV" and rows_of("x", chain)[0]["n_unknown"] == 1


def test_ligands_waters_and_ions_are_left_out_and_counted(tmp_path):
    text = pdb_text("GAVK").removesuffix("END\n")
    for k, (name, xyz) in enumerate(backbone_of(40).items()):  # a free amino acid far away
        text += atom_line(50 + k, name, "SER", 301, xyz, record="HETATM")
    text += atom_line(60, "CA", "CA", 302, (9, 9, 9), record="HETATM", element="CA")
    text += atom_line(62, "CA", "CA", 304, (9, 9, 19), element="CA")  # also where it is not said to be a ligand
    text += atom_line(61, "O", "HOH", 303, (12, 9, 9), record="HETATM")
    chain = read(tmp_path, text + "END\n")
    assert chain.sequence == "GAVK"
    assert chain.left_out == {"ligands and ions in chain A": 3, "waters": 1}


def test_hydrogens_are_not_among_the_atoms(tmp_path):
    text = pdb_text("GAVK").removesuffix("TER\nEND\n")
    text += atom_line(90, "HA", "LYS", 4, (1, 2, 3), element="H")
    chain = read(tmp_path, text + "TER\nEND\n")
    assert "HA" not in chain.atom_names and len(chain.atom_names) == 4 * 5 - 1


def test_the_first_model_is_read(tmp_path):
    first, second = (pdb_text("GAVK", at=[k, k + 1, k + 2, k + 3], numbers=[1, 2, 3, 4]) for k in (0, 10))
    body = [x.split("\n", 1)[1].removesuffix("END\n") for x in (first, second)]
    chain = read(tmp_path, f"MODEL        1\n{body[0]}ENDMDL\nMODEL        2\n{body[1]}ENDMDL\nEND\n")
    assert chain.coordinates[0, 0].tolist() == [0, 0, 0] and chain.left_out == {"further models": 1}


def test_the_first_model_of_mmcif_is_read(tmp_path):
    lines = WHOLE.read_text().splitlines(keepends=True)
    atoms = [x for x in lines if x.startswith(("ATOM", "HETATM"))]
    assert all(x.split()[-1] == "1" for x in atoms)  # pdbx_PDB_model_num
    second = [" ".join([*x.split()[:10], "0.0", *x.split()[11:-1], "2"]) + "\n" for x in atoms]
    end = lines.index(atoms[-1]) + 1
    chain = read(tmp_path, "".join([*lines[:end], *second, *lines[end:]]), name="x.cif")
    assert frame(chain).equals(frame(read_chain(WHOLE)))
    assert chain.left_out == {"waters": 88, "further models": 1}


# ----------------------------------------------------------------------------------------------------------------
# Confidence


TITLE = "TITLE     ALPHAFOLD MONOMER V2.0 PREDICTION FOR A PROTEIN (P69905)\n"


def test_b_factors_of_alphafold_models_are_plddt(tmp_path):
    chain = read(tmp_path, pdb_text("GAVK", head=TITLE, b=91.5, at=[0, 1, 3, 4], seqres="GASVK"))
    structure, rows = rows_of("x", chain)
    assert structure["is_predicted"] and structure["method"] == "predicted"
    assert structure["mean_plddt"] == pytest.approx(91.5)
    assert np.array_equal(rows["plddt"], np.array([91.5, 91.5, NAN, 91.5, 91.5], np.float32), equal_nan=True)


def test_a_crystal_structure_with_alphafold_in_its_title_is_no_prediction(tmp_path):
    for head in (TITLE + "EXPDTA    X-RAY DIFFRACTION\n", "TITLE     A PROTEIN SOLVED WITH ALPHAFOLD\n"):
        chain = read(tmp_path, pdb_text("GAVK", head=head, b=91.5))
        assert not chain.is_predicted and chain.method != "predicted"


def test_mmcif_models_say_that_they_are_predicted(tmp_path):
    text = WHOLE.read_text()
    chain = read(tmp_path, text + "_ma_qa_metric.id 1\n_ma_qa_metric.name pLDDT\n#\n", name="x.cif")
    assert chain.is_predicted and chain.method == "predicted"
    assert not read(tmp_path, text, name="x.cif").is_predicted


def test_the_caller_may_say_what_b_factors_are(tmp_path):
    chain = read(tmp_path, pdb_text("GAVK", b=50))
    assert not rows_of("x", chain)[0]["is_predicted"]
    assert rows_of("x", chain, confidence="plddt")[0]["mean_plddt"] == 50
    predicted = read(tmp_path, pdb_text("GAVK", head=TITLE, b=50))
    assert not rows_of("x", predicted, confidence="none")[0]["is_predicted"]


@pytest.mark.parametrize("b", [0.9, 120.0, -1.0])
def test_values_that_are_no_plddt_are_an_error(tmp_path, b):
    chain = read(tmp_path, pdb_text("GAVK", head=TITLE, b=b))
    with pytest.raises(SourceError, match="no pLDDT; expected 0 to 100"):
        rows_of("x", chain)


# ----------------------------------------------------------------------------------------------------------------
# Bad files


def test_bad_pdb_files_are_one_clear_error_each(tmp_path):
    good = pdb_text("GAVK")
    assert "empty" in complaint(tmp_path, "  \n")
    assert "neither PDB nor mmCIF" in complaint(tmp_path, "<html>not found</html>\n")
    assert "the file is cut" in complaint(tmp_path, good.removesuffix("END\n").removesuffix("TER\n"))
    lines = good.splitlines(keepends=True)
    assert "not a sound PDB file" in complaint(tmp_path, "".join([*lines[:3], lines[3][:40] + "\n", *lines[4:]]))
    assert "not a sound PDB file" in complaint(tmp_path, "".join([*lines[:4], lines[3], *lines[4:]]))
    assert "no ATOM records" in complaint(tmp_path, "HEADER    TEST\nEND\n")
    assert "no protein chain 'B'; there are: 'A'" in complaint(tmp_path, good, chain="B")
    without = "".join(x for x in lines if x[12:16] != " CA ")
    assert "no protein chain in it; expected residues with CA" in complaint(tmp_path, without)
    only = "".join(x for x in lines if not x.startswith("ATOM") or x[12:16] == " CA ")
    assert "no residue has N, CA and C" in complaint(tmp_path, only)


def test_a_file_with_several_chains_wants_one_named(tmp_path):
    two = pdb_text("GAVK").removesuffix("END\n") + pdb_text("VVVV", chain="B").split("\n", 1)[1]
    assert "'A', 'B'; name the one" in complaint(tmp_path, two)
    assert read(tmp_path, two, chain="B").sequence == "VVVV"


def test_bad_mmcif_files_are_one_clear_error_each(tmp_path):
    text = WHOLE.read_text()
    atoms = [i for i, x in enumerate(text.splitlines()) if x.startswith("ATOM")]
    lines = text.splitlines(keepends=True)
    half = "".join(lines[: atoms[100]]) + lines[atoms[100]][:30]
    assert "not whole" in complaint(tmp_path, half, name="x.cif")
    assert "not whole" in complaint(tmp_path, half + "\n", name="x.cif")
    quote = text.replace("'X-RAY DIFFRACTION'", "'X-RAY DIFFRACTION")
    assert "not a sound mmCIF file" in complaint(tmp_path, quote, name="x.cif")
    assert "_atom_site.group_PDB" in complaint(tmp_path, "data_x\n#\n_entry.id x\n", name="x.cif")
    strange = text.replace(lines[atoms[0]], lines[atoms[0]].replace(" 1.00 ", " one ", 1))
    assert "could not convert" in complaint(tmp_path, strange, name="x.cif")
    twice = text.replace(lines[atoms[5]], lines[atoms[5]] * 2)
    assert "twice" in complaint(tmp_path, twice, name="x.cif")
    beyond = text.replace("\n1 70 GLY n\n", "\n")
    assert beyond != text and "does not fit the 69 residues" in complaint(tmp_path, beyond, name="x.cif")


def test_damaged_archives_missing_files_and_bytes_are_errors(tmp_path):
    whole = gzip.compress((MINI / "7cfn_G.pdb").read_bytes())
    for name, data, said in (
        ("cut.gz", whole[:-20], "cut or damaged"),
        ("bytes", b"\xff\xfe\x00data", "not text"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=f"{name}.*{said}"):
            read_chain(tmp_path / name)
    with pytest.raises(SourceError, match=r"absent\.pdb: cannot be read"):
        read_chain(tmp_path / "absent.pdb")


# ----------------------------------------------------------------------------------------------------------------
# The stage


def test_the_stage_writes_one_pair_of_tables_and_names_file_and_source(tmp_path, capfd):
    files = [str(MINI / "6wg6_A.pdb"), str(WHOLE)]
    chains = [{"structure": "hinge", "chain": "A"}, {"structure": "1a8o", "chain": None}]
    options = ["--structures", str(tmp_path / "s.parquet"), "--backbone", str(tmp_path / "b.parquet")]
    main(["--files", *files, "--chains", json.dumps(chains), "--source", "pdb", *options])
    table = pl.from_arrow(read_table(tmp_path / "s.parquet", STRUCTURES))
    assert table["structure_id"].to_list() == ["hinge", "1a8o"] and table["source"].to_list() == ["pdb"] * 2
    assert table["file"].to_list() == ["6wg6_A.pdb", "1a8o.cif"] and table["n_modified"].to_list() == [0, 4]
    rows = pl.from_arrow(read_table(tmp_path / "b.parquet", BACKBONE))
    assert rows.group_by("sequence_id").len().sort("len")["len"].to_list() == [70, 182]
    assert dict(table.select("sequence_id", "sequence_hash").iter_rows()) == dict(
        rows.select(pl.col("sequence_id", "sequence_hash").cast(pl.String)).unique().iter_rows()
    )
    said = capfd.readouterr().err
    assert "left out: 88 waters" in said and "4 modified residues" in said


@pytest.mark.parametrize(
    ("chains", "said"),
    [
        ("[", "--chains: not JSON"),
        ("[]", "one entry for each of the 1 files"),
        ('{"a": "A"}', "one entry for each of the 1 files"),
        ('[{"structure": "a"}]', "expected {\"structure\": id"),
        ('[{"structure": "../a", "chain": null}]', "structure id '../a'"),
        ('[{"structure": "a", "chain": 1}]', "chain 1 of a"),
        ('[{"structure": "a", "chain": "Z"}]', "1a8o.cif: no protein chain 'Z'"),
    ],
)  # fmt: skip
def test_a_bad_call_is_one_message_and_leaves_nothing(tmp_path, chains, said):
    options = ["--structures", str(tmp_path / "s.parquet"), "--backbone", str(tmp_path / "b.parquet")]
    with pytest.raises(SystemExit) as caught:
        main(["--files", str(WHOLE), "--chains", chains, *options])
    assert str(caught.value).startswith("structures: ") and said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_one_name_for_two_structures_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="'1a8o' twice"):
        structures(files=[WHOLE, WHOLE], structures=tmp_path / "s", backbone=tmp_path / "b", log=LOG)


# ----------------------------------------------------------------------------------------------------------------
# Accessions


def test_entries_of_a_folder_are_all_its_structure_files():
    found = entries_of({"source": "folder", "folder": "resources/mini/structures"}, ROOT)
    assert [e.structure_id for e in found] == sorted(Path(row["file"]).stem for row in mini_rows())
    assert found[0].path == "resources/mini/structures/1a7g_E.pdb" and found[0].url is None and found[0].chain is None
    one = entries_of({"source": "folder", "folder": "resources/mini/structures", "entries": ["1a7g_E:E"]}, ROOT)
    assert [(e.structure_id, e.chain) for e in one] == [("1a7g_E_E", "E")]


def test_entries_of_the_archives_have_addresses_paths_and_digests():
    found = entries_of({"source": "pdb", "entries": ["6WG6:A", "6wg6:B", "1a8o"], "sha256": {"1a8o": "f" * 64}})
    assert [e.structure_id for e in found] == ["6wg6_A", "6wg6_B", "1a8o"]
    assert {e.url for e in found[:2]} == {"https://files.rcsb.org/download/6wg6.cif.gz"}
    assert found[0].path == found[1].path == f"{DOWNLOADS}/6wg6.cif.gz"
    assert [e.sha256 for e in found] == [None, None, "f" * 64]
    (model,) = entries_of({"source": "alphafold", "entries": ["P69905"], "url": "https://host/AF-{id}-F1-model_v4.cif"})
    assert model.url == "https://host/AF-P69905-F1-model_v4.cif" and model.structure_id == "P69905"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("pdb", "../etc"),
        ("pdb", "1a8"),
        ("pdb", "1a8o:A/B"),
        ("pdb", "1a8o:"),
        ("pdb", "1a8o\n"),
        ("alphafold", "P6990"),
        ("alphafold", "p69905"),
        ("alphafold", "P69905/../x"),
        ("folder", ".hidden"),
        ("folder", "a/b"),
    ],
)
def test_an_id_that_could_reach_elsewhere_is_refused(source, text):
    with pytest.raises(SourceError, match="expected"):
        parse_entry(text, source)


@given(st.sampled_from(["pdb", "alphafold", "folder"]), st.text(max_size=12))
def test_whatever_is_accepted_is_a_plain_file_name(source, text):
    try:
        name, _ = parse_entry(text, source)
    except SourceError:
        return
    assert name.isascii() and not set(name) & set("/\\{}%?#: \n") and not name.startswith(".")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"source": "folder", "folder": "nowhere"}, "structures.folder: no folder 'nowhere'"),
        ({"source": "folder"}, "structures.folder: no folder None"),
        ({"source": "folder", "folder": "config"}, "no *.pdb"),
        ({"source": "folder", "folder": "resources/mini/structures", "entries": ["1abc"]}, "no file of '1abc'"),
        (
            {"source": "folder", "folder": "resources/mini/structures", "url": "https://x/{id}"},
            "structures.url: a folder",
        ),
        ({"source": "pdb"}, "structures.entries: missing"),
        ({"source": "pdb", "folder": "x", "entries": ["1a8o"]}, "structures.folder: only with"),
        ({"source": "pdb", "entries": ["1a8o"], "url": "https://x/y"}, "structures.url: 'https://x/y'"),
        ({"source": "pdb", "entries": ["1a8o"], "url": "ftp://x/{id}"}, "expected https://"),
        ({"source": "pdb", "entries": ["1a8o", "6wg6"], "url": "https://x/{id}/a.cif"}, "end in the same name"),
        ({"source": "pdb", "entries": ["1a8o:A", "1A8O:A"]}, "1a8o_A stands twice"),
        ({"source": "pdb", "entries": ["1a8o"], "sha256": {"6wg6": None}}, "'6wg6' is no id"),
    ],
)
def test_a_bad_section_of_the_config_says_what_is_wrong(section, said):
    with pytest.raises(SourceError) as caught:
        entries_of(section, ROOT)
    assert said in str(caught.value)


def test_two_files_of_one_name_in_a_folder_are_an_error(tmp_path):
    for name in ("a.pdb", "a.cif.gz"):
        (tmp_path / name).touch()
    with pytest.raises(SourceError, match="holds a twice"):
        entries_of({"source": "folder", "folder": str(tmp_path)})
