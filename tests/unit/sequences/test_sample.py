"""The sampler: the same sample for every order, split and compression, and every record counted."""

import gzip
import hashlib
import logging
import random
import tempfile
import tracemalloc
from pathlib import Path

import dnaio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plm_depth.sequences import SourceError
from plm_depth.sequences.sample import REASONS, draw, main
from plm_depth.tables import LEFT_OUT, LETTERS, SEQUENCES, read_table

MINI = Path(__file__).parents[3] / "resources" / "mini" / "sequences.fasta"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def fasta(path: Path, records: list[tuple[str, str]]) -> Path:
    text = "".join(f">{name} something\n{residues}\n" for name, residues in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def some(n: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [(f"P{i:05d}", "".join(rng.choices(AMINO_ACIDS, k=rng.randint(5, 40)))) for i in range(n)]


def keyed(name: str, seed: int) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16, key=str(seed).encode(), person=b"plm-depth sample").digest()


def options(**changed) -> dict:
    return {"size": 20, "seed": 7, "min_length": 10, "max_length": 30} | changed


def test_the_sample_holds_the_smallest_hashes_of_the_records_that_pass(tmp_path):
    records = some(500)
    passing = [(name, residues) for name, residues in records if 10 <= len(residues) <= 30]
    expected = sorted(passing, key=lambda record: keyed(record[0], 7))[:20]
    drawn = draw([fasta(tmp_path / "a.fasta", records)], **options())
    assert list(zip(drawn.columns["sequence_id"], drawn.columns["sequence"])) == expected
    assert drawn.columns["rank"] == list(range(20))
    assert drawn.columns["n_residues"] == [len(residues) for _, residues in expected]
    assert drawn.columns["sequence_hash"] == [hashlib.sha256(r.encode()).hexdigest() for _, r in expected]


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 25), st.integers(0, 9))
def test_the_sample_does_not_depend_on_order_split_or_compression(rng, n_parts, size, seed):
    records = some(60)
    with tempfile.TemporaryDirectory() as folder:
        chosen = options(size=size, seed=seed)
        whole = draw([fasta(Path(folder) / "whole.fasta", records)], **chosen)
        shuffled = rng.sample(records, len(records))
        cuts = sorted(rng.sample(range(1, len(records)), n_parts - 1))
        parts = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(records)])]
        paths = [fasta(Path(folder) / f"part{i}.fasta{rng.choice(['', '.gz'])}", part) for i, part in enumerate(parts)]
        assert draw(paths, **chosen) == whole


def test_a_sample_is_a_prefix_of_every_larger_one(tmp_path):
    path = fasta(tmp_path / "a.fasta", some(500))
    largest = draw([path], **options(size=200)).columns
    for size in (1, 2, 50, 100, 199):
        assert draw([path], **options(size=size)).columns == {name: v[:size] for name, v in largest.items()}


def test_another_seed_draws_other_proteins(tmp_path):
    path = fasta(tmp_path / "a.fasta", some(500))
    first = set(draw([path], **options(seed=1)).columns["sequence_id"])
    second = set(draw([path], **options(seed=2)).columns["sequence_id"])
    assert len(first & second) < 10


def test_seeds_of_any_size_are_taken(tmp_path):
    path = fasta(tmp_path / "a.fasta", some(100))
    drawn = [draw([path], **options(seed=seed)).columns["sequence_id"] for seed in (-1, 1, 2**63)]
    assert drawn[0] != drawn[1] != drawn[2]


def test_every_record_is_counted_once_under_its_reason(tmp_path):
    good = [(f"G{i}", AMINO_ACIDS) for i in range(5)]
    odd = [("X1", "ACDEFGHIKLXMN"), ("X2", "ACDEFGHI*KLMN"), ("X3", "X")]  # X3 is too short as well
    short = [("S1", "ACDEFGHIK"), ("S2", "ACDEFGHIK*")]  # nine residues: the stop does not count
    long = [("L1", "A" * 31)]
    edges = [("E1", "C" * 10), ("E2", "D" * 30), ("E3", "E" * 30 + "*"), ("E4", "f" * 10)]
    drawn = draw([fasta(tmp_path / "a.fasta", good + odd + short + long + edges)], **options(size=6))
    assert drawn.counts == {"sampled": 6, "not_sampled": 3, "non_canonical": 3, "too_short": 2, "too_long": 1}
    assert tuple(drawn.counts) == REASONS
    assert (drawn.upper_cased, drawn.stop_dropped) == (1, 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ACDWYacdxX*", min_size=1, max_size=12).filter(lambda s: s != "*"), min_size=1, max_size=30))
def test_counts_add_up_to_the_records_read(bodies):
    with tempfile.TemporaryDirectory() as folder:
        path = fasta(Path(folder) / "a.fasta", [(f"P{i}", body) for i, body in enumerate(bodies)])
        try:
            drawn = draw([path], **options(size=1, min_length=3, max_length=8))
        except SourceError as error:
            assert f"0 of {len(bodies)} records pass" in str(error)
        else:
            assert sum(drawn.counts.values()) == len(bodies)
            clean = [body.upper().removesuffix("*") for body in bodies]
            passing = [text for text in clean if set(text) <= set(AMINO_ACIDS) and 3 <= len(text) <= 8]
            assert drawn.counts["sampled"] + drawn.counts["not_sampled"] == len(passing)


def test_odd_records_are_sampled_as_their_clean_residues(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_bytes(b">low\nacdEF\nghikl\n>stop\nACDEFGHIKM*\n>windows\r\nACDEF\r\nGHIKN\r\n")
    columns = draw([path], **options(size=3)).columns
    found = dict(zip(columns["sequence_id"], columns["sequence"]))
    assert found == {"low": "ACDEFGHIKL", "stop": "ACDEFGHIKM", "windows": "ACDEFGHIKN"}
    assert columns["n_residues"] == [10, 10, 10]


def test_an_over_long_protein_is_left_out_and_not_cropped(tmp_path):
    path = fasta(tmp_path / "a.fasta", [("ok", "ACDEFGHIKL"), ("titin", "ACDEFGHIKL" * 3000)])
    drawn = draw([path], **options(size=1))
    assert drawn.columns["sequence_id"] == ["ok"]
    assert drawn.counts["too_long"] == 1


@pytest.mark.parametrize("residues", ["A" * 12, "C" * 12])  # the same sequence, and another one
def test_an_accession_twice_in_the_sample_is_an_error_that_names_both_places(tmp_path, residues):
    first = fasta(tmp_path / "first.fasta", [*some(30), ("Q99999", "A" * 12)])
    second = fasta(tmp_path / "second.fasta", [("Q11111", "A" * 12), ("Q99999", residues)])
    n = draw([first], **options(size=1)).counts
    with pytest.raises(SourceError) as caught:
        draw([first, second], **options(size=n["sampled"] + n["not_sampled"] + 1))
    text = str(caught.value)
    assert "accession Q99999 comes twice" in text
    assert "first.fasta, record 31" in text
    assert "second.fasta, record 2" in text


def test_duplicates_outside_the_sample_do_not_matter_in_any_order(tmp_path):
    records = some(300)
    passing = sorted((r for r in records if 10 <= len(r[1]) <= 30), key=lambda r: keyed(r[0], 7))
    twin = passing[-1]  # the largest hash: it enters while the sample fills and is pushed out again
    expected = draw([fasta(tmp_path / "a.fasta", records)], **options())
    for order in ([twin, twin, *records], [*records, twin, twin], [twin, *records, twin]):
        order = [*dict.fromkeys(r for r in order if r != twin)]
        for place in (0, len(order)):
            with_twins = [*order[:place], twin, twin, *order[place:]]
            drawn = draw([fasta(tmp_path / "b.fasta", with_twins)], **options())
            assert drawn.columns == expected.columns
            assert sum(drawn.counts.values()) == len(records) + 1


def test_the_last_protein_of_a_sample_twice_is_an_error_in_any_order(tmp_path):
    records = some(300)
    last = sorted((r for r in records if 10 <= len(r[1]) <= 30), key=lambda r: keyed(r[0], 7))[19]
    for order in ([last, *records], [*records, last]):
        with pytest.raises(SourceError, match=f"{last[0]} comes twice"):
            draw([fasta(tmp_path / "a.fasta", order)], **options())


def test_the_protein_at_the_limit_twice_is_an_error(tmp_path):
    """After twice the size, all but the smallest are forgotten, and the last one kept is the limit."""
    passing = [record for record in some(200) if 10 <= len(record[1]) <= 30][:40]
    last = sorted(passing, key=lambda record: keyed(record[0], 7))[19]
    with pytest.raises(SourceError, match=f"{last[0]} comes twice"):
        draw([fasta(tmp_path / "a.fasta", [*passing, last])], **options())


def test_the_same_file_twice_is_an_error():
    with pytest.raises(SourceError, match=r"comes twice: .*was a file given twice"):
        draw([MINI, MINI], **options(max_length=400))


def test_too_few_records_are_an_error_that_says_how_many_passed(tmp_path):
    path = fasta(tmp_path / "a.fasta", [("a", "A" * 10), ("b", "C" * 5), ("c", "D" * 50), ("d", "X" * 12)])
    with pytest.raises(SourceError) as caught:
        draw([path], **options(size=3))
    assert "1 of 4 records pass the filters, expected at least 3" in str(caught.value)
    assert "non_canonical 1, too_short 1, too_long 1" in str(caught.value)
    assert "lower --size" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"size": 0}, "--size 0"),
        ({"min_length": 0}, "--min-length 0"),
        ({"min_length": 40}, "--min-length 40 --max-length 30"),
    ],
)
def test_bad_options_are_errors(changed, text):
    with pytest.raises(SourceError, match=text):
        draw([MINI], **options(**changed))


def test_a_cut_archive_never_gives_a_sample(tmp_path):
    path = fasta(tmp_path / "a.fasta.gz", some(3000))
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 1, len(whole) - 8, len(whole) - 9):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"a\.fasta\.gz: cut or damaged"):
            draw([path], **options())


def test_bad_records_are_errors_that_name_file_and_record(tmp_path):
    path = tmp_path / "a.fasta"
    for record, text in ((b">b\n", "no residues"), (b">b\nAC9\n", "in the sequence"), (b"> b\nAC\n", "no accession")):
        path.write_bytes(b">a\nACDEFGHIKL\n" + record + b">c\nACDEFGHIKL\n")
        with pytest.raises(SourceError, match=rf"a\.fasta, record 2: .*{text}"):
            draw([path], **options(size=1))


def test_memory_grows_with_the_sample_and_not_with_the_source(tmp_path):
    residues = b"ACDEFGHIKLMNPQRSTVWY" * 10

    def peak(n: int) -> int:
        path = tmp_path / f"{n}.fasta.gz"
        with gzip.open(path, "wb", compresslevel=1) as out:
            for start in range(0, n, 1000):
                out.write(b"".join(b">P%09d\n%b\n" % (i, residues) for i in range(start, start + 1000)))
        tracemalloc.start()
        draw([path], **options(size=500, max_length=200))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(10_000), peak(100_000)
    assert large < 1.2 * small  # 21 MB of text against 2
    assert large < 20e6  # most of it the decompressor's buffers


def test_the_stage_writes_both_tables_and_says_what_it_read(tmp_path, capsys):
    sample, left_out = tmp_path / "out" / "sample.parquet", tmp_path / "out" / "left_out.parquet"
    main(
        f"--fasta {MINI} --size 300 --seed 1 --min-length 64 --max-length 400 --sample {sample} "
        f"--left-out {left_out}".split()
    )
    table = read_table(sample, SEQUENCES)
    counts = dict(zip(*(read_table(left_out, LEFT_OUT).column(c).to_pylist() for c in ("reason", "n_records"))))
    assert table.num_rows == 300
    assert counts == {"sampled": 300, "not_sampled": 28, "non_canonical": 0, "too_short": 8, "too_long": 0}
    with dnaio.open(MINI) as reader:
        source = {record.id.split("|")[1]: record.sequence for record in reader}
    assert all(source[i] == s for i, s in zip(*(table.column(c).to_pylist() for c in ("sequence_id", "sequence"))))
    log = capsys.readouterr().err
    assert "read 336 records" in log
    assert "MB/s" in log
    assert "too_short 8" in log


def test_a_failing_stage_says_one_line_and_leaves_no_table(tmp_path):
    sample, left_out = tmp_path / "sample.parquet", tmp_path / "left_out.parquet"
    with pytest.raises(SystemExit) as caught:
        main(
            f"--fasta {MINI} --size 337 --seed 1 --min-length 1 --max-length 400 --sample {sample} "
            f"--left-out {left_out}".split()
        )
    assert str(caught.value.code).startswith("sample: ")
    assert "\n" not in caught.value.code
    assert list(tmp_path.iterdir()) == []


def test_the_log_reports_lower_case_stops_and_repeated_sequences(tmp_path, caplog):
    from plm_depth.sequences.sample import sample

    path = fasta(tmp_path / "a.fasta", [("a", "acdefghikl"), ("b", "ACDEFGHIKL*"), ("c", "ACDEFGHIKM")])
    with caplog.at_level(logging.INFO):
        sample(
            fastas=[path],
            **options(size=3),
            sample=tmp_path / "s.parquet",
            left_out=tmp_path / "l.parquet",
            log=logging.getLogger("sample"),
        )
    assert "upper-cased 1 records, dropped the stop of 1" in caplog.text
    assert "1 sampled proteins have the sequence of another one" in caplog.text


def test_at_most_takes_all_that_pass_where_fewer_do(tmp_path):
    fasta = tmp_path / "few.fasta"
    fasta.write_text(">a\nMKTAYIAK\n>b\nMKTAYIAR\n>c\nMK\n")
    drawn = draw([fasta], size=10, seed=1, min_length=5, max_length=50, at_most=True)
    assert drawn.counts["sampled"] == 2 and drawn.counts["not_sampled"] == 0 and drawn.counts["too_short"] == 1
    assert len(drawn.columns["sequence_id"]) == 2
    with pytest.raises(SourceError, match="0 of 3 records pass the filters, expected at least 1"):
        draw([fasta], size=10, seed=1, min_length=45, max_length=50, at_most=True)


def test_every_odd_letter_is_counted_by_record_and_by_letter(tmp_path):
    (tmp_path / "f.fasta").write_text(">a\nMKUUT\n>b\nMKUX*T\n>c\nmkvLAT\n>d\nMKVLAT*\n>e\nMK-u.T\n>f\nMKV\n")
    paths = {name: tmp_path / name for name in ("sample", "left_out", "letters")}
    words = [word for name, path in paths.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    main(
        [
            *words,
            "--fasta",
            str(tmp_path / "f.fasta"),
            *["--size", "2", "--seed", "1", "--min-length", "2", "--max-length", "9"],
        ]
    )
    rows = read_table(paths["letters"], LETTERS).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("*", 1, 1, "left out"),
        ("-", 1, 1, "left out"),
        (".", 1, 1, "left out"),
        ("U", 3, 4, "left out"),
        ("X", 1, 1, "left out"),
        ("lower case", 2, 4, "upper-cased"),
        ("stop", 1, 1, "dropped"),
    ]
    counts = dict(zip(*read_table(paths["left_out"], LEFT_OUT).to_pydict().values()))
    assert counts["non_canonical"] == 3, "a record with several odd letters is one record"
