"""ProGen3's own parts: packed experts, the folded embedding, the clamp, the frame."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plm_depth.models import progen3, registry
from plm_depth.models.base import CheckpointError

HUB = Path(__file__).parents[2] / "fixtures" / "progen3" / "hub"


@pytest.fixture(scope="module")
def published():
    return load_file(HUB / "model.safetensors")


def test_each_expert_has_its_rows_of_the_packed_matrices(published):
    named = progen3.library_names(published, 8, HUB)
    w1, v1, w2 = (published[f"model.layers.1.block_sparse_moe.experts.mlp.{part}"] for part in ("w1", "v1", "w2"))
    u = torch.randn(32)
    for expert in range(8):
        rows = slice(40 * expert, 40 * (expert + 1))
        by_hand = w2[rows].T @ (torch.nn.functional.silu(w1[rows] @ u) * (v1[rows] @ u))
        gate, up = (named["model.layers.1.mlp.experts.gate_up_proj"][expert] @ u).chunk(2)
        down = named["model.layers.1.mlp.experts.down_proj"][expert]
        torch.testing.assert_close(down @ (torch.nn.functional.silu(gate) * up), by_hand)


def test_naming_back_gives_the_published_tensors(published):
    again = progen3.published_names(progen3.library_names(published, 8, HUB))
    assert set(again) == set(published)
    for name, value in published.items():
        if "embed" not in name:
            assert torch.equal(again[name], value), name
    folded = published["model.embed_tokens.weight"] + published["model.embed_seq_id.weight"][0]
    torch.testing.assert_close(again["model.embed_tokens.weight"], folded)
    assert (again["model.embed_seq_id.weight"] == 0).all()


def test_queries_keys_and_values_never_leave_the_clamp():
    adapter = registry.load("progen3", HUB)
    attention = adapter.module.model.layers[0].self_attn
    stream = 50 * torch.randn(1, 9, 32)
    for part in ("q_proj", "k_proj", "v_proj"):
        values = getattr(attention, part)(stream)
        assert values.abs().max() == 8
    assert attention.o_proj(stream).abs().max() > 8


@pytest.mark.parametrize(("direction", "text"), [("n2c", "<bos> 1 M K J 2 <eos>"), ("c2n", "<bos> 2 J K M 1 <eos>")])
def test_the_frame_of_both_directions(direction, text):
    adapter = registry.load("progen3", HUB)
    tokens = adapter.encode("MKJ", direction=direction)
    assert " ".join(adapter.vocabulary[i] for i in tokens.ids) == text
    assert [adapter.vocabulary[i] for i in tokens.ids[tokens.residue_tokens]] == list("MKJ")


def test_which_experts_are_taken_is_decided_in_float32(tmp_path):
    half, whole = (registry.load("progen3", HUB, dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert half.module.model.layers[0].mlp.experts.gate_up_proj.dtype == torch.bfloat16
    stream = torch.randn(64, 32)
    with torch.inference_mode():
        with half.precision():
            logits, _, taken = half.module.model.layers[0].mlp.gate(stream)
        expected, _, taken_by_whole = whole.module.model.layers[0].mlp.gate(stream)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected) and torch.equal(taken, taken_by_whole)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(HUB, tmp_path / "hub"))


def test_names_without_the_fused_norm_are_read_too(copy, published):
    save_file(
        {name.replace(".norm_attn_norm", ""): value for name, value in published.items()}, copy / "model.safetensors"
    )
    one, other = (registry.load("progen3", folder).module.state_dict() for folder in (HUB, copy))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model_type", "mixtral", "model_type is 'mixtral'"),
        ("gated_mlp", False, "gated_mlp is False"),
        ("num_experts", None, "no 'num_experts'"),
        ("num_experts", 7, "7 experts expected"),
        ("num_hidden_layers", 4, r"missing: model\.layers\.3"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copy, key, value, said):
    config = json.loads((copy / "config.json").read_text())
    config.pop(key) if value is None else config.update({key: value})
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        registry.load("progen3", copy)


@pytest.mark.parametrize("name", ["model.embed_seq_id.weight", "model.layers.0.block_sparse_moe.experts.mlp.v1"])
def test_a_missing_tensor_is_refused(copy, published, name):
    save_file({key: value for key, value in published.items() if key != name}, copy / "model.safetensors")
    with pytest.raises(CheckpointError):
        registry.load("progen3", copy)


def test_the_score_is_the_mean_over_all_targets_terminals_included_and_no_pad():
    adapter = registry.load("progen3", HUB)
    rows = [adapter.encode(sequence, direction="n2c") for sequence in ("MKTAY", "MKTAYIAKQR")]
    batch = adapter.collate(rows)
    with torch.inference_mode():
        logits = adapter.library_logits(batch)
        found = adapter.log_likelihood(logits, batch)
        for tokens, values, score in zip(rows, logits, found):
            ids = torch.from_numpy(tokens.ids)
            nats = torch.nn.functional.cross_entropy(values[: len(ids) - 1].float(), ids[1:])
            torch.testing.assert_close(score, -nats)
    assert [len(tokens.ids) - 1 for tokens in rows] == [8, 13], "1, residues, 2 and <eos>"
