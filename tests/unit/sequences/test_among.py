"""The records of one FASTA file that another has too."""

import pytest

from plm_depth.sequences import among


def fasta(path, **records):
    path.write_text("".join(f">{name} about\n{residues}\n" for name, residues in records.items()))
    return str(path)


def run(tmp_path, mine, theirs):
    output = tmp_path / "out.fasta"
    options = ["--fasta", fasta(tmp_path / "a", **mine), "--among", fasta(tmp_path / "b", **theirs)]
    among.main([*options, "--output", str(output)])
    return output.read_text().split()


def test_only_records_that_both_have_are_kept_in_order(tmp_path):
    assert run(tmp_path, {"b": "MK", "a": "ACD", "c": "W"}, {"a": "ACD", "b": "MK", "d": "Y"}) == [
        ">b", "MK", ">a", "ACD",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "said"),
    [({"a": "ACE"}, "'a' has other residues"), ({"z": "MK"}, "none of the 1 proteins .*training")],
)
def test_what_cannot_be_is_said_and_nothing_is_written(tmp_path, theirs, said):
    with pytest.raises(SystemExit, match=said):
        run(tmp_path, {"a": "ACD"}, theirs)
    assert not (tmp_path / "out.fasta").exists()


def test_an_accession_twice_is_refused(tmp_path):
    (tmp_path / "twice").write_text(">a\nMK\n>a\nMK\n")
    with pytest.raises(SystemExit, match="record 2: 'a' stands twice"):
        among.main(["--fasta", str(tmp_path / "twice"), "--among", str(tmp_path / "twice"), "--output", "x"])
