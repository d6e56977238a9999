"""Figures of zero-shot fitness: the numbers are the tables', the pictures are the numbers."""

import csv
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from plm_depth.figures import door, fitness, fitness_assays, fitness_depth, select
from plm_depth.figures.select import FigureError, replace
from plm_depth.tables import FITNESS, SUMMARY, read_table
from unit.figures import invented
from unit.figures.invented_fitness import write_fitness, write_fitness_summary
from unit.figures.pictures import picture
from unit.figures.test_figures import check_texts, words_of

MODELS = (invented.MINI[0], invented.MINI[3], invented.MINI[4])  # masked with 4 blocks, autoregressive 8, diffusion 4


def read(models, folder: Path, **options) -> select.Study:
    paths = [write_fitness(model, folder / f"{model.model}.parquet", **options) for model in models]
    return door.read_study(invented.models_json(models, folder / "models.json"), {"fitness": paths})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fitness")


@pytest.fixture(scope="module")
def study(folder) -> select.Study:
    """The correlations of three models, as the door reads them."""
    return read(MODELS, folder)


def test_the_csv_is_exactly_the_rows_of_the_tables(study, folder, tmp_path):
    """Read with another library and another path of code: no figure makes a new number."""
    tables = sorted(folder.glob("*.parquet"))
    files = {kind: tmp_path / f"figure.{kind}" for kind in ("svg", "csv", "html")}
    options = ["--models", str(folder / "models.json"), "--fitness", *map(str, tables)]
    door.run(fitness.STAGE, [*options, *(word for kind, path in files.items() for word in (f"--{kind}", str(path)))])
    expected: dict[tuple, list] = {}
    for table in tables:
        for row in read_table(table, FITNESS).to_pylist():
            is_shown = row["level"] == "all" and row["condition"] == "seq" and row["folds"] in ("none", "random")
            is_shown = is_shown and row["direction"] in ("none", "both") and row["scorer"] != "ar_parity"
            if is_shown and row["null_model"] in ("trained", "randinit"):
                layer = "" if row["layer"] < 0 else str(row["layer"])
                key = (row["model_id"], row["null_model"], row["scorer"], layer)
                expected.setdefault(key, []).append((row["value"], row["ci_lo"], row["ci_hi"]))
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(expected) > 50
    for row in rows:
        null = {"trained": "trained", "untrained": "randinit", "none": "trained"}[row["network"]]
        value, lo, hi = np.array(expected[row["model"], null, row["scorer"], row["layer"]]).T
        want = (value[0], lo[0], hi[0])
        if row["network"] == "untrained":
            assert len(value) == int(row["n_seeds"]) == 3
            want = value.mean(), value.min(), value.max()
        np.testing.assert_allclose([float(row[name]) for name in ("value", "lo", "hi")], want, rtol=1e-5)


def test_every_model_is_shown_by_its_own_scorer_and_in_both_directions(study):
    numbers = fitness.numbers(study)
    read_out = numbers.filter(pl.col("quantity") == "read-out")
    assert dict(read_out.select("objective", "scorer").unique().rows()) == {
        "mlm": "mask",
        "ar": "ar",
        "diffusion": "mask",
    }
    assert set(read_out.filter(pl.col("objective") == "ar")["direction"]) == {"both"}
    own = read_out.filter((pl.col("model") == "progen2_l8") & (pl.col("network") == "trained"))
    assert own["relative_depth"].to_list() == [k / 8 for k in range(9)]


def test_a_model_that_reads_in_one_direction_only_is_shown_in_that_one(tmp_path):
    study = read(MODELS[1:2], tmp_path, scorers=[("ar", "n2c", "none", math.nan)])
    numbers, figure = picture(fitness.STAGE, study)
    assert set(numbers.filter(pl.col("quantity") == "read-out")["direction"]) == {"n2c"}
    assert "log-likelihood ratio, N to C" in words_of(figure)


def test_lines_bands_and_the_matrix_are_drawn_where_the_numbers_say(study):
    numbers, figure = picture(fitness.STAGE, study)
    axes = figure.axes
    assert len(axes) == 3 * 4, "a column a family; read-out, wild-type marginals, distance, ridge"
    first = axes[0]
    own = numbers.filter((pl.col("model") == "esm2_l4") & (pl.col("quantity") == "read-out"))
    trained = own.filter(pl.col("network") == "trained")
    lines = [line for line in first.lines if len(line.get_xdata()) == 5]
    found = [line for line in lines if np.allclose(line.get_ydata(), trained["value"])]
    assert len(lines) == 2 and len(found) == 1
    np.testing.assert_allclose(found[0].get_xdata(), np.arange(5) / 4)
    levels = [line.get_ydata()[0] for line in first.lines if len(set(line.get_ydata())) == 1]
    assert 0.31 in levels and 0.0 in levels
    lo, hi = first.get_ylim()
    assert lo <= 0 <= hi


def test_the_foot_counts_variants_and_says_what_was_resampled(study, tmp_path):
    _, figure = picture(fitness.STAGE, study)
    words = words_of(figure)
    assert "400 variants in 4 assays of 4 proteins" in words and "bootstrap over proteins" in words
    assert "substitution matrix (BLOSUM62)" in words and "Untrained: same architecture" in words
    _, other = picture(fitness.STAGE, read(MODELS[:1], tmp_path, resampled="variants", nulls=[("trained", -1)]))
    words = words_of(other)
    assert "bootstrap over the variants of these proteins" in words and "No untrained network was measured" in words


def test_models_without_scores_are_named_and_a_study_without_any_says_so(tmp_path):
    path = write_fitness(MODELS[0], tmp_path / "one.parquet")
    study = door.read_study(invented.models_json(MODELS[:2], tmp_path / "m.json"), {"fitness": [path]})
    numbers, figure = picture(fitness.STAGE, study)
    assert set(numbers["model"]) == {"esm2_l4"} and "Without scores: toy ProGen2, 8" in words_of(figure)
    empty = write_fitness(MODELS[1], tmp_path / "none.parquet", scorers=[])
    study = door.read_study(invented.models_json(MODELS[1:2], tmp_path / "n.json"), {"fitness": [empty]})
    numbers, figure = picture(fitness.STAGE, study)
    assert numbers.is_empty() and fitness.NOTHING in words_of(figure)


def test_a_table_given_twice_is_refused(study):
    with pytest.raises(FigureError, match="a row stands twice"):
        fitness.numbers(replace(study, fitness=pl.concat([study.fitness, study.fitness])))


@pytest.mark.parametrize("models", [invented.MINI, invented.LARGE, MODELS[:1]], ids=["mini", "large", "one"])
def test_no_text_overlaps_or_leaves_the_sheet(models, tmp_path):
    _, figure = picture(fitness.STAGE, read(models, tmp_path, nulls=invented.NULLS[:3]))
    check_texts(figure)


# ----------------------------------------------------------------------------------------------------------------
# Every assay


def test_the_cells_of_the_assays_are_the_rows_of_the_tables(study, folder):
    numbers, figure = picture(fitness_assays.STAGE, study)
    expected = {}
    for table in sorted(folder.glob("*.parquet")):
        for row in read_table(table, FITNESS).to_pylist():
            primary = fitness.PRIMARY[row["objective"]]
            is_shown = row["level"] == "assay" and row["condition"] == "seq" and row["null_model"] == "trained"
            if is_shown and row["scorer"] in (primary, "blosum62") and row["direction"] in ("none", "both"):
                expected[row["model_id"], row["scorer"], row["assay_id"], row["layer"]] = row["value"]
    found = {(r["model"], r["scorer"], r["assay_id"], -1 if r["layer"] is None else r["layer"]): r["value"]
             for r in numbers.iter_rows(named=True)}  # fmt: skip
    assert found == expected and len(found) == (5 + 9 + 5) * 4 + 3 * 4
    order = fitness_assays.order_of(numbers)
    assert order["category"].to_list() == ["Binding"] * 2 + ["Stability"] * 2
    first = next(axes for axes in figure.axes if axes.images and axes.images[0].get_array().shape == (4, 5))
    expected_cells = [[found["esm2_l4", "mask", assay, k] for k in range(5)] for assay in order["assay_id"]]
    np.testing.assert_allclose(first.images[0].get_array(), expected_cells)
    left, right, bottom, top = first.images[0].get_extent()
    assert (left, right, bottom, top) == (-1 / 8, 9 / 8, 4, 0), "cells are centred on their layer's depth"


def test_assays_stand_by_class_and_from_high_to_low_the_same_for_all_models(study):
    numbers, _ = picture(fitness_assays.STAGE, study)
    last = numbers.filter((pl.col("quantity") == "read-out") & (pl.col("layer") == pl.col("n_blocks")))
    means = dict(last.group_by("assay_id").agg(pl.col("value").mean()).rows())
    for _, own in fitness_assays.order_of(numbers).group_by("category"):
        values = [means[assay] for assay in own["assay_id"]]
        assert values == sorted(values, reverse=True)


def test_many_assays_have_their_classes_beside_them_instead_of_names(tmp_path):
    study = read(MODELS[:1], tmp_path, n_assays=40, nulls=[("trained", -1)])
    _, figure = picture(fitness_assays.STAGE, study)
    words = words_of(figure)
    assert "Activity (14)" in words and "Binding (13)" in words and "an_assay" not in words
    few = read(MODELS[:1], tmp_path, n_assays=4, nulls=[("trained", -1)])
    assert "a1 (Binding)" in words_of(picture(fitness_assays.STAGE, few)[1])


@pytest.mark.parametrize(
    ("models", "n_assays"),
    [(invented.MINI, 4), (invented.LARGE, 217), (MODELS[:1], 25)],
    ids=["mini", "large", "one"],
)
def test_no_text_of_the_assays_overlaps_or_leaves_the_sheet(models, n_assays, tmp_path):
    study = read(models, tmp_path, nulls=invented.NULLS[:1], n_assays=n_assays)
    check_texts(picture(fitness_assays.STAGE, study)[1])


# ----------------------------------------------------------------------------------------------------------------
# Depth


def read_depths(models, folder: Path, **options) -> select.Study:
    paths = [write_fitness_summary(model, folder / f"{model.model}.parquet", **options) for model in models]
    return door.read_study(invented.models_json(models, folder / "models.json"), {"fitness_summaries": paths})


def test_depths_are_those_of_the_read_outs_own_scorer(tmp_path):
    study = read_depths(MODELS, tmp_path)
    numbers, figure = picture(fitness_depth.STAGE, study)
    for model in MODELS:
        rows = read_table(tmp_path / f"{model.model}.parquet", SUMMARY).to_pylist()
        profile = f"fitness_{fitness.PRIMARY[model.objective]}"
        own = [r for r in rows if r["profile"] == profile and r["direction"] in ("none", "both")]
        for stat in fitness_depth.STATISTICS:
            for param in {str(r["param"]) for r in own if r["stat"] == stat}:
                chosen = [r for r in own if r["stat"] == stat and str(r["param"]) == param]
                trained = [r["value"] for r in chosen if r["null_model"] == "trained"]
                untrained = [r["value"] for r in chosen if r["null_model"] == "randinit"]
                found = numbers.filter(
                    (pl.col("model") == model.model) & (pl.col("quantity") == stat)
                    & (pl.col("parameter").cast(pl.String).str.to_lowercase() == param)
                )  # fmt: skip
                values = dict(found.select("network", "value").rows())
                assert values["trained"] == trained[0] and len(trained) == 1
                assert values["untrained"] == pytest.approx(np.mean(untrained)) and len(untrained) == 3
    words = words_of(figure)
    assert "90 % of what the last layer has above layer 0" in words and "layer with the highest correlation" in words


def test_undefined_depths_are_counted_and_have_no_point(tmp_path):
    numbers, figure = picture(fitness_depth.STAGE, read_depths(MODELS, tmp_path, undefined=True))
    n = numbers.filter(pl.col("value").is_nan()).height
    assert n == 3 * 2 * 3 and f"{n} statistics are undefined and have no point" in words_of(figure)


def test_a_summary_given_twice_is_refused(tmp_path):
    study = read_depths(MODELS[:1], tmp_path)
    doubled = replace(study, fitness_summaries=pl.concat([study.fitness_summaries] * 2))
    with pytest.raises(FigureError, match="fitness_summaries: a row stands twice"):
        fitness_depth.numbers(doubled)


@pytest.mark.parametrize("models", [invented.MINI, invented.LARGE, MODELS[:1]], ids=["mini", "large", "one"])
def test_no_text_of_the_depths_overlaps_or_leaves_the_sheet(models, tmp_path):
    check_texts(picture(fitness_depth.STAGE, read_depths(models, tmp_path))[1])
