"""ProtBERT against a forward pass written here, and what its post-norm updates mean."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from plm_depth.models import registry, verify
from plm_depth.models.base import CheckpointError

SIZES = {"n_blocks": 3, "d_model": 32, "n_heads": 4, "n_positions": 64}
PROTEIN = "MKTAYIAKQRQISFVK"


@pytest.fixture(scope="module")
def adapter():
    adapter = registry.build("protbert", SIZES, seed=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # norms and biases that are not one and zero
        for parameter in adapter.module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter


def by_hand(state: dict[str, torch.Tensor], ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """States after every block, and logits, of one protein: BERT as its paper has it."""

    def linear(x, name):
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, (32,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    tables = "bert.embeddings."
    x = state[tables + "word_embeddings.weight"][ids] + state[tables + "token_type_embeddings.weight"][0]
    x = norm(x + state[tables + "position_embeddings.weight"][: len(ids)], tables + "LayerNorm")
    states = [x]
    for block in range(3):
        layer = f"bert.encoder.layer.{block}."
        q, k, v = (
            linear(x, f"{layer}attention.self.{part}").unflatten(-1, (4, 8)).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = (q @ k.transpose(1, 2) / math.sqrt(8)).softmax(-1) @ v
        x = norm(
            x + linear(mixed.transpose(0, 1).flatten(1), layer + "attention.output.dense"),
            layer + "attention.output.LayerNorm",
        )
        inner = functional.gelu(linear(x, layer + "intermediate.dense"))
        x = norm(x + linear(inner, layer + "output.dense"), layer + "output.LayerNorm")
        states.append(x)
    head = "cls.predictions."
    features = norm(functional.gelu(linear(x, head + "transform.dense")), head + "transform.LayerNorm")
    return states, features @ state[tables + "word_embeddings.weight"].T + state[head + "bias"]


def test_every_state_and_logit_is_that_of_a_forward_pass_written_by_hand(adapter):
    tokens = adapter.encode(PROTEIN, masked=np.arange(len(PROTEIN)) % 5 == 1)
    padded = adapter.collate([tokens, adapter.encode(PROTEIN + "GSHML")])
    found = verify.walk(adapter, padded)
    with torch.inference_mode():
        states, logits = by_hand(adapter.module.state_dict(), torch.from_numpy(tokens.ids))
    for mine, theirs in zip(found["x"], states, strict=True):
        torch.testing.assert_close(mine[0, : tokens.n_tokens], theirs, rtol=0, atol=2e-5)
    torch.testing.assert_close(found["logits"][0, : tokens.n_tokens], logits, rtol=0, atol=1e-4)


def test_updates_are_what_the_stream_changes_by_and_every_state_is_normalised(adapter):
    found = verify.walk(adapter, adapter.collate([adapter.encode(PROTEIN)]))
    assert "final_norm" not in found
    for block in range(3):
        total = found["attn"][block] + found["mlp"][block]
        torch.testing.assert_close(found["x"][block] + total, found["x"][block + 1], rtol=0, atol=1e-5)
    state = adapter.module.state_dict()
    for block in range(3):  # undo gain and bias of the block's own norm: mean 0, variance 1
        name = f"bert.encoder.layer.{block}.output.LayerNorm."
        plain = (found["x"][block + 1] - state[name + "bias"]) / state[name + "weight"]
        torch.testing.assert_close(plain.mean(-1), torch.zeros(plain.shape[:-1]), rtol=0, atol=1e-3)
        torch.testing.assert_close(plain.var(-1, unbiased=False), torch.ones(plain.shape[:-1]), rtol=0, atol=1e-2)


@pytest.mark.parametrize(("letter", "token"), [("L", 5), ("A", 6), ("E", 9), ("C", 23), ("W", 24), ("X", 25)])
def test_ids_are_the_published_ones(adapter, letter, token):
    assert list(adapter.encode(letter).ids) == [2, token, 3]


def test_rare_letters_are_read_as_x(adapter):
    assert list(adapter.encode("MUZOBX").ids) == [2, 21, 25, 25, 25, 25, 25, 3]


def test_the_position_table_limits_the_length(adapter):
    assert adapter.max_residues == 62


def test_tensors_of_pre_training_are_ignored_and_another_vocabulary_is_refused(adapter, tmp_path):
    registry.save(adapter, tmp_path)
    tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    tensors["bert.pooler.dense.weight"] = torch.zeros(32, 32)
    tensors["bert.pooler.dense.bias"] = torch.zeros(32)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    registry.load("protbert", tmp_path)
    tokens = (tmp_path / "vocab.txt").read_text().split()
    (tmp_path / "vocab.txt").write_text("\n".join([*tokens[:5], *sorted(tokens[5:])]))
    with pytest.raises(CheckpointError, match=r"vocab\.txt: other tokens, or in another order"):
        registry.load("protbert", tmp_path)


def test_a_config_of_another_bert_is_refused(adapter, tmp_path):
    registry.save(adapter, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 30522}))
    with pytest.raises(CheckpointError, match="vocab_size is 30522, but protbert has 30"):
        registry.load("protbert", tmp_path)
