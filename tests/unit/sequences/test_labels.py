"""A user's table of labels: what is read, what is found out, and what is refused with a message that helps."""

import gzip
import json
import random

import pytest

from plm_depth.sequences import SourceError, labels
from plm_depth.sequences.labels import Columns, read_labels
from plm_depth.tables import AMINO_ACIDS, LABELS, SEQUENCES, read_metadata, read_table


def proteins(n: int, *, length: int = 12, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(AMINO_ACIDS, k=length)) for _ in range(n)]


def write(path, header, rows, *, delimiter=","):
    lines = [delimiter.join(header), *(delimiter.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(tmp_path, values, *, name="label", n=None):
    sequences = proteins(n or len(values))
    return write(tmp_path / "my.csv", ["sequence", name], list(zip(sequences, values)))


def read(path, label="label", **options):
    columns = {name: options.pop(name) for name in ("split", "cluster", "identifier", "mutant") if name in options}
    label = (label,) if isinstance(label, str) else label
    sequence = None if "mutant" in columns else "sequence"
    return read_labels(path, columns=Columns(label=label, sequence=sequence, **columns), **options)


# ------------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        ([i + 0.5 for i in range(24)], "regression", ()),
        (["0", "1"] * 12, "classification", ("0", "1")),
        (["nucleus", "membrane", "cytosol"] * 8, "classification", ("cytosol", "membrane", "nucleus")),
        (["2.5e-3", "-1", "7"] * 8, "regression", ()),
        (["1.5", "2.5"] * 12, "classification", ("1.5", "2.5")),
    ],
)
def test_the_kind_of_the_label_is_found_where_the_table_leaves_no_doubt(tmp_path, values, kind, classes):
    found = read(table(tmp_path, values))
    assert (found.kind, found.classes, found.n_proteins) == (kind, classes, 24)
    assert found.labels["text"] == [str(value) for value in values]
    if kind == "regression":
        assert found.labels["value"] == [float(value) for value in values]
    else:
        assert [classes[int(code)] for code in found.labels["value"]] == found.labels["text"]
    assert set(found.labels["position"]) == {-1}


def test_whole_numbers_may_be_classes_or_amounts_and_the_user_says_which(tmp_path):
    path = table(tmp_path, [1, 2, 10] * 8)
    with pytest.raises(SourceError, match="3 different whole numbers, which may be classification or regression; say"):
        read(path)
    assert read(path, kind="regression").labels["value"][:3] == [1.0, 2.0, 10.0]
    assert read(path, kind="classification").classes == ("1", "2", "10")  # by size, not by letters


def test_several_columns_are_labels_of_their_own(tmp_path):
    rows = [(s, i % 2, "yes" if i % 3 else "no") for i, s in enumerate(proteins(20))]
    found = read(write(tmp_path / "my.csv", ["sequence", "binds", "acts"], rows), ("binds", "acts"))
    assert (found.kind, found.names) == ("multi-label", ("binds", "acts"))
    assert found.labels["label"][:4] == ["binds", "acts"] * 2
    assert found.labels["value"][:6] == [0, 0, 1, 1, 0, 1]


def test_names_joined_in_a_cell_are_labels_where_that_is_stated(tmp_path):
    found = read(table(tmp_path, ["a;b", "b", "c; a"] * 8), kind="multi-label")
    assert found.names == ("a", "b", "c")
    assert found.labels["value"][:9] == [1, 1, 0, 0, 1, 0, 1, 0, 1]


def test_a_letter_a_residue_is_a_label_of_residues_and_unknown_ones_are_left_out(tmp_path):
    found = read(table(tmp_path, ["HHHEEECCCHH-"] * 20))
    assert (found.kind, found.classes) == ("residue-classification", ("C", "E", "H"))
    assert found.labels["position"][:11] == list(range(11)) and len(found.labels["position"]) == 20 * 11


@pytest.mark.parametrize("joined", [" ", ";"])
def test_a_list_of_numbers_is_a_label_of_residues(tmp_path, joined):
    values = [joined.join(f"{i + p / 4}" for p in range(12)) for i in range(20)]
    found = read(table(tmp_path, [f'"[{value}]"' for value in values]))
    assert found.kind == "residue-regression"
    assert found.labels["value"][12:15] == [1.0, 1.25, 1.5]


def test_missing_numbers_of_residues_are_left_out(tmp_path):
    values = [" ".join(["0.5", "nan", *["1"] * 10])] * 20
    found = read(table(tmp_path, values), kind="residue-regression")
    assert found.labels["position"][:3] == [0, 2, 3]


# ------------------------------------------------------------------------------------------------------ rows left out


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path):
    good = [(s, i / 7, "a") for i, s in enumerate(proteins(20))]
    bad = [("", 1, "b"), ("ACDEF", "NA", "b"), ("ACDXF", 1, "b"), ("ACD*F", 1, "b"), ("A" * 30, 1, "b"), ("MKV", 2, "")]
    path = write(tmp_path / "my.csv", ["sequence", "label", "group"], good + bad + [good[0]])
    found = read(path, max_length=20, cluster="group")
    assert found.left_out == {
        "no_sequence": 1, "no_label": 1, "non_canonical": 2, "too_long": 1, "no_cluster": 1, "duplicate": 1,
    }  # fmt: skip
    assert found.n_proteins == 20 and set(found.labels["group"]) == {"a"}
    with pytest.raises(SourceError, match="line 26: 30 residues, more than --max-length 20"):
        read(path, max_length=20, too_long="refuse")


def test_sequences_are_read_in_upper_case_without_blanks_and_stop(tmp_path):
    rows = [(f" {s[:5].lower()} {s[5:]}* ", i / 7) for i, s in enumerate(proteins(20))]
    assert read(write(tmp_path / "my.csv", ["sequence", "label"], rows)).sequences["sequence"] == proteins(20)


def test_a_sequence_with_two_answers_is_refused(tmp_path):
    rows = [(s, i / 7) for i, s in enumerate(proteins(20))]
    path = write(tmp_path / "my.csv", ["sequence", "label"], [*rows, (rows[3][0], 9.5)])
    with pytest.raises(SourceError, match="1 sequences come more than once with different labels, the first in line 5"):
        read(path)


def test_a_sequence_on_both_sides_of_the_users_split_is_refused(tmp_path):
    rows = [(s, i / 7, "train" if i < 15 else "test") for i, s in enumerate(proteins(20))]
    path = write(tmp_path / "my.csv", ["sequence", "label", "split"], [*rows, (*rows[3][:2], "test")])
    with pytest.raises(SourceError, match=r"on several sides of the split .*line 5 and line 22"):
        read(path, split="split")


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (["x"] * 20, {}, "one class only (x)"),
        ([3.5] * 20, {}, "constant, 3.5 in every row"),
        ([3] * 20, {}, "constant, 3 in every row"),
        (["x", "y"] * 5, {}, "10 usable rows of 10 (none left out); expected at least 20"),
        (["0.5", "many"] * 10, {"kind": "regression"}, "line 3, column 'label': 'many' is no number"),
        (["HHH"] * 20, {"kind": "residue-classification"}, "line 2, column 'label': 1 labels for 12 residues"),
        (["1 2 3 4 5 6 7 8 9 1 2 3"] * 20, {}, "may be residue-classification or residue-regression"),
        (["x", "y"] * 10, {"kind": "colours"}, "--kind colours: expected auto, regression"),
        (["x", "y"] * 10, {"split": "fold"}, "no column 'fold'; its columns are 'sequence', 'label'"),
        (["a;b"] * 20, {"kind": "multi-label"}, "label 'a' is the same in every row"),
    ],
)
def test_a_table_without_a_question_is_refused_with_the_reason(tmp_path, values, options, said):
    with pytest.raises(SourceError) as error:
        read(table(tmp_path, values), **options)
    assert said in str(error.value) and ("my.csv" in str(error.value) or "--kind" in str(error.value))


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(SourceError, match="no column 'stability'; its columns are 'sequence', 'label'"):
        read(table(tmp_path, [0.5] * 20), "stability")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train"] * 20, "train 20, valid 0, test 0 rows; expected at least 10 to train on, and valid or test"),
        (["train"] * 5 + ["test"] * 15, "train 5, valid 0, test 15 rows"),
        (
            ["left", "right"] * 10,
            "2 different values (left, right); expected train with valid and test, or the names of 3",
        ),
        ([f"p{i}" for i in range(30)], "30 different values (p0, p1, p10, p11, p12, p13, ...)"),
    ],
)
def test_a_split_that_is_none_is_refused(tmp_path, names, said):
    rows = [(s, i / 7, name) for i, (s, name) in enumerate(zip(proteins(len(names)), names))]
    with pytest.raises(SourceError) as error:
        read(write(tmp_path / "my.csv", ["sequence", "label", "split"], rows), split="split")
    assert said in str(error.value)


def test_splits_are_read_by_their_usual_names_or_as_folds(tmp_path):
    names = ["Train"] * 12 + ["val"] * 4 + ["TEST"] * 4
    rows = [(s, i / 7, name, i % 4) for i, (s, name) in enumerate(zip(proteins(20), names))]
    path = write(tmp_path / "my.csv", ["sequence", "label", "split", "fold"], rows)
    assert read(path, split="split").labels["split"] == ["train"] * 12 + ["valid"] * 4 + ["test"] * 4
    assert read(path, split="fold").labels["split"][:5] == ["0", "1", "2", "3", "0"]


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "my.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(SourceError, match="empty"):
        read(tmp_path / "empty.csv")
    (tmp_path / "ragged.csv").write_text("sequence,label\nACD,1\nACD,1,2\n")
    with pytest.raises(SourceError, match=r"line 3: 3 cells, the header has 2"):
        read(tmp_path / "ragged.csv")
    (tmp_path / "twice.csv").write_text("sequence,label,label\n")
    with pytest.raises(SourceError, match="column 'label' stands twice"):
        read(tmp_path / "twice.csv")


def test_tables_with_tabs_compressed_or_with_a_byte_order_mark_are_read(tmp_path):
    rows = [(s, i / 7) for i, s in enumerate(proteins(20))]
    text = write(tmp_path / "my.tsv", ["sequence", "label"], rows, delimiter="\t").read_text()
    with gzip.open(tmp_path / "my.tsv.gz", "wt", encoding="utf-8-sig") as file:
        file.write(text)
    assert read(tmp_path / "my.tsv.gz").sequences == read(tmp_path / "my.tsv").sequences


# ------------------------------------------------------------------------------------------------------- substitutions


def test_substitutions_of_a_wild_type_are_sequences(tmp_path):
    wild_type = "MKTAYIAKQR"
    others = [letter for letter in AMINO_ACIDS if letter != "K"]
    rows = [(f"K2{letter}", i / 7) for i, letter in enumerate(others)] + [("WT", 5), ("M1A:R10C", 6)]
    path = write(tmp_path / "my.csv", ["mutant", "label"], rows)
    found = read(path, mutant="mutant", wild_type=wild_type)
    assert found.sequences["sequence"][0] == "MATAYIAKQR"
    assert found.sequences["sequence"][-2:] == [wild_type, "AKTAYIAKQC"]


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        ("A2C", r"K stands at place 2 of the wild type \(10 residues, counted from 1\)"),
        ("K99C", "nothing stands at place 99"),
        ("K2", "expected e.g. A12C"),
    ],
)
def test_substitutions_that_do_not_fit_the_wild_type_are_refused(tmp_path, mutant, said):
    path = write(tmp_path / "my.csv", ["mutant", "label"], [(mutant, 1)])
    with pytest.raises(SourceError, match=f"line 2: substitution .*{said}"):
        read(path, mutant="mutant", wild_type="MKTAYIAKQR")


def test_the_wild_type_comes_from_a_fasta_file_by_its_accession(tmp_path):
    (tmp_path / "wt.fasta").write_text(">A first\nMKT\n>B\nACD\nEF\n")
    assert labels.wild_type_of(f"{tmp_path}/wt.fasta#B") == "ACDEF"
    with pytest.raises(SourceError, match=r"no 'C' in .*it has A, B"):
        labels.wild_type_of(f"{tmp_path}/wt.fasta#C")
    with pytest.raises(SourceError, match="expected residues"):
        labels.wild_type_of("MK1")


# ------------------------------------------------------------------------------------------------------------ the stage


def outputs(folder) -> list[str]:
    return ["--label", "label", "--sequences", f"{folder}/s.parquet", "--labels", f"{folder}/l.parquet"]


def test_the_stage_writes_proteins_and_labels_and_what_was_left_out(tmp_path):
    path = table(tmp_path, ["x", "y"] * 10)
    with path.open("a") as file:
        file.write("ACDX,x\n")
    labels.main(["--table", str(path), *outputs(tmp_path)])
    sequences, found = read_table(tmp_path / "s.parquet", SEQUENCES), read_table(tmp_path / "l.parquet", LABELS)
    assert sequences.column("sequence_id").to_pylist()[:2] == ["line_2", "line_3"]
    assert sequences.column("sequence").to_pylist() == proteins(20)
    assert found.column("sequence_id").to_pylist() == sequences.column("sequence_id").to_pylist()
    about = read_metadata(tmp_path / "l.parquet")
    assert about["kind"] == "classification" and json.loads(about["classes"]) == ["x", "y"]
    assert json.loads(about["left_out"]) == {"non_canonical": 1}


def test_the_stage_ends_with_one_message(tmp_path):
    with pytest.raises(SystemExit, match=r"labels: .*one class only"):
        labels.main(["--table", str(table(tmp_path, ["x"] * 20)), *outputs(tmp_path)])
    assert not list(tmp_path.glob("*.parquet"))
