"""Proteins to train on: reading, disjointness, composition, crops, batches."""

import gzip
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS
from plm_depth.training.corpus import (
    CorpusError,
    Protein,
    background,
    batches_of,
    check_disjoint,
    crop_of,
    indices_of,
    read_fasta,
    training_batches,
)


def test_proteins_are_read_in_order_with_the_first_word_as_id(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(">P1 some words\nMKT\nAYI\n>P2\nACD\n")
    assert read_fasta(path) == [Protein("P1", "MKTAYI"), Protein("P2", "ACD")]


def test_a_gzipped_file_is_read_as_the_plain_one(tmp_path):
    path = tmp_path / "a.fasta.gz"
    path.write_bytes(gzip.compress(b">P1\nMKT\n"))
    assert read_fasta(path) == [Protein("P1", "MKT")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no proteins"),
        (b"MKTAYI\n", "not a readable FASTA"),
        (b">P1\nMKT\n>P1\nACD\n", "record 2: 'P1' is there twice"),
        (b">P1\nMKT\n>\nACD\n", "record 2 has no id"),
    ],
)
def test_a_bad_file_is_named_with_its_record(tmp_path, content, message):
    path = tmp_path / "bad.fasta"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=rf"bad\.fasta: .*{message}|bad\.fasta: {message}"):
        read_fasta(path)


def test_a_cut_gzip_is_refused_and_never_read_as_fewer_proteins(tmp_path):
    letters = generator(0).choice(list(AMINO_ACIDS), (2000, 60))
    whole = gzip.compress("".join(f">P{i}\n{''.join(row)}\n" for i, row in enumerate(letters)).encode())
    path = tmp_path / "cut.fasta.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match=r"cut\.fasta\.gz: not a readable FASTA"):
        read_fasta(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"none\.fasta: not a readable FASTA"):
        read_fasta(tmp_path / "none.fasta")


def test_a_protein_on_both_sides_is_refused_under_any_name():
    train = [Protein("P1", "MKT"), Protein("P2", "ACD")]
    with pytest.raises(CorpusError, match=r"'Q9'.*also a training protein \('P2'\)"):
        check_disjoint(train, [Protein("Q8", "GGG"), Protein("Q9", "ACD")])
    with pytest.raises(CorpusError, match=r"'P1'.*also a training protein \('P1'\)"):
        check_disjoint(train, [Protein("P1", "GGG")])
    check_disjoint(train, [Protein("Q8", "GGG")])


def test_indices_follow_the_order_of_the_amino_acids_and_other_letters_have_none():
    assert indices_of(AMINO_ACIDS).tolist() == list(range(20))
    assert indices_of("AXBé").tolist() == [0, -1, -1, -1]


def test_the_background_is_minus_the_log_of_the_counts_plus_one():
    nats = background([Protein("P1", "AAAX"), Protein("P2", "C")])
    expected = np.full(20, 1 / 24)
    expected[0], expected[1] = 4 / 24, 2 / 24
    np.testing.assert_allclose(nats, -np.log(expected))


def test_a_crop_is_a_piece_of_the_asked_length_keyed_by_protein_and_epoch():
    protein = Protein("P1", "".join(AMINO_ACIDS[i % 20] for i in range(300)))
    pieces = [crop_of(protein, 100, 7, epoch) for epoch in range(50)]
    assert all(len(piece.sequence) == 100 and piece.sequence in protein.sequence for piece in pieces)
    assert len(set(pieces)) > 10
    assert pieces[3] == crop_of(protein, 100, 7, 3)
    assert crop_of(protein, 300, 7, 0) == crop_of(protein, 999, 7, 0) == protein


def test_crops_reach_both_ends():
    protein = Protein("P1", "ACDEF")
    assert {crop_of(protein, 3, 0, epoch).sequence for epoch in range(60)} == {"ACD", "CDE", "DEF"}


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80), seed=st.none() | st.integers(0, 9))
def test_batches_hold_every_row_once_and_never_more_than_the_budget(lengths, seed):
    batches = batches_of(lengths, 64, None if seed is None else generator(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 64 for batch in batches)


def test_rows_of_one_batch_have_similar_lengths():
    lengths = generator(1).integers(40, 400, 300)
    batches = batches_of(lengths, 2000, generator(2))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.1 * lengths.sum()
    assert lengths[batches[0]].max() != lengths.max() or lengths[batches[-1]].min() != lengths.min()  # not sorted


def test_a_row_above_the_budget_is_refused_with_the_mend():
    with pytest.raises(CorpusError, match=r"65 tokens exceeds the 64 .*raise tokens_per_batch or set crop"):
        batches_of([3, 65], 64)


def test_every_epoch_shows_every_protein_once_in_a_new_order_that_the_seed_decides():
    lengths = generator(3).integers(10, 30, 40)
    n_batches = len(batches_of(lengths, 64, generator(5, "order", 0)))
    drawn = list(islice(training_batches(lengths, 64, 5), 3 * n_batches))
    epochs = [[rows for epoch, rows in drawn if epoch == k] for k in range(2)]
    assert (
        sorted(i for rows in epochs[0] for i in rows)
        == sorted(i for rows in epochs[1] for i in rows)
        == list(range(40))
    )
    assert epochs[0] != epochs[1]
    assert drawn == list(islice(training_batches(lengths, 64, 5), 3 * n_batches))
    assert drawn != list(islice(training_batches(lengths, 64, 6), 3 * n_batches))
