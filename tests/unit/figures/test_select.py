import itertools
import math

import polars as pl
import pytest

from plm_depth.figures.select import (
    NUMBERS,
    FigureError,
    Model,
    Study,
    models_of,
    primary_rows,
    profile_numbers,
    summary_numbers,
    with_depths,
)

MLM = Model("m", "Model M", "f", "mlm", "F", n_blocks=2)
AR = Model("a", "Model A", "g", "ar", "G", n_blocks=2)
DIFFUSION = Model("d", "Model D", "h", "diffusion", "H", n_blocks=2)


def profile(
    model: Model = MLM,
    *,
    quantity: str = "rel_u",
    values=(0.5, 0.25),
    first: int = 1,
    null: tuple[str, int] = ("trained", -1),
    table: str = "contributions",
    aggregate: str = "mean",
    **other,
) -> pl.DataFrame:
    noise = {"ar": math.nan, "mlm": 0.15, "diffusion": -1.0}[model.objective]
    rows = [
        {
            "model_id": model.model,
            "family": model.family,
            "objective": model.objective,
            "n_blocks": model.n_blocks,
            "null_model": null[0],
            "null_seed": null[1],
            "condition": "seq",
            "readout": "seq",
            "direction": "n2c" if model.objective == "ar" else "none",
            "noise_t": noise,
            "table": table,
            "quantity": quantity,
            "pos_class": "residue" if table == "contributions" else "logit",
            "vocab": "none" if table == "contributions" else "aa20",
            "layer": layer,
            "aggregate": aggregate,
            "value": value,
            "ci_lo": value - 0.1,
            "ci_hi": value + 0.1,
            "n_seq": 12,
            "n_cluster": 11,
            "n_boot": 2000,
            **other,
        }
        for layer, value in enumerate(values, start=first)
    ]
    return pl.DataFrame(rows, schema_overrides={"noise_t": pl.Float32, "value": pl.Float64, "n_blocks": pl.Int16})


def summary(model: Model = MLM, *, stat="kl_depth", which="kl_0", param=0.5, value=0.7, null=("trained", -1)):
    rows = profile(model, values=(value,), null=null)
    return rows.drop("table", "quantity", "pos_class", "vocab", "layer", "aggregate").with_columns(
        stat=pl.lit(stat), profile=pl.lit(which), param=pl.lit(param)
    )


def shown(table: pl.DataFrame) -> list[float]:
    return primary_rows(table)["value"].to_list()


# ----------------------------------------------------------------------------------------------------------------
# Primary inputs


def test_autoregressive_models_are_shown_reading_from_n_to_c():
    table = pl.concat([profile(AR, values=(1.0,)), profile(AR, values=(2.0,), direction="c2n")])
    assert shown(table) == [1.0]


def test_diffusion_models_are_shown_as_the_mean_over_noise():
    levels = [profile(DIFFUSION, values=(float(i),), noise_t=t) for i, t in enumerate((0.0, 0.15, 0.5, 1.0, -1.0))]
    assert shown(pl.concat(levels)) == [4.0]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((0.0, 0.15), 0.15),
        ((0.1, 0.15, 0.3), 0.15),
        ((0.0, 0.1, 0.3, 0.9), 0.1),
        ((0.1, 0.2), 0.1),  # equally far: the lower one
        ((0.2, 0.1), 0.1),
        ((0.17, 0.13), 0.13),  # in float32, 0.17 is a little nearer
        ((0.5, 1.0, 0.0), 0.5),
    ],
)
def test_masked_models_are_shown_at_the_noise_level_next_to_fifteen_percent(levels, expected):
    table = pl.concat([profile(MLM, values=(level,), noise_t=level) for level in levels])
    assert shown(table) == [expected]


def test_the_noise_level_is_chosen_for_each_masked_model_by_itself():
    other = Model("n", "Model N", "f", "mlm", "F", n_blocks=2)
    table = pl.concat([profile(MLM, values=(1.0,), noise_t=0.15), profile(other, values=(2.0,), noise_t=0.3)])
    assert shown(table) == [1.0, 2.0]


def test_clean_inputs_and_everything_hidden_are_no_masked_level():
    table = pl.concat([profile(MLM, values=(1.0,), noise_t=t) for t in (0.0, 1.0)])
    assert shown(table) == []


@pytest.mark.parametrize(
    "other",
    [
        {"null": ("shuffle_w", 0)},
        {"null": ("shuffle_seq", 0)},
        {"condition": "seq_struct"},
        {"readout": "struct"},
        {"pos_class": "special"},
        {"pos_class": "masked"},
        {"table": "lens", "pos_class": "copy"},
        {"table": "lens", "vocab": "full"},
    ],
    ids=str,
)
def test_rows_that_no_figure_shows_are_left_out(other):
    assert shown(profile(**other)) == []


def test_trained_and_untrained_rows_of_both_tables_and_of_summaries_stay():
    table = pl.concat([profile(), profile(null=("randinit", 3)), profile(table="lens", first=0)])
    assert len(shown(table)) == 6
    assert len(shown(summary())) == 1


# ----------------------------------------------------------------------------------------------------------------
# Profiles


def test_profile_numbers_are_the_rows_of_the_table_with_their_relative_depth():
    study = Study([MLM], profiles=profile(values=(0.5, 0.25)))
    numbers = profile_numbers(study, table="contributions", quantities=["rel_u"])
    assert numbers.schema == pl.Schema(NUMBERS)
    assert numbers["value"].to_list() == [0.5, 0.25]
    assert numbers["lo"].to_list() == [0.4, 0.15]
    assert numbers["hi"].to_list() == [0.6, 0.35]
    assert numbers["relative_depth"].to_list() == [0.25, 0.75]
    assert numbers.row(0, named=True) | {"value": 0, "lo": 0, "hi": 0, "noise_t": 0, "parameter": 0} == {
        "model": "m", "display_name": "Model M", "family": "f", "objective": "mlm", "n_blocks": 2,
        "network": "trained", "n_seeds": 1, "direction": "none", "noise_t": 0, "quantity": "rel_u", "parameter": 0,
        "aggregate": "mean", "layer": 1, "relative_depth": 0.25, "value": 0, "lo": 0, "hi": 0,
        "interval": "bootstrap", "n_seq": 12, "n_cluster": 11, "n_boot": 2000,
    }  # fmt: skip


@pytest.mark.parametrize(("table", "quantity"), [("contributions", "var_h"), ("lens", "kl_lf")])
def test_states_stand_at_layer_over_blocks(table, quantity):
    study = Study([MLM], profiles=profile(table=table, quantity=quantity, values=(1.0, 2.0, 3.0), first=0))
    numbers = profile_numbers(study, table=table, quantities=[quantity])
    assert numbers["relative_depth"].to_list() == [0.0, 0.5, 1.0]


def test_untrained_networks_are_their_mean_and_range_over_seeds():
    parts = [profile()] + [profile(null=("randinit", s), values=v) for s, v in enumerate(((1, 5), (2, 6), (6, 1)))]
    numbers = profile_numbers(Study([MLM], profiles=pl.concat(parts)), table="contributions", quantities=["rel_u"])
    untrained = numbers.filter(pl.col("network") == "untrained")
    assert untrained.select("value", "lo", "hi", "n_seeds").rows() == [(3.0, 1.0, 6.0, 3), (4.0, 1.0, 6.0, 3)]
    assert untrained["interval"].unique().to_list() == ["seeds"]


def test_untrained_networks_are_undefined_where_one_seed_is():
    parts = [profile(), profile(null=("randinit", 0)), profile(null=("randinit", 1), values=(math.nan, 0.5))]
    numbers = profile_numbers(Study([MLM], profiles=pl.concat(parts)), table="contributions", quantities=["rel_u"])
    value, lo, hi = numbers.filter(pl.col("network") == "untrained").select("value", "lo", "hi").rows()[0]
    assert math.isnan(value) and math.isnan(lo) and math.isnan(hi)


def test_maxima_have_no_interval():
    rows = profile(aggregate="max").with_columns(ci_lo=pl.lit(math.nan), ci_hi=pl.lit(math.nan))
    study = Study([MLM], profiles=rows)
    numbers = profile_numbers(study, table="contributions", quantities=["rel_u"], aggregates=["max"])
    assert numbers["interval"].to_list() == ["none", "none"]


def test_numbers_stand_in_the_order_of_models_quantities_networks_layers():
    parts = [
        profile(model, quantity=quantity, null=null)
        for model, quantity, null in itertools.product(
            (AR, MLM), ("rel_a", "rel_u"), (("randinit", 0), ("trained", -1))
        )
    ]
    study = Study([MLM, AR], profiles=pl.concat(parts).reverse())
    numbers = profile_numbers(study, table="contributions", quantities=["rel_u", "rel_a"])
    found = numbers.select("model", "quantity", "network", "layer").rows()
    assert found == list(itertools.product("ma", ("rel_u", "rel_a"), ("trained", "untrained"), (1, 2)))


def test_a_model_without_rows_is_an_error_that_names_it():
    with pytest.raises(FigureError, match=r"profiles: no row of a at its primary input \(direction n2c\).*'m'"):
        profile_numbers(Study([MLM, AR], profiles=profile()), table="contributions", quantities=["rel_u"])


def test_a_missing_quantity_is_an_error_that_names_model_and_quantity():
    with pytest.raises(FigureError, match=r"profiles of m: no trained rows of rel_a \(mean\)"):
        profile_numbers(Study([MLM], profiles=profile()), table="contributions", quantities=["rel_u", "rel_a"])


def test_an_untrained_network_alone_is_no_trained_model():
    with pytest.raises(FigureError, match=r"no trained rows of rel_u"):
        profile_numbers(
            Study([MLM], profiles=profile(null=("randinit", 0))), table="contributions", quantities=["rel_u"]
        )


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.4, 0.3)])
def test_a_missing_or_surplus_layer_is_an_error(values):
    with pytest.raises(FigureError, match=r"profiles of m \(trained, seed -1\): rel_u .* layers .* expected .* 1\.\.2"):
        profile_numbers(Study([MLM], profiles=profile(values=values)), table="contributions", quantities=["rel_u"])


def test_a_table_given_twice_is_an_error():
    twice = pl.concat([profile(), profile()])
    with pytest.raises(FigureError, match=r"each of 1\.\.2 once"):
        profile_numbers(Study([MLM], profiles=twice), table="contributions", quantities=["rel_u"])


def test_a_profile_without_any_defined_value_is_an_error():
    nothing = profile(values=(math.nan, math.nan))
    with pytest.raises(FigureError, match="undefined at every layer"):
        profile_numbers(Study([MLM], profiles=nothing), table="contributions", quantities=["rel_u"])


def test_a_table_of_another_family_is_an_error():
    with pytest.raises(FigureError, match=r"family is \['x'\], but --models says f"):
        profile_numbers(Study([MLM], profiles=profile(family="x")), table="contributions", quantities=["rel_u"])


# ----------------------------------------------------------------------------------------------------------------
# Summaries


def test_summary_numbers_hold_every_threshold_the_larger_one_first():
    table = pl.concat([summary(param=0.1, value=0.9), summary(param=0.5, value=0.7)])
    numbers = summary_numbers(Study([MLM], summaries=table), statistics=[("kl_depth", "kl_0")])
    assert numbers.select("quantity", "parameter", "value").rows() == [
        ("kl_depth: kl_0", 0.5, 0.7),
        ("kl_depth: kl_0", 0.1, 0.9),
    ]


def test_summary_numbers_without_a_threshold_have_parameter_nan():
    table = summary(stat="cosine_depth", which="cos", param=math.nan)
    numbers = summary_numbers(Study([MLM], summaries=table), statistics=[("cosine_depth", "cos")])
    assert numbers["parameter"].is_nan().to_list() == [True]
    assert numbers["layer"].to_list() == [None]


def test_summary_numbers_show_untrained_networks_as_mean_and_range():
    table = pl.concat([summary(), *(summary(null=("randinit", s), value=v) for s, v in enumerate((0.2, 0.4)))])
    numbers = summary_numbers(Study([MLM], summaries=table), statistics=[("kl_depth", "kl_0")])
    value, lo, hi, n = numbers.filter(pl.col("network") == "untrained").select("value", "lo", "hi", "n_seeds").row(0)
    assert (value, lo, hi, n) == (pytest.approx(0.3), 0.2, 0.4, 2)


def test_a_missing_statistic_is_an_error_that_names_model_and_statistic():
    with pytest.raises(FigureError, match="summaries of m: no trained row of settling: kl_lf"):
        summary_numbers(Study([MLM], summaries=summary()), statistics=[("settling", "kl_lf")])


def test_models_summarised_at_different_thresholds_are_an_error():
    table = pl.concat([summary(MLM, param=0.5), summary(AR, param=0.4)])
    with pytest.raises(FigureError, match=r"summaries of a: .* at \[0\.4\], but at \[0\.5\] for m"):
        summary_numbers(Study([MLM, AR], summaries=table), statistics=[("kl_depth", "kl_0")])


def test_a_summary_given_twice_is_an_error():
    with pytest.raises(FigureError, match="stands twice"):
        summary_numbers(Study([MLM], summaries=pl.concat([summary()] * 2)), statistics=[("kl_depth", "kl_0")])


# ----------------------------------------------------------------------------------------------------------------
# Models

ENTRY = {"model": "m", "display_name": "Model M", "family": "f", "objective": "mlm"}


def test_models_are_read_in_their_order_and_further_keys_are_ignored():
    models = models_of([{**ENTRY, "model": "z", "toy": True, "n_blocks": 6, "width": 1}, {**ENTRY, "family_name": "F"}])
    assert [m.model for m in models] == ["z", "m"]
    assert (models[0].is_toy, models[0].n_blocks, models[0].family_name) == (True, 6, "f")
    assert (models[1].is_toy, models[1].n_blocks, models[1].family_name) == (False, None, "F")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "expected a list"),
        ([], "at least one model"),
        (["m"], "entry 1: 'm', expected an object"),
        ([{**ENTRY, "display_name": None}], "entry 1: display_name is None, expected a text"),
        ([{k: v for k, v in ENTRY.items() if k != "family"}], "entry 1: family is None"),
        ([ENTRY, {**ENTRY, "model": " "}], "entry 2: model is ' '"),
        ([{**ENTRY, "objective": "masked"}], "objective is 'masked', expected one of ar, mlm, diffusion"),
        ([{**ENTRY, "n_blocks": 0}], "n_blocks is 0"),
        ([{**ENTRY, "n_blocks": True}], "n_blocks is True"),
        ([{**ENTRY, "toy": "yes"}], "toy is 'yes', expected true or false"),
        ([ENTRY, ENTRY], "lists 'm' twice"),
    ],
)
def test_a_bad_list_of_models_is_refused(rows, message):
    with pytest.raises(FigureError, match=message):
        models_of(rows)


def test_the_depth_of_a_model_is_told_by_its_tables():
    unknown = Model("m", "Model M", "f", "mlm", "F")
    assert with_depths([unknown], [profile()])[0].n_blocks == 2
    assert with_depths([unknown], [])[0].n_blocks is None


def test_tables_of_another_depth_are_an_error():
    with pytest.raises(FigureError, match="m has 2 and 3 blocks"):
        with_depths([MLM], [profile(n_blocks=3)])
