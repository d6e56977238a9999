"""Erased states: against plain walks, and what an erasure cannot reach."""

import logging

import numpy as np
import pytest
import torch

from planted import toy, walk, without_attention
from plm_depth.activations import erasure
from plm_depth.activations.attribution import PREFIX, Settings, erased_rows, erasures_of, protein_of, reference_means
from plm_depth.activations.erasure import Erasure, erase, mean_states
from plm_depth.activations.nulls import Null
from plm_depth.activations.sweep import OUTPUTS, output_changes
from plm_depth.models.fast import steps
from plm_depth.tables import AMINO_ACIDS
from plm_depth.views import View, mask_of

LOG = logging.getLogger("test")
MASKED, FORWARD, BACKWARD = View("none", 0.3, 0), View("n2c", float("nan"), -1), View("c2n", float("nan"), -1)
SEQUENCE = "MKTAYIAKQRQISFVKSHFS"
L2, KL = OUTPUTS.index("l2"), OUTPUTS.index("kl_fo")


def protein(adapter, view, sequence=SEQUENCE):
    return protein_of(adapter, "P", sequence, view, Settings(targets=("logp",)), seed=0)


def changes(adapter, one, erasures, *, token_budget=10**5):
    ids = {"aa20": np.asarray(adapter.residue_ids)}
    reads = one.readers.tokens.numpy()
    return erase(adapter, one.states[0], one.context, erasures, reads, ids, token_budget=token_budget, log=LOG)["aa20"]


def at(one, *tokens):
    return np.isin(np.arange(one.tokens.n_tokens), tokens)


def vector(seed, width=32):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.inference_mode()
def plain(adapter, one, altered):
    """Return what one erasure changes, (5, n_reads), by a walk of its own."""
    stream, context = adapter.embed(adapter.collate([one.tokens]))
    for layer in range(adapter.n_blocks + 1):
        if layer:
            stream = adapter.add(stream, adapter.updates(layer, stream, context))
        if layer == altered.layer:
            stream = stream.clone()
            stream[0, torch.from_numpy(altered.at)] = altered.by
    columns = torch.from_numpy(np.asarray(adapter.residue_ids))
    read = one.readers.tokens
    before, after = (adapter.read_out(x[:, read])[0][:, columns].log_softmax(-1) for x in (one.states[-1], stream))
    return output_changes(before, after, torch.full((len(read),), -1)).numpy()


@pytest.mark.parametrize(("variant", "view"), [("sequential", MASKED), ("parallel", MASKED), ("causal", FORWARD)])
def test_erasures_of_one_batch_are_those_of_plain_walks(variant, view):
    adapter = toy(variant=variant, n_blocks=4)
    one = protein(adapter, view)
    erasures = [
        Erasure(layer, at(one, *tokens), vector(layer)) for layer in (3, 0, 4, 1) for tokens in ((5,), (2, 3, 9))
    ]
    for budget in (10**5, 4 * one.tokens.n_tokens, 1):
        got = changes(adapter, one, erasures, token_budget=budget)
        for k, one_erasure in enumerate(erasures):
            np.testing.assert_allclose(got[k, :4], plain(adapter, one, one_erasure)[:4], rtol=1e-9, atol=1e-12)


def test_a_state_erased_by_itself_changes_nothing():
    adapter = toy(n_blocks=3)
    one = protein(adapter, MASKED)
    everywhere = np.full(one.tokens.n_tokens, True)
    got = changes(adapter, one, [Erasure(layer, everywhere, one.states[layer][0]) for layer in range(4)])
    # Batches of another size may round differently; what enters block 1 is the same to the last bit.
    assert (got[0, [L2, KL]] == 0).all() and got[1:, [L2, KL]].max() < 1e-12


def test_the_last_state_is_read_at_its_own_position_only():
    adapter = toy(n_blocks=3)
    one = protein(adapter, MASKED)
    reads = one.readers.tokens.numpy()
    got = changes(adapter, one, [Erasure(3, at(one, reads[0]), vector(0)), Erasure(2, at(one, reads[0]), vector(0))])
    assert got[0, L2, 0] > 0 and (got[0, L2, 1:] == 0).all()
    assert (got[1, L2] > 0).all()


@pytest.mark.parametrize("view", [FORWARD, BACKWARD])
def test_no_erasure_reaches_earlier_tokens_of_a_causal_model(view):
    adapter = toy(variant="causal", n_blocks=3)
    one = protein(adapter, view)
    token = 9
    got = changes(adapter, one, [Erasure(layer, at(one, token), vector(1)) for layer in range(4)])
    reads = one.readers.tokens.numpy()
    assert (got[:, L2][:, reads < token] == 0).all()
    assert (got[:3, L2][:, reads > token] > 0).all()


def test_without_attention_no_other_position_changes():
    adapter = without_attention(toy(n_blocks=3))
    one = protein(adapter, MASKED)
    got = changes(adapter, one, [Erasure(layer, at(one, one.readers.tokens[0]), vector(2)) for layer in range(4)])
    assert got[:, L2, 1:].max() < 1e-12 and got[:, L2, 0].min() > 1e-4


def test_running_out_of_memory_halves_the_erasures(monkeypatch, caplog):
    adapter = toy(n_blocks=3)
    one = protein(adapter, MASKED)
    erasures = [Erasure(layer, at(one, 4), vector(3)) for layer in (0, 1, 2, 3)]
    whole = changes(adapter, one, erasures)
    real = erasure._run

    def tight(adapter, evaluator, kept, context, part, at, ids):
        found = real(adapter, evaluator, kept, context, part, at, ids)
        if len(part) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(erasure, "_run", tight)
    with caplog.at_level(logging.WARNING):
        halved = changes(adapter, one, erasures)
    assert "out of memory" in caplog.text
    np.testing.assert_allclose(halved[:, :4], whole[:, :4], rtol=1e-9, atol=1e-13)


def test_means_are_over_the_chosen_tokens_of_all_proteins():
    adapter = toy(n_blocks=2)
    rows = []
    for sequence in ("MKTAYIAK", "GSHMLEDPVRAA"):
        tokens = adapter.encode(sequence)
        rows.append((tokens, np.isin(np.arange(tokens.n_tokens), (2, 5))))
    streams = [walk(adapter, tokens).streams[:, chosen] for tokens, chosen in rows]
    expected = np.concatenate(streams, axis=1).mean(1)
    np.testing.assert_allclose(mean_states(adapter, rows).numpy(), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="no token"):
        mean_states(adapter, [(rows[0][0], np.zeros(rows[0][0].n_tokens, bool))])


def test_reference_means_leave_out_what_is_hidden_or_not_canonical():
    adapter = toy(n_blocks=2)
    adapter.check_sequence = lambda *_: None  # the toy knows no letter beyond the twenty: take X for its L
    encode = adapter.encode
    adapter.encode = lambda sequence, **options: encode(sequence.replace("X", "L"), **options)
    sequence = "MKTAYXIAKQRQI"
    found = reference_means(adapter, [("R", sequence)], Null("trained", -1), MASKED, seed=3)
    masked = mask_of(MASKED, len(sequence), 3, "R")
    tokens = adapter.encode(sequence, masked=masked)
    shown = ~masked & np.array([letter in AMINO_ACIDS for letter in sequence])
    assert not masked[5]
    expected = walk(adapter, tokens).streams[:, tokens.residue_tokens[shown]].mean(1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(("objective", "view"), [("sequential", MASKED), ("causal", FORWARD), ("causal", BACKWARD)])
def test_erased_are_visible_residues_that_others_read(objective, view):
    adapter = toy(variant=objective, n_blocks=2)
    one = protein(adapter, view, "MKTAYIAKQRQISFVKSHF")
    means = torch.zeros(3, adapter.d_model, dtype=torch.float64)
    wanted = erasures_of(one, view, means, Settings(positions=6), seed=0)
    positions = [position for position, _, _ in wanted]
    assert len(positions) == 7 and len(set(positions)) == 7 and positions[-1] == PREFIX
    reads = one.readers.tokens.numpy()
    for position, counted, erasures in wanted:
        assert [each.layer for each in erasures] == [0, 1, 2]
        erased = erasures[0].at
        hidden = one.tokens.residue_tokens[one.tokens.masked]
        assert not erased[hidden].any() and one.residues[erased].all() and counted.any()
        if position == PREFIX:
            assert (reads[counted] > np.flatnonzero(erased).max()).all()
        else:
            assert np.flatnonzero(erased).tolist() == [one.tokens.residue_tokens[position]]
            assert not np.isin(reads[counted], np.flatnonzero(erased)).any()
            if view.reads == "next":
                assert (reads[counted] > np.flatnonzero(erased)).all()


def test_more_positions_begin_with_the_fewer():
    adapter = toy(n_blocks=2)
    one = protein(adapter, MASKED)
    means = torch.zeros(3, adapter.d_model, dtype=torch.float64)
    few, many = (
        [position for position, _, _ in erasures_of(one, MASKED, means, Settings(positions=n), seed=0)[:n]]
        for n in (3, 8)
    )
    assert many[:3] == few


def test_rows_count_the_reads_at_other_positions():
    adapter = toy(variant="causal", n_blocks=2)
    one = protein(adapter, FORWARD)
    means = reference_means(adapter, [("R", SEQUENCE[::-1])], Null("trained", -1), FORWARD, seed=0)
    settings = Settings(positions=2)
    rows = erased_rows(adapter, one, FORWARD, means, settings, steps(adapter), seed=0, token_budget=10**5, log=LOG)
    reads = one.readers.tokens.numpy()
    wanted = erasures_of(one, FORWARD, means, settings, seed=0)
    for position, counted, erasures in wanted:
        for layer in range(3):
            expected = plain(adapter, one, erasures[layer])[[L2, KL]][:, counted]
            mine = (rows["pos"] == position) & (rows["layer"] == layer)
            assert rows["quantity"][mine].tolist() == ["l2", "kl_fo"]
            assert (rows["n"][mine] == counted.sum()).all() and counted.sum() < len(reads)
            np.testing.assert_allclose(rows["sum"][mine], expected.sum(-1), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(rows["max"][mine], expected.max(-1), rtol=1e-9, atol=1e-12)
    assert (rows["floor"] < 1e-12).all()
