"""Every family through the whole door, from its layout on disk to the cache, which holds the model's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from plm_depth.activations import extract
from plm_depth.models import describe, registry
from plm_depth.tables import AMINO_ACIDS, LENS_KEYS, MOMENT_KEYS, MOMENTS, SEQUENCES, VectorTable, write_table
from plm_depth.views import mask_of, views_of

PROTEINS = {"a": "MKTAYIAKQRQISFVKSHFSRQ", "b": "GSHMLEDPVR", "c": "MKVLXAGIVGLCAKAYEWWWNDE"}
SIZES = {"n_blocks": 2, "d_model": 16, "n_heads": 2}
OTHER_SIZES = {"progen2": {**SIZES, "n_heads": 8}, "esm3": {"n_blocks": 2, "d_model": 64, "n_heads": 1, "d_mlp": 32}}
INPUTS = {
    "ar": {"directions": ["n2c"]},
    "mlm": {"noise": [0.15], "draws": 1, "clean": False},
    "diffusion": {"noise": [0.5], "draws": 1, "clean": False},
}
SEED = 7


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shard") / "shard.parquet"
    columns = {
        "sequence_id": list(PROTEINS),
        "sequence_hash": list(PROTEINS),
        "rank": np.arange(len(PROTEINS)),
        "n_residues": [len(sequence) for sequence in PROTEINS.values()],
        "sequence": list(PROTEINS.values()),
    }
    write_table(columns, SEQUENCES, path)
    return path


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_the_cache_of_every_family_holds_the_numbers_of_its_model(family, shard, tmp_path):
    adapter = registry.build(family, OTHER_SIZES.get(family, SIZES), seed=1)
    registry.save(adapter, tmp_path / "checkpoint")
    card = tmp_path / "card.json"
    common = ["--model", family, "--family", family, "--folder", str(tmp_path / "checkpoint"), "--output", str(card)]
    describe.main(common)
    paths = {name: tmp_path / f"{name}.parquet" for name in ("moments", "lens", "stream")}
    options = {"nulls": json.dumps([{"null_model": "trained", "seed": -1}]), "inputs": json.dumps(INPUTS)}
    options |= {"card": card, "sequences": shard, "seed": SEED, "token-budget": 64, "device": "cpu", **paths}
    extract.main([part for name, value in options.items() for part in (f"--{name}", str(value))])

    (view,) = views_of(adapter.objective, INPUTS)
    moments, lens = VectorTable(paths["moments"], MOMENT_KEYS), VectorTable(paths["lens"], LENS_KEYS)
    rows = moments.keys().to_pylist()
    reads = lens.keys().to_pylist()
    hh = moments.layer(adapter.n_blocks)[:, MOMENTS.index("hh")]
    logits = lens.layer(adapter.n_blocks)
    columns = torch.tensor(list(adapter.vocabulary))
    n_reads = 0
    for sequence_id, sequence in PROTEINS.items():
        masked = mask_of(view, len(sequence), SEED, sequence_id)
        tokens = adapter.encode(sequence, masked=masked if masked.any() else None, direction=view.direction)
        batch = adapter.collate([tokens])
        with torch.inference_mode():
            expected = adapter.library_logits(batch)[0][:, columns]
            stream, context = adapter.embed(batch)
            for block in range(1, adapter.n_blocks + 1):
                stream = adapter.add(stream, adapter.updates(block, stream, context))
        squared = (stream[0].double() ** 2).sum(-1)
        for row, value in zip(rows, hh, strict=True):
            if row["sequence_id"] == sequence_id and row["pos_class"] != "special":
                token = tokens.residue_tokens[row["position"]]
                np.testing.assert_allclose(value, squared[token], rtol=1e-4)
        for row, value in zip(reads, logits, strict=True):
            if row["sequence_id"] == sequence_id:
                token = tokens.residue_tokens[row["position"]] + adapter.read_offset
                np.testing.assert_allclose(value, expected[token], rtol=0, atol=1e-4)
                n_reads += 1
    assert n_reads == len(reads)
    assert (n_reads > 0) == adapter.tokens_are_residues
    if adapter.tokens_are_residues:
        n_canonical = sum(letter in AMINO_ACIDS for sequence in PROTEINS.values() for letter in sequence)
        assert sum(row["pos_class"] != "special" for row in rows) == n_canonical
