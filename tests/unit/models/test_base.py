"""What is written once for all adapters: batches, contexts, the self-check, the reads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from plm_depth.models import registry
from plm_depth.models.base import CheckpointError, Context, Tokens

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def adapter():
    return registry.build("esm2", {"n_blocks": 2, "d_model": 16, "n_heads": 2}, seed=1)


def test_the_self_check_refuses_an_adapter_that_does_not_describe_its_model(adapter, monkeypatch):
    assert adapter.self_check() == 0
    right = adapter.mlp_update
    monkeypatch.setattr(adapter, "mlp_update", lambda block, middle, context: 1.01 * right(block, middle, context))
    with pytest.raises(CheckpointError, match=r"esm2: h_0 plus the updates reads out to logits .* above 0\.0001"):
        adapter.self_check()


def test_the_self_check_refuses_logits_that_are_not_finite(adapter):
    with torch.no_grad():
        adapter.module.lm_head.bias[3] = torch.inf
    with pytest.raises(CheckpointError, match="logits are not finite"):
        adapter.self_check()


def test_a_model_is_loaded_only_after_its_self_check(monkeypatch):
    kind = registry.adapter_class("esm2")
    monkeypatch.setattr(kind, "final_norm", lambda self, stream: stream)
    with pytest.raises(CheckpointError, match="does not describe this checkpoint"):
        registry.load("esm2", FIXTURES / "esm2/hub")


def test_further_inputs_are_padded_with_what_the_family_says(adapter):
    adapter.extra_padding = {"codes": 9, "places": np.nan}
    tokens = [
        Tokens(np.arange(n), np.arange(n), np.zeros(n, bool), extra={"codes": np.arange(n), "places": np.ones((n, 3))})
        for n in (2, 4)
    ]
    batch = adapter.collate(tokens)
    assert batch.ids.tolist() == [[0, 1, adapter.pad_id, adapter.pad_id], [0, 1, 2, 3]]
    assert batch.valid.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.extra["codes"].tolist() == [[0, 1, 9, 9], [0, 1, 2, 3]]
    assert torch.isfinite(batch.extra["places"]).all(-1).tolist() == batch.valid.tolist()


def test_rows_of_a_context_are_taken_only_where_it_has_rows():
    context = Context(
        {"shared": torch.arange(3)[None], "own": torch.arange(6).reshape(2, 3), "none": None, "word": "x"}
    )
    taken = context.take(torch.tensor([1, 1, 0]))
    assert taken["own"].tolist() == [[3, 4, 5], [3, 4, 5], [0, 1, 2]]
    assert taken["shared"] is context["shared"]
    assert (taken["none"], taken["word"]) == (None, "x")


@pytest.mark.parametrize(("which", "expected"), [("masked", [1, 4]), ("visible", [0, 3, 5])])
def test_reads_of_a_masked_protein_leave_rare_letters_out(adapter, which, expected):
    masked = np.isin(np.arange(6), [1, 2, 4])
    tokens = adapter.encode("MKXAYI", masked=masked)
    assert list(adapter.read_positions("MKXAYI", tokens, which=which)) == expected


def test_what_an_adapter_does_not_have_is_none_or_refused(adapter):
    assert adapter.log_likelihood(torch.zeros(1, 3, 33), None) is None
    assert adapter.other_logits(torch.zeros(1, 3, 16)) == {}
    assert adapter.geometric_update(1, torch.zeros(1, 3, 16), Context({})) is None
