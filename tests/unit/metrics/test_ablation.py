"""Depth ablation over the corpus: statistics by hand, rows against a plain computation, and what must not matter."""

import logging

import numpy as np
import polars as pl
import pytest

from planted import Toy, toy, with_zero_block
from plm_depth.activations.ablation import Ablations, Protein, measure
from plm_depth.activations.nulls import Null
from plm_depth.metrics import ablation as stage
from plm_depth.metrics.ablation import RETAINED, ablation, exit_area, removable_fraction, retention_depth
from plm_depth.randomness import generator
from plm_depth.tables import ABLATE_SEQ, CLUSTERS, TableError, read_table, write_table
from plm_depth.views import MEAN_OVER_NOISE, View

LOG = logging.getLogger("test")
N_PROTEINS = 6
NAMES = [f"P{i}" for i in range(N_PROTEINS)]
VIEWS = {
    "mlm": [View("none", 0.15, 0), View("none", 0.15, 1)],
    "ar": [View("n2c", float("nan"), -1)],
    "diffusion": [View("none", 0.3, 0), View("none", 0.7, 0)],
}
NULLS = (Null("trained", -1), Null("randinit", 0))


def proteins() -> list[Protein]:
    """Return proteins of few kinds of residues, so that a trained head can know something."""
    sequences = ["".join("ALGV"[a] for a in generator("abl", i).integers(4, size=20 + i)) for i in range(N_PROTEINS)]
    return [Protein(name, sequence, i, i % 2) for i, (name, sequence) in enumerate(zip(NAMES, sequences))]


def measured(folder, adapter: Toy, name: str = "a", **options):
    settings = Ablations(**{"selection": 2, "spans": (2,), **options.pop("ablations", {})})
    path = folder / f"{name}.parquet"
    measure(
        adapter, proteins(), output=path, model_id="m", ranks=options.pop("ranks", range(N_PROTEINS)),
        nulls=list(options.pop("nulls", NULLS)), views=options.pop("views", VIEWS[adapter.objective]),
        ablations=settings, seed=0, token_budget=10**5, log=LOG, **options,
    )  # fmt: skip
    return path


def reduced(folder, paths, clusters=None, **options) -> tuple[pl.DataFrame, pl.DataFrame]:
    clusters = {name: name for name in NAMES} if clusters is None else clusters
    write_table({"sequence_id": list(clusters), "cluster_id": list(clusters.values())}, CLUSTERS, folder / "c.parquet")
    out = folder / "corpus.parquet", folder / "summary.parquet"
    ablation(paths, folder / "c.parquet", *out, **{"n_boot": 200, **options})
    return tuple(pl.read_parquet(path).with_columns(pl.col(pl.Categorical).cast(pl.String)) for path in out)


def of(rows: pl.DataFrame, **wanted) -> pl.DataFrame:
    for key, item in wanted.items():
        rows = rows.filter(pl.col(key).is_close(item) if isinstance(item, float) else pl.col(key) == item)
    return rows


class TestStatistics:
    score = np.array([0.0, 1.0, 9.6, 9.4, 10.0])

    def test_retention_depth_by_hand(self):
        assert retention_depth(self.score, np.array(0.0), 0.9) == 0.5
        assert retention_depth(self.score, np.array(0.0), 0.95) == 1.0, "it must stay there"
        assert retention_depth(self.score, np.array(5.0), 0.8) == 0.5
        assert retention_depth(self.score, np.array(5.0), 0.9) == 1.0, "the floor counts"

    def test_a_rising_score_keeps_all_of_itself_at_the_end_only(self):
        rising = np.linspace(-3.1, -2.7, 8)
        assert retention_depth(rising, rising[0], 1.0) == 1.0

    def test_a_score_that_does_not_clear_the_floor_has_no_depth(self):
        assert np.isnan(retention_depth(self.score, np.array(10.0), 0.9))
        assert np.isnan(retention_depth(np.append(self.score, np.nan), np.array(0.0), 0.9))
        assert np.isnan(removable_fraction(np.array([1.0]), [1], np.array(1.0), np.array(1.0), 0.9, 4))

    def test_removable_fraction_by_hand(self):
        score = np.array([9.9, 9.0, 9.5, 2.0])
        full, floor = np.array(10.0), np.array(0.0)
        assert removable_fraction(score, [1, 2, 3, 4], full, floor, 0.95, 8) == 3 / 8, "the largest, not the first"
        assert removable_fraction(score, [1, 2, 3, 4], full, floor, 0.99, 8) == 1 / 8
        assert removable_fraction(score, [1, 2, 3, 4], full, floor, 0.999, 8) == 0

    def test_area_by_hand(self):
        assert exit_area(np.array([0.0, 1, 1])) == 0.25 and exit_area(np.array([2.0, 2, 2])) == 0

    def test_resamples_are_rows_and_scale_does_not_matter(self):
        x = np.random.default_rng(0).random((7, 6))
        floor = x.min(-1) - 0.1
        for y in RETAINED:
            found = retention_depth(x, floor, y)
            np.testing.assert_array_equal(found, [retention_depth(row, f, y) for row, f in zip(x, floor)])
            np.testing.assert_array_equal(found, retention_depth(3 * x - 5, 3 * floor - 5, y))
            lengths = [1, 2, 3, 4, 5]
            found = removable_fraction(x[:, 1:], lengths, x[:, 0], floor, y, 6)
            each = [removable_fraction(r[1:], lengths, r[0], f, y, 6) for r, f in zip(x, floor)]
            np.testing.assert_array_equal(found, each)


class TestCorpus:
    @pytest.fixture(scope="class")
    def tables(self, tmp_path_factory):
        found = {}
        for objective in VIEWS:
            folder = tmp_path_factory.mktemp(objective)
            adapter = toy(n_blocks=4, seed=5, objective=objective)
            path = measured(folder, adapter, ablations={"pseudo_perplexity": 2, "draws": 2})
            found[objective] = (pl.read_parquet(path), *reduced(folder, [path], grid=[0.3, 0.7]))
        return found

    def per_protein(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return means over reads, then over draws, by protein."""
        rows = rows.with_columns(pl.col(pl.Categorical).cast(pl.String))
        return rows.group_by("sequence_id").agg(value=(pl.col("sum") / pl.col("n")).mean()).sort("sequence_id")

    @pytest.mark.parametrize("objective", VIEWS)
    @pytest.mark.parametrize(
        ("op", "start", "length", "policy"),
        [
            ("exit", 2, 2, "none"),
            ("remove", 1, 1, "none"),
            ("remove_block", 0, 3, "deepest"),
            ("reverse", 1, 2, "none"),
        ],
    )
    def test_values_are_means_over_draws_then_proteins(self, tables, objective, op, start, length, policy):
        raw, corpus, _ = tables[objective]
        if objective == "diffusion":
            corpus = corpus.filter(pl.col("noise_t") > 0)
        for null in ("trained", "randinit"):
            named = {"null_model": null, "op": op, "start": start, "length": length, "policy": policy}
            keep = (pl.col("reads") != "single") & (pl.col("null_model").cast(pl.String) == null)
            level = pl.col("noise_t").is_close(0.3) if objective == "diffusion" else pl.lit(True)
            own, full = (
                self.per_protein(of(raw.filter(keep & level), quantity="nll", **which))
                for which in (named, {"op": "full"})
            )
            rows = of(corpus.filter(level & (pl.col("reads") != "single")), **named)
            (row,) = of(rows, quantity="nll").to_dicts()
            assert row["value"] == pytest.approx(own["value"].mean(), rel=1e-12) and row["n_seq"] == N_PROTEINS
            assert row["ci_lo"] <= row["value"] <= row["ci_hi"] and row["n_cluster"] == N_PROTEINS
            (row,) = of(rows, quantity="dnll").to_dicts()
            assert row["value"] == pytest.approx((own["value"] - full["value"]).mean(), rel=1e-9)

    def test_spans_that_differ_stand_together(self, tables):
        raw, corpus, _ = tables["mlm"]
        for policy in ("random", "angular"):
            rows = of(corpus, policy=policy, quantity="nll", null_model="trained")
            assert set(rows["start"]) == {-1} and sorted(rows["length"]) == [1, 2, 3]
            own = raw.with_columns(pl.col(pl.Categorical).cast(pl.String))
            own = self.per_protein(of(own, policy=policy, length=2, quantity="nll", null_model="trained"))
            assert of(rows, length=2)["value"][0] == pytest.approx(own["value"].mean(), rel=1e-12)

    def test_diffusion_models_get_the_mean_over_the_levels(self, tables):
        _, corpus, summary = tables["diffusion"]
        rows = of(corpus, op="remove", start=2, quantity="nll", null_model="trained")
        by_level = {round(row["noise_t"], 2): row["value"] for row in rows.to_dicts()}
        assert by_level[MEAN_OVER_NOISE] == pytest.approx((by_level[0.3] + by_level[0.7]) / 2)
        assert MEAN_OVER_NOISE in set(summary["noise_t"])

    def test_the_perplexity_is_of_residues_masked_one_at_a_time(self, tables):
        _, corpus, _ = tables["mlm"]
        rows = corpus.filter(pl.col("quantity") == "perplexity")
        assert set(rows["reads"]) == {"single"} and set(rows["op"]) == {"full", "background", "exit", "remove"}
        for row in of(rows, null_model="trained").to_dicts():
            same = {name: row[name] for name in ("op", "start", "length", "null_model")}
            nll = of(corpus, reads="single", quantity="nll", **same)
            assert row["value"] == pytest.approx(np.exp(nll["value"][0])) and row["n_seq"] == 2
        for objective in ("ar", "diffusion"):
            assert "single" not in set(tables[objective][1]["reads"])

    def test_nothing_changes_where_nothing_is_done(self, tables):
        for _, corpus, _ in tables.values():
            rows = corpus.filter((pl.col("op") == "full") | ((pl.col("op") == "exit") & (pl.col("length") == 0)))
            for quantity in ("dnll", "dacc1", "kl_to_full", "flip1"):
                own = of(rows, quantity=quantity)
                assert own.height and (own["value"] == 0).all() and (own["ci_hi"] == 0).all()

    def test_summary_statistics_are_those_of_the_corpus_profiles(self, tables):
        _, corpus, summary = tables["ar"]
        rows = of(corpus, null_model="trained")
        exits = of(rows, op="exit", quantity="nll").sort("start")["value"].to_numpy()
        gains = of(rows, op="remove", quantity="dnll").sort("start")["value"].to_numpy()
        background = of(rows, op="background", quantity="nll")["value"][0]
        own = of(summary, null_model="trained")

        def statistic(stat, profile, param=None):
            found = of(own, stat=stat, profile=profile)
            found = found if param is None else of(found, param=param)
            assert found.height == 1
            return found["value"][0]

        assert statistic("exit_area", "nll") == pytest.approx(exit_area(-exits))
        positive = np.maximum(gains, 0)
        assert statistic("participation", "dnll_remove") == pytest.approx(
            positive.sum() ** 2 / (4 * (positive**2).sum())
        )
        assert (
            statistic("n80", "dnll_remove")
            == (np.searchsorted(np.cumsum(np.sort(positive)[::-1]), 0.8 * positive.sum()) + 1) / 4
        )
        for y in RETAINED:
            for floor, value in (("background", background), ("layer_0", exits[0])):
                expected = retention_depth(-exits, np.array(-value), y)
                np.testing.assert_equal(statistic("retention_depth", f"nll_{floor}", y), expected)
        statistics = set(zip(own["stat"], own["profile"]))
        assert {("removable_fraction", f"{p}_nll") for p in ("angular", "deepest", "tail", "exhaustive")} <= statistics

    def test_an_undefined_statistic_has_no_interval(self, tables):
        for _, _, summary in tables.values():
            undefined = summary.filter(pl.col("value").is_nan())
            assert undefined["ci_lo"].is_nan().all() and undefined["ci_hi"].is_nan().all()


class TestPlanted:
    def test_a_silent_block_is_worth_nothing(self, tmp_path):
        path = measured(tmp_path, with_zero_block(toy(n_blocks=4), 3), nulls=NULLS[:1])
        corpus, _ = reduced(tmp_path, [path])
        rows = of(corpus, op="remove", quantity="dnll").sort("start")
        assert abs(rows["value"][2]) < 1e-13 and abs(rows["value"][1]) > 1e-4
        assert of(corpus, op="remove", quantity="flip1", start=2)["value"][0] == 0

    def test_one_block_that_does_it_all(self, tmp_path):
        adapter = toy(n_blocks=5)
        for block in (1, 2, 4, 5):
            adapter = with_zero_block(adapter, block)
        path = measured(tmp_path, adapter, nulls=NULLS[:1])
        corpus, summary = reduced(tmp_path, [path])
        gain = of(corpus, op="remove", quantity="dnll", start=2)["value"][0]
        n80 = of(summary, stat="n80")
        if gain > 0:
            assert n80["value"][0] == 1 / 5 and of(summary, stat="depth_score")["value"][0] == pytest.approx(0.5)
        else:
            assert np.isnan(n80["value"][0]), "nothing is lost by any removal"
        assert of(corpus, op="exit", quantity="dnll", start=3)["value"][0] == pytest.approx(0, abs=1e-13)


class TestWhatMustNotMatter:
    def test_two_shardings_give_equal_tables(self, tmp_path):
        adapter = toy(n_blocks=3)
        whole = reduced(tmp_path, [measured(tmp_path, adapter)])
        shards = [measured(tmp_path, adapter, f"s{r.start}", ranks=r) for r in (range(3, 6), range(2), range(2, 3))]
        for one, other in zip(whole, reduced(tmp_path, shards), strict=True):
            numbers = [name for name in ("value", "ci_lo", "ci_hi") if name in one.columns]
            assert one.drop(numbers).equals(other.drop(numbers))
            for name in numbers:
                np.testing.assert_allclose(one[name], other[name], rtol=1e-10, atol=1e-12)

    def test_a_larger_data_set_has_clusters_without_rows(self, tmp_path):
        path = measured(tmp_path, toy(n_blocks=2), nulls=NULLS[:1], ablations={"spans": ()})
        more = {f"{name}": name for name in [*NAMES, "Q0", "Q1"]}
        corpus, _ = reduced(tmp_path, [path], clusters=more)
        assert set(corpus["n_cluster"]) == {N_PROTEINS}


class TestFailures:
    def test_a_model_without_rows_gets_tables_without_rows(self, tmp_path):
        adapter = toy(n_blocks=2)
        adapter.tokens_are_residues = False
        corpus, summary = reduced(tmp_path, [measured(tmp_path, adapter)])
        assert corpus.height == summary.height == 0

    def test_a_table_given_twice(self, tmp_path):
        path = measured(tmp_path, toy(n_blocks=2), nulls=NULLS[:1], ablations={"spans": ()})
        with pytest.raises(TableError, match="two rows for one run"):
            reduced(tmp_path, [path, measured(tmp_path, toy(n_blocks=2), "b", nulls=NULLS[:1])])

    def test_a_protein_without_a_cluster(self, tmp_path):
        path = measured(tmp_path, toy(n_blocks=2), nulls=NULLS[:1], ablations={"spans": ()})
        with pytest.raises(TableError, match="have no cluster"):
            reduced(tmp_path, [path], clusters={"P0": "P0"})

    def test_rows_without_the_full_model(self, tmp_path):
        path = measured(tmp_path, toy(n_blocks=2), nulls=NULLS[:1], ablations={"spans": ()})
        rows = pl.read_parquet(path).filter(pl.col("op").cast(pl.String) != "full").to_arrow()
        write_table({name: rows.column(name) for name in ABLATE_SEQ.names}, ABLATE_SEQ, path)
        with pytest.raises(TableError, match="no full model beside"):
            reduced(tmp_path, [path])

    def test_a_noise_level_that_was_not_measured(self, tmp_path):
        adapter = toy(n_blocks=2, objective="diffusion")
        path = measured(tmp_path, adapter, nulls=NULLS[:1], ablations={"spans": ()})
        with pytest.raises(TableError, match="give --grid the levels"):
            reduced(tmp_path, [path], grid=[0.1, 0.3])

    def test_the_command_ends_in_one_message(self, tmp_path):
        arguments = f"--ablation {tmp_path}/no.parquet --clusters c --output o --summary s".split()
        with pytest.raises(SystemExit, match=r"metrics.ablation: .*no.parquet: not a readable Parquet file"):
            stage.main(arguments)


def test_the_command_writes_both_tables(tmp_path):
    path = measured(tmp_path, toy(n_blocks=2), ablations={"spans": ()})
    write_table({"sequence_id": NAMES, "cluster_id": NAMES}, CLUSTERS, tmp_path / "c.parquet")
    stage.main(
        f"--ablation {path} --clusters {tmp_path}/c.parquet --resamples 100 --seed 2 --retained [0.5] "
        f"--output {tmp_path}/o.parquet --summary {tmp_path}/s.parquet".split()
    )
    assert read_table(tmp_path / "o.parquet", stage.ABLATION).num_rows > 100
    params = {p for p in read_table(tmp_path / "s.parquet", stage.SUMMARY).column("param").to_pylist() if p == p}
    assert params == {0.5}
