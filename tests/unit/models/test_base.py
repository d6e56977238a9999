"""What is written once for all adapters: batches, contexts, the self-check, the reads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from plm_depth.models import registry
from plm_depth.models.base import Batch, CheckpointError, Context, SequenceError, Structure, Tokens

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


def test_a_protein_read_from_its_end_has_its_frame_reversed_too():
    residues, masked = np.array([10, 11, 12]), np.array([False, True, False])
    forward, backward = (Tokens.framed(1, residues, 2, masked, direction) for direction in ("n2c", "c2n"))
    assert (forward.ids.tolist(), forward.residue_tokens.tolist()) == ([1, 10, 11, 12, 2], [1, 2, 3])
    assert (backward.ids.tolist(), backward.residue_tokens.tolist()) == ([2, 12, 11, 10, 1], [3, 2, 1])
    for tokens in (forward, backward):
        assert tokens.ids[tokens.residue_tokens].tolist() == residues.tolist()
        assert tokens.masked is masked


def test_a_protein_is_read_in_the_first_direction_unless_another_is_asked_for():
    adapter = registry.build("progen2", {"n_blocks": 1, "d_model": 64, "n_heads": 8})
    assert adapter.encode("MKT").direction == "n2c"
    assert adapter.encode("MKT", direction="c2n").ids.tolist() == adapter.encode("MKT").ids.tolist()[::-1]


def test_tokens_stand_at_their_own_positions_or_one_after_the_other():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    assert Batch(ids, ids == 0).positions.tolist() == [[0, 1, 2]]
    own = torch.tensor([[0, 1, 0], [4, 5, 6]])
    assert Batch(ids, ids == 0, {"position_ids": own}).positions is own


def test_a_code_that_is_hidden_or_unknown_is_the_mask_and_others_are_counted_from_the_first():
    hidden = np.array([False, True, False])
    assert Structure(codes=np.array([0, 1, -1])).code_tokens(hidden, n_codes=4, mask=99, first=10).tolist() == [
        10,
        99,
        99,
    ]
    assert Structure().code_tokens(hidden, n_codes=4, mask=99).tolist() == [99, 99, 99]
    for wrong in (-2, 4):
        with pytest.raises(SequenceError, match=f"structure codes from .*{wrong}.*; 0 to 3, or -1, expected"):
            Structure(codes=np.array([0, wrong, 1])).code_tokens(hidden, n_codes=4, mask=99)


@pytest.mark.parametrize(
    ("condition", "how", "hidden", "unseen"),
    [
        ("seq", "hide", [True, False], [False, False]),
        ("seq_struct", "keep", [True, False], [False, False]),
        ("seq_struct", "hide", [True, False], [True, False]),
        ("struct", "hide", [True, True], [False, False]),
    ],
)
def test_a_condition_says_what_is_hidden_of_residues_and_of_their_structure(condition, how, hidden, unseen):
    adapter = registry.build("saprot", {"n_blocks": 1, "d_model": 16, "n_heads": 2})
    shown = {"masked": np.array([True, False]), "structure": Structure(three_di="pd")}
    found = adapter.check_shown("MK", **shown, condition=condition, struct_at_mask=how)
    assert [part.tolist() for part in found] == [hidden, unseen]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"condition": "odd"}, "condition 'odd'; esm3 can be shown seq or seq_struct or struct"),
        ({"structure": None}, "condition 'seq_struct' of esm3 needs the structure's codes; none was given"),
        ({"structure": Structure(three_di="pd")}, "needs the structure's codes"),
        (
            {"structure": Structure(codes=np.zeros(2), coordinates=np.zeros((3, 3, 3)))},
            "3 entries of coordinates for 2",
        ),
        ({"struct_at_mask": "odd"}, "struct_at_mask 'odd'; 'keep' or 'hide'"),
        ({"masked": np.ones(3, bool)}, "mask of shape"),
    ],
)
def test_a_condition_without_its_structure_is_refused(changed, said):
    adapter = registry.build("esm3", {"n_blocks": 1, "d_model": 64, "n_heads": 1, "d_mlp": 8, "n_geometric_heads": 1})
    shown = {"masked": None, "structure": Structure(codes=np.zeros(2)), "condition": "seq_struct"}
    with pytest.raises(SequenceError, match=said):
        adapter.check_shown("MK", **{**shown, "struct_at_mask": "keep", **changed})
