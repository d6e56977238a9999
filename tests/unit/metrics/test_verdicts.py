"""Claims as tests: the four outcomes, planted models for which a claim is true or false, and untrained ones."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planted import Toy, toy
from plm_depth.activations import effects
from plm_depth.activations.ablation import Ablations, Protein
from plm_depth.activations.ablation import measure as measure_ablation
from plm_depth.activations.effects import Skips, measure
from plm_depth.activations.extract import Files, extract
from plm_depth.activations.nulls import Null
from plm_depth.metrics import verdicts as stage
from plm_depth.metrics.ablation import Profiles, ablations_of, with_changes
from plm_depth.metrics.bootstrap import Bootstrap, holm
from plm_depth.metrics.contributions import contributions
from plm_depth.metrics.lens import lens
from plm_depth.metrics.skip import half_contrast, n80, participation, views_in
from plm_depth.metrics.verdicts import (
    Evidence,
    Judgement,
    Margins,
    Model,
    Network,
    Rule,
    Statistic,
    claim_of_all,
    claim_of_concentration,
    claim_of_family,
    claim_of_structure,
    claims_of_model,
    combined,
    evidence_of,
    judge,
    judge_shift,
    judged,
    kl_share,
    late_over_early,
    median_of_rest,
    outside_80,
)
from plm_depth.models.base import Structure
from plm_depth.models.registry import build
from plm_depth.randomness import generator
from plm_depth.tables import ABLATE_SEQ, AMINO_ACIDS, ATTR_SEQ, CLUSTERS, VERDICT, TableError, read_table, write_table
from plm_depth.views import View

LOG = logging.getLogger("test")
FEW = Margins(clusters=4)
NAMES = [f"P{i}" for i in range(6)]
BOOTSTRAP = Bootstrap.of({name: name for name in NAMES}, n_boot=400, seed=1)
BELOW_ONE = Rule(-1, 0.9, 1.0, True)
ABOVE_HALF = Rule(1, 0.5, 0.5, False)


def around(value: float, spread: float = 0.01, **about) -> Statistic:
    """Return a statistic with resamples evenly spread around its value."""
    resampled = value + spread * np.linspace(-1, 1, 400)
    return Statistic(value, resampled, **{"n_cluster": 60, "n_seq": 100, **about})


def network(**values: float) -> Network:
    return Network({name.replace("_", " "): around(value) for name, value in values.items()})


class TestStatistics:
    def test_hand_computed(self):
        assert half_contrast(np.array([1.0, 1, 9, 3, 3])) == pytest.approx(0.5), "the middle block is in neither half"
        assert n80(np.array([8.0, 1, 0.5, 0.5])) == 0.25 and n80(np.array([7.0, 1, 1, 1])) == 0.5
        assert participation(np.array([1.0, 1, 0, 0])) == 0.5
        assert late_over_early(np.array([1.0, 3, 1, 99])) == 0.5, "the last block is left out"
        assert kl_share(np.array([4.0, 3, 2, 1, 0])) == 0.5 and kl_share(np.array([4.0, 3, 3, 0])) == 0.75

    @pytest.mark.parametrize("n", [2, 4, 5, 10, 33])
    def test_a_uniform_profile(self, n):
        blocks = np.ones(n)
        assert half_contrast(blocks) == 0 and participation(blocks) == pytest.approx(1)
        assert n80(blocks) == math.ceil(0.8 * n) / n

    @pytest.mark.parametrize("k", range(6))
    def test_all_in_one_block(self, k):
        blocks = np.eye(6)[k]
        assert n80(blocks) == 1 / 6 and participation(blocks) == pytest.approx(1 / 6)
        assert half_contrast(blocks) == (1 if k >= 3 else -1)

    @given(st.lists(st.floats(0.01, 10), min_size=4, max_size=9), st.floats(0.01, 100))
    @settings(max_examples=50, deadline=None)
    def test_scale_does_not_matter(self, values, factor):
        x = np.array(values)
        for statistic in (half_contrast, participation, late_over_early, kl_share):
            assert statistic(x * factor) == pytest.approx(float(statistic(x)), rel=1e-9, abs=1e-12)

    def test_what_is_undefined(self):
        assert (
            np.isnan(n80(np.zeros(4))) and np.isnan(participation(np.zeros(4))) and np.isnan(half_contrast(np.ones(1)))
        )
        assert np.isnan(late_over_early(np.ones(2))) and np.isnan(kl_share(np.zeros(5)))

    def test_resamples_are_rows(self):
        x = np.random.default_rng(0).random((7, 6))
        for statistic in (half_contrast, n80, participation, late_over_early, kl_share):
            np.testing.assert_allclose(statistic(x), [statistic(row) for row in x])

    def test_holm(self):
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.9, 0.9]) == [1, 1] and holm([]) == []


class TestFourOutcomes:
    untrained = tuple(around(v) for v in (0.84, 0.86, 0.85))

    def verdict(self, trained, untrained=None, rule=BELOW_ONE, margins=None) -> Judgement:
        return judge(trained, self.untrained if untrained is None else untrained, rule, margins or Margins())

    def test_pass(self):
        found = self.verdict(around(0.5))
        assert found.verdict == "pass" and found.ci_lo < 0.5 < found.ci_hi < 0.9
        assert found.null_lo < found.null_value < found.null_hi and found.null_value == pytest.approx(0.85, abs=1e-3)

    def test_pass_descriptive_if_an_untrained_network_shows_it_too(self):
        assert self.verdict(around(0.85)).verdict == "pass_descriptive"
        assert self.verdict(around(0.83)).verdict == "pass_descriptive", "within the spread of the seeds"

    def test_fail_beyond_no_effect_on_the_other_side(self):
        assert self.verdict(around(1.2)).verdict == "fail"
        assert self.verdict(around(0.3), rule=ABOVE_HALF).verdict == "fail"

    @pytest.mark.parametrize("value", [0.895, 0.95, 1.005])
    def test_inconclusive_between(self, value):
        assert self.verdict(around(value)).verdict == "inconclusive"

    def test_a_wide_spread_of_seeds_forbids_a_pass(self):
        assert self.verdict(around(0.5), [around(v) for v in (0.4, 1.1, 0.8)]).verdict == "pass_descriptive"

    def test_a_wide_interval_of_the_trained_network_forbids_a_pass(self):
        assert self.verdict(around(0.5, 0.45)).verdict == "inconclusive"

    def test_differences_on_the_other_side(self):
        nulls = [around(v) for v in (0.52, 0.5, 0.48)]
        assert self.verdict(around(0.9), nulls, ABOVE_HALF).verdict == "pass"
        assert self.verdict(around(0.55), nulls, ABOVE_HALF).verdict == "pass_descriptive"

    @pytest.mark.parametrize(
        ("trained", "untrained", "reason"),
        [
            (around(0.5, n_cluster=49), None, "49 similarity clusters, 50 are needed"),
            (around(0.5, below_floor=0.06), None, "6% of the proteins are below three times the noise floor"),
            (around(math.nan), None, "undefined"),
            (around(0.5), [], "0 untrained networks to compare with, 2 are needed"),
            (around(0.5), [around(0.8)], "1 untrained networks"),
        ],
    )
    def test_what_cannot_be_judged_is_inconclusive_with_its_reason(self, trained, untrained, reason):
        found = self.verdict(trained, untrained)
        assert found.verdict == "inconclusive" and reason in found.reason

    def test_margins_come_from_the_config(self):
        assert self.verdict(around(0.5), margins=Margins(clusters=100)).verdict == "inconclusive"
        assert self.verdict(around(0.5, below_floor=0.06), margins=Margins(below_floor=0.1)).verdict == "pass"
        assert self.verdict(around(0.5), rule=Rule(-1, 0.4, 1.0, True)).verdict == "inconclusive"

    @pytest.mark.parametrize("given", [[], {"x": 1}, {"tau": "low"}, {"clusters": True}, {"null_seeds": 1}])
    def test_margins_that_are_none_are_refused(self, given):
        with pytest.raises(ValueError, match="--margins"):
            Margins.of(given)


class TestClaims:
    def test_a_claim_needs_all_of_its_parts(self):
        assert combined([("a", "pass"), ("b", "pass")])[0] == "pass"
        assert combined([("a", "pass"), ("b", "pass_descriptive")])[0] == "pass_descriptive"
        assert combined([("a", "inconclusive"), ("b", "pass_descriptive")])[0] == "inconclusive"
        assert combined([("a", "fail"), ("b", "inconclusive")]) == ("fail", "fail: a")

    def test_a_failed_check_is_inconclusive_and_named(self):
        nulls = tuple(network(**{"LL/EE": v}) for v in (0.84, 0.86, 0.85))
        trained = Network({"LL/EE": around(0.5)}, ("a block keeps its update",))
        rows = claims_of_model(Evidence(Model("m", "f", "mlm", 6), trained, nulls), Margins())
        claim = next(row for row in rows if row["claim"] == "K1" and row["role"] == "claim")
        assert claim["verdict"] == "inconclusive" and "a block keeps its update" in claim["reason"]

    def test_missing_statistics_are_inconclusive_and_said_to_be_missing(self):
        rows = claims_of_model(Evidence(Model("m", "f", "mlm", 6), Network(), ()), Margins())
        assert {row["verdict"] for row in rows} == {"inconclusive"}
        assert {row["reason"] for row in rows if row["role"] == "decides"} == {"not measured"}
        assert next(row["reason"] for row in rows if row["role"] == "claim" and row["claim"] == "K1") == "not measured"

    @pytest.mark.parametrize(("margin", "expected"), [(0.05, "inconclusive"), (0.2, "pass_descriptive")])
    def test_late_flips_support_k2_within_the_margin_of_the_config(self, margin, expected):
        nulls = tuple(network(late_flips=v) for v in (0.09, 0.11, 0.1))
        evidence = Evidence(Model("m", "f", "mlm", 6), network(late_flips=0.1), nulls)
        rows = {row["statistic"]: row for row in claims_of_model(evidence, Margins(late_flips=margin))}
        assert (rows["late flips"]["verdict"], rows["late flips"]["margin"]) == (expected, margin)
        assert rows["late flips"]["role"] == "supports" and rows["late flips"]["claim"] == "K2"


DEPTH = dict(zip(stage.DEPTH_STATISTICS, (0.9, 0.5, 0.0, 0.8)))


def member(n_blocks: int, shift: float, null_shift: float = 0.0, names=tuple(DEPTH)) -> Evidence:
    def one(by: float) -> Network:
        return Network({name: around(value + by, 0.005) for name, value in DEPTH.items() if name in names})

    nulls = tuple(one(null_shift + 0.002 * seed) for seed in (-1, 0, 1))
    return Evidence(Model(f"m{n_blocks}", "f", "mlm", n_blocks), one(shift), nulls)


class TestDepth:
    def claim(self, members) -> dict:
        return claim_of_family(members, Margins())[-1]

    def test_true_of_three_depths(self):
        found = self.claim([member(6, 0), member(12, -0.1), member(24, -0.2)])
        assert found["verdict"] == "pass" and found["scope"] == "f", found["reason"]

    def test_true_of_untrained_networks_too(self):
        found = self.claim([member(6, 0), member(12, -0.1, -0.1), member(24, -0.2, -0.2)])
        assert found["verdict"] == "pass_descriptive"

    def test_two_depths_are_at_most_descriptive(self):
        assert self.claim([member(6, 0), member(12, -0.2)])["verdict"] == "pass_descriptive"

    def test_false(self):
        assert self.claim([member(6, 0), member(12, 0.1), member(24, 0.2)])["verdict"] == "fail"

    def test_no_difference(self):
        turned = {name: replace(s, resampled=s.resampled[::-1]) for name, s in member(24, 0).trained.statistics.items()}
        deepest = replace(member(24, 0), trained=Network(turned))
        assert self.claim([member(6, 0), member(12, -0.1), deepest])["verdict"] == "inconclusive"

    def test_not_monotone(self):
        members = [member(6, 0), member(9, 0.3), member(12, 0.4), member(24, -0.1)]
        found = self.claim(members)
        assert found["verdict"] == "inconclusive" and "Kendall tau" in found["reason"]

    def test_one_statistic_is_not_enough(self):
        members = [member(n, shift, names=("LL/EE",)) for n, shift in ((6, 0), (12, -0.1), (24, -0.2))]
        assert self.claim(members)["verdict"] == "inconclusive"

    def test_one_depth_has_no_row_and_two_models_of_one_depth_are_not_told_apart(self):
        assert claim_of_family([member(6, 0)], Margins()) == []
        found = self.claim([member(6, 0), member(12, -0.2), member(12, -0.3)])
        assert found["verdict"] == "inconclusive" and "several models" in found["reason"]

    def test_the_order_of_the_models_does_not_matter(self):
        members = [member(6, 0), member(12, -0.1), member(24, -0.2)]
        assert str(claim_of_family(members[::-1], Margins())) == str(claim_of_family(members, Margins()))


def judged_as(model: Model, k1: str, k2: str, spread: float = 0.01) -> Evidence:
    """Return a model whose claims get these verdicts, among untrained networks that are ``spread`` apart."""
    of = {"pass": 0.5, "pass_descriptive": 0.85, "inconclusive": 0.95, "fail": 1.2}
    nulls = tuple(
        network(**{"LL/EE": v, "late/early locality": v, "late share of KL fall": 0.3})
        for v in (0.85 - spread, 0.85, 0.85 + spread)
    )
    trained = network(**{"LL/EE": of[k1], "late/early locality": of[k2], "late share of KL fall": 0.8})
    return Evidence(model, trained, nulls)


class TestAllObjectives:
    models = (Model("a", "esm2", "mlm", 6), Model("b", "progen2", "ar", 6), Model("c", "dplm", "diffusion", 6))
    more = (*models, Model("d", "esmc", "mlm", 6), Model("e", "esm2", "mlm", 12))

    def claim(self, models=models, spread=0.01, **verdicts: str) -> dict:
        both = {m.model: verdicts.get(m.model, "pass") for m in models}
        return claim_of_all([judged_as(m, both[m.model], both[m.model], spread) for m in models], Margins())[-1]

    def test_the_verdicts_of_models_are_those_asked_for(self):
        for verdict in ("pass", "pass_descriptive", "inconclusive", "fail"):
            rows = claims_of_model(judged_as(self.models[0], verdict, "pass"), Margins())
            assert verdicts_by(rows) == {("K1", "a"): verdict, ("K2", "a"): "pass"}

    def test_true_if_a_family_passes_for_each(self):
        assert self.claim()["verdict"] == "pass"
        assert self.claim(self.more, d="inconclusive", e="pass_descriptive")["verdict"] == "pass"

    def test_any_failing_family_fails_it(self):
        found = self.claim(self.more, e="fail")
        assert found["verdict"] == "fail" and "esm2" in found["reason"]

    def test_descriptive_and_inconclusive(self):
        assert self.claim(b="pass_descriptive")["verdict"] == "pass_descriptive"
        found = self.claim(b="inconclusive")
        assert found["verdict"] == "inconclusive" and "for ar" in found["reason"]
        assert self.claim(self.models[:1])["verdict"] == "inconclusive"

    def test_both_claims_are_needed(self):
        one, other = (judged_as(self.models[0], "pass", "inconclusive"), judged_as(self.models[1], "pass", "pass"))
        assert claim_of_all([one, other], Margins())[-1]["verdict"] == "inconclusive"

    def test_one_pass_among_many_models_of_an_objective_must_be_a_clearer_one(self):
        spread = 0.08  # of untrained networks: 0.5 lies beyond it for one model, not for one of three
        alone, among = (
            self.claim(spread=spread),
            self.claim(self.more, spread=spread, d="inconclusive", e="inconclusive"),
        )
        assert (alone["verdict"], among["verdict"]) == ("pass", "pass_descriptive")
        rows = claim_of_all([judged_as(m, "pass", "pass") for m in self.more], Margins())
        assert next(row["reason"] for row in rows if row["scope"] == "esm2") == "mlm; pass at level 98.33%: a, e"
        assert next(row["reason"] for row in rows if row["scope"] == "dplm") == "diffusion; pass at level 95.00%: c"

    def test_families_of_many_untrained_models_hardly_pass(self):
        """Eight models of one family that are no different from the untrained networks beside them, 200 times."""
        passes = {"corrected": 0, "each alone": 0}
        for family in range(200):
            random = generator("holm", family)
            members = []
            for number in range(8):
                values = 0.6 * np.exp(0.1 * random.standard_normal(6))
                trained, *nulls = (
                    network(**{"LL/EE": v, "late/early locality": 0.1, "late share of KL fall": 0.9}) for v in values
                )
                known = [
                    replace(one, statistics={**one.statistics, "late/early locality": around(0.5 + 0.001 * i),
                                             "late share of KL fall": around(0.5 + 0.001 * i)})
                    for i, one in enumerate(nulls)
                ]  # fmt: skip
                members.append(Evidence(Model(f"m{number}", "f", "mlm", 6), trained, tuple(known)))
            row = next(row for row in claim_of_all(members, Margins()) if row["scope"] == "f")
            passes["corrected"] += row["verdict"] == "pass"
            rows = [row for one in members for row in claims_of_model(one, Margins())]
            passes["each alone"] += "pass" in [v for (claim, _), v in verdicts_by(rows).items() if claim == "K1"]
        assert passes["corrected"] <= 0.05 * 200 < 0.1 * 200 <= passes["each alone"], passes


# ----------------------------------------------------------------------------------------------------------------
# From models to verdicts


def proteins() -> list[tuple[str, str]]:
    return [(n, "".join(AMINO_ACIDS[a] for a in generator("verdict", n).integers(20, size=22))) for n in NAMES]


@pytest.fixture(autouse=True, scope="module")
def short_noise_floor():
    """Measure the noise floor on one short protein: in double precision it is a last bit anyway."""
    kept, effects.FLOOR_LENGTHS = effects.FLOOR_LENGTHS, (14,)
    yield
    effects.FLOOR_LENGTHS = kept


def tables_of(
    folder, adapter, model: Model, nulls, *, parts=("layer",), more_sets=(), views=None, effect_views=None, **conditions
) -> list:
    """Return the four per-protein tables of a model and its null models, through the stages."""
    folder.mkdir(parents=True, exist_ok=True)
    views = views or [View("n2c", math.nan, -1) if adapter.objective == "ar" else View("none", 0.15, 0)]
    subset = "prefix" if adapter.objective == "ar" else "other"
    names = ("skip", "out", "moments", "logits", "stream", "contributions", "lens")
    path = {name: folder / f"{name}.parquet" for name in names}
    networks = [Null("trained", -1), *nulls]
    options = dict(model_id=model.model, nulls=networks, views=views, seed=0, log=LOG)
    effect_options = options | {"views": effect_views or views}
    skips = Skips(parts=parts, pos_sets=("all", subset, *more_sets), draws=1, local=False)
    measure(
        adapter,
        proteins(),
        skip=path["skip"],
        output_change=path["out"],
        skips=skips,
        token_budget=10**5,
        **effect_options,
    )
    files = Files(path["moments"], path["logits"], path["stream"])
    extract(adapter, proteins(), files=files, **options, **conditions)
    contributions([path["moments"]], path["contributions"])
    lens([path["logits"]], path["lens"])
    return [path[name] for name in ("skip", "out", "lens", "contributions")]


def evidence_for(folder, adapter, model_id="m", nulls=range(4), objective=None, **options) -> Evidence:
    model = Model(model_id, adapter.family, adapter.objective, adapter.n_blocks)
    paths = tables_of(folder, adapter, model, [Null("randinit", seed) for seed in nulls], **options)
    return evidence_of(model, *([path] for path in paths), BOOTSTRAP, grid=[0.15])


def with_halves(adapter: Toy, early: tuple[float, float], late: tuple[float, float]) -> Toy:
    """Scale what attention and MLP add, early and late: (attention, MLP)."""
    for number, block in enumerate(adapter.module.blocks, start=1):
        factors = late if number > adapter.n_blocks // 2 else early
        for linear, factor in zip((block.attention_out, block.mlp_out), factors):
            linear.weight.mul_(factor)
            linear.bias.mul_(factor)
    return adapter


# Late blocks that read no other position and write much; and early blocks that do so.
REFINING, BUILDING = ((1.0, 0.2), (0.02, 12.0)), ((0.1, 4.0), (3.0, 0.2))
VARIANTS = {"mlm": {}, "ar": {"variant": "causal"}, "diffusion": {"objective": "diffusion"}}


def verdicts_by(rows, role="claim") -> dict:
    return {(row["claim"], row["scope"]): row["verdict"] for row in rows if row["role"] == role}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict[tuple[str, str], Evidence]:
    """Return, for each objective, a model for which K1 and K2 are true and one for which they are false.

    Both have one architecture, and so the same untrained networks beside them.
    """
    folder = tmp_path_factory.mktemp("planted")
    found = {}
    for objective, variant in VARIANTS.items():
        untrained = evidence_for(folder / objective, toy(seed=50, **variant), objective, range(6)).untrained
        for name, halves in (("true", REFINING), ("false", BUILDING)):
            adapter = with_halves(toy(seed=50, **variant), *halves)
            one = evidence_for(folder / objective / name, adapter, f"{objective}_{name}", (), more_sets=("tokens",))
            found[objective, name] = replace(one, untrained=untrained)
    return found


class TestPlantedModels:
    @pytest.mark.parametrize("objective", VARIANTS)
    def test_late_blocks_that_depend_on_nothing_earlier_pass_k1_and_their_opposite_fails(self, planted, objective):
        for name, expected in (("true", "pass"), ("false", "fail")):
            found = verdicts_by(claims_of_model(planted[objective, name], FEW))
            assert found["K1", f"{objective}_{name}"] == expected

    @pytest.mark.parametrize("objective", VARIANTS)
    def test_late_blocks_that_write_the_output_without_reading_others_pass_k2_and_their_opposite_fails(
        self, planted, objective
    ):
        for name, expected in (("true", "pass"), ("false", "fail")):
            rows = claims_of_model(planted[objective, name], FEW)
            shown = [(r["statistic"], r["value"], r["verdict"], r["reason"]) for r in rows if r["role"] == "decides"]
            assert verdicts_by(rows)["K2", f"{objective}_{name}"] == expected, shown

    def test_k4_passes_over_three_objectives_that_pass_and_fails_with_one_that_fails(self, planted):
        def claim(**names: str) -> dict:
            chosen = [planted[objective, name] for objective, name in names.items()]
            evidence = [replace(one, model=replace(one.model, family=one.model.objective)) for one in chosen]
            return next(row for row in judged(evidence, FEW) if (row["claim"], row["scope"]) == ("K4", "all"))

        passing = dict.fromkeys(VARIANTS, "true")
        assert claim(**passing)["verdict"] == "pass"
        for objective in VARIANTS:
            found = claim(**passing | {objective: "false"})
            assert found["verdict"] == "fail" and objective in found["reason"]

    def test_k3_of_a_planted_family_and_of_its_reverse(self, tmp_path):
        def family(strength: dict[int, float]) -> list[Evidence]:
            return [
                evidence_for(
                    tmp_path / f"{n}_{late}",
                    with_halves(toy(seed=50, n_blocks=n), (1.0, 1.0), (late, late)),
                    f"toy_{n}",
                    range(3),
                )
                for n, late in strength.items()
            ]

        for strength, expected in (({4: 1.5, 6: 0.5, 8: 0.05}, {"pass"}), ({4: 0.05, 6: 0.5, 8: 1.5}, {"fail"})):
            rows = claim_of_family(family(strength), FEW)
            assert rows[-1]["verdict"] in expected, [
                (r["statistic"], r["value"], r["verdict"], r["reason"]) for r in rows
            ]

    def test_the_checks_on_the_data_pass(self, planted):
        assert all(one.trained.failed == () for one in planted.values())

    def test_supporting_rows_stand_beside(self, planted):
        names = {row["statistic"] for row in claims_of_model(planted["mlm", "true"], FEW) if row["role"] == "supports"}
        assert names == {"spearman dependence", "late cos_u", "late flips"}


class Folded(Toy):
    """A toy that reads the states of a structure, where it is shown one, as if they were the residues."""

    conditions = ("seq", "seq_struct", "struct")
    reads_structure = ("three_di",)

    def encode(
        self, sequence, *, masked=None, direction="none", structure=None, condition="seq", struct_at_mask="keep"
    ):
        if condition == "struct":
            masked = np.full(len(sequence), True)
        shown = sequence if condition == "seq" else structure.three_di.upper()
        return super().encode(shown, masked=masked, direction=direction)


class TestStructure:
    """K5: with the structure as input."""

    @pytest.fixture(scope="class")
    def found(self, tmp_path_factory) -> dict[str, Evidence]:
        """One network shown no structure, a structure that says what the sequence says, and one that says other."""
        folder = tmp_path_factory.mktemp("folded")
        plain = toy(seed=50)
        same = {name: Structure(three_di=sequence.lower()) for name, sequence in proteins()}
        other = {name: Structure(three_di=sequence.lower()[::-1]) for name, sequence in proteins()}
        under = {"conditions": ["seq", "seq_struct", "struct"]}
        return {
            "none": evidence_for(folder / "none", plain, nulls=range(3)),
            "same": evidence_for(
                folder / "same", Folded(plain.module, "mlm"), nulls=range(3), structures=same, **under
            ),
            "other": evidence_for(
                folder / "other", Folded(plain.module, "mlm"), nulls=range(3), structures=other, **under
            ),
        }

    def test_statistics_of_the_sequence_do_not_mix_with_those_of_the_structure(self, found):
        assert found["none"].with_structure is None and claim_of_structure(found["none"], FEW) == []
        for name in ("same", "other"):
            mine, alone = found[name], found["none"]
            for one, expected in zip((mine.trained, *mine.untrained), (alone.trained, *alone.untrained), strict=True):
                assert one.statistics.keys() == expected.statistics.keys()
                for statistic, value in one.statistics.items():
                    assert value.value == pytest.approx(expected.statistics[statistic].value, nan_ok=True)

    def test_a_structure_that_says_nothing_new_shifts_nothing(self, found):
        rows = claim_of_structure(found["same"], FEW)
        shifts = [row for row in rows if row["statistic"].startswith("shift of ")]
        names = ["depth score rel_u", "KL depth", "retention depth at 0.95"]
        assert [row["statistic"] for row in shifts] == [f"shift of {name}" for name in names]
        for row in shifts[:2]:
            assert row["value"] == row["ci_lo"] == row["ci_hi"] == row["null_value"] == 0
            assert row["verdict"] == "pass" and row["n_seq"] == len(NAMES)
        # A network that was never trained knows less than chance does: nothing is retained.
        assert shifts[2]["verdict"] == "inconclusive" and "undefined" in shifts[2]["reason"]

    def test_another_structure_shifts_depths(self, found):
        shown = found["other"].with_structure
        rows = {row["statistic"]: row for row in claim_of_structure(found["other"], FEW)}
        shift = rows["shift of depth score rel_u"]
        one, other = (e.trained.statistics["depth score rel_u"] for e in (found["other"], shown))
        assert shift["value"] == pytest.approx(other.value - one.value) and shift["value"] != 0
        assert shift["ci_lo"] <= shift["value"] <= shift["ci_hi"] and shift["null_lo"] < shift["null_hi"]

    def test_without_skip_effects_under_the_structure_the_claim_is_inconclusive_and_says_so(self, found):
        *rows, claim = claim_of_structure(found["same"], FEW)
        missing = {row["statistic"]: row for row in rows if row["reason"] == "not measured with structure"}
        assert set(missing) == {"K1, with structure: LL/EE", "K2, with structure: late/early locality"}
        assert {row["verdict"] for row in missing.values()} == {"inconclusive"}
        measured = next(row for row in rows if row["statistic"] == "K2, with structure: late share of KL fall")
        assert measured["value"] == found["none"].trained.statistics["late share of KL fall"].value
        assert (claim["claim"], claim["scope"], claim["role"]) == ("K5", "m", "claim")
        assert claim["verdict"] in ("inconclusive", "fail") and "LL/EE" in claim["reason"]
        assert {row["claim"] for row in rows} == {"K5"}

    def test_it_passes_where_k1_and_k2_do_and_nothing_shifts(self):
        statistics = {"LL/EE": 0.5, "late/early locality": 0.5, "late share of KL fall": 0.8}
        depths = {"depth score rel_u": 0.6, "KL depth": 0.7, "depth score influence": 0.4}
        depths["retention depth at 0.95"] = 0.8

        def under(shift: float, ratio: float = 0.5, with_structure: Evidence | None = None) -> Evidence:
            values = {**statistics, "LL/EE": ratio, **{name: value + shift for name, value in depths.items()}}
            nulls = [{**depths, "LL/EE": v, "late/early locality": v, "late share of KL fall": 0.3 + v / 100}
                     for v in (0.84, 0.86, 0.85)]  # fmt: skip
            untrained = tuple(Network({name: around(v) for name, v in null.items()}) for null in nulls)
            trained = Network({name: around(value) for name, value in values.items()})
            return Evidence(Model("m", "f", "mlm", 6), trained, untrained, with_structure)

        def verdict(evidence: Evidence) -> str:
            return verdicts_by(judged([evidence], Margins()))["K5", "m"]

        assert verdict(under(0.0, with_structure=under(0.02))) == "pass"
        assert verdict(under(0.0, with_structure=under(0.2))) == "fail"
        assert verdict(under(0.0, with_structure=under(0.02, ratio=1.2))) == "fail"
        assert verdict(under(0.0, ratio=1.2, with_structure=under(0.02))) == "pass", "K5 rests on seq_struct alone"
        assert ("K5", "m") not in verdicts_by(judged([under(0.0)], Margins()))
        failed = under(0.0, with_structure=under(0.0))
        failed = replace(failed, with_structure=replace(failed.with_structure, trained=Network({}, ("a check",))))
        assert verdict(failed) == "inconclusive"

    @pytest.mark.parametrize(
        ("shift", "expected", "reason"),
        [
            (around(0.0), "pass", "unchanged: the interval lies inside +-0.05"),
            (around(0.03), "pass", "unchanged"),
            (around(0.2), "fail", "deeper with the structure: the interval lies outside +-0.05"),
            (around(-0.2), "fail", "shallower with the structure"),
            (around(0.05), "inconclusive", "deeper; the interval is neither inside nor outside +-0.05"),
            (around(-0.05), "inconclusive", "shallower; "),
            (around(0.0, spread=0.1), "inconclusive", "no direction; "),
            (around(math.nan), "inconclusive", "undefined"),
            (around(0.0, n_cluster=49), "inconclusive", "49 similarity clusters, 50 are needed"),
            (around(0.0, below_floor=0.06), "inconclusive", "6% of the proteins"),
        ],
    )
    def test_a_shift_is_none_one_or_cannot_be_told(self, shift, expected, reason):
        found = judge_shift(shift, [], Margins())
        assert found.verdict == expected and reason in found.reason

    def test_its_margin_comes_from_the_config(self):
        assert judge_shift(around(0.03), [], Margins(shift=0.01)).verdict == "fail"
        assert judge_shift(around(0.2), [], Margins(shift=0.5)).verdict == "pass"


def shown_frames(adapter):
    """Return the adapter, from now on always shown the backbone of a helix: its geometric branch adds something."""
    plain = adapter.encode

    def encode(sequence, *, masked=None, direction="none", **_):
        turn = np.arange(3 * len(sequence)).reshape(-1, 3) * np.radians(100) / 3
        helix = np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * turn / np.radians(100)], -1)
        known = Structure(coordinates=helix.astype(np.float32))
        return plain(sequence, masked=masked, direction=direction, condition="seq_struct", structure=known)

    adapter.encode = encode
    return adapter


SMALL = {"n_blocks": 6, "d_model": 32, "n_heads": 4}
UNTRAINED = {
    "sequential": lambda: toy(),
    "scaled": lambda: toy(variant="scaled", norm="rms"),
    "parallel causal": lambda: toy(variant="parallel", objective="ar"),
    "geometric": lambda: toy(geometric=True),
    "esm3": lambda: shown_frames(build("esm3", {"n_blocks": 6, "d_model": 64, "n_heads": 1, "d_mlp": 64}, seed=99)),
    "progen2": lambda: build("progen2", {**SMALL, "n_heads": 8}, seed=99),
    **{
        name: lambda name=name: build(name, SMALL, seed=99)
        for name in ("esm2", "esm1b", "esmc", "protbert", "progen3", "dplm")
    },
}


@pytest.mark.slow
class TestUntrainedModels:
    """Twenty untrained networks of each architecture, each compared with three others: a pass would be an error."""

    @pytest.fixture
    def one_noise_floor(self, monkeypatch):
        """Measure the noise floor once an architecture, not once a network: its size is what matters here."""
        measured, original = [], effects.noise_floor

        def floor(*given, **options):
            measured.append(measured[0] if measured else original(*given, **options))
            return measured[-1]

        monkeypatch.setattr(effects, "noise_floor", floor)

    def test_the_geometric_branch_of_esm3_is_at_work(self):
        adapter = UNTRAINED["esm3"]()
        stream, context = adapter.embed(adapter.collate([adapter.encode("ACDEFGHIKL")]))
        assert float(adapter.geometric_update(1, stream, context).detach().norm()) > 1e-3

    @pytest.mark.parametrize("name", UNTRAINED)
    def test_at_most_one_of_twenty_passes(self, tmp_path, name, one_noise_floor):
        found = evidence_for(tmp_path, UNTRAINED[name](), nulls=range(23))
        assert len(found.untrained) == 23
        others, passes, told = found.untrained[20:], {"K1": 0, "K2": 0}, 0
        for one in found.untrained[:20]:
            rows = claims_of_model(Evidence(found.model, one, others), FEW)
            for (claim, _), verdict in verdicts_by(rows).items():
                passes[claim] += verdict == "pass"
            told += sum(row["role"] == "decides" and row["verdict"] != "inconclusive" for row in rows)
        assert max(passes.values()) <= 1, passes
        assert told, "some are judged at all: as descriptive, or as failing"

    def test_an_untrained_family_does_not_pass_k3(self, tmp_path):
        members = [evidence_for(tmp_path / str(n), toy(seed=70, n_blocks=n), f"toy_{n}", range(13)) for n in (4, 6, 8)]
        passes = 0
        for seed in range(10):
            family = [Evidence(e.model, e.untrained[seed], e.untrained[10:]) for e in members]
            passes += claim_of_family(family, FEW)[-1]["verdict"] == "pass"
        assert passes <= 1


class TestStage:
    @pytest.fixture(scope="class")
    def study(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("study")
        models, paths = [], []
        for objective, variant in VARIANTS.items():
            adapter = toy(seed=50, n_blocks=4, **variant)
            models.append(Model(f"toy_{objective}", "toy", objective, 4))
            nulls = [Null("randinit", 0), Null("randinit", 1), Null("shuffle_w", 0)]
            paths.append(
                tables_of(
                    folder / objective, adapter, models[-1], nulls, parts=("layer", "attn"), more_sets=("tokens",)
                )
            )
        clusters = folder / "clusters.parquet"
        write_table({"sequence_id": NAMES, "cluster_id": NAMES}, CLUSTERS, clusters)
        return folder, models, paths, clusters

    def arguments(self, study, **changed):
        folder, models, paths, clusters = study
        options = {
            "--skip-seq": [p[0] for p in paths],
            "--out-seq": [p[1] for p in paths],
            "--lens": [p[2] for p in paths],
            "--contributions": [p[3] for p in paths],
            "--clusters": [clusters],
            "--margins": ['{"clusters": 4}'],
            "--models": [json.dumps([{**m.__dict__, "display_name": m.model, "family": "toy"} for m in models])],
            "--grid": ["[0.15]"],
            "--resamples": ["200"],
            "--output": [folder / "verdicts.parquet"],
        } | changed
        return [str(item) for name, values in options.items() for item in (name, *values)]

    def test_the_command_writes_a_row_for_every_statistic_and_claim(self, study):
        stage.main(self.arguments(study))
        rows = read_table(study[0] / "verdicts.parquet", VERDICT).to_pylist()
        claims = {(row["claim"], row["scope"]) for row in rows if row["role"] == "claim"}
        assert claims >= {(k, f"toy_{o}") for k in ("K1", "K2") for o in VARIANTS} | {("K4", "all")}
        assert {row["statistic"] for row in rows if row["role"] == "supports"} >= {"LL/EE attn", "late flips"}
        for row in rows:
            assert row["verdict"] in stage.VERDICTS and row["reason"]
            if row["role"] == "decides":
                assert row["ci_lo"] <= row["value"] <= row["ci_hi"] and row["null_lo"] < row["null_hi"]

    def flips_of_all_tokens(self, study) -> float:
        evidence = evidence_of(study[1][0], *([path] for path in study[2][0]), BOOTSTRAP, grid=[0.15])
        return evidence.trained.statistics["late flips"].value

    def test_it_does_not_depend_on_the_order_of_the_tables(self, study):
        stage.main(self.arguments(study, **{"--output": [study[0] / "a.parquet"]}))
        turned = {name: [p[k] for p in study[2][::-1]] for k, name in enumerate(("--skip-seq", "--out-seq"))}
        stage.main(self.arguments(study, **turned, **{"--output": [study[0] / "b.parquet"]}))
        assert (study[0] / "a.parquet").read_bytes() == (study[0] / "b.parquet").read_bytes()

    def test_ablated_models_get_k6(self, study, tmp_path):
        path = tmp_path / "ablation.parquet"
        sample = [Protein(name, sequence, k, k % 2) for k, (name, sequence) in enumerate(proteins())]
        measure_ablation(
            toy(seed=50, n_blocks=4), sample, output=path, model_id="toy_mlm", ranks=range(6),
            nulls=[Null("trained", -1), Null("randinit", 0), Null("randinit", 1)], views=[View("none", 0.15, 0)],
            ablations=Ablations(selection=2, spans=(2,)), seed=0, token_budget=10**5, log=LOG,
        )  # fmt: skip
        stage.main(self.arguments(study, **{"--ablation": [path], "--output": [tmp_path / "v.parquet"]}))
        rows = read_table(tmp_path / "v.parquet", VERDICT).to_pylist()
        own = [row for row in rows if row["claim"] == "K6"]
        assert {row["scope"] for row in own} == {"toy_mlm"}, "the others were not ablated"
        assert [row["statistic"] for row in own] == [
            "n80 removal loss", "rest median loss", "rest median flips", "removable fraction at 0.95",
            stage.CLAIMS["K6"],
        ]  # fmt: skip
        assert own[0]["n_seq"] == len(NAMES) and own[-1]["verdict"] != "pass"
        (flips,) = [row for row in rows if (row["scope"], row["statistic"]) == ("toy_mlm", "late flips")]
        table = read_table(path, ABLATE_SEQ).to_pylist()
        late = [
            np.mean(
                [
                    row["sum"] / row["n"]
                    for row in table
                    if (row["op"], row["quantity"], row["null_model"], row["start"])
                    == ("remove", "flip1", "trained", start)
                ]
            )
            for start in (2, 3)
        ]
        assert flips["value"] == pytest.approx(np.median(late)) and (flips["claim"], flips["role"]) == (
            "K2",
            "supports",
        )
        assert flips["value"] != self.flips_of_all_tokens(study), (
            "not those of the skip effects, which read all residues"
        )
        with pytest.raises(SystemExit, match="--ablation holds tables of toy_mlm, but --models lists"):
            models = [m.__dict__ for m in study[1] if m.model != "toy_mlm"]
            paths = [p for m, p in zip(study[1], study[2]) if m.model != "toy_mlm"]
            options = {name: [p[k] for p in paths] for k, name in enumerate(
                ("--skip-seq", "--out-seq", "--lens", "--contributions"))}  # fmt: skip
            options |= {"--models": [json.dumps(models)], "--ablation": [path]}
            stage.main(self.arguments(study, **options))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"--margins": ['{"late": 1}']}, "--margins: expected a JSON object with keys among late_over_early"),
            ({"--models": ["[]"]}, "--models: expected a list"),
            ({"--models": ['[{"model": "m"}]']}, "entry 1: expected model, family, objective and n_blocks"),
            ({"--models": ['[{"model": "m", "family": "f", "objective": "ar", "n_blocks": 4}]']}, "--models lists m"),
        ],
    )
    def test_what_does_not_fit_ends_in_one_message(self, study, changed, message):
        with pytest.raises(SystemExit, match=message):
            stage.main(self.arguments(study, **changed))

    def test_skip_effects_may_have_fewer_noise_levels_than_the_lens(self, tmp_path):
        adapter = toy(seed=50, n_blocks=4, objective="diffusion")
        model = Model("m", "toy", "diffusion", 4)
        few, many = [View("none", 0.5, 0)], [View("none", t, 0) for t in (0.1, 0.5)]
        paths = tables_of(tmp_path, adapter, model, [Null("randinit", 0)], views=many, effect_views=few)
        tables = [[p] for p in paths]
        found = evidence_of(model, *tables, BOOTSTRAP, grid=[0.1, 0.5], effect_grid=[0.5]).trained.statistics
        same = evidence_of(model, *tables, BOOTSTRAP, grid=[0.5]).trained.statistics
        assert found["LL/EE"].value == same["LL/EE"].value
        assert found["late share of KL fall"].value != same["late share of KL fall"].value
        with pytest.raises(TableError, match="give --grid"):
            evidence_of(model, *tables, BOOTSTRAP, grid=[0.1, 0.5])

    def test_a_model_that_is_another_than_its_tables_say_is_refused(self, study):
        folder, models, paths, _ = study
        wrong = Model(models[0].model, "esm2", models[0].objective, 4)
        with pytest.raises(TableError, match="family of toy_mlm is toy, but --models says esm2"):
            evidence_of(wrong, *([p] for p in paths[0]), BOOTSTRAP)
        assert folder.is_dir()


# ----------------------------------------------------------------------------------------------------------------
# K6


def ablated(**changed: float) -> Evidence:
    """Return a model for which K6 is true, but for the statistics that are given."""
    values = {
        "n80 removal loss": 0.25, "rest median loss": 0.01, "rest median flips": 0.02, "removable fraction at 0.95": 0.6
    }  # fmt: skip
    values |= {name.replace("_", " ").replace(" at 095", " at 0.95"): value for name, value in changed.items()}
    spreads = {"rest median loss": 0.002, "rest median flips": 0.005}
    trained = Network({name: around(value, spreads.get(name, 0.01)) for name, value in values.items()})
    nulls = [{"n80 removal loss": v, "rest median loss": 0.0, "rest median flips": 0.4} for v in (0.6, 0.62, 0.61)]
    untrained = tuple(Network({name: around(v) for name, v in null.items()}) for null in nulls)
    return Evidence(Model("m", "f", "mlm", 12), trained, untrained)


class TestConcentration:
    def verdict(self, evidence: Evidence, **margins) -> dict:
        return claim_of_concentration(evidence, Margins(**margins))[-1]

    def test_true_if_all_hold_and_untrained_networks_are_less_concentrated(self):
        rows = claim_of_concentration(ablated(), Margins())
        assert [row["verdict"] for row in rows] == ["pass"] * 5
        assert [row["margin"] for row in rows[:-1]] == [0.5, 0.05, 0.05, 0.5]
        assert rows[-1]["statistic"] == stage.CLAIMS["K6"] and verdicts_by(judged([ablated()], Margins()))["K6", "m"]

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"n80_removal_loss": 0.9}, "fail"),
            ({"n80_removal_loss": 0.7}, "inconclusive"),
            ({"rest_median_loss": 0.2}, "fail"),
            ({"rest_median_loss": 0.05}, "inconclusive"),
            ({"rest_median_flips": 0.5}, "fail"),
            ({"removable_fraction_at_095": 0.1}, "fail"),
            ({"removable_fraction_at_095": math.nan}, "inconclusive"),
            ({"n80_gate_attribution": 0.9}, "fail"),
            ({"n80_gate_attribution": 0.2}, "inconclusive"),  # no untrained network beside
        ],
    )
    def test_each_part_is_needed(self, changed, expected):
        assert self.verdict(ablated(**changed))["verdict"] == expected

    def test_as_concentrated_as_an_untrained_network_is_descriptive(self):
        found = ablated()
        untrained = tuple(Network({"n80 removal loss": around(v)}) for v in (0.2, 0.3, 0.25))
        assert self.verdict(replace(found, untrained=untrained))["verdict"] == "pass_descriptive"

    def test_a_share_that_lies_exactly_at_a_margin_is_on_its_side(self):
        exact = {name: Statistic(v, np.full(400, v), n_cluster=60, n_seq=100)
                 for name, v in (("n80 removal loss", 0.5), ("removable fraction at 0.95", 0.5))}  # fmt: skip
        found = ablated()
        trained = Network({**found.trained.statistics, **exact})
        assert self.verdict(replace(found, trained=trained))["verdict"] == "pass"
        even = Network(
            {**found.trained.statistics, "n80 removal loss": Statistic(0.8, np.full(400, 0.8), n_cluster=60)}
        )
        assert self.verdict(replace(found, trained=even))["verdict"] == "fail", "as in a uniform profile"

    def test_margins_come_from_the_config(self):
        assert self.verdict(ablated(), concentration=0.1)["verdict"] == "inconclusive"
        assert self.verdict(ablated(), removable=0.7)["verdict"] == "fail"
        assert self.verdict(ablated(rest_median_loss=0.2), rest_loss=0.5)["verdict"] == "pass"

    def test_a_model_that_was_not_ablated_has_no_row(self):
        assert claim_of_concentration(replace(ablated(), trained=Network()), Margins()) == []

    def test_what_was_not_measured_is_said(self):
        found = ablated()
        kept = {k: v for k, v in found.trained.statistics.items() if not k.startswith("removable")}
        rows = claim_of_concentration(replace(found, trained=Network(kept)), Margins())
        assert rows[-2]["reason"] == "not measured" and rows[-1]["verdict"] == "inconclusive"

    def test_a_failed_check_forbids_a_verdict(self):
        failed = replace(ablated(), trained=Network(ablated().trained.statistics, ("a check",)))
        assert self.verdict(failed)["reason"] == "failed check: a check"


class TestOutsideOfTheConcentration:
    def test_hand_computed(self):
        blocks = np.array([1.0, 8, 0, 1])
        assert outside_80(blocks).tolist() == [True, False, True, True]
        assert median_of_rest(np.array([3.0, 99, 1, 2]), blocks) == 2
        blocks = np.array([5.0, 3, 1, 1])
        assert outside_80(blocks).tolist() == [False, False, True, True]
        assert median_of_rest(np.array([0.0, 0, 1, 2]), blocks) == 1.5

    @given(st.lists(st.floats(0, 10), min_size=1, max_size=9).filter(lambda x: sum(x) > 0.1))
    @settings(max_examples=50, deadline=None)
    def test_as_many_are_inside_as_n80_says(self, values):
        x = np.array(values)
        assert (~outside_80(x)).sum() == pytest.approx(float(n80(x)) * len(x))

    def test_nothing_outside_or_nothing_at_all_is_undefined(self):
        assert np.isnan(median_of_rest(np.ones(4), np.ones(4))) and np.isnan(median_of_rest(np.ones(4), np.zeros(4)))

    def test_resamples_are_rows(self):
        x, y = np.random.default_rng(0).random((2, 7, 6))
        np.testing.assert_allclose(median_of_rest(y, x), [median_of_rest(b, a) for a, b in zip(x, y)])


def with_work_in(blocks: Sequence[int], n_blocks: int = 8) -> Toy:
    """Return a toy whose prediction is written by some blocks alone, each a share of it; the others add nothing.

    The place of a token tells the residue (proteins repeat one motif), each working block adds the same direction of
    its residue to the stream, and the head reads that.
    """
    adapter = toy(n_blocks=n_blocks, norm="identity", seed=5)
    module = adapter.module
    letters = "ALGV"
    with torch.no_grad():
        module.embedding.zero_()
        module.place.zero_()
        for k in range(len(module.place)):
            module.place[k, k % 4] = 1.0
        for number, block in enumerate(module.blocks, start=1):
            for linear in (block.attention_out, block.mlp_out, block.mlp_in):
                linear.weight.zero_()
                linear.bias.zero_()
            if number in blocks:
                block.mlp_in.weight[:4, :4] = 10 * torch.eye(4, dtype=torch.float64)
                block.mlp_out.weight[4:8, :4] = torch.eye(4, dtype=torch.float64) * 0.4 / len(blocks)
        module.head_dense.weight.copy_(torch.eye(32, dtype=torch.float64))
        module.head_dense.bias.zero_()
        module.head_out.weight.zero_()
        module.head_out.bias.zero_()
        for k, letter in enumerate(letters):
            # Token k + 1 holds residue k of the motif.
            module.head_out.weight[adapter.residue_ids[AMINO_ACIDS.index(letter)], 4 + (k + 1) % 4] = 1.0
    return adapter


class TestPlantedConcentration:
    """Models for which K6 is true and false, through the stages, beside untrained networks."""

    names = tuple(f"Q{i}" for i in range(6))

    def evidence(self, folder, adapter: Toy, nulls=range(4)) -> Evidence:
        model = Model("m", "toy", "mlm", adapter.n_blocks)
        sample = [Protein(name, "ALGV" * (5 + i), i, i % 2) for i, name in enumerate(self.names)]
        folder.mkdir(exist_ok=True)
        measure_ablation(
            adapter, sample, output=folder / "a.parquet", model_id="m", ranks=range(6),
            nulls=[Null("trained", -1), *(Null("randinit", seed) for seed in nulls)], views=[View("none", 0.15, 0)],
            ablations=Ablations(ops=("remove", "remove_block"), policies=("angular",), selection=2), seed=0,
            token_budget=10**5, log=LOG,
        )  # fmt: skip
        bootstrap = Bootstrap.of({name: name for name in self.names}, n_boot=300, seed=1)
        networks: dict = {}
        for view, parts in views_in([folder / "a.parquet"], ABLATE_SEQ):
            values = with_changes(ablations_of(view, parts, bootstrap))
            statistics = stage._ablation_statistics(Profiles(values, adapter.n_blocks, bootstrap))
            networks[view["null_model"], view["null_seed"]] = Network(statistics)
        trained = networks.pop(("trained", -1))
        return Evidence(model, trained, tuple(networks[key] for key in sorted(networks)))

    def test_it_is_true_where_two_of_eight_blocks_do_the_work(self, tmp_path):
        found = self.evidence(tmp_path / "few", with_work_in([2, 3]))
        rows = {row["statistic"]: row for row in claim_of_concentration(found, FEW)}
        assert rows["n80 removal loss"]["value"] == 0.25
        assert rows["rest median loss"]["value"] == pytest.approx(0, abs=1e-9)
        assert rows["rest median flips"]["value"] == 0
        assert rows["removable fraction at 0.95"]["value"] == 5 / 8, "blocks 4 to 8 in a row"
        for name in ("rest median loss", "rest median flips", "removable fraction at 0.95"):
            assert rows[name]["verdict"] == "pass", rows[name]
        assert rows["n80 removal loss"]["verdict"] == "inconclusive", "most untrained networks lose nothing"
        spread = self.evidence(tmp_path / "all", with_work_in(range(1, 9))).trained
        assert claim_of_concentration(replace(found, untrained=(spread,) * 3), FEW)[-1]["verdict"] == "pass"
        assert claim_of_concentration(replace(found, untrained=(found.trained,) * 3), FEW)[-1]["verdict"] == (
            "pass_descriptive"
        )

    def test_it_is_false_where_all_blocks_do(self, tmp_path):
        found = self.evidence(tmp_path, with_work_in(range(1, 9)))
        *rows, claim = claim_of_concentration(found, FEW)
        by_name = {row["statistic"]: row for row in rows}
        assert by_name["n80 removal loss"]["value"] == 7 / 8 and by_name["n80 removal loss"]["verdict"] == "fail"
        assert by_name["removable fraction at 0.95"]["verdict"] == "fail"
        assert claim["verdict"] == "fail"

    def test_an_untrained_network_does_not_pass(self, tmp_path):
        for seed in range(3):
            found = self.evidence(tmp_path / str(seed), toy(n_blocks=6, seed=60 + seed), nulls=range(3))
            assert claim_of_concentration(found, FEW)[-1]["verdict"] != "pass"


class TestGates:
    """n80 of the attributions of gates, as K6 reads it."""

    def table(self, folder, rows: list[dict]):
        base = {
            "model_id": "m", "family": "f", "objective": "mlm", "n_blocks": 4, "d_model": 8, "dtype": "float32",
            "null_model": "trained", "null_seed": -1, "condition": "seq", "readout": "seq", "direction": "none",
            "noise_t": 0.15, "mask_draw": 0, "n_residues": 22, "object": "gate", "target": "logp", "vocab": "aa20",
            "special": 0.0, "l1": 1.0, "n_reads": 2, "f_end": 1.0, "f_base": 0.0, "completeness_err": 0.0,
            "n_steps": 64,
        }  # fmt: skip
        whole = [base | row for row in rows]
        columns = {name: [row[name] for row in whole] for name in ATTR_SEQ.names if name != "by_position"}
        columns["by_position"] = [[0.0]] * len(whole)
        write_table(columns, ATTR_SEQ, folder / "attribution.parquet")
        return [folder / "attribution.parquet"]

    def rows(self, values, **changed) -> list[dict]:
        return [{"sequence_id": name, "layer": k, "value": v, **changed}
                for name in NAMES for k, v in enumerate(values, start=1)]  # fmt: skip

    def test_it_is_that_of_the_magnitudes_at_the_primary_input(self, tmp_path):
        model = Model("m", "f", "mlm", 4)
        paths = self.table(
            tmp_path,
            [
                *self.rows([-9.0, 1, 0.5, 0.5]),
                *self.rows([1.0, 1, 1, 1], mask_draw=0, noise_t=0.5),
                *self.rows([1.0, 1, 1, 1], target="prob"),
                *self.rows([1.0, 1, 1, 1], object="gate_attn"),
                *self.rows([3.0, -3, 3, 0], null_model="randinit", null_seed=2),
                *self.rows([1.0, 1, 1, 1], null_model="shuffle_w", null_seed=0),
            ],
        )
        found = stage._gate_statistics(paths, model, BOOTSTRAP, [0.15])
        assert {key: value.value for key, value in found.items()} == {
            ("seq", "trained", -1): 0.25,
            ("seq", "randinit", 2): 0.75,
        }
        assert found["seq", "trained", -1].n_seq == len(NAMES) and (found["seq", "trained", -1].resampled == 0.25).all()

    def test_without_gates_there_is_nothing(self, tmp_path):
        paths = self.table(tmp_path, self.rows([1.0, 1, 1, 1], object="mlp"))
        assert stage._gate_statistics(paths, Model("m", "f", "mlm", 4), BOOTSTRAP, [0.15]) == {}
