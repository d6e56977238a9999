"""Contributions: definitions against plain vector arithmetic, laws of the stream, counts, and sharding."""

import hashlib
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planted
from planted import moments_of, toy, walk
from plm_depth.metrics.contributions import (
    BLOCK_QUANTITIES,
    GEOMETRIC_QUANTITIES,
    STATE_QUANTITIES,
    MomentsError,
    Segments,
    block_quantities,
    contributions,
    main,
    merge,
    percentile_95,
    state_quantities,
    summarise,
)
from plm_depth.tables import MOMENT_KEYS, MOMENTS, TableError, VectorTable, VectorWriter
from plm_depth.views import View
from unit.metrics.conftest import proteins

SEQUENCE = "MKTAYIAKQRQISFVKSH"
EVERY_TOY = [
    {"variant": variant, "norm": norm}
    for variant in ("sequential", "parallel", "scaled", "causal")
    for norm in ("layer", "rms", "identity")
] + [{"geometric": True}, {"variant": "parallel", "objective": "ar"}]


def named(moments: np.ndarray) -> dict[str, np.ndarray]:
    """Return moments (n_tokens, len(MOMENTS)) by name."""
    return dict(zip(MOMENTS, np.asarray(moments, np.float64).T))


def one_protein(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return groups and residue flags of a single protein without specials."""
    return np.zeros(n, np.int64), np.ones(n, bool)


def moments_of_vectors(h0, a, m, *, parallel=False) -> dict[str, np.ndarray]:
    """Return the moments of a step h1 = h0 + a + m, vectors (n_tokens, d)."""
    h0, a, m = (np.asarray(x, np.float64) for x in (h0, a, m))
    u, middle = a + m, h0 if parallel else h0 + a
    h1 = h0 + u

    def dot(x, y):
        return (x * y).sum(-1)

    nan = np.full(len(h0), np.nan)
    return {
        **{"hh": dot(h1, h1), "sum_h": h1.sum(-1), "max_h2": (h1 * h1).max(-1)},
        **{"aa": dot(a, a), "mm": dot(m, m), "gg": nan, "uu": dot(u, u), "ha": dot(h0, a), "hu": dot(h0, u)},
        **{"am": dot(a, m), "mid_mid": dot(middle, middle), "mid_m": dot(middle, m), "mid_g": nan, "ga_ga": nan},
        "h_next": dot(h0, h1),
    }


# ----------------------------------------------------------------------------------------------------- definitions


def test_a_step_worked_out_by_hand():
    moments = moments_of_vectors([[3.0, 4.0]], [[0.0, 8.0]], [[-3.0, 0.0]])
    got = {k: v[0] for k, v in block_quantities(moments, np.array([25.0]), *one_protein(1)).items()}
    expected = {
        **{"norm_a": 8, "norm_m": 3, "norm_u": math.sqrt(73), "norm_hhat": math.sqrt(153)},
        **{"rel_a": 8 / 5, "rel_m": 3 / math.sqrt(153), "rel_u": math.sqrt(73) / 5},
        **{"cos_a": 32 / 40, "cos_m": -9 / (3 * math.sqrt(153)), "cos_u": 23 / (5 * math.sqrt(73))},
        **{"cos_io": 48 / (5 * 12), "cos_am": 0.0},
    }
    assert got == pytest.approx(expected)
    assert tuple(got) == tuple(expected)
    states = {k: v[0] for k, v in state_quantities(moments, *one_protein(1), d_model=2).items()}
    assert states == {"norm_h": 12.0, "var_h": 36.0, "massive": 1.0}  # h1 = (0, 12)


def test_the_mlp_of_a_parallel_block_is_compared_with_the_stream_that_enters():
    moments = moments_of_vectors([[3.0, 4.0]], [[0.0, 8.0]], [[-3.0, 0.0]], parallel=True)
    got = block_quantities(moments, np.array([25.0]), *one_protein(1))
    assert (got["norm_hhat"][0], got["rel_m"][0], got["cos_m"][0]) == pytest.approx((5.0, 3 / 5, -9 / 15))


@pytest.mark.parametrize("options", EVERY_TOY, ids=str)
def test_every_quantity_is_what_the_vectors_say(options):
    adapter = toy(**options)
    walked = walk(adapter, adapter.encode(SEQUENCE, direction=adapter.directions[0]))
    moments = moments_of(walked)
    group, is_residue = one_protein(walked.tokens.n_tokens)

    def length(x):
        return np.linalg.norm(x, axis=-1)

    def cosine(x, y):
        return (x * y).sum(-1) / (length(x) * length(y))

    for layer, h in enumerate(walked.streams):
        states = state_quantities(named(moments[layer]), group, is_residue, d_model=adapter.d_model)
        np.testing.assert_allclose(states["norm_h"], length(h), rtol=1e-12)
        np.testing.assert_allclose(states["var_h"], h.var(-1), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(states["massive"], (h**2).max(-1) / length(h) ** 2, rtol=1e-12)
        if not layer:
            continue
        before, step = walked.streams[layer - 1], walked.updates[layer - 1]
        a, m, mid = (x.numpy() for x in (step.attention, step.mlp, step.middle))
        g = None if step.geometric is None else step.geometric.numpy()
        u = a + m if g is None else a + g + m
        expected = {
            **{"norm_a": length(a), "norm_m": length(m), "norm_u": length(u), "norm_hhat": length(mid)},
            **{"rel_a": length(a) / length(before), "rel_u": length(u) / length(before)},
            **{"rel_m": length(m) / length(mid), "cos_a": cosine(a, before), "cos_m": cosine(m, mid)},
            **{"cos_u": cosine(u, before), "cos_io": cosine(before, h), "cos_am": cosine(a, m)},
        }
        if g is not None:
            expected |= {"norm_g": length(g), "rel_g": length(g) / length(before + a)}
        got = block_quantities(named(moments[layer]), moments[layer - 1][:, 0], group, is_residue)
        assert set(got) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-12, err_msg=f"{name} of block {layer}")


def test_the_quantities_of_a_geometric_branch_stand_only_where_there_is_one(measure):
    found = measure(toy(geometric=True)).contributions
    of_branch = found.filter(pl.col("quantity").is_in(GEOMETRIC_QUANTITIES))
    assert of_branch["layer"].unique().to_list() == [1]
    assert of_branch["n_nan"].sum() == 0 and of_branch["n"].min() > 0
    states = found.filter(pl.col("quantity").is_in(STATE_QUANTITIES))["layer"].unique().sort().to_list()
    blocks = found.filter(pl.col("quantity").is_in(BLOCK_QUANTITIES))["layer"].unique().sort().to_list()
    assert states == [0, 1, 2, 3, 4, 5, 6] and blocks == [1, 2, 3, 4, 5, 6]
    assert not measure(toy()).contributions["quantity"].is_in(GEOMETRIC_QUANTITIES).any()


# ------------------------------------------------------------------------------------------------- laws of the stream


@pytest.mark.parametrize(
    "options", [{}, {"variant": "parallel"}, {"variant": "scaled"}, {"variant": "causal"}, {"geometric": True}], ids=str
)
def test_a_zero_block_contributes_nothing_and_has_no_direction(measure, options):
    adapter = planted.with_zero_block(toy(**options), 1)
    found = measure(adapter).contributions.filter(pl.col("layer") == 1)
    by_quantity = {name[0]: rows for name, rows in found.group_by("quantity")}
    for name in ("norm_a", "norm_m", "norm_u", "rel_a", "rel_m", "rel_u"):
        rows = by_quantity[name]
        assert (rows["sum"] == 0).all() and (rows["max"] == 0).all() and (rows["n_nan"] == 0).all(), name
    for name in ("cos_a", "cos_m", "cos_u", "cos_am"):
        rows = by_quantity[name]
        assert (rows["n"] == 0).all() and rows["max"].is_nan().all() and rows["p95"].is_nan().all(), name
        assert (rows["argmax_pos"] == -1).all() and (rows["sum"] == 0).all()
        assert rows["n_nan"].sum() == by_quantity["norm_a"]["n"].sum()
    assert (by_quantity["cos_io"]["n_nan"] == 0).all()
    np.testing.assert_allclose(by_quantity["cos_io"]["sum"] / by_quantity["cos_io"]["n"], 1, atol=1e-12)


@pytest.mark.parametrize("options", EVERY_TOY, ids=str)
def test_lengths_obey_the_law_of_cosines_and_the_variance_its_definition(options):
    adapter = toy(**options)
    walked = walk(adapter, adapter.encode(SEQUENCE, direction=adapter.directions[0]))
    moments = moments_of(walked)
    group, is_residue = one_protein(walked.tokens.n_tokens)
    states = [state_quantities(named(m), group, is_residue, d_model=adapter.d_model) for m in moments]
    for layer in range(1, adapter.n_blocks + 1):
        block = block_quantities(named(moments[layer]), moments[layer - 1][:, 0], group, is_residue)
        before, after = states[layer - 1]["norm_h"], states[layer]["norm_h"]
        expected = before**2 + block["norm_u"] ** 2 + 2 * block["cos_u"] * block["norm_u"] * before
        np.testing.assert_allclose(after**2, expected, rtol=1e-12)
        mean = moments[layer][:, MOMENTS.index("sum_h")] / adapter.d_model
        np.testing.assert_allclose(
            adapter.d_model * states[layer]["var_h"], after**2 - adapter.d_model * mean**2, rtol=1e-10
        )


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_rescaled_stream_rescales_lengths_and_nothing_else(measure, norm):
    adapter = toy(norm=norm, geometric=True)
    plain, scaled = measure(adapter), measure(planted.rescaled(adapter, 7.3))
    for name in (*STATE_QUANTITIES, *BLOCK_QUANTITIES, *GEOMETRIC_QUANTITIES):
        factor = 7.3 if name.startswith("norm") else 7.3**2 if name == "var_h" else 1.0
        np.testing.assert_allclose(
            scaled.mean(name), factor * np.array(plain.mean(name)), rtol=1e-9, atol=1e-12, err_msg=name
        )


def test_a_rotated_basis_changes_no_length_ratio_or_cosine(measure):
    adapter = toy(norm="rms", geometric=True)
    plain, turned = measure(adapter), measure(planted.rotated(adapter))
    for name in ("norm_h", *BLOCK_QUANTITIES, *GEOMETRIC_QUANTITIES):
        np.testing.assert_allclose(turned.mean(name), plain.mean(name), rtol=1e-9, atol=1e-12, err_msg=name)
    assert np.abs(np.array(turned.mean("massive")) - plain.mean("massive")).max() > 0.01  # it depends on the basis


def test_in_an_untrained_stack_the_contribution_falls_on_its_own(measure):
    found = measure(toy(n_blocks=24), proteins(3)).mean("rel_u")
    assert found[0] > found[3] > found[11] > found[23]
    slope = np.polyfit(np.log(np.arange(1, 25)), np.log(found), 1)[0]
    assert -1.0 < slope < -0.4


@given(st.floats(1e-8, 1e8), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_scaling_all_vectors_scales_lengths_and_leaves_ratios(factor, seed):
    random = np.random.default_rng(seed)
    h, a, m = random.standard_normal((3, 5, 8))
    plain = block_quantities(moments_of_vectors(h, a, m), (h * h).sum(-1), *one_protein(5))
    h, a, m = factor * h, factor * a, factor * m
    scaled = block_quantities(moments_of_vectors(h, a, m), (h * h).sum(-1), *one_protein(5))
    for name, value in plain.items():
        expected = value * factor if name.startswith("norm") else value
        np.testing.assert_allclose(scaled[name], expected, rtol=1e-8, atol=1e-9)


# ------------------------------------------------------------------------------------------------- what is undefined


def test_a_vector_far_below_the_longest_residue_of_its_protein_has_no_ratio():
    h = np.array([[1.0, 0.0], [1e-6, 0.0], [2e-6, 0.0], [0.0, 0.0], [1e-3, 0.0]])
    a = np.ones((5, 2))
    moments = moments_of_vectors(h, a, np.zeros((5, 2)))
    before = (h * h).sum(-1)
    ratio = block_quantities(moments, before, np.zeros(5, np.int64), np.ones(5, bool))["rel_a"]
    assert np.isnan(ratio).tolist() == [False, True, False, True, False]
    # Another protein has its own longest residue.
    group, is_residue = np.array([0, 1, 1, 1, 1]), np.ones(5, bool)
    ratio = block_quantities(moments, before, group, is_residue)["rel_a"]
    assert np.isnan(ratio).tolist() == [False, False, False, True, False]


def test_a_long_special_does_not_make_the_residues_of_its_protein_undefined():
    h = np.array([[1.0, 0.0], [1e-3, 0.0], [1e4, 0.0]])  # the last one an attention sink
    moments = moments_of_vectors(h, np.ones((3, 2)), np.zeros((3, 2)))
    before, group = (h * h).sum(-1), np.zeros(3, np.int64)
    for is_residue, undefined in (([True, True, False], [False] * 3), ([True, True, True], [False, True, False])):
        ratio = block_quantities(moments, before, group, np.array(is_residue))["rel_a"]
        assert np.isnan(ratio).tolist() == undefined


def test_a_tiny_update_has_a_ratio_but_no_cosine():
    h, a = np.ones((2, 2)), np.array([[1.0, 0.0], [1e-7, 0.0]])
    got = block_quantities(moments_of_vectors(h, a, h), np.full(2, 2.0), *one_protein(2))
    assert np.isnan(got["cos_a"]).tolist() == [False, True]
    assert not np.isnan(got["rel_a"]).any() and got["rel_a"][1] == pytest.approx(1e-7 / math.sqrt(2))


def test_rounding_is_forgiven_and_nonsense_is_not():
    h = np.array([[1.0, 1.0]])
    moments = moments_of_vectors(h, 1e-3 * h, 1e-3 * h)
    moments["ha"] = moments["ha"] * (1 + 1e-6)
    moments["sum_h"] = moments["sum_h"] * (1 + 1e-6)
    assert block_quantities(moments, np.array([2.0]), *one_protein(1))["cos_a"][0] == 1.0
    assert state_quantities(moments, *one_protein(1), d_model=2)["var_h"][0] == 0.0
    with pytest.raises(MomentsError, match="cosine of ha"):
        block_quantities({**moments, "ha": moments["ha"] * 2}, np.array([2.0]), *one_protein(1))
    with pytest.raises(MomentsError, match="variance"):
        state_quantities({**moments, "sum_h": moments["sum_h"] * 2}, *one_protein(1), d_model=2)
    with pytest.raises(MomentsError, match="coordinate"):
        state_quantities({**moments, "max_h2": moments["hh"] * 2}, *one_protein(1), d_model=2)


def test_undefined_values_are_counted_and_left_out_of_the_sums(measure, tmp_path):
    paths = measure(toy()).moments
    table = VectorTable(paths[0], MOMENT_KEYS)
    vectors = np.stack([table.layer(layer) for layer in table.layers]).copy()
    keys = pl.from_arrow(table.keys()).with_columns(pl.col("sequence_id").cast(pl.String))
    is_first = (keys["sequence_id"] == "P001") & (keys["noise_t"] == 0) & (keys["position"] == 3)
    first = int(np.flatnonzero(is_first)[0])
    for name in ("hh", "sum_h", "max_h2"):  # a residue whose embedding is zero
        vectors[0, first, MOMENTS.index(name)] = 0
    for name in ("ha", "hu", "h_next"):
        vectors[1, first, MOMENTS.index(name)] = 0
    changed = tmp_path / "changed.parquet"
    with VectorWriter(changed, MOMENT_KEYS, table.layers, table.width, "float64", table.constants, MOMENTS) as writer:
        writer.append({name: table.keys().column(name) for name in MOMENT_KEYS.names}, vectors)
    contributions([changed], tmp_path / "out.parquet")
    plain, found = (pl.read_parquet(p) for p in (measure(toy()).contributions_path, tmp_path / "out.parquet"))
    where = (pl.col("sequence_id") == "P001") & (pl.col("noise_t") == 0) & (pl.col("pos_class") == "residue")
    for name in ("rel_a", "rel_u", "cos_a", "cos_u", "cos_io"):
        at = where & (pl.col("quantity") == name) & (pl.col("layer") == 1)
        before, after = plain.filter(at), found.filter(at)
        assert after["n_nan"].item() == 1 and after["n"].item() == before["n"].item() - 1
        assert after["sum"].item() != before["sum"].item()
    assert found["n_nan"].sum() == 2 * 6  # these and massive, in the classes residue and unmasked
    assert found.filter(where & (pl.col("quantity") == "norm_h") & (pl.col("layer") == 0))["n_nan"].item() == 0


# ------------------------------------------------------------------------------------------------- statistics


values_in_segments = st.lists(
    st.lists(
        st.one_of(st.floats(-1e6, 1e6, width=32), st.just(math.nan), st.sampled_from([0.0, 1.0])),
        min_size=1,
        max_size=30,
    ),
    min_size=1,
    max_size=6,
)


@given(values_in_segments)
@settings(max_examples=100, deadline=None)
def test_statistics_of_segments_are_those_of_each_part(parts):
    values = np.concatenate(parts).astype(np.float64)
    labels = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    position = np.concatenate([np.arange(len(p)) for p in parts]).astype(np.int32)
    segments = Segments.of(labels)
    found, p95 = summarise(values, segments, position), percentile_95(values, segments)
    for i, part in enumerate(parts):
        part = np.array(part, np.float64)
        defined = part[~np.isnan(part)]
        assert (found["n"][i], found["n_nan"][i]) == (len(defined), len(part) - len(defined))
        assert found["sum"][i] == pytest.approx(defined.sum(), rel=1e-12, abs=1e-6)
        assert found["sumsq"][i] == pytest.approx((defined**2).sum(), rel=1e-12, abs=1e-6)
        if len(defined):
            assert found["max"][i] == defined.max()
            assert found["argmax_pos"][i] == np.flatnonzero(part == defined.max())[0]
            assert p95[i] == pytest.approx(np.percentile(defined, 95), rel=1e-6, abs=1e-6)
        else:
            assert math.isnan(found["max"][i]) and found["argmax_pos"][i] == -1 and math.isnan(p95[i])


@given(values_in_segments, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_merging_two_parts_is_summing_up_their_union(parts, random):
    values = np.concatenate(parts).astype(np.float64)
    position = np.arange(len(values))
    is_first = np.array([random.random() < 0.5 for _ in values])
    whole = Segments.of(np.zeros(len(values), np.int64))

    def one(chosen):
        if not chosen.any():
            return {"n": np.zeros(1), "n_nan": np.zeros(1), "sum": np.zeros(1), "sumsq": np.zeros(1)} | {
                "max": np.array([np.nan]),
                "argmax_pos": np.array([-1]),
            }
        return summarise(values[chosen], Segments.of(np.zeros(int(chosen.sum()), np.int64)), position[chosen])

    merged, expected = merge(one(is_first), one(~is_first)), summarise(values, whole, position)
    for name, value in expected.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-12, atol=1e-6, err_msg=name)


def test_a_sample_grows_the_maximum_but_not_the_percentile():
    random = np.random.default_rng(0)
    small, large = (random.lognormal(size=(400, n)) for n in (10, 10_000))
    p95 = [percentile_95(x.ravel(), Segments.of(np.repeat(np.arange(400), x.shape[1]))).mean() for x in (small, large)]
    assert large.max(1).mean() > 5 * small.max(1).mean()
    assert 0.8 < p95[1] / p95[0] < 1.25


# ------------------------------------------------------------------------------------------------- the table


def test_classes_of_positions_add_up_and_specials_stay_apart(measure):
    sample = proteins(5)
    found = measure(toy(), sample).contributions.filter(pl.col("quantity") == "rel_u")
    lengths = dict((name, len(sequence)) for name, sequence in sample)
    keys = ["sequence_id", "noise_t", "mask_draw", "layer"]
    wide = {name[0]: rows.sort(keys) for name, rows in found.group_by("pos_class")}
    assert wide["residue"]["n"].to_list() == [lengths[s] for s in wide["residue"]["sequence_id"]]
    assert (wide["special"]["n"] == 2).all()
    noisy = {name: rows.filter(pl.col("noise_t") > 0) for name, rows in wide.items()}
    for column in ("n", "n_nan", "sum", "sumsq"):
        both = noisy["masked"][column] + noisy["unmasked"][column]
        np.testing.assert_allclose(noisy["residue"][column], both, rtol=1e-12)
    np.testing.assert_array_equal(noisy["residue"]["max"], np.maximum(noisy["masked"]["max"], noisy["unmasked"]["max"]))
    clean = {name: rows.filter(pl.col("noise_t") == 0) for name, rows in wide.items()}
    assert clean["masked"].is_empty()
    shared = ["n", "sum", "sumsq", "p95", "max", "argmax_pos"]
    assert clean["residue"].select(shared).equals(clean["unmasked"].select(shared))
    n_masked = noisy["masked"].with_columns(
        expected=(pl.col("noise_t") * pl.col("n_residues")).round(mode="half_to_even")
    )
    assert (n_masked["n"] == n_masked["expected"]).all()


def test_percentile_and_maximum_of_a_protein_with_masked_and_unmasked_residues(measure):
    sample = proteins(3)
    view = View("none", 0.4, 0)
    adapter = toy()
    measured = measure(adapter, sample, views=[view])
    found = measured.contributions
    table = VectorTable(measured.moments[0], MOMENT_KEYS)
    keys = pl.from_arrow(table.keys())
    lengths = np.sqrt(table.layer(3)[:, MOMENTS.index("uu")])
    for sequence_id, sequence in sample:
        at = (keys["sequence_id"] == sequence_id) & (keys["pos_class"] != "special")
        own, position = lengths[at.to_numpy()], keys["position"].to_numpy()[at.to_numpy()]
        row = found.filter(
            (pl.col("sequence_id") == sequence_id)
            & (pl.col("quantity") == "norm_u")
            & (pl.col("layer") == 3)
            & (pl.col("pos_class") == "residue")
        ).row(0, named=True)
        assert row["n"] == len(sequence) == len(own)
        assert row["p95"] == pytest.approx(np.percentile(own, 95), rel=1e-6)
        assert row["max"] == pytest.approx(own.max(), rel=1e-6)
        assert row["argmax_pos"] == position[own.argmax()]


def test_one_shard_and_seven_shuffled_ones_give_the_same_bytes(measure, tmp_path):
    sample = proteins(15)
    for adapter in (toy(), toy(variant="causal")):
        one = measure(adapter, sample, dtype="float32")
        shards = [[3, 11], [0, 14, 9], [7], [12, 1], [5, 2, 8], [13, 4], [10, 6]]
        seven = measure(adapter, sample, shards=shards, dtype="float32")
        again = tmp_path / "again.parquet"
        contributions(seven.moments[::-1], again)
        digests = {
            hashlib.sha256(p.read_bytes()).hexdigest() for p in (one.contributions_path, seven.contributions_path)
        }
        assert digests == {hashlib.sha256(again.read_bytes()).hexdigest()}


def test_the_order_of_rows_in_a_shard_does_not_matter(measure, tmp_path):
    measured = measure(toy(), proteins(3), dtype="float32")

    def shuffle(keys, vectors):
        order = np.random.default_rng(0).permutation(keys.height)
        return keys[order.tolist()], vectors[:, order]

    shuffled = rewritten(measured.moments[0], tmp_path / "shuffled.parquet", change=shuffle)
    contributions([shuffled], tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == measured.contributions_path.read_bytes()


def test_null_models_and_seeds_stand_side_by_side(measure, tmp_path):
    adapter = toy()
    first, second = (measure(adapter, null_model="randinit", null_seed=seed) for seed in (0, 1))
    both = tmp_path / "both.parquet"
    n_rows = contributions([*second.moments, *first.moments], both)
    found = pl.read_parquet(both)
    assert n_rows == found.height == 2 * first.contributions.height
    assert found["null_seed"].unique().sort().to_list() == [0, 1]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float16", 2e-2)])
def test_moments_kept_in_few_digits_give_the_numbers_to_as_many(measure, dtype, tolerance):
    adapter = toy()
    exact, rounded = measure(adapter), measure(adapter, dtype=dtype)
    for name in (*STATE_QUANTITIES, *BLOCK_QUANTITIES):
        np.testing.assert_allclose(rounded.mean(name), exact.mean(name), rtol=tolerance, atol=tolerance, err_msg=name)


# ------------------------------------------------------------------------------------------------- what is refused


def rewritten(path, target, *, change=lambda keys, vectors: (keys, vectors), constants=None, names=MOMENTS):
    """Write a changed copy of a moments table."""
    table = VectorTable(path, MOMENT_KEYS)
    vectors = np.stack([table.layer(layer) for layer in table.layers]).copy()
    keys = pl.from_arrow(table.keys()).with_columns(pl.col(pl.Categorical).cast(pl.String))
    keys, vectors = change(keys, vectors)
    about = {**table.constants, **(constants or {})}
    with VectorWriter(target, MOMENT_KEYS, table.layers, table.width, "float64", about, names) as writer:
        writer.append({name: keys[name].to_arrow() for name in MOMENT_KEYS.names}, vectors)
    return target


def test_a_protein_in_two_shards_is_refused(measure, tmp_path):
    shards = measure(toy(), proteins(3), shards=[[0, 1], [2]]).moments
    with pytest.raises(TableError, match=r"P002 .* more than one shard"):
        contributions([*shards, rewritten(shards[1], tmp_path / "copy.parquet")], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_shards_of_different_models_or_settings_are_refused(measure, tmp_path):
    shards = measure(toy(), proteins(2), shards=[[0], [1]]).moments
    for constants, what in (
        ({"model_id": "other"}, "model_id"),
        ({"seed": 7}, "seed"),
        ({"dtype": "bfloat16"}, "dtype"),
    ):
        other = rewritten(shards[1], tmp_path / "other.parquet", constants=constants)
        with pytest.raises(TableError, match=f"{what} is "):
            contributions([shards[0], other], tmp_path / "out.parquet")


def test_damaged_moments_are_refused(measure, tmp_path):
    path = measure(toy(), proteins(2)).moments[0]

    def nan(keys, vectors):
        vectors[2, 5, MOMENTS.index("aa")] = np.nan
        return keys, vectors

    def missing(keys, vectors):
        keep = np.flatnonzero(np.arange(vectors.shape[1]) != 4)
        return keys[keep.tolist()], vectors[:, keep]

    def twice(keys, vectors):
        order = [*range(vectors.shape[1]), 4]
        return keys[order], vectors[:, order]

    def impossible(keys, vectors):
        vectors[1, :, MOMENTS.index("hu")] *= 100
        return keys, vectors

    def unknown_class(keys, vectors):
        return keys.with_columns(pos_class=pl.lit("hidden")), vectors

    def two_lengths(keys, vectors):
        is_last = np.arange(keys.height) >= keys.height - 5
        return keys.with_columns(n_residues=pl.col("n_residues") + pl.Series(is_last).cast(pl.Int32)), vectors

    cases = {
        "aa is NaN at 1 of": nan,
        "expected 18|incomplete": missing,
        "position 4 stands twice": twice,
        "cosine of hu": impossible,
        "pos_class": unknown_class,
        "residues": two_lengths,
    }
    for message, change in cases.items():
        broken = rewritten(path, tmp_path / "broken.parquet", change=change)
        with pytest.raises(TableError, match=message):
            contributions([broken], tmp_path / "out.parquet")
    with pytest.raises(TableError, match="expected the moments"):
        contributions([rewritten(path, tmp_path / "n.parquet", names=MOMENTS[::-1])], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_the_stage_ends_a_foreseeable_failure_with_one_message(measure, tmp_path):
    path = measure(toy(), proteins(2)).moments[0]
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=r"cut\.parquet"):
        main(["--moments", str(cut), "--output", str(tmp_path / "out.parquet")])
    assert [p.name for p in tmp_path.glob("out*")] == []
    main(["--moments", str(path), "--output", str(tmp_path / "out.parquet")])
    assert pl.read_parquet(tmp_path / "out.parquet").height > 0
