"""Scores of variants at every layer, against scores one by one, from plain walks and from the library's logits."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from planted import Toy, toy, walk
from plm_depth.activations import variants
from plm_depth.activations.nulls import Null
from plm_depth.activations.variants import (
    Assay,
    Reader,
    Variant,
    VariantError,
    masked_marginals,
    passes_of,
    read_assays,
    score_assay,
    score_variants,
    scorers_for,
    sequence_scores,
    wildtype_marginals,
    window_start,
    windows_of,
)
from plm_depth.models import registry
from plm_depth.models.base import Adapter, Structure
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, FITNESS_GRAM, FITNESS_VAR, VARIANTS, TableError, read_table, write_table

LOG = logging.getLogger("test")
TRAINED = Null("trained", -1)
MASKED = {"sequential": {}, "parallel": {"variant": "parallel"}, "geometric": {"geometric": True}}
CAUSAL = {"causal": {"variant": "causal"}, "parallel causal": {"variant": "parallel", "objective": "ar"}}


def assay_of(n_residues=14, n_variants=12, *, name="A", seed=0, most=3) -> Assay:
    """Return a random assay with variants of one to three substitutions, some at the same positions."""
    random = generator(seed, "assay", name)
    sequence = "".join(random.choice(list(AMINO_ACIDS), size=n_residues))
    made = []
    for number in range(n_variants):
        positions = tuple(sorted(random.choice(n_residues, size=1 + number % most, replace=False).tolist()))
        if number % 4 == 3:
            positions = made[-1].positions  # a set of positions that stood before
        old = "".join(sequence[p] for p in positions)
        new = "".join(str(random.choice([a for a in AMINO_ACIDS if a != letter])) for letter in old)
        made.append(Variant(number, positions, old, new))
    return Assay(name, sequence, tuple(made))


def reader_of(adapter, token_budget=10_000, condition="seq") -> Reader:
    return Reader(adapter, condition, token_budget, LOG)


def whole(assay: Assay):
    [window], n_left_out = windows_of(assay, 1000)
    assert n_left_out == 0
    return window


def mutated(assay: Assay, variant: Variant) -> str:
    letters = list(assay.sequence)
    for position, letter in zip(variant.positions, variant.new):
        letters[position] = letter
    return "".join(letters)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def log_p(adapter, sequence, *, masked=None, direction="none") -> np.ndarray:
    """Return ln p of the canonical residues, (layers, n_residues, 20), from a plain walk."""
    tokens = adapter.encode(sequence, masked=masked, direction=direction)
    at = tokens.residue_tokens + adapter.read_offset
    return log_softmax(walk(adapter, tokens).logits[:, at][..., adapter.residue_ids])


def plain_marginals(adapter, assay, *, masks: bool) -> np.ndarray:
    scores = []
    for variant in assay.variants:
        masked = np.isin(np.arange(len(assay.sequence)), variant.positions) if masks else None
        logp = log_p(adapter, assay.sequence, masked=masked)
        parts = [
            logp[:, p, AMINO_ACIDS.index(new)] - logp[:, p, AMINO_ACIDS.index(old)]
            for p, new, old in zip(variant.positions, variant.new, variant.old)
        ]
        scores.append(sum(parts))
    return np.stack(scores, 1)


def plain_likelihood(adapter, sequence, direction) -> np.ndarray:
    logp = log_p(adapter, sequence, direction=direction)
    return sum(logp[:, p, AMINO_ACIDS.index(letter)] for p, letter in enumerate(sequence))


def plain_mean(adapter, sequence, direction="none") -> np.ndarray:
    tokens = adapter.encode(sequence, direction=direction)
    return walk(adapter, tokens).streams[:, tokens.residue_tokens].mean(1)


# ----------------------------------------------------------------------------------------------------------------
# Scores


@pytest.mark.parametrize("kind", MASKED)
def test_wild_type_marginals_are_those_of_one_plain_walk(kind):
    adapter, assay = toy(**MASKED[kind]), assay_of()
    found = wildtype_marginals(reader_of(adapter), whole(assay))
    np.testing.assert_allclose(found, plain_marginals(adapter, assay, masks=False), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("budget", [10_000, 40, 1])
@pytest.mark.parametrize("kind", MASKED)
def test_masked_marginals_are_those_of_one_walk_a_variant_whatever_the_batches(kind, budget):
    adapter, assay = toy(**MASKED[kind]), assay_of()
    found = masked_marginals(reader_of(adapter, budget), whole(assay))
    np.testing.assert_allclose(found, plain_marginals(adapter, assay, masks=True), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("budget", [10_000, 40, 1])
@pytest.mark.parametrize("direction", ["n2c", "c2n"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_likelihood_ratios_are_those_of_two_whole_walks_a_variant_whatever_the_batches(kind, direction, budget):
    adapter, assay = toy(**CAUSAL[kind]), assay_of()
    embedded = [variant.number < 5 for variant in assay.variants]
    reader = reader_of(adapter, budget)
    found = sequence_scores(reader, whole(assay), direction, scorers=["ar", "emb_zs"], embedded=embedded)
    wild = plain_likelihood(adapter, assay.sequence, direction)
    expected = [plain_likelihood(adapter, mutated(assay, variant), direction) - wild for variant in assay.variants]
    np.testing.assert_allclose(found.ar, np.stack(expected, 1), rtol=1e-9, atol=1e-9)
    assert found.zero_shot.shape[1] == found.shift.shape[1] == 5


@pytest.mark.parametrize("objective", ["mlm", "ar"])
def test_how_many_passes_are_kept_at_once_changes_nothing(monkeypatch, objective):
    adapter = toy() if objective == "mlm" else toy(variant="causal")
    scorers = ["mask", "emb_zs", "emb_ridge"] if objective == "mlm" else ["ar", "emb_zs", "emb_ridge"]
    assay = assay_of()
    whole_scores, whole_grams = score_assay(reader_of(adapter), [whole(assay)], scorers=scorers, n_embedded=7)
    monkeypatch.setattr(variants, "AT_ONCE", 3)
    scores, grams = score_assay(reader_of(adapter), [whole(assay)], scorers=scorers, n_embedded=7)
    for one, other in zip(whole_scores + whole_grams, scores + grams, strict=True):
        assert one.variants.tolist() == other.variants.tolist()
        kept = "scores" if hasattr(one, "scores") else "products"
        np.testing.assert_allclose(getattr(one, kept), getattr(other, kept), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("direction", ["none", "n2c", "c2n"])
def test_distances_and_shifts_are_those_of_mean_states(direction):
    adapter = toy() if direction == "none" else toy(variant="causal")
    assay = assay_of()
    embedded = [variant.number % 3 > 0 for variant in assay.variants]
    found = sequence_scores(reader_of(adapter, 60), whole(assay), direction, scorers=["emb_zs"], embedded=embedded)
    assert found.ar is None and found.parity is None
    wild = plain_mean(adapter, assay.sequence, direction)
    chosen = [variant for variant, is_wanted in zip(assay.variants, embedded) if is_wanted]
    for place, variant in enumerate(chosen):
        mean = plain_mean(adapter, mutated(assay, variant), direction)
        cosine = (mean * wild).sum(-1) / np.linalg.norm(mean, axis=-1) / np.linalg.norm(wild, axis=-1)
        np.testing.assert_allclose(found.zero_shot[:, place], cosine - 1, atol=1e-12)
        np.testing.assert_allclose(found.shift[:, place], mean - wild, atol=1e-12)


@pytest.mark.parametrize("family", ["esm2", "dplm", "saprot", "esm3"])
def test_the_last_layer_is_the_ordinary_masked_scorer_by_the_librarys_logits(family):
    sizes = {"n_blocks": 2, "d_model": 16, "n_heads": 2}
    adapter = registry.build(family, sizes, seed=1)
    assay = assay_of(n_residues=16, n_variants=6)
    found = masked_marginals(reader_of(adapter), whole(assay))[-1]
    for variant, score in zip(assay.variants, found):
        masked = np.isin(np.arange(16), variant.positions)
        shown = {"struct_at_mask": "keep"} if len(adapter.conditions) > 1 else {}
        tokens = adapter.encode(assay.sequence, masked=masked, **shown)
        with torch.inference_mode():
            logits = adapter.library_logits(adapter.collate([tokens]))[0, tokens.residue_tokens].double()
        logp = logits[:, adapter.residue_ids].log_softmax(-1).numpy()
        expected = sum(
            logp[p, AMINO_ACIDS.index(new)] - logp[p, AMINO_ACIDS.index(old)]
            for p, new, old in zip(variant.positions, variant.new, variant.old)
        )
        assert score == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("family", ["progen2", "progen3"])
def test_the_last_layer_is_the_ordinary_likelihood_ratio_by_the_librarys_logits(family):
    adapter = registry.build(family, {"n_blocks": 2, "d_model": 16, "n_heads": 8}, seed=1)
    assay = assay_of(n_residues=16, n_variants=6)

    def likelihood(sequence: str, direction: str) -> float:
        tokens = adapter.encode(sequence, direction=direction)
        with torch.inference_mode():
            logits = adapter.library_logits(adapter.collate([tokens]))[0].double()
        logp = logits[:, adapter.residue_ids].log_softmax(-1).numpy()
        own = [AMINO_ACIDS.index(letter) for letter in sequence]
        return sum(logp[tokens.residue_tokens[p] - 1, own[p]] for p in range(len(sequence)))

    for direction in ("n2c", "c2n"):
        window = whole(assay)
        found = sequence_scores(reader_of(adapter), window, direction, scorers=["ar"], embedded=[False] * 6).ar[-1]
        for variant, score in zip(assay.variants, found):
            expected = likelihood(mutated(assay, variant), direction) - likelihood(assay.sequence, direction)
            assert score == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("family", ["progen2", "progen3"])
def test_the_familys_own_score_at_the_last_layer_is_the_one_it_publishes(family):
    adapter = registry.build(family, {"n_blocks": 2, "d_model": 16, "n_heads": 8}, seed=1)
    assay = assay_of(n_residues=16, n_variants=5)
    window = whole(assay)
    found = sequence_scores(reader_of(adapter, 40), window, "n2c", scorers=["ar_parity"], embedded=[False] * 5)
    assert found.ar is None

    def own(sequence: str) -> float:
        batch = adapter.collate([adapter.encode(sequence, direction="n2c")])
        with torch.inference_mode():
            return float(adapter.log_likelihood(adapter.library_logits(batch), batch)[0])

    expected = [own(mutated(assay, variant)) - own(assay.sequence) for variant in assay.variants]
    np.testing.assert_allclose(found.parity[-1], expected, atol=1e-5)


def test_swapping_old_and_new_residues_flips_the_sign_on_the_same_pass():
    adapter, assay = toy(), assay_of(most=2)
    window = whole(assay)
    swapped = [Variant(v.number, v.positions, v.new, v.old) for v in window.variants]
    back = variants.replace(window, variants=tuple(swapped))
    for score in (wildtype_marginals, masked_marginals):
        np.testing.assert_array_equal(score(reader_of(adapter), window), -score(reader_of(adapter), back))


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_the_wild_type_scores_zero(kind):
    adapter = toy() if kind == "masked" else toy(variant="causal")
    assay = assay_of()
    same = tuple(Variant(v.number, v.positions, v.old, v.old) for v in assay.variants)
    window = whole(Assay("A", assay.sequence, same))
    reader = reader_of(adapter, 60)
    if kind == "masked":
        assert not wildtype_marginals(reader, window).any() and not masked_marginals(reader, window).any()
    direction = "none" if kind == "masked" else "c2n"
    scorers = ["emb_zs"] if kind == "masked" else ["ar", "emb_zs"]
    found = sequence_scores(reader, window, direction, scorers=scorers, embedded=[True] * len(same))
    np.testing.assert_allclose(found.zero_shot, 0, atol=1e-14)
    if kind == "causal":
        np.testing.assert_allclose(found.ar, 0, atol=1e-12)


def test_a_score_of_two_substitutions_without_attention_is_the_sum_of_both():
    from planted import without_attention

    adapter = without_attention(toy())
    sequence = "ACDEFGHIKL"
    single = [Variant(0, (2,), "D", "W"), Variant(1, (7,), "I", "P")]
    double = Variant(2, (2, 7), "DI", "WP")
    window = whole(Assay("A", sequence, (*single, double)))
    for score in (wildtype_marginals, masked_marginals):
        found = score(reader_of(adapter), window)
        np.testing.assert_allclose(found[:, 2], found[:, 0] + found[:, 1], atol=1e-12)


def test_saprot_hides_the_residue_and_keeps_its_state():
    adapter = registry.build("saprot", {"n_blocks": 2, "d_model": 16, "n_heads": 2}, seed=1)
    assay = assay_of(n_residues=10, n_variants=4)
    states = "dvpvlcd#qs"
    windows, _ = windows_of(assay, 1000, Structure(three_di=states))
    reader = reader_of(adapter, condition="seq_struct")
    masked = np.isin(np.arange(10), [2, 7])
    tokens = reader.encode(assay.sequence, windows[0], masked=masked, direction="none")
    shown = [adapter.alphabet.tokens[i] for i in tokens.ids[1:-1]]
    assert shown[2] == "#" + states[2] and shown[7] == "##" and shown[0] == assay.sequence[0] + states[0]
    alone = reader_of(adapter).encode(assay.sequence, whole(assay), masked=masked, direction="none")
    assert adapter.alphabet.tokens[alone.ids[3]] == "##"
    found = masked_marginals(reader, windows[0])
    assert np.abs(found - masked_marginals(reader_of(adapter), whole(assay))).max() > 1e-4


# ----------------------------------------------------------------------------------------------------------------
# Windows


@pytest.mark.parametrize("size", [8, 9, 20, 39])
def test_every_window_holds_its_variants_lies_in_the_protein_and_there_are_few(size):
    n = 40
    starts = set()
    for first in range(n):
        for last in range(first, min(first + size, n)):
            start = window_start(n, (first, last), size)
            assert 0 <= start <= first <= last < start + size <= n
            if first == last:
                starts.add(start)
    assert len(starts) <= (n - size) / (size // 4) + 2
    assert window_start(n, (0, size), size) is None
    assert window_start(size, (0, size - 1), size) == 0


def test_single_substitutions_stand_far_from_the_ends_of_their_window():
    n, size = 4000, 1000
    for position in range(n):
        start = window_start(n, (position,), size)
        inside = position - start
        assert inside >= size * 3 // 8 - 1 or start == 0
        assert size - inside >= size * 3 // 8 - 1 or start == n - size


def test_a_long_wild_type_is_scored_in_windows_and_what_fits_into_none_is_left_out_and_counted(caplog):
    adapter = toy()
    assay = assay_of(n_residues=40, n_variants=10, most=1)
    far = Variant(10, (0, 39), assay.sequence[0] + assay.sequence[39], "WW")
    assay = Assay("A", assay.sequence, (*assay.variants, far))
    windows, n_left_out = windows_of(assay, 12)
    assert n_left_out == 1 and len(windows) > 1
    scored, _ = score_assay(reader_of(adapter), windows, scorers=["wt", "mask", "emb_zs"], n_embedded=6)
    by_name = {one.scorer: one for one in scored}
    assert by_name["wt"].variants.tolist() == list(range(10))
    assert by_name["emb_zs"].variants.tolist() == list(range(6))
    for number, variant in enumerate(assay.variants[:10]):
        start = window_start(40, variant.positions, 12)
        piece = Assay("A", assay.sequence[start : start + 12],
                      (Variant(0, tuple(p - start for p in variant.positions), variant.old, variant.new),))  # fmt: skip
        np.testing.assert_allclose(by_name["mask"].scores[:, number], plain_marginals(adapter, piece, masks=True)[:, 0])
    np.testing.assert_allclose(by_name["mask"].noise, 1 / 12)


def test_a_window_shows_its_own_piece_of_the_structure():
    assay = assay_of(n_residues=40, n_variants=6, most=1)
    coordinates = np.arange(360, dtype=np.float32).reshape(40, 3, 3)
    structure = Structure(three_di="dvplqsac" * 5, codes=np.arange(40), coordinates=coordinates)
    for window in windows_of(assay, 12, structure)[0]:
        piece = slice(window.start, window.start + 12)
        assert window.sequence == assay.sequence[piece]
        assert window.structure.three_di == structure.three_di[piece]
        np.testing.assert_array_equal(window.structure.codes, np.arange(40)[piece])
        np.testing.assert_array_equal(window.structure.coordinates, coordinates[piece])
    assert windows_of(assay, 12)[0][0].structure is None


def test_the_model_reads_no_more_residues_than_it_was_made_for(tmp_path, caplog):
    adapter = toy()
    adapter.max_residues = 12
    with caplog.at_level(logging.INFO):
        run(adapter, [assay_of(n_residues=40, n_variants=5, most=1)], tmp_path)
    assert "windows of 12 residues: 5 variants of longer wild types read in a window, 0 left out" in caplog.text


# ----------------------------------------------------------------------------------------------------------------
# The stage


def run(adapter, assays, folder: Path, **options) -> tuple[pl.DataFrame, pl.DataFrame]:
    settings = {"model_id": "toy", "nulls": [TRAINED], "scorers": ["wt", "mask", "emb_zs", "emb_ridge"],
                "n_embedded": 5, "token_budget": 200, "log": LOG}  # fmt: skip
    if adapter.objective == "ar":
        settings["scorers"] = ["ar", "emb_zs", "emb_ridge"]
    paths = {"scores": folder / "scores.parquet", "gram": folder / "gram.parquet"}
    score_variants(adapter, assays, **paths, **(settings | options))
    read = [read_table(paths["scores"], FITNESS_VAR), read_table(paths["gram"], FITNESS_GRAM)]
    return tuple(pl.from_arrow(table).with_columns(pl.col(pl.Categorical).cast(pl.String)) for table in read)


@pytest.mark.parametrize("objective", ["mlm", "diffusion", "ar"])
def test_the_tables_hold_every_variant_layer_scorer_direction_and_network(tmp_path, objective):
    adapter = toy(variant="causal") if objective == "ar" else toy(objective=objective)
    assays = [assay_of(name="A"), assay_of(n_residues=9, n_variants=4, name="B")]
    nulls = [TRAINED, Null("randinit", 3)]
    scores, gram = run(adapter, assays, tmp_path, nulls=nulls)
    directions = ["n2c", "c2n"] if objective == "ar" else ["none"]
    expected = {
        (null.null_model, scorer, direction, assay.assay_id, variant.number)
        for null in nulls
        for scorer in (["ar", "emb_zs"] if objective == "ar" else ["wt", "mask", "emb_zs"])
        for direction in directions
        for assay in assays
        for variant in assay.variants
        if scorer != "emb_zs" or variant.number < 5
    }
    keys = ["null_model", "scorer", "direction", "assay_id", "variant"]
    assert len(scores) == len(expected) and set(scores.select(keys).rows()) == expected
    assert set(scores["scores"].list.len()) == {adapter.n_blocks + 1}
    assert set(scores["objective"]) == {objective} and set(scores["lens"]) == {"logit", "none"}
    noise = scores.filter(pl.col("scorer") == "mask")["noise_t"]
    if objective == "ar":
        assert scores["noise_t"].is_nan().all()
    else:
        shares = [len(v.positions) / len(a.sequence) for a in assays for v in a.variants]
        np.testing.assert_allclose(noise, shares * 2, rtol=1e-6)
    assert set(gram["variants"].list.len()) == {5, 4} and gram["layer"].unique().sort().to_list() == list(range(7))
    one = gram.filter((pl.col("assay_id") == "B") & (pl.col("layer") == 2) & (pl.col("direction") == directions[-1])
                      & (pl.col("null_model") == "trained"))  # fmt: skip
    wild = plain_mean(adapter, assays[1].sequence, directions[-1])[2]
    shift = np.stack([plain_mean(adapter, mutated(assays[1], v), directions[-1])[2] - wild for v in assays[1].variants])
    np.testing.assert_allclose(one["gram"][0].to_numpy(), (shift @ shift.T)[np.tril_indices(4)], rtol=1e-5, atol=1e-7)


def test_the_models_own_weights_are_back_after_a_null_model_and_nulls_differ(tmp_path):
    adapter = toy()
    before = [p.clone() for p in adapter.module.parameters()]
    scores, _ = run(adapter, [assay_of()], tmp_path, nulls=[TRAINED, Null("randinit", 5), Null("shuffle_w", 0)])
    assert all(torch.equal(a, b) for a, b in zip(before, adapter.module.parameters()))
    last = {name: own["scores"].list.last().to_numpy() for (name,), own in
            scores.filter(pl.col("scorer") == "mask").group_by("null_model", maintain_order=True)}  # fmt: skip
    assert np.abs(last["trained"] - last["randinit"]).max() > 0.1
    assert np.abs(last["trained"] - last["shuffle_w"]).max() > 0.1


def test_a_model_without_a_wanted_scorer_leaves_empty_tables_and_says_so(tmp_path, caplog):
    class Pieces(Toy):
        tokens_are_residues = False

    adapter = toy(variant="causal")
    pieces = Pieces(adapter.module, "ar")
    with caplog.at_level(logging.INFO):
        assert scorers_for(pieces, '["ar", "wt"]', LOG) == []
    assert "whose tokens are no residues) has no scorer ar, wt: left out" in caplog.text
    assert scorers_for(pieces, '["ar", "emb_zs"]') == ["emb_zs"]
    scores, gram = run(pieces, [assay_of()], tmp_path, scorers=[])
    assert len(scores) == len(gram) == 0


@pytest.mark.parametrize(
    ("objective", "kept"),
    [("mlm", ["wt", "mask", "emb_zs"]), ("diffusion", ["wt", "mask", "emb_zs"]), ("ar", ["ar", "emb_zs"])],
)
def test_the_objective_decides_which_scorers_a_model_has(objective, kept):
    adapter = toy(variant="causal") if objective == "ar" else toy(objective=objective)
    assert scorers_for(adapter, '["emb_zs", "ar", "mask", "wt", "ar_parity"]') == kept


@pytest.mark.parametrize("text", ["wt", "[]", '["likelihood"]', '["wt", "wt"]', "{}"])
def test_scorers_that_are_no_list_of_scorers_are_refused(text):
    with pytest.raises(VariantError, match="expected a JSON list of some of wt, mask, ar"):
        scorers_for(toy(), text)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_family_scores_what_it_can_by_this_contract_alone(tmp_path, family):
    adapter = registry.build(family, {"n_blocks": 2, "d_model": 32, "n_heads": 8}, seed=1)
    wanted = scorers_for(adapter, json.dumps(list(variants.SCORERS)))
    scores, gram = run(adapter, [assay_of(n_residues=20, n_variants=5)], tmp_path, scorers=wanted)
    has_residues = adapter.tokens_are_residues
    expected = {"ar": {"ar"} if has_residues else set()}.get(adapter.objective, {"wt", "mask"}) | {"emb_zs"}
    if type(adapter).log_likelihood is not Adapter.log_likelihood and has_residues:
        expected |= {"ar_parity"}
    assert set(scores["scorer"]) == expected
    assert set(scores["scores"].list.len()) == {adapter.n_blocks + 1}
    assert gram.height == (adapter.n_blocks + 1) * len(adapter.directions)


def test_a_score_that_is_not_finite_names_variant_and_layer_and_leaves_no_file(tmp_path):
    adapter = toy()
    adapter.module.blocks[3].mlp_out.bias[0] = math.nan
    with pytest.raises(
        VariantError, match=r"toy, trained, assay A: score wt of variant 0 is NaN or infinite at layer 4"
    ):
        run(adapter, [assay_of()], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_null_models_of_the_sequence_are_refused(tmp_path):
    with pytest.raises(VariantError, match="scored under trained, randinit, shuffle_w"):
        run(toy(), [assay_of()], tmp_path, nulls=[Null("shuffle_seq", 0)])


def test_what_it_costs_is_counted_before_it_runs():
    assay = assay_of()
    windows, _ = windows_of(assay, 1000)
    n_sets = len({variant.positions for variant in assay.variants})
    assert n_sets < len(assay.variants)
    options = {"n_embedded": 5, "n_directions": 1}
    found = passes_of(windows, scorers=["wt", "mask", "emb_zs"], **options)
    assert found == {"wild type": (1, 14), "masked": (n_sets, 14 * n_sets), "variants": (5, 70)}
    assert passes_of(windows, scorers=["ar", "emb_zs"], n_embedded=5, n_directions=2) == {"variants": (24, 24 * 14)}


def test_assays_without_a_structure_are_measured_under_seq_alone(tmp_path, caplog):
    adapter = registry.build("saprot", {"n_blocks": 1, "d_model": 16, "n_heads": 2}, seed=1)
    assays = [assay_of(name="A", n_residues=8, n_variants=3), assay_of(name="B", n_residues=8, n_variants=3)]
    structures = {"A": Structure(three_di="dvpvlcdq")}
    with caplog.at_level(logging.WARNING):
        scores, _ = run(adapter, assays, tmp_path, conditions=["seq", "seq_struct"], structures=structures)
    pairs = scores.select("condition", "assay_id").unique().sort("condition", "assay_id").rows()
    assert pairs == [("seq", "A"), ("seq", "B"), ("seq_struct", "A")]
    assert "condition seq_struct: 1 of 2 assays have no structure of their wild type and are left out" in caplog.text


def write_variants(path: Path, rows) -> Path:
    columns = {name: [row.get(name, default) for row in rows] for name, default in
               (("assay_id", "A"), ("uniprot_id", "P"), ("category", "c"), ("sequence", "ACDEF"), ("variant", 0),
                ("mutations", "A1C"), ("n_mutations", 1), ("score", 0.0))}  # fmt: skip
    write_table(columns, VARIANTS, path)
    return path


def test_variants_are_read_with_positions_from_zero(tmp_path):
    path = write_variants(tmp_path / "v.parquet", [{}, {"variant": 1, "mutations": "C2D:F5W"}])
    [assay] = read_assays(path)
    assert assay == Assay("A", "ACDEF", (Variant(0, (0,), "A", "C"), Variant(1, (1, 4), "CF", "DW")))
    bad = write_variants(tmp_path / "bad.parquet", [{"mutations": "C1D"}])
    with pytest.raises(TableError, match="A: C1D does not fit its wild type"):
        read_assays(bad)


def test_bad_options_end_in_one_message(tmp_path):
    with pytest.raises(SystemExit, match="--nulls: expected a JSON list"):
        variants.main(["--card", "x", "--variants", "x", "--nulls", "{", "--scorers", json.dumps(["wt"]),
                       "--scores", "x", "--gram", "x"])  # fmt: skip
