"""The planted models are what their plants say; everything measured on them rests on that."""

import numpy as np
import pytest
import torch

import planted
from planted import toy, walk

SEQUENCE = "MKTAYIAKQRWQ"
VARIANTS = [
    (variant, norm, objective)
    for variant in ("sequential", "parallel", "scaled", "causal")
    for norm in ("layer", "rms", "identity")
    for objective in ([None, "ar"] if variant == "parallel" else [None])
]


def tokens_of(adapter, sequence=SEQUENCE, masked=(2, 5)):
    hidden = None
    if adapter.mask_id is not None:
        hidden = np.zeros(len(sequence), bool)
        hidden[list(masked)] = True
    return adapter.encode(sequence, masked=hidden, direction=adapter.directions[0])


def skip_effects(adapter, *, positions):
    """Return D[i, j]: relative change of update j when block i is skipped at some residues, read at others (or all)."""
    tokens = tokens_of(adapter)
    batch = adapter.collate([tokens])
    clean = walk(adapter, tokens)
    skipped = torch.zeros(1, tokens.n_tokens, 1, dtype=torch.bool)
    skipped[0, tokens.residue_tokens[positions]] = True
    read = tokens.residue_tokens[positions if len(positions) == len(SEQUENCE) else positions + 1]
    effects = np.zeros((adapter.n_blocks + 1, adapter.n_blocks + 1))
    for source in range(1, adapter.n_blocks + 1):
        stream, context = adapter.embed(batch)
        for block in range(1, adapter.n_blocks + 1):
            step = adapter.updates(block, stream, context)
            after = adapter.add(stream, step)
            if block == source:
                after = torch.where(skipped, stream, after)
            else:
                change = (step.total[0] - clean.updates[block - 1].total)[read].norm(dim=-1)
                effects[source, block] = float((change / clean.updates[block - 1].total[read].norm(dim=-1)).mean())
            stream = after
    return effects


@pytest.mark.parametrize("variant, norm, objective", VARIANTS)
def test_stepping_gives_the_logits_of_the_plain_forward_pass(variant, norm, objective):
    adapter = toy(variant=variant, norm=norm, objective=objective)
    assert adapter.self_check() < 1e-6
    tokens = tokens_of(adapter)
    library = adapter.library_logits(adapter.collate([tokens]))[0]
    np.testing.assert_allclose(walk(adapter, tokens).logits[-1], library.detach(), rtol=0, atol=1e-12)


def test_a_geometric_branch_is_part_of_the_walk_and_of_the_plain_forward_pass():
    adapter = toy(geometric=True)
    tokens = tokens_of(adapter)
    walked = walk(adapter, tokens)
    assert walked.updates[0].geometric is not None and walked.updates[1].geometric is None
    library = adapter.library_logits(adapter.collate([tokens]))[0]
    np.testing.assert_allclose(walked.logits[-1], library.detach(), rtol=0, atol=1e-12)
    without = (
        adapter.library_logits(adapter.collate([tokens]))[0]
        - planted.toy().library_logits(adapter.collate([tokens]))[0]
    )
    assert without.abs().max() > 1e-3


@pytest.mark.parametrize("geometric", [False, True])
def test_padding_does_not_reach_the_residues(geometric):
    adapter = toy(geometric=geometric)
    alone, long = tokens_of(adapter), adapter.encode(SEQUENCE * 3)
    together = adapter.library_logits(adapter.collate([alone, long]))[0, : alone.n_tokens]
    np.testing.assert_allclose(together.detach(), walk(adapter, alone).logits[-1], rtol=0, atol=1e-12)


def test_the_causal_toy_does_not_see_what_follows():
    adapter = toy(variant="causal")
    changed = SEQUENCE[:8] + "GGGG"
    a, b = (walk(adapter, adapter.encode(s, direction="n2c")) for s in (SEQUENCE, changed))
    assert np.array_equal(a.streams[:, :9], b.streams[:, :9])
    assert not np.allclose(a.streams[-1, 9], b.streams[-1, 9])


def test_the_reverse_direction_reads_from_the_c_terminus():
    adapter = toy(variant="causal")
    tokens = adapter.encode("MKT", direction="c2n")
    assert [adapter.vocabulary[i] for i in tokens.ids] == ["<eos>", "T", "K", "M", "<bos>"]
    assert tokens.residue_tokens.tolist() == [3, 2, 1]
    assert adapter.read_positions("MKT", tokens, which="next").tolist() == [0, 1]
    assert adapter.mask_id is None and planted.MASK not in adapter.vocabulary


def test_a_zero_block_adds_exactly_nothing():
    for adapter in (toy(), toy(variant="parallel"), toy(variant="scaled"), toy(variant="causal"), toy(geometric=True)):
        walked = walk(planted.with_zero_block(adapter, 1), tokens_of(adapter))
        assert not walked.updates[0].total.any()
        assert np.array_equal(walked.streams[1], walked.streams[0])


def test_twin_blocks_have_equal_weights_and_may_be_swapped():
    adapter = planted.with_twin_blocks(toy(), 2, 4)
    before = walk(adapter, tokens_of(adapter)).logits
    blocks = adapter.module.blocks
    blocks[1], blocks[3] = blocks[3], blocks[1]
    assert np.array_equal(walk(adapter, tokens_of(adapter)).logits, before)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_rescaled_stream_changes_lengths_only(norm):
    adapter = toy(norm=norm, geometric=True)
    plain, scaled = (walk(a, tokens_of(a)) for a in (adapter, planted.rescaled(adapter, 7.3)))
    np.testing.assert_allclose(scaled.streams, 7.3 * plain.streams, rtol=0, atol=1e-9)
    np.testing.assert_allclose(scaled.logits, plain.logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("geometric", [False, True])
def test_a_rotated_basis_changes_coordinates_only(geometric):
    adapter = toy(norm="rms", geometric=geometric)
    plain, turned = (walk(a, tokens_of(a)) for a in (adapter, planted.rotated(adapter)))
    np.testing.assert_allclose(turned.logits, plain.logits, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        np.linalg.norm(turned.streams, axis=-1), np.linalg.norm(plain.streams, axis=-1), rtol=1e-12
    )
    assert np.abs(turned.streams - plain.streams).max() > 0.1
    with pytest.raises(ValueError, match="LayerNorm"):
        planted.rotated(toy())


def test_without_attention_nothing_moves_between_positions():
    adapter = planted.without_attention(toy())
    a, b = (walk(adapter, adapter.encode(s)) for s in (SEQUENCE, SEQUENCE[:-1] + "G"))
    assert np.array_equal(a.streams[:, :-2], b.streams[:, :-2])
    assert not walk(planted.without_mlp(toy()), tokens_of(adapter)).updates[2].mlp.any()


@pytest.mark.parametrize("objective", ["mlm", "ar"])
def test_a_planted_dependency_is_the_only_one(objective):
    adapter = planted.with_dependency(toy(norm="identity", objective=objective), 2, 5)
    effects = skip_effects(adapter, positions=np.arange(len(SEQUENCE)))
    assert effects[2, 5] == pytest.approx(1, abs=1e-12)
    effects[2, 5] = 0
    assert not effects.any()


def test_a_planted_copy_is_the_only_way_between_positions():
    adapter = planted.with_copy(toy(norm="identity"), 2, 4)
    everywhere = skip_effects(adapter, positions=np.arange(len(SEQUENCE)))
    elsewhere = skip_effects(adapter, positions=np.arange(0, len(SEQUENCE), 2))
    assert everywhere[2, 4] == pytest.approx(1, abs=1e-12)
    assert 0.1 < elsewhere[2, 4] < 1
    for effects in (everywhere, elsewhere):
        effects[2, 4] = 0
        assert not effects.any()


def test_a_planted_label_is_linear_after_its_block_and_not_before():
    adapter = planted.with_label(toy(norm="identity"), 3)
    sequence = "ACDEFGHIKLMNPQRSTVWY" * 4
    walked = walk(adapter, adapter.encode(sequence))
    labels = np.array([planted.label_of(letter) for letter in sequence])
    assert 0.3 < labels.mean() < 0.7
    residues = walked.streams[:, 1:-1]
    for layer, stream in enumerate(residues):
        planted_coordinate = stream[:, 2]
        if layer < 3:
            assert not planted_coordinate.any()
            # Streams of residues that share a place differ in the two signs only, whose product no linear map finds.
            assert np.array_equal(np.unique(stream[:, 0] * stream[:, 1]), [-1, 1])
        else:
            np.testing.assert_allclose(planted_coordinate, np.where(labels == 1, 1, -1), atol=1e-9)


def test_plants_leave_their_argument_alone_and_seeds_decide():
    adapter = toy(seed=3)
    before = walk(adapter, tokens_of(adapter)).logits
    planted.with_zero_block(adapter, 2)
    planted.rescaled(adapter, 2.0)
    assert np.array_equal(walk(adapter, tokens_of(adapter)).logits, before)
    adapter.reinitialise(4)
    assert not np.allclose(walk(adapter, tokens_of(adapter)).logits, before)
    adapter.reinitialise(3)
    assert np.array_equal(walk(adapter, tokens_of(adapter)).logits, before)
