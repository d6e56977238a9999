"""What a model is asked: masks, noise levels, directions, targets and weights, in training and validation."""

import math

import numpy as np
import pytest

from plm_depth.models import registry
from plm_depth.models.base import Structure
from plm_depth.models.structures import hidden_at, in_order
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS
from plm_depth.training.objectives import (
    NOISE_LEVELS,
    VALIDATION_NOISE,
    diffusion_weight,
    scored,
    select_residues,
    training_example,
    validation_example,
    validation_views,
)

SIZES = {"n_blocks": 1, "d_model": 16, "n_heads": 8}
SIZES_ESM = {**SIZES, "n_heads": 4}
SEQUENCE = "".join(generator(0, "protein").choice(list(AMINO_ACIDS), 200))


@pytest.fixture(scope="module")
def masked_model():
    return registry.build("esm2", SIZES_ESM)


@pytest.fixture(scope="module")
def diffusion_model():
    return registry.build("dplm", SIZES_ESM)


@pytest.fixture(scope="module")
def causal_model():
    return registry.build("progen2", SIZES)


def drawn(adapter, epoch=0, sequence=SEQUENCE, **options):
    options = {"objective": adapter.objective, "seed": 0, "sequence_id": "P1", "mask_rate": 0.15, **options}
    return training_example(adapter, sequence, epoch=epoch, **options)


# --------------------------------------------------------------------------------------------------------- masked


def test_fifteen_percent_are_selected_and_split_eighty_ten_ten():
    counts = np.zeros(3)
    for epoch in range(400):
        parts = select_residues(101, 0.15, generator(epoch))
        together = np.concatenate(parts)
        assert len(set(together)) == len(together) and together.max() < 101
        counts += [len(part) for part in parts]
    assert counts.sum() / (400 * 101) == pytest.approx(0.15, abs=0.002)
    np.testing.assert_allclose(counts / counts.sum(), [0.8, 0.1, 0.1], atol=0.015)


def test_short_proteins_are_selected_at_the_same_rate_on_average_and_never_without_a_residue():
    numbers = [sum(len(part) for part in select_residues(10, 0.15, generator(i))) for i in range(2000)]
    assert set(numbers) == {1, 2}
    assert np.mean(numbers) == pytest.approx(1.5, abs=0.05)
    assert sum(len(part) for part in select_residues(1, 0.01, generator(0))) == 1
    assert sum(len(part) for part in select_residues(3, 1.0, generator(0))) == 3


def test_every_residue_is_selected_equally_often():
    counts = np.zeros(20)
    for i in range(3000):
        for part in select_residues(20, 0.15, generator(i)):
            counts[part] += 1
    np.testing.assert_allclose(counts / 3000, 0.15, atol=0.03)


def test_a_masked_input_shows_what_was_drawn_and_asks_for_the_true_residues(masked_model):
    clean = masked_model.encode(SEQUENCE)
    changed, kept, shown_instead = 0, 0, set()
    for epoch in range(60):
        example = drawn(masked_model, epoch)
        ids = example.tokens.ids
        np.testing.assert_array_equal(example.targets, clean.ids[example.reads])
        np.testing.assert_array_equal(masked_model.residue_ids[example.true_aa], example.targets)
        unselected = np.setdiff1d(np.arange(len(ids)), example.reads)
        np.testing.assert_array_equal(ids[unselected], clean.ids[unselected])
        hidden = ids == masked_model.mask_id
        np.testing.assert_array_equal(hidden[clean.residue_tokens], example.tokens.masked)
        shown = example.reads[~hidden[example.reads]]
        assert np.isin(ids[shown], masked_model.residue_ids).all()
        changed += (ids[shown] != clean.ids[shown]).sum()
        kept += (ids[shown] == clean.ids[shown]).sum()
        shown_instead |= set(ids[shown[ids[shown] != clean.ids[shown]]])
        assert (example.weights == 1).all()
    assert shown_instead == set(masked_model.residue_ids)
    assert changed / (changed + kept) == pytest.approx(0.5 * 19 / 20, abs=0.08)  # a random residue may be the true one


def test_draws_are_keyed_by_seed_epoch_and_protein(masked_model):
    first = drawn(masked_model)
    np.testing.assert_array_equal(first.tokens.ids, drawn(masked_model).tokens.ids)
    for other in (drawn(masked_model, 1), drawn(masked_model, seed=1), drawn(masked_model, sequence_id="P2")):
        assert len(other.reads) != len(first.reads) or (other.reads != first.reads).any()


# ------------------------------------------------------------------------------------------------------ diffusion


def test_the_diffusion_weight_falls_in_a_line_from_one():
    assert NOISE_LEVELS == 500
    assert diffusion_weight(1) == 1.0
    assert diffusion_weight(251) == 0.5
    assert diffusion_weight(500) == pytest.approx(1 / 500)


def test_the_share_masked_is_uniform_and_decides_the_weight(diffusion_model):
    shares, weights = [], []
    for epoch in range(600):
        example = drawn(diffusion_model, epoch)
        masked = example.tokens.masked
        np.testing.assert_array_equal(example.reads, np.flatnonzero(example.tokens.ids == diffusion_model.mask_id))
        assert len(example.reads) == masked.sum()
        assert len(set(example.weights)) <= 1
        shares.append(masked.mean())
        weights.append(example.weights[0] if masked.any() else 1.0)
    # Given t the share masked is t / T on average, and the weight is 1 - (t - 1) / T.
    np.testing.assert_allclose(np.add(shares, weights), 1 + 1 / NOISE_LEVELS, atol=0.2)
    assert np.mean(np.add(shares, weights)) == pytest.approx(1 + 1 / NOISE_LEVELS, abs=0.006)
    np.testing.assert_allclose(np.quantile(shares, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.06)


def test_specials_are_never_masked(diffusion_model):
    examples = [drawn(diffusion_model, epoch, sequence="MKT") for epoch in range(200)]
    assert any(example.tokens.masked.all() for example in examples)
    for example in examples:
        assert example.tokens.ids[0] == diffusion_model.encode("MKT").ids[0] != diffusion_model.mask_id
        assert example.tokens.ids[-1] == diffusion_model.encode("MKT").ids[-1] != diffusion_model.mask_id


def test_a_diffusion_model_can_be_asked_as_a_masked_one_in_a_first_stage(diffusion_model, masked_model):
    first, other = drawn(diffusion_model, objective="mlm"), drawn(masked_model)
    np.testing.assert_array_equal(first.tokens.ids, other.tokens.ids)
    np.testing.assert_array_equal(first.reads, other.reads)
    assert (first.weights == 1).all()


# ------------------------------------------------------------------------------------------------- autoregressive


def test_both_directions_are_drawn_about_equally(causal_model):
    directions = [drawn(causal_model, epoch).tokens.direction for epoch in range(400)]
    assert set(directions) == {"n2c", "c2n"}
    assert directions.count("n2c") / 400 == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("direction", ["n2c", "c2n"])
def test_every_next_token_is_asked_for_and_residues_alone_are_reported(causal_model, direction):
    sequence = "MKXTA"
    example = next(
        e
        for e in (drawn(causal_model, epoch, sequence=sequence) for epoch in range(99))
        if e.tokens.direction == direction
    )
    ids = causal_model.encode(sequence, direction=direction).ids
    np.testing.assert_array_equal(example.tokens.ids, ids)
    assert example.reads.tolist() == list(range(6))
    np.testing.assert_array_equal(example.targets, ids[1:])
    spelled = sequence if direction == "n2c" else sequence[::-1]
    expected = [AMINO_ACIDS.find(letter) for letter in spelled] + [-1]  # X and the last terminal are not reported
    assert example.true_aa.tolist() == expected


# ----------------------------------------------------------------------------------------------------- validation


def test_validation_shows_two_masks_five_noise_levels_or_both_directions(masked_model, diffusion_model, causal_model):
    assert [(v.noise_t, v.mask_draw) for v in validation_views(masked_model, 0.15)] == [(0.15, 0), (0.15, 1)]
    assert tuple(v.noise_t for v in validation_views(diffusion_model, 0.15)) == VALIDATION_NOISE
    assert [v.direction for v in validation_views(causal_model, 0.15)] == ["n2c", "c2n"]
    assert all(math.isnan(v.noise_t) for v in validation_views(causal_model, 0.15))


def test_validation_hides_a_fixed_share_and_is_the_same_for_models_of_any_depth(diffusion_model):
    deeper = registry.build("dplm", {**SIZES_ESM, "n_blocks": 2}, seed=9)
    for view in validation_views(diffusion_model, 0.15):
        example = validation_example(diffusion_model, SEQUENCE, view, sequence_id="P1")
        assert len(example.reads) == round(view.noise_t * 200)
        np.testing.assert_array_equal(
            example.tokens.ids, validation_example(deeper, SEQUENCE, view, sequence_id="P1").tokens.ids
        )


def test_the_two_validation_masks_differ(masked_model):
    one, two = (
        validation_example(masked_model, SEQUENCE, v, sequence_id="P1") for v in validation_views(masked_model, 0.15)
    )
    assert (one.reads != two.reads).any()
    assert (one.tokens.ids[one.reads] == masked_model.mask_id).all()  # never replaced or left, unlike in training


@pytest.mark.parametrize("place", [0, 1])
def test_autoregressive_validation_reports_every_residue_the_first_included(causal_model, place):
    view = validation_views(causal_model, 0.15)[place]
    example = validation_example(causal_model, SEQUENCE, view, sequence_id="P1")
    assert (example.true_aa >= 0).sum() == 200
    assert example.true_aa[0] == AMINO_ACIDS.index(SEQUENCE[0 if place == 0 else -1])


def test_reads_of_several_examples_are_laid_flat_in_row_order(causal_model):
    examples = [drawn(causal_model, sequence="MK"), drawn(causal_model, sequence="ACD")]
    flat = scored(examples)
    assert flat.rows.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert flat.reads.tolist() == [0, 1, 2, 0, 1, 2, 3]
    np.testing.assert_array_equal(flat.targets, np.concatenate([e.targets for e in examples]))
    np.testing.assert_array_equal(flat.true_aa, np.concatenate([e.true_aa for e in examples]))


# ------------------------------------------------------------------------------------------------------ structures


@pytest.fixture(scope="module", params=["saprot", "esm3", "dplm2"])
def shown_structures(request):
    return registry.build(request.param, SIZES_ESM)


def structure_of(n_residues):
    random = generator(0, "structure")
    return Structure(
        three_di="".join(random.choice(list("pynwrq"), n_residues)),
        codes=random.integers(0, 20, n_residues),
        coordinates=random.normal(size=(n_residues, 3, 3)).astype(np.float32),
    )


def is_shown(adapter, example):
    """Return whether anything of the structure is in the input."""
    nothing = hidden_at(structure_of(len(SEQUENCE)), np.ones(len(SEQUENCE), bool))
    masked = example.tokens.masked
    without = [
        adapter.encode(SEQUENCE, masked=masked),
        adapter.encode(SEQUENCE, masked=masked, structure=nothing, condition="seq_struct"),
    ]
    return not any(
        np.array_equal(plain.ids, example.tokens.ids)
        and plain.extra.keys() == example.tokens.extra.keys()
        and all(
            np.array_equal(plain.extra[name], value, equal_nan=True) for name, value in example.tokens.extra.items()
        )
        for plain in without
    )


def test_a_protein_with_a_structure_is_shown_with_it_in_half_of_the_epochs(shown_structures):
    adapter, structure = shown_structures, structure_of(len(SEQUENCE))
    shown = [
        is_shown(adapter, drawn(adapter, epoch, objective="diffusion", structure=structure)) for epoch in range(60)
    ]
    assert 18 <= sum(shown) <= 42
    assert not any(is_shown(adapter, drawn(adapter, epoch, objective="diffusion")) for epoch in range(5))


def of_the_structure(adapter, structure, **options):
    """Return the examples of 80 epochs, by what they ask of the structure: nothing, all of it, or some residues."""
    found = {"nothing": [], "all": [], "some": []}
    for epoch in range(80):
        example = drawn(adapter, epoch, structure=structure, **options)
        n = len(example.structure_reads)
        found["all" if n == len(SEQUENCE) else "some" if n else "nothing"].append(example)
    return found


@pytest.mark.parametrize("objective", ["mlm", "diffusion"])
def test_in_half_of_the_epochs_the_structure_is_asked_for_where_it_is_hidden(shown_structures, objective):
    adapter, structure = shown_structures, structure_of(len(SEQUENCE))
    true = adapter.true_structure(structure, len(SEQUENCE))
    found = of_the_structure(adapter, structure, objective=objective)
    assert 10 <= len(found["all"]) <= 30 and 10 <= len(found["some"]) <= 30 and 25 <= len(found["nothing"]) <= 55
    for example in found["all"] + found["some"]:
        tokens = adapter.structure_reads(example.tokens)
        asked = np.flatnonzero(np.isin(tokens, example.structure_reads))
        np.testing.assert_array_equal(example.structure_reads, tokens[asked])
        np.testing.assert_array_equal(example.structure_targets, true[asked])
        if len(asked) < len(SEQUENCE):
            np.testing.assert_array_equal(asked, np.flatnonzero(example.tokens.masked))


def test_a_structure_that_is_asked_for_is_not_shown(shown_structures):
    """Another structure at the residues that are asked for gives the same input."""
    adapter, one = shown_structures, structure_of(len(SEQUENCE))
    turned = np.roll(np.arange(len(SEQUENCE)), 7)
    other = in_order(one, turned)
    for epoch in range(40):
        example = drawn(adapter, epoch, structure=one, objective="mlm")
        if not len(example.structure_reads):
            continue
        asked = np.isin(adapter.structure_reads(example.tokens), example.structure_reads)
        mixed = Structure(
            three_di="".join(b if there else a for a, b, there in zip(one.three_di, other.three_di, asked)),
            codes=np.where(asked, other.codes, one.codes),
            coordinates=np.where(asked[:, None, None], other.coordinates, one.coordinates),
        )
        again = drawn(adapter, epoch, structure=mixed, objective="mlm")
        np.testing.assert_array_equal(again.tokens.ids, example.tokens.ids)
        assert again.tokens.extra.keys() == example.tokens.extra.keys()
        for name, value in example.tokens.extra.items():
            np.testing.assert_array_equal(again.tokens.extra[name], value)
        assert not np.array_equal(again.structure_targets, example.structure_targets)


def test_a_structure_that_is_not_known_is_not_asked_for(shown_structures):
    adapter, known = shown_structures, structure_of(len(SEQUENCE))
    gone = np.arange(len(SEQUENCE)) % 3 == 0
    found = of_the_structure(adapter, hidden_at(known, gone), objective="mlm")
    assert not found["all"] and found["some"]
    for example in found["some"]:
        at = np.isin(adapter.structure_reads(example.tokens), example.structure_reads)
        assert at.any() and not (at & gone).any()


def test_the_residues_that_are_scored_do_not_depend_on_what_is_shown(shown_structures):
    adapter, structure = shown_structures, structure_of(len(SEQUENCE))
    for epoch in range(8):
        alone, both = (
            drawn(adapter, epoch, objective="mlm"),
            drawn(adapter, epoch, objective="mlm", structure=structure),
        )
        for name in ("targets", "weights", "true_aa"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(both, name))
        np.testing.assert_array_equal(alone.tokens.masked, both.tokens.masked)
        read = both.reads - adapter.read_offset
        np.testing.assert_array_equal(np.searchsorted(both.tokens.residue_tokens, read),
                                      np.searchsorted(alone.tokens.residue_tokens, alone.reads))  # fmt: skip
        # What is asked for is the amino acid, whatever the token that shows it.
        assert set(both.targets) <= set(adapter.residue_ids)
