"""Figures of skip effects and verdicts: the numbers are the tables', the pictures are the numbers."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from plm_depth.figures import block_influence, door, draw, output_change, select, skip_matrices, verdicts
from plm_depth.figures.select import Effect, FigureError, replace
from plm_depth.figures.style import LIGHT_GREY, effect_norm
from plm_depth.tables import SKIP, VERDICT, read_table
from unit.figures import invented
from unit.figures.pictures import picture
from unit.figures.test_figures import check_texts, words_of

MODELS = (invented.MINI[0], invented.MINI[3], invented.MINI[4])  # masked with 4 blocks, autoregressive 8, diffusion 4
EFFECT_STAGES = [skip_matrices.STAGE, output_change.STAGE, block_influence.STAGE]
SHALLOW = tuple(invented.Invented(f"m{n}", "shallow", "f", "mlm", n) for n in (1, 2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the skip tables and verdicts of three models."""
    folder = tmp_path_factory.mktemp("effects")
    for model in MODELS:
        invented.write_skip(model, folder / f"{model.model}.skip.parquet")
    invented.write_verdicts(invented.MINI, folder / "study.verdict.parquet")
    invented.models_json(MODELS, folder / "models.json")
    invented.models_json(invented.MINI, folder / "mini.json")
    return folder


@pytest.fixture(scope="module")
def study(folder) -> select.Study:
    """The skip tables of three models, as the door reads them."""
    return door.read_study(folder / "models.json", {"skips": sorted(folder.glob("*.skip.parquet"))})


@pytest.fixture(scope="module")
def judged(folder) -> select.Study:
    """The verdicts on the mini study, as the door reads them."""
    return door.read_study(folder / "mini.json", {"verdicts": [folder / "study.verdict.parquet"]})


def without(study: select.Study, condition: pl.Expr) -> select.Study:
    return replace(study, skips=study.skips.filter(~condition))


# ----------------------------------------------------------------------------------------------------------------
# Selection


@pytest.mark.parametrize("stage", EFFECT_STAGES, ids=lambda stage: stage.name)
def test_the_csv_is_exactly_the_rows_of_the_tables(stage, folder, tmp_path):
    """Read with another library and another path of code: no figure makes a new number."""
    tables = sorted(folder.glob("*.skip.parquet"))
    options = ["--models", str(folder / "models.json"), "--skips", *map(str, tables)]
    files = {kind: tmp_path / f"figure.{kind}" for kind in ("svg", "csv", "html")}
    door.run(stage, [*options, *(word for kind, path in files.items() for word in (f"--{kind}", str(path)))])
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {
        "skip_matrices": [("effect", "layer", False)],
        "output_change": [("l2", "layer", True), ("l2", "attn", True), ("l2", "mlp", True),
                          ("locality", "layer", False)],
        "block_influence": [(quantity, "layer", False) for quantity in ("influence", "dependence", "EE", "EL", "LL")],
    }[stage.name]  # fmt: skip
    inputs = {"mlm": ("none", 0.15), "ar": ("n2c", None), "diffusion": ("none", -1.0)}
    expected = {}
    for table in tables:
        for row in read_table(table, SKIP).to_pylist():
            direction, noise = inputs[row["objective"]]
            primary = "prefix" if row["objective"] == "ar" else "other"
            if (
                (row["quantity"], row["part"], row["pos_set"] == "all") in wanted
                and row["pos_set"] in ("all", primary)
                and (row["agg"], row["local"], row["ablation"]) == ("mean", False, "zero")
                and row["vocab"] in ("none", "aa20")
                and row["direction"] == direction
                and (noise is None or math.isclose(row["noise_t"], noise, rel_tol=1e-6))
                and row["null_model"] in ("trained", "randinit")
            ):
                place = tuple("" if row[name] < 0 else str(row[name]) for name in ("src", "tgt"))
                key = (row["model_id"], row["null_model"], row["quantity"], row["part"], *place)
                expected.setdefault(key, []).append((row["value"], row["ci_lo"], row["ci_hi"], row["below_floor"]))
    assert len(rows) == len(expected) > 30
    for row in rows:
        null = {"trained": "trained", "untrained": "randinit"}[row["network"]]
        found = expected[row["model"], null, row["quantity"], row["part"], row["source"], row["target"]]
        value, lo, hi, below = np.array(found).T
        if null == "trained":
            assert len(found) == 1
            want = value[0], lo[0], hi[0], below[0]
        else:
            assert len(found) == int(row["n_seeds"]) == 3
            want = value.mean(), value.min(), value.max(), below.mean()
        got = [float(row[name]) for name in ("value", "lo", "hi", "below_floor")]
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_blocks_stand_in_the_middle_of_their_depth_and_pairs_have_none(study):
    numbers = select.effect_numbers(
        study, effects=[Effect("influence"), Effect("dependence"), Effect("effect"), Effect("EE")]
    )
    own = numbers.filter((pl.col("model") == "progen2_l8") & (pl.col("network") == "trained"))
    by_block = [(k - 0.5) / 8 for k in range(1, 9)]
    assert own.filter(pl.col("quantity") == "influence")["relative_depth"].to_list() == by_block
    assert own.filter(pl.col("quantity") == "dependence")["relative_depth"].to_list() == by_block
    assert own.filter(pl.col("quantity").is_in(["effect", "EE"]))["relative_depth"].is_nan().all()


def test_a_model_without_effects_is_an_error_that_names_it(study):
    with pytest.raises(FigureError, match=r"skips: no row of esm2_l4 at its primary input.*take the model out"):
        skip_matrices.numbers(without(study, pl.col("model_id") == "esm2_l4"))
    with pytest.raises(FigureError, match="skips: no row of esm2_l4"):
        skip_matrices.numbers(replace(study, skips=study.skips.clear()))


def test_a_position_set_or_part_that_was_not_measured_is_an_error_with_the_mend(study):
    with pytest.raises(FigureError, match="progen2_l8: no trained row of effect of layer at prefix; measure it"):
        skip_matrices.numbers(without(study, pl.col("pos_set") == "prefix"))
    with pytest.raises(FigureError, match="esm2_l4: no trained row of l2 of layer at all; measure it"):
        output_change.numbers(without(study, pl.col("pos_set") == "all"))


def test_a_missing_or_doubled_cell_is_an_error(study):
    cell = (
        (pl.col("model_id") == "dplm_l4") & (pl.col("quantity") == "effect") & (pl.col("null_seed") == 1)
        & (pl.col("src") == 2) & (pl.col("tgt") == 3)
    )  # fmt: skip
    message = r"dplm_l4 \(randinit, seed 1\): {} rows of effect of layer at other, expected 10"
    with pytest.raises(FigureError, match=message.format(9)):
        skip_matrices.numbers(without(study, cell))
    twice = pl.concat([study.skips, study.skips.filter(cell & (pl.col("null_model") == "randinit"))])
    with pytest.raises(FigureError, match=message.format(11)):
        skip_matrices.numbers(replace(study, skips=twice))


def test_an_undefined_seed_makes_the_untrained_mean_undefined(study):
    is_one = (
        (pl.col("model_id") == "esm2_l4") & (pl.col("null_model") == "randinit") & (pl.col("null_seed") == 2)
        & (pl.col("quantity") == "influence") & (pl.col("src") == 1)
    )  # fmt: skip
    undefined = study.skips.with_columns(value=pl.when(is_one).then(math.nan).otherwise(pl.col("value")))
    numbers = block_influence.numbers(replace(study, skips=undefined))
    row = numbers.filter(
        (pl.col("model") == "esm2_l4") & (pl.col("network") == "untrained") & (pl.col("quantity") == "influence")
        & (pl.col("source") == 1)
    )  # fmt: skip
    assert row.select("value", "lo", "hi").row(0) == pytest.approx((math.nan,) * 3, nan_ok=True)


# ----------------------------------------------------------------------------------------------------------------
# Matrices


def panels_of(figure):
    """Return the panels of matrices, in order, without the colour scale."""
    return [axes for axes in figure.axes if axes.get_xlabel() == "target block"]


def test_matrices_show_every_cell_source_down_target_across_trained_beside_untrained(study):
    numbers, figure = picture(skip_matrices.STAGE, study)
    panels = panels_of(figure)
    assert len(panels) == 2 * len(MODELS)
    for (model, network), axes in zip(
        ((model, network) for model in study.models for network in ("trained", "untrained")), panels, strict=True
    ):
        shown, _ = (image.get_array() for image in axes.images)
        own = numbers.filter((pl.col("model") == model.model) & (pl.col("network") == network))
        for row in own.iter_rows(named=True):
            assert shown[row["source"] - 1, row["target"] - 1] == row["value"]
        n = model.n_blocks
        assert shown.mask[np.tril_indices(n, -1)].all() and (~shown.mask).sum() == own.height == n * (n + 1) / 2
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert (left, right, bottom, top) == (0.5, n + 0.5, n + 0.5, 0.5), "block 1 is in the upper left corner"
    trained, untrained = panels[:2]
    assert trained.get_position().y0 == pytest.approx(untrained.get_position().y0)
    assert trained.get_position().x1 < untrained.get_position().x0


def test_cells_below_the_noise_floor_are_grey_but_not_the_diagonal(study):
    numbers, figure = picture(skip_matrices.STAGE, study)
    axes = panels_of(figure)[2]  # 8 blocks, trained
    grey = axes.images[1]
    cells = np.argwhere(~grey.get_array().mask) + 1
    own = numbers.filter((pl.col("model") == "progen2_l8") & (pl.col("network") == "trained"))
    flagged = own.filter((pl.col("below_floor") > 0.5) & (pl.col("source") != pl.col("target")))
    assert sorted(map(tuple, cells)) == sorted(flagged.select("source", "target").rows()) != []
    assert own.filter(pl.col("source") == pl.col("target"))["below_floor"].min() > 0.5
    assert {to_hex(colour) for colour in grey.to_rgba(grey.get_array())[~grey.get_array().mask]} == {LIGHT_GREY.lower()}
    assert grey.get_zorder() >= axes.images[0].get_zorder()
    assert skip_matrices.FLOOR_LABEL in words_of(figure)


def test_the_colour_scale_runs_from_0_to_1_in_every_panel_and_larger_cells_are_counted(study):
    larger = study.skips.with_columns(
        value=pl.when((pl.col("quantity") == "effect") & (pl.col("src") == 1) & (pl.col("tgt") == 2))
        .then(1.7)
        .otherwise(pl.col("value").clip(upper_bound=1.0))
    )
    numbers, figure = picture(skip_matrices.STAGE, replace(study, skips=larger))
    scale, *panels = figure.axes
    for axes in (scale, *panels):
        image = axes.images[0]
        assert (image.norm.vmin, image.norm.vmax, image.norm.clip) == (0.0, 1.0, True)
        assert image.get_cmap().name == skip_matrices.COLOURS
    image = panels[0].images[0]
    np.testing.assert_array_equal(image.to_rgba(np.array([1.7])), image.to_rgba(np.array([1.0])))
    assert effect_norm()(1.7) == 1.0
    assert [label.get_text() for label in scale.get_xticklabels()] == ["0", "0.5", "1 or more"]
    assert f"{2 * len(MODELS)} of {numbers.height} cells are larger than 1 and shown as 1." in words_of(figure)


def test_a_model_without_an_untrained_network_has_an_empty_panel_that_says_so(study):
    gone = (pl.col("model_id") == "esm2_l4") & (pl.col("null_model") == "randinit")
    _, figure = picture(skip_matrices.STAGE, without(study, gone))
    words = words_of(figure)
    assert len(panels_of(figure)) == 2 * len(MODELS) - 1
    assert "not measured" in words and "Not measured untrained: toy ESM-2, 4 blocks." in words
    check_texts(figure)


def test_undefined_cells_are_white_and_counted(study):
    is_one = (pl.col("quantity") == "effect") & (pl.col("src") == 1) & (pl.col("null_model") == "trained")
    undefined = study.skips.with_columns(value=pl.when(is_one).then(math.nan).otherwise(pl.col("value")))
    _, figure = picture(skip_matrices.STAGE, replace(study, skips=undefined))
    assert f"{4 + 8 + 4} cells are undefined and white." in words_of(figure)
    assert panels_of(figure)[0].images[0].get_array().mask[0].all()


# ----------------------------------------------------------------------------------------------------------------
# Profiles and halves


@pytest.mark.parametrize("module", [output_change, block_influence], ids=lambda module: module.STAGE.name)
def test_lines_and_bands_are_the_selected_numbers(module, study):
    numbers, figure = picture(module.STAGE, study)
    families = list(draw.columns_of(study.models))
    n_rows = len(module.ROWS) + (module is block_influence)
    for column, family in enumerate(families):
        for r, row in enumerate(module.ROWS):
            axes = figure.axes[column * n_rows + r]
            quantity, _, part = row.quantity.partition(": ")
            own = numbers.filter(
                (pl.col("family") == family) & (pl.col("quantity") == quantity) & (pl.col("part") == (part or "layer"))
            )
            curves, bands = [], []
            for network in ("untrained", "trained"):
                line = own.filter(pl.col("network") == network)
                curves.append(line.select("relative_depth", "value").to_numpy())
                bands.append((line["lo"].fill_nan(None).min(), line["hi"].fill_nan(None).max()))
            lines = [line.get_xydata() for line in axes.lines if line.get_transform() == axes.transData]
            for line, curve in zip(lines, curves, strict=True):
                np.testing.assert_array_equal(line, curve)
                assert len(curve) == own["n_blocks"][0]
            extents = [collection.get_datalim(axes.transData) for collection in axes.collections]
            np.testing.assert_allclose([(box.y0, box.y1) for box in extents], bands)


def test_branches_that_were_not_measured_have_no_row_or_are_named(study):
    _, figure = picture(output_change.STAGE, without(study, pl.col("part") == "mlp"))
    assert len(figure.axes) == 3 * 3
    assert "MLP" not in words_of(figure)
    gone = (pl.col("part") == "attn") & (pl.col("model_id") == "dplm_l4")
    _, figure = picture(output_change.STAGE, without(study, gone))
    assert len(figure.axes) == 4 * 3
    assert "Not measured for attention: toy DPLM, 4 blocks." in words_of(figure)


def test_points_of_halves_are_the_selected_numbers_with_their_intervals(study):
    numbers, figure = picture(block_influence.STAGE, study)
    for column, model in enumerate(study.models):
        axes = figure.axes[3 * column + 2]
        own = numbers.filter((pl.col("model") == model.model) & pl.col("quantity").is_in(select.HALVES))
        values = [line.get_ydata()[0] for line in axes.lines if line.get_marker() not in ("", "None", None)]
        intervals = [tuple(line.get_ydata()) for line in axes.lines if line.get_marker() in ("", "None", None)]
        assert values == own["value"].to_list() and len(values) == 6
        assert intervals == own.select("lo", "hi").rows()
        assert [label.get_text() for label in axes.get_xticklabels()] == ["EE", "EL", "LL"]
        dots = [line for line in axes.lines if line.get_marker() not in ("", "None", None)]
        for line, row in zip(dots, own.iter_rows(named=True), strict=True):
            assert round(line.get_xdata()[0]) == select.HALVES.index(row["quantity"])
            assert (line.get_markerfacecolor() == "white") == (row["network"] == "untrained")


def test_an_axis_is_labelled_once_below_the_last_row_that_has_it(study):
    for module, expected in (
        (block_influence, ["", "relative depth", "halves"]),
        (output_change, ["", "", "", "relative depth"]),
    ):
        _, figure = picture(module.STAGE, study)
        figure.canvas.draw()
        for start in range(0, len(figure.axes), len(expected)):
            column = figure.axes[start : start + len(expected)]
            assert [axes.get_xlabel() for axes in column] == expected
            for axes, label in zip(column, expected, strict=True):
                assert any(tick.label1.get_visible() for tick in axes.xaxis.get_major_ticks()) == bool(label)


def test_very_shallow_models_are_drawn_and_what_they_lack_is_counted(tmp_path):
    tables = [invented.write_skip(model, tmp_path / f"{model.model}.parquet", with_others=False) for model in SHALLOW]
    models = invented.models_json(SHALLOW, tmp_path / "models.json")
    study = door.read_study(models, {"skips": tables})
    for stage in EFFECT_STAGES:
        numbers, figure = picture(stage, study)
        check_texts(figure)
        if stage is block_influence.STAGE:
            words = words_of(figure)
            assert "18 of these means are undefined (fewer than four blocks) and have no point." in words
            assert numbers.filter(pl.col("quantity").is_in(select.HALVES))["value"].is_nan().sum() == 18


@pytest.mark.parametrize("stage", EFFECT_STAGES, ids=lambda stage: stage.name)
def test_figures_of_effects_say_where_blocks_are_silenced_and_read(stage, study):
    _, figure = picture(stage, study)
    words = words_of(figure)
    assert "Autoregressive models: silenced at the residues before a cut, read from the cut on." in words
    assert "Masked and diffusion models: silenced at a random half" in words
    _, figure = picture(stage, replace(study, models=study.models[1:2]))
    assert "Masked" not in words_of(figure)


# ----------------------------------------------------------------------------------------------------------------
# Verdicts


def test_the_numbers_of_the_verdicts_are_every_row_of_the_table(judged, folder):
    numbers = verdicts.numbers(judged)
    rows = read_table(folder / "study.verdict.parquet", VERDICT).to_pylist()
    assert numbers.height == len(rows) > 60
    families = {model.family for model in invented.MINI}
    found = {
        (row["claim"], row["model"] or row["family"] or "all", row["quantity"], row["role"]): row
        for row in numbers.iter_rows(named=True)
    }
    assert len(found) == len(rows)
    names = {"value": "value", "ci_lo": "lo", "ci_hi": "hi", "null_value": "untrained_value", "null_lo": "untrained_lo",
             "null_hi": "untrained_hi", "max_value": "max_value", "margin": "margin"}  # fmt: skip
    for row in rows:
        got = found[row["claim"], row["scope"], row["statistic"], row["role"]]
        assert (got["outcome"], got["reason"], got["n_seq"]) == (row["verdict"], row["reason"], row["n_seq"])
        kind = "all" if row["scope"] == "all" else "family" if row["scope"] in families else "model"
        assert got["scope"] == kind
        for name, new in names.items():
            if row["role"] == "claim":
                assert got[new] is None
            else:
                assert got[new] == pytest.approx(row[name], nan_ok=True)


def test_claims_stand_in_order_each_before_its_statistics_in_the_order_of_the_study(judged):
    backwards = replace(judged, verdicts=judged.verdicts[::-1], models=judged.models[::-1])
    numbers = verdicts.numbers(backwards)
    assert numbers["claim"].to_list() == sorted(numbers["claim"])
    k1 = numbers.filter(pl.col("claim") == "K1")
    assert k1["model"].unique(maintain_order=True).to_list() == [model.model for model in backwards.models]
    k4 = numbers.filter(pl.col("claim") == "K4")
    assert k4["family"].to_list() == ["dplm", "progen2", "esm2", None]
    for _, rows in numbers.group_by("claim", "model", "family"):
        roles = rows["role"].to_list()
        assert roles == sorted(roles, key=("claim", "decides", "supports").index) and roles.count("claim") == 1


def test_the_page_holds_every_statistic_and_the_picture_the_deciding_ones(judged, folder, tmp_path):
    files = {kind: tmp_path / f"figure.{kind}" for kind in ("svg", "csv", "html")}
    options = ["--models", str(folder / "mini.json"), "--verdicts", str(folder / "study.verdict.parquet")]
    door.run(verdicts.STAGE, [*options, *(word for kind, path in files.items() for word in (f"--{kind}", str(path)))])
    page = files["html"].read_text()
    numbers, figure = picture(verdicts.STAGE, judged)
    words = words_of(figure)
    assert page.count("<tr>") == numbers.height + 1
    supporting = set(numbers.filter(pl.col("role") == "supports")["quantity"])
    assert "late flips" in supporting and all(quantity in page for quantity in supporting)
    assert "late flips" not in words and "spearman" not in words
    assert f"{numbers.filter(pl.col('role') == 'supports').height} supporting statistics stand in the table." in words


def lines_of(figure) -> dict[float, list[str]]:
    """Return the texts of a figure by the height at which they stand, from left to right."""
    found = {}
    for text in sorted(figure.findobj(Text), key=lambda text: text.get_position()[0]):
        if text.get_text():
            found.setdefault(round(text.get_position()[1], 6), []).append(text.get_text().replace("\n", " "))
    return found


def test_every_claim_and_deciding_statistic_has_a_line_with_numbers_outcome_and_reason(judged):
    numbers, figure = picture(verdicts.STAGE, judged)
    lines = list(lines_of(figure).values())
    assert set(numbers["outcome"]) == set(verdicts.OUTCOMES), "the invented study has every outcome"
    for row in numbers.filter(pl.col("role") != "supports").iter_rows(named=True):
        word = verdicts.OUTCOMES[row["outcome"]][0]
        is_own_line = row["claim"] in ("K2", "K3")
        if row["role"] == "claim":
            assert any(line[0] == row["display_name"] and line[-2:] == [word, row["reason"]] for line in lines), row
        elif is_own_line:
            value = verdicts.with_range(row["value"], row["lo"], row["hi"])
            untrained = verdicts.with_range(row["untrained_value"], row["untrained_lo"], row["untrained_hi"])
            texts = [row["quantity"], value, untrained, verdicts.short(row["margin"]), word, row["reason"]]
            assert texts in lines, row


def test_a_claim_of_one_statistic_shows_its_numbers_and_the_outcome_of_the_claim(judged):
    numbers, figure = picture(verdicts.STAGE, judged)
    k1 = numbers.filter((pl.col("claim") == "K1") & (pl.col("model") == "dplm_l4"))
    claim, statistic = k1.filter(pl.col("role").is_in(["claim", "decides"])).iter_rows(named=True)
    assert (claim["outcome"], statistic["outcome"]) == ("inconclusive", "pass"), "a check failed"
    value = verdicts.with_range(statistic["value"], statistic["lo"], statistic["hi"])
    (line,) = [line for line in lines_of(figure).values() if claim["display_name"] in line and value in line]
    assert line[1] == "LL/EE" and line[-2:] == ["inconclusive", claim["reason"]]
    assert "failed check" in claim["reason"]


def test_outcomes_of_claims_stand_on_their_colour(judged):
    numbers, figure = picture(verdicts.STAGE, judged)
    claims = numbers.filter(pl.col("role") == "claim")
    boxes = [to_hex(box.get_facecolor()) for box in figure.findobj(Rectangle) if box is not figure.patch]
    assert boxes == [verdicts.OUTCOMES[outcome][1] for outcome in claims["outcome"]]
    assert (
        len({colour for _, colour in verdicts.OUTCOMES.values()})
        == len({w for w, _ in verdicts.OUTCOMES.values()})
        == 4
    )
    white = [text.get_text() for text in figure.findobj(Text) if text.get_color() == "white"]
    assert white == [verdicts.OUTCOMES[outcome][0] for outcome in claims["outcome"]]


def test_a_model_without_a_verdict_is_an_error_that_names_it(judged):
    gone = judged.verdicts.filter(pl.col("scope") != "progen2_l8")
    with pytest.raises(FigureError, match="no outcome of K1 for progen2_l8; judge again"):
        verdicts.numbers(replace(judged, verdicts=gone))
    gone = judged.verdicts.filter((pl.col("scope") != "progen2_l8") | (pl.col("claim") != "K2"))
    with pytest.raises(FigureError, match="no outcome of K2 for progen2_l8"):
        verdicts.numbers(replace(judged, verdicts=gone))
    with pytest.raises(FigureError, match="the table has no rows"):
        verdicts.numbers(replace(judged, verdicts=judged.verdicts.clear()))


def test_the_claim_about_structures_stands_last_and_only_where_it_was_judged(judged):
    model = judged.models[2].model
    rows = judged.verdicts.filter((pl.col("claim") == "K1") & (pl.col("scope") == model))
    is_claim = pl.col("role") == "claim"
    text = pl.when(is_claim).then(pl.lit("holds with the structure as input")).otherwise(pl.col("statistic"))
    rows = rows.with_columns(claim=pl.lit("K5"), statistic=text)
    others = judged.verdicts.filter(pl.col("claim") != "K6")
    numbers, figure = picture(verdicts.STAGE, replace(judged, verdicts=pl.concat([rows, others])))
    found = numbers.filter(pl.col("claim") == "K5")
    assert found.equals(numbers[-len(rows) :]) and set(found["model"]) == {model} and len(rows) > 1
    headings = [text.get_text() for text in figure.findobj(Text) if text.get_text().startswith("K")]
    assert headings[-1] == "K5: holds with the structure as input"


def test_verdicts_that_do_not_fit_the_study_are_errors(judged):
    with pytest.raises(FigureError, match="K1 of 'dplm_l8', which --models does not list"):
        verdicts.numbers(replace(judged, models=judged.models[:-1]))
    with pytest.raises(FigureError, match="K3 of 'dplm', which --models does not list"):
        kept = judged.verdicts.filter(~pl.col("scope").str.starts_with("dplm_"))
        verdicts.numbers(replace(judged, models=judged.models[:-2], verdicts=kept))
    with pytest.raises(FigureError, match="a row stands twice"):
        verdicts.numbers(replace(judged, verdicts=pl.concat([judged.verdicts] * 2)))
    odd = judged.verdicts.with_columns(verdict=pl.lit("maybe"))
    with pytest.raises(
        FigureError, match=r"\['maybe'\], expected the claims K1, K2, K3, K4, K5, K6 and the outcomes pass"
    ):
        verdicts.numbers(replace(judged, verdicts=odd))
    headless = judged.verdicts.filter((pl.col("role") != "claim") | (pl.col("claim") != "K3"))
    with pytest.raises(FigureError, match="K3 of esm2 has statistics but no outcome"):
        verdicts.numbers(replace(judged, verdicts=headless))


def test_a_family_may_be_called_like_a_model(judged):
    renamed = judged.verdicts.with_columns(scope=pl.col("scope").replace("esm2_l4", "esm2"))
    models = [replace(model, model=model.model.replace("esm2_l4", "esm2")) for model in judged.models]
    numbers = verdicts.numbers(replace(judged, verdicts=renamed, models=models))
    k1, k4 = (numbers.filter((pl.col("claim") == claim) & (pl.col("role") == "claim")).row(0, named=True)
              for claim in ("K1", "K4"))  # fmt: skip
    assert (k1["scope"], k1["model"], k1["family"]) == ("model", "esm2", "esm2")
    assert (k4["scope"], k4["model"], k4["family"]) == ("family", None, "esm2")


@pytest.mark.parametrize(
    ("value", "lo", "hi", "text"),
    [
        (0.6, 0.577, 0.622, "0.600 [0.577, 0.622]"),
        (0.93, 0.851, 1.014, "0.93 [0.85, 1.01]"),
        (-0.0013, -0.06, 0.07, "0.00 [\N{MINUS SIGN}0.06, 0.07]"),
        (12.0, -30.0, 250.0, "12 [\N{MINUS SIGN}30, 250]"),
        (3e-9, 1e-9, 5e-9, "3e\N{MINUS SIGN}09 [1e\N{MINUS SIGN}09, 5e\N{MINUS SIGN}09]"),
        (0.5, 0.5, 0.5, "0.5 [0.5, 0.5]"),
        (0.51234, math.nan, math.nan, "0.512"),
        (math.nan, math.nan, math.nan, "\N{EN DASH}"),
        (None, None, None, ""),
    ],
)
def test_numbers_have_as_many_decimals_as_their_interval_allows(value, lo, hi, text):
    assert verdicts.with_range(value, lo, hi) == text


# ----------------------------------------------------------------------------------------------------------------
# Files


def test_equal_tables_give_equal_bytes(study, judged):
    for stage, of in [*((stage, study) for stage in EFFECT_STAGES), (verdicts.STAGE, judged)]:
        numbers = stage.numbers(of)
        first = door.as_svg(stage, numbers, of.models)
        assert first == door.as_svg(stage, numbers, of.models)
        assert "dc:date" not in first


def test_the_verdicts_command_ends_with_one_message(folder, tmp_path):
    rows = json.loads((folder / "mini.json").read_text())
    (tmp_path / "models.json").write_text(json.dumps([*rows, rows[0] | {"model": "new"}]))
    options = ["--models", str(tmp_path / "models.json"), "--verdicts", str(folder / "study.verdict.parquet")]
    outputs = [word for kind in ("svg", "csv", "html") for word in (f"--{kind}", str(tmp_path / f"f.{kind}"))]
    with pytest.raises(SystemExit, match=r"figures\.verdicts: verdicts: no outcome of K1 for new"):
        door.run(verdicts.STAGE, [*options, *outputs])
    assert [path.name for path in tmp_path.iterdir()] == ["models.json"]
