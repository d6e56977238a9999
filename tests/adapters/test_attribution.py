"""Every family through gates, states and erasures: weights loaded as in a run, gradients through its own blocks."""

import logging

import numpy as np
import pytest
import torch

from plm_depth.activations.attribution import Settings, attributions, erasures_of, protein_of
from plm_depth.activations.erasure import erase, mean_states
from plm_depth.activations.gradients import frozen
from plm_depth.activations.sweep import OUTPUTS
from plm_depth.models import registry
from plm_depth.tables import COMPLETE
from plm_depth.views import views_of

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
SIZES = {"n_blocks": 2, "d_model": 16, "n_heads": 2}
OTHER_SIZES = {"progen2": {**SIZES, "n_heads": 8}, "esm3": {"n_blocks": 2, "d_model": 64, "n_heads": 1, "d_mlp": 32}}
INPUTS = {
    "ar": {"directions": ["n2c"]},
    "mlm": {"noise": [0.15], "draws": 1, "clean": False},
    "diffusion": {"noise": [0.5], "draws": 1, "clean": False},
}
LOG = logging.getLogger("test")
ROUTED = ("progen3",)  # routing is discrete: the gradient does not see it change, so completeness may fail


@pytest.fixture(params=registry.FAMILIES)
def loaded(request, tmp_path):
    """Return a small model read back from its family's layout: its self-check has run under inference mode."""
    adapter = registry.build(request.param, OTHER_SIZES.get(request.param, SIZES), seed=1)
    registry.save(adapter, tmp_path / "checkpoint")
    adapter = registry.load(request.param, tmp_path / "checkpoint")
    with torch.no_grad():
        for parameter in adapter.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return adapter


def test_attributions_of_every_family_add_up(loaded):
    (view,) = views_of(loaded.objective, INPUTS)
    settings = Settings(methods=("gate", "gate_part", "layer", "attn", "mlp"), targets=("logp", "prob"), steps=64)
    if not loaded.tokens_are_residues:
        return
    with frozen(loaded):
        protein = protein_of(loaded, "P", SEQUENCE, view, settings, seed=0)
        found = attributions(loaded, protein, settings, token_budget=4096, log=LOG)
    names = {part.object for part in found}
    assert {"gate", "gate_attn", "gate_mlp", "layer", "attn", "mlp"} <= names
    assert ("gate_geom" in names) == (loaded.family == "esm3")
    for part in found:
        assert np.isfinite(part.values).all()
        if part.object != "gate_geom":  # without coordinates the geometric branch adds nothing
            assert np.abs(part.values).max() > 0
        if loaded.family not in ROUTED:
            assert part.error.max() < COMPLETE, part.object
        else:
            assert part.error.max() < 0.5, part.object


def test_erasures_of_every_family_fade_to_zero_at_the_last_state(loaded):
    (view,) = views_of(loaded.objective, INPUTS)
    settings = Settings(positions=2)
    if not loaded.tokens_are_residues:
        return
    protein = protein_of(loaded, "P", SEQUENCE, view, settings, seed=0)
    means = mean_states(loaded, [(protein.tokens, protein.residues)])
    reads = protein.readers.tokens.numpy()
    for position, counted, erasures in erasures_of(protein, view, means, settings, seed=0):
        changes = erase(
            loaded, protein.states[0], protein.context, erasures, reads, {"aa20": loaded.residue_ids},
            token_budget=4096, log=LOG,
        )["aa20"][:, OUTPUTS.index("l2")][:, counted]  # fmt: skip
        assert changes[0].max() > 1e-5, position
        assert changes[-1].max() <= 1e-6, position
