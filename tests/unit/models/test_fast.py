"""Fast block updates agree with the library's; branches of a causal protein agree with whole rows."""

import numpy as np
import pytest
import torch

from planted import toy
from plm_depth.models import fast
from plm_depth.models.base import Adapter
from plm_depth.models.branches import Branches
from plm_depth.models.fast import FastEsm, FastGptJ, steps
from plm_depth.models.registry import build

SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "MKTAYIAK")
FAMILIES = {
    "esm2": {},
    "dplm": {},
    "esm1b": {},
    "saprot": {},
    "dplm2": {},
    "progen2": {},
    "progen2, half rotated": {"rotary_dim": 4},
    "progen2, wholly rotated": {"rotary_dim": 8},
    "progen2, heads of odd width": {"d_model": 40, "rotary_dim": 4},
}


def model(name: str) -> Adapter:
    """Return a small model with lively weights: gains, biases and attention far from their initial values."""
    sizes = {"n_blocks": 2, "d_model": 64, "n_heads": 8, **FAMILIES[name]}
    adapter = build(name.split(",")[0], sizes, seed=1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.module.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            else:
                parameter.add_(noise * 0.1)
    return adapter


def agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@torch.no_grad()
def compare(adapter: Adapter, tolerance: float = 1e-5, sequences=SEQUENCES) -> None:
    """Every update of every block, from the library's stream, padded and alone."""
    quick = steps(adapter)
    for chosen in (sequences, sequences[:1]):
        batch = adapter.collate([adapter.encode(s, direction=adapter.directions[0]) for s in chosen])
        with adapter.precision():
            stream, context = adapter.embed(batch)
            for block in range(1, adapter.n_blocks + 1):
                expected, found = adapter.updates(block, stream, context), quick.updates(block, stream, context)
                for name in ("attention", "mlp", "middle"):
                    agree(getattr(found, name)[batch.valid], getattr(expected, name)[batch.valid], tolerance)
                agree(
                    quick.mlp_update(block, expected.middle, context)[batch.valid], expected.mlp[batch.valid], tolerance
                )
                stream = adapter.add(stream, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_updates_are_the_librarys_within_rounding(name):
    adapter = model(name)
    assert isinstance(steps(adapter), FastGptJ if "progen2" in name else FastEsm)
    compare(adapter)


@pytest.mark.parametrize("name", ["esm2", "progen2"])
def test_half_precision_agrees_within_its_own(name):
    adapter = model(name)
    for linear in (m for m in adapter.module.modules() if isinstance(m, torch.nn.Linear)):
        linear.to(torch.bfloat16)
    adapter.dtype = "bfloat16"
    compare(adapter, 4e-2)


@pytest.mark.parametrize("name", ["esm2", "progen2", "progen2, half rotated"])
@torch.no_grad()
def test_rows_a_few_at_a_time_are_the_rows_together(name, monkeypatch):
    adapter = model(name)
    batch = adapter.collate([adapter.encode(SEQUENCES[0], direction=adapter.directions[0])])
    stream, context = adapter.embed(batch)
    rows = stream + torch.randn(7, *stream.shape[1:], generator=torch.Generator().manual_seed(3))
    together = steps(adapter).updates(1, rows, context)
    for tokens_at_once in (1, 80, 150):
        monkeypatch.setattr(fast, "TOKENS_AT_ONCE", tokens_at_once)
        apart = steps(adapter).updates(1, rows, context)
        for part in ("attention", "mlp", "middle"):
            agree(getattr(apart, part), getattr(together, part), 1e-6)


@pytest.mark.parametrize("name", ["esm2", "progen2"])
def test_a_comparison_with_another_weight_fails(name):
    adapter = model(name)
    stale_steps = steps(adapter)
    layer = stale_steps.layers[1]
    module = layer.attention.self.key if name == "esm2" else layer.attn.k_proj
    with torch.no_grad():
        module.weight.mul_(1.01)
    batch = adapter.collate([adapter.encode(SEQUENCES[0], direction=adapter.directions[0])])
    with torch.no_grad():
        stream, context = adapter.embed(batch)
        stale, expected = (x.updates(2, stream, context).attention for x in (stale_steps, adapter))
        with pytest.raises(AssertionError):
            agree(stale, expected)
    compare(adapter)  # called again, the new weights are used


def test_what_it_does_not_know_it_leaves_alone():
    double = model("esm2")
    double.module.double()
    assert steps(double) is double
    assert steps(other := toy()) is other
    assert steps(esmc := build("esmc", {"n_blocks": 1, "d_model": 64, "n_heads": 1})) is esmc


@pytest.mark.parametrize("name", ["esm2", "progen2"])
@pytest.mark.parametrize("method", ["mlp_update", "attention_update", "updates"])
def test_a_family_with_another_walk_is_left_alone_until_it_names_its_blocks(name, method):
    known = model(name)
    changed = type("Changed", (type(known),), {method: lambda self, *given: getattr(known, method)(*given)})
    adapter = changed(known.module)
    assert steps(adapter) is adapter
    changed.fast_blocks = known.fast_blocks
    assert type(steps(adapter)) is type(steps(known))


class TestBranches:
    branches = Branches(6, 4, (2, 4))

    def test_layout(self):
        assert self.branches.source.tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5]
        assert self.branches.spans == (slice(4, 8), slice(8, 10))
        sees = ["".join("x" if s else "." for s in row) for row in self.branches.attends]
        assert sees == [
            "x.........",
            "xx........",
            "xxx.......",
            "xxxx......",
            "xx..x.....",
            "xx..xx....",
            "xx..xxx...",
            "xx..xxxx..",
            "xxxx....x.",
            "xxxx....xx",
        ]

    @pytest.mark.parametrize(("trunk", "points"), [(0, ()), (7, (2,)), (3, (4,)), (3, (0,))])
    def test_a_layout_that_cannot_be_is_refused(self, trunk, points):
        with pytest.raises(ValueError, match="points"):
            Branches(6, trunk, points)

    def test_a_family_that_cannot_says_so(self):
        adapter = model("esm2")
        assert not adapter.can_branch
        with pytest.raises(NotImplementedError, match="esm2 cannot"):
            adapter.branch(adapter.embed(adapter.collate([adapter.encode("MK")]))[1], Branches(4, 2, (1,)))

    @pytest.mark.parametrize("is_fast", [False, True])
    @torch.no_grad()
    def test_each_branch_is_the_end_of_a_whole_row(self, is_fast):
        adapter = model("progen2")
        evaluator = steps(adapter) if is_fast else adapter
        tokens = adapter.encode(SEQUENCES[0], direction="n2c")
        branches = Branches(tokens.n_tokens, 25, (9, 25, 14))
        whole, context = adapter.embed(adapter.collate([tokens]))
        stream, row_context = whole[:, branches.source], adapter.branch(context, branches)
        for block in (1, 2):
            whole = adapter.add(whole, adapter.updates(block, whole, context))
            stream = adapter.add(stream, evaluator.updates(block, stream, row_context))
        agree(stream, whole[:, branches.source])
        assert np.array_equal(branches.source[branches.spans[0]], np.arange(9, tokens.n_tokens))
