"""Structures of a table of backbones, as models read them."""

import logging
from pathlib import Path

import numpy as np
import pytest

from plm_depth.activations.nulls import shuffle_sequence, shuffled_order
from plm_depth.models.base import Structure
from plm_depth.models.saprot import STATES
from plm_depth.models.structures import in_order, read_structures
from plm_depth.sequences.structures import structures
from plm_depth.tables import BACKBONE, TableError, read_table
from small_backbone import backbone, write

LOG = logging.getLogger("test")
MINI = Path(__file__).parents[3] / "resources" / "mini" / "structures"
COORDINATES = np.arange(5 * 9, dtype=np.float32).reshape(5, 3, 3)


def test_states_come_in_lower_case_and_hidden_where_nobody_knows_them(tmp_path):
    plddt = [90, 69.9, 70, 95, 95]
    path = write(tmp_path / "b.parquet", backbone("A", "MKTAY", states="DVP-Q", plddt=plddt))
    (found,) = read_structures(path, [("A", "MKTAY")]).values()
    assert found.three_di == "d#p#q"
    assert found.codes is None
    experiment = write(tmp_path / "e.parquet", backbone("A", "MKTAY", states="DVP-Q"))
    assert read_structures(experiment, [("A", "MKTAY")])["A"].three_di == "dvp#q"


def test_coordinates_are_those_of_n_ca_and_c_in_the_order_of_the_residues(tmp_path):
    coordinates = COORDINATES.copy()
    coordinates[3] = np.nan
    path = write(tmp_path / "b.parquet", backbone("A", "MKTAY", states="DVP-Q", coordinates=coordinates))
    found = read_structures(path, [("A", "MKTAY")])["A"].coordinates
    assert found.dtype == np.float32 and found.shape == (5, 3, 3)
    np.testing.assert_array_equal(found, coordinates)


def test_a_structure_belongs_to_a_protein_of_the_same_residues_whatever_its_name(tmp_path, caplog):
    first, second = backbone("A", "MKTAY", states="DDDDD"), backbone("B", "MKTAY", states="VVVVV")
    other = backbone("C", "WWWW", states="PPPP")
    path = write(tmp_path / "b.parquet", first, other, second)
    wanted = [("X", "MKTAY"), ("B", "MKTAY"), ("C", "MKTAW"), ("D", "WWWW")]
    with caplog.at_level(logging.INFO):
        found = read_structures(path, wanted, log=LOG)
    assert {name: one.three_di for name, one in found.items()} == {"X": "ddddd", "B": "vvvvv", "D": "pppp"}
    assert "structures of 3 of 4 proteins; of 2 with several the one of the same name, else the first" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"position": [0, 1, 2, 4, 3]},
        {"position": [1, 2, 3, 4, 5]},
        {"aa": list("MKTAW")},
    ],
)
def test_rows_that_are_not_the_residues_in_order_are_refused(tmp_path, changes):
    path = write(tmp_path / "b.parquet", backbone("A", "MKTAY", states="DVPQQ", **changes))
    with pytest.raises(TableError, match=r"b\.parquet: A: rows of 5 residues; expected its 5 residues in order"):
        read_structures(path, [("A", "MKTAY")])


def test_a_structure_cut_in_two_is_refused(tmp_path):
    one = backbone("A", "MKTAY", states="DVPQQ")
    path = write(tmp_path / "b.parquet", one.slice(0, 2), backbone("B", "MKTAY", states="DVPQQ"), one.slice(2))
    with pytest.raises(TableError, match="rows of A do not stand together"):
        read_structures(path, [("A", "MKTAY")])


def test_the_mini_structures_are_read_as_saprot_writes_them(tmp_path):
    files = [MINI / name for name in ("1a8o_A.pdb", "1lcd_A.pdb", "2xhe_B.pdb")]
    path = tmp_path / "b.parquet"
    structures(files=files, structures=tmp_path / "s.parquet", backbone=path, log=LOG)
    table = read_table(path, BACKBONE).to_pylist()
    sequences = {}
    for row in table:
        sequences[row["sequence_id"]] = sequences.get(row["sequence_id"], "") + row["aa"]
    found = read_structures(path, list(sequences.items()))
    rows = (line.split("\t") for line in (MINI / "structures.tsv").read_text().splitlines()[1:])
    published = {row[2].removesuffix(".pdb"): row[-1] for row in rows}
    assert set(found) == set(sequences) and len(found) == 3
    for name, one in found.items():
        assert set(one.three_di) <= set(STATES)
        assert len(one.three_di) == len(one.coordinates) == len(sequences[name])
        shown = one.three_di.replace("#", "")
        assert len(shown) > 0.95 * len(sequences[name])
        assert np.mean([a == b for a, b in zip(one.three_di, published[name].lower())]) > 0.95


def test_a_shuffled_structure_follows_its_residues():
    sequence = "ACDEFGHIKLMNPQRSTVWY"
    order = shuffled_order(len(sequence), 3, "P")
    shuffled = shuffle_sequence(sequence, 3, "P")
    structure = Structure(
        three_di=sequence.lower(), codes=np.arange(20), coordinates=np.arange(180, dtype=np.float32).reshape(20, 3, 3)
    )
    found = in_order(structure, order)
    assert shuffled != sequence and sorted(shuffled) == sorted(sequence)
    assert found.three_di == shuffled.lower()
    assert [sequence[code] for code in found.codes] == list(shuffled)
    np.testing.assert_array_equal(found.coordinates[:, 0, 0] / 9, found.codes)
    assert in_order(Structure(three_di="abc"), np.array([2, 0, 1])) == Structure(three_di="cab")
