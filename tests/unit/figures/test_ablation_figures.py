"""Figures of depth ablation: the numbers are the tables', the pictures are the numbers."""

import csv
import math

import numpy as np
import polars as pl
import pytest

from plm_depth.figures import ablation_matrices, block_removal, door, early_exit, removed_share, select
from plm_depth.figures.select import FigureError, replace
from plm_depth.tables import ABLATION, read_table
from unit.figures import invented
from unit.figures.pictures import picture
from unit.figures.test_figures import words_of

MODELS = (invented.MINI[0], invented.MINI[3], invented.MINI[4])  # masked with 4 blocks, autoregressive 8, diffusion 4
STAGES = (early_exit.STAGE, block_removal.STAGE, removed_share.STAGE, ablation_matrices.STAGE)
SHOWN = {
    "early_exit": lambda r: r["op"] in ("exit", "background") and r["quantity"] in ("nll", "acc1"),
    "block_removal": lambda r: (
        (r["op"], r["quantity"]) in (("remove", "dnll"), ("remove", "flip1"), ("swap_adj", "dnll"))
    ),
    "removed_share": lambda r: (
        r["quantity"] == "nll" and (r["op"] in ("full", "background") or r["policy"] in removed_share.POLICIES)
    ),
    "ablation_matrices": lambda r: (
        r["quantity"] == "dnll"
        and (
            r["op"] in ("remove", "swap_adj", "swap_block", "reverse")
            or (r["policy"] == "exhaustive" and r["length"] > 1)
        )
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    for model in MODELS:
        invented.write_ablation(model, folder / f"{model.model}.ablation.parquet")
    invented.models_json(invented.MINI[:5], folder / "models.json")
    return folder


@pytest.fixture(scope="module")
def study(folder) -> select.Study:
    """The ablations of three models of five, as the door reads them."""
    return door.read_study(folder / "models.json", {"ablations": sorted(folder.glob("*.ablation.parquet"))})


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_csv_is_exactly_the_rows_of_the_tables(stage, folder, tmp_path):
    """Read with another library and another path of code: no figure makes a new number."""
    tables = sorted(folder.glob("*.ablation.parquet"))
    files = {kind: tmp_path / f"figure.{kind}" for kind in ("svg", "csv", "html")}
    options = ["--models", str(folder / "models.json"), "--ablations", *map(str, tables)]
    door.run(stage, [*options, *(word for kind, path in files.items() for word in (f"--{kind}", str(path)))])
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = {}
    for row in (row for table in tables for row in read_table(table, ABLATION).to_pylist()):
        direction, noise = {"mlm": ("none", 0.15), "ar": ("n2c", None), "diffusion": ("none", -1.0)}[row["objective"]]
        is_primary = row["direction"] == direction and (
            noise is None or math.isclose(row["noise_t"], noise, rel_tol=1e-6)
        )
        if is_primary and row["null_model"] in ("trained", "randinit") and SHOWN[stage.name](row):
            start = "" if row["start"] < 0 else str(row["start"])
            key = (row["model_id"], row["null_model"], row["quantity"], row["op"], start, str(row["length"]))
            policy = "" if row["op"] in ("full", "background") else row["policy"]
            expected.setdefault((*key, policy), []).append((row["value"], row["ci_lo"], row["ci_hi"]))
    found = set()
    for row in rows:
        null = {"trained": "trained", "untrained": "randinit"}[row["network"]]
        policy = "" if row["op"] in ("full", "background") else row["policy"]
        key = (row["model"], null, row["quantity"], row["op"], row["start"], row["length"], policy)
        found.add(key)
        value, lo, hi = np.array(expected[key]).T
        want = (value[0], lo[0], hi[0]) if null == "trained" else (value.mean(), value.min(), value.max())
        np.testing.assert_allclose([float(row[name]) for name in ("value", "lo", "hi")], want, rtol=1e-5)
    # An untrained background is another network's composition of the same proteins: it is not drawn.
    assert found == {key for key in expected if not (key[3] == "background" and key[1] == "randinit")}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_models_that_were_not_ablated_are_named_and_left_out(stage, study):
    numbers, figure = picture(stage, study)
    assert set(numbers["model"]) == {model.model for model in MODELS}
    words = words_of(figure)
    assert "Not ablated:" in words and "toy ESM-2, 8 blocks" in words


def test_where_things_stand(study):
    exits = early_exit.numbers(study).filter((pl.col("op") == "exit") & (pl.col("model") == "progen2_l8"))
    assert sorted(set(exits["relative_depth"])) == [k / 8 for k in range(9)]
    single = block_removal.numbers(study).filter((pl.col("model") == "progen2_l8") & (pl.col("network") == "trained"))
    removed = single.filter((pl.col("op") == "remove") & (pl.col("quantity") == "dnll"))
    assert removed.sort("start")["relative_depth"].to_list() == [(k - 0.5) / 8 for k in range(1, 9)]
    swapped = single.filter(pl.col("op") == "swap_adj").sort("start")
    assert swapped["relative_depth"].to_list() == [k / 8 for k in range(1, 8)], "where the two blocks meet"
    share = removed_share.numbers(study).filter((pl.col("model") == "progen2_l8") & (pl.col("network") == "trained"))
    for policy in removed_share.POLICIES:
        own = share.filter((pl.col("policy") == policy) & (pl.col("aggregate") == "mean")).sort("relative_depth")
        assert own["relative_depth"].to_list() == [k / 8 for k in range(8)] and own["op"][0] == "full"


def test_the_composition_is_a_level_line_of_each_model(study):
    for stage in (early_exit.STAGE, removed_share.STAGE):
        level = stage.numbers(study).filter(pl.col("aggregate") == "background")
        assert set(level["relative_depth"]) == {0.0, 1.0} and set(level["network"]) == {"trained"}
        assert level.group_by("model", "quantity", "policy").agg(pl.col("value").n_unique())["value"].to_list().count(1)
        assert early_exit.COMPOSITION in words_of(picture(stage, study)[1])


def test_matrices_have_the_first_block_down_and_the_last_one_across(study):
    numbers = ablation_matrices.numbers(study)
    own = numbers.filter((pl.col("model") == "progen2_l8") & (pl.col("network") == "trained"))
    cells = own.filter(pl.col("op") == "swap_block").with_columns(
        first=pl.col("start") + 1, last=pl.col("start") + 2 * pl.col("length")
    )
    matrix = ablation_matrices.matrix_of(cells, 8)
    assert np.isfinite(matrix).sum() == 5 + 1, "spans of two and four blocks, exchanged with the next ones"
    (cell,) = cells.filter((pl.col("start") == 2) & (pl.col("length") == 2))["value"].to_list()
    assert matrix[2, 5] == cell
    _, figure = picture(ablation_matrices.STAGE, study)
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "last block"]
    assert len(panels) == 3 * 3 * 2, "three models, three kinds of change, trained and untrained"


def test_the_scale_of_the_matrices_ends_at_the_largest_trained_value(study):
    numbers, figure = picture(ablation_matrices.STAGE, study)
    norm = ablation_matrices.norm_of(numbers)
    assert norm.vmax == numbers.filter(pl.col("network") == "trained")["value"].max() and norm.vmin == 0
    below = numbers.filter(pl.col("value") < 0).height
    assert below and f"{below:,} of {numbers.height:,} changes make the prediction better" in words_of(figure)


def test_what_was_not_measured_has_no_row(study):
    few = replace(study, ablations=study.ablations.filter(pl.col("op") != "swap_adj"))
    _, figure = picture(block_removal.STAGE, few)
    assert "exchanged" not in words_of(figure).replace("exchanged with the next one", "")


def test_tables_that_cannot_be_drawn(study):
    nothing = replace(study, ablations=study.ablations.filter(pl.col("op") == "repeat"))
    with pytest.raises(FigureError, match="nothing of this figure was measured"):
        early_exit.numbers(nothing)
    with pytest.raises(FigureError, match="no model has rows at its primary input"):
        early_exit.numbers(replace(study, ablations=study.ablations.clear()))
    with pytest.raises(FigureError, match="a row stands twice"):
        early_exit.numbers(replace(study, ablations=pl.concat([study.ablations, study.ablations])))
