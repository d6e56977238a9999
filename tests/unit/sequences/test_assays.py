"""Assays as published become one table of variants; every row of a source is in it or counted under a reason."""

import csv
import io
import json
import logging
import zipfile
from pathlib import Path

import polars as pl
import pytest

from plm_depth.sequences import SourceError
from plm_depth.sequences.assays import (
    REASONS,
    RowError,
    Source,
    dealt,
    main,
    mutant_of,
    read_assay,
    substitutions,
    written,
)
from plm_depth.tables import ASSAYS, VARIANTS, read_metadata, read_table

ROOT = Path(__file__).parents[3]
LOG = logging.getLogger("test")
WILDTYPE = "MKTAYIAKQR"
GOOD = [("M1A", 0.5), ("K2C:T3D", -1.25), ("T3D:K2W", 2.0)]


def source(**changes) -> Source:
    fields = {"assay_id": "A", "uniprot_id": "A_HUMAN", "category": "Activity", "sequence": WILDTYPE,
              "mutant": "mutant", "score": "DMS_score", "mutated": None, "where": "a.csv"}  # fmt: skip
    return Source(**{**fields, **changes})


def rows_of(pairs, with_sequence=False):
    rows = []
    for mutant, score in pairs:
        row = {"mutant": mutant, "DMS_score": score}
        if with_sequence:
            row["mutated_sequence"] = mutant_of(WILDTYPE, substitutions(mutant, WILDTYPE))
        rows.append(row)
    return rows


def read(rows, **options):
    return read_assay(options.pop("source", source()), rows, **{"max_variants": None, "seed": 1, "log": LOG, **options})


# ----------------------------------------------------------------------------------------------------------------
# Rows


def test_substitutions_are_read_sorted_by_position_and_written_back():
    changes = substitutions(" t3d:K2W ", WILDTYPE)
    assert changes == [(1, "W"), (2, "D")]
    assert written(WILDTYPE, changes) == "K2W:T3D"
    assert mutant_of(WILDTYPE, changes) == "MWDAYIAKQR"


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        ("", "malformed", "no substitution"),
        ("WT", "malformed", "'WT'; expected a substitution like A12C"),
        ("M1A;K2C", "malformed", "expected a substitution"),
        ("M1", "malformed", "'M1'"),
        ("M1*", "not_canonical", "'M1*'"),
        ("M1X", "not_canonical", "'M1X'"),
        ("M0A", "out_of_range", "has residues 1 to 10"),
        ("R11A", "out_of_range", "has residues 1 to 10"),
        ("A1M", "wildtype_mismatch", "residue 1 of the wild type is M"),
        ("M1M", "synonymous", "another residue"),
        ("M1A:K2K", "synonymous", "another residue"),
        ("M1A:M1C", "position_twice", "every position once"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(text, reason, says):
    with pytest.raises(RowError) as caught:
        substitutions(text, WILDTYPE)
    assert caught.value.reason == reason and says in str(caught.value)
    assert reason in REASONS


def test_every_row_is_drawn_or_counted_under_one_reason_and_the_first_of_each_is_logged(caplog):
    bad = [("XX", 1), ("M1B", 1), ("M99A", 1), ("A1C", 1), ("M1M", 1), ("M1C:M1D", 1), ("M1D", "n/a"), ("M1E", "inf"),
           ("M1F", ""), ("M1A", 9.0)]  # fmt: skip
    rows = rows_of([*GOOD[:2], *bad, GOOD[2]])
    with caplog.at_level(logging.WARNING):
        assay = read(rows)
    assert dict(zip(assay.mutations, assay.scores)) == {"M1A": 0.5, "K2C:T3D": -1.25, "K2W:T3D": 2.0}
    assert assay.counts == {
        "drawn": 3, "not_drawn": 0, "malformed": 1, "not_canonical": 1, "out_of_range": 1, "wildtype_mismatch": 1,
        "synonymous": 1, "position_twice": 1, "no_score": 3, "duplicate": 1,
    }  # fmt: skip
    assert sum(assay.counts.values()) == len(rows)
    assert "a.csv: 3 rows left out, no_score; the first, row 10: score 'n/a'" in caplog.text


def test_a_row_whose_mutated_sequence_is_another_one_is_left_out():
    rows = rows_of(GOOD, with_sequence=True)
    rows[1]["mutated_sequence"] = WILDTYPE
    assay = read(rows, source=source(mutated="mutated_sequence"))
    assert assay.counts == {"drawn": 2, "not_drawn": 0, "sequence_mismatch": 1}


def test_variants_are_drawn_by_their_keyed_hash_whatever_the_order_and_smaller_draws_are_nested():
    pairs = [(f"{WILDTYPE[p]}{p + 1}{aa}", p) for p in range(10) for aa in "CDEFGHW" if WILDTYPE[p] != aa]
    whole = read(rows_of(pairs))
    few, reversed_few = (read(rows_of(order), max_variants=9) for order in (pairs, pairs[::-1]))
    assert few.mutations == reversed_few.mutations == whole.mutations[:9]
    assert few.counts == {"drawn": 9, "not_drawn": len(pairs) - 9}
    assert read(rows_of(pairs), max_variants=9, seed=2).mutations != few.mutations
    assert read(rows_of(pairs), max_variants=9, source=source(assay_id="B")).mutations != few.mutations


def test_an_assay_none_of_whose_rows_can_be_used_is_an_error_that_counts_them():
    with pytest.raises(
        SourceError, match=r"none of its 2 rows can be used \(wildtype_mismatch 2\).*positions count in"
    ):
        read(rows_of([("A1C", 1), ("A2C", 1)]))
    with pytest.raises(SourceError, match="it is empty"):
        read([])
    with pytest.raises(SourceError, match="no column DMS_score; it has mutant, score"):
        read([{"mutant": "M1A", "score": "1"}])


# ----------------------------------------------------------------------------------------------------------------
# Formats


def csv_text(rows) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def reference(folder: Path, **changes) -> Path:
    rows = [
        {"DMS_index": i, "DMS_id": f"A{i}", "DMS_filename": f"A{i}.csv", "UniProt_ID": f"P{i}", "target_seq": WILDTYPE,
         "coarse_selection_type": "Stability", **changes}
        for i in range(3)
    ]  # fmt: skip
    (folder / "DMS_substitutions.csv").write_text(csv_text(rows))
    return folder / "DMS_substitutions.csv"


def members(n=3):
    return {f"DMS_ProteinGym_substitutions/A{i}.csv": csv_text(rows_of(GOOD[: i + 1], with_sequence=True))
            for i in range(n)}  # fmt: skip


def archive(folder: Path, contents=None) -> Path:
    path = folder / "DMS_ProteinGym_substitutions.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in (members() if contents is None else contents).items():
            file.writestr(name, text)
    return path


def run(folder: Path, assays, *, shards=1, max_variants=100):
    paths = [folder / f"{shard}.parquet" for shard in range(shards)]
    main(["--assays", json.dumps(assays), "--max-variants", str(max_variants), "--seed", "1", "--shards",
          *map(str, paths), "--counts", str(folder / "counts.parquet")])  # fmt: skip
    return [pl.from_arrow(read_table(path, VARIANTS)) for path in paths], read_table(folder / "counts.parquet", ASSAYS)


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_proteingym_is_read_from_the_published_archive_or_a_folder_and_nothing_is_unpacked(tmp_path, kind):
    variants = archive(tmp_path)
    if kind == "folder":
        variants = tmp_path / "folder"
        variants.mkdir()
        for name, text in members().items():
            (variants / Path(name).name).write_text(text)
    before = set(tmp_path.rglob("*"))
    entry = {"format": "proteingym", "reference": str(reference(tmp_path)), "variants": str(variants)}
    (table,), counts = run(tmp_path, [entry])
    assert table["assay_id"].cast(pl.String).value_counts().sort("assay_id").rows() == [("A0", 1), ("A1", 2), ("A2", 3)]
    assert set(table["sequence"].cast(pl.String)) == {WILDTYPE}
    a2 = table.filter(pl.col("assay_id").cast(pl.String) == "A2")
    assert dict(a2.select("mutations", "score").rows()) == {"M1A": 0.5, "K2C:T3D": -1.25, "K2W:T3D": 2.0}
    assert dict(a2.select("mutations", "n_mutations").rows())["K2C:T3D"] == 2
    assert a2["variant"].to_list() == [0, 1, 2]
    assert sum(counts.column("n_rows").to_pylist()) == 6
    made = set(tmp_path.rglob("*")) - before
    assert {path.suffix for path in made} == {".parquet", ".csv"}, "the reference was written by this test"


def test_ids_choose_assays_and_an_unknown_one_is_named(tmp_path):
    entry = {"format": "proteingym", "reference": str(reference(tmp_path)), "variants": str(archive(tmp_path))}
    (table,), _ = run(tmp_path, [{**entry, "ids": ["A1"]}])
    assert set(table["assay_id"].cast(pl.String)) == {"A1"}
    with pytest.raises(SystemExit, match="no assay A9; it has 3, the first A0"):
        run(tmp_path, [{**entry, "ids": ["A9"]}])


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ({}, "0 members of that name; expected one"),
        ({**members(), "other/A1.csv": "x"}, "A1.csv: 2 members of that name"),
        ({**members(), "DMS_ProteinGym_substitutions/A0.csv": b"mutant,\xff\xfe"}, "A0.csv: damaged"),
    ],
)
def test_an_archive_that_is_not_what_the_reference_says_is_refused(tmp_path, contents, says):
    entry = {
        "format": "proteingym",
        "reference": str(reference(tmp_path)),
        "variants": str(archive(tmp_path, contents)),
    }
    with pytest.raises(SystemExit, match=says):
        run(tmp_path, [entry])
    assert not (tmp_path / "0.parquet").exists() and not (tmp_path / "counts.parquet").exists()


def test_files_beside_the_assays_that_archivers_add_are_not_taken_for_assays(tmp_path):
    contents = {**members(), "__MACOSX/A1.csv": "x", "DMS_ProteinGym_substitutions/._A2.csv": "x"}
    entry = {
        "format": "proteingym",
        "reference": str(reference(tmp_path)),
        "variants": str(archive(tmp_path, contents)),
    }
    (table,), _ = run(tmp_path, [entry])
    assert len(table) == 6


def test_a_truncated_archive_is_refused(tmp_path):
    path = archive(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    entry = {"format": "proteingym", "reference": str(reference(tmp_path)), "variants": str(path)}
    with pytest.raises(SystemExit, match="neither a folder nor a whole zip archive"):
        run(tmp_path, [entry])


def test_a_flipped_byte_inside_the_archive_is_found(tmp_path):
    path = tmp_path / "stored.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, text in members().items():
            file.writestr(name, text)
    data = bytearray(path.read_bytes())
    place = data.index(b"-1.25")
    data[place + 1] ^= 2
    path.write_bytes(bytes(data))
    entry = {"format": "proteingym", "reference": str(reference(tmp_path)), "variants": str(path)}
    with pytest.raises(SystemExit, match=r"damaged.*CRC"):
        run(tmp_path, [entry])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target_seq": "MKX"}, r"the wild type holds \['X'\]"),
        ({"DMS_id": "A0"}, "DMS_id A0 stands twice"),
        ({"DMS_filename": "../A0.csv"}, "0 members of that name"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(tmp_path, change, says):
    entry = {
        "format": "proteingym",
        "reference": str(reference(tmp_path, **change)),
        "variants": str(archive(tmp_path)),
    }
    with pytest.raises(SystemExit, match=says):
        run(tmp_path, [entry])


def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "A0.csv").write_text("x")
    entry = {"format": "proteingym", "reference": str(reference(tmp_path, DMS_filename="../A0.csv")),
             "variants": str(folder)}  # fmt: skip
    with pytest.raises(SystemExit, match="expected a file name without folders"):
        run(tmp_path, [{**entry, "ids": ["A0"]}])


def table_entry(**changes) -> dict:
    dms = ROOT / "resources" / "mini" / "dms"
    return {"format": "table", "assay_id": "PABP", "uniprot_id": "PABP_YEAST", "category": "OrganismalFitness",
            "variants": str(dms / "PABP_YEAST_RRM2_Melamed2013.csv"), "mutant": "domain_mutant",
            "wildtypes": str(dms / "wildtypes.fasta"), "wildtype": "PABP_YEAST_RRM2", **changes}  # fmt: skip


def test_every_row_of_the_mini_assays_fits_its_domain(tmp_path):
    other = table_entry(assay_id="DLG4", wildtype="DLG4_RAT_PDZ3", uniprot_id="DLG4_RAT",
                        variants=str(ROOT / "resources/mini/dms/DLG4_RAT_PDZ3_McLaughlin2012.csv"))  # fmt: skip
    (first, second), counts = run(tmp_path, [table_entry(), other], shards=2, max_variants=10_000)
    assert (len(first), len(second)) == (585, 528), "585 x 75 residues cost more than 528 x 83"
    assert set(counts.column("reason").to_pylist()) == {"drawn", "not_drawn"}
    assert read_metadata(tmp_path / "0.parquet")["seed"] == "1"
    assert first["score"].min() == -6.721682102


@pytest.mark.parametrize(
    ("assays", "says"),
    [
        ([], "no assay; expected at least one"),
        ([{"format": "excel"}], "expected a mapping whose format is one of proteingym, table"),
        ([{"format": "proteingym"}], r"needs \['reference', 'variants'\]"),
        ([table_entry(colour="red")], "colour"),
        ([table_entry(wildtype="PABP")], "no 'PABP'; it has PABP_YEAST_RRM2, DLG4_RAT_PDZ3"),
        ([table_entry(variants="nowhere.csv")], "nowhere.csv: cannot be read"),
        ([table_entry(), table_entry()], "assay PABP stands twice"),
        ([table_entry(mutant="mutant")], "none of its 585 rows can be used"),
    ],
)
def test_assays_that_cannot_be_read_end_in_one_message(tmp_path, assays, says):
    with pytest.raises(SystemExit, match=says):
        run(tmp_path, assays)


def test_shards_cost_about_the_same_and_hold_every_assay_once():
    costs = [100, 7, 1, 55, 30, 30, 8, 0]
    shards = dealt(costs, 3)
    assert sorted(place for shard in shards for place in shard) == list(range(8))
    loads = [sum(costs[place] for place in shard) for shard in shards]
    assert max(loads) == 100 and min(loads) >= 55
    assert all(dealt([0] * 4, 4)), "no shard is empty, whatever the costs"
    with pytest.raises(SourceError, match="2 assays for 3 shards"):
        dealt([1, 1], 3)
