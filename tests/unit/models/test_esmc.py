"""ESM C's own parts: the flat .pth, its fused matrices, and heads that no file names."""

from pathlib import Path

import pytest
import torch

from plm_depth.models import esmc, registry
from plm_depth.models.base import CheckpointError

FIXTURES = Path(__file__).parents[2] / "fixtures"
PTH = FIXTURES / "esmc/pth/data/weights/esmc_300m_2024_12_v0.pth"


@pytest.fixture
def pth(tmp_path):
    """Write a changed .pth where the published repositories have it; return its folder."""

    def write(change):
        tensors = torch.load(PTH, weights_only=True)
        change(tensors)
        (tmp_path / "data/weights").mkdir(parents=True)
        torch.save(tensors, tmp_path / "data/weights/esmc.pth")
        return tmp_path

    return write


def test_both_layouts_hold_the_same_model():
    native = registry.load("esmc", FIXTURES / "esmc/native").module.state_dict()
    flat = registry.load("esmc", FIXTURES / "esmc/pth", n_heads=2).module.state_dict()
    assert list(native) == list(flat)
    assert all(torch.equal(native[name], flat[name]) for name in native)


def test_the_fused_matrices_hold_q_k_v_and_gate_up_in_this_order():
    flat = torch.load(PTH, weights_only=True)
    native = esmc.native_names(flat, PTH)
    qkv = flat["transformer.blocks.2.attn.layernorm_qkv.1.weight"]
    for number, part in enumerate("qkv"):
        rows = native[f"esmc.layers.2.self_attn.{part}_proj.weight"]
        assert torch.equal(rows, qkv[24 * number : 24 * (number + 1)])
    both = flat["transformer.blocks.2.ffn.1.weight"]
    assert torch.equal(native["esmc.layers.2.mlp.gate_proj.weight"], both[:256])
    assert torch.equal(native["esmc.layers.2.mlp.up_proj.weight"], both[256:])


def test_heads_that_the_file_does_not_name_have_64_dimensions(tmp_path):
    with pytest.raises(CheckpointError, match="width 24 is not a multiple of 64; give the number of heads"):
        registry.load("esmc", FIXTURES / "esmc/pth")
    adapter = registry.build("esmc", {"n_blocks": 1, "d_model": 128, "n_heads": 2, "d_mlp": 8}, seed=0)
    names = {target: name for name, target in esmc.PTH_TOP.items()}
    flat = {}
    for name, value in adapter.module.state_dict().items():
        if name in names:
            flat[names[name]] = value
    state = adapter.module.state_dict()
    block = "transformer.blocks.0."
    flat.update({block + part: state["esmc.layers.0." + target] for part, target in esmc.PTH_BLOCK.items()})
    for part, targets in esmc.PTH_FUSED.items():
        flat[block + part] = torch.cat([state["esmc.layers.0." + target] for target in targets])
    torch.save(flat, tmp_path / "esmc.pth")
    again = registry.load("esmc", tmp_path)
    assert again.module.config.num_attention_heads == 2
    assert all(torch.equal(state[name], value) for name, value in again.module.state_dict().items())


def test_a_pth_of_another_family_or_with_a_missing_tensor_is_refused(pth, tmp_path):
    folder = pth(lambda tensors: tensors.pop("transformer.blocks.3.attn.q_ln.weight"))
    with pytest.raises(CheckpointError, match=r"missing: esmc\.layers\.3\.self_attn\.q_norm\.weight"):
        registry.load("esmc", folder, n_heads=2)


def test_an_unknown_tensor_of_a_pth_is_named(pth):
    folder = pth(lambda tensors: tensors.update({"transformer.blocks.0.geom_attn.proj.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"geom_attn\.proj\.weight is not a tensor of ESM C"):
        registry.load("esmc", folder, n_heads=2)


def test_two_pth_files_are_refused(pth):
    folder = pth(lambda tensors: None)
    torch.save({}, folder / "other.pth")
    with pytest.raises(CheckpointError, match=r"one \.pth .* was expected, there are 2"):
        registry.load("esmc", folder, n_heads=2)


@pytest.mark.parametrize(("width", "published"), [(960, 2560), (1152, 3072), (2560, 6912), (1536, 4096)])
def test_the_width_of_the_mlp_is_the_published_one(width, published):
    assert esmc.mlp_width(width) == published
