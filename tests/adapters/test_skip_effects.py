"""Every family through the sweep: the numbers of one plain walk per silenced block."""

import logging

import numpy as np
import pytest
import torch

from plm_depth.activations.interventions import Intervention, Lane, position_sets
from plm_depth.activations.sweep import Work, sweep
from plm_depth.models import registry
from plm_depth.models.base import Adapter, Tokens, Updates

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
SIZES = {"n_blocks": 3, "d_model": 16, "n_heads": 2}
OTHER_SIZES = {"progen2": {**SIZES, "n_heads": 8}, "esm3": {"n_blocks": 3, "d_model": 64, "n_heads": 1, "d_mlp": 32}}


def lively(family: str) -> Adapter:
    """Return a small model whose updates are as large as its stream."""
    adapter = registry.build(family, OTHER_SIZES.get(family, SIZES), seed=1)
    with torch.no_grad():
        for parameter in adapter.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return adapter


@torch.inference_mode()
def walk(
    adapter: Adapter, tokens: Tokens, part: str | None = None, source: int = 0, at: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return every update (n_blocks, n_tokens, d_model) and the last stream, with one part of one block silenced."""
    stream, context = adapter.embed(adapter.collate([tokens]))
    here = None if at is None else torch.from_numpy(at)[:, None]
    updates = []
    for block in range(1, adapter.n_blocks + 1):
        step = adapter.updates(block, stream, context)
        after, total = adapter.add(stream, step), step.total
        if block == source and part == "layer":
            after, total = torch.where(here, stream, after), torch.where(here, 0, total)
        elif block == source:
            attention, geometric, mlp = step.attention, step.geometric, step.mlp
            if part == "attn":
                attention = torch.where(here, 0, attention)
            if part == "geom":
                geometric = torch.where(here, 0, geometric)
            middle = stream if adapter.is_parallel else stream + attention
            if part == "attn" and geometric is not None:
                geometric = adapter.geometric_update(block, middle, context)
            if geometric is not None:
                middle = middle + geometric
            mlp = torch.where(here, 0, mlp) if part == "mlp" else adapter.mlp_update(block, middle, context)
            changed = Updates(attention, mlp, middle, geometric)
            after, total = adapter.add(stream, changed), changed.total
        updates.append(total[0])
        stream = after
    return torch.stack(updates).numpy(), stream[0].numpy()


CASES = [(family, part) for family in registry.FAMILIES for part in ("layer", "attn", "mlp")] + [("esm3", "geom")]


@pytest.mark.parametrize(("family", "part"), CASES)
def test_effects_of_every_family_are_those_of_plain_walks(family, part):
    adapter = lively(family)
    masked = None
    if adapter.mask_id is not None:
        masked = np.isin(np.arange(len(SEQUENCE)), [2, 9])
    tokens = adapter.encode(SEQUENCE, masked=masked, direction=adapter.directions[0])
    clean, _ = walk(adapter, tokens)
    sources = (1,) if part == "geom" else range(1, adapter.n_blocks + 1)
    for positions in position_sets(["all", "other", "prefix"], SEQUENCE, tokens, seed=0, sequence_id="p", draws=1):
        lanes = tuple(Lane((Intervention(part, source, positions.skip),)) for source in sources)
        ((_, outcome),) = sweep(
            adapter, [Work("p", tokens, lanes)], token_budget=10**6, max_padding=0.0, log=logging.getLogger("test")
        )
        size = np.linalg.norm(clean, axis=-1)
        np.testing.assert_allclose(outcome.size, size, rtol=1e-4, atol=1e-5 * size.max())
        for lane, source in enumerate(sources):
            altered, _ = walk(adapter, tokens, part, source, positions.skip)
            change = np.linalg.norm(clean - altered, axis=-1)
            np.testing.assert_allclose(outcome.change[lane], change, rtol=1e-3, atol=2e-5 * size.max())
