"""Every family through the detours: the numbers of one plain walk per change to the course of blocks."""

import logging

import numpy as np
import pytest
import torch

from adapters.test_skip_effects import SEQUENCE, lively
from planted import along
from plm_depth.activations.ablation import OPS, Ablations, Chosen, plan
from plm_depth.activations.detours import Plus, travel
from plm_depth.activations.effects import geometric_blocks
from plm_depth.activations.sweep import Work
from plm_depth.models import registry
from plm_depth.tables import AMINO_ACIDS


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_change_to_every_family_is_that_of_a_plain_walk(family):
    adapter = lively(family)
    masked = np.isin(np.arange(len(SEQUENCE)), [2, 9]) if adapter.mask_id is not None else None
    tokens = adapter.encode(SEQUENCE, masked=masked, direction=adapter.directions[0])
    positions = np.arange(1, len(SEQUENCE)) if adapter.tokens_are_residues else np.array([1])
    reads = np.maximum(tokens.residue_tokens[positions] + adapter.read_offset, 0)
    true = adapter.residue_ids[[AMINO_ACIDS.index(SEQUENCE[p]) for p in positions]]
    n, work = adapter.n_blocks, Work("p", tokens, (), reads, true)
    chosen = Chosen(np.zeros((n + 1, n + 1)), torch.linspace(-1, 1, n * adapter.d_model).reshape(n, -1))
    planned = plan(n, Ablations(ops=OPS, spans=(2, 3)), seed=0, chosen=chosen, geometric=geometric_blocks(adapter))
    ((_, values),) = travel(
        adapter, [work], planned.detours, token_budget=10**6, max_padding=0.0, log=logging.getLogger("test")
    )
    full, rows = along(adapter, work, range(1, n + 1)), np.arange(len(reads))
    at = [AMINO_ACIDS.index(SEQUENCE[p]) for p in positions]
    np.testing.assert_allclose(values[0, 0], -full[rows, at], atol=2e-4)
    for detour, found in zip(planned.detours, values[1:], strict=True):
        course: list = list(range(1, detour.start + 1))
        for step in detour.steps:
            course.append(step.value if isinstance(step, Plus) else list(step.blocks))
        altered = along(adapter, work, [*course, *range(detour.end + 1, n + 1)])
        np.testing.assert_allclose(found[0], -altered[rows, at], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found[2], (np.exp(full) * (full - altered)).sum(-1), rtol=1e-3, atol=1e-3)
    assert any(trial.moves_geometric for trial in planned.trials) == (family == "esm3")
