"""Precomputed structure codes: one whole number a residue, of structures that are there."""

import pytest

from plm_depth.models.structures import read_codes as codes_of
from plm_depth.sequences import SourceError, codes
from plm_depth.tables import STRUCTURES, as_table, write_table

N_RESIDUES = {"1abc_A": 3, "2xyz_B": 2}


def table(path, *rows, header="structure_id\tnote\tcodes"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def structures(path):
    n = len(N_RESIDUES)
    values = {"structure_id": list(N_RESIDUES), "n_residues": list(N_RESIDUES.values())}
    other = {
        field.name: 0 if str(field.type).startswith("int") else 0.0 if str(field.type) == "float" else "x"
        for field in STRUCTURES
    }
    other |= {field.name: [False] * n for field in STRUCTURES if str(field.type) == "bool"}
    columns = {name: values.get(name, other[name] if isinstance(other[name], list) else [other[name]] * n)
               for name in STRUCTURES.names}  # fmt: skip
    write_table(as_table(columns, STRUCTURES), STRUCTURES, path)
    return path


def test_codes_are_kept_by_family_and_structure(tmp_path):
    given = table(tmp_path / "a.tsv", "2xyz_B\tx\t8191,-1", "1abc_A\t\t0 1 2", "9zzz_A\t\t7")
    output = tmp_path / "codes.parquet"
    codes.main(["--codes", f"dplm2={given}", "--structures", str(structures(tmp_path / "s")), "--output", str(output)])
    assert {name: list(values) for name, values in codes_of(output, "dplm2").items()} == {
        "1abc_A": [0, 1, 2],
        "2xyz_B": [8191, -1],
    }
    assert codes_of(output, "esm3") == {}, "codes of one tokenizer are never shown to another family"


def test_rows_of_other_structures_are_counted_and_left_out(tmp_path, capsys):
    given = table(tmp_path / "a.tsv", "2xyz_B\tx\t8 9", "9zzz_A\t\t7", "1abc_A\t\t0 1 2")
    assert codes.read_codes(given, N_RESIDUES) == ({"2xyz_B": [8, 9], "1abc_A": [0, 1, 2]}, 1)
    where = ["--structures", str(structures(tmp_path / "s")), "--output", str(tmp_path / "codes.parquet")]
    codes.main(["--codes", f"dplm2={given}", *where])
    assert "codes of dplm2 for 2 structures; 1 rows of other structures left out" in "".join(capsys.readouterr())


def test_a_structure_without_codes_ends_it_before_a_model_is_asked_to_read_them(tmp_path):
    given = table(tmp_path / "a.tsv", "1abc_A\t\t0 1 2")
    where = ["--structures", str(structures(tmp_path / "s")), "--output", str(tmp_path / "codes.parquet")]
    with pytest.raises(SystemExit, match=r"a\.tsv: no codes of 1 of 2 structures: 2xyz_B; expected a row of each"):
        codes.main(["--codes", f"dplm2={given}", *where])
    assert not (tmp_path / "codes.parquet").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1abc_A\t\t0 1", "line 2: '1abc_A': 2 codes, the smallest 0; expected one of at least -1 for each of its 3"),
        ("1abc_A\t\t0 1 -2", "the smallest -2"),
        ("1abc_A\t\t0 1 p", "a code is no whole number"),
        ("1abc_A\t\t0 1 2\n1abc_A\t\t0 1 2", "line 3: '1abc_A' stands twice"),
    ],
)
def test_codes_that_cannot_be_are_refused_with_file_line_and_structure(tmp_path, row, said):
    with pytest.raises(SourceError, match=said):
        codes.read_codes(table(tmp_path / "a.tsv", row), N_RESIDUES)


def test_a_table_without_the_columns_is_refused_and_nothing_is_written(tmp_path):
    given = table(tmp_path / "a.tsv", header="name\tcodes")
    output = tmp_path / "codes.parquet"
    with pytest.raises(SystemExit, match="no column structure_id"):
        codes.main(
            ["--codes", f"dplm2={given}", "--structures", str(structures(tmp_path / "s")), "--output", str(output)]
        )
    assert not output.exists()


def test_the_mini_codes_are_the_states_of_the_mini_structures():
    import csv
    from pathlib import Path

    folder = Path(__file__).parents[3] / "resources/mini/structures"
    with open(folder / "structures.tsv") as file:
        states = {f"{r['pdb_id']}_{r['chain']}": r["three_di"] for r in csv.DictReader(file, delimiter="\t")}
    found, n_others = codes.read_codes(folder / "codes.tsv", {name: len(text) for name, text in states.items()})
    assert n_others == 0
    letters = "ACDEFGHIKLMNPQRSTVWY"
    assert {name: "".join(letters[code] for code in values) for name, values in found.items()} == states
