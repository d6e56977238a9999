"""Detours: against a plain loop over blocks, and the identities that removal, exchange and reversal obey."""

import logging

import numpy as np
import pytest
import torch

from planted import Counting, along, toy, walk, with_dependency, with_twin_blocks, with_zero_block
from plm_depth.activations.detours import (
    QUANTITIES,
    Detour,
    Plus,
    Through,
    in_its_place,
    measured,
    removal,
    repetition,
    reversal,
    run_detours,
    side_by_side,
    swap,
    travel,
)
from plm_depth.activations.interventions import Intervention, InterventionError, Lane
from plm_depth.activations.sweep import OUTPUTS, Work, sweep
from plm_depth.models.base import Adapter
from plm_depth.models.registry import build
from plm_depth.tables import AMINO_ACIDS

LOG = logging.getLogger("test")
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"  # with two specials a multiple of 8 tokens: equal rows of a product are equal bits
VARIANTS = {
    "sequential": {},
    "parallel": {"variant": "parallel"},
    "parallel, causal": {"variant": "parallel", "objective": "ar"},
    "scaled": {"variant": "scaled", "norm": "rms"},
    "causal": {"variant": "causal"},
    "geometric": {"geometric": True},
    "identity norms": {"norm": "identity"},
}
N = 6
SPANS = [(start, length) for start in range(N) for length in range(1, N - start + 1)]


def work_of(adapter: Adapter, sequence: str = SEQUENCE, name: str = "p") -> Work:
    masked = None
    if adapter.mask_id is not None:
        masked = np.zeros(len(sequence), bool)
        masked[[2, 5, 11]] = True
    tokens = adapter.encode(sequence, masked=masked, direction=adapter.directions[0])
    positions = np.arange(len(sequence))
    if adapter.read_offset:
        positions = adapter.read_positions(sequence, tokens, which="next")
    reads = tokens.residue_tokens[positions] + adapter.read_offset
    return Work(name, tokens, (), reads, adapter.residue_ids[[AMINO_ACIDS.index(sequence[p]) for p in positions]])


def run(adapter: Adapter, detours, sequence: str = SEQUENCE, budget: int = 10**6) -> np.ndarray:
    """Return (1 + n_detours, 4, n_reads)."""
    works = [work_of(adapter, sequence)]
    ((_, values),) = travel(adapter, works, detours, token_budget=budget, max_padding=0.0, log=LOG)
    return values


def expected(adapter: Adapter, work: Work, full: np.ndarray, altered: np.ndarray) -> np.ndarray:
    """Return (4, n_reads), written as the definitions stand."""
    true = np.array([list(adapter.residue_ids).index(t) for t in work.true])
    rows = np.arange(len(true))
    return np.stack(
        [
            -altered[rows, true],
            altered.argmax(-1) == true,
            (np.exp(full) * (full - altered)).sum(-1),
            altered.argmax(-1) != full.argmax(-1),
        ]
    )


def all_detours(adapter: Adapter) -> list[tuple[Detour, list]]:
    """Return detours of every kind, each with the course that it stands for."""
    order = list(range(1, N + 1))
    vector = torch.linspace(-1, 1, adapter.d_model, dtype=torch.float64)
    found = [(removal(N, 0), order), (removal(2, 0), order)]
    for start, length in SPANS:
        before, span, after = order[:start], order[start : start + length], order[start + length :]
        found.append((removal(start, length), before + after))
        found.append((reversal(start, length), before + span[::-1] + after))
        found.append((repetition(start, length), before + span + span + after))
        found.append((side_by_side(start, length), [*before, tuple(span), *after]))
        for second in range(1, length):
            first = length - second
            found.append((swap(start, first, second), before + span[first:] + span[:first] + after))
    for block in order:
        found.append((in_its_place(block, vector), [*order[: block - 1], vector, *order[block:]]))
    mixed = Detour(1, (Through((5,)), Plus(0, vector), Through((2, 6)), Through((1,)), Plus(0, -vector)), 4)
    found.append((mixed, [1, 5, vector, (2, 6), 1, -vector, 5, 6]))
    return found


def close(found, wanted, tolerance=1e-12):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(1.0, np.abs(wanted).max()))


class TestAgainstAPlainLoop:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_kind_of_detour(self, variant):
        adapter = toy(n_blocks=N, **VARIANTS[variant])
        work, courses = work_of(adapter), all_detours(adapter)
        full = along(adapter, work, range(1, N + 1))
        values = run(adapter, [detour for detour, _ in courses])
        assert values.shape == (1 + len(courses), len(QUANTITIES), len(work.reads))
        close(values[0], expected(adapter, work, full, full))
        for found, (_, course) in zip(values[1:], courses, strict=True):
            close(found, expected(adapter, work, full, along(adapter, work, course)))

    @pytest.mark.parametrize("family", ["esm2", "progen2", "esmc"])
    def test_a_module_of_the_library_in_double_precision(self, family):
        adapter = build(family, {"n_blocks": N, "d_model": 32, "n_heads": 8}, seed=1)
        adapter.module.double()
        work, courses = work_of(adapter), all_detours(adapter)[::5]
        full = along(adapter, work, range(1, N + 1))
        for found, (_, course) in zip(run(adapter, [detour for detour, _ in courses])[1:], courses, strict=True):
            close(found, expected(adapter, work, full, along(adapter, work, course)), 1e-11)

    @pytest.mark.parametrize("family", ["esm2", "progen2"])
    def test_fast_steps_in_single_precision(self, family):
        adapter = build(family, {"n_blocks": N, "d_model": 32, "n_heads": 8}, seed=1)
        work, courses = work_of(adapter), all_detours(adapter)[::5]
        full = along(adapter, work, range(1, N + 1))
        for found, (_, course) in zip(run(adapter, [detour for detour, _ in courses])[1:], courses, strict=True):
            wanted = expected(adapter, work, full, along(adapter, work, course))
            np.testing.assert_allclose(found[[0, 2]], wanted[[0, 2]], atol=2e-5)


class TestIdentities:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_what_changes_nothing_changes_nothing(self, variant):
        adapter = toy(n_blocks=N, **VARIANTS[variant])
        idle = [removal(N, 0), removal(3, 0), swap(2, 0, 0), swap(1, 2, 0), *(reversal(k, 1) for k in range(N))]
        values = run(adapter, idle)
        assert (values[1:, 2:] == 0).all(), "KL and flips"
        assert (values[1:] == values[0]).all()

    def test_a_reversal_of_two_is_the_swap_of_neighbours(self):
        assert reversal(2, 2).key == swap(2, 1).key
        values = run(toy(n_blocks=N), [detour for k in range(N - 1) for detour in (reversal(k, 2), swap(k, 1))])
        assert np.array_equal(values[1::2], values[2::2])

    @pytest.mark.parametrize("variant", ["sequential", "parallel", "causal", "scaled"])
    def test_twins_may_be_swapped(self, variant):
        adapter = with_twin_blocks(toy(n_blocks=N, **VARIANTS[variant]), 3, 4)
        swapped, others = run(adapter, [swap(2, 1), swap(1, 1)])[1:]
        assert np.abs(swapped[2]).max() <= 1e-14 and (swapped[3] == 0).all()
        assert others[2].max() > 1e-6

    def test_blocks_that_read_and_write_apart_commute(self):
        # All blocks read what the embedding wrote and write what no block reads, but for one pair.
        adapter = with_dependency(toy(n_blocks=N, norm="identity"), 2, 5)
        neighbours = run(adapter, [swap(k, 1) for k in range(N - 1)])[1:]
        assert np.abs(neighbours[:, 2]).max() <= 2e-14
        reversed_ = run(adapter, [reversal(1, 3), reversal(1, 4), side_by_side(1, 3), side_by_side(1, 4)])[1:]
        assert np.abs(reversed_[[0, 2], 2]).max() <= 2e-14
        assert reversed_[[1, 3], 2].max(-1).min() > 1e-6, "5 before 2, or beside it, lacks what 2 writes"

    def test_a_silent_block_may_go(self):
        adapter = with_zero_block(toy(n_blocks=N), 3)
        values = run(adapter, [removal(2, 1), side_by_side(2, 2), swap(2, 1), repetition(2, 1), removal(3, 1)])
        assert np.abs(values[1:5, 2]).max() <= 1e-14
        assert values[5, 2].max() > 1e-6

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_a_tail_that_goes_is_an_early_exit(self, variant):
        """... and that is the lens: the read-out of the plain walk's layer."""
        adapter = toy(n_blocks=N, **VARIANTS[variant])
        work = work_of(adapter)
        values = run(adapter, [removal(layer, N - layer) for layer in range(N + 1)])[1:]
        logits = torch.from_numpy(walk(adapter, work.tokens).logits[:, work.reads][..., adapter.residue_ids])
        full = logits.log_softmax(-1).numpy()
        for layer in range(N + 1):
            close(values[layer], expected(adapter, work, full[N], full[layer]))

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_one_removed_block_is_a_skip_of_the_block_at_all_tokens(self, variant):
        adapter = toy(n_blocks=N, **VARIANTS[variant])
        work = work_of(adapter)
        everywhere = np.full(work.n_tokens, True)
        lanes = tuple(Lane((Intervention("layer", block, everywhere),)) for block in range(1, N + 1))
        skipped = Work("p", work.tokens, lanes, work.reads, work.true)
        ((_, outcome),) = sweep(adapter, [skipped], token_budget=10**6, max_padding=0.0, log=LOG)
        values = run(adapter, [removal(block - 1, 1) for block in range(1, N + 1)])
        change = outcome.output["aa20"]
        close(values[1:, 2], change[:, OUTPUTS.index("kl_fo")])
        close(values[1:, 3], change[:, OUTPUTS.index("flip1")])
        close(values[1:, 0] - values[0, 0], change[:, OUTPUTS.index("dnll")])

    def test_the_mean_of_an_update_in_its_place(self):
        adapter = toy(n_blocks=N)
        zero = in_its_place(3, torch.zeros(adapter.d_model))
        values = run(adapter, [zero, removal(2, 1)])
        assert np.array_equal(values[1], values[2])


class TestBatches:
    @pytest.mark.parametrize("budget", [1, 100, 500])
    @pytest.mark.parametrize("variant", ["sequential", "parallel, causal", "geometric"])
    def test_a_small_token_budget_cuts_the_detours_and_not_the_numbers(self, variant, budget):
        adapter = toy(n_blocks=N, **VARIANTS[variant])
        detours = [detour for detour, _ in all_detours(adapter)]
        close(run(adapter, detours, budget=budget), run(adapter, detours))

    def test_detours_may_come_in_any_order(self):
        adapter = toy(n_blocks=N)
        detours = [detour for detour, _ in all_detours(adapter)]
        order = np.random.default_rng(0).permutation(len(detours))
        close(run(adapter, [detours[k] for k in order])[1:], run(adapter, detours)[1:][order])

    @pytest.mark.parametrize("padding", [0.0, 0.5])
    @pytest.mark.parametrize("variant", ["sequential", "parallel, causal", "geometric"])
    def test_proteins_side_by_side(self, variant, padding):
        adapter = toy(n_blocks=N, **VARIANTS[variant])
        detours = [detour for detour, _ in all_detours(adapter)][::3]
        sequences = [SEQUENCE, SEQUENCE[:15], SEQUENCE[::-1], SEQUENCE[:18]]
        works = [work_of(adapter, sequence, str(i)) for i, sequence in enumerate(sequences)]
        found = dict(travel(adapter, works, detours, token_budget=10**6, max_padding=padding, log=LOG))
        assert sorted(found) == [0, 1, 2, 3]
        for i, sequence in enumerate(sequences):
            close(found[i], run(adapter, detours, sequence))

    def test_one_run_gives_the_same_bits_twice(self):
        adapter = build("esm2", {"n_blocks": N, "d_model": 32, "n_heads": 8}, seed=1)
        detours = [removal(1, 2), swap(0, 2), reversal(1, 4)]
        assert run(adapter, detours).tobytes() == run(adapter, detours).tobytes()

    def test_rows_keep_to_the_budget(self):
        adapter = Counting(toy(n_blocks=N))
        detours = [detour for detour, _ in all_detours(adapter)]
        run(adapter, detours, budget=240)
        assert 150 < adapter.largest <= 240

    def test_each_block_sees_all_removals_once(self):
        adapter = Counting(toy(n_blocks=N))
        run(adapter, [removal(k, 1) for k in range(N)])
        assert adapter.calls == N and adapter.rows == N * (N + 1) // 2

    def test_steps_through_one_block_are_taken_together(self):
        adapter = Counting(toy(n_blocks=N))
        run(adapter, [reversal(k, N - k) for k in range(N - 1)])
        # Each reversal begins with block N, which the clean run is about to pass; then all pass N - 1, N - 2, ...
        assert adapter.calls == 2 * N - 1
        adapter = Counting(toy(n_blocks=N))
        run(adapter, [side_by_side(0, n) for n in range(2, N + 1)])
        assert adapter.calls == N, "blocks in parallel go along with the clean run"

    def test_running_out_of_memory_halves_detours_of_one_protein(self, caplog):
        adapter = Counting(toy(n_blocks=N), memory=150)
        detours = [removal(k, 1) for k in range(N)] + [swap(k, 1) for k in range(N - 1)]
        with caplog.at_level(logging.WARNING):
            found = run(adapter, detours)
        close(found, run(toy(n_blocks=N), detours))
        assert adapter.failures and "out of memory with 11 detours of p" in caplog.text

    def test_running_out_of_memory_halves_proteins_first(self, caplog):
        adapter = Counting(toy(n_blocks=N), memory=24 * 8)
        works, detours = [work_of(adapter, name=str(i)) for i in range(4)], [removal(k, 1) for k in range(N)]
        with caplog.at_level(logging.WARNING):
            found = dict(travel(adapter, works, detours, token_budget=10**6, max_padding=0.0, log=LOG))
        assert sorted(found) == [0, 1, 2, 3] and "out of memory with 4 proteins" in caplog.text
        assert "detours" not in caplog.text
        for values in found.values():
            close(values, run(toy(n_blocks=N), detours))

    def test_one_detour_that_does_not_fit_is_an_error_that_names_the_protein(self):
        with pytest.raises(ValueError, match="out of memory for p alone"):
            run(Counting(toy(n_blocks=N), memory=24), [removal(0, 1)])

    def test_another_error_is_not_taken_for_it(self):
        class Broken(Counting):
            def updates(self, block, stream, context):
                raise RuntimeError("shapes cannot be multiplied")

        with pytest.raises(RuntimeError, match="multiplied"):
            run(Broken(toy()), [removal(0, 1)])

    def test_only_streams_that_a_later_group_starts_from_are_kept(self):
        adapter = toy(n_blocks=N)
        kept: dict = {}
        run_detours(adapter, [work_of(adapter)], [removal(1, 1)], keep=(2, 4), kept=kept)
        streams = walk(adapter, work_of(adapter).tokens).streams
        assert sorted(kept) == [2, 4]
        np.testing.assert_allclose(kept[4][0].numpy(), streams[4], atol=1e-12)


class TestWhatCannotBe:
    @pytest.mark.parametrize("detour", [removal(5, 2), swap(5, 1), Detour(0, (Through((7,)),), 6)])
    def test_a_block_that_the_model_does_not_have(self, detour):
        with pytest.raises(InterventionError, match=r"toy has blocks 1\.\.6"):
            run(toy(n_blocks=N), [detour])

    def test_a_detour_that_ends_before_it_starts(self):
        with pytest.raises(InterventionError, match="expected 0 <= start <= end"):
            Detour(3, (), 2)


class TestQuantities:
    def test_hand_computed(self):
        full = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
        altered = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
        found = measured(full, altered, torch.tensor([0]))[:, 0].tolist()
        assert found == pytest.approx([np.log(4), 0, 0.25 * np.log(2), 1])
        assert measured(full, full, torch.tensor([0]))[:, 0].tolist() == pytest.approx([np.log(2), 1, 0, 0])

    def test_ties_go_to_the_first_amino_acid(self):
        even = torch.full((1, 20), 1 / 20, dtype=torch.float64).log()
        assert measured(even, even, torch.tensor([0]))[1].item() == 1
        assert measured(even, even, torch.tensor([3]))[1].item() == 0

    def test_log_probabilities_that_are_none_are_an_error(self):
        x = torch.zeros(1, 3, dtype=torch.float64)
        with pytest.raises(ValueError, match="below 0"):
            measured(x, x + 1, torch.tensor([0]))
