"""Figures of the stream's geometry: the numbers are the tables', the pictures are the numbers."""

import csv
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from plm_depth.figures import door, layer_maps, layer_similarity, select, stream_geometry
from plm_depth.figures.select import FigureError, Geometry, geometry_name, geometry_numbers
from plm_depth.tables import GEOM, read_table
from unit.figures import invented
from unit.figures.invented_geometry import write_geometry, write_pair
from unit.figures.pictures import picture
from unit.figures.test_figures import check_texts, words_of

MODELS = (invented.MINI[0], invented.MINI[3], invented.MINI[4])  # masked with 4 blocks, autoregressive 8, diffusion 4
STAGES = [layer_similarity.STAGE, stream_geometry.STAGE]


def read(models, folder: Path, **options) -> select.Study:
    paths = [write_geometry(model, folder / f"{model.model}.parquet", **options) for model in models]
    return door.read_study(invented.models_json(models, folder / "models.json"), {"geometries": paths})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("geometry")


@pytest.fixture(scope="module")
def study(folder) -> select.Study:
    """The geometry of three models, as the door reads it."""
    return read(MODELS, folder)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_csv_is_exactly_the_rows_of_the_tables(stage, study, folder, tmp_path):
    """Read with another library and another path of code: no figure makes a new number."""
    tables = sorted(folder.glob("*.parquet"))
    files = {kind: tmp_path / f"figure.{kind}" for kind in ("svg", "csv", "html")}
    options = ["--models", str(folder / "models.json"), "--geometries", *map(str, tables)]
    door.run(stage, [*options, *(word for kind, path in files.items() for word in (f"--{kind}", str(path)))])
    expected: dict[tuple, list] = {}
    for table in tables:
        for row in read_table(table, GEOM).to_pylist():
            n = row["n_blocks"]
            is_shown = row["space"] == "raw" and row["direction"] != "c2n" and row["share"] == 1.0
            shown_as = {
                "layer_similarity": {"angular": "", "cka": ""} if row["points"] == "residue" else {},
                "stream_geometry": {"two_nn_mle": ""}
                | ({"effective_rank": "", "anisotropy": ""} if row["points"] == "residue" else {}),
            }[stage.name]
            names = [row["quantity"] + ": " + row["points"]] if row["quantity"] in shown_as else []
            if stage.name == "stream_geometry" and row["quantity"] == "overlap" and row["points"] == "residue":
                names += ["overlap: residue, next layer"] if row["layer_j"] == row["layer_i"] + 1 else []
                names += ["overlap: residue, last layer"] if row["layer_j"] == n else []
            for name in names if is_shown else []:
                other = "" if row["layer_j"] < 0 else str(row["layer_j"])
                key = (row["model_id"], row["null_model"], name, str(row["layer_i"]), other)
                expected.setdefault(key, []).append((row["value"], row["se"], row["n_points"], row["n_nan"]))
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(expected) > 100
    for row in rows:
        null = {"trained": "trained", "untrained": "randinit"}[row["network"]]
        found = np.array(expected[row["model"], null, row["quantity"], row["layer"], row["other_layer"]])
        value, error = found[:, 0], found[:, 1]
        if null == "trained":
            want = [value[0], value[0] - 1.96 * error[0], value[0] + 1.96 * error[0]]
            assert row["interval"] == "standard error"
        else:
            want = [value.mean(), value.min(), value.max()]
            assert len(value) == 3 == int(row["n_seeds"])
        got = [float(row[name]) for name in ("value", "lo", "hi")]
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-9)
        assert [int(row["n_points"]), int(row["n_nan"])] == found[0, 2:].tolist()


def test_layers_stand_at_their_depth_and_pairs_of_neighbours_between_them(study):
    wanted = [Geometry("anisotropy"), Geometry("overlap", other="next"), Geometry("overlap", other="last")]
    numbers = geometry_numbers(study, wanted=wanted)
    own = numbers.filter((pl.col("model") == "progen2_l8") & (pl.col("network") == "trained"))
    depths = [own.filter(pl.col("quantity") == geometry_name(one))["relative_depth"].to_list() for one in wanted]
    assert depths[0] == [k / 8 for k in range(9)]
    assert depths[1] == [(k + 0.5) / 8 for k in range(8)]
    assert depths[2] == [k / 8 for k in range(8)]


def test_the_matrix_has_trained_values_above_the_diagonal_and_untrained_ones_below(study):
    numbers = layer_similarity.numbers(study)
    own = numbers.filter((pl.col("model") == "esm2_l4") & (pl.col("quantity") == "cka: residue"))
    matrix = layer_similarity.matrix_of(own, 4)
    for i in range(5):
        for j in range(5):
            network = "trained" if i <= j else "untrained"
            cell = (
                (pl.col("network") == network) & (pl.col("layer") == min(i, j)) & (pl.col("other_layer") == max(i, j))
            )
            assert matrix[i, j] == own.filter(cell)["value"][0]


def test_lines_leave_out_values_that_rest_on_fewer_than_half_of_the_points_and_say_so(study):
    numbers, figure = picture(stream_geometry.STAGE, study)
    few = numbers.filter(pl.col("n_points") < pl.col("n_nan"))
    # Three models, trained and untrained, one dimension and two overlaps at layer 0.
    assert few.height == 18 and set(few["layer"]) == {0}
    assert "18 values rest on fewer than half of the points" in words_of(figure)
    first, *_ = figure.axes  # rows of the first family, masked with 4 blocks
    for axes, depth in ((first, 0.25), (figure.axes[4], 0.375)):
        lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 1]
        assert [float(line.get_xdata()[0]) for line in lines] == [depth, depth]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
@pytest.mark.parametrize("models", [MODELS, invented.MINI[:1], invented.LARGE[5:10]], ids=["three", "one", "large"])
def test_no_text_is_cut_off_or_runs_into_another(stage, models, tmp_path):
    _, figure = picture(stage, read(models, tmp_path))
    check_texts(figure)


def test_figures_say_what_stands_behind_them(study):
    for stage in STAGES:
        words = words_of(picture(stage, study)[1])
        assert "n = 40 proteins in 38 similarity clusters" in words
        assert "1.96 standard errors over similarity clusters" in words
        assert "mean and range of seeds (n = 3)" in words
        assert "Toy models: no evidence about real ones." in words
    assert "masked model, nothing hidden" in words and "diffusion model, nothing hidden" in words


def test_where_only_proteins_were_measured_they_are_shown(tmp_path):
    study = read(MODELS[:1], tmp_path, points=("pooled",))
    numbers, figure = picture(layer_similarity.STAGE, study)
    assert set(numbers["points"]) == {"pooled"}
    assert "40 means over proteins a model" in words_of(figure)
    numbers, _ = picture(stream_geometry.STAGE, study)
    assert set(numbers["quantity"]) == {"two_nn_mle: pooled"}


def test_models_without_geometry_are_left_out_of_the_picture(tmp_path):
    paths = [write_geometry(MODELS[1], tmp_path / "one.parquet")]
    study = door.read_study(invented.models_json(MODELS, tmp_path / "models.json"), {"geometries": paths})
    for stage in STAGES:
        numbers, figure = picture(stage, study)
        assert set(numbers["model"]) == {MODELS[1].model}
        assert "toy ESM-2" not in words_of(figure)


def test_without_any_row_a_figure_ends_in_one_message(study):
    with pytest.raises(FigureError, match="no row of bend: residue at clean"):
        geometry_numbers(study, wanted=[Geometry("bend")])


def test_values_beyond_a_colour_scale_and_undefined_ones_are_counted(study):
    is_it = (pl.col("quantity") == "angular") & (pl.col("layer_i") == 0) & (pl.col("layer_j") == 4)
    for value, words in ((0.8, "lie beyond a colour scale"), (math.nan, "are undefined and white")):
        table = study.geometries.with_columns(value=pl.when(is_it).then(value).otherwise(pl.col("value")))
        changed = select.replace(study, geometries=table)
        assert words in words_of(picture(layer_similarity.STAGE, changed)[1])


# ----------------------------------------------------------------------------------------------------------------
# Two models


def read_pairs(pairs, models, folder: Path, **options) -> select.Study:
    paths = [write_pair(one, other, folder / f"{one.model}.{other.model}.parquet", **options) for one, other in pairs]
    return door.read_study(invented.models_json(models, folder / "models.json"), {"pairs": paths})


def test_maps_are_drawn_as_they_stand_in_the_table_with_the_best_source_of_each_layer(tmp_path):
    esm, _, short, deep, *_ = invented.MINI
    study = read_pairs([(short, deep)], [esm, short, deep], tmp_path)
    numbers, figure = picture(layer_maps.STAGE, study)
    assert set(numbers["model"]) == {short.model} and set(numbers["other_model"]) == {deep.model}
    own = numbers.filter((pl.col("network") == "trained") & pl.col("layer").is_not_null())
    matrix = layer_maps.matrix_of(own, 4, 8)
    table = pl.read_parquet(tmp_path / f"{short.model}.{deep.model}.parquet").filter(
        (pl.col("null_model") == "trained") & (pl.col("direction") == "n2c") & (pl.col("points") == "residue")
        & (pl.col("space") == "raw") & (pl.col("quantity") == "map_error")
    )  # fmt: skip
    for i, j, value in table.select("layer_i", "layer_j", "value").iter_rows():
        assert matrix[i, j] == value
    _, trained, _ = figure.axes
    (image,) = trained.get_images()
    np.testing.assert_allclose(image.get_array(), matrix)
    _, best = trained.get_lines()
    assert best.get_xdata().tolist() == list(range(9))
    assert best.get_ydata().tolist() == [matrix[:, j].argmin() for j in range(9)]
    words = words_of(figure)
    assert "off diagonal 0.12 [0.06, 0.18] at random 0.39" in words
    assert "Errors on 64 residues of clusters that no map was fitted on." in words
    assert "Not measured untrained" not in words


def test_errors_beyond_the_scale_of_maps_are_counted_and_missing_networks_named(tmp_path):
    esm, esm_deep, *_ = invented.MINI
    study = read_pairs([(esm, esm_deep)], invented.MINI, tmp_path, nulls=[("trained", -1)], steepness=-1.0)
    words = words_of(picture(layer_maps.STAGE, study)[1])
    assert "errors are larger than 1 and shown as 1" in words
    assert "not measured" in words and "No untrained network was measured." in words


@pytest.mark.parametrize("n_pairs", [1, 3, 5])
def test_no_text_of_the_maps_is_cut_off_or_runs_into_another(n_pairs, tmp_path):
    large = invented.LARGE
    pairs = [(large[0], large[1]), (large[6], large[7]), (large[10], large[12]), (large[14], large[15]),
             (large[17], large[18])]  # fmt: skip
    check_texts(picture(layer_maps.STAGE, read_pairs(pairs[:n_pairs], large, tmp_path))[1])
