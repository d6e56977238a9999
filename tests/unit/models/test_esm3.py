"""ESM3's own parts: inputs with structure, frames, geometric attention, structure codes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plm_depth.models import checkpoints, esm3_network, esm3_structure, registry, verify
from plm_depth.models.base import CheckpointError, SequenceError, Structure

FIXTURES = Path(__file__).parents[2] / "fixtures" / "esm3"
WEIGHTS = FIXTURES / "pth/data/weights"
SEQUENCE = "CAQAPVVNQEFH"


@pytest.fixture(scope="module")
def adapter():
    return registry.load("esm3", FIXTURES / "pth", n_heads=2)


@pytest.fixture(scope="module")
def encoder():
    return esm3_structure.StructureEncoder.load(WEIGHTS / "esm3_structure_encoder_v0.pth")


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURES / "expected.safetensors")


def turned(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random rotation and translation."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    rotation = rotation * torch.det(rotation).sign()
    return rotation.float(), 10 * torch.randn(3, generator=generator)


def chain(n: int, seed: int = 0) -> np.ndarray:
    """Backbone-like coordinates of a random walk, (n, 3, 3)."""
    rng = np.random.default_rng(seed)
    alphas = np.cumsum(rng.normal(size=(n, 3)) * 2.2, axis=0)
    return np.stack([alphas + rng.normal(size=(n, 3)), alphas, alphas + rng.normal(size=(n, 3))], 1).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- inputs


def test_structure_tokens_and_coordinates_are_framed_as_the_family_does(adapter, expected):
    given = {name.split("/")[1]: value for name, value in expected.items() if name.startswith("coordinates/")}
    codes = given["structure_tokens"][0, 1:-1].numpy()
    codes = np.where(codes == esm3_network.STRUCTURE_MASK, -1, codes)
    structure = Structure(codes=codes, coordinates=given["structure_coords"][0, 1:-1].numpy())
    masked = np.arange(len(SEQUENCE)) == 2
    tokens = adapter.encode(SEQUENCE, masked=masked, structure=structure, condition="seq_struct")
    theirs = adapter.batch_of(given)
    mine = adapter.collate([tokens])
    assert torch.equal(mine.ids, theirs.ids)
    assert set(mine.extra) == set(theirs.extra) - {"average_plddt"}
    for name, value in mine.extra.items():
        torch.testing.assert_close(value, theirs.extra[name].to(value.dtype), rtol=0, atol=0, equal_nan=True)
    logits = verify.walk(adapter, mine)["logits"]
    torch.testing.assert_close(logits, given["logits"], rtol=0, atol=8e-5)


def test_what_is_hidden_in_each_condition(adapter):
    structure = Structure(codes=np.arange(12), coordinates=chain(12))
    masked = np.arange(12) == 3

    def seen(**options):
        tokens = adapter.encode(SEQUENCE, structure=structure, **options)
        hidden = list(np.flatnonzero(tokens.ids[1:-1] == esm3_network.MASK))
        if not tokens.extra:
            return hidden, None, None
        codes = list(np.flatnonzero(tokens.extra["structure_tokens"][1:-1] == esm3_network.STRUCTURE_MASK))
        return hidden, codes, list(np.flatnonzero(tokens.extra["per_res_plddt"][1:-1] == 0))

    assert seen(masked=masked) == ([3], None, None)
    assert seen(masked=masked, condition="seq_struct") == ([3], [], [])
    assert seen(masked=masked, condition="seq_struct", struct_at_mask="hide") == ([3], [3], [3])
    assert seen(condition="struct") == (list(range(12)), [], [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"condition": "seq_struct"}, "needs the structure's codes"),
        ({"condition": "seq_struct", "structure": Structure(codes=np.zeros(3))}, "3 entries of codes for 12 residues"),
        ({"condition": "seq_struct", "structure": Structure(codes=np.full(12, 4096))}, "structure codes from 4096"),
        ({"condition": "seq_struct", "structure": Structure(coordinates=chain(11))}, "11 entries of coordinates"),
        (
            {"condition": "seq_struct", "structure": Structure(coordinates=np.zeros((12, 4, 3)))},
            r"coordinates \(12, 4, 3\)",
        ),
        ({"condition": "fold"}, "condition 'fold'"),
        ({"struct_at_mask": "maybe"}, "struct_at_mask 'maybe'"),
    ],
)
def test_structures_that_cannot_be_are_refused(adapter, options, said):
    with pytest.raises(SequenceError, match=said):
        adapter.encode(SEQUENCE, **options)


def test_each_part_of_the_structure_matters_alone(adapter):
    codes, coordinates = np.arange(12) * 7, chain(12)
    shown = [
        None,
        Structure(codes=codes),
        Structure(coordinates=coordinates),
        Structure(codes=codes, coordinates=coordinates),
    ]
    logits = []
    for structure in shown:
        condition = "seq" if structure is None else "seq_struct"
        tokens = adapter.encode(SEQUENCE, structure=structure, condition=condition)
        found = verify.walk(adapter, adapter.collate([tokens]))
        logits.append(found["logits"])
        has_coordinates = structure is not None and structure.coordinates is not None
        assert bool(found["geom"].abs().max() > 0) == has_coordinates
        assert torch.equal(found["logits"], found["library"])
    for i in range(4):
        for j in range(i):
            assert (logits[i] - logits[j]).abs().max() > 1e-2


# ----------------------------------------------------------------------------------------------------------- geometry


def test_a_rigid_motion_changes_no_logit(adapter):
    coordinates = chain(12)
    coordinates[5, 2] = np.nan
    rotation, shift = turned(1)
    moved = torch.from_numpy(coordinates) @ rotation.T + shift
    both = [
        adapter.encode(SEQUENCE, structure=Structure(coordinates=c), condition="seq_struct")
        for c in (coordinates, moved.numpy())
    ]
    one, other = (verify.walk(adapter, adapter.collate([tokens])) for tokens in both)
    for name in ("geom", "logits"):
        assert one[name].abs().max() > 1
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=2e-4)


def test_a_reflection_does_change_logits(adapter):
    coordinates = chain(12)
    both = [
        adapter.encode(SEQUENCE, structure=Structure(coordinates=c), condition="seq_struct")
        for c in (coordinates, coordinates * np.float32([1, 1, -1]))
    ]
    one, other = (verify.walk(adapter, adapter.collate([tokens]))["logits"] for tokens in both)
    assert (one - other).abs().max() > 1e-2


def test_frames_are_right_handed_and_move_with_the_chain():
    coordinates = torch.from_numpy(chain(9))
    coordinates[4, 0] = torch.inf
    coordinates[7] = torch.nan
    frames = esm3_network.backbone_frames(coordinates[None])
    assert frames.known[0].tolist() == [i not in (4, 7) for i in range(9)]
    product = frames.rotation.transpose(-1, -2) @ frames.rotation
    torch.testing.assert_close(product, torch.eye(3).expand_as(product), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.det(frames.rotation), torch.ones(1, 9), rtol=0, atol=1e-5)
    assert torch.equal(frames.rotation[0, 4], frames.rotation[0, 7])  # both have that of the mean structure
    n, ca, c = coordinates[0]
    local = frames.rotation[0, 0].T @ torch.stack([n - ca, c - ca], dim=-1)
    assert local[2, 0].abs() < 1e-5 and local[1, 1].abs() < 1e-5  # N in the xy plane, C on the x axis
    assert local[0, 1] < 0
    rotation, shift = turned(2)
    moved = esm3_network.backbone_frames((coordinates @ rotation.T + shift)[None])
    torch.testing.assert_close(moved.rotation, rotation @ frames.rotation, rtol=0, atol=1e-4)
    torch.testing.assert_close(moved.origin, frames.origin @ rotation.T + shift, rtol=0, atol=1e-3)


def test_a_row_without_any_coordinates_has_the_identity_at_the_origin():
    coordinates = torch.full((2, 4, 3, 3), torch.nan)
    coordinates[1] = torch.from_numpy(chain(4))
    frames = esm3_network.backbone_frames(coordinates)
    assert not frames.known[0].any() and frames.known[1].all()
    torch.testing.assert_close(frames.rotation[0], torch.eye(3).expand(4, 3, 3))
    assert (frames.origin[0] == 0).all()


def test_proteins_with_coordinates_alone_and_in_a_batch_agree(adapter):
    proteins = [(SEQUENCE, chain(12, 1)), ("CAQ", chain(3, 2)), ("QVVMVV", np.full((6, 3, 3), np.nan, np.float32))]
    tokens = [adapter.encode(s, structure=Structure(coordinates=c), condition="seq_struct") for s, c in proteins]
    together = verify.walk(adapter, adapter.collate(tokens))
    for row, mine in enumerate(tokens):
        alone = verify.walk(adapter, adapter.collate([mine]))
        for name in ("x", "geom"):
            torch.testing.assert_close(
                together[name][:, row, : mine.n_tokens],
                alone[name][:, 0],
                rtol=0,
                atol=2e-5 * float(alone["x"].abs().max()),
            )
    assert (together["geom"][0, 2] == 0).all()  # a protein without coordinates, beside others that have them


def test_the_number_of_heads_done_at_once_changes_no_number(adapter, monkeypatch):
    tokens = adapter.encode(SEQUENCE, structure=Structure(coordinates=chain(12)), condition="seq_struct")
    batch = adapter.collate([tokens, tokens])
    whole = verify.walk(adapter, batch)["geom"]
    monkeypatch.setattr(esm3_network, "HEADS_AT_ONCE", 3)
    torch.testing.assert_close(verify.walk(adapter, batch)["geom"], whole, rtol=0, atol=1e-6)


def test_the_context_of_chosen_rows_carries_their_frames(adapter):
    proteins = [(SEQUENCE, chain(12, 1)), ("CAQ", chain(3, 2))]
    tokens = [adapter.encode(s, structure=Structure(coordinates=c), condition="seq_struct") for s, c in proteins]
    rows = torch.tensor([1, 1, 0])
    with torch.inference_mode():
        stream, context = adapter.embed(adapter.collate(tokens))
        whole = adapter.updates(1, stream, context)
        chosen = adapter.updates(1, stream[rows], context.take(rows))
    torch.testing.assert_close(chosen.geometric, whole.geometric[rows], rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ encoder


def test_structure_codes_are_those_of_the_family(encoder, expected):
    given = {name.split("/")[1]: value for name, value in expected.items() if name.startswith("structure_encoder/")}
    about = json.loads((FIXTURES / "expected.json").read_text())["cases"]["structure_encoder"]
    coordinates, index = given["coordinates"][0], given["residue_index"][0]
    assert not torch.isfinite(coordinates).all()  # the chain has a gap
    with torch.inference_mode():
        described = encoder.describe(coordinates, index)
    keep = given["valid"][0].bool()
    difference = (described - given["pre_quantisation"][0])[keep].abs().max()
    assert float(difference) <= about["tolerance"]["pre_quantisation"]
    assert torch.equal(encoder.codes(coordinates, index)[keep], given["codes"][0][keep].long())
    assert torch.equal(encoder.codes(coordinates), encoder.codes(coordinates, index))


def test_structure_codes_do_not_change_under_a_rigid_motion(encoder):
    coordinates = torch.from_numpy(chain(30, 3))
    codes = encoder.codes(coordinates)
    assert len(set(codes.tolist())) > 3
    for seed in range(3):
        rotation, shift = turned(seed)
        assert torch.equal(encoder.codes(coordinates @ rotation.T + shift), codes)


def test_a_code_depends_on_the_neighbourhood_only(encoder):
    coordinates = torch.from_numpy(chain(60, 4))
    coordinates += torch.arange(60)[:, None, None] * 4.0  # a long straight chain
    changed = coordinates.clone()
    changed[50:] += 100.0
    before, after = (encoder.codes(c) for c in (coordinates, changed))
    assert torch.equal(before[:30], after[:30])


def test_neighbours_in_space_come_first_then_those_along_the_chain():
    alphas = torch.tensor([[0.0, 0, 0], [9, 0, 0], [1, 0, 0], [torch.nan] * 3, [3, 0, 0]])
    known = torch.tensor([True, True, True, False, True])
    near = esm3_structure.neighbours(alphas, known)
    assert near[0].tolist() == [0, 2, 4, 1, 3]
    assert near[3].tolist() == [3, 2, 4, 1, 0]
    twice = esm3_structure.neighbours(torch.zeros(3, 3), torch.ones(3, dtype=torch.bool))
    assert twice[:, 0].tolist() == [0, 1, 2]  # itself first, even where another residue is at the same place
    assert esm3_structure.neighbours(torch.randn(40, 3), torch.ones(40, dtype=torch.bool)).shape == (40, 16)


def test_a_broken_structure_encoder_is_refused(tmp_path):
    path = tmp_path / "esm3_structure_encoder_v0.pth"
    tensors = torch.load(WEIGHTS / path.name, weights_only=True)
    del tensors["transformer.blocks.1.ffn.1.bias"]
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=r"missing: transformer\.blocks\.1\.ffn\.1\.bias"):
        esm3_structure.StructureEncoder.load(path)


# -------------------------------------------------------------------------------------------------------------- files


def test_saved_files_have_the_official_names_and_tensors(tmp_path):
    adapter = registry.build("esm3", {"n_blocks": 5, "d_model": 64, "n_heads": 1, "n_geometric_heads": 4})
    registry.save(adapter, tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")] == ["data/weights/esm3_sm_open_v1.pth"]
    mine = checkpoints.read_pickle(tmp_path / "data/weights/esm3_sm_open_v1.pth")
    theirs = checkpoints.read_pickle(WEIGHTS / "esm3_sm_open_v1.pth")
    assert {name: value.ndim for name, value in mine.items()} == {name: value.ndim for name, value in theirs.items()}


def test_heads_that_the_layout_cannot_tell_are_neither_saved_nor_guessed(adapter, tmp_path):
    with pytest.raises(ValueError, match="they must have 64 dimensions"):
        registry.save(adapter, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="width 16 is not a multiple of 64; give the number of heads"):
        registry.load("esm3", FIXTURES / "pth")


def test_a_folder_without_the_trunk_says_what_it_has(tmp_path):
    (tmp_path / "esm3_structure_encoder_v0.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"esm3_sm_open_v1\.pth was expected.*esm3_structure_encoder_v0"):
        registry.load("esm3", tmp_path)


def test_per_residue_plddt_is_told_by_the_atoms_that_are_there(adapter):
    coordinates = chain(12)
    coordinates[3] = np.nan
    coordinates[5, 1:] = np.nan  # one atom of three is there
    tokens = adapter.encode(SEQUENCE, structure=Structure(coordinates=coordinates), condition="seq_struct")
    assert list(tokens.extra["per_res_plddt"]) == [0, 1, 1, 1, 0, *[1] * 8, 0]
    batch = adapter.collate([tokens])
    without = replace(batch, extra={**batch.extra, "per_res_plddt": torch.zeros_like(batch.extra["per_res_plddt"])})
    with torch.inference_mode():
        assert (adapter.library_logits(batch) - adapter.library_logits(without)).abs().max() > 1e-2


def test_the_codes_of_coordinates_are_those_of_the_structure_encoder_beside_the_trunk(adapter, encoder, tmp_path):
    random = np.random.default_rng(0)
    coordinates = random.normal(size=(len(SEQUENCE), 3, 3)).astype(np.float32) * 5
    coordinates[4] = np.nan
    structure = Structure(coordinates=coordinates, three_di="d" * len(SEQUENCE))
    found = adapter.with_codes(structure)
    assert found.codes.tolist() == encoder.codes(torch.from_numpy(coordinates)).tolist()
    assert len(set(found.codes.tolist())) > 1
    assert found.coordinates is coordinates and found.three_di == structure.three_di
    given = Structure(coordinates=coordinates, codes=np.arange(len(SEQUENCE)))
    assert adapter.with_codes(given) is given
    (tmp_path / "esm3_sm_open_v1.pth").symlink_to(WEIGHTS / "esm3_sm_open_v1.pth")
    alone = registry.load("esm3", tmp_path, n_heads=2)
    assert alone.with_codes(structure) is structure
    assert [path.name for path in alone.files(tmp_path)] == ["esm3_sm_open_v1.pth"]
    assert [path.name for path in adapter.files(FIXTURES / "pth")] == [
        "esm3_sm_open_v1.pth",
        "esm3_structure_encoder_v0.pth",
    ]
