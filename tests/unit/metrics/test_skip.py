"""Corpus skip effects: reductions, averaging, locality, and that shards do not matter."""

import itertools
import json
import logging
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plain_hooks
from planted import toy, with_dependency, with_zero_block, without_attention
from plm_depth.activations.effects import Skips, measure
from plm_depth.activations.interventions import position_sets
from plm_depth.activations.nulls import Null
from plm_depth.metrics import skip as stage
from plm_depth.metrics.skip import (
    dependence,
    half_contrast,
    halves,
    influence,
    influence_depth,
    influence_profile,
    n80,
    participation,
    skip,
)
from plm_depth.metrics.summary import depth_score
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, CLUSTERS, SKIP, SKIP_OUT_SEQ, SKIP_SEQ, TableError, read_table, write_table
from plm_depth.views import MEAN_OVER_NOISE, View

LOG = logging.getLogger("test")
MASKED = View("none", 0.15, 0)
TRAINED = Null("trained", -1)


def proteins(n: int) -> list[tuple[str, str]]:
    return [(f"P{i}", "".join(AMINO_ACIDS[a] for a in generator("test", i).integers(20, size=22))) for i in range(n)]


def write_clusters(tmp_path, names):
    path = tmp_path / "clusters.parquet"
    # Two proteins a cluster.
    write_table({"sequence_id": names, "cluster_id": [names[i // 2 * 2] for i in range(len(names))]}, CLUSTERS, path)
    return path


def measured(tmp_path, adapter, sequences, *, name="s", views=(MASKED,), nulls=(TRAINED,), **skips):
    paths = tmp_path / f"{name}.skip.parquet", tmp_path / f"{name}.out.parquet"
    measure(
        adapter,
        sequences,
        skip=paths[0],
        output_change=paths[1],
        model_id="m",
        nulls=list(nulls),
        views=list(views),
        skips=Skips(**{"parts": ("layer",), "pos_sets": ("all", "other"), "draws": 2, **skips}),
        seed=0,
        token_budget=10**5,
        log=LOG,
    )
    return paths


def corpus(tmp_path, paths, names, *, name="corpus", **options) -> list[dict]:
    clusters = write_clusters(tmp_path, names)
    output = tmp_path / f"{name}.parquet"
    options = {"n_boot": 50, **options}
    skip([p[0] for p in paths], [p[1] for p in paths], clusters, output, **options)
    return read_table(output, SKIP).to_pylist()


def chosen(rows, **wanted) -> list[dict]:
    wanted = {"null_model": "trained", "local": False, "agg": "mean"} | wanted
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def matrix(rows, **wanted) -> np.ndarray:
    found = chosen(rows, quantity="effect", **wanted)
    n = max(row["tgt"] for row in found)
    values = np.full((n, n), np.nan)
    for row in found:
        values[row["src"] - 1, row["tgt"] - 1] = row["value"]
    return values


class TestReductions:
    def test_hand_computed(self):
        effect = np.array([[9.0, 1, 2, 3], [9, 9, 4, 5], [9, 9, 9, 6], [9, 9, 9, 9]])
        assert influence(effect)[:3].tolist() == [2, 4.5, 6] and np.isnan(influence(effect)[3])
        assert dependence(effect)[1:].tolist() == [1, 3, 14 / 3] and np.isnan(dependence(effect)[0])
        found = halves(effect)
        assert {k: float(v) for k, v in found.items()} == {"EE": 1, "LL": 6, "EL": 14 / 4, "LL/EE": 6}

    def test_a_middle_block_belongs_to_neither_half(self):
        effect = np.zeros((5, 5))
        effect[2, 3] = effect[1, 2] = 100
        assert halves(effect)["EE"] == 0 and halves(effect)["LL"] == 0 and halves(effect)["EL"] > 0

    @pytest.mark.parametrize("n", range(4, 13))
    def test_the_halves_hold_the_same_entries_per_lag(self, n):
        lag = np.arange(n) - np.arange(n)[:, None]
        for power in (1, 2, 3):
            found = halves(lag.astype(float) ** power)
            assert found["EE"] == pytest.approx(float(found["LL"])) and found["LL/EE"] == pytest.approx(1)

    @given(st.integers(1, 9), st.integers(0, 99), st.floats(0.1, 10))
    @settings(max_examples=50, deadline=None)
    def test_scale_and_the_lower_triangle(self, n, seed, factor):
        effect = np.random.default_rng(seed).random((3, n, n))
        other = np.where(np.triu(np.ones((n, n)), 1) > 0, effect * factor, -1e9)
        for reduce in (influence, dependence):
            np.testing.assert_allclose(reduce(other), reduce(effect) * factor, rtol=1e-12)
        np.testing.assert_allclose(halves(other)["LL/EE"], halves(effect)["LL/EE"], rtol=1e-12)

    @pytest.mark.parametrize("n", [3, 6, 7, 33])
    def test_a_uniform_influence_sits_in_the_middle_however_deep_the_model(self, n):
        effect = np.triu(np.full((n, n), 0.3), 1)
        s = influence_profile(effect)
        assert s.shape == (n - 1,) and influence_depth(effect) == pytest.approx(0.5, abs=1e-12)
        assert half_contrast(s) == pytest.approx(0, abs=1e-12) and participation(s) == pytest.approx(1, abs=1e-12)
        assert n80(s) == math.ceil(0.8 * (n - 1)) / (n - 1)

    def test_all_influence_of_one_block(self):
        effect = np.zeros((6, 6))
        effect[1, 2:] = 0.7
        s = influence_profile(effect)
        assert influence_depth(effect) == pytest.approx(1.5 / 5) and n80(s) == 1 / 5
        assert half_contrast(s) == -1 and participation(s) == pytest.approx(1 / 5)

    def test_one_block_has_no_influence_to_place(self):
        effect = np.ones((2, 1, 1))
        assert np.isnan([influence_depth(effect), *(f(influence_profile(effect)) for f in (half_contrast, n80))]).all()
        assert np.isnan(participation(influence_profile(effect))).all()

    def test_fewer_than_four_blocks_have_no_halves(self):
        for n in (1, 2, 3):
            assert all(np.isnan(v) for k, v in halves(np.ones((n, n))).items() if k != "EL")

    def test_undefined_entries_are_left_out(self):
        effect = np.array([[0, 2, np.nan], [0, 0, 4], [0, 0, 0]])
        assert influence(effect)[0] == 2 and dependence(effect)[2] == 4


class TestCorpus:
    def test_values_are_means_over_positions_then_draws_then_proteins(self, tmp_path):
        views = [View("none", 0.15, draw) for draw in (0, 1)]
        names = [f"P{i}" for i in range(4)]
        paths = measured(tmp_path, toy(n_blocks=4), proteins(4), views=views)
        rows = corpus(tmp_path, [paths], names)
        source = read_table(paths[0], SKIP_SEQ).to_pylist()
        for pos_set, local in itertools.product(("all", "other"), (False, True)):
            means = []
            for name in names:
                own = [
                    r
                    for r in source
                    if (r["sequence_id"], r["pos_set"], r["local"], r["src"]) == (name, pos_set, local, 2)
                ]
                assert len(own) == (4 if pos_set == "other" else 2)
                means.append(np.mean([r["sum"][3] / r["n"][3] for r in own]))
            (row,) = chosen(rows, quantity="effect", pos_set=pos_set, local=local, src=2, tgt=4)
            assert row["value"] == pytest.approx(np.mean(means), rel=1e-12)
            assert row["ci_lo"] <= row["value"] <= row["ci_hi"]
            assert (row["n_seq"], row["n_cluster"], row["n_boot"], row["mask_draw"]) == (4, 2, 50, -1)
        (row,) = chosen(rows, quantity="effect", pos_set="other", src=2, tgt=4, agg="max")
        largest = max(r["max"][3] for r in source if (r["pos_set"], r["src"], r["local"]) == ("other", 2, False))
        assert row["value"] == largest and math.isnan(row["ci_lo"]) and row["n_boot"] == 0
        (row,) = chosen(rows, quantity="effect", pos_set="all", src=2, tgt=4, agg="ratio")
        one = [r for r in source if (r["pos_set"], r["src"], r["local"]) == ("all", 2, False)]
        expected = np.mean([np.mean([r["num"][3] / r["den"][3] for r in one if r["sequence_id"] == n]) for n in names])
        assert row["value"] == pytest.approx(expected, rel=1e-12)

    def test_reductions_stand_beside_their_matrix(self, tmp_path):
        rows = corpus(tmp_path, [measured(tmp_path, toy(), proteins(4))], [f"P{i}" for i in range(4)])
        effect = matrix(rows, pos_set="other")
        assert np.isnan(effect[np.tril_indices(6, -1)]).all() and (np.diag(effect) == 0).all()
        found = [row["value"] for row in chosen(rows, quantity="influence", pos_set="other")]
        np.testing.assert_allclose(found, influence(effect), rtol=1e-12)
        found = [row["value"] for row in chosen(rows, quantity="dependence", pos_set="other")]
        np.testing.assert_allclose(found, dependence(effect), rtol=1e-12)
        for name, value in halves(effect).items():
            (row,) = chosen(rows, quantity=name, pos_set="other")
            assert row["value"] == pytest.approx(float(value), rel=1e-12)
            assert row["ci_lo"] <= row["ci_hi"] and (row["src"], row["tgt"]) == (-1, -1)

    def test_where_influence_and_output_change_sit(self, tmp_path):
        rows = corpus(tmp_path, [measured(tmp_path, toy(), proteins(4))], [f"P{i}" for i in range(4)])
        statistics = {
            "depth_score": depth_score,
            "n80": n80,
            "participation": participation,
            "half_contrast": half_contrast,
        }
        s = influence(matrix(rows, pos_set="other"))[:-1]
        l2, dnll = (
            np.array([row["value"] for row in chosen(rows, quantity=quantity, vocab="aa20", pos_set="all")])
            for quantity in ("l2", "dnll")
        )
        uneven = statistics["half_contrast"](s)
        assert uneven != pytest.approx(statistics["half_contrast"](np.append(s, 0.0))), "the last block would count"
        for name, statistic in statistics.items():
            for quantity, profile, wanted in (
                ("influence", s, {"pos_set": "other"}),
                ("l2", l2, {"pos_set": "all", "vocab": "aa20"}),
                ("dnll", np.maximum(dnll, 0), {"pos_set": "all", "vocab": "aa20"}),
            ):
                (row,) = chosen(rows, quantity=f"{quantity}_{name}", **wanted)
                assert row["value"] == pytest.approx(float(statistic(profile)), rel=1e-12)
                assert row["ci_lo"] <= row["ci_hi"] and (row["src"], row["tgt"]) == (-1, -1)

    def test_no_effect_before_the_source_and_one_on_the_diagonal(self, tmp_path):
        rows = corpus(tmp_path, [measured(tmp_path, toy(), proteins(2))], ["P0", "P1"])
        assert all(row["tgt"] >= row["src"] for row in chosen(rows, quantity="effect"))
        assert (np.diag(matrix(rows, pos_set="all")) == 1).all()

    def test_a_planted_dependency_is_what_is_left(self, tmp_path):
        adapter = with_dependency(toy(norm="identity"), 2, 5)
        rows = corpus(tmp_path, [measured(tmp_path, adapter, proteins(2))], ["P0", "P1"])
        effect = matrix(rows, pos_set="all")
        assert effect[1, 4] == 1
        effect[1, 4] = 0
        np.fill_diagonal(effect, 0)
        assert np.nansum(effect) == 0

    def test_a_silent_block_has_an_empty_row_and_an_undefined_column(self, tmp_path):
        rows = corpus(tmp_path, [measured(tmp_path, with_zero_block(toy(), 3), proteins(2))], ["P0", "P1"])
        effect = matrix(rows, pos_set="other")
        assert (effect[2, 3:] == 0).all() and np.isnan(effect[:3, 2]).all()
        (row,) = chosen(rows, quantity="effect", pos_set="other", src=1, tgt=3)
        assert row["n_seq"] == 0 and row["n_nan"] == 2 * 2 * 11, "proteins x draws x positions read"
        (row,) = chosen(rows, quantity="kl_fo", vocab="aa20", pos_set="other", src=3)
        assert row["value"] == 0

    def test_locality_is_the_share_that_travels(self, tmp_path):
        rows = corpus(tmp_path, [measured(tmp_path, toy(), proteins(4))], [f"P{i}" for i in range(4)])
        found = chosen(rows, quantity="locality", vocab="aa20", pos_set="other")
        assert [row["src"] for row in found] == [1, 2, 3, 4, 5, 6] and found[-1]["value"] == 0
        for row in found:
            part, whole = (
                chosen(rows, quantity="l2", vocab="aa20", pos_set=name, src=row["src"])[0]["value"]
                for name in ("other", "all")
            )
            assert row["value"] == pytest.approx(part / whole, rel=1e-12)
        assert not chosen(rows, quantity="locality", pos_set="all")

    def test_nothing_travels_without_attention(self, tmp_path):
        rows = corpus(tmp_path, [measured(tmp_path, without_attention(toy()), proteins(2))], ["P0", "P1"])
        assert all(row["value"] == 0 for row in chosen(rows, quantity="locality"))

    def test_null_models_have_their_own_rows(self, tmp_path):
        adapter = toy(n_blocks=4)
        paths = [
            measured(tmp_path, adapter, proteins(2), name="t"),
            measured(tmp_path, adapter, proteins(2), name="n", nulls=[Null("randinit", 1), Null("randinit", 2)]),
        ]
        rows = corpus(tmp_path, paths, ["P0", "P1"])
        values = {
            (r["null_model"], r["null_seed"]): r["value"]
            for r in rows
            if r["quantity"] == "LL/EE" and r["agg"] == "mean" and r["pos_set"] == "other" and not r["local"]
        }
        assert set(values) == {("trained", -1), ("randinit", 1), ("randinit", 2)} and len(set(values.values())) == 3

    def test_diffusion_levels_are_averaged_last_within_each_protein(self, tmp_path):
        adapter = toy(objective="diffusion", n_blocks=4)
        grid = [0.1, 0.5]
        views = [View("none", 0.0, -1), *(View("none", t, 0) for t in (*grid, 1.0))]
        paths = measured(tmp_path, adapter, proteins(3), views=views)
        rows = corpus(tmp_path, [paths], [f"P{i}" for i in range(3)], grid=grid)
        for quantity in ("effect", "influence"):
            levels = {
                round(row["noise_t"], 3): row["value"]
                for row in chosen(rows, quantity=quantity, pos_set="other", src=1)
                if row["tgt"] in (-1, 3)
            }
            assert set(levels) == {0.0, 0.1, 0.5, 1.0, MEAN_OVER_NOISE}
            assert levels[MEAN_OVER_NOISE] == pytest.approx((levels[0.1] + levels[0.5]) / 2, rel=1e-12)
        with pytest.raises(TableError, match=r"the mean is to be over \[.*0\.3"):
            corpus(tmp_path, [paths], [f"P{i}" for i in range(3)], grid=[0.1, 0.3])

    def test_the_share_below_the_noise_floor_is_kept(self, tmp_path):
        paths = measured(tmp_path, toy(n_blocks=4), proteins(2))
        table = read_table(paths[0], SKIP_SEQ)
        flags = [[row["sequence_id"] == "P0"] * 4 for row in table.to_pylist()]
        place = table.column_names.index("below_floor")
        write_table(table.set_column(place, "below_floor", pa.array(flags)), SKIP_SEQ, paths[0])
        (row,) = chosen(corpus(tmp_path, [paths], ["P0", "P1"]), quantity="LL/EE", pos_set="other")
        assert row["below_floor"] == 0.5


class TestParity:
    """The conventions of the published study's code, written down again from their description and compared."""

    def published(self, adapter, sequences, split_points, *, future: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrix of largest relative changes and the largest output changes, source before target.

        Every prompt, every split, every block: one forward pass; ratios to the clean update clamped at 1e-6; maxima
        over positions, then splits, then prompts. Token 0 is never skipped.
        """
        n = adapter.n_blocks
        matrix, output = np.zeros((n, n)), np.zeros(n)
        columns = sorted(adapter.vocabulary)
        for sequence_id, sequence in sequences:
            tokens = adapter.encode(sequence, direction="n2c")
            logits, clean = plain_hooks.run(adapter, tokens)
            size = sum(clean.values()).norm(dim=-1).numpy()
            for split in split_points(sequence_id, tokens) if future else [tokens.n_tokens]:
                at = (np.arange(tokens.n_tokens) > 0) & (np.arange(tokens.n_tokens) < split)
                first = split if future else 0
                for source in range(n):
                    change, altered = plain_hooks.skip(adapter, tokens, "layer", source + 1, at)
                    ratio = change[:, first:] / np.maximum(size[:, first:], 1e-6)
                    matrix[source] = np.maximum(matrix[source], ratio.max(-1))
                    p, q = (torch.as_tensor(x)[first:, columns].softmax(-1) for x in (logits, altered))
                    output[source] = max(output[source], float((p - q).norm(dim=-1).max()))
        return matrix, output

    @pytest.mark.parametrize("future", [False, True])
    def test_maxima_over_positions_splits_and_prompts(self, tmp_path, future):
        adapter, sequences = toy(variant="causal", n_blocks=4), proteins(3)
        pos_set = "prefix" if future else "all"
        paths = measured(
            tmp_path, adapter, sequences, views=[View("n2c", math.nan, -1)], pos_sets=(pos_set,), draws=4, parity=True
        )
        rows = corpus(tmp_path, [paths], [name for name, _ in sequences])

        def splits(sequence_id, tokens):
            found = position_sets(
                ["prefix"],
                dict(sequences)[sequence_id],
                tokens,
                seed=0,
                sequence_id=sequence_id,
                draws=4,
                parity=True,
            )
            points = [int(s.skip.sum()) + 1 for s in found]
            assert points and all(point % 8 == 0 and 8 <= point < tokens.n_tokens - 4 for point in points)
            return points

        expected, expected_output = self.published(adapter, sequences, splits, future=future)
        effect = matrix(rows, pos_set=pos_set, agg="max")
        upper = np.triu_indices(4)
        np.testing.assert_allclose(effect[upper], expected[upper], rtol=1e-6)
        assert (np.diag(effect) == (0 if future else 1)).all()
        found = [r["value"] for r in chosen(rows, quantity="l2", vocab="full", pos_set=pos_set, agg="max")]
        np.testing.assert_allclose(found, expected_output, rtol=1e-6)

    def test_the_local_effect_takes_the_contribution_out_of_the_clean_input(self, tmp_path):
        adapter, sequences = toy(variant="causal", n_blocks=4), proteins(2)
        paths = measured(
            tmp_path, adapter, sequences, views=[View("n2c", math.nan, -1)], pos_sets=("all",), parity=True
        )
        effect = matrix(corpus(tmp_path, [paths], ["P0", "P1"]), pos_set="all", local=True, agg="max")
        expected = np.zeros((4, 4))
        for _, sequence in sequences:
            tokens = adapter.encode(sequence, direction="n2c")
            size = sum(plain_hooks.run(adapter, tokens)[1].values()).norm(dim=-1).numpy()
            for source in range(4):
                change = plain_hooks.local(adapter, tokens, "layer", source + 1, np.arange(tokens.n_tokens) > 0)
                expected[source] = np.maximum(expected[source], (change / np.maximum(size, 1e-6)).max(-1))
        np.testing.assert_allclose(effect[np.triu_indices(4)], expected[np.triu_indices(4)], rtol=1e-6)


class TestShards:
    def test_one_or_several_in_any_order_give_the_same_bytes(self, tmp_path):
        adapter, sequences = toy(n_blocks=4), proteins(6)
        names = [i for i, _ in sequences]
        whole = measured(tmp_path, adapter, sequences, name="whole")
        parts = [measured(tmp_path, adapter, sequences[k::3], name=f"part{k}") for k in range(3)]
        corpus(tmp_path, [whole], names, name="one")
        corpus(tmp_path, parts[::-1], names, name="three")
        assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "three.parquet").read_bytes()

    def test_overlapping_shards_are_refused(self, tmp_path):
        paths = [measured(tmp_path, toy(n_blocks=2), proteins(k), name=f"{k}") for k in (1, 2)]
        with pytest.raises(TableError, match="two rows for one source"):
            corpus(tmp_path, paths, ["P0", "P1"])

    def test_a_protein_without_cluster_is_refused(self, tmp_path):
        with pytest.raises(TableError, match="'P1'"):
            corpus(tmp_path, [measured(tmp_path, toy(n_blocks=2), proteins(2))], ["P0"])

    def test_tables_of_two_models_are_refused(self, tmp_path):
        paths = [measured(tmp_path, toy(n_blocks=k), proteins(2)[k - 2 : k - 1], name=f"{k}") for k in (2, 3)]
        with pytest.raises(TableError, match="give the tables of one model"):
            corpus(tmp_path, paths, ["P0", "P1"])

    def test_an_empty_table_is_refused(self, tmp_path):
        for schema in (SKIP_SEQ, SKIP_OUT_SEQ):
            pa.parquet.write_table(schema.empty_table(), tmp_path / "empty.parquet")
            with pytest.raises(TableError, match="no rows"):
                stage.views_in([tmp_path / "empty.parquet"], schema)

    def test_the_command(self, tmp_path):
        paths = measured(tmp_path, toy(n_blocks=4), proteins(2))
        clusters = write_clusters(tmp_path, ["P0", "P1"])
        arguments = ["--skip", str(paths[0]), "--output-change", str(paths[1]), "--clusters", str(clusters)]
        arguments += ["--grid", json.dumps([0.1, 0.5]), "--resamples", "20", "--output", str(tmp_path / "o.parquet")]
        stage.main(arguments)
        assert read_table(tmp_path / "o.parquet", SKIP).num_rows > 100
        with pytest.raises(SystemExit, match=r"metrics.skip: .*not a readable Parquet file"):
            stage.main([*arguments[:1], str(tmp_path / "none"), *arguments[2:]])
