"""Interventions, lanes and position sets as values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planted import toy
from plm_depth.activations.interventions import (
    Intervention,
    InterventionError,
    Itself,
    Lane,
    Mean,
    PositionSet,
    Resample,
    Zero,
    position_sets,
)

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"


def sets_of(names, sequence=SEQUENCE, *, direction=None, masked=None, **options) -> list[PositionSet]:
    adapter = toy() if direction is None else toy(variant="causal")
    tokens = adapter.encode(sequence, masked=masked, direction=direction or "none")
    return position_sets(names, sequence, tokens, **{"seed": 0, "sequence_id": "p", **options})


class TestReplacements:
    update = torch.arange(12.0).reshape(4, 3)

    def test_zero_leaves_the_update_out(self):
        assert torch.equal(Zero().of(self.update), torch.zeros(4, 3))

    def test_itself_is_an_equal_copy_and_not_the_same_memory(self):
        copy = Itself().of(self.update)
        assert torch.equal(copy, self.update) and copy.data_ptr() != self.update.data_ptr()

    def test_mean_is_one_vector_everywhere(self):
        assert torch.equal(Mean(torch.tensor([1.0, 2, 3])).of(self.update), torch.tensor([[1.0, 2, 3]] * 4))

    def test_resample_gives_each_token_the_vector_of_its_donor(self):
        found = Resample(-self.update, np.array([3, 0, 3])).of(self.update)
        assert torch.equal(found[:3], -self.update[[3, 0, 3]]), "the fourth token is padding"


class TestLanes:
    at = np.array([True, False])

    def test_an_unknown_part_is_refused_with_the_known_ones(self):
        with pytest.raises(InterventionError, match="'head'; possible: layer, attn, mlp, geom"):
            Intervention("head", 1, self.at)

    def test_positions_must_be_a_bool_per_token(self):
        with pytest.raises(InterventionError, match="bool per token, got int64"):
            Intervention("layer", 1, np.array([0, 1]))

    @pytest.mark.parametrize("blocks", [(), (2, 1), (3, 3)])
    def test_blocks_of_a_lane_ascend(self, blocks):
        with pytest.raises(InterventionError, match="ascending"):
            Lane(tuple(Intervention("mlp", block, self.at) for block in blocks))

    def test_a_local_lane_holds_one_intervention(self):
        with pytest.raises(InterventionError, match="one intervention, got 2"):
            Lane((Intervention("mlp", 1, self.at), Intervention("mlp", 2, self.at)), local=True)

    def test_a_lane_starts_at_its_first_intervention(self):
        assert Lane((Intervention("mlp", 2, self.at), Intervention("attn", 5, self.at))).first == 2


class TestPositionSets:
    def test_all_silences_and_reads_the_residues_and_leaves_the_specials_alone(self):
        (found,) = sets_of(["all"])
        assert (found.name, found.draw) == ("all", -1)
        assert found.skip.tolist() == found.read.tolist() == [False, *[True] * len(SEQUENCE), False]

    def test_tokens_silences_the_specials_too_but_reads_residues(self):
        (found,) = sets_of(["tokens"])
        assert found.skip.all() and found.read.tolist() == [False, *[True] * len(SEQUENCE), False]

    def test_other_silences_half_and_reads_the_rest(self):
        found = sets_of(["other"], draws=3)
        assert [s.draw for s in found] == [0, 1, 2]
        for s in found:
            assert s.skip.sum() == len(SEQUENCE) // 2 and (s.skip ^ s.read)[1:-1].all() and not s.skip[[0, -1]].any()
        assert not np.array_equal(found[0].skip, found[1].skip)

    @pytest.mark.parametrize("direction", ["n2c", "c2n"])
    def test_prefix_silences_what_is_read_first(self, direction):
        found = sets_of(["prefix"], direction=direction, draws=4)
        points = [int(s.skip.sum()) for s in found]
        assert len(set(points)) == 4 and all(
            len(SEQUENCE) // 8 <= p <= len(SEQUENCE) - len(SEQUENCE) // 8 for p in points
        )
        for s, point in zip(found, points):
            assert s.skip.tolist() == [False, *[True] * point, *[False] * (len(SEQUENCE) - point), False]
            assert s.read.tolist() == [False, *[False] * point, *[True] * (len(SEQUENCE) - point), False]

    def test_context_to_mask_silences_visible_and_reads_hidden_residues(self):
        masked = np.zeros(len(SEQUENCE), bool)
        masked[[3, 7]] = True
        (found,) = sets_of(["ctx2mask"], masked=masked)
        assert np.flatnonzero(found.read).tolist() == [4, 8] and found.skip.sum() == len(SEQUENCE) - 2

    @pytest.mark.parametrize("share", [0, 1])
    def test_context_to_mask_needs_both_hidden_and_visible_residues(self, share):
        assert sets_of(["ctx2mask"], masked=np.full(len(SEQUENCE), bool(share))) == []

    def test_a_protein_too_short_for_the_draws_has_fewer_prefix_points(self):
        assert len(sets_of(["prefix"], "MKT", draws=4)) == 2
        assert sets_of(["prefix", "other"], "M", draws=4) == []

    def test_draws_are_keyed_by_protein_and_number_not_by_how_many_are_asked_for(self):
        few, many = sets_of(["prefix", "other"], draws=2), sets_of(["prefix", "other"], draws=4)
        by_key = {(s.name, s.draw): s for s in many}
        for s in few:
            assert np.array_equal(s.skip, by_key[s.name, s.draw].skip)
        another = sets_of(["other"], draws=2, sequence_id="q")
        assert not np.array_equal(another[0].skip, by_key["other", 0].skip)

    def test_letters_that_are_no_canonical_residue_are_neither_silenced_nor_read(self):
        from plm_depth.models.registry import build

        adapter = build("esm2", {"n_blocks": 1, "d_model": 16, "n_heads": 2})
        sequence = "MKXAYIAKQRBISFVK"
        tokens = adapter.encode(sequence)
        found = position_sets(["all", "other", "prefix"], sequence, tokens, seed=0, sequence_id="p", draws=2)
        strange = [1 + sequence.index("X"), 1 + sequence.index("B")]
        assert len(found) == 5
        for s in found:
            assert not s.skip[strange].any() and not s.read[strange].any()

    def test_an_unknown_set_is_refused_with_the_known_ones(self):
        with pytest.raises(
            InterventionError, match="position set half; possible: all, prefix, other, ctx2mask, tokens"
        ):
            sets_of(["half"])

    def test_parity_counts_tokens_as_the_published_study_does(self):
        found = sets_of(["all", "prefix"], direction="n2c", draws=4, parity=True)
        n_tokens = len(SEQUENCE) + 2
        assert found[0].skip.tolist() == [False, *[True] * (n_tokens - 1)] and found[0].read.all()
        points = sorted(int(s.skip.sum()) + 1 for s in found[1:])
        assert points == [8, 16, 24]  # multiples of 8 below 35 - 4 = 31
        for s in found[1:]:
            point = int(s.skip.sum()) + 1
            assert np.flatnonzero(s.skip).tolist() == list(range(1, point))
            assert np.flatnonzero(s.read).tolist() == list(range(point, n_tokens))

    def test_parity_knows_no_other_set(self):
        with pytest.raises(InterventionError, match="possible: all, prefix"):
            sets_of(["other"], parity=True)

    @given(st.text("ACDEFGHIKLMNPQRSTVWY", min_size=1, max_size=40), st.integers(0, 5), st.integers(0, 3))
    @settings(max_examples=60, deadline=None)
    def test_no_residue_is_both_silenced_and_read_in_a_subset_and_no_set_is_empty(self, sequence, draws, seed):
        masked = np.arange(len(sequence)) % 3 == 0
        for s in sets_of(["prefix", "other", "ctx2mask"], sequence, masked=masked, draws=draws, seed=seed):
            assert s.skip.any() and s.read.any() and not (s.skip & s.read).any()
            assert not s.skip[[0, -1]].any() and not s.read[[0, -1]].any()
