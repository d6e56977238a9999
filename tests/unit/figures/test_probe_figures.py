"""Figures of probes: the numbers are the tables', controls stand beside them, the pictures are the numbers."""

import csv
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from plm_depth.figures import contacts, door, probes, select
from plm_depth.figures.probed import CONTROL, probe_rows
from plm_depth.figures.select import FigureError, replace
from plm_depth.randomness import generator
from plm_depth.tables import PROBES, read_table, write_table
from unit.figures import invented
from unit.figures.pictures import picture
from unit.figures.test_figures import check_texts, words_of

MODELS = (invented.MINI[0], invented.MINI[3], invented.MINI[4])  # masked with 4 blocks, autoregressive 8, diffusion 4
SCORES = (  # task, probe, spaces, metrics, controls
    ("ss3", "logistic", ("pca256", "full"), ("accuracy", "macro_f1"), ("none", "perm", "kmer", "untrained", "onehot")),
    ("hse", "ridge", ("pca256", "full"), ("spearman",), ("none", "perm", "kmer", "untrained", "onehot")),
    ("homology", "retrieval", ("raw", "centred"), ("top1", "first_error"), ("none", "perm", "untrained")),
    ("homology", "logistic", ("pca256", "full"), ("accuracy",), ("none", "untrained")),
    ("contacts", "attention", ("heads",), ("p_at_l_short", "p_at_l_long"), ("none", "untrained")),
    ("contacts", "logistic", ("pca64",), ("p_at_l_short", "p_at_l_medium", "p_at_l_long"), ("none", "untrained")),
)
VIEWS = {
    "ar": (("n2c", math.nan), ("c2n", math.nan), ("both", math.nan)),
    "mlm": (("none", 0.0),),
    "diffusion": (("none", 0.0), ("none", 0.3)),
}
CHANCE = {"accuracy": 0.45, "top1": 0.1, "spearman": 0.0}


def rows_of(model, scores=SCORES, views=None):
    """Yield PROBES rows of one model: all inputs, spaces, controls and statistics, also those no figure shows."""
    for task, probe, spaces, metrics, controls in scores:
        for direction, noise in views or VIEWS[model.objective]:
            for space in spaces:
                for metric in metrics:
                    for control in controls:
                        if control == "onehot" and space != "full":
                            continue
                        for seed in (0, 1) if control == "untrained" else (-1,):
                            one = (model.model, task, probe, direction, noise, space, metric, control, seed)
                            yield from _rows(model, *one[1:])


def _rows(model, task, probe, direction, noise, space, metric, control, seed):
    rng = generator("invented", model.model, task, probe, direction, noise, space, metric, control, seed)
    no_model = control == "onehot"
    if no_model:
        direction, noise, rng = "none", math.nan, generator("one-hot", task, metric)
    layers = [-1] if no_model else range(0, model.n_blocks + 1, 2)
    common = {
        "model_id": model.model, "family": model.family, "objective": model.objective, "n_blocks": model.n_blocks,
        "d_model": model.d_model, "dtype": "float32", "null_model": "trained" if seed < 0 else "randinit",
        "null_seed": seed, "condition": "seq", "readout": "seq", "direction": direction, "noise_t": noise,
        "mask_draw": -1, "task": task, "space": space, "probe": probe, "control": control, "metric": metric,
        "param": math.nan, "floor": "none", "chance": CHANCE.get(metric, math.nan), "in_plateau": False,
        "n_rows": 400, "n_seq": 20, "n_grouped": 0, "n_cluster": 12, "n_boot": 500,
    }  # fmt: skip
    if probe == "attention":
        layers = range(2, model.n_blocks + 1, 2)
    for layer in layers:
        for stat in ("score", "validation"):
            value = float(rng.uniform(0.3, 0.9))
            yield {**common, "stat": stat, "layer": layer, "value": value, "ci_lo": value - 0.05, "ci_hi": value + 0.04}
    if not no_model and control in ("none", "untrained"):
        first = float(rng.choice(list(layers)))
        yield {**common, "stat": "shallowest", "layer": -1, "value": first, "ci_lo": 0.0, "ci_hi": float(layers[-1]),
               "param": 0.02}  # fmt: skip


def unique(rows):
    seen = {}
    for row in rows:  # the one-hot control is the same under every view
        seen.setdefault(tuple((k, str(row[k])) for k in PROBES.names if k not in ("value", "ci_lo", "ci_hi")), row)
    return list(seen.values())


def write(model, path, **options):
    rows = unique(rows_of(model, **options))
    write_table({name: [row[name] for row in rows] for name in PROBES.names}, PROBES, path)
    return path


def read(models, folder: Path, **options) -> select.Study:
    paths = [write(model, folder / f"{model.model}.parquet", **options) for model in models]
    return door.read_study(invented.models_json(models, folder / "models.json"), {"probes": paths})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("probes")


@pytest.fixture(scope="module")
def study(folder) -> select.Study:
    return read(MODELS, folder)


@pytest.mark.parametrize(("stage", "n_rows"), [(probes.STAGE, 3), (contacts.STAGE, 4)], ids=["probes", "contacts"])
def test_the_csv_is_exactly_the_rows_of_the_tables(stage, n_rows, study, folder, tmp_path):
    files = {kind: tmp_path / f"figure.{kind}" for kind in ("svg", "csv", "html")}
    words = ["--models", str(folder / "models.json"), "--probes", *(str(folder / f"{m.model}.parquet") for m in MODELS)]
    door.run(stage, [*words, *(word for kind, path in files.items() for word in (f"--{kind}", str(path)))])
    expected = {}
    for model in MODELS:
        for row in read_table(folder / f"{model.model}.parquet", PROBES).to_pylist():
            is_shown = row["stat"] == "score" and row["space"] in ("pca256", "pca64", "raw", "heads")
            is_shown = is_shown and row["direction"] in ("none", "both") and not row["noise_t"] > 0
            if is_shown and row["control"] == "none":
                name = row["task"] if row["task"] != "contacts" else row["metric"]
                keys = (row["model_id"], name, row["layer"], row["metric"], row["probe"])
                expected[keys] = (row["value"], row["ci_lo"], row["ci_hi"])
    primary = {"ss3": "accuracy", "hse": "spearman", "homology": "top1"}
    with files["csv"].open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["network"] == "trained" and row["aggregate"] == "mean"]
    found = [row for row in found if not row["quantity"].startswith("shallowest_")]
    assert not any(row["quantity"].startswith("undefined_") for row in found)
    n_layers = sum(model.n_blocks // 2 + 1 for model in MODELS)
    assert len(found) == n_rows * n_layers - (len(MODELS) if stage is contacts.STAGE else 0)  # blocks are one fewer
    for row in found:
        metric = primary.get(row["quantity"], row["quantity"].replace("attention", "p_at_l"))
        kinds = {"hse": "ridge", "homology": "retrieval", "attention_long": "attention"}
        probe = kinds.get(row["quantity"], "logistic")
        name = metric if stage is contacts.STAGE else row["quantity"]
        want = expected[row["model"], name, int(row["layer"]), metric, probe]
        np.testing.assert_allclose([float(row[name]) for name in ("value", "lo", "hi")], want, rtol=1e-5)


def test_untrained_networks_are_their_mean_and_range_and_controls_stand_beside_the_score(study):
    numbers = probes.numbers(study)
    rows = study.probes.filter(
        (pl.col("model_id") == "esm2_l4") & (pl.col("task") == "ss3") & (pl.col("metric") == "accuracy")
        & (pl.col("space") == "pca256") & (pl.col("stat") == "score")
    )  # fmt: skip
    own = numbers.filter((pl.col("model") == "esm2_l4") & (pl.col("quantity") == "ss3")).sort("layer")
    untrained = own.filter(pl.col("network") == "untrained")
    for row in untrained.iter_rows(named=True):
        values = rows.filter((pl.col("control") == "untrained") & (pl.col("layer") == row["layer"]))["value"]
        assert (row["value"], row["lo"], row["hi"]) == pytest.approx((values.mean(), values.min(), values.max()))
        assert row["n_seeds"] == 2
    assert untrained.height == 3
    control = own.filter(pl.col("aggregate") == CONTROL)["value"].to_list()
    assert control == rows.filter(pl.col("control") == "kmer").sort("layer")["value"].to_list()
    assert not numbers.filter((pl.col("aggregate") == CONTROL) & (pl.col("quantity") == "homology")).height


def test_autoregressive_models_are_shown_by_both_directions_else_by_the_one_there_is(study, tmp_path):
    numbers = probes.numbers(study)
    assert set(numbers.filter((pl.col("model") == "progen2_l8") & (pl.col("network") == "trained"))["direction"]) == {
        "both"
    }
    only = read(MODELS[1:2], tmp_path, views=[("c2n", math.nan), ("n2c", math.nan)])
    numbers, figure = picture(probes.STAGE, only)
    assert set(numbers.filter(pl.col("network") == "trained")["direction"]) == {"n2c"}
    assert "autoregressive, N to C" in words_of(figure)


def test_the_shallowest_layer_is_told_by_relative_depth(study):
    numbers = probes.numbers(study)
    rows = probe_rows(study).filter((pl.col("stat") == "shallowest") & (pl.col("control") == "none"))
    for row in rows.filter((pl.col("metric") == "accuracy") & (pl.col("task") == "ss3")).iter_rows(named=True):
        mine = numbers.filter((pl.col("model") == row["model_id"]) & (pl.col("quantity") == "shallowest_ss3"))
        assert mine["value"].to_list() == [row["value"] / row["n_blocks"]] and mine["hi"].to_list() == [1.0]


def test_lines_bands_and_levels_are_drawn_where_the_numbers_say(study):
    numbers, figure = picture(probes.STAGE, study)
    axes = figure.axes
    assert len(axes) == 4 * 3, "a column a family; secondary structure, exposure, homology, shallowest layers"
    own = numbers.filter((pl.col("model") == "esm2_l4") & (pl.col("quantity") == "ss3"))
    lines = [line for line in axes[0].lines if len(line.get_xdata()) == 3]
    assert len(lines) == 3  # trained, untrained, control
    for network, aggregate in (("trained", "mean"), ("untrained", "mean"), ("trained", CONTROL)):
        want = own.filter((pl.col("network") == network) & (pl.col("aggregate") == aggregate)).sort("layer")["value"]
        assert sum(np.allclose(line.get_ydata(), want) for line in lines) == 1
    levels = {round(float(line.get_ydata()[0]), 6) for line in axes[0].lines if len(set(line.get_ydata())) == 1}
    one_hot = numbers.filter(pl.col("quantity") == "onehot_ss3")["value"][0]
    assert levels == {0.45, round(one_hot, 6)}
    words = words_of(figure)
    assert words.count("a guess that reads nothing") == 1 and "15 residues around, one-hot, no model" in words
    check_texts(figure)


def test_models_that_were_not_probed_are_named_and_a_study_without_the_task_is_refused(tmp_path):
    path = write(MODELS[0], tmp_path / "one.parquet")
    models = invented.models_json(MODELS[:2], tmp_path / "m.json")
    one = door.read_study(models, {"probes": [path]})
    numbers, figure = picture(contacts.STAGE, one)
    assert set(numbers["model"]) == {"esm2_l4"} and "Not probed: toy ProGen2, 8" in words_of(figure)
    with pytest.raises(FigureError, match="a row stands twice"):
        probes.numbers(replace(one, probes=pl.concat([one.probes, one.probes])))
    path = write(MODELS[0], tmp_path / "few.parquet", scores=SCORES[:1])
    few = door.read_study(models, {"probes": [path]})
    with pytest.raises(FigureError, match="--probes hold no contacts"):
        contacts.numbers(few)
    assert probes.numbers(few).height
    path = write(MODELS[0], tmp_path / "other.parquet", scores=SCORES[-1:])
    with pytest.raises(FigureError, match="none of the tasks ss3"):
        probes.numbers(door.read_study(models, {"probes": [path]}))


def test_what_is_undefined_is_said_and_not_drawn(tmp_path):
    about = {"stat": "undefined", "layer": -1, "ci_lo": math.nan, "ci_hi": math.nan, "chance": math.nan, "n_boot": 0}
    rows = [row for row in unique(rows_of(MODELS[0], scores=SCORES[:2])) if row["control"] != "kmer"]
    plain = next(row for row in rows if row["control"] == "none" and row["space"] == "pca256")
    few = {"task": "homology", "probe": "retrieval", "space": "raw", "metric": "top1", "param": 20.0, "value": 5.0}
    rows.append({**plain, **about, **few, "n_cluster": 5})
    rows.append({**plain, **about, "control": "kmer", "param": 50.0, "value": 14.0, "n_rows": 14})
    write_table({name: [row[name] for row in rows] for name in PROBES.names}, PROBES, tmp_path / "one.parquet")
    one = door.read_study(invented.models_json(MODELS[:1], tmp_path / "m.json"), {"probes": [tmp_path / "one.parquet"]})
    numbers, figure = picture(probes.STAGE, one)
    words = " ".join(words_of(figure).split())
    assert (
        "Homology: undefined: too few clusters. Proteins with kin in another cluster are in 5; 20 are needed." in words
    )
    assert "3-mers (ss3): undefined: 14 tested residues have a 3-mer that training chains hold; 50 are needed." in words
    assert "No superfamily of these chains is known" in words and "homology, nearest" not in words
    assert len(figure.axes) == 3 and "20 proteins in 12 similarity clusters" in words
    row = numbers.filter(pl.col("quantity") == "undefined_homology").row(0, named=True)
    assert (row["value"], row["parameter"], row["network"]) == (5.0, 20.0, "none")
    check_texts(figure)
    known = replace(one, probes=one.probes.with_columns(n_grouped=pl.lit(7, pl.Int32)))
    assert "where known: 7 chains have one" in " ".join(words_of(picture(probes.STAGE, known)[1]).split())


def test_a_model_with_homology_alone_is_drawn_beside_the_others(tmp_path):
    paths = [
        write(MODELS[0], tmp_path / "a.parquet"),
        write(MODELS[1], tmp_path / "b.parquet", scores=SCORES[2:4]),
    ]
    both = door.read_study(invented.models_json(MODELS[:2], tmp_path / "m.json"), {"probes": paths})
    numbers, figure = picture(probes.STAGE, both)
    assert set(numbers.filter(pl.col("model") == "progen2_l8")["quantity"]) == {"homology", "shallowest_homology"}
    assert len(figure.axes) == 4 * 2
