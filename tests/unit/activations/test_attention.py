"""Attention maps as features of pairs: symmetrised, corrected, and written for a few proteins."""

import json
import logging

import numpy as np
import pytest
import torch

from plm_depth.activations import embed
from plm_depth.activations.attention import chosen, corrected, pair_maps, write_maps
from plm_depth.activations.extract import item_of
from plm_depth.activations.nulls import Null
from plm_depth.models import registry
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, ATTENTION_KEYS, STREAM_KEYS, VectorTable
from plm_depth.views import View

LOG = logging.getLogger("test")
CLEAN, BACKWARD = View("none", 0.0, -1), View("c2n", float("nan"), -1)
SIZES = {"n_blocks": 3, "d_model": 32, "n_heads": 8}


def proteins_of(lengths):
    random = generator(0, "proteins")
    return [(f"P{i}", "".join(random.choice(list(AMINO_ACIDS), size=n))) for i, n in enumerate(lengths)]


def test_the_correction_takes_out_what_rows_and_columns_alone_explain():
    random = torch.Generator().manual_seed(0)
    w = torch.rand(9, generator=random, dtype=torch.float64)
    assert corrected(torch.outer(w, w)).abs().max() < 1e-12
    maps = torch.rand(2, 4, 9, 9, generator=random, dtype=torch.float64)
    found = corrected(maps)
    torch.testing.assert_close(found, found.transpose(-1, -2))
    assert found.sum(-1).abs().max() < 1e-12
    one = maps[1, 2] + maps[1, 2].T
    torch.testing.assert_close(found[1, 2], one - one.sum(0) * one.sum(1)[:, None] / one.sum())
    assert (corrected(torch.zeros(3, 3)) == 0).all()


@pytest.mark.parametrize(("family", "view"), [("esm2", CLEAN), ("progen2", BACKWARD)])
@torch.inference_mode()
def test_pairs_hold_the_maps_of_their_residues_whatever_the_direction(family, view):
    adapter = registry.build(family, SIZES)
    item = item_of(adapter, *proteins_of([20])[0], view, seed=0)
    found = pair_maps(adapter, item, [1, 3])
    assert found.shape == (2, 14 * 15 // 2, 8)
    batch = adapter.collate([item.tokens])
    stream, context = adapter.embed(batch)
    at = item.tokens.residue_tokens
    for block in (1, 2, 3):
        maps = adapter.attention_maps(block, stream, context)[0][:, at][:, :, at].numpy().astype(np.float64)
        stream = adapter.add(stream, adapter.updates(block, stream, context))
        symmetric = maps + maps.swapaxes(1, 2)
        rows = symmetric.sum(2, keepdims=True)
        expected = symmetric - rows * rows.swapaxes(1, 2) / symmetric.sum((1, 2), keepdims=True)
        if block != 2:
            pairs = [expected[:, i, j] for i in range(20) for j in range(i + 6, 20)]
            np.testing.assert_allclose(found[[1, 3].index(block)], pairs, rtol=1e-3, atol=1e-6)


def test_maps_are_written_by_network_view_and_protein(tmp_path):
    adapter = registry.build("esm2", SIZES)
    proteins = proteins_of([12, 9, 4])
    options = {"about": {"model_id": "toy"}, "views": [CLEAN], "blocks": [1, 3], "seed": 0, "log": LOG}
    nulls = [Null("trained", -1), Null("randinit", 5)]
    n = write_maps(adapter, proteins, output=tmp_path / "maps", nulls=nulls, **options)
    table = VectorTable(tmp_path / "maps", ATTENTION_KEYS)
    keys = table.keys().to_pylist()
    assert n == table.n_rows == 2 * (6 * 7 // 2 + 3 * 4 // 2) and table.layers == [1, 3] and table.width == 8
    assert [(k["i"], k["j"]) for k in keys if k["sequence_id"] == "P1" and k["null_model"] == "trained"] == [
        (0, 6), (0, 7), (0, 8), (1, 7), (1, 8), (2, 8),
    ]  # fmt: skip
    trained = np.array([k["null_model"] == "trained" for k in keys])
    assert not np.allclose(table.layer(3)[trained], table.layer(3)[~trained])


def test_a_family_that_does_not_tell_its_maps_gets_an_empty_table(tmp_path, caplog):
    adapter = registry.build("esmc", {"n_blocks": 2, "d_model": 32, "n_heads": 2})
    options = {"about": {"model_id": "toy"}, "views": [CLEAN], "blocks": [1, 2], "seed": 0, "log": LOG}
    with caplog.at_level(logging.WARNING):
        n = write_maps(adapter, proteins_of([12]), output=tmp_path / "maps", nulls=[Null("trained", -1)], **options)
    assert n == VectorTable(tmp_path / "maps", ATTENTION_KEYS).n_rows == 0
    assert "does not tell its attention maps" in caplog.text


def test_the_chosen_proteins_begin_every_larger_choice_whatever_their_order():
    proteins = proteins_of([9] * 20)
    few = chosen(proteins, 4, seed=1)
    assert chosen(proteins[::-1], 9, seed=1)[:4] == few and chosen(proteins, 4, seed=2) != few


def test_the_embedding_command_writes_them_for_proteins_whose_residues_are_all_kept(tmp_path):
    from plm_depth.models.describe import describe
    from plm_depth.tables import write_text

    registry.save(registry.build("esm2", SIZES), tmp_path / "esm2")
    write_text(json.dumps(describe("tiny", "esm2", tmp_path / "esm2")), tmp_path / "card.json")
    for name, lengths in (("chains", [20, 14, 9]), ("members", [10])):
        lines = [f">{name}{i}\n{text}\n" for i, (_, text) in enumerate(proteins_of(lengths))]
        (tmp_path / f"{name}.fasta").write_text("".join(lines))
    options = {
        "--card": tmp_path / "card.json",
        "--device": "cpu",
        "--every": 2,
        "--seed": 1,
        "--output": tmp_path / "stream",
        "--attention": tmp_path / "maps",
        "--attention-proteins": 2,
    }
    words = [str(part) for option in options.items() for part in option]
    files = [str(tmp_path / f"{name}.fasta") for name in ("chains", "members")]
    embed.main([*words, "--sequences", *files, "--residues", "all", "none"])
    table = VectorTable(tmp_path / "maps", ATTENTION_KEYS)
    names = set(table.keys().column("sequence_id").to_pylist())
    assert len(names) == 2 and names <= {"chains0", "chains1", "chains2"} and table.layers == [2, 3]
    assert VectorTable(tmp_path / "stream", STREAM_KEYS).layers == [0, 2, 3]
