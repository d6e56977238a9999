"""Every figure on invented studies: what is drawn is what was selected, and nothing overlaps or is cut off."""

import functools
import importlib
import io
import itertools
import math
import pkgutil
from unittest import mock

import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG, RendererSVG
from matplotlib.text import Text

import plm_depth.figures
from plm_depth.figures import door, draw, select, style
from plm_depth.figures.style import RC, model_looks
from unit.figures import invented

MODULES = {name: importlib.import_module(f"plm_depth.figures.{name}") for _, name, _ in
           pkgutil.iter_modules(plm_depth.figures.__path__)}  # fmt: skip
ABLATION_FIGURES = ["ablation_matrices", "block_removal", "early_exit", "removed_share"]
STAGES = {
    name: module.STAGE
    for name, module in MODULES.items()
    # Figures of other tables have tests of their own.
    if hasattr(module, "STAGE") and set(module.STAGE.reads) <= set(invented.ENDINGS)
}
EFFECT_FIGURES = ["block_influence", "output_change", "skip_matrices", "verdicts"]
PROFILE_FIGURES = sorted(
    name for name, stage in STAGES.items() if hasattr(MODULES[name], "ROWS") and "profiles" in stage.reads
)
STUDIES = {"mini": invented.MINI, "large": invented.LARGE, "one": invented.MINI[3:4]}
LONG = tuple(
    invented.Invented(f"m{i}", "a model with a name of many words that nobody shortened", f"family{i}", objective, 3)
    for i, objective in enumerate(("mlm", "ar", "diffusion", "mlm", "ar"))
)


@pytest.fixture(scope="module")
def study_of(tmp_path_factory):
    """Return a function from the name of a study to what the door reads of it."""
    read = {}

    def study(name: str) -> select.Study:
        if name not in read:
            folder = tmp_path_factory.mktemp(name)
            models = LONG if name == "long" else STUDIES[name]
            invented.write_study(models, folder, with_others=name not in ("large", "long"))
            endings = invented.ENDINGS.items()
            tables = {kind: sorted(folder.glob(f"*.{ending}.parquet")) for kind, ending in endings}
            read[name] = door.read_study(folder / "models.json", tables)
        return read[name]

    return study


@pytest.fixture(scope="module")
def figure_of(study_of):
    """Return a function from the names of a figure and a study to the numbers and the picture, drawn once."""
    return functools.cache(lambda name, study: drawn(STAGES[name], study_of(study)))


def drawn(stage, study):
    numbers = stage.numbers(study)
    with matplotlib.rc_context(RC):
        figure = stage.draw(numbers, study.models)
        FigureCanvasSVG(figure)
    return numbers, figure


def test_every_figure_is_named_like_its_module():
    assert sorted(STAGES) == sorted([
        "conditions", "contributions", "cosines", "depth_summary", "entropy", "lens_kl", "lens_overlap", "settling",
        "training_loss", "update_norms", "variance", *EFFECT_FIGURES, *ABLATION_FIGURES,
    ])  # fmt: skip
    assert all(stage.name == name for name, stage in STAGES.items())


# ----------------------------------------------------------------------------------------------------------------
# What is drawn


@pytest.mark.parametrize("name", PROFILE_FIGURES)
def test_every_line_and_band_of_a_profile_figure_is_the_selected_numbers(study_of, name):
    study = study_of("mini")
    numbers, figure = drawn(STAGES[name], study)
    rows, families = MODULES[name].ROWS, list(draw.columns_of(study.models))
    expected, found = [], []
    axes_of = dict(zip(itertools.product(families, range(len(rows))), figure.axes, strict=True))
    for (family, r), axes in axes_of.items():
        row, curves, bands = rows[r], [], []
        for model in draw.columns_of(study.models)[family]:
            own = numbers.filter((pl.col("model") == model.model) & (pl.col("quantity") == row.quantity))
            for network, aggregate in (("untrained", row.aggregate), ("trained", row.aggregate), ("trained", row.also)):
                if aggregate:
                    line = own.filter((pl.col("network") == network) & (pl.col("aggregate") == aggregate))
                    curves.append(line.select("relative_depth", "value").to_numpy())
                    if aggregate == row.aggregate:
                        bands.append((line["lo"].min(), line["hi"].max()))
        lines = [line.get_xydata() for line in axes.lines if line.get_transform() == axes.transData]
        assert len(lines) == len(curves)
        expected += curves
        found += lines
        extents = [collection.get_datalim(axes.transData) for collection in axes.collections]
        np.testing.assert_allclose([(box.y0, box.y1) for box in extents], bands)
    for line, curve in zip(found, expected, strict=True):
        np.testing.assert_array_equal(line, curve)
    n_points = sum(len(curve) for curve in expected)
    assert n_points == numbers.filter(pl.col("quantity").is_in([row.quantity for row in rows])).height


def test_every_point_of_the_depth_summary_is_a_selected_number(study_of):
    study = study_of("mini")
    numbers, figure = drawn(STAGES["depth_summary"], study)
    panels = numbers.select("quantity", "parameter").unique(maintain_order=True).rows()
    assert len(figure.axes) == len(panels) == 10
    for axes, (quantity, parameter) in zip(figure.axes, panels, strict=True):
        own = numbers.filter((pl.col("quantity") == quantity) & (pl.col("parameter") == parameter))
        values = [line.get_xdata()[0] for line in axes.lines if line.get_marker() not in ("", "None", None)]
        intervals = [tuple(line.get_xdata()) for line in axes.lines if line.get_linewidth() in (2.2, 1.2)]
        assert values == own["value"].to_list() and len(values) == 2 * len(study.models)
        assert intervals == own.select("lo", "hi").rows()


def test_every_curve_of_the_training_figure_is_a_selected_number(study_of):
    study = study_of("mini")
    numbers, figure = drawn(STAGES["training_loss"], study)
    lines = [line.get_xydata() for axes in figure.axes for line in axes.lines]
    for model in study.models:
        own = numbers.filter(pl.col("model") == model.model)
        for split, column in (("train", "value"), ("valid", "value"), ("valid", "background")):
            curve = own.filter(pl.col("quantity") == split).select("n_residues", column).to_numpy()
            assert any(np.array_equal(line, curve) for line in lines), (model.model, split, column)
    assert len(lines) == 3 * len(study.models)


def test_trained_and_untrained_lines_of_a_model_look_different_but_share_the_hue(study_of):
    study = study_of("one")
    _, figure = drawn(STAGES["contributions"], study)
    untrained, trained = figure.axes[0].lines
    assert trained.get_linestyle() == "-" and untrained.get_linestyle() == "--"
    assert trained.get_color() == model_looks(study.models)[study.models[0].model][0] != untrained.get_color()
    assert trained.get_linewidth() > untrained.get_linewidth()


def test_panels_of_one_quantity_share_their_axis(figure_of):
    _, figure = figure_of("contributions", "mini")
    limits = {axes.get_ylim() for axes in figure.axes[0::3]}
    assert len(limits) == 1
    assert {axes.get_xlim() for axes in figure.axes} == {(-0.02, 1.02)}


# ----------------------------------------------------------------------------------------------------------------
# Words in the picture


def words_of(figure) -> str:
    texts = [text.get_text() for text in figure.findobj(Text)]
    return "\n".join(text for text in texts if text).replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"training_loss", "verdicts"}))
def test_figures_state_proteins_clusters_resamples_and_seeds(figure_of, name):
    words = words_of(figure_of(name, "mini")[1])
    assert "n = 40 proteins in 38 similarity clusters" in words
    assert "2,000 resamples" in words and "seeds (n = 3)" in words


@pytest.mark.parametrize("name", sorted(STAGES))
def test_figures_of_toys_say_so_and_others_do_not(figure_of, name):
    assert "Toy models: no evidence about real ones." in words_of(figure_of(name, "mini")[1])
    if name in ("contributions", "depth_summary", "training_loss", *EFFECT_FIGURES):
        assert "Toy" not in words_of(figure_of(name, "large")[1])


def test_toys_among_published_models_are_named(study_of):
    study = study_of("mini")
    mixed = [select.replace(model, is_toy=model.family == "dplm") for model in study.models]
    study = select.replace(study, models=mixed)
    words = words_of(drawn(STAGES["contributions"], study)[1])
    assert "Toy models: no evidence about real ones: toy DPLM." in words


def test_panels_name_the_input_that_is_shown(figure_of):
    words = words_of(figure_of("contributions", "mini")[1])
    for heading in ("masked, 15 % hidden", "autoregressive, N to C", "diffusion, mean over noise"):
        assert heading in words


def test_a_model_without_an_untrained_network_is_named(study_of):
    study = study_of("mini")
    kept = study.profiles.filter((pl.col("model_id") != "esm2_l4") | (pl.col("null_model") == "trained"))
    words = words_of(drawn(STAGES["lens_kl"], select.replace(study, profiles=kept))[1])
    assert "Not measured untrained: toy ESM-2, 4 blocks." in words
    kept = study.profiles.filter(pl.col("null_model") == "trained")
    words = words_of(drawn(STAGES["lens_kl"], select.replace(study, profiles=kept))[1])
    assert "No untrained network was measured." in words and "range over seeds" not in words


def test_values_that_a_logarithmic_axis_cannot_show_are_counted(study_of):
    study = study_of("mini")
    is_one = (pl.col("model_id") == "esm2_l4") & (pl.col("layer") == 2) & (pl.col("null_model") == "trained")
    zeroed = study.profiles.with_columns(value=pl.when(is_one).then(0.0).otherwise(pl.col("value")))
    words = words_of(drawn(STAGES["contributions"], select.replace(study, profiles=zeroed))[1])
    assert "3 values of 0 or less are not on the logarithmic axis" in words


def test_undefined_statistics_are_counted_and_have_no_point(study_of):
    study = study_of("mini")
    is_one = (pl.col("model_id") == "esm2_l4") & (pl.col("stat") == "cosine_depth") & (pl.col("null_seed") == -1)
    undefined = study.summaries.with_columns(
        pl.when(is_one).then(math.nan).otherwise(pl.col(column)).alias(column) for column in ("value", "ci_lo", "ci_hi")
    )
    words = words_of(drawn(STAGES["depth_summary"], select.replace(study, summaries=undefined))[1])
    assert "1 statistics are undefined and have no point." in words


def test_the_variance_legend_gives_the_growth_exponents(study_of):
    study = study_of("one")
    numbers, figure = drawn(STAGES["variance"], study)
    trained = {
        row["quantity"]: row["value"] for row in numbers.filter(pl.col("network") == "trained").iter_rows(named=True)
    }
    words = words_of(figure)
    assert f"β = {trained['growth_beta: var_h']:.2f}" in words
    assert f"γ = {trained['growth_gamma: var_h']:.3f}" in words


def test_the_training_figure_names_models_that_did_not_beat_the_background(study_of, tmp_path):
    study = study_of("mini")
    bad = door._read(
        invented.write_loss(invented.MINI[2], tmp_path / "bad.parquet", end=2.885), door.LOSS, study.models
    )
    losses = pl.concat([study.losses.filter(pl.col("model_id") != "progen2_l4"), bad])
    words = words_of(drawn(STAGES["training_loss"], select.replace(study, losses=losses))[1])
    assert "Did not beat the background: toy ProGen2, 4 blocks." in words
    assert "2.885 (background 2.880), not below background" in words
    assert "Every model beat it." in words_of(drawn(STAGES["training_loss"], study)[1])


def test_a_loss_equal_to_the_background_has_not_beaten_it(study_of, tmp_path):
    study = study_of("one")
    path = invented.write_loss(invented.MINI[3], tmp_path / "even.parquet", end=2.88, reference=2.88)
    losses = door._read(path, door.LOSS, study.models)
    losses = losses.with_columns(nats=pl.when(pl.col("step") == 400).then(2.88).otherwise(pl.col("nats")))
    words = words_of(drawn(STAGES["training_loss"], select.replace(study, losses=losses))[1])
    assert "Did not beat the background: toy ProGen2, 8 blocks." in words


def test_published_models_without_a_training_curve_are_counted_and_toys_without_one_are_an_error(study_of):
    study = study_of("mini")
    losses = study.losses.filter(pl.col("model_id") != "dplm_l8")
    with pytest.raises(select.FigureError, match="losses of dplm_l8: no held-out"):
        STAGES["training_loss"].numbers(select.replace(study, losses=losses))
    models = [select.replace(model, is_toy=model.model != "dplm_l8") for model in study.models]
    words = words_of(drawn(STAGES["training_loss"], select.replace(study, losses=losses, models=models))[1])
    assert "1 models were not trained here and have no curve." in words


def test_a_training_step_that_stands_twice_is_an_error(study_of):
    study = study_of("one")
    with pytest.raises(select.FigureError, match="a step stands twice"):
        STAGES["training_loss"].numbers(select.replace(study, losses=pl.concat([study.losses] * 2)))


@pytest.mark.parametrize(
    ("display_name", "n_blocks", "expected"),
    [
        ("ESM-2 8M", 6, "ESM-2 8M, 6\N{NO-BREAK SPACE}blocks"),
        ("tiny", 1, "tiny, 1\N{NO-BREAK SPACE}block"),
        ("ESM-2 toy, 4 blocks", 4, "ESM-2 toy, 4 blocks"),
        ("unknown", None, "unknown"),
    ],
)
def test_legends_give_the_blocks_of_a_model_once(display_name, n_blocks, expected):
    assert style.name_of(select.Model("m", display_name, "f", "mlm", "F", n_blocks)) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (-0.25, "\N{MINUS SIGN}0.25"),
        (300.0, "300"),
        (1e4, "10⁴"),
        (3e-5, "3e\N{MINUS SIGN}5"),
        (2.75e8, "2.75e8"),
    ],
)
def test_ticks_are_plain_numbers_where_these_are_short(value, text):
    assert draw.plain(value) == text


# ----------------------------------------------------------------------------------------------------------------
# Layout


def boxes_of(figure):
    """Return (text, box) of every text that is drawn, and the page, in points as in the SVG file."""
    figure.set_dpi(72)
    texts, draw_text = [], Text.draw

    def note(text, renderer):  # ticks beyond the ends of an axis exist, but are never drawn
        texts.append(text)
        return draw_text(text, renderer)

    with matplotlib.rc_context(RC), mock.patch.object(Text, "draw", note):
        renderer = RendererSVG(*figure.bbox.size, io.StringIO())
        figure.draw(renderer)
        return [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text().strip()], figure.bbox


def check_texts(figure):
    """Assert that every text stands on the page and none runs into another."""
    boxes, page = boxes_of(figure)
    assert len(boxes) > 20
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1, f"cut off: {text!r}"
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width <= 1 or height <= 3, f"{first!r} runs into {second!r}"


LAYOUTS = [
    *itertools.product(["mini", "one"], sorted(STAGES)),
    *itertools.product(
        ["large", "long"], ["contributions", "depth_summary", "lens_kl", "training_loss", "variance", *EFFECT_FIGURES]
    ),
]


@pytest.mark.parametrize(("study", "name"), LAYOUTS)
def test_no_text_is_cut_off_or_runs_into_another(figure_of, name, study):
    check_texts(figure_of(name, study)[1])


def test_block_numbers_of_narrow_matrices_stay_within_their_panels(figure_of):
    _, figure = figure_of("skip_matrices", "large")
    figure.set_dpi(72)
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "target block"]
    assert len(panels) == 40
    with matplotlib.rc_context(RC):
        renderer = RendererSVG(*figure.bbox.size, io.StringIO())
        figure.draw(renderer)
        for axes in panels:
            room = axes.get_window_extent(renderer)
            for label in axes.get_xticklabels():
                box = label.get_window_extent(renderer)
                assert room.x0 <= box.x0 and box.x1 <= room.x1, label.get_text()


@pytest.mark.parametrize("factor", [3e-7, 2e-4, 0.02, 40.0, 3e8])
@pytest.mark.parametrize("name", ["variance", "update_norms", "lens_kl", "cosines"])
def test_ticks_of_any_size_stay_clear_of_the_axis_labels(study_of, name, factor):
    study = study_of("one")
    scaled = study.profiles.with_columns(pl.col("value", "ci_lo", "ci_hi") * factor)
    _, figure = drawn(STAGES[name], select.replace(study, profiles=scaled))
    check_texts(figure)


@pytest.mark.parametrize("name", sorted(STAGES))
def test_no_letter_is_smaller_than_nine_points(figure_of, name):
    _, figure = figure_of(name, "mini")
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9


def test_a_usual_figure_is_ten_inches_wide(figure_of):
    assert figure_of("contributions", "mini")[1].get_figwidth() == pytest.approx(10)
