"""Profiles: the order of averaging worked out by hand, intervals, noise grids, shards, and what is refused."""

import hashlib
import math

import numpy as np
import polars as pl
import pytest

from planted import toy
from plm_depth import tables
from plm_depth.metrics.bootstrap import Bootstrap, interval
from plm_depth.metrics.contributions import contributions
from plm_depth.metrics.corpus import measurements, over_noise, parts_of, read_clusters
from plm_depth.metrics.lens import lens
from plm_depth.metrics.profile import main, profile
from plm_depth.tables import (
    CONTRIB_SEQ,
    LENS_SEQ,
    PROFILE,
    TableError,
    TableWriter,
    as_table,
    read_metadata,
    read_table,
    write_table,
)
from plm_depth.views import MEAN_OVER_NOISE
from unit.metrics.conftest import proteins

CLUSTERS = {"a": "x", "b": "x", "c": "y", "d": "z"}
MODEL = {"model_id": "toy", "family": "toy", "n_blocks": 2, "d_model": 8, "dtype": "float32", "readout": "seq"}


def contribution(sequence_id, *, n, total, t=0.15, draw=0, objective="mlm", largest=1.0, p95=0.5, n_nan=0, **more):
    """Return one row of CONTRIB_SEQ."""
    row = {
        **{**MODEL, "objective": objective, "null_model": "trained", "null_seed": -1, "condition": "seq"},
        **{"direction": "none", "noise_t": t, "mask_draw": draw, "sequence_id": sequence_id, "n_residues": 99},
        **{"layer": 1, "quantity": "rel_u", "pos_class": "residue", "n": n, "n_nan": n_nan, "sum": total},
        **{"sumsq": 0.0, "p95": p95, "max": largest, "argmax_pos": 0},
    }
    return row | more


def read_lens_row(sequence_id, *, n, total, quantity="ov5", vocab="aa20", layer=1, **more):
    """Return one row of LENS_SEQ."""
    row = {
        **{**MODEL, "objective": "mlm", "null_model": "trained", "null_seed": -1, "condition": "seq"},
        **{"direction": "none", "noise_t": 0.15, "mask_draw": 0, "sequence_id": sequence_id, "n_residues": 99},
        **{"layer": layer, "lens": "logit", "vocab": vocab, "quantity": quantity, "n": n, "n_nan": 0, "sum": total},
        **{"sumsq": 0.0, "max": 1.0, "rank_hist": [0] * 20},
    }
    return row | more


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def made(rows, schema, path, **metadata):
    write_table(columns_of(rows), schema, path, **metadata)
    return path


@pytest.fixture
def profiled(tmp_path, write_clusters):
    """Return a function from rows to the profile of a table of them."""

    def run(rows, lens_rows=(), *, clusters=CLUSTERS, n_vocabulary=33, **options):
        first = [made(list(rows), CONTRIB_SEQ, tmp_path / "c.parquet")] if rows else []
        second = (
            [made(list(lens_rows), LENS_SEQ, tmp_path / "l.parquet", n_vocabulary=n_vocabulary)] if lens_rows else []
        )
        options = {"n_boot": 200, **options}
        profile(first, second, write_clusters(clusters), tmp_path / "p.parquet", **options)
        return pl.from_arrow(read_table(tmp_path / "p.parquet", PROFILE))

    return run


def one(rows, **where):
    """Return the only row where columns have these values."""
    for name, value in where.items():
        rows = rows.filter(
            (pl.col(name) == value) if not isinstance(value, float) else (pl.col(name) - value).abs() < 1e-6
        )
    assert rows.height == 1, rows
    return rows.row(0, named=True)


# ------------------------------------------------------------------------------------------------- averaging by hand


def test_draws_are_averaged_within_a_protein_before_proteins_are(profiled):
    rows = [
        contribution("a", n=10, total=10.0, draw=0, p95=1.0, largest=2.0),
        contribution("a", n=10, total=30.0, draw=1, p95=3.0, largest=9.0, n_nan=2),
        contribution("b", n=100, total=500.0, draw=0, p95=7.0, largest=8.0),
    ]
    found = profiled(rows)
    assert one(found, aggregate="mean")["value"] == pytest.approx((2 + 5) / 2)  # not (1 + 3 + 5) / 3
    assert one(found, aggregate="micro")["value"] == pytest.approx(540 / 120)
    assert one(found, aggregate="p95")["value"] == pytest.approx((2 + 7) / 2)
    largest = one(found, aggregate="max")
    assert largest["value"] == 9 and math.isnan(largest["ci_lo"]) and math.isnan(largest["ci_hi"])
    assert largest["n_boot"] == 0
    mean = one(found, aggregate="mean")
    assert (mean["n_seq"], mean["n_cluster"], mean["n_nan"], mean["mask_draw"]) == (2, 1, 2, -1)
    assert found["aggregate"].to_list() == ["max", "mean", "micro", "p95"]


def test_a_draw_without_a_defined_value_does_not_count(profiled):
    rows = [
        contribution("a", n=0, total=0.0, draw=0, p95=math.nan, largest=math.nan, n_nan=5),
        contribution("a", n=5, total=10.0, draw=1, p95=2.0, largest=4.0),
        contribution("c", n=0, total=0.0, p95=math.nan, largest=math.nan, n_nan=3),
    ]
    found = profiled(rows)
    for aggregate, value in (("mean", 2), ("micro", 2), ("p95", 2), ("max", 4)):
        row = one(found, aggregate=aggregate)
        assert (row["value"], row["n_seq"], row["n_cluster"], row["n_nan"]) == (value, 1, 1, 8)
    nothing = profiled([contribution("c", n=0, total=0.0, p95=math.nan, largest=math.nan, n_nan=3)])
    assert nothing["value"].is_nan().all() and (nothing["n_seq"] == 0).all() and (nothing["n_boot"] == 0).all()


def test_views_null_models_and_directions_are_kept_apart(profiled):
    rows = [
        contribution("a", n=1, total=1.0),
        contribution("a", n=1, total=2.0, t=0.4),
        contribution("a", n=1, total=3.0, null_model="randinit", null_seed=0),
        contribution("a", n=1, total=4.0, null_model="randinit", null_seed=1),
        contribution("a", n=1, total=5.0, pos_class="masked"),
        contribution("a", n=1, total=6.0, layer=2),
    ]
    means = profiled(rows).filter(pl.col("aggregate") == "mean")
    assert sorted(means["value"].to_list()) == [1, 2, 3, 4, 5, 6]
    reading = {"objective": "ar", "t": math.nan, "draw": -1}
    rows = [contribution("a", n=1, total=float(i), direction=d, **reading) for i, d in enumerate(("n2c", "c2n"))]
    means = profiled(rows).filter(pl.col("aggregate") == "mean")
    assert dict(means.select("direction", "value").iter_rows()) == {"n2c": 0, "c2n": 1}
    assert means["noise_t"].is_nan().all()


def test_overlap_is_corrected_for_chance_of_its_vocabulary(profiled):
    rows = [
        read_lens_row("a", n=4, total=2.0),
        read_lens_row("b", n=8, total=8.0),
        read_lens_row("a", n=4, total=2.0, vocab="full"),
        read_lens_row("a", n=4, total=1.0, quantity="ov1"),
        read_lens_row("a", n=4, total=2.0, quantity="nll"),
    ]
    found = profiled([], rows, n_vocabulary=40)

    def value(quantity, aggregate="mean", vocab="aa20"):
        return one(found, quantity=quantity, aggregate=aggregate, vocab=vocab)["value"]

    assert value("ov5") == pytest.approx(0.75)
    assert value("ov5_cc") == pytest.approx((0.75 - 0.25) / 0.75)
    assert value("ov5_cc", "micro") == pytest.approx((10 / 12 - 0.25) / 0.75)
    assert value("ov5_cc", vocab="full") == pytest.approx((0.5 - 1 / 8) / (7 / 8))
    assert value("ov1_cc") == pytest.approx((0.25 - 0.05) / 0.95)
    assert found["pos_class"].unique().to_list() == ["logit"]
    assert set(found["aggregate"].unique()) == {"mean", "micro", "max"}
    assert not found["quantity"].is_in(["nll_cc"]).any()


# ------------------------------------------------------------------------------------------------- noise grids


def test_noise_levels_are_averaged_last_and_within_each_protein_first(profiled):
    levels, values = (0.1, 0.3, 0.5), {"a": (1, 2, 6), "c": (10, 20, 60), "d": (5, 5, 5)}
    rows = [
        contribution(s, n=n, total=float(n * v), t=t, objective="diffusion", largest=float(v), p95=v / 2)
        for s, own in values.items()
        for t, v, n in zip(levels, own, (1, 3, 5))
    ]
    # Clean, fully masked and other levels stay out of the mean.
    rows += [contribution("a", n=1, total=1e6, t=t, objective="diffusion", draw=-1) for t in (0.0, 1.0, 0.15)]
    rows += [contribution("b", n=1, total=1e6, t=0.3, objective="diffusion")]  # has not every level
    found = profiled(rows, grid=levels)
    over_grid = found.filter(pl.col("noise_t") == MEAN_OVER_NOISE)
    row = one(over_grid, aggregate="mean")
    assert row["value"] == pytest.approx((3 + 30 + 5) / 3)
    assert (row["n_seq"], row["n_cluster"]) == (3, 3)
    micro = [sum(v[i] for v in values.values()) / 3 for i in range(3)]
    assert one(over_grid, aggregate="micro")["value"] == pytest.approx(sum(micro) / 3)
    assert one(over_grid, aggregate="p95")["value"] == pytest.approx((3 + 30 + 5) / 6)
    assert one(over_grid, aggregate="max")["value"] == pytest.approx((10 + 20 + 60) / 3)
    assert sorted({f"{t:g}" for t in found["noise_t"]}) == ["-1", "0", "0.1", "0.15", "0.3", "0.5", "1"]
    # The interval is that of the per-protein means, drawn as one.
    bootstrap = Bootstrap.of(CLUSTERS, n_boot=200, seed=1)
    lower, upper, n_boot = interval(bootstrap.means(np.array([[3, np.nan, 30, 5]]))[1])
    assert (row["ci_lo"], row["ci_hi"], row["n_boot"]) == pytest.approx((lower[0], upper[0], n_boot[0]))


def test_only_diffusion_models_are_averaged_over_noise(profiled):
    rows = [contribution("a", n=1, total=1.0, t=t) for t in (0.1, 0.3)]
    assert (profiled(rows, grid=(0.1, 0.3))["noise_t"] > 0).all()


def test_a_grid_that_was_not_measured_is_refused(profiled):
    rows = [contribution("a", n=1, total=1.0, t=t, objective="diffusion") for t in (0.1, 0.5)]
    with pytest.raises(TableError, match=r"levels \[0\.1, 0\.5\] were measured, .* over \[0\.1, 0\.3\]"):
        profiled(rows, grid=(0.1, 0.3))


# ------------------------------------------------------------------------------------------------- intervals


def test_intervals_come_from_resampling_clusters():
    random = np.random.default_rng(0)
    clusters = {f"P{i:03d}": f"C{i // 3:02d}" for i in range(60)}
    rows = [contribution(s, n=int(random.integers(1, 9)), total=float(random.random())) for s in clusters]
    bootstrap = Bootstrap.of(clusters, n_boot=500, seed=1)
    found = measurements(as_table(columns_of(rows), CONTRIB_SEQ), table="contributions", bootstrap=bootstrap)
    means = np.array([row["sum"] / row["n"] for row in rows])
    _, resampled = bootstrap.means(found.mean)
    by_hand = []
    for weights in bootstrap.weights:
        members = [
            i for c, w in enumerate(weights) for i in np.flatnonzero(bootstrap.cluster == c) for _ in range(int(w))
        ]
        by_hand.append(means[members].mean())
    np.testing.assert_allclose(resampled[0], by_hand, rtol=1e-12)


def test_the_interval_of_real_tables_holds_the_value(measure, write_clusters, tmp_path):
    sample = proteins(12)
    measured = measure(toy(), sample, dtype="float32")
    clusters = write_clusters({s: f"C{i // 2}" for i, (s, _) in enumerate(sample)})
    profile([measured.contributions_path], [measured.lens_path], clusters, tmp_path / "p.parquet", n_boot=300)
    found = pl.read_parquet(tmp_path / "p.parquet")
    bounded = found.filter(pl.col("aggregate") != "max")
    assert (bounded["ci_lo"] <= bounded["value"] + 1e-9).all() and (bounded["ci_hi"] >= bounded["value"] - 1e-9).all()
    assert (bounded["n_cluster"] == 6).all() and (bounded["n_seq"] == 12).all() and (bounded["n_boot"] == 300).all()
    wide = bounded.filter((pl.col("quantity") == "rel_u") & (pl.col("aggregate") == "mean"))
    assert (wide["ci_hi"] > wide["ci_lo"]).all()
    expected = measured.contributions.filter(
        (pl.col("quantity") == "rel_u") & (pl.col("pos_class") == "masked") & (pl.col("layer") == 3)
    )
    draws = (
        expected.with_columns(mean=pl.col("sum") / pl.col("n"))
        .group_by("noise_t", "sequence_id")
        .agg(pl.col("mean").mean())
    )
    for noise_t, value in draws.group_by("noise_t").agg(pl.col("mean").mean()).iter_rows():
        row = one(wide.filter(pl.col("pos_class") == "masked"), layer=3, noise_t=noise_t)
        assert row["value"] == pytest.approx(value, rel=1e-12)


def test_one_shard_and_seven_shuffled_ones_give_the_same_profile(measure, write_clusters, tmp_path):
    sample = proteins(9)
    adapter = toy(objective="diffusion")
    one_shard = measure(adapter, sample, dtype="float32")
    seven = measure(adapter, sample, shards=[[3], [0, 8], [7], [1], [5, 2], [4], [6]], dtype="float32")
    clusters = {s: f"C{i // 2}" for i, (s, _) in enumerate(sample)}
    digests = set()
    for number, (measured, order) in enumerate(((one_shard, 1), (seven, -1))):
        path = tmp_path / f"p{number}.parquet"
        own = write_clusters(dict(list(clusters.items())[::order]), f"clusters{number}.parquet")
        profile([measured.contributions_path], [measured.lens_path], own, path, n_boot=50)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_variants_are_profiled_together_and_order_does_not_matter(measure, write_clusters, tmp_path):
    sample = proteins(3)
    adapter = toy()
    trained, null = measure(adapter, sample), measure(adapter, sample, null_model="shuffle_w", null_seed=0)
    clusters = write_clusters({s: s for s, _ in sample})
    for number, order in enumerate(([trained, null], [null, trained])):
        paths = [m.contributions_path for m in order], [m.lens_path for m in order]
        profile(*paths, clusters, tmp_path / f"p{number}.parquet", n_boot=20)
    first, second = (pl.read_parquet(tmp_path / f"p{i}.parquet") for i in (0, 1))
    assert first.equals(second)
    assert first["null_model"].unique().sort().to_list() == ["shuffle_w", "trained"]
    assert read_metadata(tmp_path / "p0.parquet")["resamples"] == "20"


# ------------------------------------------------------------------------------------------------- what is refused


def test_tables_that_do_not_belong_together_are_refused(tmp_path, write_clusters):
    bootstrap = Bootstrap.of(CLUSTERS, n_boot=10, seed=0)
    plain = made([contribution("a", n=1, total=1.0)], CONTRIB_SEQ, tmp_path / "plain.parquet")

    def parts(*paths, table="contributions"):
        return list(parts_of(paths, table=table, bootstrap=bootstrap))

    assert len(parts(plain)) == 1
    with pytest.raises(TableError, match="give each table once"):
        parts(plain, made([contribution("b", n=1, total=1.0)], CONTRIB_SEQ, tmp_path / "again.parquet"))
    other = contribution("a", n=1, total=1.0, model_id="other", null_model="randinit", null_seed=0)
    with pytest.raises(TableError, match="give one model's"):
        parts(plain, made([other], CONTRIB_SEQ, tmp_path / "other.parquet"))
    twice = [contribution("a", n=1, total=1.0), contribution("a", n=2, total=1.0)]
    with pytest.raises(TableError, match="two rows"):
        parts(made(twice, CONTRIB_SEQ, tmp_path / "twice.parquet"))
    with pytest.raises(TableError, match="1 proteins have no cluster, the first 'q'"):
        parts(made([contribution("q", n=1, total=1.0)], CONTRIB_SEQ, tmp_path / "q.parquet"))
    with pytest.raises(TableError, match="n_vocabulary"):
        parts(made([read_lens_row("a", n=1, total=1.0)], LENS_SEQ, tmp_path / "lens.parquet"), table="lens")
    with TableWriter(tmp_path / "split.parquet", CONTRIB_SEQ) as writer:
        writer.append(columns_of([contribution("a", n=1, total=1.0)]))
        writer.append(columns_of([contribution("b", n=1, total=1.0)]))
    with pytest.raises(TableError, match="layer 1 is split"):
        parts(tmp_path / "split.parquet")
    empty = made([contribution("a", n=1, total=1.0)], CONTRIB_SEQ, tmp_path / "some.parquet")
    write_table(read_table(empty, CONTRIB_SEQ).slice(0, 0), CONTRIB_SEQ, tmp_path / "empty.parquet")
    with pytest.raises(TableError, match="no rows"):
        profile([tmp_path / "empty.parquet"], [], write_clusters(CLUSTERS), tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()


def test_clusters_are_read_once_per_protein(tmp_path, write_clusters):
    assert read_clusters(write_clusters(CLUSTERS)) == CLUSTERS
    write_table({"sequence_id": ["a", "a"], "cluster_id": ["x", "y"]}, tables.CLUSTERS, tmp_path / "twice.parquet")
    with pytest.raises(TableError, match="2 rows for 1 proteins"):
        read_clusters(tmp_path / "twice.parquet")


def test_measurements_off_the_grid_are_left_alone():
    bootstrap = Bootstrap.of(CLUSTERS, n_boot=10, seed=0)
    rows = [contribution("a", n=1, total=1.0, t=t) for t in (0.1, 0.3)]
    found = measurements(as_table(columns_of(rows), CONTRIB_SEQ), table="contributions", bootstrap=bootstrap)
    assert len(found) == 2 and over_noise(found, (0.1, 0.3)) is None
    assert found.mean[:, 0].tolist() == [1, 1] and np.isnan(found.mean[:, 1:]).all()


def test_the_stage_runs_from_its_command_line(measure, write_clusters, tmp_path, capsys):
    sample = proteins(2)
    measured = measure(toy(objective="diffusion"), sample)
    arguments = ["--contributions", str(measured.contributions_path), "--lens", str(measured.lens_path)]
    arguments += ["--clusters", str(write_clusters({s: s for s, _ in sample})), "--resamples", "10"]
    main([*arguments, "--output", str(tmp_path / "p.parquet")])
    assert (pl.read_parquet(tmp_path / "p.parquet")["noise_t"] == MEAN_OVER_NOISE).any()
    with pytest.raises(SystemExit, match=r"metrics\.profile: noise levels .* were measured"):
        main([*arguments, "--grid", "[0.2]", "--output", str(tmp_path / "q.parquet")])
    few = write_clusters({sample[0][0]: "x"}, "few.parquet")
    with pytest.raises(SystemExit, match="have no cluster"):
        main([*arguments[:4], "--clusters", str(few), "--output", str(tmp_path / "q.parquet")])
    assert not (tmp_path / "q.parquet").exists()
    with pytest.raises(SystemExit, match="2 proteins and 0 resamples"):
        main([*arguments, "--resamples", "0", "--output", str(tmp_path / "q.parquet")])
    with pytest.raises(SystemExit):
        main([*arguments, "--grid", "[2]", "--output", str(tmp_path / "q.parquet")])
    assert "above 0 and up to 1" in capsys.readouterr().err


def test_a_sample_that_grows_keeps_the_numbers_of_its_first_proteins(measure, tmp_path):
    sample = proteins(4)
    measured = measure(toy(), sample, shards=[[0, 1], [2, 3]])
    contributions(measured.moments[:1], tmp_path / "small.parquet")
    lens(measured.logits[:1], tmp_path / "small_lens.parquet")
    is_member = pl.col("sequence_id").is_in([sample[0][0], sample[1][0]])
    assert pl.read_parquet(tmp_path / "small.parquet").equals(measured.contributions.filter(is_member))
    assert pl.read_parquet(tmp_path / "small_lens.parquet").equals(measured.lens.filter(is_member))
