"""ProtGPT2: pieces of several residues, and what is not read from them."""

import json

import numpy as np
import pytest
import torch

from plm_depth.models import registry, verify
from plm_depth.models.base import CheckpointError, SequenceError
from plm_depth.models.protgpt2 import SEPARATOR, Pieces

SIZES = {"n_blocks": 2, "d_model": 32, "n_heads": 4, "n_positions": 96}


@pytest.fixture(scope="module")
def adapter():
    return registry.build("protgpt2", SIZES, seed=1)


def test_a_protein_is_pieces_between_separators_with_a_line_break_every_60_residues(adapter):
    sequence = "MKTAYIAKQR" * 7
    tokens = adapter.encode(sequence)
    texts = [adapter.vocabulary[i] for i in tokens.ids]
    assert texts[0] == texts[-1] == SEPARATOR
    whole = "".join(texts[1:-1]).replace("Ċ", "\n")  # the byte-level name of a line break
    assert whole == f"\n{sequence[:60]}\n{sequence[60:]}\n"
    assert max(len(text) for text in texts[1:-1]) == 2


def test_every_residue_is_in_the_piece_that_is_named_for_it(adapter):
    sequence = "MKTXAYIAKQRQISFVKSHFSRQ" * 4
    tokens = adapter.encode(sequence)
    assert len(tokens.residue_tokens) == len(sequence)
    assert (np.diff(tokens.residue_tokens) >= 0).all()
    texts = [adapter.vocabulary[i] for i in tokens.ids]
    assert all(letter in texts[token] for letter, token in zip(sequence, tokens.residue_tokens, strict=True))
    counts = np.bincount(tokens.residue_tokens, minlength=len(texts))
    assert all(len(text) == count for text, count in zip(texts, counts, strict=True) if count)
    assert adapter.tokens_are_residues is False


def test_nothing_is_read_residue_by_residue(adapter):
    tokens = adapter.encode("MKTAYI")
    assert len(adapter.read_positions("MKTAYI", tokens, which="next")) == 0


def test_more_pieces_than_positions_are_refused(adapter):
    with pytest.raises(SequenceError, match=r"400 residues are \d+ tokens, but protgpt2 has 96 positions"):
        adapter.encode("MKTA" * 100)


def test_the_encoding_is_saved_and_read_with_the_model(adapter, tmp_path):
    registry.save(adapter, tmp_path)
    again = registry.load("protgpt2", tmp_path)
    assert again.pieces.ids == adapter.pieces.ids and again.pieces.merges == adapter.pieces.merges
    assert list(again.encode("MKTAYIAKQR").ids) == list(adapter.encode("MKTAYIAKQR").ids)
    assert again.module.lm_head.weight is again.module.transformer.wte.weight


def test_weights_saved_from_the_trunk_alone_are_read_too(adapter, tmp_path):
    registry.save(adapter, tmp_path)
    path = tmp_path / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    trunk = {name.removeprefix("transformer."): value for name, value in tensors.items() if name != "lm_head.weight"}
    trunk["h.0.attn.bias"] = torch.ones(1, 1, 96, 96).tril()
    torch.save(trunk, path)
    again = registry.load("protgpt2", tmp_path)
    batch = adapter.collate([adapter.encode("MKTAYI")])
    assert torch.equal(verify.walk(adapter, batch)["logits"], verify.walk(again, batch)["logits"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("merges.txt", "A C D\n", "is not a byte-pair encoding"),
        ("merges.txt", "AA CC\n", "do not fit each other"),
        ("vocab.json", '{"A": 0, "B": 2}', "ids 0 to 1 with"),
        ("vocab.json", '{"A": 0, "B": "x"}', "is not a byte-pair encoding"),
        ("config.json", '{"model_type": "bert"}', "model_type is 'bert', but protgpt2 has 'gpt2'"),
    ],
)
def test_a_broken_folder_is_refused(adapter, tmp_path, name, content, said):
    registry.save(adapter, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=said):
        registry.load("protgpt2", tmp_path)


def test_a_missing_encoding_is_named(adapter, tmp_path):
    registry.save(adapter, tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt: not readable"):
        registry.load("protgpt2", tmp_path)


def test_the_merges_are_used_in_their_order():
    ids = {text: i for i, text in enumerate([*"ACD", "AC", "CD", "ACD", SEPARATOR])}
    first, second = Pieces(ids, [("A", "C"), ("C", "D")]), Pieces(ids, [("C", "D"), ("A", "C")])
    assert list(first.encode("ACD")[0]) == [ids["AC"], ids["D"]]
    assert list(second.encode("ACD")[0]) == [ids["A"], ids["CD"]]
    assert json.loads(json.dumps(first.ids)) == ids
