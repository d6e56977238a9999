"""Figures of effective depths: the numbers are the tables', all definitions have words, pictures are the numbers."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from plm_depth.figures import depth_agreement, depth_definitions, door, select
from plm_depth.figures.depth_definitions import shown_of, words_of
from plm_depth.figures.select import FigureError, replace
from plm_depth.metrics import depths
from plm_depth.randomness import generator
from plm_depth.tables import DEPTHS, write_table
from unit.figures import invented
from unit.figures.pictures import picture
from unit.figures.test_figures import check_texts
from unit.figures.test_figures import words_of as text_of

SKIPS = [("I1", "where", f"depth_score {name}") for name in ("influence", "l2", "dnll")] + [
    ("I6", "amount", f"n80 {name}") for name in ("influence", "l2", "dnll")
]


def write_depths(models, folder: Path) -> dict[str, list[Path]]:
    """Write the tables of depths of models, from invented summaries and with some of skip effects added."""
    summaries = [invented.write_summary(m, folder / f"{m.model}.summary.parquet") for m in models]
    files = {"depths": [folder / "depths.parquet"], "taus": [folder / "tau.parquet"]}
    depths.write(summaries, files["depths"][0], files["taus"][0])
    found = pl.read_parquet(files["depths"][0]).with_columns(pl.col(pl.Categorical).cast(pl.String))
    some = found.filter(pl.col("definition") == "depth_score rel_u")
    for number, (index, kind, definition) in enumerate(SKIPS):
        values = generator(0, definition).uniform(0.1, 0.9, some.height)
        more = some.with_columns(
            index=pl.lit(index), kind=pl.lit(kind), definition=pl.lit(definition), value=pl.Series(values),
            ci_lo=pl.Series(values - 0.05), ci_hi=pl.Series(values + 0.02 * number),
        )  # fmt: skip
        found = pl.concat([found, more])
    write_table({name: found[name].to_list() for name in DEPTHS.names}, DEPTHS, files["depths"][0])
    write_table(depths.agreement(found), depths.DEPTH_TAU, files["taus"][0])
    return files


def read(models, folder: Path) -> select.Study:
    files = write_depths(models, folder)
    return door.read_study(invented.models_json(models, folder / "models.json"), files)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> select.Study:
    return read(invented.MINI, tmp_path_factory.mktemp("depths"))


def test_every_definition_of_the_summary_is_drawn_or_a_variant_of_one_that_is(study):
    named = {name: words_of(name) for name in study.depths["definition"].unique()}
    silent = {name for name, words in named.items() if words is None}
    assert {name for name in silent if not name.startswith("kl_depth_first")} == {
        "depth_score norm_u",
        "settling kl_lf 0.5",
    }
    shown = [words for words in named.values() if words is not None]
    assert len(shown) == len(set(shown)), "two definitions have the same words"


def test_definitions_have_words_at_one_share_only():
    assert words_of("kl_depth kl_0 0.5") == "lens KL below 50 % of layer 0"
    assert words_of("retention_depth nll_background 0.95") == "early exit keeps 95 % of its gain"
    assert words_of("retention_depth fitness_ar 0.95") == "fitness (ar) keeps 95 % of its gain"
    assert words_of("removable_fraction angular_nll 0.95") == "blocks needed for 95 % of the gain"
    assert words_of("n80 gate_logp") == "80 % of gate attributions"
    assert (
        words_of("retention_depth probe_ss3_logistic_pca256_accuracy_chance 0.95")
        == "probe of SS3 keeps 95 % of its gain"
    )
    for name in ("retention_depth nll_background 0.9", "retention_depth acc1_layer_0 0.95",
                 "removable_fraction tail_nll 0.95", "n80 gate_mlp_logp"):  # fmt: skip
        assert words_of(name) is None


def test_places_stand_before_amounts_and_both_by_number():
    rows = [("I6", "amount", "n80 l2"), ("I10", "where", "settling top1"), ("I2", "where", "kl_depth kl_0 0.1"),
            ("I1", "where", "depth_score l2"), ("I2", "where", "kl_depth_first kl_0 0.1")]  # fmt: skip
    assert shown_of(rows) == ["depth_score l2", "kl_depth kl_0 0.1", "settling top1", "n80 l2"]


def test_the_numbers_are_the_rows_of_the_table(study):
    numbers = depth_definitions.numbers(study)
    rows = {
        (row["model_id"], row["null_model"], row["null_seed"], row["definition"]): row
        for row in study.depths.iter_rows(named=True)
    }
    assert numbers.height == 6 * 2 * numbers["quantity"].n_unique() > 100
    for row in numbers.iter_rows(named=True):
        if row["network"] == "trained":
            one = rows[row["model"], "trained", -1, row["quantity"]]
            assert (row["value"], row["lo"], row["hi"]) == (one["value"], one["ci_lo"], one["ci_hi"])
        else:
            values = [rows[row["model"], "randinit", seed, row["quantity"]]["value"] for seed in range(3)]
            assert (row["value"], row["lo"], row["hi"]) == pytest.approx((np.mean(values), min(values), max(values)))


def test_points_stand_at_their_values_in_the_line_of_their_definition(study):
    numbers, figure = picture(depth_definitions.STAGE, study)
    panels = [axes for axes in figure.axes if axes.get_ylim()[0] > axes.get_ylim()[1]]
    assert len(panels) == 3
    lines = [line for line in panels[0].get_lines() if line.get_marker() not in ("None", None, "")]
    own = numbers.filter(pl.col("family") == "esm2")
    assert sorted(float(line.get_xdata()[0]) for line in lines) == pytest.approx(sorted(own["value"]))
    heights = [line.get_ydata()[0] for line in panels[0].get_lines() if len(set(line.get_xdata())) == 2]
    assert len({round(height, 6) for height in heights}) >= own["quantity"].n_unique()


def test_undefined_depths_have_no_point_and_are_counted(study):
    is_it = (pl.col("definition") == "cosine_depth cos") & (pl.col("null_model") == "trained")
    table = study.depths.with_columns(value=pl.when(is_it).then(math.nan).otherwise(pl.col("value")))
    _, figure = picture(depth_definitions.STAGE, replace(study, depths=table))
    assert "6 are undefined and have no point." in text_of(figure)


@pytest.mark.parametrize("stage", [depth_definitions.STAGE, depth_agreement.STAGE], ids=lambda stage: stage.name)
@pytest.mark.parametrize(
    "models", [invented.MINI, invented.MINI[:1], invented.LARGE[5:14]], ids=["mini", "one", "large"]
)
def test_no_text_is_cut_off_or_runs_into_another(stage, models, tmp_path):
    check_texts(picture(stage, read(models, tmp_path))[1])


def test_the_matrix_of_tau_is_symmetric_and_that_of_the_table(study):
    numbers, figure = picture(depth_agreement.STAGE, study)
    names = list(dict.fromkeys(numbers["quantity"]))
    matrix = depth_agreement.matrix_of(numbers, names)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.diag(matrix) == pytest.approx(1)
    table = {frozenset((row["definition"], row["other"])): row["tau"] for row in study.taus.iter_rows(named=True)}
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            assert matrix[i, j] == table[frozenset((one, other))]
    assert "Trained models, n = 6;" in text_of(figure)
    image = figure.axes[1].get_images()[0]
    np.testing.assert_array_equal(np.asarray(image.get_array()), matrix)


def test_tables_of_two_runs_and_tables_without_a_definition_are_refused(study):
    with pytest.raises(FigureError, match="expected each pair once"):
        depth_agreement.numbers(replace(study, taus=study.taus.head(5)))
    with pytest.raises(FigureError, match="none of the definitions that this figure draws"):
        depth_definitions.numbers(replace(study, depths=study.depths.filter(pl.col("index") == "I0")))
    with pytest.raises(FigureError, match="stands twice"):
        depth_definitions.numbers(replace(study, depths=pl.concat([study.depths, study.depths])))


def test_of_the_ablations_one_score_floor_share_and_policy_is_drawn():
    for name in ("retention_depth nll_background 0.95", "removable_fraction angular_nll 0.95", "n80 dnll_remove"):
        assert words_of(name) and "_" not in words_of(name)
    for name in ("retention_depth nll_background 0.9", "retention_depth acc1_layer_0 0.95",
                 "removable_fraction tail_nll 0.95", "removable_fraction angular_acc1 0.95"):  # fmt: skip
        assert words_of(name) is None
