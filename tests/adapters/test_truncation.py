"""Every family, cut after a block: the files hold the whole model's state and read-out at that layer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from plm_depth.models import describe, registry, truncate, verify
from plm_depth.models.base import CheckpointError, Structure
from plm_depth.tables import CHOICE, write_table

FIXTURES = Path(__file__).parents[1] / "fixtures"
PROTEIN, OTHER = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "GSHMLEDPVRACWNYT"
SIZES = {"n_blocks": 3, "d_model": 32, "n_heads": 4}
OTHER_SIZES = {"progen2": {**SIZES, "n_heads": 8}, "esm3": {"n_blocks": 3, "d_model": 64, "n_heads": 1, "d_mlp": 32}}
PUBLISHED = [  # tiny checkpoints in the layouts of their authors
    ("esm2", "hub", "esm2/hub"),
    ("esm2", "fair_esm", "esm2/fair_esm"),
    ("esm1b", "hub", "esm1b/hub"),
    ("saprot", "hub", "saprot/hub"),
    ("saprot", "fair_esm", "saprot/fair_esm"),
    ("dplm", "hub", "dplm/hub"),
    ("dplm2", "hub", "dplm2/hub"),
    ("esmc", "native", "esmc/native"),
    ("progen2", "authors", "progen2/authors"),
    ("progen2", "community", "progen2/community"),
    ("progen3", "hub", "progen3/hub"),
]
SCALED = {"esmc", "esm3"}  # their files hold the cut with one more rounding of the last matrices
EVERY_FAMILY = pytest.mark.parametrize("family", sorted(registry.FAMILIES))


def lively(family: str):
    """An untrained model in which nothing is zero or one, as if it had been trained."""
    adapter = registry.build(family, OTHER_SIZES.get(family, SIZES), seed=3)
    noise = torch.Generator().manual_seed(0)
    for parameter in adapter.module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
    return adapter


def batch_of(adapter, sequences, direction=None):
    direction = direction or adapter.directions[0]
    return adapter.collate([adapter.encode(s, direction=direction) for s in sequences])


def assert_is_layer(cut, whole, layer: int, *, logits: bool = True) -> None:
    for direction in whole.directions:
        batch = batch_of(whole, [PROTEIN, OTHER], direction)
        expected = verify.walk(whole, batch)["x"][layer]
        found = verify.walk(cut, batch)
        pairs = [(found["x"][-1], expected)]
        if logits:
            with torch.inference_mode():
                lens = whole.read_out(expected)
            pairs += [(found["read_out"], lens), (found["library"], lens)]
        for mine, theirs in pairs:
            if whole.family in SCALED or mine is found["library"]:
                scale = max(1.0, float(theirs.abs().max()))
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6 * scale)
            else:
                assert torch.equal(mine, theirs)


def whole_and_card(family: str, folder):
    """A model on disk, read back, and its card."""
    registry.save(lively(family), folder / "whole")
    card = describe.describe("tiny", family, folder / "whole")
    (folder / "card.json").write_text(json.dumps(card))
    return registry.load(family, folder / "whole"), folder / "card.json"


@EVERY_FAMILY
def test_a_truncated_checkpoint_gives_the_whole_models_state_and_read_out_at_its_last_layer(family, tmp_path):
    whole, card = whole_and_card(family, tmp_path)
    for layer in range(1, whole.n_blocks):
        report = truncate.truncate(card, layer, tmp_path / "cut")
        cut = registry.load(family, tmp_path / "cut")
        assert cut.n_blocks == layer < whole.n_blocks
        assert report["n_parameters"] == cut.n_parameters < whole.n_parameters
        assert_is_layer(cut, whole, layer)
        assert not torch.equal(
            verify.walk(cut, batch_of(whole, [PROTEIN]))["x"][-1],
            verify.walk(whole, batch_of(whole, [PROTEIN]))["x"][-1],
        )


@pytest.mark.parametrize(("family", "layout", "folder"), PUBLISHED)
def test_checkpoints_in_every_published_layout_are_cut_alike(family, layout, folder, tmp_path):
    whole = registry.load(family, FIXTURES / folder, layout=layout)
    registry.save(truncate.truncated(whole, 1), tmp_path)
    assert_is_layer(registry.load(family, tmp_path), whole, 1)


@EVERY_FAMILY
def test_a_cut_after_the_last_block_is_the_whole_model(family):
    whole = lively(family)
    cut = truncate.truncated(whole, whole.n_blocks)
    before, after = whole.module.state_dict(), cut.module.state_dict()
    ignored = {name for name in before if "contact_head" in name}
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in set(before) - ignored)
    assert all(not after[name].any() for name in ignored)


@EVERY_FAMILY
def test_cutting_copies_and_leaves_the_whole_model_as_it_was(family):
    whole = lively(family)
    before = {name: value.clone() for name, value in whole.module.state_dict().items()}
    cut = truncate.truncated(whole, 1, keep="embedding")
    for parameter in cut.module.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], value) for name, value in whole.module.state_dict().items())


@EVERY_FAMILY
def test_an_embedding_checkpoint_keeps_the_state_and_silences_the_head(family, tmp_path):
    whole, card = whole_and_card(family, tmp_path)
    truncate.truncate(card, 1, tmp_path / "cut", keep="embedding")
    cut = registry.load(family, tmp_path / "cut")
    assert_is_layer(cut, whole, 1, logits=False)
    logits = verify.walk(cut, batch_of(whole, [PROTEIN]))["logits"]
    text = (tmp_path / "cut" / "README.md").read_text()
    if family == "protgpt2":  # its head is the embedding
        assert logits.std() > 0 and "head is the embedding matrix" in text
    else:
        assert torch.equal(logits, logits[..., :1, :1, :1].expand_as(logits)) and "silenced" in text


@pytest.mark.parametrize("family", sorted(SCALED))
def test_without_folding_the_scale_a_shallower_file_would_give_other_states(family):
    whole = lively(family)
    cut = truncate.truncated(whole, 1)
    cut.scale_updates(cut.update_scale / whole.update_scale)  # undo it
    batch = batch_of(whole, [PROTEIN])
    mine, theirs = verify.walk(cut, batch)["x"][-1], verify.walk(whole, batch)["x"][1]
    assert float((mine - theirs).abs().max() / theirs.abs().max()) > 1e-3


def test_the_geometric_branch_of_esm3_is_cut_with_the_same_scale():
    whole = lively("esm3")
    cut = truncate.truncated(whole, 1)
    coordinates = 4 * torch.randn(len(PROTEIN), 3, 3, generator=torch.Generator().manual_seed(1)).numpy()
    tokens = whole.encode(PROTEIN, structure=Structure(coordinates=coordinates), condition="seq_struct")
    mine, theirs = (verify.walk(adapter, adapter.collate([tokens])) for adapter in (cut, whole))
    assert float(theirs["geom"].abs().max()) > 1e-3
    torch.testing.assert_close(mine["x"][-1], theirs["x"][1], rtol=0, atol=1e-6 * float(theirs["x"].abs().max()))


def test_the_structure_encoder_of_esm3_goes_along(tmp_path):
    _, card = whole_and_card("esm3", tmp_path)
    encoder = tmp_path / "whole/data/weights/esm3_structure_encoder_v0.pth"
    encoder.write_bytes(b"an encoder")
    (tmp_path / "card.json").write_text(json.dumps(describe.describe("tiny", "esm3", tmp_path / "whole")))
    truncate.truncate(card, 1, tmp_path / "cut")
    assert (tmp_path / "cut/data/weights/esm3_structure_encoder_v0.pth").read_bytes() == b"an encoder"


def test_the_model_card_tells_source_digests_licence_and_cut(tmp_path):
    _, card = whole_and_card("esm2", tmp_path)
    where = ["--card", str(card), "--blocks", "2", "--output", str(tmp_path / "cut")]
    truncate.main([*where, "--origin", "someone/tiny", "--licence", "MIT"])
    text = (tmp_path / "cut" / "README.md").read_text()
    about = json.loads(card.read_text())
    assert text.startswith('---\nlicense: "mit"\nbase_model: "someone/tiny"\n')
    assert "cut after block 2 of 3" in text and "Block 3 of tiny" in text
    assert all(entry["sha256"] in text for entry in about["files"])
    assert "after the final norm" in text and "contact regression" in text
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()} | {
        "README.md"
    }


def test_a_truncated_checkpoint_can_be_cut_again(tmp_path):
    whole, card = whole_and_card("esmc", tmp_path)
    truncate.truncate(card, 2, tmp_path / "two")
    second = tmp_path / "second.json"
    second.write_text(json.dumps(describe.describe("two", "esmc", tmp_path / "two")))
    truncate.truncate(second, 1, tmp_path / "one")
    assert_is_layer(registry.load("esmc", tmp_path / "one"), whole, 1)


def write_choice(path, *, cut_after=2):
    layers = [0, 1, 2, 3]
    text = {"choice": "q", "model_id": "tiny", "family": "esm2", "objective": "mlm", "kind": "regression"}
    text |= {"probe": "linear", "metric": "spearman", "side": "test"}
    number = {name: 0.0 for name in CHOICE.names if CHOICE.field(name).type == "double"}
    flags = {"in_plateau": True, "is_tied": True, "is_recommended": False, "is_primary": True}
    columns = {**number, **text, **flags, "n_blocks": 3, "n_rows": 50, "n_cluster": 9, "n_boot": 100, "layer": layers}
    columns["value"] = [0.1, 0.2, 0.3, 0.4]
    nested = {"side": "nested_cut", "layer": -1, "value": 0.25, "over_last": -0.15}
    columns = {
        key: [*np.broadcast_to(value, 4).tolist(), nested.get(key, np.ravel(value).tolist()[0])]
        for key, value in columns.items()
    }
    write_table(columns, CHOICE, path, cut_after=cut_after, how="5 folds of whole clusters", norm="final")


def test_the_recommended_depth_of_a_layer_choice_is_taken_and_its_score_told(tmp_path):
    _, card = whole_and_card("esm2", tmp_path)
    write_choice(tmp_path / "choice.parquet")
    where = ["--card", str(card), "--choice", f"{tmp_path}/choice.parquet", "--output", f"{tmp_path}/cut"]
    truncate.main([*where, "--blocks", "auto"])
    assert registry.load("esm2", tmp_path / "cut").n_blocks == 2
    text = (tmp_path / "cut" / "README.md").read_text()
    assert "Layer 2: spearman 0.300" in text and "Layer 3: spearman 0.400" in text and "after the final norm" in text
    assert "at depths that other labels chose: 0.250 [0.000, 0.000], against the whole model -0.150" in text
    truncate.main([*where, "--blocks", "1"])
    text = (tmp_path / "cut" / "README.md").read_text()
    assert "Layer 1: spearman 0.200" in text and "other labels chose" not in text
    with pytest.raises(SystemExit, match="--blocks auto: as recommended where"):
        truncate.main([*where[:2], *where[4:], "--blocks", "auto"])
    with pytest.raises(SystemExit, match="--blocks half: expected a number"):
        truncate.main([*where, "--blocks", "half"])


@pytest.mark.parametrize("blocks", [0, 4])
def test_a_cut_that_cannot_be_is_refused_and_leaves_nothing(blocks, tmp_path):
    _, card = whole_and_card("esm2", tmp_path)
    with pytest.raises(SystemExit, match=rf"--blocks {blocks}: expected 1 to 3"):
        truncate.main(["--card", str(card), "--blocks", str(blocks), "--output", str(tmp_path / "cut")])
    assert not list(tmp_path.glob("cut*"))


def test_a_layout_that_does_not_hold_the_cut_is_noticed(tmp_path, monkeypatch):
    _, card = whole_and_card("esm2", tmp_path)
    right = truncate.truncated

    def wrong(adapter, n_blocks, **options):
        cut = right(adapter, n_blocks, **options)
        cut.module.esm.encoder.layer[0].output.dense.bias.data += 1e-2
        return cut

    monkeypatch.setattr(truncate, "truncated", wrong)
    with pytest.raises(CheckpointError, match="differs from layer 1 of tiny"):
        truncate.truncate(card, 1, tmp_path / "cut")
    assert not list(tmp_path.glob("cut*"))


def test_a_checkpoint_that_changed_since_it_was_described_is_not_cut(tmp_path):
    _, card = whole_and_card("esm2", tmp_path)
    other = registry.build("esm2", SIZES, seed=4)
    registry.save(other, tmp_path / "whole")
    with pytest.raises(SystemExit, match="not the file that the card of tiny describes"):
        truncate.main(["--card", str(card), "--blocks", "1", "--output", str(tmp_path / "cut")])
