"""Attention maps: what a block reads, so that times the values they are what it adds."""

import numpy as np
import pytest
import torch

from planted import toy
from plm_depth.models import registry

SIZES = {"n_blocks": 2, "d_model": 32, "n_heads": 8}
FAMILIES = ["esm2", "esm1b", "dplm", "saprot", "progen2"]
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIK"]


def walked(adapter, block):
    """Return the stream that enters a block, the context, and which tokens are real."""
    direction = adapter.directions[-1]
    batch = adapter.collate([adapter.encode(protein, direction=direction) for protein in PROTEINS])
    stream, context = adapter.embed(batch)
    for k in range(1, block):
        stream = adapter.add(stream, adapter.updates(k, stream, context))
    return stream, context, batch.valid


def of_values(adapter, block, stream, maps):
    """Return the maps times the values of the library's own weights, through its output projection."""
    if adapter.family == "progen2":
        layer = adapter.module.transformer.h[block - 1]
        value, project = layer.attn.v_proj(layer.ln_1(stream)), layer.attn.out_proj
    else:
        attention = adapter.module.esm.encoder.layer[block - 1].attention
        value, project = attention.self.value(attention.LayerNorm(stream)), attention.output.dense
    value = value.unflatten(-1, (SIZES["n_heads"], -1)).transpose(1, 2)
    return project((maps @ value).transpose(1, 2).flatten(-2))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_maps_times_values_are_the_attention_update(family):
    adapter = registry.build(family, SIZES)
    assert adapter.has_attention_maps
    for block in (1, 2):
        stream, context, valid = walked(adapter, block)
        before = adapter.attention_update(block, stream, context)
        maps = adapter.attention_maps(block, stream, context)
        assert maps.shape == (2, SIZES["n_heads"], valid.shape[1], valid.shape[1])
        torch.testing.assert_close(of_values(adapter, block, stream, maps)[valid], before[valid], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(maps.sum(-1)[valid[:, None].expand(-1, maps.shape[1], -1)].float(),
                                   torch.ones(int(valid.sum()) * maps.shape[1]))  # fmt: skip
        assert maps[1, :, : len(PROTEINS[1]) + 2, len(PROTEINS[1]) + 2 :].abs().max() == 0, "padding has no weight"
        # Asking for maps leaves the passes as they were.
        assert torch.equal(adapter.attention_update(block, stream, context), before)


@torch.inference_mode()
def test_an_autoregressive_model_reads_what_came_before_only():
    adapter = registry.build("progen2", SIZES)
    stream, context, _ = walked(adapter, 1)
    maps = adapter.attention_maps(1, stream, context).numpy()
    above = np.triu(np.ones(maps.shape[-2:], bool), 1)
    assert (maps[..., above] == 0).all() and (maps[..., ~above][0] > 0).all()


def test_a_family_that_does_not_tell_says_so():
    adapter = toy()
    assert not adapter.has_attention_maps
    with pytest.raises(NotImplementedError, match="toy does not tell its attention maps"):
        adapter.attention_maps(1, None, None)
