"""Null models: they change what they say, nothing else, and leave the model as it was."""

import numpy as np
import pytest
import torch

from planted import toy
from plm_depth.activations.nulls import Null, NullError, applied, parse_nulls, shuffle_sequence, shuffle_weights
from plm_depth.models import registry

SHUFFLED, RANDOM = Null("shuffle_w", 0), Null("randinit", 0)


def tensors_of(module) -> dict[str, torch.Tensor]:
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def equal_bits(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].flatten().view(torch.uint8), other[name].flatten().view(torch.uint8)) for name in one
    )


@pytest.fixture(scope="module")
def esm():
    return registry.build("esm2", {"n_blocks": 2, "d_model": 16, "n_heads": 2}, seed=3)


@pytest.mark.parametrize("null", [RANDOM, SHUFFLED], ids=str)
@pytest.mark.parametrize("make", [toy, "esm2", "progen2"])
def test_the_weights_change_and_come_back_bit_by_bit(null, make):
    if isinstance(make, str):
        adapter = registry.build(make, {"n_blocks": 2, "d_model": 64, "n_heads": 8}, seed=3)
    else:
        adapter = make(seed=3)
    parameter = next(adapter.module.parameters())
    with torch.no_grad():
        parameter.view(-1)[0] = -0.0  # a sign that a copy through arithmetic would lose
    before, buffers = tensors_of(adapter.module), dict(adapter.module.named_buffers())
    kept = {name: value.clone() for name, value in buffers.items()}
    with applied(adapter, null) as changed:
        assert changed is adapter
        inside = tensors_of(adapter.module)
        assert not equal_bits(inside, before)
        for name, value in kept.items():
            assert torch.equal(buffers[name], value), f"buffer {name} was touched"
    assert equal_bits(tensors_of(adapter.module), before)


@pytest.mark.parametrize("null", [RANDOM, SHUFFLED], ids=str)
def test_the_weights_come_back_after_an_error(null):
    adapter = toy()
    before = tensors_of(adapter.module)
    with pytest.raises(KeyError, match="planted"), applied(adapter, null):
        raise KeyError("planted")
    assert equal_bits(tensors_of(adapter.module), before)


def test_an_error_halfway_through_the_change_leaves_the_model_as_it_was():
    adapter = toy()
    before = tensors_of(adapter.module)

    def break_off(seed):
        with torch.no_grad():
            next(adapter.module.parameters()).zero_()
        raise RuntimeError("planted")

    adapter.reinitialise = break_off
    with pytest.raises(RuntimeError, match="planted"), applied(adapter, RANDOM):
        pass
    assert equal_bits(tensors_of(adapter.module), before)


@pytest.mark.parametrize("kind", ["randinit", "shuffle_w"])
def test_equal_seeds_give_equal_weights_and_other_seeds_others(kind):
    def weights(model_seed, null_seed):
        adapter = toy(seed=model_seed)
        with applied(adapter, Null(kind, null_seed)):
            return tensors_of(adapter.module)

    assert equal_bits(weights(1, 5), weights(1, 5))
    assert not equal_bits(weights(1, 5), weights(1, 6))
    # An untrained network knows nothing of the weights that were there; a shuffled one is made of them.
    assert equal_bits(weights(1, 5), weights(2, 5)) == (kind == "randinit")


@pytest.mark.parametrize("null", [Null("trained", -1), Null("shuffle_seq", 0)], ids=str)
def test_trained_and_shuffled_sequences_touch_no_weight(null):
    adapter = toy()
    before = tensors_of(adapter.module)
    versions = {name: p._version for name, p in adapter.module.named_parameters()}
    with applied(adapter, null):
        assert equal_bits(tensors_of(adapter.module), before)
    assert versions == {name: p._version for name, p in adapter.module.named_parameters()}


def test_shuffled_weights_keep_the_numbers_of_every_tensor(esm):
    before = tensors_of(esm.module)
    with applied(esm, SHUFFLED):
        for name, parameter in esm.module.named_parameters():
            old, new = before[name].flatten(), parameter.detach().flatten()
            assert torch.equal(old.sort().values, new.sort().values), name
            if len(old.unique()) > 8:
                assert not torch.equal(old, new), f"{name} was not shuffled"


def test_equal_tensors_are_shuffled_differently():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(30, 1), "b": torch.nn.Linear(30, 1)})
    with torch.no_grad():
        for name in "ab":
            module[name].weight.copy_(torch.arange(30.0)[None])
    shuffle_weights(module, 0)
    assert not torch.equal(module["a"].weight, module["b"].weight)


def test_a_tied_parameter_is_shuffled_once(esm):
    embedding, decoder = esm.module.esm.embeddings.word_embeddings.weight, esm.module.lm_head.decoder.weight
    assert embedding is decoder
    once = torch.nn.Module()
    once.esm = torch.nn.Module()
    once.esm.embeddings = torch.nn.Module()
    once.esm.embeddings.word_embeddings = torch.nn.Embedding(*embedding.shape)
    with torch.no_grad():
        once.esm.embeddings.word_embeddings.weight.copy_(embedding)
    shuffle_weights(once, 4)
    with applied(esm, Null("shuffle_w", 4)):
        assert esm.module.lm_head.decoder.weight is esm.module.esm.embeddings.word_embeddings.weight
        assert torch.equal(embedding, once.esm.embeddings.word_embeddings.weight)


def test_the_permutation_is_the_same_for_every_dtype():
    wide, narrow = torch.nn.Linear(17, 5), torch.nn.Linear(17, 5).to(torch.bfloat16)
    with torch.no_grad():
        for module in (wide, narrow):
            module.weight.copy_(torch.arange(85.0).reshape(5, 17))  # exact in bfloat16
    for module in (wide, narrow):
        shuffle_weights(module, 7)
    assert torch.equal(wide.weight, narrow.weight.float())
    assert not torch.equal(wide.weight.flatten(), torch.arange(85.0))


def test_a_shuffled_sequence_is_a_permutation_keyed_by_seed_and_protein():
    sequence = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
    shuffled = shuffle_sequence(sequence, 0, "P1")
    assert sorted(shuffled) == sorted(sequence) and shuffled != sequence
    assert shuffled == shuffle_sequence(sequence, 0, "P1")
    assert len({shuffled, shuffle_sequence(sequence, 1, "P1"), shuffle_sequence(sequence, 0, "P2")}) == 3


def test_every_residue_may_end_anywhere():
    places = np.array([shuffle_sequence("ACDEF", 0, f"P{i}").index("A") for i in range(500)])
    assert np.bincount(places, minlength=5).min() > 60  # 100 expected, standard deviation 9


def test_a_list_of_nulls_is_read_in_order():
    text = '[{"null_model": "trained", "seed": -1}, {"null_model": "shuffle_w", "seed": 2}]'
    assert parse_nulls(text) == [Null("trained", -1), Null("shuffle_w", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "expected a JSON list"),
        ("[]", "at least one null model"),
        ('{"null_model": "trained"}', "expected a JSON list"),
        ('[{"null_model": "trained"}]', "expected a JSON list"),
        ('[{"null_model": "trained", "seed": 0}]', "expected -1 for trained"),
        ('[{"null_model": "randinit", "seed": -1}]', "0..32767"),
        ('[{"null_model": "randinit", "seed": 40000}]', "0..32767"),
        ('[{"null_model": "randinit", "seed": "0"}]', "0..32767"),
        ('[{"null_model": "random", "seed": 0}]', "expected one of trained, randinit, shuffle_w, shuffle_seq"),
        ('[{"null_model": "randinit", "seed": 0}, {"null_model": "randinit", "seed": 0}]', "none twice"),
    ],
)
def test_a_wrong_list_of_nulls_is_refused_with_what_was_expected(text, message):
    with pytest.raises(NullError, match=message):
        parse_nulls(text)
