"""Figures of attribution and erasure: the numbers are the tables', the pictures are the numbers."""

import numpy as np
import polars as pl
import pytest
from matplotlib.patches import Rectangle

from plm_depth.figures import attribution_map, door, erasure, gate_attribution, select, tuned_lens
from plm_depth.figures.select import FigureError, replace
from plm_depth.randomness import generator
from plm_depth.tables import ATTRIBUTION, ATTRIBUTION_MAP, PROFILE, write_table
from unit.figures import invented
from unit.figures.pictures import picture
from unit.figures.test_figures import words_of

MODELS = (invented.MINI[0], invented.MINI[3], invented.MINI[4])  # masked with 4 blocks, autoregressive 8, diffusion 4
STAGES = [gate_attribution.STAGE, attribution_map.STAGE, erasure.STAGE, tuned_lens.STAGE]
TABLE_OF = {"attribution_map": ("attribution_maps", "map"), "tuned_lens": ("tuned_lenses", "tuned")}
N_RESIDUES = 7


def write(model, folder):
    """Write invented tables of one model: all inputs, so that a figure that selects the wrong ones shows others."""
    random = generator("attribution", model.model)
    rows, cells, lenses = [], [], []
    for direction, noise_t in invented.INPUTS[model.objective]:
        view = {
            "model_id": model.model,
            "family": model.family,
            "objective": model.objective,
            "n_blocks": model.n_blocks,
            "d_model": model.d_model,
            "dtype": "float32",
            "condition": "seq",
            "readout": "seq",
            "direction": direction,
            "noise_t": noise_t,
            "mask_draw": -1,
        }
        for null_model, null_seed in invented.NULLS:
            network = {**view, "null_model": null_model, "null_seed": null_seed, "vocab": "aa20"}
            wanted = [("gate", "logp", "signed", range(1, model.n_blocks + 1)), ("gate", "logp", "gained", [-1])]
            wanted += [("gate", "logp", "depth_score", [-1])]
            for kind in ("erase_position", "erase_prefix"):
                wanted += [(kind, "l2", "mean", range(model.n_blocks + 1)), (kind, "l2", "erasure_depth", [-1])]
            kinds = [("kl_lf", vocab, layer) for vocab in ("aa20", "full") for layer in range(model.n_blocks + 1)]
            for lens in ("tuned", "logit"):
                for quantity, vocab, layer in [*kinds, ("kl_bg", "aa20", -1)]:
                    value = random.random() * (layer < model.n_blocks)
                    lenses.append(
                        {**network, "table": "tuned_lens", "pos_class": lens, "quantity": quantity, "vocab": vocab,
                         "layer": layer, "aggregate": "mean", "value": value, "ci_lo": value * 0.9,
                         "ci_hi": value * 1.1, "n_seq": 48, "n_cluster": 40, "n_boot": 2000, "n_nan": 0}
                    )  # fmt: skip
            for kind, target, quantity, layers in wanted:
                for layer in layers:
                    value = random.normal() if kind == "gate" else random.random() * (layer < model.n_blocks)
                    rows.append(
                        {**network, "object": kind, "target": target, "quantity": quantity, "layer": layer,
                         "value": value, "ci_lo": value - 0.1, "ci_hi": value + 0.1, "n_seq": 48, "n_cluster": 40,
                         "n_boot": 2000, "n_rejected": 0}
                    )  # fmt: skip
        for layer in range(1, model.n_blocks + 1):
            for position in range(N_RESIDUES):
                cells.append(
                    {**view, "null_model": "trained", "null_seed": -1, "sequence_id": "P1", "n_residues": N_RESIDUES,
                     "object": "gate", "target": "logp", "vocab": "aa20", "layer": layer, "position": position,
                     "value": random.normal(), "completeness_err": 0.001}
                )  # fmt: skip
    tables = ("attribution", ATTRIBUTION, rows), ("map", ATTRIBUTION_MAP, cells), ("tuned", PROFILE, lenses)
    for name, schema, own in tables:
        path = folder / f"{model.model}.{name}.parquet"
        write_table({column: [row[column] for row in own] for column in schema.names}, schema, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attribution")
    for model in MODELS:
        write(model, folder)
    invented.models_json(invented.MINI, folder / "models.json")  # three of them were measured
    return folder


@pytest.fixture(scope="module")
def study(folder):
    tables = {
        "attributions": sorted(folder.glob("*.attribution.parquet")),
        "attribution_maps": sorted(folder.glob("*.map.parquet")),
        "tuned_lenses": sorted(folder.glob("*.tuned.parquet")),
    }
    return door.read_study(folder / "models.json", tables)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_figures_show_the_measured_models_at_primary_inputs_only(stage, study):
    numbers, figure = picture(stage, study)
    assert numbers["model"].unique(maintain_order=True).to_list() == [model.model for model in MODELS]
    shown = set(zip(numbers["objective"], numbers["direction"], numbers["noise_t"].round(3).cast(pl.String)))
    assert shown == {("mlm", "none", "0.15"), ("ar", "n2c", "NaN"), ("diffusion", "none", "-1.0")}
    words = words_of(figure)
    assert "Toy models: no evidence about real ones." in words
    for model in MODELS:
        assert f"{model.display_name}, {model.n_blocks}" in words.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_figures_through_the_door_are_the_same_twice(stage, folder, tmp_path):
    kind, ending = TABLE_OF.get(stage.name, ("attributions", "attribution"))
    tables = [str(path) for path in sorted(folder.glob(f"*.{ending}.parquet"))]
    pictures = []
    for number in range(2):
        outputs = {name: tmp_path / f"{number}.{name}" for name in ("svg", "csv", "html")}
        options = [word for name, path in outputs.items() for word in (f"--{name}", str(path))]
        door.run(stage, [f"--{kind}", *tables, "--models", str(folder / "models.json"), *options])
        pictures.append(outputs["svg"].read_text())
        assert outputs["csv"].read_text().count("\n") > 20
    assert pictures[0] == pictures[1]


def test_bars_are_the_attributions_of_the_trained_blocks(study):
    numbers, figure = picture(gate_attribution.STAGE, study)
    assert len(figure.axes) == len(MODELS)
    for axes, model in zip(figure.axes, (MODELS[0], MODELS[1], MODELS[2]), strict=True):
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        own = numbers.filter(
            (pl.col("model") == model.model) & (pl.col("network") == "trained")
            & (pl.col("quantity") == gate_attribution.BLOCKS.name)
        )  # fmt: skip
        heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars}
        assert heights == dict(zip(own["layer"], own["value"], strict=True))
    assert "all blocks: trained" in words_of(figure)


def test_a_model_without_a_complete_protein_is_said_to_be_undefined(study):
    is_one = (pl.col("model_id") == MODELS[0].model) & (pl.col("null_model") == "trained")
    undefined = pl.when(is_one).then(float("nan")).otherwise(pl.col("value")).alias("value")
    _, figure = picture(gate_attribution.STAGE, replace(study, attributions=study.attributions.with_columns(undefined)))
    words = words_of(figure).replace("\n", " ")
    assert "trained undefined" in words and "Undefined: the bars of every protein" in words
    assert "Undefined" not in words_of(picture(gate_attribution.STAGE, study)[1])


def test_the_map_puts_blocks_upwards_and_residues_to_the_right(study):
    numbers, figure = picture(attribution_map.STAGE, study)
    for axes, model in zip(figure.axes, MODELS, strict=True):
        (image,) = axes.images
        own = numbers.filter(pl.col("model") == model.model)
        shown = np.asarray(image.get_array())
        assert shown.shape == (model.n_blocks, N_RESIDUES) and image.origin == "lower"
        for row in own.iter_rows(named=True):
            assert shown[row["layer"] - 1, row["position"] - 1] == row["value"]
        low, high = image.get_clim()
        assert low == -high
    assert "Protein P1, 7 residues" in words_of(figure).replace("\n", " ")


def test_the_map_says_where_completeness_is_missed(study):
    maps = study.attribution_maps.with_columns(completeness_err=pl.lit(0.02))
    _, figure = picture(attribution_map.STAGE, replace(study, attribution_maps=maps))
    assert "Completeness is missed by more than 1 %" in words_of(figure).replace("\n", " ")


def test_maps_of_different_proteins_are_refused(study):
    other = pl.when(pl.col("model_id") == MODELS[0].model).then(pl.lit("P2")).otherwise(pl.col("sequence_id"))
    with pytest.raises(FigureError, match="expected one"):
        attribution_map.numbers(replace(study, attribution_maps=study.attribution_maps.with_columns(sequence_id=other)))


def test_the_last_state_is_not_drawn(study):
    numbers = erasure.numbers(study)
    assert (numbers["layer"].drop_nulls() < numbers.filter(pl.col("layer").is_not_null())["n_blocks"]).all()
    one = numbers.filter((pl.col("model") == MODELS[0].model) & (pl.col("quantity") == erasure.POSITION.name))
    assert one.filter(pl.col("network") == "trained")["relative_depth"].to_list() == [0.0, 0.25, 0.5, 0.75]
    blocks = gate_attribution.numbers(study).filter(pl.col("quantity") == gate_attribution.BLOCKS.name)
    one = blocks.filter((pl.col("model") == MODELS[0].model) & (pl.col("network") == "trained"))
    assert one["relative_depth"].to_list() == [0.125, 0.375, 0.625, 0.875]


def test_untrained_networks_are_the_mean_and_range_of_their_seeds(study):
    numbers = gate_attribution.numbers(study)
    own = (pl.col("object") == "gate") & (pl.col("quantity") == "signed") & (pl.col("layer") == 2)
    table = study.attributions.filter(own & (pl.col("model_id") == MODELS[1].model))
    seeds = table.filter(pl.col("null_model") == "randinit")["value"]
    row = numbers.filter(
        (pl.col("model") == MODELS[1].model) & (pl.col("network") == "untrained") & (pl.col("layer") == 2)
    ).row(0, named=True)
    assert len(seeds) == row["n_seeds"] == 3
    np.testing.assert_allclose([row["value"], row["lo"], row["hi"]], [seeds.mean(), seeds.min(), seeds.max()])


def test_a_missing_layer_or_method_is_refused(study):
    rows = study.attributions
    lacking = rows.filter(~((pl.col("quantity") == "signed") & (pl.col("layer") == 1)))
    with pytest.raises(FigureError, match="has layers"):
        gate_attribution.numbers(replace(study, attributions=lacking))
    with pytest.raises(FigureError, match="methods"):
        gate_attribution.numbers(replace(study, attributions=rows.filter(pl.col("object") != "gate")))
    with pytest.raises(FigureError, match="at least one model"):
        gate_attribution.numbers(select.Study(study.models))


def test_a_study_of_erasures_of_residues_alone_is_drawn(study):
    rows = study.attributions.filter(
        ~pl.col("object").is_in(["erase_prefix"]) & (pl.col("quantity") != "erasure_depth")
    )
    numbers, figure = picture(erasure.STAGE, replace(study, attributions=rows))
    assert set(numbers["quantity"]) == {erasure.POSITION.name}
    assert "before a point" not in words_of(figure)


def test_the_tuned_lens_is_solid_and_the_logit_lens_dotted(study):
    numbers, figure = picture(tuned_lens.STAGE, study)
    rows = study.tuned_lenses
    for axes, model in zip(figure.axes, MODELS, strict=True):
        for style, lens in (("-", "tuned"), ("--", "logit")):  # matplotlib calls every pattern of dashes "--"
            own = rows.filter(
                (pl.col("model_id") == model.model) & (pl.col("null_model") == "trained")
                & (pl.col("pos_class") == lens) & (pl.col("quantity") == "kl_lf")
            ).sort("layer")["value"].to_list()[:-1]  # fmt: skip
            drawn = [line for line in axes.lines if list(line.get_ydata()) == own]
            assert [line.get_linestyle() for line in drawn] == [style], lens
    words = words_of(figure).replace("\N{NO-BREAK SPACE}", " ")
    assert "composition" in words and "trained, logit lens" in words
    assert (numbers["layer"].drop_nulls() < numbers.filter(pl.col("layer").is_not_null())["n_blocks"]).all()


def test_a_lens_that_is_missing_is_refused(study):
    rows = study.tuned_lenses
    with pytest.raises(FigureError, match=r"kl_lf \(logit\)"):
        tuned_lens.numbers(replace(study, tuned_lenses=rows.filter(pl.col("pos_class") == "tuned")))
    with pytest.raises(FigureError, match="at least one model"):
        tuned_lens.numbers(select.Study(study.models))
