"""Translators: nothing before fitting, a rotated basis found, disjoint clusters, and what must not matter."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from safetensors import safe_open

from planted import toy
from plm_depth.activations.nulls import Null
from plm_depth.activations.settings import SettingsError, read_settings
from plm_depth.activations.tuned_lens import (
    OTHER_MASKS,
    Settings,
    Translators,
    TunedLensError,
    fit,
    measure,
    split,
)
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, LENS_KEYS, VectorTable
from plm_depth.views import View, mask_of

LOG = logging.getLogger("test")
TRAINED = Null("trained", -1)
MASKED, FORWARD = View("none", 0.3, 0), View("n2c", float("nan"), -1)
QUICK = {"train": 20, "size": 6, "steps": 4, "batch": 4, "held_out": 0.4}


def proteins(n: int = 16) -> list[tuple[str, str]]:
    lengths = (16, 12, 14, 13)
    return [
        (f"P{i}", "".join(AMINO_ACIDS[a] for a in generator("test", i).integers(20, size=lengths[i % 4])))
        for i in range(n)
    ]


def pairs(sequences):
    """Put two proteins into each cluster."""
    return {name: f"C{number // 2}" for number, (name, _) in enumerate(sequences)}


def run(tmp_path, adapter, sequences, *, name="x", views=(MASKED,), nulls=(TRAINED,), settings=None, **options):
    paths = {kind: tmp_path / f"{name}.{kind}" for kind in ("translators", "tuned", "logit")}
    counts = measure(
        adapter, sequences, pairs(sequences), **paths, model_id="m", nulls=list(nulls), views=list(views),
        settings=Settings(**{**QUICK, **(settings or {})}), seed=0, log=LOG, **{"token_budget": 10**5, **options},
    )  # fmt: skip
    tables = [VectorTable(paths[kind], LENS_KEYS) for kind in ("tuned", "logit")]
    return *tables, paths["translators"], counts


def kl(logits, last):
    log_p, log_q = (torch.from_numpy(np.array(x)).double().log_softmax(-1) for x in (logits, last))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("view", [MASKED, FORWARD])
def test_translators_that_were_not_fitted_are_the_logit_lens_bit_by_bit(tmp_path, view):
    adapter = toy(n_blocks=3, variant="causal" if view is FORWARD else "sequential")
    tuned, logit, _, _ = run(tmp_path, adapter, proteins(), views=(view,), settings={"steps": 0})
    assert tuned.n_rows > 0
    for layer in range(4):
        np.testing.assert_array_equal(tuned.layer(layer), logit.layer(layer))


def test_the_last_layer_is_never_translated_and_the_others_are(tmp_path):
    tuned, logit, _, _ = run(tmp_path, toy(n_blocks=3), proteins())
    np.testing.assert_array_equal(tuned.layer(3), logit.layer(3))
    for layer in range(3):
        assert np.abs(tuned.layer(layer) - logit.layer(layer)).max() > 1e-4


def test_read_outs_are_those_of_a_plain_walk_through_the_written_translators(tmp_path):
    adapter, sequences = toy(n_blocks=2), proteins()
    tuned, _, path, _ = run(tmp_path, adapter, sequences)
    with safe_open(path, "pt") as file:
        weight, bias = (file.get_tensor(f"trained.-1.{name}") for name in ("weight", "bias"))
    rows = tuned.keys().to_pylist()
    columns = list(adapter.vocabulary)
    for row, values in list(zip(rows, tuned.layer(1)))[:5]:
        sequence = dict(sequences)[row["sequence_id"]]
        tokens = adapter.encode(sequence, masked=mask_of(MASKED, len(sequence), 0, row["sequence_id"]))
        with torch.no_grad():
            stream, context = adapter.embed(adapter.collate([tokens]))
            h = adapter.add(stream, adapter.updates(1, stream, context))[0, tokens.residue_tokens[row["position"]]]
            expected = adapter.read_out(h + weight[1] @ h + bias[1])[columns]
        np.testing.assert_allclose(values, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_another_basis_is_found(tmp_path):
    # One block that adds nothing but turns what is read: coordinates of its state are read in reverse order.
    adapter = toy(n_blocks=1, norm="identity")
    block = adapter.module.blocks[0]
    with torch.no_grad():
        block.attention_out.weight.zero_()
        block.attention_out.bias.zero_()
    turned = torch.eye(adapter.d_model, dtype=torch.float64).flip(0) - torch.eye(adapter.d_model, dtype=torch.float64)
    block.feed = lambda middle: middle @ turned.mT
    tuned, logit, _, _ = run(
        tmp_path, adapter, proteins(40), settings={"steps": 300, "learning_rate": 0.1, "batch": 8, "size": 16}
    )
    last = logit.layer(1)
    assert kl(tuned.layer(0), last) < 0.1 * kl(logit.layer(0), last)


def test_fitting_lowers_the_divergence_that_it_minimises():
    adapter = toy(n_blocks=2)
    settings = Settings(**{**QUICK, "steps": 60, "learning_rate": 0.05})
    _, losses, shares = fit(adapter, proteins(), [MASKED], settings, seed=0, token_budget=10**5, log=LOG)
    assert losses.shape == (60, 2) and (losses >= 0).all()
    assert (losses[-10:].mean(0) < 0.5 * losses[:3].mean(0)).all()
    np.testing.assert_allclose(shares.sum(), 1)


def test_gradients_are_those_of_the_divergence():
    """One small step of plain descent along Adam's first direction: signs of the gradient written naively."""
    adapter = toy(n_blocks=1)
    settings = Settings(**{**QUICK, "steps": 1, "batch": 4, "learning_rate": 0.01})
    sequences = proteins(4)
    translators, losses, _ = fit(adapter, sequences, [MASKED], settings, seed=0, token_budget=10**5, log=LOG)
    weight = torch.zeros(32, 32, dtype=torch.float64, requires_grad=True)
    columns, total, n = list(adapter.vocabulary), 0, 0
    for name, sequence in sequences:
        masked = mask_of(View("none", 0.3, OTHER_MASKS), len(sequence), 0, name)
        tokens = adapter.encode(sequence, masked=masked)
        stream, context = adapter.embed(adapter.collate([tokens]))
        last = adapter.add(stream, adapter.updates(1, stream, context))
        at = tokens.residue_tokens[masked]
        p = adapter.read_out(last[0, at])[:, columns].log_softmax(-1)
        q = adapter.read_out(stream[0, at] + stream[0, at] @ weight.mT)[:, columns].log_softmax(-1)
        total, n = total + (p.exp() * (p - q)).sum(), n + len(at)
    np.testing.assert_allclose(losses[0, 0], float(total.detach()) / n, rtol=1e-9)
    (total / n).backward()
    clear = weight.grad.abs() > 1e-6
    step = -settings.learning_rate / adapter.d_model * weight.grad.sign()
    np.testing.assert_allclose(translators.weight[0][clear], step[clear], rtol=1e-2)


def test_no_cluster_is_fitted_on_and_evaluated():
    sequences = proteins(40)
    clusters = pairs(sequences)
    train, evaluated = split(sequences, clusters, Settings(), 0)
    assert not {clusters[name] for name, _ in train} & {clusters[name] for name, _ in evaluated}
    assert len(train) + len(evaluated) == 40
    order = [name for name, _ in sequences]
    assert [name for name, _ in train] == [name for name in order if name in dict(train)]
    few, _ = split(sequences, clusters, Settings(train=3), 0)
    assert few == train[:3]
    assert split(sequences, clusters, Settings(), 1)[0] != train
    # A larger sample leaves every protein on its side.
    more = [*sequences, *((f"Q{i}", "MKT") for i in range(9))]
    train_of_more, _ = split(more, clusters | {f"Q{i}": f"D{i}" for i in range(9)}, Settings(), 0)
    assert [pair for pair in train_of_more if pair in sequences] == train


def test_splits_that_cannot_be_are_refused():
    sequences = proteins(4)
    with pytest.raises(TunedLensError, match="no cluster"):
        split(sequences, {"P0": "C"}, Settings(), 0)
    with pytest.raises(TunedLensError, match="at least one of each"):
        split(sequences, {name: "one" for name, _ in sequences}, Settings(), 0)


def test_the_token_budget_does_not_matter(tmp_path):
    adapter, sequences = toy(n_blocks=3), proteins()
    whole, _, _, _ = run(tmp_path, adapter, sequences)
    small, _, _, _ = run(tmp_path, adapter, sequences, name="small", token_budget=30)

    def rows(table):
        keys = [(row["sequence_id"], row["position"]) for row in table.keys().to_pylist()]
        return dict(zip(keys, table.layer(1)))

    expected, got = rows(whole), rows(small)
    assert expected.keys() == got.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-4, atol=1e-5)


def test_only_hidden_or_next_residues_of_evaluated_proteins_are_read(tmp_path, caplog):
    adapter, sequences = toy(n_blocks=1), proteins()
    with caplog.at_level(logging.INFO):
        tuned, _, _, counts = run(tmp_path, adapter, sequences, views=(View("none", 0.0, -1), MASKED))
    assert "1 clean views left out" in caplog.text
    rows = tuned.keys().to_pylist()
    _, evaluated = split(sequences, pairs(sequences), Settings(**QUICK), 0)
    assert {row["sequence_id"] for row in rows} == {name for name, _ in evaluated}
    assert all(row["is_masked"] and row["mask_draw"] == 0 for row in rows)
    assert counts["rows"] == len(rows) == tuned.n_rows
    with pytest.raises(TunedLensError, match="no view is left"):
        run(tmp_path, adapter, sequences, views=(View("none", 0.0, -1),))


def test_null_models_have_translators_of_their_own_and_the_weights_come_back(tmp_path):
    adapter, sequences = toy(n_blocks=2), proteins()
    before = copy.deepcopy(adapter.module.state_dict())
    tuned, _, path, _ = run(tmp_path, adapter, sequences, nulls=[TRAINED, Null("randinit", 5)])
    alone, _, other, _ = run(tmp_path, toy(n_blocks=2, seed=5), sequences, name="alone")
    with safe_open(path, "pt") as file, safe_open(other, "pt") as of_five:
        assert set(file.keys()) == {f"{n}.{k}" for n in ("trained.-1", "randinit.5") for k in ("weight", "bias")}
        assert json.loads(file.metadata()["settings"])["steps"] == 4
        np.testing.assert_allclose(
            file.get_tensor("randinit.5.weight"), of_five.get_tensor("trained.-1.weight"), rtol=1e-6, atol=1e-12
        )
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.module.state_dict().items())
    is_null = [row["null_model"] == "randinit" for row in tuned.keys().to_pylist()]
    np.testing.assert_allclose(tuned.layer(0)[is_null], alone.layer(0), rtol=1e-4, atol=1e-5)


def test_translators_add_a_linear_map():
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.randn(3, 4, 4), torch.randn(3, 4)
    moved = Translators(weight, bias)(states[1:], slice(1, 3))
    for layer in (1, 2):
        expected = states[layer] + states[layer] @ weight[layer].T + bias[layer]
        np.testing.assert_allclose(moved[layer - 1], expected, rtol=1e-5, atol=1e-6)


def test_models_whose_tokens_are_no_residues_have_no_rows(tmp_path, caplog):
    adapter = toy(n_blocks=1)
    adapter.tokens_are_residues = False
    with caplog.at_level(logging.WARNING):
        tuned, logit, _, _ = run(tmp_path, adapter, proteins())
    assert tuned.n_rows == logit.n_rows == 0 and "tokens are not residues" in caplog.text


class TestSettings:
    def test_what_is_not_given_has_the_defaults(self):
        assert read_settings(Settings, '{"steps": 8}', "--settings") == Settings(steps=8)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[]", "JSON object"),
            ('{"step": 1}', "keys"),
            ('{"steps": -1}', "steps"),
            ('{"train": 0}', "train"),
            ('{"batch": true}', "batch"),
            ('{"held_out": 1.0}', "held_out"),
            ('{"learning_rate": 0}', "learning_rate"),
        ],
    )
    def test_what_cannot_be_is_refused(self, text, message):
        with pytest.raises(SettingsError, match=message):
            read_settings(Settings, text, "--settings")
