"""Summary statistics: laws of each statistic, planted profiles, and intervals recomputed resample by resample."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planted import toy, with_zero_block
from plm_depth.metrics.bootstrap import Bootstrap
from plm_depth.metrics.corpus import read_clusters
from plm_depth.metrics.summary import (
    GRID,
    ThresholdError,
    area,
    block_depths,
    cosine_depth,
    depth_score,
    first_depth,
    growth,
    kl_area,
    kl_depth,
    main,
    median_settling,
    on_depths,
    overlap_depth,
    state_depths,
    statistics_of,
    summary,
    sustained_depth,
)
from plm_depth.tables import CONTRIB_SEQ, TableError, read_table, write_table
from plm_depth.views import MEAN_OVER_NOISE
from unit.metrics.conftest import proteins

kl_values = st.one_of(st.just(0.0), st.floats(1e-6, 10))
block_profiles = st.lists(st.floats(0.01, 100), min_size=2, max_size=40).map(np.array)


# ------------------------------------------------------------------------------------------------- depth score


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 12, 33])
def test_depth_score_of_even_and_of_single_blocks(n_blocks):
    assert depth_score(np.ones(n_blocks)) == pytest.approx(0.5)
    for block in range(1, n_blocks + 1):
        only = np.zeros(n_blocks)
        only[block - 1] = 3.0
        assert depth_score(only) == pytest.approx((block - 0.5) / n_blocks)
    assert math.isnan(depth_score(np.zeros(n_blocks)))


@given(block_profiles, st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_depth_score_is_free_of_scale_and_converts_to_a_centre_of_mass(profile, factor):
    score = float(depth_score(profile))
    assert 0 < score < 1
    assert depth_score(profile * factor) == pytest.approx(score)
    from_zero = (np.arange(len(profile)) * profile).sum() / profile.sum()
    assert len(profile) * score - 0.5 == pytest.approx(from_zero, abs=1e-9)
    assert depth_score(profile[::-1]) == pytest.approx(1 - score)


# ------------------------------------------------------------------------------------------------- crossings


def test_a_crossing_counts_from_the_layer_after_which_nothing_rises_again():
    kl = np.array([4.0, 1.0, 3.0, 2.0, 0.1, 0.0])  # layers 0..5
    assert kl_depth(kl, fraction=0.5, reference="kl_0") == 3 / 5
    assert kl_depth(kl, fraction=0.5, reference="kl_0", sustained=False) == 1 / 5
    assert kl_depth(kl, fraction=0.1, reference="kl_0") == 4 / 5
    peak = np.array([4.0, 10.0, 5.5, 5.0, 0.1, 0.0])
    assert kl_depth(peak, fraction=0.5, reference="kl_0") == 4 / 5
    assert kl_depth(peak, fraction=0.5, reference="kl_max") == 3 / 5
    assert kl_depth(peak, fraction=0.5, reference="kl_max", sustained=False) == 0
    assert overlap_depth(np.array([0.4, 0.2, 0.3, 0.9, 1.0]), threshold=0.3) == 2 / 4
    never = np.array([[True, False], [False, False]])
    assert np.isnan(sustained_depth(never)).all() and first_depth(never)[0] == 0 and math.isnan(first_depth(never)[1])


@given(st.lists(kl_values, min_size=2, max_size=20), st.floats(0, 1), st.integers(-10, 10))
@settings(max_examples=80, deadline=None)
def test_kl_depth_is_free_of_scale_and_sustained_is_never_earlier(values, fraction, power):
    kl = np.array([*values, 0.0])
    for reference in ("kl_0", "kl_max"):
        sustained = kl_depth(kl, fraction=fraction, reference=reference)
        first = kl_depth(kl, fraction=fraction, reference=reference, sustained=False)
        assert 0 <= first <= sustained <= 1
    # A power of two: rounding must not move a value across its bound.
    assert kl_depth(kl * 2.0**power, fraction=0.5, reference="kl_0") == kl_depth(kl, fraction=0.5, reference="kl_0")


def test_undefined_profiles_have_undefined_depths():
    profile = np.array([[1.0, np.nan, 0.0], [1.0, 0.5, 0.0]])
    for statistic in (
        kl_depth(profile, fraction=0.5, reference="kl_0"),
        overlap_depth(1 - profile, threshold=0.3),
        cosine_depth(profile),
        median_settling(1 - profile),
        area(profile),
        growth(np.concatenate([profile, profile, profile], axis=1))[0],
    ):
        assert math.isnan(statistic[0])
    assert kl_depth(profile, fraction=0.5, reference="kl_0")[1] == 0.5


def test_cosine_depth_is_the_last_turn_to_positive():
    assert cosine_depth(np.array([-1.0, 0.5, -0.5, 0.0, 0.2])) == (4 - 0.5) / 5
    assert cosine_depth(np.array([-1.0, -0.5, -0.5, -0.1, 0.2])) == (5 - 0.5) / 5
    assert cosine_depth(np.array([-1.0, 1.0, -1.0])) == (2 - 0.5) / 3
    assert math.isnan(cosine_depth(np.array([1.0, 0.5, -0.5])))
    assert math.isnan(cosine_depth(np.array([1.0])))
    both = cosine_depth(np.array([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    assert both[0] == 0.5 and math.isnan(both[1])


def test_settling_is_the_layer_by_which_half_has_settled():
    assert median_settling(np.array([0.0, 0.2, 0.5, 0.9, 1.0])) == 2 / 4
    assert median_settling(np.array([0.0, 0.2, 0.49, 0.9, 1.0])) == 3 / 4
    assert median_settling(np.array([0.6, 0.7, 1.0])) == 0
    layers = np.array([0, 1, 1, 3, 4, 4, 4])
    shares = np.array([(layers <= layer).mean() for layer in range(5)])
    assert median_settling(shares) == np.median(layers) / 4


# ------------------------------------------------------------------------------------------------- areas


def test_areas_are_trapezoids_over_relative_depth():
    assert area(np.array([1.0, 1.0, 1.0])) == 1
    assert area(np.linspace(1, 0, 13)) == pytest.approx(0.5)
    assert area(np.array([0.0, 1.0, 0.0])) == 0.5
    assert kl_area(np.array([8.0, 4.0, 0.0])) == pytest.approx(0.5)
    assert math.isnan(kl_area(np.array([0.0, 4.0, 0.0])))
    x = np.random.default_rng(0).random((3, 7))
    np.testing.assert_allclose(area(x), np.trapezoid(x, state_depths(6), axis=-1))


# ------------------------------------------------------------------------------------------------- growth


def test_planted_growth_laws_are_found_and_told_apart():
    layers = np.arange(25)
    power = 3 * np.maximum(layers, 1) ** 1.7
    exponential = 0.2 * np.exp(0.13 * layers)
    beta, gamma, delta = growth(np.stack([power, exponential]))
    assert beta[0] == pytest.approx(1.7) and gamma[1] == pytest.approx(0.13)
    assert delta[0] < -100 and delta[1] > 100
    scaled = growth(np.stack([power, exponential]) * 49.0)
    np.testing.assert_allclose(scaled[0], beta, rtol=1e-12)
    np.testing.assert_allclose(scaled[1], gamma, rtol=1e-12)


def test_growth_is_a_least_squares_fit_of_layers_from_two_on():
    variance = np.exp(np.random.default_rng(0).standard_normal(13))
    variance[:2] = 1e9  # layers 0 and 1 do not count
    beta, gamma, delta = growth(variance)
    layers, y = np.arange(2, 13), np.log(variance[2:])
    by_law = {}
    for name, x in (("power", np.log(layers)), ("exponential", layers)):
        coefficients, residual = np.polyfit(x, y, 1, full=True)[:2]
        n, k = len(y), 3
        by_law[name] = coefficients[0], n * math.log(residual[0] / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    assert beta == pytest.approx(by_law["power"][0]) and gamma == pytest.approx(by_law["exponential"][0])
    assert delta == pytest.approx(by_law["power"][1] - by_law["exponential"][1])


def test_growth_needs_layers_and_a_variance():
    assert all(np.isnan(x) for x in growth(np.ones(4)))  # layers 2 and 3 only
    beta, gamma, delta = growth(np.array([1.0, 1, 1, 2, 3, 4]))
    assert beta > 0 and gamma > 0 and math.isnan(delta)  # four layers
    assert all(np.isnan(x) for x in growth(np.zeros(12)))
    assert growth(np.ones(12)) == (0, 0, 0)


# ------------------------------------------------------------------------------------------------- relative depth


@given(block_profiles)
@settings(max_examples=40, deadline=None)
def test_a_profile_at_its_own_depths_is_itself(profile):
    n = len(profile)
    np.testing.assert_array_equal(on_depths(profile, block_depths(n), block_depths(n)), profile)
    np.testing.assert_array_equal(on_depths(profile, state_depths(n - 1), state_depths(n - 1)), profile)


def test_interpolation_is_linear_and_stays_inside():
    depths = block_depths(4)
    found = on_depths(np.stack([depths, 2 * depths + 1]), depths)
    inside = (depths[0] <= GRID) & (depths[-1] >= GRID)
    np.testing.assert_allclose(found[0, inside], GRID[inside])
    np.testing.assert_allclose(found[1, inside], 2 * GRID[inside] + 1)
    assert np.isnan(found[:, ~inside]).all() and not inside.all()
    assert not np.isnan(on_depths(np.ones(5), state_depths(4))).any() and len(GRID) == 101
    single = on_depths(np.array([7.0]), block_depths(1))
    assert np.nansum(single) == 7 and single[50] == 7


# ------------------------------------------------------------------------------------------------- the table


@pytest.fixture
def summarised(measure, write_clusters, tmp_path):
    """Return a function from a toy to its measurements, clusters and summary."""

    def run(adapter, *, n=6, sample=None, thresholds=None, n_boot=40, **options):
        sample = proteins(n) if sample is None else sample
        measured = measure(adapter, sample, **options)
        clusters = write_clusters({s: f"C{i // 2}" for i, (s, _) in enumerate(sample)})
        path = tmp_path / "s.parquet"
        summary(
            [measured.contributions_path], [measured.lens_path], clusters, path, thresholds=thresholds, n_boot=n_boot
        )
        return measured, clusters, pl.read_parquet(path)

    return run


def only(rows, **where):
    for name, value in where.items():
        rows = rows.filter(pl.col(name).is_nan() if value != value else (pl.col(name) == value))
    assert rows.height == 1, rows
    return rows.row(0, named=True)


def per_protein(rows, quantity, **where):
    """Return {layer: {sequence_id: value}}, draws averaged."""
    rows = rows.filter(pl.col("quantity") == quantity)
    for name, value in where.items():
        rows = rows.filter((pl.col(name) - value).abs() < 1e-6 if isinstance(value, float) else pl.col(name) == value)
    own = (
        rows.with_columns(mean=pl.col("sum") / pl.col("n")).group_by("layer", "sequence_id").agg(pl.col("mean").mean())
    )
    out: dict[int, dict[str, float]] = {}
    for layer, sequence_id, mean in own.iter_rows():
        out.setdefault(layer, {})[sequence_id] = mean
    return out


def resampled_profile(values, bootstrap):
    """Return the profile in every resample, with plain loops, (n_boot, n_layers)."""
    layers = sorted(values)
    ids = bootstrap.sequence_ids.tolist()
    table = np.array([[values[layer][s] for s in ids] for layer in layers])
    out = []
    for weights in bootstrap.weights:
        of_protein = weights[bootstrap.cluster]
        out.append((table * of_protein).sum(1) / of_protein.sum())
    return table.mean(1), np.array(out)


def test_an_interval_is_that_of_the_statistic_of_every_resample(summarised):
    measured, clusters, found = summarised(toy())
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=40, seed=1)
    view = {"noise_t": 0.4}
    rel_u = per_protein(measured.contributions, "rel_u", pos_class="residue", **view)
    kl = per_protein(measured.lens, "kl_lf", vocab="aa20", **view)
    var = per_protein(measured.contributions, "var_h", pos_class="residue", **view)
    at = found.filter((pl.col("noise_t") - 0.4).abs() < 1e-6)
    halved = {"stat": "kl_depth", "profile": "kl_0", "param": 0.5}
    cases = [
        (rel_u, depth_score, {"stat": "depth_score", "profile": "rel_u"}),
        (kl, kl_area, {"stat": "kl_area"}),
        (kl, lambda x: kl_depth(x, fraction=0.5, reference="kl_0"), halved),
        (var, lambda x: growth(x)[0], {"stat": "growth_beta"}),
    ]
    for values, statistic, where in cases:
        point, resampled = resampled_profile(values, bootstrap)
        row = only(at, **where)
        assert row["value"] == pytest.approx(float(statistic(point)))
        lower, upper = np.percentile(statistic(resampled), [2.5, 97.5])
        assert (row["ci_lo"], row["ci_hi"]) == pytest.approx((lower, upper))
        assert (row["n_seq"], row["n_cluster"], row["n_boot"]) == (6, 3, 40)


def test_the_mean_over_noise_is_taken_within_each_protein_before_the_statistic(summarised):
    measured, clusters, found = summarised(toy(objective="diffusion"), n=4)
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=40, seed=1)
    levels = [per_protein(measured.lens, "kl_lf", vocab="aa20", noise_t=t) for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
    mean = {layer: {s: np.mean([level[layer][s] for level in levels]) for s in levels[0][layer]} for layer in levels[0]}
    point, resampled = resampled_profile(mean, bootstrap)
    row = only(found.filter(pl.col("noise_t") == MEAN_OVER_NOISE), stat="kl_area")
    lower, upper = np.percentile(kl_area(resampled), [2.5, 97.5])
    assert (row["value"], row["ci_lo"], row["ci_hi"]) == pytest.approx((float(kl_area(point)), lower, upper))


def test_every_view_and_null_model_has_every_statistic_once(summarised):
    _, _, found = summarised(toy(objective="diffusion"), n=2, thresholds={"kl_fraction": [0.5], "overlap": 0.2})
    names = {(s.stat, s.profile, str(s.param)) for s in statistics_of({"kl_fraction": [0.5], "overlap": 0.2})}
    for (noise_t,), rows in found.group_by("noise_t"):
        own = {
            (stat, profile, str(param)) for stat, profile, param in rows.select("stat", "profile", "param").iter_rows()
        }
        assert rows.height == len(own)
        if noise_t == 0:  # a lens on visible residues shows copying
            assert {stat for stat, _, _ in own} == {
                *("depth_score", "cosine_depth", "growth_beta", "growth_gamma", "growth_delta_aicc")
            }
        else:
            assert own == names
    assert MEAN_OVER_NOISE in found["noise_t"].to_list() and (found["mask_draw"] == -1).all()
    assert ("overlap_depth", "ov5_cc", "0.2") in names


def test_a_zero_block_costs_the_cosine_its_depth_and_nothing_else(summarised):
    _, _, found = summarised(with_zero_block(toy(), 3), n=2)
    undefined = found.filter(pl.col("value").is_nan())
    assert undefined["stat"].unique().to_list() == ["cosine_depth"] and (undefined["n_boot"] == 0).all()


def test_an_untrained_stack_already_looks_shallow(summarised):
    _, _, found = summarised(toy(n_blocks=24), n=2)
    scores = found.filter((pl.col("stat") == "depth_score") & (pl.col("profile") == "rel_u"))
    assert (scores["value"] < 0.45).all()


def test_thresholds_out_of_range_are_refused():
    for thresholds, message in (
        ({"kl": 0.5}, "expected an object with the keys"),
        ([0.5], "expected an object"),
        ({"kl_fraction": 0.5}, "list of fractions"),
        ({"kl_fraction": [1.5]}, "list of fractions"),
        ({"overlap": "high"}, "number from 0 to 1"),
        ({"overlap": True}, "number from 0 to 1"),
        ({"settle": [0.3]}, r"some of \[0\.1, 0\.5\]"),
    ):
        with pytest.raises(ThresholdError, match=message):
            statistics_of(thresholds)
    params = [s.param for s in statistics_of({}) if s.stat == "kl_depth" and s.profile == "kl_0"]
    assert params == [0.5, 0.1]


def test_a_profile_that_lacks_a_layer_is_refused(measure, write_clusters, tmp_path):
    sample = proteins(2)
    measured = measure(toy(), sample)
    rows = pl.from_arrow(read_table(measured.contributions_path, CONTRIB_SEQ)).filter(pl.col("layer") != 4)
    write_table(rows.to_arrow(), CONTRIB_SEQ, tmp_path / "holed.parquet")
    clusters = write_clusters({s: s for s, _ in sample})
    with pytest.raises(TableError, match=r"rel_u of toy \(trained\): layers \[1, 2, 3, 5, 6\]"):
        summary([tmp_path / "holed.parquet"], [measured.lens_path], clusters, tmp_path / "s.parquet", n_boot=5)
    assert not (tmp_path / "s.parquet").exists()


def test_the_stage_runs_from_its_command_line(measure, write_clusters, tmp_path, capsys):
    sample = proteins(2)
    measured = measure(toy(variant="causal"), sample)
    arguments = ["--contributions", str(measured.contributions_path), "--lens", str(measured.lens_path)]
    arguments += ["--clusters", str(write_clusters({s: s for s, _ in sample})), "--resamples", "10"]
    arguments += ["--output", str(tmp_path / "s.parquet")]
    main([*arguments, "--thresholds", '{"kl_fraction": [0.25]}'])
    found = pl.read_parquet(tmp_path / "s.parquet")
    assert found["direction"].unique().sort().to_list() == ["c2n", "n2c"] and found["noise_t"].is_nan().all()
    assert found.filter(pl.col("stat") == "kl_depth")["param"].unique().to_list() == [0.25]
    with pytest.raises(SystemExit, match=r"metrics\.summary: overlap is 3"):
        main([*arguments, "--thresholds", '{"overlap": 3}'])
    with pytest.raises(SystemExit):
        main([*arguments, "--thresholds", "{"])
    assert "is not JSON" in capsys.readouterr().err
