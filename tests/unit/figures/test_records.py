"""The table of records: the sample parted from its reserve, and which tool made the clusters."""

import json

import polars as pl
import pytest

from plm_depth.figures.letters import by_letter
from plm_depth.figures.records import main
from plm_depth.models.letters import policies
from plm_depth.tables import CLUSTERS, LEFT_OUT, LETTERS, write_table

FOUND = {"letter": ["U", "*", "lower case"], "n_records": [7, 1, 2], "n_letters": [9, 1, 40]}
FATES = {"fate": ["left out", "left out", "upper-cased"]}


def options(folder, **metadata):
    write_table({"reason": ["sampled", "too_long"], "n_records": [10, 3]}, LEFT_OUT, folder / "left_out")
    write_table({"sequence_id": ["a", "b", "c"], "cluster_id": ["a", "a", "c"]}, CLUSTERS, folder / "c", **metadata)
    write_table({**FOUND, **FATES}, LETTERS, folder / "letters")
    paths = {"--left-out": "left_out", "--clusters": "c", "--csv": "out.csv", "--html": "out.html"}
    paths |= {"--letters": "letters", "--letters-csv": "letters.csv", "--letters-html": "letters.html"}
    words = [word for option, name in paths.items() for word in (option, str(folder / name))]
    return [*words, "--dataset", "mini", "--size", "4", "--policies", json.dumps(policies(["esm2", "protbert"]))]


def test_the_records_say_what_became_of_all_and_how_they_were_clustered(tmp_path):
    main(options(tmp_path, tool="mmseqs 14"))
    assert (tmp_path / "out.csv").read_text() == "reason,n_records\nsampled,4\nin_reserve,6\ntoo_long,3\n"
    assert "2 similarity clusters in the sample (tool mmseqs 14)" in (tmp_path / "out.html").read_text()


def test_a_damaged_table_ends_in_one_message(tmp_path):
    words = options(tmp_path)
    (tmp_path / "c").write_bytes(b"PAR1 cut")
    with pytest.raises(SystemExit, match=r"figures.records: .*c: not a readable Parquet file"):
        main(words)
    assert not (tmp_path / "out.html").exists()


def test_every_odd_letter_has_its_count_its_fate_and_how_the_families_read_it(tmp_path):
    main([*options(tmp_path), "--pool-letters", str(tmp_path / "letters")])
    rows = pl.read_csv(tmp_path / "letters.csv")
    assert rows.columns[:6] == ["source", "letter", "meaning", "n_records", "n_letters", "what became of it"]
    assert rows["source"].value_counts().sort("source").rows() == [("data set", 8), ("training pool", 8)]
    by_name = {row[1]: row for row in rows.filter(pl.col("source") == "data set").iter_rows()}
    assert by_name["U"][2:] == ("selenocysteine", 7, 9, "left out", "own token: esm2; as X: protbert")
    assert by_name["J"][2:] == ("leucine or isoleucine", 0, 0, "left out", "refused: esm2, protbert")
    assert by_name["lower case"][3:6] == (2, 40, "upper-cased")
    assert "selenocysteine" in (tmp_path / "letters.html").read_text()


def test_residues_that_a_structure_has_in_another_form_are_counted_by_structure_and_residue():
    structures = pl.DataFrame({"n_modified": [3, 0, 1], "n_unknown": [0, 0, 0], "n_mismatched": [2, 0, 0]})
    rows = by_letter({}, structures, policies(["esm2"]))
    assert rows.select("source", "n_records", "n_letters").rows() == [
        ("structures", 2, 4),
        ("structures", 0, 0),
        ("structures", 1, 2),
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"U": 1}', '{"U": {"own": "esm2"}}'])
def test_policies_that_are_none_end_in_a_message(tmp_path, text, capsys):
    with pytest.raises(SystemExit):
        main([*options(tmp_path), "--policies", text])
    assert "expected" in capsys.readouterr().err
