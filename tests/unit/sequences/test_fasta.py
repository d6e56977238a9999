"""The FASTA reader: what it takes, what it counts, and what it refuses."""

import bz2
import contextlib
import gzip
import io
import lzma
import random
from pathlib import Path

import dnaio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plm_depth.sequences import SourceError, fasta
from plm_depth.sequences.fasta import clean, raw_accession, raw_batches

MINI = Path(__file__).parents[3] / "resources" / "mini" / "sequences.fasta"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read(path: Path) -> list[tuple[str, str]]:
    parts = [raw.partition(b"\n") for batch in raw_batches(path) for raw in batch]
    return [(raw_accession(header).decode(), clean(body).text.decode()) for header, _, body in parts]


def test_real_proteins_are_read_as_dnaio_reads_them():
    with dnaio.open(MINI) as expected:
        expected = [(record.id.split("|")[1], record.sequence) for record in expected]
    assert len(expected) == 336
    assert read(MINI) == expected


@pytest.mark.parametrize("block", [1, 2, 7, 61, 1000])
def test_records_do_not_depend_on_where_blocks_end(tmp_path, monkeypatch, block):
    path = write(tmp_path / "some.fasta", MINI.read_bytes()[:3000])
    whole = read(path)
    monkeypatch.setattr(fasta, "BLOCK", block)
    assert read(path) == whole
    assert len(whole) > 5


def test_a_record_much_longer_than_a_block_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(fasta, "BLOCK", 64)
    path = write(tmp_path / "long.fasta", b">short\nACD\n>long\n" + b"ACDEFGHIKL\n" * 5000 + b">end\nWY\n")
    assert read(path) == [("short", "ACD"), ("long", "ACDEFGHIKL" * 5000), ("end", "WY")]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["source.fasta", "source.fasta.gz"])
def test_compression_is_told_by_content_and_not_by_name(tmp_path, pack, name):
    assert read(write(tmp_path / name, pack(MINI.read_bytes()))) == read(MINI)


def test_a_plain_file_named_gz_is_read(tmp_path):
    assert read(write(tmp_path / "plain.fasta.gz", MINI.read_bytes())) == read(MINI)


def test_concatenated_gzip_members_are_read_to_the_end(tmp_path):
    path = write(tmp_path / "two.gz", gzip.compress(b">a\nAC\n>b\nDE") + gzip.compress(b"FG\n>c\nHI\n"))
    assert read(path) == [("a", "AC"), ("b", "DEFG"), ("c", "HI")]


def test_the_reader_goes_on_if_a_stream_says_end_too_early(tmp_path, monkeypatch):
    class Hasty(io.BytesIO):
        """Says "end" before its second half, once, as a reader with a queue may."""

        def read(self, n=-1):
            if self.tell() >= 40 and not hasattr(self, "said"):
                self.said = True
                return b""
            return super().read(min(n, 40))

    content = MINI.read_bytes()[:400]
    path = write(tmp_path / "some.fasta", content)
    whole = read(path)
    monkeypatch.setattr(fasta, "_decompressed", lambda file: contextlib.nullcontext(Hasty(content)))
    assert read(path) == whole


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_cut_archive_is_an_error_wherever_it_is_cut(tmp_path, pack):
    packed = pack(MINI.read_bytes())
    cuts = [1, 5, *random.Random(1).sample(range(10, len(packed)), 25), *range(len(packed) - 12, len(packed))]
    for cut in cuts:
        path = write(tmp_path / "cut.gz", packed[:cut])
        with pytest.raises(SourceError, match=r"cut\.gz: (cut or damaged|not FASTA)"):
            list(raw_batches(path))


def test_a_damaged_archive_is_an_error_that_names_file_and_record(tmp_path):
    packed = gzip.compress(MINI.read_bytes())
    for place in random.Random(2).sample(range(20, len(packed)), 25):
        damaged = bytearray(packed)
        damaged[place] ^= 0x10
        path = write(tmp_path / "damaged.gz", damaged)
        with pytest.raises(SourceError, match=r"damaged\.gz: (cut or damaged after record \d+|not FASTA)"):
            list(raw_batches(path))


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", gzip.compress(b""), gzip.compress(b"\n")])
def test_an_empty_file_is_an_error(tmp_path, content):
    with pytest.raises(SourceError, match=r"empty\.fasta: empty, expected at least one FASTA record"):
        list(raw_batches(write(tmp_path / "empty.fasta", content)))


@pytest.mark.parametrize("content", [b"ACDEF\n", b"@read\nACGT\n+\nIIII\n", b"PAR1\x15\x04", b"; comment\n>a\nAC\n"])
def test_a_file_that_is_not_fasta_is_an_error(tmp_path, content):
    with pytest.raises(SourceError, match=r"x\.fasta: not FASTA: begins with .*expected '>'"):
        list(raw_batches(write(tmp_path / "x.fasta", content)))


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(SourceError, match=r"nothing\.fasta: cannot be read as a file"):
        list(raw_batches(tmp_path / "nothing.fasta"))
    with pytest.raises(SourceError, match="cannot be read as a file"):
        list(raw_batches(tmp_path))


@pytest.mark.parametrize("content", [b">a\nAC\n>b\n>c\nDE\n", b">a\nAC\n>b", b">a\nAC\n>b\n*\n", b">a\nAC\n>b\n \n\n"])
def test_a_record_without_residues_is_an_error(tmp_path, content):
    with pytest.raises(SourceError, match="no residues"):
        read(write(tmp_path / "x.fasta", content))


@pytest.mark.parametrize("strange", [b"AC1DE", b"AC#", b"AC\x00", b"AC\xc3\xa4", b"AC>DE", b"+\nIIII"])
def test_a_character_of_no_sequence_is_an_error(tmp_path, strange):
    with pytest.raises(SourceError, match="in the sequence, expected letters"):
        read(write(tmp_path / "x.fasta", b">a\nAC\n>b\n" + strange + b"\n"))


@pytest.mark.parametrize("header", [b"", b" sp|P1|N", b"  ", b"\r"])
def test_a_header_without_accession_is_an_error(tmp_path, header):
    with pytest.raises(SourceError, match="no accession directly behind '>'"):
        read(write(tmp_path / "x.fasta", b">a\nAC\n>" + header + b"\nDE\n"))


def test_an_accession_that_is_not_text_is_an_error(tmp_path):
    with pytest.raises(SourceError, match=r"the accession .* is not UTF-8"):
        read(write(tmp_path / "x.fasta", b">a\xff\nAC\n"))


@pytest.mark.parametrize(
    ("header", "accession"),
    [
        (b"UniRef50_A0A123 Uncharacterized protein n=2 Tax=X", b"UniRef50_A0A123"),
        (b"sp|P12345|AATM_RABIT Aspartate aminotransferase OS=Oryctolagus", b"P12345"),
        (b"tr|A0A0B9G5U2|A0A0B9G5U2_9GAMM", b"A0A0B9G5U2"),
        (b"up|A0A0B5AC95|A0A0B5AC95", b"A0A0B5AC95"),
        (b"sp|P12345-2|AATM_RABIT", b"P12345-2"),
        (b"pdb|1ABC|A chain", b"pdb|1ABC|A"),
        (b"gi|129295|sp|P01013|OVAX_CHICK", b"gi|129295|sp|P01013|OVAX_CHICK"),
        (b"sp||EMPTY", b"sp||EMPTY"),
        (b"mine\ta protein", b"mine"),
        (b"mine\r", b"mine"),
        ("protéine 1".encode(), "protéine".encode()),
    ],
)
def test_the_accession_of_a_header(header, accession):
    assert raw_accession(header) == accession


def test_windows_line_ends_blank_lines_and_spaces_are_dropped(tmp_path):
    path = write(tmp_path / "x.fasta", b"\r\n>a one\r\nACD\r\nEF\r\n\r\n>b\r\n GH IK\t\r\n")
    assert read(path) == [("a", "ACDEF"), ("b", "GHIK")]


def test_lower_case_is_upper_cased_and_said():
    assert clean(b"ACde\nfG\n") == fasta.Residues(
        b"ACDEFG", canonical=True, upper_cased=True, stop_dropped=False, n_lower=3
    )


def test_a_stop_at_the_end_is_dropped_and_said():
    assert clean(b"ACD*\n") == fasta.Residues(b"ACD", canonical=True, upper_cased=False, stop_dropped=True)


@pytest.mark.parametrize(
    "body", [b"AC*DE", b"*ACDE", b"ACDE**", b"AC-DE", b"ACDE.", b"ACXDE", b"ACUDE", b"acbde", b"ACJOZ"]
)
def test_anything_but_the_canonical_residues_is_not_canonical(body):
    assert not clean(body).canonical


@given(st.text("ACDEFGHIKLMNPQRSTVWYacdefghiklmnpqrstvwyBJOUXZ*-. \n", min_size=1))
def test_cleaning_keeps_every_letter_in_place(body):
    wanted = "".join(body.split()).upper()
    wanted = wanted[:-1] if wanted.endswith("*") else wanted
    if not wanted:
        with pytest.raises(SourceError, match="no residues"):
            clean(body.encode())
        return
    found = clean(body.encode())
    assert found.text.decode() == wanted
    assert found.canonical == (set(wanted) <= set("ACDEFGHIKLMNPQRSTVWY"))
    assert found.upper_cased == any(letter.islower() for letter in body)


def test_the_bytes_read_are_reported_and_add_up_to_the_file(tmp_path):
    for content in (MINI.read_bytes() * 10, gzip.compress(MINI.read_bytes() * 10)):
        path = write(tmp_path / "x", content)
        seen = []
        for _ in raw_batches(path, seen.append):
            pass
        assert sum(seen) == len(content)
