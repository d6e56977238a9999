"""The stage that writes skip effects: settings, rows, reductions, noise floor, and what must not matter."""

import json
import logging

import numpy as np
import pyarrow as pa
import pytest
import torch

import plain_hooks
from planted import toy, with_zero_block
from plm_depth.activations import effects
from plm_depth.activations.door import ExtractionError
from plm_depth.activations.effects import (
    Donors,
    Skips,
    donors_of,
    measure,
    noise_floor,
    proteins_of,
    reads_of,
    reduce_effects,
    reduce_output,
)
from plm_depth.activations.interventions import InterventionError
from plm_depth.activations.nulls import Null
from plm_depth.activations.settings import SettingsError, read_settings
from plm_depth.activations.sweep import OUTPUTS
from plm_depth.models import checkpoints
from plm_depth.models.base import Structure
from plm_depth.models.registry import build
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, SKIP_OUT_SEQ, SKIP_SEQ, TableError, read_metadata, read_table
from plm_depth.views import View, mask_of, views_of

LOG = logging.getLogger("test")
TRAINED = Null("trained", -1)
CLEAN, MASKED, FORWARD = View("none", 0.0, -1), View("none", 0.15, 0), View("n2c", float("nan"), -1)


def proteins(n: int = 3, lengths=(22, 30, 22, 17, 26)) -> list[tuple[str, str]]:
    return [
        (f"P{i}", "".join(AMINO_ACIDS[a] for a in generator("test", i).integers(20, size=lengths[i % len(lengths)])))
        for i in range(n)
    ]


def run(tmp_path, adapter, sequences, *, views=(MASKED,), nulls=(TRAINED,), name="x", **options):
    skips = Skips(**{"pos_sets": ("all", "other"), "draws": 1, **options.pop("skips", {})})
    paths = {"skip": tmp_path / f"{name}.skip.parquet", "output_change": tmp_path / f"{name}.out.parquet"}
    measure(
        adapter,
        sequences,
        **paths,
        model_id="m",
        nulls=list(nulls),
        views=list(views),
        skips=skips,
        seed=0,
        log=LOG,
        **{"token_budget": 10**5, **options},
    )
    return read_table(paths["skip"], SKIP_SEQ), read_table(paths["output_change"], SKIP_OUT_SEQ)


def rows(table: pa.Table, **wanted) -> list[dict]:
    return [row for row in table.to_pylist() if all(row[k] == v for k, v in wanted.items())]


def sorted_rows(table: pa.Table) -> list[str]:
    return sorted(json.dumps(row, default=str) for row in table.to_pylist())


class TestSettings:
    def test_what_is_not_given_has_the_defaults(self):
        assert read_settings(Skips, '{"draws": 2, "parts": ["mlp"]}', "--skips") == Skips(parts=("mlp",), draws=2)

    def test_parity_takes_the_sets_that_it_knows(self):
        assert read_settings(Skips, '{"parity": true}', "--skips") == Skips(pos_sets=("all", "prefix"), parity=True)
        assert read_settings(Skips, '{"parity": true, "pos_sets": ["prefix"]}', "--skips").pos_sets == ("prefix",)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "expected a JSON object"),
            ("[]", "expected a JSON object"),
            ('{"part": ["mlp"]}', "keys among parts, pos_sets"),
            ('{"parts": "mlp"}', "parts is not a list"),
            ('{"parts": ["head"]}', "expected at least one of layer, attn, mlp, geom"),
            ('{"parts": []}', "expected at least one of"),
            ('{"pos_sets": ["all", "all"]}', "none twice"),
            ('{"ablations": ["noise"]}', "zero, mean, resample"),
            ('{"draws": 0}', "draws is 0; expected a whole number from 1 on"),
            ('{"draws": true}', "draws is True"),
            ('{"local": 1}', "local is 1; expected true or false"),
            ('{"parity": true, "pos_sets": ["other"]}', "parity knows the pos_sets all and prefix"),
            ('{"supporting": ["zero"]}', "expected at least one of mean, resample"),
            ('{"supporting": "mean"}', "supporting is not a list"),
            ('{"supporting": ["mean"], "parts": ["attn"]}', "give layer among the parts"),
            ('{"supporting": ["mean"], "pos_sets": ["all"]}', "prefix or other among the pos_sets"),
        ],
    )
    def test_a_setting_that_cannot_be_is_refused(self, text, message):
        with pytest.raises(SettingsError, match=message):
            read_settings(Skips, text, "--skips")


class TestReductions:
    def test_hand_computed_effects(self):
        size = np.array([[1.0, 2, 4, 9], [1, 1, 1, 9]])
        change = np.array([[[0.5, 1, 4, 9], [0, 0, 3, 9]]])
        read = residues = np.array([True, True, True, False])
        found = {k: v[0].tolist() for k, v in reduce_effects(change, size, read, residues).items()}
        assert found == {
            "n": [3, 3],
            "n_nan": [0, 0],
            "sum": [2.0, 3.0],
            "sumsq": [1.5, 9.0],
            "num": [5.5, 3.0],
            "den": [7.0, 3.0],
            "p95": [pytest.approx(0.95), pytest.approx(2.7)],
            "max": [1.0, 3.0],
        }

    def test_a_vanishing_clean_update_leaves_the_ratio_undefined(self):
        size = np.array([[1.0, 1e-6, 1.1e-6], [0, 0, 0]])
        change = np.full((1, 2, 3), 1e-6)
        everywhere = np.full(3, True)
        found = reduce_effects(change, size, everywhere, everywhere)
        assert found["n"][0].tolist() == [2, 0] and found["n_nan"][0].tolist() == [1, 3]
        assert found["max"][0, 0] == pytest.approx(1 / 1.1) and np.isnan(found["max"][0, 1])
        assert found["num"][0].tolist() == pytest.approx([3e-6, 3e-6])

    def test_the_largest_update_is_sought_over_residues_only_and_also_where_nothing_is_read(self):
        size = np.array([[1e-7, 1.0, 1e3]])
        change = np.ones((1, 1, 3))
        read, residues = np.array([True, False, False]), np.array([True, True, False])
        assert reduce_effects(change, size, read, residues)["n"][0, 0] == 0
        assert reduce_effects(change, size * 20, read | residues, residues)["n"][0, 0] == 1

    def test_parity_clamps_instead(self):
        found = reduce_effects(
            np.ones((1, 1, 2)), np.array([[0.0, 2.0]]), np.full(2, True), np.full(2, True), parity=True
        )
        assert found["n"][0, 0] == 2 and found["max"][0, 0] == pytest.approx(1e6)

    def test_output_values(self):
        found = reduce_output(np.array([[1.0, np.nan, 3.0], [np.nan] * 3]))
        assert found["n"].tolist() == [2, 0] and found["n_nan"].tolist() == [1, 3]
        assert found["sum"].tolist() == [4, 0] and found["sumsq"].tolist() == [10, 0]
        assert found["p95"][0] == pytest.approx(2.9) and found["max"][0] == 3
        assert np.isnan(found["p95"][1]) and np.isnan(found["max"][1])


class TestRows:
    def test_every_source_of_every_sweep_has_its_row(self, tmp_path):
        adapter = toy(n_blocks=3)
        effect, output = run(tmp_path, adapter, proteins(2), views=(CLEAN, MASKED), skips={"draws": 2})
        # 2 proteins x 2 views x (1 + 2 sets) x 3 parts x 3 sources; local rows have no output
        assert effect.num_rows == 2 * 2 * 3 * 3 * 3 * 2
        assert output.num_rows == 2 * 2 * 3 * 3 * 3 * 2 * len(OUTPUTS)
        keys = ["sequence_id", "noise_t", "part", "pos_set", "local", "draw", "src"]
        assert len({tuple(row[k] for k in keys) for row in effect.to_pylist()}) == effect.num_rows
        assert all(len(row["sum"]) == 3 for row in effect.to_pylist())

    def test_values_are_those_of_the_plain_measurement(self, tmp_path):
        adapter, ((sequence_id, sequence),) = toy(), proteins(1)
        effect, output = run(tmp_path, adapter, [(sequence_id, sequence)], skips={"local": False})
        masked = mask_of(MASKED, len(sequence), 0, sequence_id)
        tokens = adapter.encode(sequence, masked=masked)
        at = np.array([False, *[True] * len(sequence), False])
        clean = plain_hooks.run(adapter, tokens)[1]
        size = sum(clean.values()).norm(dim=-1).numpy()[:, 1:-1]
        for source in range(1, 7):
            change, logits = plain_hooks.skip(adapter, tokens, "attn", source, at)
            (row,) = rows(effect, part="attn", pos_set="all", src=source)
            np.testing.assert_allclose(row["sum"], (change[:, 1:-1] / size).sum(-1), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(row["max"], (change[:, 1:-1] / size).max(-1), rtol=1e-6)
            np.testing.assert_allclose(row["den"], size.sum(-1), rtol=1e-12)
            p, q = (
                torch.as_tensor(x)[1:-1][:, adapter.residue_ids].softmax(-1)
                for x in (plain_hooks.run(adapter, tokens)[0], logits)
            )
            (row,) = rows(output, part="attn", pos_set="all", src=source, vocab="aa20", quantity="tv")
            assert row["n"] == len(sequence) and row["sum"] == pytest.approx(float((p - q).abs().sum() / 2), rel=1e-10)

    def test_a_silent_block_is_zero_in_its_row_and_undefined_in_its_column(self, tmp_path):
        effect, output = run(tmp_path, with_zero_block(toy(n_blocks=4), 2), proteins(1), skips={"parts": ("layer",)})
        for row in rows(effect, src=2):
            assert [row["sum"][j] for j in (2, 3)] == [0, 0] and row["n"][1] == 0 and np.isnan(row["max"][1])
        for row in rows(effect, src=1):
            assert row["n"][1] == 0 and row["n_nan"][1] > 0
        assert all(row["sum"] == 0 for row in rows(output, src=2))

    def test_an_autoregressive_model_reads_residues_after_residues(self):
        adapter = toy(variant="causal")
        tokens = adapter.encode("ACDEF", direction="n2c")
        reads, true = reads_of(adapter, "ACDEF", tokens, FORWARD)
        assert reads.tolist() == [1, 2, 3, 4]
        assert true.tolist() == adapter.residue_ids[[AMINO_ACIDS.index(a) for a in "CDEF"]].tolist()
        reads, true = reads_of(adapter, "ACDEF", tokens, FORWARD, everywhere=True)
        assert reads.tolist() == [0, 1, 2, 3, 4, 5, 6] and (true[5:] == -1).all() and (true[:5] >= 0).all()

    def test_a_masked_model_reads_all_residues(self):
        adapter = toy()
        tokens = adapter.encode("ACDEF", masked=np.array([True, False, False, False, False]))
        reads, true = reads_of(adapter, "ACDEF", tokens, MASKED)
        assert reads.tolist() == [1, 2, 3, 4, 5] and true[0] == adapter.residue_ids[0], "the residue, not the mask"

    def test_both_directions_and_subsets_that_only_some_views_have(self, tmp_path, caplog):
        adapter = toy(variant="causal", n_blocks=2)
        views = views_of("ar", {"ar": {"directions": ["n2c", "c2n"]}})
        effect, output = run(tmp_path, adapter, proteins(1), views=views, skips={"pos_sets": ("prefix", "ctx2mask")})
        assert {row["direction"] for row in effect.to_pylist()} == {"n2c", "c2n"}
        assert {row["pos_set"] for row in effect.to_pylist()} == {"prefix"}
        assert all(np.isnan(row["noise_t"]) for row in output.to_pylist())

    def test_sets_that_a_protein_does_not_have_are_counted_in_the_log(self, tmp_path, caplog):
        with caplog.at_level(logging.INFO):
            run(
                tmp_path,
                toy(n_blocks=2),
                [("P", "MK")],
                views=(MASKED, View("none", 1.0, 0)),
                skips={"pos_sets": ("prefix", "ctx2mask"), "draws": 3, "parts": ("layer",)},
            )
        assert "5 position sets left out" in caplog.text

    def test_parity_reads_every_token_and_spares_the_first(self, tmp_path):
        adapter = toy(variant="causal", n_blocks=3)
        ((sequence_id, sequence),) = proteins(1)
        effect, output = run(
            tmp_path,
            adapter,
            [(sequence_id, sequence)],
            views=(FORWARD,),
            skips={"pos_sets": ("all", "prefix"), "draws": 4, "parity": True, "parts": ("layer",), "local": False},
        )
        n_tokens = len(sequence) + 2
        (first,) = rows(effect, pos_set="all", src=1)
        assert first["n"] == [n_tokens] * 3
        assert first["sum"][0] == n_tokens - 1 and first["max"][0] == 1, "1 at every token but the first"
        assert len(rows(effect, pos_set="prefix", src=1)) == 2, "points 8 and 16 of 24 tokens"
        for row in rows(effect, pos_set="prefix"):
            assert row["max"][row["src"] - 1] == 0
        (l2,) = rows(output, pos_set="all", src=1, vocab="full", quantity="l2")
        (dnll,) = rows(output, pos_set="all", src=1, vocab="full", quantity="dnll")
        assert l2["n"] == n_tokens and dnll["n"] == len(sequence) and dnll["n_nan"] == 2

    def test_the_geometric_branch_only_where_there_is_one(self, tmp_path, caplog):
        effect, _ = run(tmp_path, toy(n_blocks=3, geometric=True), proteins(1), skips={"parts": ("layer", "geom")})
        assert {row["src"] for row in rows(effect, part="geom")} == {1}
        with caplog.at_level(logging.INFO):
            effect, _ = run(tmp_path, toy(n_blocks=3), proteins(1), skips={"parts": ("layer", "geom")})
        assert not rows(effect, part="geom") and "geom is left out" in caplog.text


class TestBranches:
    """Sets of a causal protein that share their beginning run in one row."""

    def layouts(self, adapter, names=("all", "prefix", "other"), draws=3, parity=False):
        ((sequence_id, sequence),) = proteins(1)
        skips = Skips(pos_sets=names, draws=draws, parts=("layer", "mlp"), parity=parity)
        blocks = {"layer": tuple(range(1, adapter.n_blocks + 1)), "mlp": tuple(range(1, adapter.n_blocks + 1))}
        return proteins_of(adapter, sequence_id, sequence, FORWARD, skips, seed=0, blocks=blocks)

    def test_nested_sets_share_their_lanes_and_the_others_stay_as_they_are(self):
        branched, plain = self.layouts(toy(variant="causal"))
        assert branched.is_first and not plain.is_first and plain.work.branches is None
        assert {(s.positions.name, s.positions.draw) for s in branched.sweeps} == {
            ("all", -1), ("prefix", 0), ("prefix", 1), ("prefix", 2),
        }  # fmt: skip
        assert {s.positions.name for s in plain.sweeps} == {"other"}
        # two parts x (propagating, local) x six sources, once for four sets
        assert len(branched.work.lanes) == 2 * 2 * 6 and len(branched.sweeps) == 4 * 2 * 2
        n = branched.work.tokens.n_tokens
        assert branched.work.n_tokens < 4 * n
        source = branched.work.branches.source
        for sweep in branched.sweeps:
            assert np.array_equal(np.unique(source[sweep.positions.read]), np.sort(source[sweep.positions.read]))

    def test_a_model_that_reads_both_ways_has_one_layout(self):
        ((sequence_id, sequence),) = proteins(1)
        skips = Skips(pos_sets=("all", "prefix"), draws=3, parts=("layer",))
        (protein,) = proteins_of(toy(), sequence_id, sequence, MASKED, skips, seed=0, blocks={"layer": (1, 2)})
        assert protein.work.branches is None and len(protein.sweeps) == 8

    @pytest.mark.parametrize("parity", [False, True])
    @pytest.mark.parametrize("direction", ["n2c", "c2n"])
    @pytest.mark.parametrize("variant", [{"variant": "causal"}, {"variant": "parallel", "objective": "ar"}])
    def test_numbers_are_those_of_a_row_for_each_set(self, tmp_path, variant, direction, parity):
        adapter = toy(n_blocks=4, **variant)
        names = ("all", "prefix") if parity else ("all", "prefix", "other", "tokens")
        options = dict(views=[View(direction, float("nan"), -1)], reference=proteins(3))
        options["skips"] = {"pos_sets": names, "draws": 3, "parity": parity, "ablations": ("zero", "resample")}
        found = run(tmp_path, adapter, proteins(2), name="a", **options)
        adapter.can_branch = False
        expected = run(tmp_path, adapter, proteins(2), name="b", **options)
        keys = ["sequence_id", "part", "pos_set", "local", "ablation", "draw", "src"]
        for one, other, more in zip(found, expected, ([], ["vocab", "quantity"])):
            assert one.num_rows == other.num_rows
            by_key = {tuple(row[k] for k in keys + more): row for row in other.to_pylist()}
            for row in one.to_pylist():
                same = by_key[tuple(row[k] for k in keys + more)]
                assert row["n"] == same["n"] and row["n_nan"] == same["n_nan"]
                for name in ("sum", "sumsq", "max"):
                    np.testing.assert_allclose(row[name], same[name], rtol=1e-6 if name == "max" else 0, atol=1e-10)

    def test_the_library_family_agrees_in_single_precision(self, tmp_path):
        adapter = build("progen2", {"n_blocks": 3, "d_model": 32, "n_heads": 8}, seed=1)
        with torch.no_grad():
            for parameter in adapter.module.parameters():
                parameter.copy_(parameter * 5)
        options = dict(views=[FORWARD], skips={"pos_sets": ("all", "prefix"), "draws": 3})
        found, _ = run(tmp_path, adapter, proteins(2), name="a", **options)
        adapter.can_branch = False
        expected, _ = run(tmp_path, adapter, proteins(2), name="b", **options)
        keys = ["sequence_id", "part", "pos_set", "local", "draw", "src"]
        by_key = {tuple(row[k] for k in keys): row for row in expected.to_pylist()}
        for row in found.to_pylist():
            np.testing.assert_allclose(row["sum"], by_key[tuple(row[k] for k in keys)]["sum"], rtol=1e-4, atol=1e-5)


class TestAblations:
    def test_means_and_donors_are_updates_of_the_reference(self):
        adapter, reference = toy(n_blocks=2), proteins(3)
        blocks = {part: (1, 2) for part in ("layer", "attn", "mlp")}
        donors = donors_of(adapter, reference, MASKED, tuple(blocks), blocks, seed=0)
        walked = {}
        for sequence_id, sequence in reference:
            masked = mask_of(MASKED, len(sequence), 0, sequence_id)
            walked[sequence_id] = plain_hooks.run(adapter, adapter.encode(sequence, masked=masked))[1]
        everything = {
            "attn": torch.cat([w["attn"][:, 1:-1] for w in walked.values()], 1),
            "mlp": torch.cat([w["mlp"][:, 1:-1] for w in walked.values()], 1),
        }
        everything["layer"] = everything["attn"] + everything["mlp"]
        for part, values in everything.items():
            for block in (1, 2):
                torch.testing.assert_close(donors.mean[part, block], values[block - 1].mean(0), rtol=0, atol=1e-12)
                pool = donors.pool[part, block]
                assert len(pool) == len(donors.owner) == 16 * 3
                assert torch.cdist(pool, values[block - 1]).min(1).values.max() < 1e-6

    def test_no_protein_stands_in_for_itself(self):
        adapter, reference = toy(n_blocks=2), proteins(2)
        skips = Skips(ablations=("resample",), pos_sets=("all",), parts=("layer",), local=False)
        blocks = {"layer": (1, 2)}
        donors = donors_of(adapter, reference, MASKED, ("layer",), blocks, seed=0)
        (protein,) = proteins_of(adapter, *reference[0], MASKED, skips, seed=0, blocks=blocks, donors=donors)
        for lane in protein.work.lanes:
            assert (donors.owner[lane.edits[0].by.donor] == "P1").all()
        with pytest.raises(InterventionError, match="no protein but P0"):
            alone = Donors(donors.mean, donors.pool, np.array(["P0"] * 32))
            proteins_of(adapter, *reference[0], MASKED, skips, seed=0, blocks=blocks, donors=alone)

    def test_they_need_a_reference(self, tmp_path):
        with pytest.raises(InterventionError, match="need --reference"):
            run(tmp_path, toy(), proteins(1), skips={"ablations": ("mean",)})

    @pytest.mark.parametrize(
        ("variant", "view", "primary"), [("sequential", MASKED, "other"), ("causal", FORWARD, "prefix")]
    )
    def test_claims_are_supported_by_whole_blocks_once_a_protein(self, tmp_path, variant, view, primary):
        adapter = toy(n_blocks=3, variant=variant)
        options = dict(views=(view,), reference=proteins(3))
        skips = {"pos_sets": ("all", "prefix", "other"), "draws": 2, "parts": ("layer", "mlp"), "local": False}
        both = run(tmp_path, adapter, proteins(2), name="a", skips=skips | {"supporting": ("mean",)}, **options)
        plain = run(tmp_path, adapter, proteins(2), name="b", skips=skips, **options)
        every = run(tmp_path, adapter, proteins(2), name="c", skips=skips | {"ablations": ("zero", "mean")}, **options)
        for k, per_source in ((0, 1), (1, 2 * len(OUTPUTS))):
            own = rows(both[k], ablation="mean")
            assert {(r["part"], r["pos_set"], r["draw"]) for r in own} == {("layer", primary, 0)}
            assert len(own) == 2 * 3 * per_source
            same = rows(every[k], ablation="mean", part="layer", pos_set=primary, draw=0)
            for found, expected in ((rows(both[k], ablation="zero"), rows(plain[k])), (own, same)):
                assert len(found) == len(expected)
                for one, other in zip(found, expected):
                    np.testing.assert_allclose(one["sum"], other["sum"], rtol=0, atol=1e-11)

    def test_all_three_stand_in_the_table(self, tmp_path):
        effect, _ = run(
            tmp_path,
            toy(n_blocks=3),
            proteins(1),
            reference=proteins(3),
            skips={"ablations": ("zero", "mean", "resample"), "local": True, "pos_sets": ("other",), "parts": ("mlp",)},
        )
        assert {(row["ablation"], row["local"]) for row in effect.to_pylist()} == {
            ("zero", False), ("zero", True), ("mean", False), ("resample", False),
        }  # fmt: skip
        values = {a: rows(effect, ablation=a, src=1, local=False)[0]["sum"][2] for a in ("zero", "mean", "resample")}
        assert len(set(values.values())) == 3 and min(values.values()) > 0


class TestHalfPrecision:
    @pytest.mark.parametrize("family", ["esm2", "progen2", "esmc"])
    def test_effects_are_those_of_single_precision_within_a_few_percent(self, tmp_path, family):
        view = FORWARD if family == "progen2" else MASKED
        found = {}
        for dtype in ("float32", "bfloat16"):
            adapter = in_dtype(family, dtype)
            found[dtype], _ = run(
                tmp_path,
                adapter,
                proteins(2),
                views=[view],
                name=dtype,
                reference=proteins(4),
                skips={"pos_sets": ("all", "prefix"), "ablations": ("zero", "mean", "resample")},
            )
        keys = ["sequence_id", "part", "pos_set", "local", "ablation", "draw", "src"]
        by_key = {tuple(row[k] for k in keys): row for row in found["float32"].to_pylist()}
        assert found["bfloat16"].column("dtype").unique().to_pylist() == ["bfloat16"]
        for row in found["bfloat16"].to_pylist():
            same = by_key[tuple(row[k] for k in keys)]
            assert row["n"] == same["n"]
            np.testing.assert_allclose(row["sum"], same["sum"], rtol=0.08, atol=0.02 * max(same["n"]))


def in_dtype(family: str, dtype: str, n_blocks: int = 3):
    """Return a small model whose updates are as large as its stream, its matrices in a dtype."""
    adapter = build(family, {"n_blocks": n_blocks, "d_model": 64, "n_heads": 1 if family == "esmc" else 8}, seed=1)
    with torch.no_grad():
        for parameter in adapter.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    checkpoints.cast_parameters(adapter.module, dtype)
    adapter.dtype = dtype
    return adapter


FLOOR_OPTIONS = {"seed": 0, "token_budget": 10**5, "max_padding": 0.0, "log": LOG}


class TestNoiseFloor:
    def test_it_is_zero_or_a_last_bit_in_double_precision(self):
        floor = noise_floor(toy(), MASKED, ("layer", "attn"), **FLOOR_OPTIONS)
        assert floor.target.max() <= 1e-13 and max(floor.output.values()) <= 1e-12

    @pytest.mark.parametrize("family", ["esm2", "esmc", "progen2"])
    def test_half_precision_is_noisier_than_single_by_its_lost_digits(self, family):
        view = FORWARD if family == "progen2" else MASKED
        single, half = (
            noise_floor(in_dtype(family, dtype), view, ("layer", "attn"), **FLOOR_OPTIONS)
            for dtype in ("float32", "bfloat16")
        )
        # Nothing of a causal protein sees padding: its first block may be the same to the bit.
        seen = slice(1 if family == "progen2" else 0, None)
        assert (single.target[seen] > 0).all() and (half.target[seen] > 100 * single.target[seen]).all()
        assert single.target.max() < 1e-5 and half.target.max() < 0.05
        for v in ("aa20", "full"):
            assert half.output[v, "l2"] > 100 * single.output[v, "l2"] > 0

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("family", ["esm2", "esmc", "progen2"])
    def test_what_the_batches_change_is_less(self, tmp_path, family, dtype):
        """Alone, beside others with padding, lanes in groups: token budgets and neighbours of any run.

        The floor is an estimate from two proteins, so what is called measured lies ``FLOORS`` times above it.
        """
        adapter, view = in_dtype(family, dtype), FORWARD if family == "progen2" else MASKED
        sequences = proteins(5, lengths=(61, 63, 58, 61, 30))
        skips = {"pos_sets": ("all", "prefix" if family == "progen2" else "other"), "draws": 2}
        tables, floor = {}, None
        for name, budget, padding in (("a", 10**6, 0.0), ("b", 10**6, 0.2), ("c", 3000, 0.0), ("d", 700, 0.2)):
            options = dict(token_budget=budget, max_padding=padding, views=(view,), skips=skips)
            tables[name] = run(tmp_path, adapter, sequences, name=name, **options)
            noise = json.loads(read_metadata(tmp_path / f"{name}.skip.parquet")["noise_floor"])["trained"]
            floor = floor or noise
        keys = ["sequence_id", "part", "pos_set", "local", "draw", "src"]
        largest = 0.0
        for name in "bcd":
            for kind, more in ((0, []), (1, ["vocab", "quantity"])):
                others = {tuple(row[k] for k in keys + more): row for row in tables[name][kind].to_pylist()}
                for row in tables["a"][kind].to_pylist():
                    other = others[tuple(row[k] for k in keys + more)]
                    n = np.maximum(row["n"], 1)
                    apart = np.abs(np.array(row["sum"]) - other["sum"]) / n
                    if kind == 0:
                        assert (apart <= effects.FLOORS * np.array(floor["target"])).all(), (name, row)
                    elif row["quantity"] == "flip1":
                        assert apart * n <= 4, "likeliest residues that are hardly so"
                    else:
                        limit = effects.FLOORS * floor["output"][f"{row['vocab']} {row['quantity']}"]
                        assert apart <= limit, (name, row)
                    largest = max(largest, np.max(apart))
        # Nothing of a causal protein sees padding.
        assert family == "progen2" or largest > (1e-4 if dtype == "bfloat16" else 1e-8), "the batches do differ"

    def test_its_cost_does_not_grow_with_the_depth_of_the_model(self):
        lanes = {
            n: len(effects._floor_work(toy(n_blocks=n), MASKED, ("layer", "mlp", "geom"), 20, 0)[0].lanes)
            for n in (2, 4, 12)
        }
        assert lanes == {2: 2 * 2 * 2, 4: 2 * 2 * 4, 12: 2 * 2 * 4}

    def test_a_short_limit_of_the_model_is_kept(self, monkeypatch):
        adapter = toy(n_blocks=2)
        adapter.max_residues = 40
        seen = []
        original = effects._floor_work
        monkeypatch.setattr(effects, "_floor_work", lambda *given: seen.append(given[3]) or original(*given))
        noise_floor(adapter, MASKED, ("layer",), **FLOOR_OPTIONS)
        assert seen == [32, 40, 32, 40]

    def test_it_stands_in_the_metadata_of_both_tables(self, tmp_path):
        nulls = (TRAINED, Null("randinit", 3))
        run(tmp_path, toy(n_blocks=3), proteins(1), nulls=nulls, skips={"parts": ("layer",)})
        for name in ("x.skip.parquet", "x.out.parquet"):
            noise = json.loads(read_metadata(tmp_path / name)["noise_floor"])
            assert set(noise) == {"trained", "randinit (seed 3)"}
            assert len(noise["trained"]["target"]) == 3 and "aa20 l2" in noise["trained"]["output"]

    def test_values_below_three_floors_are_flagged(self, tmp_path, monkeypatch):
        def loud(adapter, *args, **options):
            floor = noise_floor(adapter, *args, **options)
            return effects.Floor(np.array([0.0, 0.3, 10.0]), dict.fromkeys(floor.output, 10.0))

        monkeypatch.setattr(effects, "noise_floor", loud)
        effect, output = run(tmp_path, toy(n_blocks=3), proteins(1), skips={"parts": ("layer",)})
        for row in effect.to_pylist():
            means = np.array(row["sum"]) / np.array(row["n"])
            targets = np.arange(1, 4)
            assert row["below_floor"] == ((means < [0, 0.9, 30]) & (targets >= row["src"])).tolist()
        assert all(row["below_floor"] for row in output.to_pylist())


class TestWhatMustNotMatter:
    def test_one_shard_or_several(self, tmp_path):
        adapter, sequences = build("esm2", {"n_blocks": 3, "d_model": 32, "n_heads": 4}, seed=1), proteins(5)
        whole = run(tmp_path, adapter, sequences, name="whole")
        parts = [run(tmp_path, adapter, part, name=f"{i}") for i, part in enumerate((sequences[3:], sequences[:3]))]
        for k in range(2):
            one, several = sorted_rows(whole[k]), sorted_rows(pa.concat_tables([p[k] for p in parts]))
            assert one == several

    def test_the_token_budget_beyond_rounding(self, tmp_path):
        adapter, sequences = toy(), proteins(4)
        effect, _ = run(tmp_path, adapter, sequences, name="a")
        small, _ = run(tmp_path, adapter, sequences, name="b", token_budget=60)
        keys = ["sequence_id", "part", "pos_set", "local", "draw", "src"]
        by_key = {tuple(row[k] for k in keys): row for row in small.to_pylist()}
        for row in effect.to_pylist():
            np.testing.assert_allclose(by_key[tuple(row[k] for k in keys)]["sum"], row["sum"], rtol=0, atol=1e-11)

    def test_peak_rows_do_not_grow_with_the_number_of_proteins(self, tmp_path, monkeypatch):
        planned = []
        original = effects.in_portions

        def watched(prepared):
            for portion in original(prepared):
                planned.append(len(portion))
                yield portion

        monkeypatch.setattr(effects, "in_portions", watched)
        monkeypatch.setattr(effects, "LANES_AT_ONCE", 30)
        run(tmp_path, toy(n_blocks=2), proteins(9), skips={"parts": ("layer",)})
        assert sum(planned) == 9 and max(planned) <= 4

    def test_weights_are_as_before_after_the_nulls(self, tmp_path):
        adapter = build("esm2", {"n_blocks": 2, "d_model": 16, "n_heads": 2}, seed=1)
        before = [p.clone() for p in adapter.module.parameters()]
        nulls = [Null("randinit", 0), Null("shuffle_w", 0), Null("shuffle_seq", 0), TRAINED]
        effect, _ = run(tmp_path, adapter, proteins(1), nulls=nulls, skips={"parts": ("layer",)})
        assert all(torch.equal(x, y) for x, y in zip(before, adapter.module.parameters()))
        sums = {row["null_model"]: row["sum"][1] for row in rows(effect, src=1, pos_set="all", local=False)}
        assert len(set(sums.values())) == 4


class TestFailures:
    def test_nan_weights_are_named_and_nothing_is_written(self, tmp_path):
        adapter = toy()
        with torch.no_grad():
            adapter.module.blocks[3].mlp_out.bias[0] = float("nan")
        with pytest.raises(
            ExtractionError, match=r"updates of block 4 of m \(trained\) are NaN or infinite in protein P0"
        ):
            run(tmp_path, adapter, proteins(1))
        assert list(tmp_path.iterdir()) == []

    def test_a_protein_that_cannot_be_read_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"protein Q: .*'b' at position 1"):
            run(tmp_path, toy(), [("Q", "AbC")])

    def test_the_command_ends_in_one_message(self, tmp_path):
        arguments = ["--card", "c.json", "--sequences", str(tmp_path / "none.parquet"), "--inputs", "{}", "--seed", "0"]
        arguments += ["--skip", str(tmp_path / "s"), "--output-change", str(tmp_path / "o")]
        for nulls, skips, message in (
            ("[]", "{}", "activations.effects: --nulls"),
            ('[{"null_model": "trained", "seed": -1}]', '{"x": 1}', "activations.effects: --skips"),
            ('[{"null_model": "trained", "seed": -1}]', "{}", "none.parquet: not a readable Parquet file"),
        ):
            with pytest.raises(SystemExit, match=message):
                effects.main([*arguments, "--nulls", nulls, "--skips", skips])


def test_the_command_writes_both_tables(tmp_path):
    from plm_depth.models import describe
    from plm_depth.models.registry import save
    from plm_depth.tables import SEQUENCES, write_table

    adapter = build("progen2", {"n_blocks": 2, "d_model": 32, "n_heads": 8}, seed=1)
    save(adapter, tmp_path / "model")
    describe.main(
        f"--model toy --family progen2 --folder {tmp_path}/model --dtype float32 --revision none "
        f"--output {tmp_path}/card.json".split()
    )
    shard = [
        {"sequence_id": i, "sequence_hash": "", "rank": k, "n_residues": len(s), "sequence": s}
        for k, (i, s) in enumerate(proteins(2))
    ]
    write_table({k: [row[k] for row in shard] for k in shard[0]}, SEQUENCES, tmp_path / "shard.parquet")
    effects.main(
        [
            *f"--card {tmp_path}/card.json --sequences {tmp_path}/shard.parquet --seed 3 --threads 1".split(),
            *f"--reference {tmp_path}/shard.parquet --device cpu --skip {tmp_path}/skip.parquet".split(),
            *("--output-change", f"{tmp_path}/out.parquet", "--nulls", '[{"null_model": "trained", "seed": -1}]'),
            *("--inputs", '{"ar": {"directions": ["n2c"]}}'),
            *("--skips", '{"pos_sets": ["prefix"], "draws": 2, "ablations": ["zero", "mean"]}'),
        ]
    )
    effect = read_table(tmp_path / "skip.parquet", SKIP_SEQ)
    # 2 proteins x 2 draws x 3 parts x 2 sources x (zero, zero local, mean)
    assert effect.num_rows == 2 * 2 * 3 * 2 * 3 and set(effect.column("model_id").to_pylist()) == {"toy"}
    assert read_table(tmp_path / "out.parquet", SKIP_OUT_SEQ).num_rows == 2 * 2 * 3 * 2 * 2 * 2 * 5


def test_a_table_writer_leaves_nothing_behind_after_an_error(tmp_path):
    from plm_depth.tables import SEQUENCES, TableWriter

    with pytest.raises(TableError, match="columns missing"), TableWriter(tmp_path / "t.parquet", SEQUENCES) as table:
        table.append({"rank": [1]})
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------
# Two tracks of tokens, mixtures of experts


def walked(adapter, tokens, silenced=None, at=None):
    """Return the updates and the streams that the MLPs read, block by block; plainly, one run."""
    stream, context = adapter.embed(adapter.collate([tokens]))
    updates = []
    for block in range(1, adapter.n_blocks + 1):
        update = adapter.updates(block, stream, context)
        after = adapter.add(stream, update)
        if block == silenced:
            after[0, at] = stream[0, at]
        stream = after
        updates.append(update)
    return updates


def lively(family, **sizes):
    adapter = build(family, {"n_blocks": 3, "d_model": 32, "n_heads": 4, **sizes}, seed=1)
    with torch.no_grad():
        for parameter in adapter.module.parameters():
            parameter *= 4 if parameter.ndim > 1 else 1
    return adapter


@torch.inference_mode()
def test_one_track_is_silenced_and_the_other_read(tmp_path):
    adapter = lively("dplm2")
    (sequence_id, sequence), *_ = proteins(1)
    codes = np.arange(len(sequence)) % 20
    shown = {"condition": "seq_struct", "structure": Structure(codes=codes)}
    effect, _ = run(
        tmp_path,
        adapter,
        [(sequence_id, sequence)],
        skips={"pos_sets": ("struct2seq", "seq2struct"), "parts": ("layer",), "local": False},
        conditions=["seq_struct"],
        structures={sequence_id: shown["structure"]},
    )
    masked = mask_of(MASKED, len(sequence), 0, sequence_id)
    tokens = adapter.encode(sequence, masked=masked, struct_at_mask="keep", **shown)
    assert len(set(tokens.structure_tokens) | set(tokens.residue_tokens)) == 2 * len(sequence)
    clean = walked(adapter, tokens)
    for pos_set, skip, read in (
        ("struct2seq", tokens.structure_tokens, tokens.residue_tokens),
        ("seq2struct", tokens.residue_tokens, tokens.structure_tokens),
    ):
        altered = walked(adapter, tokens, silenced=1, at=skip)
        (row,) = rows(effect, pos_set=pos_set, src=1)
        for block in (2, 3):
            before, after = clean[block - 1].total[0, read], altered[block - 1].total[0, read]
            expected = ((before - after).norm(dim=-1) / before.norm(dim=-1)).sum().item()
            assert row["sum"][block - 1] == pytest.approx(expected, rel=1e-3)
        assert row["sum"][0] == 0, "the silenced block itself is read where it is kept"


def test_a_model_of_one_track_has_no_sets_across_tracks(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        skips = {"pos_sets": ("struct2seq",), "parts": ("layer",)}
        effect, _ = run(tmp_path, toy(n_blocks=2), proteins(1), skips=skips)
    assert effect.num_rows == 0 and "without a second track" in caplog.text


@torch.inference_mode()
def test_router_flips_are_the_share_of_later_blocks_in_which_a_token_takes_other_experts(tmp_path):
    adapter = lively("progen3", n_experts=6, n_active=2)
    (sequence_id, sequence), *_ = proteins(1)
    _, output = run(
        tmp_path,
        adapter,
        [(sequence_id, sequence)],
        views=(FORWARD,),
        skips={"pos_sets": ("all",), "parts": ("layer",), "local": False},
    )
    tokens = adapter.encode(sequence, direction="n2c")

    def chosen(updates):
        return [adapter.experts(block, update.middle)[0] for block, update in enumerate(updates, 1)]

    clean = chosen(walked(adapter, tokens))
    assert all((taken.sum(-1) == 2).all() for taken in clean)
    flips = {row["src"]: row for row in rows(output, quantity="router_flip")}
    assert set(flips) == {1, 2, 3}
    for source in (1, 2):
        altered = chosen(walked(adapter, tokens, silenced=source, at=tokens.residue_tokens))
        later = [(clean[b] != altered[b]).any(-1)[tokens.residue_tokens].float().numpy() for b in range(source, 3)]
        assert flips[source]["sum"] == pytest.approx(np.mean(later, 0).sum(), rel=1e-5)
    assert flips[1]["sum"] > 0 and flips[3]["n"] == 0, "no block is after the last"


def test_models_without_experts_have_no_router_flips(tmp_path):
    _, output = run(tmp_path, toy(n_blocks=2), proteins(1), skips={"pos_sets": ("all",), "parts": ("layer",)})
    assert not rows(output, quantity="router_flip")
