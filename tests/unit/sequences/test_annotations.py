"""Proteins with known answers: which are taken, what is said about them, and what is refused."""

import json
import logging
from pathlib import Path

import pytest

from plm_depth.sequences import SourceError
from plm_depth.sequences.annotations import Member, choose, main, read_families
from plm_depth.sequences.structures import structures
from plm_depth.tables import ANNOTATIONS, SEQUENCES, read_table

MINI = Path(__file__).parents[3] / "resources" / "mini"
COLUMNS = {"id": "member", "group": "family_id", "part": "subfamily"}
OPEN = {"size": None, "min_length": 1, "max_length": 1000, "seed": 1}
CHAINS = {"c1": "MKVLAY", "c2": "MKVLAYW", "c3": "MKVLAY", "c4": "MKXLAY", "c5": "MK", "c6": "AAAAAAAAAAAA"}


def test_rows_of_the_mini_families_come_with_group_and_part():
    members = read_families(MINI / "families" / "families.tsv", COLUMNS)
    assert len(members) == 143 and len({m.group for m in members}) == 13
    parts = {(m.group, m.part) for m in members if m.part}
    assert len(parts) == 10 and ("PF00042", "myoglobin") in parts
    assert all(m.sequence for m in members)


def test_csv_by_its_name_and_default_columns(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text('superfamily,id,family,sequence\n"a,b",x,,MKV\na,y,z,\n')
    assert read_families(path) == [Member("x", "MKV", "a,b", ""), Member("y", "", "a", "z")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tsequence\tfamily\nx\tM\tf\n", r"no column 'superfamily' \(group\); it has id, sequence, family"),
        ("id\tsequence\tsuperfamily\tfamily\nx\tM\ts\n", "row 1: not 4 cells"),
        ("id\tsequence\tsuperfamily\tfamily\nx\tM\t\tf\n", "row 1: an empty group"),
        ("id\tsequence\tsuperfamily\tfamily\nx\tM\ts\tf\nx\tK\ts\tf\n", "row 2: id 'x' stands twice"),
        ("id\tsequence\tsuperfamily\tfamily\n", "no rows"),
        ("", "no header"),
    ],
)
def test_a_bad_table_of_families_is_refused_with_its_row(tmp_path, text, message):
    path = tmp_path / "f.tsv"
    path.write_text(text)
    with pytest.raises(SourceError, match=f"f.tsv.*{message}"):
        read_families(path)
    with pytest.raises(SourceError, match="expected some of id, sequence, group, part"):
        read_families(path, {"clan": "x"})


def test_what_is_left_out_is_counted_and_residues_stand_once():
    chains, members, rows, counts = choose(CHAINS, [Member("m", "MKVLAYW", "g", "p")], **OPEN | {"min_length": 3})
    assert set(chains) == {"c6", "c1"} or set(chains) == {"c6", "c3"}
    assert members == {"m": "MKVLAYW"}
    assert counts == {"kept": 3, "same_residues": 2, "non_canonical": 1, "too_short": 1}
    assert ("m", "families", "g", "p") in rows and len(rows) == 3
    _, _, _, counts = choose(CHAINS, [], **OPEN | {"max_length": 7})
    assert counts["too_long"] == 1


def test_a_larger_size_only_adds_chains_whatever_their_order():
    chains = {f"c{i}": "MKVLAY" + "A" * i for i in range(30)}
    few, _, _, counts = choose(chains, [], **OPEN | {"size": 5})
    many, *_ = choose(dict(reversed(chains.items())), [], **OPEN | {"size": 12})
    assert list(many)[:5] == list(few) and counts["not_sampled"] == 25
    assert list(choose(chains, [], **OPEN | {"size": 5, "seed": 2})[0]) != list(few)


def test_a_row_without_sequence_says_what_a_chain_is_and_nothing_else_may_have_its_id():
    _, members, rows, _ = choose(CHAINS, [Member("c6", "", "g", "p")], **OPEN)
    assert members == {} and ("c6", "structures", "g", "p") in rows and ("c2", "structures", "", "") in rows
    with pytest.raises(SourceError, match="c9: neither a sequence nor a chain"):
        choose(CHAINS, [Member("c9", "", "g", "p")], **OPEN)
    with pytest.raises(SourceError, match="c1: the id of a chain, with a sequence"):
        choose(CHAINS, [Member("c1", "MKV", "g", "p")], **OPEN)


def test_the_stage_writes_chains_members_and_annotations(tmp_path):
    files = sorted((MINI / "structures").glob("*.pdb"))[:3]
    made = {"structures": tmp_path / "structures", "backbone": tmp_path / "backbone", "fasta": None}
    structures(files=files, chains=None, source="folder", confidence="auto", log=logging.getLogger("test"), **made)
    outputs = {f"--{name}": tmp_path / name for name in ("chains", "members", "annotations")}
    options = {
        "--structures": tmp_path / "structures",
        "--families": MINI / "families" / "families.tsv",
        "--columns": json.dumps(COLUMNS),
        "--max-length": 200,
        "--seed": 1,
    }
    words = [str(part) for option in (options | outputs).items() for part in option]
    main(words)
    chains, members = (read_table(outputs[f"--{name}"], SEQUENCES) for name in ("chains", "members"))
    known = read_table(outputs["--annotations"], ANNOTATIONS)
    assert sorted(chains["sequence_id"].to_pylist()) == ["1a7g_E", "1a8o_A"]  # the third has 223 residues
    short = [m.id for m in read_families(MINI / "families" / "families.tsv", COLUMNS) if len(m.sequence) <= 200]
    assert members["sequence_id"].to_pylist() == short and len(short) == 99
    assert known.num_rows == 101 and known["source"].to_pylist().count("structures") == 2
    with pytest.raises(SystemExit, match="no protein is left"):
        main([*words, "--max-length", "2"])
    with pytest.raises(SystemExit, match="--columns: not JSON"):
        main([*words, "--columns", "{"])
