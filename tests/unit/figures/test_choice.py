"""The recommendation: its sentences say what the tables hold, and the picture shows every model asked about."""

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import polars as pl
import pytest

from plm_depth.figures import choice
from plm_depth.figures.select import FigureError
from plm_depth.tables import CHOICE, SAVINGS, TableError, write_table

MODELS = [
    {
        "model": "a4",
        "display_name": "A small",
        "family": "esm2",
        "objective": "mlm",
        "family_name": "ESM-2",
        "toy": True,
    },
    {"model": "a8", "display_name": "A large", "family": "esm2", "objective": "mlm", "family_name": "ESM-2"},
    {"model": "g4", "display_name": "G", "family": "progen2", "objective": "ar", "family_name": "ProGen2"},
]
SCORES = {"a4": [0.2, 0.5, 0.61, 0.6, 0.59], "a8": [0.1, *np.linspace(0.2, 0.9, 8)], "g4": [0.7, 0.7, 0.69, 0.5, 0.4]}
SHARES = {"a4": 0.97, "a8": 0.85, "g4": 0.4}


def spread(name: str, value: np.ndarray, half: float) -> dict[str, np.ndarray]:
    best = "below_best" if name == "below" else name
    return {best: value, f"{name}_lo": value - half, f"{name}_hi": value + half}


def write_tables(folder, *, names=("a4", "a8", "g4"), question="q", notes=(), recommended=None):
    for name in names:
        value = np.array(SCORES[name])
        n, layers = len(value) - 1, np.arange(len(value))
        inside = value >= value.max() - 0.02 * value.max()
        chosen = layers == (int(np.argmax(inside)) if recommended is None else recommended)
        columns = {
            "choice": question, "model_id": name, "family": "progen2" if name == "g4" else "esm2",
            "objective": "ar" if name == "g4" else "mlm", "n_blocks": n, "kind": "regression", "chance": 0.0,
            "tolerance": 0.02, "n_rows": 50, "n_cluster": 20, "n_boot": 100, "layer": layers, "value": value,
            "ci_lo": value - 0.1, "ci_hi": value + 0.1,
            **spread("below", value.max() - value, 0.05), **spread("over_last", value - value[-1], 0.07),
            "in_plateau": inside, "is_tied": value.max() - value < 0.05,
            "share_within": np.where(chosen, SHARES[name], 0.1), "share_chosen": np.where(chosen, 0.5, 0.0),
            "is_recommended": chosen,
        }  # fmt: skip
        parts = []
        for probe, metric, side in (("linear", "spearman", "valid"), ("linear", "spearman", "test"),
                                    ("linear", "r2", "test"), ("knn", "spearman", "test")):  # fmt: skip
            primary = probe == "linear" and metric == "spearman"
            parts.append({**columns, "probe": probe, "metric": metric, "side": side, "is_primary": primary})
        for side, less in (("nested", 0.03), ("nested_cut", 0.04)):
            place = int(np.flatnonzero(chosen)[0])
            one = {key: part[place] if np.ndim(part := columns[key]) else part for key in columns}
            worth = value[place] - less
            one |= {"probe": "linear", "metric": "spearman", "side": side, "is_primary": True, "layer": -1}
            one |= {"value": worth, "ci_lo": worth - 0.2, "ci_hi": worth + 0.2, "is_recommended": False}
            one |= spread("over_last", worth - value[-1], 0.3)
            parts.append({key: np.atleast_1d(one[key]) for key in parts[0]})
        sizes = [len(layers)] * 4 + [1] * 2
        whole = {
            key: np.concatenate([np.broadcast_to(part[key], n) for part, n in zip(parts, sizes)]) for key in parts[0]
        }
        about = {
            "labels": '["stability"]', "classes": "[]", "left_out": '{"too_long": 3}', "n_proteins": 50,
            "how": "5 folds of whole clusters", "how_nested": "each fold at the layer that another fold chose",
            "chosen": "[2, 2, 1, 3, 2]", "notes": json.dumps(list(notes)), "norm": "final",
            "cut_after": max(1, int(np.argmax(inside))),
        }  # fmt: skip
        write_table(whole, CHOICE, folder / f"{name}.parquet", **about)
        cost = {
            "model_id": name, "n_blocks": n, "layer": layers, "n_parameters": 1000 + 1000 * layers,
            "weight_bytes": 4_000_000 * (1 + layers), "flops_per_token": 10.0 * layers, "n_tokens": 256,
        }  # fmt: skip
        write_table(cost, SAVINGS, folder / f"savings_{name}.parquet")
    (folder / "models.json").write_text(json.dumps(MODELS))


def options(folder, *more, names=("a4", "a8", "g4")):
    out = [
        word for kind in ("svg", "csv", "html", "page", "markdown") for word in (f"--{kind}", f"{folder}/out.{kind}")
    ]
    return [
        "--choices", *(f"{folder}/{name}.parquet" for name in names),
        "--savings", *(f"{folder}/savings_{name}.parquet" for name in names),
        "--models", f"{folder}/models.json", *out, *more,
    ]  # fmt: skip


def section(text: str, model: str) -> str:
    return re.search(rf"## {model}.*?\n\n(.*?)\n\n", text, flags=re.DOTALL)[1]


def test_the_page_says_for_every_model_which_layer_how_sure_and_what_it_saves(tmp_path):
    write_tables(tmp_path, notes=["something is odd"])
    choice.main(options(tmp_path))
    text = (tmp_path / "out.markdown").read_text()
    assert "Label: stability (regression). 50 proteins were used; left out: 3 too long." in text
    assert "Note: something is odd." in text and "Toy models: no evidence" in text
    small, large, other = (section(text, name) for name in ("A small", "A large", "G"))
    assert small.startswith(
        "Read layer 2 of 4. On labels that had no part in the choice expect 0.580 [0.380, 0.780]; against the last "
        "layer -0.010 [-0.310, +0.290] (each fold at the layer that another fold chose: 2, 2, 1, 3, 2). On the curve "
        "layer 2 has 0.610 [0.510, 0.710]; against the last layer +0.020"
    )
    row = next(line for line in text.split("\n") if line.startswith("| A small"))
    assert "| 0.580 [0.380, 0.780] | 0.590 [0.490, 0.690] | -0.010 [-0.310, +0.290] | 0.610 [0.510, 0.710] |" in row
    assert "As good as the best where the layer was chosen: 2 to 3." in small
    assert "cannot tell these layers from the best: 2 to 4" in small
    assert "In 97 % of the resamples" in small and "this choice is stable" in small
    assert "40 % fewer parameters, takes 8 MB less and 50 % fewer operations" in small
    assert "this choice is likely" in large and "Read layer 8 of 8" in large
    assert "0 % fewer parameters, takes 0 MB less and 0 % fewer" in large and "-0 %" not in text
    assert "this choice is open" in other and "Read layer 0 of 4" in other
    assert "| 2 (recommended) | 0.610 [0.510, 0.710] | 0.000 [-0.050, 0.050] | yes | 97 % |" in text
    page = (tmp_path / "out.page").read_text()
    assert page.startswith("<!DOCTYPE html>") and "Read layer 2 of 4." in page and page.count("<table>") == 4


def test_truncated_checkpoints_are_named_with_their_depth(tmp_path):
    write_tables(tmp_path)
    choice.main(options(tmp_path, "--truncated", "results/cuts"))
    text = (tmp_path / "out.markdown").read_text()
    assert (
        "The checkpoint that ends after block 2 is in results/cuts/a4. Of a depth chosen so, -0.020 [-0.320, +0.280]"
        in (section(text, "A small"))
    )
    assert "after block 1 is in results/cuts/g4." in section(text, "G")
    assert "No checkpoint can have no blocks" in section(text, "G")
    choice.main(options(tmp_path, "--truncated", "results/cuts", "--blocks", "3"))
    text = (tmp_path / "out.markdown").read_text()
    assert "ends after block 3 is in results/cuts/a4. The config asked for that depth." in section(text, "A small")


def test_the_numbers_beside_the_picture_are_the_rows_that_score(tmp_path):
    write_tables(tmp_path)
    choice.main(options(tmp_path))
    numbers = pl.read_csv(tmp_path / "out.csv")
    assert numbers.columns == list(choice.SHOWN)
    assert numbers.height == 2 * (5 + 9 + 5) + 3 and set(numbers["metric"]) == {"spearman"}
    nested = numbers.filter((pl.col("model") == "a4") & (pl.col("side") == "nested"))
    assert nested.select("layer", "relative_depth").row(0) == (-1, None) and abs(nested["value"].item() - 0.58) < 1e-9
    own = numbers.filter((pl.col("model") == "a4") & pl.col("is_primary") & (pl.col("side") == "test")).sort("layer")
    np.testing.assert_allclose(own["value"].to_numpy(), SCORES["a4"])
    root = ET.parse(tmp_path / "out.svg").getroot()
    assert root.tag.endswith("svg")


def test_models_that_were_not_asked_are_not_shown(tmp_path):
    write_tables(tmp_path, names=("g4",))
    choice.main(options(tmp_path, names=("g4",)))
    text = (tmp_path / "out.markdown").read_text()
    assert "A small" not in text and "Toy models" not in text


def test_equal_tables_give_equal_bytes(tmp_path):
    write_tables(tmp_path)
    choice.main(options(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}
    choice.main(options(tmp_path))
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}


def test_tables_that_do_not_belong_together_are_refused(tmp_path):
    write_tables(tmp_path)
    (tmp_path / "other").mkdir()
    write_tables(tmp_path / "other", names=("a8",), question="another")
    with pytest.raises(SystemExit, match=r"several questions \(another, q\)"):
        choice.main([word.replace(f"{tmp_path}/a8", f"{tmp_path}/other/a8") for word in options(tmp_path)])
    (tmp_path / "models.json").write_text(json.dumps(MODELS[:2]))
    with pytest.raises(SystemExit, match=r"\['g4'\] are not listed in --models"):
        choice.main(options(tmp_path))
    (tmp_path / "models.json").write_text("{")
    with pytest.raises(SystemExit, match=r"models\.json"):
        choice.main(options(tmp_path))
    assert not list(tmp_path.glob("out.*"))


def test_layers_are_told_as_ranges():
    assert choice._layers([]) == "none"
    assert choice._layers([5, 0, 1, 2, 7]) == "0 to 2, 5, 7"


def test_savings_of_every_model_are_needed(tmp_path):
    write_tables(tmp_path)
    models = [choice.models_of(MODELS)[0]]
    with pytest.raises(FigureError, match="no table of a4"):
        choice.read_answers([tmp_path / "a4.parquet"], [tmp_path / "savings_a8.parquet"], models, None)
    with pytest.raises(TableError):
        choice.read_answers([tmp_path / "savings_a8.parquet"], [tmp_path / "savings_a8.parquet"], models, None)
