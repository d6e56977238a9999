"""The cost model against counted operations of real runs."""

import logging

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from planted import N_VOCABULARY, Toy, toy
from plm_depth.activations.ablation import OPS, Ablations, Chosen, plan
from plm_depth.activations.cost import (
    Cost,
    Size,
    detour_cost,
    detours_of,
    forward_cost,
    hours,
    pairs_of,
    plain_cost,
    sweep_cost,
    total,
)
from plm_depth.activations.interventions import Intervention, Lane
from plm_depth.activations.sweep import Work, sweep
from plm_depth.models.branches import Branches

LOG = logging.getLogger("test")
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"


def size_of(adapter: Toy) -> Size:
    # The toy computes the whole square of scores even where it is causal, and its head has a dense layer.
    d = adapter.d_model
    return Size(adapter.n_blocks, d, 2 * d, n_vocabulary=N_VOCABULARY, is_parallel=adapter.is_parallel, itemsize=8)


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


class Counting(Toy):
    def __init__(self, adapter: Toy):
        super().__init__(adapter.module, adapter.objective)
        self.evaluations = self.calls = 0

    def updates(self, block, stream, context):
        self.evaluations += stream.shape[0] * stream.shape[1]
        self.calls += 1
        return super().updates(block, stream, context)


@pytest.mark.parametrize("variant", [{}, {"variant": "parallel"}, {"n_blocks": 9}])
@pytest.mark.parametrize("budget", [10**6, 300, 100])
@pytest.mark.parametrize("sweeps", [(("layer", False),), (("attn", False), ("layer", True), ("mlp", False))])
def test_a_sweep_costs_what_is_counted(variant, budget, sweeps):
    adapter = Counting(toy(**variant))
    tokens = adapter.encode(SEQUENCE)
    at = np.arange(tokens.n_tokens) % 2 == 0
    lanes = tuple(
        Lane((Intervention(part, block, at),), local)
        for part, local in sweeps
        for block in range(1, adapter.n_blocks + 1)
    )
    reads = tokens.residue_tokens[:7]
    work = Work("p", tokens, lanes, reads, np.full(7, 5))
    found = counted(lambda: list(sweep(adapter, [work], token_budget=budget, max_padding=0.0, log=LOG)))
    expected = sweep_cost(
        size_of(adapter),
        tokens.n_tokens,
        propagating=sum(not local for _, local in sweeps),
        local=sum(local for _, local in sweeps),
        attention=sum(part == "attn" and not local for part, local in sweeps),
        n_reads=7,
        token_budget=budget,
    )
    assert found == pytest.approx(expected.flops, rel=1e-12)
    assert adapter.evaluations == expected.evaluations
    assert expected.weight_bytes == adapter.calls * size_of(adapter).block_bytes


def test_a_forward_pass_costs_what_is_counted():
    adapter = toy()
    batch = adapter.collate([adapter.encode(SEQUENCE)])
    found = counted(lambda: adapter.library_logits(batch))
    assert found == forward_cost(size_of(adapter), batch.ids.shape[1], n_reads=batch.ids.shape[1]).flops


def test_sources_share_their_prefix():
    size = Size(12, 480, 1920)
    plain, swept = plain_cost(size, 250, 1), sweep_cost(size, 250, propagating=1)
    assert swept.evaluations == 250 * 12 * 13 / 2
    assert plain.flops / swept.flops == pytest.approx(2.0, rel=1e-3)


def test_branches_share_their_trunk():
    branches = Branches(250, 200, (60, 110, 150, 200))
    size = Size(12, 512, 2048, is_causal=True, is_parallel=True)
    apart = sweep_cost(size, 250, propagating=4)
    together = sweep_cost(size, len(branches.source), propagating=1, branches=branches)
    assert 1.25 < apart.flops / together.flops < 1.6
    assert pairs_of(len(branches.source), is_causal=True, branches=branches) < branches.attends.size / 2


def test_sums_and_hours():
    cost = total([Cost(1, 3.6e12, 2, 3), Cost(1, 0, 0, 0)]) * 2
    assert cost == Cost(4, 7.2e12, 4, 6) and hours(cost, rate=1e9) == pytest.approx(2)


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 12, 30])
def test_changed_runs_are_counted_as_they_are_planned(n_blocks):
    """But for the span closest in angle, which is not known before, and random ones: they may fall together."""
    chosen = Chosen(np.zeros((n_blocks + 1, n_blocks + 1)), torch.zeros(n_blocks, 2))
    for ops, policies in (
        (OPS, ("deepest", "tail", "exhaustive")),
        (("exit", "swap_adj", "reverse", "remove_block"), ("angular", "tail")),
        (("remove",), ("tail",)),
    ):
        settings = Ablations(ops=ops, policies=policies)
        planned = plan(n_blocks, settings, seed=0, chosen=chosen).detours
        passed = sum(sum(len(getattr(s, "blocks", ())) for s in d.steps) + n_blocks - d.end for d in planned)
        n_runs, n_passed = detours_of(n_blocks, vars(settings))
        slack = n_blocks if "angular" in policies else 0
        assert abs(n_runs - len(planned)) <= slack
        assert abs(n_passed - passed) <= slack * n_blocks


def test_the_cost_of_changed_runs_is_the_blocks_that_they_pass():
    size = Size(6, 32, 128)
    one = detour_cost(size, 24, n_runs=10, n_passed=20)
    more = detour_cost(size, 24, n_runs=10, n_passed=40)
    assert more.evaluations - one.evaluations == 20 * 24
    assert detour_cost(size, 24, n_runs=10, n_passed=20, n_reads=5).flops > one.flops
    assert detour_cost(size, 24, n_runs=10, n_passed=20, token_budget=48).weight_bytes > one.weight_bytes
