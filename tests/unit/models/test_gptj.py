"""ProGen2's own parts: the fused projection, the lenient config, the family's score."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from plm_depth.models import gptj, registry
from plm_depth.models.base import CheckpointError

FIXTURES = Path(__file__).parents[2] / "fixtures"


def test_the_fused_projection_holds_eight_partitions_of_q_then_v_then_k():
    width = 16
    parts = {part: torch.randn(width, width) for part in "qvk"}
    rows = []
    for partition in range(8):  # row by row, as the layout is told
        for part in "qvk":
            for row in range(width // 8):
                rows.append(parts[part][partition * (width // 8) + row])
    fused = torch.stack(rows)
    assert torch.equal(gptj.fuse(parts["q"], parts["v"], parts["k"]), fused)
    for part, value in zip("qvk", gptj.unfuse(fused), strict=True):
        assert torch.equal(value, parts[part])


def copy(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "progen2" / name, tmp_path / name))


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config.pop(key) if value is None else config.update({key: value})
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_head": None}, "no 'n_head'"),
        ({"rotary_dim": None}, "no 'rotary_dim'"),
        ({"n_layer": 4}, "blocks 4 in the config, 3 in the weights"),
        ({"n_embd": 128}, "width 128 in the config, 64 in the weights"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'"),
        ({"n_head": 4}, "4 heads for width 64; expected a multiple of 8"),
        ({"model_type": "gptj"}, "model_type is 'gptj'"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(tmp_path, changes, said):
    folder = copy("authors", tmp_path)
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=said):
        registry.load("progen2", folder)


def test_remote_code_is_not_looked_for(tmp_path):
    folder = copy("community", tmp_path)
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    (folder / "modeling_progen.py").write_text("raise SystemExit('remote code was run')")
    registry.load("progen2", folder)


def test_weights_of_plain_gptj_are_refused(tmp_path):
    folder = copy("authors", tmp_path)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(gptj.split_fused(tensors, folder), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no 'transformer\.h\.\*\.attn\.qkv_proj\.weight'"):
        registry.load("progen2", folder)
    tensors["transformer.h.0.attn.qkv_proj.weight"] = torch.zeros(100, 64)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"qkv_proj\.weight has shape \(100, 64\)"):
        registry.load("progen2", folder)


def test_padding_rows_of_the_vocabulary_are_no_tokens(tmp_path):
    folder = copy("authors", tmp_path)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    rows = 51  # the large models have 51200
    for name in ("transformer.wte.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(rows - 32, 64)])
    tensors["lm_head.bias"] = torch.cat([tensors["lm_head.bias"], torch.ones(rows - 32)])
    torch.save(tensors, folder / "pytorch_model.bin")
    adapter = registry.load("progen2", folder)
    assert len(adapter.vocabulary) == 30
    batch = adapter.collate([adapter.encode("MKV", direction="n2c")])
    assert adapter.library_logits(batch).shape[-1] == rows


def test_the_score_is_the_mean_over_letters_without_the_last_terminal():
    adapter = registry.load("progen2", FIXTURES / "progen2/authors")
    batch = adapter.collate([adapter.encode(s, direction="n2c") for s in ("MKVL", "AC")])
    logits = torch.randn(2, 6, 32)
    scores = adapter.log_likelihood(logits, batch)
    for row, sequence in enumerate(("MKVL", "AC")):
        logp = logits[row, :, 5:30].log_softmax(-1)
        letters = [adapter.vocabulary[i] for i in range(5, 30)]
        by_hand = [logp[i, letters.index(letter)] for i, letter in enumerate(sequence)]
        torch.testing.assert_close(scores[row], torch.stack(by_hand).mean())


def test_a_model_for_very_short_proteins_can_be_checked_and_loaded(tmp_path):
    sizes = {"n_blocks": 1, "d_model": 16, "n_heads": 8, "rotary_dim": 2, "n_positions": 8}
    registry.save(registry.build("progen2", sizes), tmp_path)
    assert registry.load("progen2", tmp_path).max_residues == 6


def test_scores_are_float32_under_autocast(monkeypatch):
    adapter = registry.load("progen2", FIXTURES / "progen2/authors", dtype="bfloat16")
    seen = []
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda x, *args, **kwargs: seen.append(x) or softmax(x, *args, **kwargs)
    )
    with torch.inference_mode(), adapter.precision():
        adapter.library_logits(adapter.collate([adapter.encode("MKVLAC", direction="n2c")]))
    assert len(seen) == 3
    for scores in seen:
        assert scores.dtype == torch.float32
        visible = scores[scores > -1e30]
        assert not torch.equal(visible, visible.bfloat16().float())  # not merely widened afterwards
