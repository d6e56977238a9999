"""The sweep: against one full forward pass per source, and on planted models whose answers are known."""

import logging

import numpy as np
import pytest
import torch

import plain_hooks
from planted import (
    Counting,
    rescaled,
    rotated,
    toy,
    walk,
    with_copy,
    with_dependency,
    with_twin_blocks,
    with_zero_block,
    without_attention,
)
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
from plm_depth.activations.sweep import OUTPUTS, Outcome, Work, output_changes, run_lanes, sweep
from plm_depth.models.base import Adapter
from plm_depth.models.registry import build
from plm_depth.tables import AMINO_ACIDS

LOG = logging.getLogger("test")
# 24 tokens: a product of matrices treats the last rows of a batch otherwise (by a last bit) when their number is no
# multiple of its tile. With a multiple of 8 tokens a protein, what must be zero is exactly zero.
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
VARIANTS = {
    "sequential": {},
    "parallel": {"variant": "parallel"},
    "parallel, causal": {"variant": "parallel", "objective": "ar"},
    "scaled": {"variant": "scaled", "norm": "rms"},
    "causal": {"variant": "causal"},
    "geometric": {"geometric": True},
    "identity norms": {"norm": "identity"},
}


def tokens_of(adapter: Adapter, sequence: str = SEQUENCE):
    masked = None
    if adapter.mask_id is not None:
        masked = np.zeros(len(sequence), bool)
        masked[[2, 5, 11]] = True
    return adapter.encode(sequence, masked=masked, direction=adapter.directions[0])


def sets_of(adapter: Adapter, names=("all", "prefix", "other"), sequence: str = SEQUENCE) -> list[PositionSet]:
    return position_sets(names, sequence, tokens_of(adapter, sequence), seed=0, sequence_id="p", draws=1)


def lanes_of(adapter: Adapter, positions: PositionSet, part: str, by=None, local: bool = False) -> tuple[Lane, ...]:
    sources = (1,) if part == "geom" else range(1, adapter.n_blocks + 1)
    return tuple(Lane((Intervention(part, i, positions.skip, by or Zero()),), local) for i in sources)


def work_of(adapter: Adapter, lanes, sequence: str = SEQUENCE, name: str = "p") -> Work:
    tokens = tokens_of(adapter, sequence)
    positions = np.arange(len(sequence))
    if adapter.read_offset:
        positions = adapter.read_positions(sequence, tokens, which="next")
    reads = tokens.residue_tokens[positions] + adapter.read_offset
    ids = adapter.residue_ids[[AMINO_ACIDS.index(sequence[p]) for p in positions]]
    return Work(name, tokens, tuple(lanes), reads, ids)


def run(adapter: Adapter, lanes, sequence: str = SEQUENCE) -> Outcome:
    ((_, outcome),) = sweep(adapter, [work_of(adapter, lanes, sequence)], token_budget=10**6, max_padding=0.0, log=LOG)
    return outcome


def effects(adapter: Adapter, name: str, part: str = "layer", local: bool = False, by=None) -> np.ndarray:
    """Return D, (n_blocks, n_blocks, positions read); 0 / 0 is NaN."""
    (positions,) = sets_of(adapter, (name,))
    outcome = run(adapter, lanes_of(adapter, positions, part, by, local))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (outcome.change / outcome.size)[..., positions.read]


def output(adapter: Adapter, name: str, part: str = "layer", quantity: str = "l2") -> np.ndarray:
    """Return delta, (n_blocks, read-outs at positions read)."""
    (positions,) = sets_of(adapter, (name,))
    lanes = lanes_of(adapter, positions, part)
    outcome = run(adapter, lanes)
    kept = positions.read[work_of(adapter, lanes).reads]
    return outcome.output["aa20"][:, OUTPUTS.index(quantity)][:, kept]


def close(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, np.nanmax(np.abs(expected))))


def expected_output(adapter: Adapter, work: Work, clean: np.ndarray, altered: np.ndarray, columns) -> np.ndarray:
    """Return (5, n_reads), written as the definitions stand."""

    def probabilities(logits):
        x = logits[work.reads][:, columns].astype(np.float64)
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    p, q = probabilities(clean), probabilities(altered)
    rows = np.arange(len(p))
    true = np.array([list(columns).index(t) for t in work.true])
    return np.stack(
        [
            np.sqrt(((p - q) ** 2).sum(-1)),
            (p * np.log(p / q)).sum(-1),
            abs(p - q).sum(-1) / 2,
            p.argmax(-1) != q.argmax(-1),
            np.log(p[rows, true]) - np.log(q[rows, true]),
        ]
    )


class TestAgainstOneFullForwardPassPerSource:
    @pytest.mark.parametrize("part", ["layer", "attn", "mlp"])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_source_target_and_output(self, variant, part):
        adapter = toy(**VARIANTS[variant])
        clean = plain_hooks.run(adapter, tokens_of(adapter))[0].numpy()
        for positions in sets_of(adapter):
            lanes = lanes_of(adapter, positions, part)
            outcome, work = run(adapter, lanes), work_of(adapter, lanes)
            for lane, source in enumerate(range(1, adapter.n_blocks + 1)):
                change, logits = plain_hooks.skip(adapter, work.tokens, part, source, positions.skip)
                close(outcome.change[lane], change)
                for vocabulary, columns in (("aa20", adapter.residue_ids), ("full", sorted(adapter.vocabulary))):
                    close(
                        outcome.output[vocabulary][lane],
                        expected_output(adapter, work, clean, logits, columns),
                        1e-12,
                    )

    def test_the_geometric_branch(self):
        adapter = toy(geometric=True)
        for positions in sets_of(adapter):
            outcome = run(adapter, lanes_of(adapter, positions, "geom"))
            close(outcome.change[0], plain_hooks.skip(adapter, tokens_of(adapter), "geom", 1, positions.skip)[0])

    @pytest.mark.parametrize("part", ["layer", "attn", "mlp"])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_local_effects(self, variant, part):
        adapter = toy(**VARIANTS[variant])
        for positions in sets_of(adapter):
            outcome = run(adapter, lanes_of(adapter, positions, part, local=True))
            for lane, source in enumerate(range(1, adapter.n_blocks + 1)):
                close(
                    outcome.change[lane], plain_hooks.local(adapter, tokens_of(adapter), part, source, positions.skip)
                )
            assert np.isnan(outcome.output["aa20"]).all()

    @pytest.mark.parametrize("part", ["layer", "attn", "mlp"])
    @pytest.mark.parametrize("ablation", ["mean", "resample"])
    def test_other_ablations(self, part, ablation):
        adapter = toy()
        tokens = tokens_of(adapter)
        random = torch.Generator().manual_seed(1)
        by = torch.randn(adapter.d_model, generator=random, dtype=torch.float64)
        replacement = Mean(by)
        if ablation == "resample":
            by = torch.randn(tokens.n_tokens, adapter.d_model, generator=random, dtype=torch.float64)
            replacement = Resample(by.flip(0), np.arange(tokens.n_tokens)[::-1].copy())
        for positions in sets_of(adapter):
            outcome = run(adapter, lanes_of(adapter, positions, part, replacement))
            for lane, source in enumerate(range(1, adapter.n_blocks + 1)):
                close(outcome.change[lane], plain_hooks.skip(adapter, tokens, part, source, positions.skip, by)[0])

    @pytest.mark.parametrize("variant", ["sequential", "parallel", "causal"])
    def test_several_interventions_in_one_run(self, variant):
        adapter = toy(**VARIANTS[variant])
        tokens, (positions, _, half) = tokens_of(adapter), sets_of(adapter)
        wanted = {(2, "mlp"): positions, (3, "attn"): half, (5, "attn"): positions, (5, "mlp"): positions}
        lane = Lane(
            (
                Intervention("mlp", 2, positions.skip),
                Intervention("attn", 3, half.skip),
                Intervention("layer", 5, positions.skip),
            )
        )
        outcome = run(adapter, [*lanes_of(adapter, half, "mlp"), lane])
        silenced = {key: (where.skip, 0.0) for key, where in wanted.items()}
        clean, altered = plain_hooks.run(adapter, tokens)[1], plain_hooks.run(adapter, tokens, silenced)[1]
        close(outcome.change[-1], (sum(clean.values()) - sum(altered.values())).norm(dim=-1).numpy())

    @pytest.mark.parametrize("part", ["layer", "attn", "mlp"])
    def test_an_esm_module_of_the_library_in_double_precision(self, part):
        adapter = build("esm2", {"n_blocks": 4, "d_model": 32, "n_heads": 4}, seed=1)
        adapter.module.double()
        for positions in sets_of(adapter):
            outcome = run(adapter, lanes_of(adapter, positions, part))
            for lane, source in enumerate(range(1, adapter.n_blocks + 1)):
                close(
                    outcome.change[lane], plain_hooks.skip(adapter, tokens_of(adapter), part, source, positions.skip)[0]
                )

    @pytest.mark.parametrize("part", ["layer", "attn", "mlp"])
    @pytest.mark.parametrize("family", ["esm2", "dplm", "progen2"])
    def test_library_modules_in_single_precision(self, family, part):
        adapter = build(family, {"n_blocks": 4, "d_model": 64, "n_heads": 8}, seed=1)
        for positions in sets_of(adapter):
            outcome = run(adapter, lanes_of(adapter, positions, part))
            for lane, source in enumerate(range(1, adapter.n_blocks + 1)):
                change = plain_hooks.skip(adapter, tokens_of(adapter), part, source, positions.skip)[0]
                close(outcome.change[lane] / outcome.size, change / outcome.size, 1e-5)


class TestKnownAnswers:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_a_block_that_does_nothing_has_no_effect_at_all(self, variant):
        adapter = with_zero_block(toy(**VARIANTS[variant]), 3)
        for name in ("all", "prefix", "other"):
            found = effects(adapter, name)
            assert (np.delete(found[2], 2, 0) == 0).all(), "row of the silent block"
            assert np.isnan(found[:3, 2]).all(), "0 / 0 is undefined"
            assert (output(adapter, name)[2] == 0).all()
            assert (effects(adapter, name, local=True)[2, 3:] == 0).all()

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_the_diagonal_of_a_layer_skip_is_one_everywhere_or_zero_outside_the_set(self, variant):
        adapter = toy(**VARIANTS[variant])
        diagonal = np.arange(adapter.n_blocks)
        assert (effects(adapter, "all")[diagonal, diagonal] == 1).all()
        for name in ("prefix", "other"):
            assert (effects(adapter, name)[diagonal, diagonal] == 0).all()

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_nothing_changes_before_the_silenced_block(self, variant):
        adapter = toy(**VARIANTS[variant])
        for part in ("layer", "attn", "mlp"):
            found = effects(adapter, "all", part)
            assert (found[np.tril_indices(adapter.n_blocks, -1)] == 0).all()

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_the_diagonal_of_a_branch_skip(self, variant):
        adapter = toy(**VARIANTS[variant])
        updates = walk(adapter, tokens_of(adapter)).updates
        read = sets_of(adapter, ("all",))[0].read

        def ratio(branch):
            return np.stack([(branch(u).norm(dim=-1) / u.total.norm(dim=-1)).numpy()[read] for u in updates])

        diagonal = np.arange(adapter.n_blocks)
        mlp, attention = (effects(adapter, "all", part)[diagonal, diagonal] for part in ("mlp", "attn"))
        close(mlp, ratio(lambda u: u.mlp), 1e-14)
        difference = np.abs(attention - ratio(lambda u: u.attention)).max()
        assert difference < 1e-14 if adapter.is_parallel else difference > 1e-2

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_local_and_global_effect_agree_on_the_next_block(self, variant):
        adapter = toy(**VARIANTS[variant])
        for name in ("all", "prefix", "other"):
            everything, local = effects(adapter, name), effects(adapter, name, local=True)
            for source in range(adapter.n_blocks - 1):
                close(local[source, source + 1], everything[source, source + 1], 1e-14)
            assert (local[np.tril_indices(adapter.n_blocks)] == 0).all()

    def test_a_causal_model_shows_nothing_before_the_first_silenced_residue(self):
        adapter = toy(variant="causal")
        tokens = tokens_of(adapter)
        skip = np.zeros(tokens.n_tokens, bool)
        skip[9:] = True
        positions = PositionSet("other", 0, skip, ~skip)
        outcome = run(adapter, lanes_of(adapter, positions, "layer"))
        assert (outcome.change[:, :, :9] == 0).all()
        assert (outcome.change[:-1, -1, 9:] > 0).all()
        everything = run(adapter, lanes_of(adapter, sets_of(adapter, ("all",))[0], "layer"))
        assert (everything.change[:, :, 0] == 0).all(), "the terminal that keeps its update"

    def test_without_attention_nothing_travels_between_positions(self):
        adapter = without_attention(toy())
        for name in ("prefix", "other", "ctx2mask"):
            assert (effects(adapter, name) == 0).all() and (output(adapter, name) == 0).all()
        assert (output(adapter, "all") > 0).all()

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_the_last_block_has_no_output_effect_at_other_positions(self, variant):
        adapter = toy(**VARIANTS[variant])
        for name in ("prefix", "other"):
            found = output(adapter, name)
            assert (found[-1] == 0).all() and (found[:-1] > 0).all()

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_without_the_last_block_the_output_is_the_lens_of_the_layer_before(self, variant):
        adapter = toy(**VARIANTS[variant])
        (positions,) = sets_of(adapter, ("all",))
        lanes = lanes_of(adapter, positions, "layer")
        work, logits = work_of(adapter, lanes), walk(adapter, tokens_of(adapter)).logits
        residues = positions.read[work.reads]
        expected = expected_output(adapter, work, logits[-1], logits[-2], adapter.residue_ids)
        close(run(adapter, lanes).output["aa20"][-1][:, residues], expected[:, residues])

    def test_a_planted_dependency_is_the_only_effect(self):
        found = effects(with_dependency(toy(norm="identity"), 2, 5), "all").max(-1)
        assert found[1, 4] == 1
        found[1, 4] = 0
        np.fill_diagonal(found, 0)
        assert (found == 0).all()

    def test_a_norm_spreads_the_planted_dependency(self):
        found = effects(with_dependency(toy(norm="layer"), 2, 5), "all").max(-1)
        found[1, 4] = 0
        np.fill_diagonal(found, 0)
        assert found.max() > 0.1

    def test_a_planted_copy_is_the_only_effect_between_positions(self):
        found = effects(with_copy(toy(norm="identity"), 2, 4), "other").max(-1)
        assert 0.1 < found[1, 3] <= 1
        found[1, 3] = 0
        assert (found == 0).all()

    def test_twin_blocks_stand_in_for_each_other(self):
        adapter = with_twin_blocks(toy(), 3, 4)
        found = output(adapter, "tokens")
        assert np.array_equal(found[2], found[3])
        updates = walk(adapter, tokens_of(adapter)).updates
        expected = (updates[3].total - updates[2].total).norm(dim=-1) / updates[3].total.norm(dim=-1)
        close(effects(adapter, "tokens")[2, 3], expected.numpy()[1:-1], 1e-14)

    def test_a_rescaled_stream_hides_behind_the_norms(self):
        adapter = toy()
        for name in ("all", "other"):
            for part in ("layer", "attn", "mlp"):
                close(effects(rescaled(adapter, 7.3), name, part), effects(adapter, name, part), 2e-11)
                close(output(rescaled(adapter, 7.3), name, part), output(adapter, name, part), 2e-12)

    @pytest.mark.parametrize("norm", ["rms", "identity"])
    def test_a_turned_basis_changes_nothing(self, norm):
        adapter = toy(norm=norm)
        for part in ("layer", "attn", "mlp"):
            close(effects(rotated(adapter), "other", part), effects(adapter, "other", part))
            close(output(rotated(adapter), "other", part), output(adapter, "other", part))

    def test_an_update_replaced_by_its_own_copy_changes_nothing(self):
        for variant in VARIANTS.values():
            for part in ("layer", "attn", "mlp"):
                found = np.nanmax(effects(toy(**variant), "all", part, by=Itself()))
                assert found == 0 if part != "attn" else found <= 1e-13, "the MLP is computed again, in another batch"


class TestBatches:
    """The same numbers, whatever runs together."""

    def lanes(self, adapter, sequence=SEQUENCE):
        return [
            lane
            for positions in sets_of(adapter, sequence=sequence)
            for part in ("layer", "attn")
            for local in (False, True)
            for lane in lanes_of(adapter, positions, part, local=local)
        ]

    @pytest.mark.parametrize("budget", [1, 100, 500])
    @pytest.mark.parametrize("variant", ["sequential", "parallel, causal", "geometric"])
    def test_a_small_token_budget_cuts_the_lanes_and_not_the_numbers(self, variant, budget):
        adapter = toy(**VARIANTS[variant])
        work = work_of(adapter, self.lanes(adapter))
        whole = run(adapter, work.lanes)
        ((_, cut),) = sweep(adapter, [work], token_budget=budget, max_padding=0.0, log=LOG)
        close(cut.change, whole.change)
        close(cut.output["full"], whole.output["full"])
        assert np.array_equal(np.isnan(cut.output["full"]), np.isnan(whole.output["full"]))

    def test_lanes_may_come_in_any_order(self):
        adapter = toy()
        lanes = self.lanes(adapter)
        order = np.random.default_rng(0).permutation(len(lanes))
        whole, shuffled = run(adapter, lanes), run(adapter, [lanes[k] for k in order])
        close(shuffled.change, whole.change[order])
        close(shuffled.output["aa20"], whole.output["aa20"][order])

    @pytest.mark.parametrize("variant", ["sequential", "parallel, causal"])
    def test_proteins_side_by_side(self, variant):
        adapter = toy(**VARIANTS[variant])
        sequences = [SEQUENCE, SEQUENCE[:15], SEQUENCE[::-1], SEQUENCE[:18]]
        works = [work_of(adapter, self.lanes(adapter, s), s, str(i)) for i, s in enumerate(sequences)]
        for padding in (0.0, 0.5):
            found = dict(sweep(adapter, works, token_budget=10**6, max_padding=padding, log=LOG))
            assert sorted(found) == [0, 1, 2, 3]
            for i, work in enumerate(works):
                alone = run(adapter, work.lanes, sequences[i])
                assert found[i].change.shape == alone.change.shape
                close(found[i].change, alone.change)
                close(found[i].output["aa20"], alone.output["aa20"])

    def test_one_run_gives_the_same_bits_twice(self):
        adapter = build("esm2", {"n_blocks": 3, "d_model": 32, "n_heads": 4}, seed=1)
        lanes = self.lanes(adapter)
        first, second = run(adapter, lanes), run(adapter, lanes)
        assert first.change.tobytes() == second.change.tobytes()

    def test_rows_in_a_batch_keep_to_the_budget(self):
        adapter = Counting(toy())
        work = work_of(adapter, self.lanes(adapter))
        list(sweep(adapter, [work], token_budget=200, max_padding=0.0, log=LOG))
        assert 150 < adapter.largest <= 200
        adapter.largest = 0
        list(sweep(adapter, [work] * 7, token_budget=200, max_padding=0.0, log=LOG))
        assert adapter.largest <= 200

    def test_each_block_sees_all_lanes_once(self):
        adapter = Counting(toy())
        (positions,) = sets_of(adapter, ("all",))
        run(adapter, lanes_of(adapter, positions, "layer"))
        assert adapter.calls == adapter.n_blocks
        assert adapter.rows == adapter.n_blocks * (adapter.n_blocks + 1) // 2


class TestOutOfMemory:
    def test_lanes_of_one_protein_are_halved_until_they_fit(self, caplog):
        adapter = Counting(toy(), memory=150)
        (positions,) = sets_of(adapter, ("other",))
        lanes = [*lanes_of(adapter, positions, "layer"), *lanes_of(adapter, positions, "layer", local=True)]
        with caplog.at_level(logging.WARNING):
            found = run(adapter, lanes)
        close(found.change, run(toy(), lanes).change)
        assert adapter.failures and "out of memory with 12 lanes of p" in caplog.text

    def test_proteins_are_halved_before_lanes(self, caplog):
        adapter = Counting(toy(), memory=24 * 14)
        (positions,) = sets_of(adapter, ("other",))
        works = [work_of(adapter, lanes_of(adapter, positions, "layer"), name=str(i)) for i in range(4)]
        with caplog.at_level(logging.WARNING):
            found = dict(sweep(adapter, works, token_budget=10**6, max_padding=0.0, log=LOG))
        assert sorted(found) == [0, 1, 2, 3] and "out of memory with 4 proteins" in caplog.text
        assert "lanes" not in caplog.text
        for outcome in found.values():
            close(outcome.change, run(toy(), works[0].lanes).change)

    def test_one_lane_that_does_not_fit_is_an_error_that_names_the_protein(self):
        adapter = Counting(toy(), memory=24)
        (positions,) = sets_of(adapter, ("other",))
        with pytest.raises(ValueError, match="out of memory for p alone"):
            run(adapter, lanes_of(adapter, positions, "layer"))

    def test_another_error_is_not_taken_for_it(self):
        class Broken(Counting):
            def updates(self, block, stream, context):
                raise RuntimeError("shapes cannot be multiplied")

        (positions,) = sets_of(toy(), ("other",))
        with pytest.raises(RuntimeError, match="multiplied"):
            run(Broken(toy()), lanes_of(toy(), positions, "layer"))


class TestWhatCannotBe:
    def test_a_block_that_the_model_does_not_have(self):
        adapter = toy()
        skip = np.zeros(len(SEQUENCE) + 2, bool)
        for block in (0, 7):
            with pytest.raises(InterventionError, match=r"toy has blocks 1\.\.6"):
                run(adapter, [Lane((Intervention("layer", block, skip),))])

    def test_a_branch_that_the_block_does_not_have(self):
        adapter = toy()
        skip = np.zeros(len(SEQUENCE) + 2, bool)
        with pytest.raises(InterventionError, match="no geometric branch"):
            run(adapter, [Lane((Intervention("geom", 1, skip),))])


class TestOutputChanges:
    def test_hand_computed_values(self):
        before = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
        after = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
        found = output_changes(before, after, torch.tensor([0]))[:, 0]
        expected = [np.sqrt(2) / 4, 0.5 * np.log(2) - 0.25 * np.log(2), 0.25, 1, np.log(2)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-15)

    def test_bounds_and_the_unchanged_case(self):
        one, other = torch.eye(3, dtype=torch.float64)[:2].clamp(min=1e-300).log().split(1)
        found = output_changes(one, other, torch.tensor([-1]))[:, 0]
        assert found[0] == pytest.approx(np.sqrt(2)) and found[2] == pytest.approx(1) and found[4].isnan()
        assert (output_changes(one, one, torch.tensor([0])) == 0).all()

    def test_log_probabilities_that_are_none_are_an_error(self):
        x = torch.zeros(1, 3, dtype=torch.float64)
        with pytest.raises(ValueError, match="below 0"):
            output_changes(x, x + 1, torch.tensor([0]))


def test_the_stream_is_never_kept_beyond_the_current_block():
    adapter = toy(n_blocks=6)
    (positions,) = sets_of(adapter, ("all",))
    kept: dict = {}
    run_lanes(adapter, [work_of(adapter, lanes_of(adapter, positions, "layer"))], keep=(), kept=kept)
    assert kept == {}
    run_lanes(adapter, [work_of(adapter, lanes_of(adapter, positions, "layer"))], keep=(2, 4), kept=kept)
    streams = walk(adapter, tokens_of(adapter)).streams
    assert sorted(kept) == [2, 4]
    np.testing.assert_allclose(kept[4][0].numpy(), streams[4], atol=1e-12)
