"""Logit lens: definitions against plain arithmetic, planted models, ties, counts, and sharding."""

import hashlib
import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import planted
from planted import toy
from plm_depth.metrics.lens import (
    LAYER_QUANTITIES,
    SETTLE_QUANTITIES,
    SETTLED,
    LensError,
    Settling,
    _divergence,
    layer_quantities,
    lens,
    main,
    read_out,
    summarise,
    top,
)
from plm_depth.tables import AMINO_ACIDS, LENS_KEYS, TableError, VectorTable, VectorWriter
from plm_depth.views import View, views_of
from unit.metrics.conftest import INPUTS, proteins

DIVERGENCES = ("kl_lf", "kl_fl", "js")


def compare(layer: np.ndarray, final: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """Return the quantities of logits (n_tokens, n_positions)."""
    return layer_quantities(read_out(layer), read_out(final), true)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max())
    return p / p.sum()


def plainly(layer: np.ndarray, final: np.ndarray, true: int) -> dict[str, float]:
    """Return the quantities of one position, written down as the definitions read."""
    p, q = softmax(layer), softmax(final)
    m = (p + q) / 2
    order_p, order_q = (sorted(range(len(x)), key=lambda i: (-x[i], i)) for x in (layer, final))
    rank = order_p.index(true) + 1
    return {
        "kl_lf": sum(p * np.log(p / q)),
        "kl_fl": sum(q * np.log(q / p)),
        "js": (sum(p * np.log(p / m)) + sum(q * np.log(q / m))) / 2,
        "ov1": float(order_p[0] == order_q[0]),
        "ov5": len(set(order_p[:5]) & set(order_q[:5])) / 5,
        "entropy": -sum(p * np.log(p)),
        "p_true": p[true],
        "rank_true": float(rank),
        "acc1": float(rank == 1),
        "nll": -math.log(p[true]),
    }


# ----------------------------------------------------------------------------------------------------- definitions


def test_two_distributions_worked_out_by_hand():
    layer, final = np.log([[0.5], [0.25], [0.25]]), np.log([[0.25], [0.25], [0.5]])
    got = {name: value[0] for name, value in compare(layer, final, np.array([1])).items()}
    assert got["kl_lf"] == pytest.approx(0.25 * math.log(2)) == got["kl_fl"]
    assert got["js"] == pytest.approx(0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3))
    assert got["entropy"] == pytest.approx(1.5 * math.log(2))
    assert (got["p_true"], got["nll"]) == pytest.approx((0.25, 2 * math.log(2)))
    assert (got["ov1"], got["acc1"], got["rank_true"]) == (0.0, 0.0, 2.0)  # tied with index 2, the lower index first
    assert got["ov5"] == 3 / 3  # fewer than five tokens: all of them


@given(st.integers(0, 2**31), st.integers(5, 33), st.sampled_from([0.1, 1.0, 30.0]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_quantity_is_what_its_definition_says(seed, n_tokens, spread, has_ties):
    random = np.random.default_rng(seed)
    layer, final = random.standard_normal((2, n_tokens, 7)) * spread
    if has_ties:
        layer, final = np.round(layer), np.round(final)
    true = random.integers(0, n_tokens, 7)
    found = compare(layer, final, true)
    for position in range(7):
        expected = plainly(layer[:, position], final[:, position], true[position])
        for name, value in expected.items():
            assert found[name][position] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@given(st.integers(0, 2**31), st.floats(-1000, 1000))
@settings(max_examples=40, deadline=None)
def test_a_constant_added_to_all_logits_changes_nothing(seed, constant):
    random = np.random.default_rng(seed)
    layer, final = random.standard_normal((2, 20, 5))
    true = random.integers(0, 20, 5)
    plain, shifted = compare(layer, final, true), compare(layer + constant, final - constant, true)
    for name, value in plain.items():
        np.testing.assert_allclose(shifted[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@given(st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_vocabulary_does_not_matter(seed):
    random = np.random.default_rng(seed)
    layer, final = random.standard_normal((2, 20, 5))
    true, order = random.integers(0, 20, 5), random.permutation(20)
    plain, permuted = compare(layer, final, true), compare(layer[order], final[order], np.argsort(order)[true])
    for name, value in plain.items():
        np.testing.assert_allclose(permuted[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_the_divergence_of_all_tokens_is_that_of_the_parts_of_the_vocabulary():
    random = np.random.default_rng(0)
    layer, final = random.standard_normal((2, 33, 50)) * 2
    residues, others = np.arange(4, 24), np.r_[0:4, 24:33]
    true = np.zeros(50, np.int64)
    full = compare(layer, final, true)["kl_lf"]
    of_residues, of_others = (compare(layer[rows], final[rows], true)["kl_lf"] for rows in (residues, others))
    p, q = read_out(layer).p, read_out(final).p
    share_p, share_q = p[residues].sum(0), q[residues].sum(0)
    buckets = share_p * np.log(share_p / share_q) + (1 - share_p) * np.log((1 - share_p) / (1 - share_q))
    np.testing.assert_allclose(full, buckets + share_p * of_residues + (1 - share_p) * of_others, rtol=1e-12)


def test_divergences_stay_finite_and_bounded_for_logits_far_apart():
    layer, final = np.zeros((20, 2)), np.zeros((20, 2))
    layer[0], final[1] = 2000.0, 2000.0  # probabilities of all but one token underflow to zero
    found = compare(layer, final, np.array([0, 1]))
    assert all(np.isfinite(value).all() for value in found.values())
    np.testing.assert_allclose(found["js"], math.log(2), rtol=1e-12)
    np.testing.assert_allclose(found["kl_lf"], 2000, rtol=1e-12)
    np.testing.assert_allclose(found["nll"], [0, 2000])


def test_rounding_below_zero_becomes_zero_and_anything_lower_is_an_error():
    assert _divergence(np.array([-1e-6, -1e-12, 0.5]), "KL").tolist() == [0, 0, 0.5]
    with pytest.raises(LensError, match=r"KL is -1\.1e-06"):
        _divergence(np.array([-1.1e-6]), "KL")


def test_the_largest_tokens_are_chosen_with_ties_to_the_lower_index():
    logits = np.array([[1.0, 0, 0], [1, 5, 0], [1, 0, 0], [2, 0, 0], [1, 0, 0], [1, 0, 9], [0, 0, 0]])
    assert np.flatnonzero(top(logits, 3)[:, 0]).tolist() == [0, 1, 3]
    assert np.flatnonzero(top(logits, 3)[:, 1]).tolist() == [0, 1, 2]
    assert np.flatnonzero(top(logits, 3)[:, 2]).tolist() == [0, 1, 5]
    assert top(logits, 7).all()


def test_overlap_by_chance_is_a_quarter():
    layer, final = np.random.default_rng(0).standard_normal((2, 20, 40_000))
    assert compare(layer, final, np.zeros(40_000, np.int64))["ov5"].mean() == pytest.approx(0.25, abs=0.004)


def test_settling_is_the_layer_from_which_on_the_bound_holds():
    kl = np.array([[9, 0.05, 0.4, 0.05, 0.0], [0.01, 0.01, 0.01, 0.01, 0.0], [9, 9, 9, 0.6, 0.0]]).T  # layers 0..4
    ov1 = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [0, 0, 0, 0, 1]]).T
    settling = Settling(3, 4)
    settled = {layer: settling.feed(layer, kl[layer], ov1[layer]).copy() for layer in range(4, -1, -1)}
    assert dict(zip(SETTLED, settling.first.tolist())) == {
        "settled_0.1": [3, 0, 4],
        "settled_0.5": [1, 0, 4],
        "settled_top1": [0, 2, 4],
    }
    for layer, flags in settled.items():
        assert (flags == (settling.first <= layer)).all()


# ------------------------------------------------------------------------------------------------- planted models


@pytest.mark.parametrize(
    "options", [{}, {"variant": "parallel"}, {"variant": "causal"}, {"objective": "diffusion"}], ids=str
)
def test_the_last_layer_is_its_own_final_answer(measure, options):
    found = measure(toy(**options)).lens
    last = found.filter(pl.col("layer") == 6)
    for name in ("kl_lf", "kl_fl"):
        assert (last.filter(pl.col("quantity") == name)["max"] == 0).all()
    assert last.filter(pl.col("quantity") == "js")["max"].max() < 1e-12
    for name in ("ov1", "ov5", *SETTLED):
        rows = last.filter(pl.col("quantity") == name)
        assert (rows["sum"] == rows["n"]).all()
    settle = found.filter(pl.col("quantity").is_in(SETTLE_QUANTITIES))
    assert settle["layer"].unique().to_list() == [-1] and settle["max"].max() <= 6
    assert set(found["quantity"].unique()) == {*LAYER_QUANTITIES, *SETTLE_QUANTITIES}
    assert (found["n_nan"] == 0).all() and (found["sum"] >= 0).all()


def test_a_zero_block_leaves_the_lens_where_it_was(measure):
    found = measure(planted.with_zero_block(toy(), 4)).lens.sort(
        "sequence_id", "noise_t", "mask_draw", "vocab", "quantity"
    )
    before, after = (found.filter(pl.col("layer") == layer).drop("layer") for layer in (3, 4))
    assert before.height and before.equals(after)
    assert not found.filter(pl.col("layer") == 2).drop("layer").equals(before)


@pytest.mark.parametrize("objective", ["mlm", "ar"])
def test_nll_of_the_last_layer_is_the_loss_of_the_model(measure, objective):
    adapter = toy(objective=objective)
    sample = proteins(3)
    found = measure(adapter, sample).lens.filter((pl.col("layer") == 6) & (pl.col("quantity") == "nll"))
    for view in views_of(objective, INPUTS):
        for sequence_id, sequence in sample:
            masked = planted.mask_of(view, len(sequence), 0, sequence_id)
            tokens = adapter.encode(sequence, masked=masked if masked.any() else None, direction=view.direction)
            logits = adapter.library_logits(adapter.collate([tokens]))[0]
            read = [p for p in range(len(sequence)) if masked[p] or not masked.any()]
            if objective == "ar":  # the first residue in reading order has no residue before it
                read = read[1:] if view.direction == "n2c" else read[:-1]
                logits = torch.cat([logits[:1], logits[:-1]])  # the token before predicts
                logits = logits[:, [i for i in range(logits.shape[1]) if i != planted.MASK]]
            own = [adapter.residue_ids[AMINO_ACIDS.index(sequence[p])] for p in read]
            for vocab, columns in (("full", None), ("aa20", adapter.residue_ids)):
                at, target = logits[tokens.residue_tokens[read]], torch.tensor(own)
                if objective == "ar":
                    columns, target = None if columns is None else columns - 1, target - 1
                if columns is not None:
                    at, target = at[:, columns], torch.tensor([AMINO_ACIDS.index(sequence[p]) for p in read])
                row = found.filter(
                    (pl.col("sequence_id") == sequence_id)
                    & (pl.col("vocab") == vocab)
                    & (pl.col("direction") == view.direction)
                    & ((pl.col("noise_t") - view.noise_t).abs() < 1e-6 if objective != "ar" else pl.lit(True))
                    & (pl.col("mask_draw") == view.mask_draw)
                ).row(0, named=True)
                assert row["n"] == len(read)
                expected = torch.nn.functional.cross_entropy(at, target, reduction="sum")
                assert row["sum"] == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    "change", [lambda a: planted.rescaled(a, 7.3), planted.rotated], ids=["rescaled stream", "rotated basis"]
)
def test_a_change_of_the_stream_that_readers_cannot_see_changes_no_number(measure, change):
    adapter = toy(norm="rms")
    plain, changed = measure(adapter), measure(change(adapter))
    for name in (*LAYER_QUANTITIES, *SETTLE_QUANTITIES):
        np.testing.assert_allclose(changed.lens_mean(name), plain.lens_mean(name), rtol=1e-8, atol=1e-9, err_msg=name)


def test_a_model_that_knows_nothing_of_the_residue_is_at_chance(measure):
    adapter = toy()
    torch.nn.init.zeros_(adapter.module.head_out.weight)
    torch.nn.init.zeros_(adapter.module.head_out.bias)
    found = measure(adapter)
    np.testing.assert_allclose(found.lens_mean("entropy"), math.log(20))
    np.testing.assert_allclose(found.lens_mean("entropy", vocab="full"), math.log(24))
    np.testing.assert_allclose(found.lens_mean("kl_lf"), 0, atol=1e-12)
    np.testing.assert_allclose(found.lens_mean("settle_0.1"), 0)


# ------------------------------------------------------------------------------------------------- the table


def test_clean_inputs_are_a_control_of_copying(measure):
    sample = proteins(3)
    found = measure(toy(), sample).lens
    counts = (
        found.filter(pl.col("quantity") == "nll").group_by("lens", "noise_t").agg(pl.col("n").sum()).sort("noise_t")
    )
    clean = counts.filter(pl.col("noise_t") == 0)
    assert clean["lens"].to_list() == ["copy"] and found.filter(pl.col("noise_t") > 0)["lens"].unique().to_list() == [
        "logit"
    ]
    assert clean["n"].item() == 2 * 7 * sum(len(sequence) for _, sequence in sample)  # two vocabularies, seven layers
    assert measure(toy(variant="causal")).lens["lens"].unique().to_list() == ["logit"]


def test_ranks_are_counted_once_per_position(measure):
    found = measure(toy()).lens
    ranks = found.filter(pl.col("quantity") == "rank_true")
    small, full = (ranks.filter(pl.col("vocab") == name) for name in ("aa20", "full"))
    histogram = np.array(small["rank_hist"].to_list())
    assert (histogram.sum(1) == small["n"].to_numpy()).all()
    np.testing.assert_allclose(histogram @ np.arange(1, 21), small["sum"])
    np.testing.assert_allclose(histogram @ np.arange(1, 21) ** 2, small["sumsq"])
    # Of all 24 tokens a residue may be worse than the 20th; these positions are in n only.
    assert (np.array(full["rank_hist"].to_list()).sum(1) <= full["n"].to_numpy()).all()
    others = found.filter(pl.col("quantity") != "rank_true")
    assert not np.array(others["rank_hist"].to_list()).any()
    first = found.filter((pl.col("quantity") == "acc1") & (pl.col("vocab") == "aa20"))
    keys = ["sequence_id", "noise_t", "mask_draw", "layer"]
    assert first.sort(keys)["sum"].to_list() == small.sort(keys)["rank_hist"].arr.first().to_list()


def test_the_share_of_settled_positions_is_the_distribution_of_the_settling_layer(measure):
    found = measure(toy(), proteins(3), views=[View("none", 0.4, 0)])
    for name in ("0.1", "0.5", "top1"):
        shares = found.lens_mean(f"settled_{name}")
        assert shares == sorted(shares) and shares[-1] == 1
        # The mean of a whole number from 0 to n is the sum over its layers of the share that is above.
        assert found.lens_mean(f"settle_{name}")[0] == pytest.approx(sum(1 - share for share in shares[:-1]))


def test_tokens_without_a_real_meaning_never_enter(measure):
    adapter = toy(variant="causal")
    found = measure(adapter)
    assert VectorTable(found.logits[0], LENS_KEYS).width == 23  # the row of the absent mask token is not real
    before = found.lens_mean("nll", vocab="full")
    adapter.module.head_out.bias[planted.MASK] = 100.0
    assert measure(adapter).lens_mean("nll", vocab="full") == before


def test_one_shard_and_seven_shuffled_ones_give_the_same_bytes(measure, tmp_path):
    sample = proteins(15)
    for adapter in (toy(), toy(variant="causal")):
        one = measure(adapter, sample, dtype="float32")
        shards = [[3, 11], [0, 14, 9], [7], [12, 1], [5, 2, 8], [13, 4], [10, 6]]
        seven = measure(adapter, sample, shards=shards, dtype="float32")
        lens(seven.logits[::-1], tmp_path / "again.parquet")
        tables = (one.lens_path, seven.lens_path, tmp_path / "again.parquet")
        assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in tables}) == 1


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float16", 5e-3)])
def test_logits_kept_in_few_digits_give_the_numbers_to_as_many(measure, dtype, tolerance):
    adapter = toy()
    exact, rounded = measure(adapter), measure(adapter, dtype=dtype)
    for name in (*DIVERGENCES, "entropy", "nll", "p_true"):
        np.testing.assert_allclose(
            rounded.lens_mean(name), exact.lens_mean(name), rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_statistics_of_stretches():
    values = np.array([[1.0, 2, 3, 4, 5], [0, 0, 1, -1, -2]])
    found = summarise(values, np.array([0, 2]))
    assert found["n"].tolist() == [[2, 3], [2, 3]]
    assert found["sum"].tolist() == [[3, 12], [0, -2]] and found["sumsq"].tolist() == [[5, 50], [0, 6]]
    assert found["max"].tolist() == [[2, 5], [0, 1]]


def test_proteins_of_one_residue_and_empty_shards_are_measured(measure):
    sample = [("P", "A"), ("Q", "AC")]
    views = [View("none", 1.0, 0), View("none", 0.0, -1)]
    found = measure(toy(), sample, views=views, shards=[[], [0, 1]])
    fully = found.contributions.filter((pl.col("noise_t") == 1) & (pl.col("quantity") == "rel_u"))
    assert fully["pos_class"].unique().sort().to_list() == ["masked", "residue", "special"]
    assert found.lens.filter((pl.col("quantity") == "nll") & (pl.col("sequence_id") == "P"))[
        "n"
    ].unique().to_list() == [1]
    # Nothing is read of a protein of one residue from left to right: no residue stands before its first one.
    reading = measure(toy(variant="causal"), sample).lens
    assert reading["sequence_id"].unique().to_list() == ["Q"]


# ------------------------------------------------------------------------------------------------- what is refused


def rewritten(path, target, *, change=lambda keys, logits: (keys, logits), constants=None):
    """Write a changed copy of a lens table."""
    table = VectorTable(path, LENS_KEYS)
    logits = np.stack([table.layer(layer) for layer in table.layers]).copy()
    keys = pl.from_arrow(table.keys()).with_columns(pl.col(pl.Categorical).cast(pl.String))
    keys, logits = change(keys, logits)
    about = {**table.constants, **(constants or {})}
    with VectorWriter(target, LENS_KEYS, table.layers, table.width, "float64", about, table.names) as writer:
        writer.append({name: keys[name].to_arrow() for name in LENS_KEYS.names}, logits)
    return target


def test_damaged_logits_are_refused(measure, tmp_path):
    path = measure(toy(), proteins(2)).logits[0]

    def nan(keys, logits):
        logits[3, 1, 2] = np.nan
        return keys, logits

    def wrong_residue(keys, logits):
        return keys.with_columns(true_aa=pl.lit(20, pl.Int16)), logits

    def visible(keys, logits):
        return keys.with_columns(is_masked=pl.lit(False)), logits

    def twice(keys, logits):
        order = [*range(keys.height), 0]
        return keys[order], logits[:, order]

    def same(keys, logits):
        return keys, logits

    cases = {
        "layer 3 are not finite": (nan, {}),
        r"true_aa from 20 to 20, expected 0\.\.19": (wrong_residue, {}),
        "is visible at noise level": (visible, {}),
        "stands twice": (twice, {}),
        "expected one column": (same, {"amino_acid_columns": None}),
        "expected one column for": (
            lambda keys, logits: (keys, logits),
            {"amino_acid_columns": list("ACDEFGHIKLMNPQRSTVWX")},
        ),
        r"layers .* expected": (same, {"n_blocks": 9}),
    }
    for message, (change, constants) in cases.items():
        broken = rewritten(path, tmp_path / "broken.parquet", change=change, constants=constants)
        with pytest.raises(TableError, match=message):
            lens([broken], tmp_path / "out.parquet")
    with pytest.raises(TableError, match="more than one shard"):
        lens([path, rewritten(path, tmp_path / "copy.parquet")], tmp_path / "out.parquet")
    with pytest.raises(TableError, match="no vector table"):
        lens([], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_the_stage_ends_a_foreseeable_failure_with_one_message(measure, tmp_path):
    path = measure(toy(), proteins(2)).logits[0]
    with pytest.raises(SystemExit, match=r"absent\.parquet"):
        main(["--logits", str(tmp_path / "absent.parquet"), "--output", str(tmp_path / "out.parquet")])
    assert not list(tmp_path.glob("out*"))
    main(["--logits", str(path), "--output", str(tmp_path / "out.parquet")])
    assert pl.read_parquet(tmp_path / "out.parquet").height > 0
