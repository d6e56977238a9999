"""Integrated gradients: completeness, additivity, plants, gradients written naively, and what must not matter."""

import copy
import json
import logging

import numpy as np
import pytest
import torch

from planted import toy, with_zero_block, without_attention
from plm_depth.activations import attribution
from plm_depth.activations.attribution import (
    Settings,
    attributions,
    completeness_error,
    measure,
    points_of,
    protein_of,
)
from plm_depth.activations.door import ExtractionError
from plm_depth.activations.extract import item_of
from plm_depth.activations.nulls import Null
from plm_depth.activations.settings import SettingsError, read_settings
from plm_depth.models.base import SequenceError
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, ATTR_SEQ, COMPLETE, ERASE_SEQ, read_metadata, read_table
from plm_depth.views import View

LOG = logging.getLogger("test")
TRAINED = Null("trained", -1)
MASKED, FORWARD, BACKWARD = View("none", 0.3, 0), View("n2c", float("nan"), -1), View("c2n", float("nan"), -1)
SEQUENCE = "MKTAYIAKQRQI"
VARIANTS = {
    "sequential": (toy, {}, MASKED),
    "parallel": (toy, {"variant": "parallel"}, MASKED),
    "scaled": (toy, {"variant": "scaled"}, MASKED),
    "causal": (toy, {"variant": "causal"}, FORWARD),
    "geometric": (toy, {"geometric": True}, MASKED),
}


def found(adapter, view, *, token_budget=10**5, sequence=SEQUENCE, **settings):
    """Return the attributions of one protein by object, and the protein."""
    chosen = Settings(**{"targets": ("logp",), "power": 1.0, **settings})
    protein = protein_of(adapter, "P", sequence, view, chosen, seed=0)
    parts = attributions(adapter, protein, chosen, token_budget=token_budget, log=LOG)
    return {part.object: part for part in parts}, protein


def score(adapter, protein, stream, target="logp"):
    """Return F of a last state the plain way."""
    logits = adapter.read_out(stream)[0, protein.readers.tokens][:, torch.from_numpy(np.array(adapter.residue_ids))]
    log_p = logits.log_softmax(-1)[torch.arange(len(protein.readers.true)), protein.readers.true]
    return log_p.sum() if target == "logp" else log_p.exp().sum()


def gated(adapter, protein, gates):
    """Return the last state with a gate a block, written out, (n_blocks,) tensor."""
    stream = protein.states[0]
    for block in range(1, adapter.n_blocks + 1):
        stream = stream + gates[block - 1] * adapter.updates(block, stream, protein.context).total
    return stream


@pytest.mark.parametrize("view", [MASKED, FORWARD, BACKWARD, View("none", 0.0, -1)])
def test_targets_are_read_where_the_lens_is(view):
    adapter = toy(variant="causal" if view.reads == "next" else "sequential", n_blocks=1)
    protein = protein_of(adapter, "P", SEQUENCE, view, Settings(), seed=0)
    item = item_of(adapter, "P", SEQUENCE, view, seed=0)
    assert protein.readers.tokens.tolist() == (item.tokens.residue_tokens[item.reads] + adapter.read_offset).tolist()
    letters = "".join(AMINO_ACIDS[column] for column in protein.readers.true)
    assert letters == "".join(SEQUENCE[position] for position in item.reads)
    assert 0 < len(letters) < len(SEQUENCE) + (view.noise_t == 0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["gate", "gate_part", "layer", "attn", "mlp"])
def test_attributions_add_up_to_the_difference_of_the_ends(variant, method):
    make, options, view = VARIANTS[variant]
    parts, _ = found(make(**options), view, methods=(method,), steps=64, targets=("logp", "prob"))
    for part in parts.values():
        assert part.error.max() < 2e-3
        if not part.object.startswith("gate"):
            gained = part.values.sum(-1)
            np.testing.assert_allclose(gained, part.end - part.start, atol=2e-3 * np.abs(part.values).sum(-1).max())
    if method.startswith("gate"):
        total = sum(part.values.sum((1, 2)) for part in parts.values())
        any_part = next(iter(parts.values()))
        np.testing.assert_allclose(total, any_part.end[:, 0] - any_part.start[:, 0], rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["gate", "layer"])
def test_the_midpoint_rule_is_far_better_than_the_left_one(method):
    error = {}
    for rule, steps in (("midpoint", 64), ("midpoint", 32), ("left", 64), ("left", 256)):
        part = found(toy(), MASKED, methods=(method,), rule=rule, steps=steps)[0][method]
        error[rule, steps] = part.error.max()
    assert error["midpoint", 64] < 2.4e-4
    assert error["midpoint", 64] < error["midpoint", 32] / 3
    assert error["left", 64] > error["left", 256] > 20 * error["midpoint", 64]


def test_a_way_walked_slowly_at_its_beginning_gives_the_same_attributions():
    adapter = toy()
    (plain,), (slow,) = (found(adapter, MASKED, methods=("gate",), steps=256, power=p)[0].values() for p in (1.0, 4.0))
    np.testing.assert_allclose(slow.values, plain.values, atol=1e-4 * np.abs(plain.values).max())


def test_where_the_first_state_has_no_direction_only_a_slow_beginning_is_complete():
    adapter = toy()
    for norm in adapter.module.modules():
        if hasattr(norm, "kind"):
            norm.forward = lambda x, norm=norm: torch.nn.functional.layer_norm(
                x, x.shape[-1:], norm.weight, norm.bias, 1e-5
            )
    with torch.no_grad():
        adapter.module.embedding[3] = 0  # a masked residue enters as nothing, as in ESM-2
        adapter.module.place.zero_()
    errors = {
        power: next(iter(found(adapter, MASKED, methods=("gate",), steps=64, power=power)[0].values())).error.max()
        for power in (1.0, 4.0)
    }
    assert errors[1.0] > COMPLETE > 10 * errors[4.0]


def test_closed_gates_read_out_layer_0_and_open_ones_the_model():
    adapter = toy()
    parts, protein = found(adapter, MASKED, methods=("gate",), targets=("logp", "prob"))
    library = adapter.library_logits(adapter.collate([protein.tokens]))
    np.testing.assert_allclose(adapter.read_out(protein.states[-1]), library, rtol=1e-9, atol=1e-12)
    for number, target in enumerate(("logp", "prob")):
        np.testing.assert_allclose(parts["gate"].start[number], score(adapter, protein, protein.states[0], target))
        np.testing.assert_allclose(parts["gate"].end[number], score(adapter, protein, protein.states[-1], target))


def test_gradients_of_gates_are_those_of_a_plain_walk():
    adapter = toy(variant="causal")
    parts, protein = found(adapter, FORWARD, methods=("gate",), steps=3, targets=("logp", "prob"))
    shares, weights = points_of("midpoint", 3)
    for number, target in enumerate(("logp", "prob")):
        expected = torch.zeros(adapter.n_blocks, dtype=torch.float64)
        for share, weight in zip(shares, weights):
            gates = torch.full((adapter.n_blocks,), share, dtype=torch.float64, requires_grad=True)
            (grad,) = torch.autograd.grad(score(adapter, protein, gated(adapter, protein, gates), target), gates)
            expected += weight * grad
        np.testing.assert_allclose(parts["gate"].values[number].sum(-1), expected.numpy(), rtol=1e-10, atol=1e-12)


def test_gradients_of_gates_are_differences_of_f():
    adapter = toy()
    parts, protein = found(adapter, MASKED, methods=("gate",), steps=1)
    step = 1e-5
    for block in range(adapter.n_blocks):
        ends = []
        for sign in (1, -1):
            gates = torch.full((adapter.n_blocks,), 0.5, dtype=torch.float64)
            gates[block] += sign * step
            ends.append(float(score(adapter, protein, gated(adapter, protein, gates))))
        np.testing.assert_allclose(
            parts["gate"].values[0, block].sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("variant", ["sequential", "parallel", "geometric"])
@pytest.mark.parametrize("method", ["layer", "attn", "mlp"])
def test_integrated_gradients_on_states_are_those_of_a_plain_walk(variant, method):
    make, options, view = VARIANTS[variant]
    adapter = make(n_blocks=3, **options)
    parts, protein = found(adapter, view, methods=(method,), steps=3)
    part = parts[method]
    residues = torch.from_numpy(protein.residues)
    shares, weights = points_of("midpoint", 3)

    def run(layer, given):
        stream = protein.states[0]
        for block in range(adapter.n_blocks + 1):
            if block:
                attention = adapter.attention_update(block, stream, protein.context)
                if method == "attn" and block == layer:
                    attention = given
                middle = stream if adapter.is_parallel else stream + attention
                geometric = adapter.geometric_update(block, middle, protein.context)
                if geometric is not None:
                    middle = middle + geometric
                mlp = adapter.mlp_update(block, middle, protein.context)
                if method == "mlp" and block == layer:
                    mlp = given
                stream = middle + mlp + (attention if adapter.is_parallel else 0)
            if method == "layer" and block == layer:
                stream = given
        return score(adapter, protein, stream)

    for row, layer in enumerate(part.layers):
        if method == "layer":
            whole = protein.states[layer]
        else:
            updates = adapter.updates(int(layer), protein.states[layer - 1], protein.context)
            whole = updates.attention if method == "attn" else updates.mlp
        mean = whole[:, residues].mean(1, keepdim=True)
        base = torch.where(residues[:, None], mean, whole)
        expected = torch.zeros_like(whole)
        for share, weight in zip(shares, weights):
            placed = (base + share * (whole - base)).requires_grad_()
            (grad,) = torch.autograd.grad(run(layer, placed), placed)
            expected += weight * grad
        expected = (expected * (whole - base)).sum(-1)[0]
        np.testing.assert_allclose(part.values[0, row], expected.numpy(), rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(part.start[0, row], float(run(layer, base)), rtol=1e-10)
        assert (part.values[0, row][~protein.residues] == 0).all()


def test_specials_move_only_where_asked():
    adapter = toy(n_blocks=2)
    parts, protein = found(adapter, MASKED, methods=("layer",), steps=2, specials=True)
    assert (parts["layer"].values[0, :-1][:, ~protein.residues] != 0).all()


def test_the_gate_of_a_zero_block_has_no_attribution():
    adapter = with_zero_block(toy(), 3)
    parts, _ = found(adapter, MASKED, methods=("gate", "gate_part"), steps=4)
    for name in ("gate", "gate_attn", "gate_mlp"):
        values = np.abs(parts[name].values[0]).sum(-1)
        assert values[2] == 0
        assert (np.delete(values, 2) > 0).all()


def test_gates_of_attention_have_none_where_nothing_attends():
    parts, _ = found(without_attention(toy()), MASKED, methods=("gate_part",), steps=4)
    assert (parts["gate_attn"].values == 0).all()
    assert np.abs(parts["gate_mlp"].values).max() > 0


def test_only_blocks_with_a_geometric_branch_have_a_gate_for_it():
    parts, _ = found(toy(geometric=True), MASKED, methods=("gate_part",), steps=2)
    assert parts["gate_geom"].layers.tolist() == [1]
    assert np.abs(parts["gate_geom"].values).max() > 0
    assert "gate_geom" not in found(toy(), MASKED, methods=("gate_part",), steps=2)[0]


def test_a_linear_f_is_exact_with_one_step(monkeypatch):
    adapter = toy(norm="identity", n_blocks=2)
    direction = torch.randn(adapter.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def linear(self, adapter, stream):
        return (stream[:, self.tokens] @ direction).sum(-1)[None]

    monkeypatch.setattr(attribution.Readers, "score", linear)
    part = found(adapter, MASKED, methods=("layer",), steps=1)[0]["layer"]
    last = list(part.layers).index(adapter.n_blocks)
    np.testing.assert_allclose(part.values[0, last].sum(), (part.end - part.start)[0, last], rtol=1e-12)
    silent = copy.deepcopy(adapter)  # without any block the gates are never used, and F is linear in every state
    for block in (1, 2):
        silent = with_zero_block(silent, block)
    part = found(silent, MASKED, methods=("layer",), steps=1)[0]["layer"]
    np.testing.assert_allclose(part.values.sum(-1), part.end - part.start, rtol=1e-12, atol=1e-13)
    assert np.abs(part.values).max() > 0.1


def test_f_of_the_last_state_depends_on_what_is_read_only():
    parts, protein = found(toy(), MASKED, methods=("layer",), steps=2)
    read = np.isin(np.arange(protein.tokens.n_tokens), protein.readers.tokens.numpy())
    assert (parts["layer"].values[0, -1][~read] == 0).all()
    assert (parts["layer"].values[0, 0][protein.residues] != 0).all()


@pytest.mark.parametrize("view", [FORWARD, BACKWARD])
def test_what_no_read_out_sees_has_no_attribution(view):
    parts, protein = found(toy(variant="causal"), view, methods=("gate", "layer"), steps=2)
    unseen = np.arange(protein.tokens.n_tokens) > protein.readers.tokens.max().item()
    assert unseen.any()
    for part in parts.values():
        assert (part.values[..., unseen] == 0).all()


def test_batches_of_steps_do_not_matter():
    adapter = toy()
    for method in ("gate", "layer"):
        whole, few = (
            found(adapter, MASKED, methods=(method,), steps=5, token_budget=budget)[0][method]
            for budget in (10**5, 2 * (len(SEQUENCE) + 2))
        )
        np.testing.assert_allclose(few.values, whole.values, rtol=1e-9, atol=1e-12)


def test_running_out_of_memory_halves_the_steps(monkeypatch, caplog):
    adapter = toy()
    whole = found(adapter, MASKED, methods=("gate",), steps=5)[0]["gate"]
    real, rows = attribution.pull_back, []

    def tight(adapter, context, states, readers, **options):
        rows.append(len(states[0]))
        if len(states[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(adapter, context, states, readers, **options)

    monkeypatch.setattr(attribution, "pull_back", tight)
    with caplog.at_level(logging.WARNING):
        halved = found(adapter, MASKED, methods=("gate",), steps=5)[0]["gate"]
    assert max(rows) == 5 and "out of memory" in caplog.text
    np.testing.assert_allclose(halved.values, whole.values, rtol=1e-9, atol=1e-12)


def test_points_cover_the_way():
    for rule, power in (("midpoint", 1.0), ("midpoint", 4.0), ("left", 1.0)):
        shares, weights = points_of(rule, 7, power)
        assert (np.diff(shares) > 0).all() and shares[0] >= 0 and shares[-1] < 1
        np.testing.assert_allclose(weights.sum(), 1)
    assert points_of("left", 4)[0].tolist() == [0, 0.25, 0.5, 0.75]
    assert points_of("midpoint", 2)[0].tolist() == [0.25, 0.75]


def test_completeness_is_relative_to_the_larger_of_difference_and_size():
    one = np.array([1.1])
    np.testing.assert_allclose(completeness_error(one, one, np.zeros(1), np.ones(1)), 0.1 / 1.1)
    np.testing.assert_allclose(completeness_error(one, np.array([10.0]), np.zeros(1), np.ones(1)), 0.01)
    assert completeness_error(np.zeros(1), np.zeros(1), np.ones(1), np.ones(1)) == 0


class TestSettings:
    def test_what_is_not_given_has_the_defaults(self):
        assert read_settings(Settings, '{"steps": 8, "methods": ["gate"]}', "--settings") == Settings(
            steps=8, methods=("gate",)
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[]", "JSON object"),
            ("{", "JSON object"),
            ('{"step": 3}', "keys"),
            ('{"methods": "gate"}', "not a list"),
            ('{"methods": ["gates"]}', "methods"),
            ('{"methods": []}', "methods"),
            ('{"targets": ["logp", "logp"]}', "none twice"),
            ('{"steps": 0}', "steps"),
            ('{"positions": true}', "positions"),
            ('{"rule": "right"}', "midpoint or left"),
            ('{"vocab": "all"}', "vocab"),
            ('{"power": 0.5}', "power"),
            ('{"specials": 1}', "specials"),
        ],
    )
    def test_what_cannot_be_is_refused(self, text, message):
        with pytest.raises(SettingsError, match=message):
            read_settings(Settings, text, "--settings")


# ----------------------------------------------------------------------------------------------------------------
# The stage


def proteins(n: int = 3, lengths=(22, 30, 17)) -> list[tuple[str, str]]:
    return [
        (f"P{i}", "".join(AMINO_ACIDS[a] for a in generator("test", i).integers(20, size=lengths[i % len(lengths)])))
        for i in range(n)
    ]


def run(tmp_path, adapter, sequences, *, views=(MASKED,), nulls=(TRAINED,), name="x", settings=None, **options):
    paths = {"attribution": tmp_path / f"{name}.a.parquet", "erasure": tmp_path / f"{name}.e.parquet"}
    chosen = Settings(**{"steps": 4, "positions": 3, "targets": ("logp",), **(settings or {})})
    measure(
        adapter, sequences, **paths, model_id="m", nulls=list(nulls), views=list(views), settings=chosen, seed=0,
        log=LOG, **{"token_budget": 10**5, "reference": sequences, **options},
    )  # fmt: skip
    return read_table(paths["attribution"], ATTR_SEQ), read_table(paths["erasure"], ERASE_SEQ)


def by_key(table, *keys):
    return {tuple(str(row[key]) for key in keys): row for row in table.to_pylist()}


def test_rows_hold_what_they_say(tmp_path):
    adapter, sequences = toy(n_blocks=3), proteins()
    table, erased = run(tmp_path, adapter, sequences, settings={"methods": ("gate", "layer", "erasure"), "steps": 16})
    rows = table.to_pylist()
    assert len(rows) == 3 * (3 + 4)
    for row in rows:
        residues, total = np.array(row["by_position"]), row["value"]
        assert len(residues) == row["n_residues"]
        np.testing.assert_allclose(residues.sum() + row["special"], total, rtol=1e-4, atol=1e-6)
        assert row["l1"] >= abs(total) - 1e-9
        assert row["n_steps"] == 16 and row["vocab"] == "aa20"
    gates = [row for row in rows if row["object"] == "gate" and row["sequence_id"] == "P1"]
    np.testing.assert_allclose(sum(row["value"] for row in gates), gates[0]["f_end"] - gates[0]["f_base"], rtol=0.05)
    assert {row["pos"] for row in erased.to_pylist()} >= {-1}
    assert erased.num_rows == 3 * 2 * 4 * (3 + 1)
    assert json.loads(read_metadata(tmp_path / "x.a.parquet")["settings"])["steps"] == 16


def test_shards_order_and_budget_do_not_matter(tmp_path):
    adapter, sequences = toy(n_blocks=2), proteins(4)
    whole = run(tmp_path, adapter, sequences)
    parts = [
        run(tmp_path, adapter, part, name=f"p{i}", reference=sequences, token_budget=60)
        for i, part in enumerate((sequences[3:0:-1], sequences[:1]))
    ]
    for number, keys in ((0, ("sequence_id", "layer", "object")), (1, ("sequence_id", "layer", "pos", "quantity"))):
        expected, got = by_key(whole[number], *keys), {}
        for part in parts:
            got |= by_key(part[number], *keys)
        assert expected.keys() == got.keys()
        for key, row in expected.items():
            for name in ("value", "f_end", "sum", "max"):
                if name in row:
                    np.testing.assert_allclose(got[key][name], row[name], rtol=1e-6, atol=1e-12)


def test_null_models_are_told_apart_and_the_weights_come_back(tmp_path):
    adapter, sequences = toy(n_blocks=2), proteins(2)
    before = {name: tensor.clone() for name, tensor in adapter.module.state_dict().items()}
    table, _ = run(tmp_path, adapter, sequences, nulls=[TRAINED, Null("randinit", 5), Null("shuffle_seq", 0)])
    ends = {key: row["f_end"] for key, row in by_key(table, "null_model", "sequence_id", "layer").items()}
    assert len(set(ends.values())) == 3 * 2  # one a network and protein
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.module.state_dict().items())
    fresh, _ = run(tmp_path, toy(n_blocks=2, seed=5), sequences, name="fresh", reference=sequences)
    for (sequence_id, layer), row in by_key(fresh, "sequence_id", "layer").items():
        np.testing.assert_allclose(ends["randinit", sequence_id, layer], row["f_end"], rtol=1e-12)


def test_weights_ask_for_gradients_afterwards_as_they_did_before(tmp_path):
    adapter = toy(n_blocks=2)
    one = adapter.module.blocks[0].query.weight.requires_grad_(True)
    run(tmp_path, adapter, proteins(1))
    assert one.requires_grad and one.grad is None
    assert not adapter.module.blocks[1].query.weight.requires_grad


def test_models_whose_tokens_are_no_residues_are_left_out_and_said(tmp_path, caplog):
    adapter = toy(n_blocks=2)
    adapter.tokens_are_residues = False
    with caplog.at_level(logging.WARNING):
        table, erased = run(tmp_path, adapter, proteins(2))
    assert table.num_rows == erased.num_rows == 0
    assert "tokens are not residues" in caplog.text


def test_rows_that_miss_completeness_are_written_and_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        table, _ = run(tmp_path, toy(n_blocks=2), proteins(2), settings={"steps": 1, "rule": "left"})
    above = sum(row["completeness_err"] > COMPLETE for row in table.to_pylist())
    assert above == 4
    assert f"{above} of 4 attributions miss completeness" in caplog.text


def test_states_that_are_not_finite_name_the_protein(tmp_path):
    adapter = toy(n_blocks=2)
    with torch.no_grad():
        adapter.module.blocks[1].mlp_out.bias[0] = float("nan")
    with pytest.raises(ExtractionError, match=r"protein P\d is NaN or infinite from layer 2"):
        run(tmp_path, adapter, proteins(2), settings={"methods": ("gate",)})
    assert not list(tmp_path.glob("*.parquet"))


def test_a_sequence_that_cannot_be_read_names_the_protein(tmp_path):
    with pytest.raises(SequenceError, match="protein bad"):
        run(tmp_path, toy(n_blocks=2), [("bad", "MKT*")], settings={"methods": ("gate",)})


def test_erasure_without_a_reference_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="--reference"):
        run(tmp_path, toy(n_blocks=2), proteins(1), reference=[])
